//! The TLS state of one connection: decrypts received records, encrypts bytes to send.
//!
//! The memory of a session is bounded: [`INPUT_BYTES`] of received records, rustls's record of at most 17 KB (in the
//! handshake 64 KB), and [`MAX_OUTPUT_BYTES`] of encrypted bytes that the socket has not taken.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::ClientConnection;

use super::failure::{client_certificate_missing, explain};
use super::{Decrypted, TlsFailure};

/// Received records are read in pieces of this size: rustls itself would read 4 KiB with each system call.
const INPUT_BYTES: usize = 32 * 1024;
/// Limit on the bytes that are encrypted but not yet taken by the socket.
const MAX_OUTPUT_BYTES: usize = 128 * 1024;

/// The TLS state of one connection.
pub(crate) struct TlsSession {
    connection: ClientConnection,
    input: Box<[u8]>,
    /// The received bytes in `input` that have not been decrypted.
    undecrypted: std::ops::Range<usize>,
    /// Why the received records could not be processed; bytes that were decrypted before are returned first.
    failure: Option<TlsFailure>,
    /// Whether anything has been received: the first bytes show whether the peer speaks TLS.
    has_received: bool,
    /// Whether the server demanded a client certificate and none is configured.
    lacks_certificate: Arc<AtomicBool>,
}

impl std::fmt::Debug for TlsSession {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TlsSession")
    }
}

impl TlsSession {
    pub(super) fn new(mut connection: ClientConnection, lacks_certificate: Arc<AtomicBool>) -> TlsSession {
        connection.set_buffer_limit(Some(MAX_OUTPUT_BYTES));
        TlsSession {
            connection,
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            undecrypted: 0..0,
            failure: None,
            has_received: false,
            lacks_certificate,
        }
    }

    /// Whether the handshake is not done.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Decrypts received records into `buffer`, which is not empty; consumes session tickets, key
    /// updates and alerts. After an error, [`write_output`](Self::write_output) writes the alert.
    pub(crate) fn decrypt(&mut self, buffer: &mut [u8]) -> Result<Decrypted, TlsFailure> {
        loop {
            match self.connection.reader().read(buffer) {
                Ok(0) => return Ok(Decrypted::Closed),
                Ok(count) => return Ok(Decrypted::Bytes(count)),
                // There is no plaintext yet.
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                Err(cause) => return Err(TlsFailure { reason: cause.to_string(), is_refusal: false }),
            }
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            if self.undecrypted.is_empty() {
                return Ok(Decrypted::NeedsInput);
            }
            self.failure = self.process().err();
        }
    }

    /// Consumes received records until the handshake is done, or more input is needed. After an error,
    /// [`write_output`](Self::write_output) writes the alert.
    pub(crate) fn advance_handshake(&mut self) -> Result<(), TlsFailure> {
        while self.is_handshaking() && !self.undecrypted.is_empty() {
            self.process()?;
        }
        Ok(())
    }

    /// Consumes some of the received records.
    fn process(&mut self) -> Result<(), TlsFailure> {
        let mut records = &self.input[self.undecrypted.clone()];
        let taken = self.connection.read_tls(&mut records);
        self.undecrypted.start = self.undecrypted.end - records.len();
        // It takes nothing if the announced length of a record exceeds its buffer.
        if !taken.is_ok_and(|count| count > 0) {
            let reason = "the server sent a TLS record that is too large".to_owned();
            return Err(TlsFailure { reason, is_refusal: false });
        }
        match self.connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(cause) => Err(explain(&cause, self.lacks_certificate.load(Ordering::Relaxed))),
        }
    }

    /// Returns space for received records. Only after [`Decrypted::NeedsInput`].
    pub(crate) fn input_space(&mut self) -> &mut [u8] {
        self.undecrypted = 0..0;
        &mut self.input
    }

    /// Adds `count` bytes that were written to [`input_space`](Self::input_space).
    pub(crate) fn add_input(&mut self, count: usize) -> Result<(), TlsFailure> {
        self.undecrypted = 0..count;
        if !self.has_received && count > 0 {
            self.has_received = true;
            // The content types of TLS records are 20 to 23 (RFC 8446 section 5.1).
            if !(20..=23).contains(&self.input[0]) {
                let shown = self.input[..count.min(16)].escape_ascii();
                let reason = format!("the server does not speak TLS on this port; it sent \"{shown}\"");
                return Err(TlsFailure { reason, is_refusal: false });
            }
        }
        Ok(())
    }

    /// Encrypts bytes; returns how many. Fewer than all are encrypted if the output has reached its limit.
    pub(crate) fn encrypt(&mut self, bytes: &[u8]) -> usize {
        // Writing into memory does not fail.
        self.connection.writer().write(bytes).unwrap_or(0)
    }

    /// Whether there are encrypted bytes to write.
    pub(crate) fn has_output(&self) -> bool {
        self.connection.wants_write()
    }

    /// Writes encrypted bytes; returns how many.
    pub(crate) fn write_output(&mut self, mut socket: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(&mut socket)
    }

    /// Queues the close_notify; [`write_output`](Self::write_output) writes it.
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// Explains a connection that the server closed in the handshake or before its first response.
    pub(crate) fn closed_early(&self) -> TlsFailure {
        if self.lacks_certificate.load(Ordering::Relaxed) {
            return client_certificate_missing("it closed the connection");
        }
        let reason = match self.has_received {
            true => "the server closed the connection in the TLS handshake",
            false => "the server closed the connection in the TLS handshake, as a listener without TLS does",
        };
        TlsFailure { reason: reason.to_owned(), is_refusal: false }
    }
}
