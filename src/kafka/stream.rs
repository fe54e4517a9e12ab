//! A byte stream to a peer, plaintext or TLS, with a deadline for each call.
//!
//! Invariant: [`SendFailure::is_unsent`] is true only if the socket has taken no byte that carries a part of the
//! message.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::time::Instant;

use super::socket::{Disconnect, Socket};
use crate::tls_client::{Decrypted, TlsClient, TlsFailure, TlsSession};

/// Why a stream failed. The stream is then unusable.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The deadline has passed.
    #[error("timed out")]
    TimedOut,
    /// The peer closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The connection failed.
    #[error("connection lost: {0}")]
    Io(io::Error),
    /// TLS failed.
    #[error("{0}")]
    Tls(#[from] TlsFailure),
}

impl From<io::Error> for StreamError {
    fn from(cause: io::Error) -> Self {
        if cause.kind() == ErrorKind::TimedOut { StreamError::TimedOut } else { StreamError::Io(cause) }
    }
}

/// Why a message could not be sent.
#[derive(Debug)]
pub(super) struct SendFailure {
    /// Whether no byte of the message can have reached the socket.
    pub(super) is_unsent: bool,
    pub(super) cause: StreamError,
}

/// A byte stream to a peer.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    tls: Option<Box<TlsSession>>,
}

impl Stream {
    /// Connects to one address.
    pub(super) fn connect(address: SocketAddr, deadline: Instant, disconnect: &Disconnect) -> io::Result<Stream> {
        Ok(Stream { socket: Socket::connect(address, deadline, disconnect)?, tls: None })
    }

    /// Makes the TLS handshake, as a client of `host`.
    pub(super) fn start_tls(&mut self, client: &TlsClient, host: &str, deadline: Instant) -> Result<(), StreamError> {
        let mut session = Box::new(client.session(host)?);
        let outcome = handshake(&mut self.socket, &mut session, deadline);
        if outcome.is_err() {
            // The alert that says why; the socket of a new connection has room for it.
            let _ = session.write_output(&mut self.socket.stream());
        }
        self.tls = Some(session);
        outcome
    }

    /// Writes all bytes of all slices.
    pub(super) fn write_all(&mut self, slices: &mut [IoSlice<'_>], deadline: Instant) -> Result<(), SendFailure> {
        let Stream { socket, tls } = self;
        match tls {
            None => write_plain(socket, slices, deadline),
            Some(session) => write_encrypted(socket, session, slices, deadline),
        }
    }

    /// Whether the stream is TLS.
    pub(super) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads at least one byte into `buffer`, which is not empty.
    pub(super) fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize, StreamError> {
        let Stream { socket, tls } = self;
        let Some(session) = tls else {
            return match socket.read(buffer, deadline)? {
                0 => Err(StreamError::Closed),
                count => Ok(count),
            };
        };
        loop {
            match decrypt(socket, session, buffer)? {
                Decrypted::Bytes(count) => return Ok(count),
                Decrypted::Closed => return Err(StreamError::Closed),
                Decrypted::NeedsInput => {}
            }
            // The answer to a key update.
            flush(socket, session, deadline)?;
            match socket.read(session.input_space(), deadline)? {
                0 => return Err(StreamError::Closed),
                count => session.add_input(count)?,
            }
        }
    }

    /// Whether the peer has closed the connection, or the connection has failed, or the peer has sent bytes: only for a
    /// stream whose peer must be silent. Session tickets of TLS are no bytes in this sense. Does not wait.
    pub(super) fn is_closed(&mut self) -> bool {
        if self.tls.is_none() {
            return self.socket.has_input();
        }
        let Stream { socket, tls: Some(session) } = self else { return false };
        loop {
            match decrypt(socket, session, &mut [0]) {
                Ok(Decrypted::NeedsInput) => {}
                _ => return true,
            }
            match socket.read_now(session.input_space()) {
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return false,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(_) | Ok(0) => return true,
                Ok(count) => {
                    if session.add_input(count).is_err() {
                        return true;
                    }
                }
            }
        }
    }

    /// Explains the close of a connection before its first response, if TLS has an explanation.
    pub(super) fn closed_early(&self) -> Option<TlsFailure> {
        self.tls.as_ref().map(|session| session.closed_early()).filter(|failure| failure.is_refusal)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(session) = &mut self.tls
            && !session.is_handshaking()
        {
            session.close();
            // The peer needs no close_notify: the framing of Kafka shows a truncation.
            let _ = session.write_output(&mut self.socket.stream());
        }
    }
}

fn handshake(socket: &mut Socket, session: &mut TlsSession, deadline: Instant) -> Result<(), StreamError> {
    loop {
        flush(socket, session, deadline)?;
        if !session.is_handshaking() {
            return Ok(());
        }
        match socket.read(session.input_space(), deadline) {
            Ok(0) => return Err(session.closed_early().into()),
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => return Err(session.closed_early().into()),
            Err(cause) => return Err(cause.into()),
            Ok(count) => session.add_input(count)?,
        }
        session.advance_handshake()?;
    }
}

fn decrypt(socket: &Socket, session: &mut TlsSession, buffer: &mut [u8]) -> Result<Decrypted, TlsFailure> {
    session.decrypt(buffer).inspect_err(|_| {
        // The alert that says why.
        let _ = session.write_output(&mut socket.stream());
    })
}

fn flush(socket: &mut Socket, session: &mut TlsSession, deadline: Instant) -> io::Result<()> {
    while session.has_output() {
        socket.write_with(deadline, |mut stream| session.write_output(&mut stream))?;
    }
    Ok(())
}

fn write_plain(socket: &mut Socket, mut slices: &mut [IoSlice<'_>], deadline: Instant) -> Result<(), SendFailure> {
    let mut is_unsent = true;
    // Empty slices at the beginning are removed: a write of nothing looks like a failure.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let count = socket.write(slices, deadline).map_err(|cause| SendFailure { is_unsent, cause: cause.into() })?;
        is_unsent = false;
        IoSlice::advance_slices(&mut slices, count);
    }
    Ok(())
}

fn write_encrypted(
    socket: &mut Socket,
    session: &mut TlsSession,
    slices: &[IoSlice<'_>],
    deadline: Instant,
) -> Result<(), SendFailure> {
    // Output from before this message is written first: then the first byte that the socket takes is one of its own.
    flush(socket, session, deadline).map_err(|cause| SendFailure { is_unsent: true, cause: cause.into() })?;
    let mut is_unsent = true;
    for slice in slices {
        let mut bytes = &**slice;
        while !bytes.is_empty() {
            bytes = &bytes[session.encrypt(bytes)..];
            while session.has_output() {
                socket
                    .write_with(deadline, |mut stream| session.write_output(&mut stream))
                    .map_err(|cause| SendFailure { is_unsent, cause: cause.into() })?;
                is_unsent = false;
            }
        }
    }
    Ok(())
}
