//! The bytes of a connection: a socket, with TLS if the backend is configured with `https://`.
//!
//! No call waits, except [`Stream::receive`] without `DONTWAIT`, which waits for the receive timeout of the socket, and
//! the handshake. Both end at once when the socket is shut down, as a cut does.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::Socket;

use crate::tls_client::{Decrypted, TlsClient, TlsFailure, TlsSession};

/// Why a stream failed, or cannot go on without waiting (`AGAIN`).
#[derive(Debug)]
pub(super) enum StreamFailure {
    Socket(Errno),
    /// TLS failed, with the reason.
    Tls(String),
}

impl From<Errno> for StreamFailure {
    fn from(cause: Errno) -> Self {
        StreamFailure::Socket(cause)
    }
}

impl From<TlsFailure> for StreamFailure {
    fn from(failure: TlsFailure) -> Self {
        StreamFailure::Tls(failure.reason)
    }
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) enum HandshakeFailure {
    TimedOut,
    /// The connection was closed, reset or lost.
    Lost(String),
    /// A certificate was refused, or the peers do not understand each other.
    Tls(String),
}

/// A connected socket, with TLS or without.
pub(super) struct Stream {
    socket: Arc<Socket>,
    tls: Option<Box<TlsSession>>,
    /// Number of bytes that the socket has taken since the handshake.
    n_written: u64,
}

impl Stream {
    /// Creates the stream of a connected socket without TLS.
    pub(super) fn plain(socket: Arc<Socket>) -> Stream {
        Stream { socket, tls: None, n_written: 0 }
    }

    /// Makes the TLS handshake as a client of `host`, a name or an IP address.
    pub(super) fn encrypted(
        socket: Arc<Socket>,
        client: &TlsClient,
        host: &str,
        deadline: Instant,
    ) -> Result<Stream, HandshakeFailure> {
        let mut session = Box::new(client.session(host).map_err(|failure| HandshakeFailure::Tls(failure.reason))?);
        let outcome = handshake(&socket, &mut session, deadline);
        if outcome.is_err() {
            // The alert that says why; the socket of a new connection has room for it.
            let _ = session.write_output(&mut SocketWriter(&socket));
        }
        outcome.map(|()| Stream { socket, tls: Some(session), n_written: 0 })
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Returns how many bytes the socket has taken. What it has taken may reach the peer, also if a later write fails.
    pub(super) fn n_written(&self) -> u64 {
        self.n_written
    }

    /// Returns how many of the bytes written the peer has not acknowledged; 0 if that is unknown.
    pub(super) fn n_unacknowledged(&self) -> u64 {
        let mut count: libc::c_int = 0;
        // SAFETY: the request writes one int, which is valid for the call.
        let outcome = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
        if outcome == 0 { u64::try_from(count).unwrap_or(0) } else { 0 }
    }

    /// Whether the stream has TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Takes some of the bytes, which are not empty, and sends as much as the socket takes at once. Returns how many
    /// were taken. [`flush`](Self::flush) sends the rest of them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, StreamFailure> {
        if self.tls.is_none() {
            let n_sent = send(&*self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
            self.n_written += n_sent as u64;
            return Ok(n_sent);
        }
        self.flush()?;
        let n_taken = self.tls.as_mut().map_or(0, |session| session.encrypt(bytes));
        match self.flush() {
            Ok(()) | Err(StreamFailure::Socket(Errno::AGAIN | Errno::INTR)) => Ok(n_taken),
            Err(failure) => Err(failure),
        }
    }

    /// Whether bytes were taken that the socket has not taken.
    pub(super) fn has_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.has_output())
    }

    /// Sends the bytes that were taken before.
    pub(super) fn flush(&mut self) -> Result<(), StreamFailure> {
        let Stream { socket, tls: Some(session), n_written } = self else { return Ok(()) };
        while session.has_output() {
            session_output(socket, session, n_written).map_err(|cause| errno(&cause))?;
        }
        Ok(())
    }

    /// Receives into `buffer`, which is not empty. Returns 0 at the end of the stream. Waits at most once, and fails
    /// with AGAIN if no complete record has arrived, so that the caller can check its deadlines.
    pub(super) fn receive(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, StreamFailure> {
        let Stream { socket, tls: Some(session), n_written } = self else {
            return Ok(recv(&*self.socket, buffer, flags)?.0);
        };
        let may_wait = !flags.contains(RecvFlags::DONTWAIT);
        let mut has_received = false;
        loop {
            let decrypted = session.decrypt(buffer).inspect_err(|_| {
                // The alert that says why.
                let _ = session_output(socket, session, n_written);
            });
            match decrypted? {
                Decrypted::Bytes(n_read) => return Ok(n_read),
                Decrypted::Closed => return Ok(0),
                Decrypted::NeedsInput => {}
            }
            // The answer to a key update, behind what is left of a request; what the socket does not take now is sent
            // with the next bytes.
            let _ = session_output(socket, session, n_written);
            if std::mem::replace(&mut has_received, true) && may_wait {
                return Err(StreamFailure::Socket(Errno::AGAIN));
            }
            match recv(&**socket, session.input_space(), flags)?.0 {
                0 => return Ok(0),
                n_read => session.add_input(n_read)?,
            }
        }
    }

    /// Whether the peer has neither closed the connection nor sent bytes. Session tickets of TLS are no bytes in this
    /// sense.
    pub(super) fn is_silent(&mut self) -> bool {
        let outcome = match self.tls {
            None => recv(&*self.socket, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT)
                .map(|(n_read, _)| n_read)
                .map_err(StreamFailure::from),
            Some(_) => self.receive(&mut [0], RecvFlags::DONTWAIT),
        };
        matches!(outcome, Err(StreamFailure::Socket(Errno::AGAIN)))
    }

    /// Explains the close of a connection before its first response, if TLS has an explanation.
    pub(super) fn closed_early(&self) -> Option<String> {
        let failure = self.tls.as_ref().map(|session| session.closed_early())?;
        failure.is_refusal.then_some(failure.reason)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(session) = &mut self.tls {
            session.close();
            // Without it a backend may log that the connection was cut off.
            let _ = session_output(&self.socket, session, &mut self.n_written);
        }
    }
}

/// Sends bytes that were taken before, and counts them.
fn session_output(socket: &Socket, session: &mut TlsSession, n_written: &mut u64) -> io::Result<()> {
    *n_written += session.write_output(&mut SocketWriter(socket))? as u64;
    Ok(())
}

fn handshake(socket: &Socket, session: &mut TlsSession, deadline: Instant) -> Result<(), HandshakeFailure> {
    let failed = |failure: TlsFailure| HandshakeFailure::Tls(failure.reason);
    loop {
        while session.has_output() {
            match session.write_output(&mut SocketWriter(socket)).map_err(|cause| errno(&cause)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for(socket, PollFlags::OUT, deadline)?,
                Err(cause) => return Err(lost(cause)),
            }
        }
        if !session.is_handshaking() {
            return Ok(());
        }
        match recv(socket, session.input_space(), RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) => {
                let failure = session.closed_early();
                return Err(match failure.is_refusal {
                    true => HandshakeFailure::Tls(failure.reason),
                    false => HandshakeFailure::Lost(failure.reason),
                });
            }
            Ok((n_read, _)) => session.add_input(n_read).map_err(failed)?,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(socket, PollFlags::IN, deadline)?,
            Err(cause) => return Err(lost(cause)),
        }
        session.advance_handshake().map_err(failed)?;
    }
}

fn lost(cause: Errno) -> HandshakeFailure {
    HandshakeFailure::Lost(format!("connection lost in the TLS handshake: {}", io::Error::from(cause)))
}

/// Waits until the socket is ready, or has failed.
fn wait_for(socket: &Socket, events: PollFlags, deadline: Instant) -> Result<(), HandshakeFailure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(HandshakeFailure::TimedOut);
    }
    let wait = Timespec::try_from(left.min(Duration::from_secs(60))).map_err(|_| HandshakeFailure::TimedOut)?;
    match poll(&mut [PollFd::new(socket, events)], Some(&wait)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(cause) => Err(lost(cause)),
    }
}

fn errno(cause: &io::Error) -> Errno {
    Errno::from_io_error(cause).unwrap_or(Errno::IO)
}

/// Writes to a socket without waiting.
struct SocketWriter<'a>(&'a Socket);

impl Write for SocketWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
