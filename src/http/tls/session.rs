//! The TLS state of one connection, which decrypts received bytes and encrypts bytes to send.
//!
//! The memory of a session is bounded. It holds at most one incomplete received record (17 KB; in the handshake 64 KB),
//! since decrypted bytes are taken out at once. Of bytes to send it holds at most [`MAX_UNSENT_BYTES`], plus the
//! records of the handshake. A panic of rustls is an error of the connection, not of the thread that uses it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use super::Received;
use crate::panics;

/// Limit on the bytes that are encrypted but not yet taken by the socket.
const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// The TLS state of one connection.
pub(in crate::http) struct Session {
    connection: ServerConnection,
    /// Number of bytes that the socket has taken.
    written_bytes: usize,
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> Session {
        let mut connection =
            ServerConnection::new(config).expect("only an invalid fragment size fails, and none is set");
        connection.set_buffer_limit(Some(MAX_UNSENT_BYTES));
        Session { connection, written_bytes: 0 }
    }

    /// Returns the number of bytes that the socket has taken so far.
    pub(in crate::http) fn written_bytes(&self) -> usize {
        self.written_bytes
    }

    /// Decrypts `records` and appends the plaintext to `plaintext`. After an error, call [`Self::flush`] to send the
    /// alert, then close the connection. Bytes after the client's close_notify are ignored.
    pub(in crate::http) fn receive(&mut self, records: &[u8], plaintext: &mut Vec<u8>) -> Result<Received, String> {
        panics::catch(|| self.decrypt(records, plaintext)).unwrap_or_else(|panic| Err(panicked(&panic)))
    }

    fn decrypt(&mut self, mut records: &[u8], plaintext: &mut Vec<u8>) -> Result<Received, String> {
        let mut peer_closed = false;
        while !records.is_empty() && !peer_closed {
            // `read_tls` takes as many bytes as its buffer holds. It takes none if the announced length of a record
            // exceeds the buffer.
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

    /// Encrypts `bytes` and writes records as far as the socket takes them. Returns the number of bytes encrypted. The
    /// last records are written only by [`Self::flush`], so that a close_notify can be sent together with them.
    pub(in crate::http) fn send(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() && self.flush(socket)? {
            let encrypted = panics::catch(|| self.connection.writer().write(&bytes[taken..]));
            taken += encrypted.unwrap_or_else(|panic| Err(io::Error::other(panicked(&panic))))?;
        }
        Ok(taken)
    }

    /// Writes the records that are ready; returns false if the socket is full before all of them are written.
    pub(in crate::http) fn flush(&mut self, mut socket: &TcpStream) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut socket) {
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                other => self.written_bytes += other?,
            }
        }
        Ok(true)
    }

    /// Queues the close_notify; [`Self::flush`] writes it.
    pub(in crate::http) fn close(&mut self) {
        // A panic is logged; the connection is then closed without a close_notify.
        let _ = panics::caught("closing a TLS session", || self.connection.send_close_notify());
    }
}

fn panicked(text: &str) -> String {
    format!("rustls panicked: {text}")
}
