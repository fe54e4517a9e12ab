//! The TLS state of one connection: decrypts what arrived, encrypts what is sent.
//!
//! Its memory is bounded: of received bytes at most an incomplete record (17 KB; in the handshake 64 KB), since
//! decrypted bytes are taken out at once; of bytes to send [`MAX_UNSENT_BYTES`] and the handshake's own records.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use super::Received;

/// Bytes encrypted ahead of what the socket takes.
const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// The TLS state of one connection.
pub(in crate::http) struct Session {
    connection: ServerConnection,
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> Session {
        let mut connection =
            ServerConnection::new(config).expect("only an invalid fragment size fails, and none is set");
        connection.set_buffer_limit(Some(MAX_UNSENT_BYTES));
        Session { connection }
    }

    /// Decrypts all of `records` and appends to `plaintext`. After an error the connection can only be closed;
    /// [`Self::flush`] then sends the alert.
    pub(in crate::http) fn receive(&mut self, mut records: &[u8], plaintext: &mut Vec<u8>) -> Result<Received, String> {
        let mut peer_closed = false;
        while !records.is_empty() && !peer_closed {
            // Reads as much as its buffer holds; nothing if the length of a record is too large.
            if self.connection.read_tls(&mut records).map_err(|cause| cause.to_string())? == 0 {
                return Err("a TLS record is too large".to_owned());
            }
            let state = self.connection.process_new_packets().map_err(|cause| cause.to_string())?;
            peer_closed = state.peer_has_closed();
            let start = plaintext.len();
            plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
            self.connection.reader().read_exact(&mut plaintext[start..]).map_err(|cause| cause.to_string())?;
        }
        Ok(Received { handshake_done: !self.connection.is_handshaking(), peer_closed })
    }

    /// Encrypts `bytes` and writes records as the socket takes them. Returns how many bytes were taken; the records of
    /// the last ones are written only by [`Self::flush`], together with a close_notify that may follow.
    pub(in crate::http) fn send(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() && self.flush(socket)? {
            taken += self.connection.writer().write(&bytes[taken..])?;
        }
        Ok(taken)
    }

    /// Writes the records that are ready; false if the socket does not take all of them now.
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

    /// Queues the close_notify; [`Self::flush`] writes it.
    pub(in crate::http) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
