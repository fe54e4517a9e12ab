//! One connection's TLS: plaintext of what arrived, records of what is to be sent.
//!
//! What it holds is bounded: of what arrived at most a record that is not complete (17 KB; in the handshake 64 KB), for
//! decrypted bytes are taken out at once; of what is to be sent [`UNSENT`] and what the handshake itself says.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use super::Received;

/// Bytes encrypted ahead of what the socket takes.
const UNSENT: usize = 64 * 1024;

/// The state of one connection.
pub(in crate::http) struct Session {
    connection: ServerConnection,
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> Session {
        let mut connection = ServerConnection::new(config).expect("it fails for a fragment size only, and none is set");
        connection.set_buffer_limit(Some(UNSENT));
        Session { connection }
    }

    /// Takes all of `records`, which arrived, and adds what they decrypt to to `plain`. After an error the connection can
    /// only be ended; an alert for the client may be left to [`Self::flush`].
    pub(in crate::http) fn receive(&mut self, mut records: &[u8], plain: &mut Vec<u8>) -> Result<Received, String> {
        let mut ended = false;
        while !records.is_empty() && !ended {
            // Takes a part only, as much as its buffer is to hold; nothing where a length in the records is too large.
            if self.connection.read_tls(&mut records).map_err(|cause| cause.to_string())? == 0 {
                return Err("a record that is too large".to_owned());
            }
            let state = self.connection.process_new_packets().map_err(|cause| cause.to_string())?;
            ended = state.peer_has_closed();
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.connection.reader().read_exact(&mut plain[start..]).map_err(|cause| cause.to_string())?;
        }
        Ok(Received { established: !self.connection.is_handshaking(), ended })
    }

    /// Encrypts `bytes`, writing as the socket takes it; returns how many were taken. The last of them are written by
    /// [`Self::flush`] only, together with what is said after them.
    pub(in crate::http) fn send(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() && self.flush(socket)? {
            taken += self.connection.writer().write(&bytes[taken..])?;
        }
        Ok(taken)
    }

    /// Writes records that are ready; false when the socket does not take all of them now.
    pub(in crate::http) fn flush(&mut self, mut socket: &TcpStream) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut socket) {
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                other => drop(other?),
            }
        }
        Ok(true)
    }

    /// Says that nothing more is sent; to be followed by [`Self::flush`].
    pub(in crate::http) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
