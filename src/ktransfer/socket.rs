//! The TCP connections of pushes, as a transport of the HTTP client.
//!
//! The client's own connector cannot enable TCP keep-alive, and sends head and body of a request with two writes. This
//! connector detects a dead peer even if no timeout is configured, and sends a small request with one write.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{fmt, mem};

use socket2::{SockRef, TcpKeepalive};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, ShutdownHandle, Transport, time,
};
use ureq::{Error, Timeout};

/// TCP keep-alive: time without traffic before the first probe, also while a response is awaited.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
/// TCP keep-alive: interval between two probes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// TCP keep-alive: number of probes without a reply after which the connection is closed. That is 90 s after the last
/// traffic: 30 s + 6 × 10 s.
const KEEP_ALIVE_PROBES: u32 = 6;
/// The connection is closed if the peer does not acknowledge sent bytes for this time, the same 90 s as for keep-alive.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(90);
/// Output is collected in memory up to this size before it is sent.
const MAX_UNSENT_BYTES: usize = 16 * 1024;

/// Opens a connection to the first address of a backend that accepts one.
#[derive(Debug)]
pub(super) struct TcpConnector;

impl Connector for TcpConnector {
    type Out = TcpConnection;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<TcpConnection>, Error> {
        let deadline = details.timeout.not_zero().and_then(|limit| Instant::now().checked_add(*limit));
        let mut failure = io::Error::new(ErrorKind::AddrNotAvailable, "the backend's name has no address");
        for (index, address) in details.addrs.iter().enumerate() {
            let addresses_left = u32::try_from(details.addrs.len() - index).unwrap_or(u32::MAX);
            let connected = match deadline {
                None => TcpStream::connect(address),
                Some(deadline) => {
                    // Each remaining address gets an equal share of the remaining time. A timeout of zero would be an
                    // error.
                    let share = deadline.saturating_duration_since(Instant::now()) / addresses_left;
                    TcpStream::connect_timeout(address, share.max(Duration::from_millis(1)))
                }
            };
            match connected.and_then(TcpConnection::new) {
                Err(cause) => failure = cause,
                Ok(connection) => {
                    let socket: Weak<SharedSocket> = Arc::downgrade(&connection.socket);
                    (details.register_shutdown)(socket)?;
                    return Ok(Some(connection));
                }
            }
        }
        Err(client_error(failure, Timeout::Connect))
    }
}

/// A socket that the HTTP client may shut down from another thread while a worker uses it.
struct SharedSocket(TcpStream);

impl ShutdownHandle for SharedSocket {
    fn shutdown(&self) {
        // An error means that the connection is already closed.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// One connection to a backend.
pub(super) struct TcpConnection {
    socket: Arc<SharedSocket>,
    buffers: LazyBuffers,
    /// Output not sent yet. It is sent before the connection waits for input.
    unsent: Vec<u8>,
    /// The timeout for sending `unsent`.
    send_limit: NextTimeout,
    /// The timeouts that are set on the socket. A system call is made only when a timeout changes.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl TcpConnection {
    fn new(stream: TcpStream) -> io::Result<TcpConnection> {
        stream.set_nodelay(true)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE_AFTER)
            .with_interval(KEEP_ALIVE_INTERVAL)
            .with_retries(KEEP_ALIVE_PROBES);
        let options = SockRef::from(&stream);
        options.set_tcp_keepalive(&keep_alive)?;
        options.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
        Ok(TcpConnection {
            socket: Arc::new(SharedSocket(stream)),
            // The client allocates both buffers at the first request and keeps them as long as the connection. There is
            // about one connection for each worker.
            buffers: LazyBuffers::new(16 * 1024, 32 * 1024),
            unsent: Vec::new(),
            send_limit: NextTimeout::default(),
            read_timeout: None,
            write_timeout: None,
        })
    }

    /// Sets the timeout of the next write, and returns the phase of the request to name in a timeout error.
    fn limit_write(&mut self, limit: NextTimeout) -> Result<Timeout, Error> {
        let limit = limit.for_write();
        let stream = &self.socket.0;
        set_if_changed(&mut self.write_timeout, socket_timeout(limit)?, |timeout| stream.set_write_timeout(timeout))?;
        Ok(limit.reason)
    }

    fn send_unsent(&mut self) -> Result<(), Error> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let reason = self.limit_write(self.send_limit)?;
        let sent = (&self.socket.0).write_all(&self.unsent);
        self.unsent.clear();
        sent.map_err(|cause| client_error(cause, reason))
    }
}

impl Transport for TcpConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, limit: NextTimeout) -> Result<(), Error> {
        self.send_limit = limit;
        if self.unsent.len() + amount <= MAX_UNSENT_BYTES {
            self.unsent.extend_from_slice(&self.buffers.output()[..amount]);
            return Ok(());
        }
        self.send_unsent()?;
        let reason = self.limit_write(limit)?;
        let output = &self.buffers.output()[..amount];
        (&self.socket.0).write_all(output).map_err(|cause| client_error(cause, reason))
    }

    fn await_input(&mut self, limit: NextTimeout) -> Result<bool, Error> {
        self.send_unsent()?;
        let limit = limit.for_read();
        let stream = &self.socket.0;
        set_if_changed(&mut self.read_timeout, socket_timeout(limit)?, |timeout| stream.set_read_timeout(timeout))?;
        let buffer = self.buffers.input_append_buf();
        let n_read = loop {
            match (&mut &*stream).read(buffer) {
                // A signal interrupted the read. The repeated read has the full timeout again, since signals are rare.
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(|cause| client_error(cause, limit.reason))?,
            }
        };
        self.buffers.input_appended(n_read);
        Ok(0 < n_read)
    }

    /// Whether the connection is open and has received nothing since the last response. Unexpected bytes would be
    /// parsed as the response to the next request.
    fn is_open(&mut self) -> bool {
        let mut byte = [mem::MaybeUninit::uninit()];
        let options = SockRef::from(&self.socket.0);
        let peeked = options.recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        self.unsent.is_empty() && matches!(peeked, Err(cause) if cause.kind() == ErrorKind::WouldBlock)
    }
}

impl fmt::Debug for TcpConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TcpConnection").field("peer", &self.socket.0.peer_addr().ok()).finish()
    }
}

/// Returns the socket timeout for a limit; `None` means no timeout. Fails if the limit has expired.
fn socket_timeout(limit: NextTimeout) -> Result<Option<Duration>, Error> {
    match limit.after {
        time::Duration::NotHappening => Ok(None),
        time::Duration::Exact(Duration::ZERO) => Err(Error::Timeout(limit.reason)),
        time::Duration::Exact(duration) => Ok(Some(duration)),
    }
}

fn set_if_changed(
    current: &mut Option<Duration>,
    wanted: Option<Duration>,
    set: impl FnOnce(Option<Duration>) -> io::Result<()>,
) -> Result<(), Error> {
    if *current != wanted {
        set(wanted)?;
        *current = wanted;
    }
    Ok(())
}

/// Converts an error of a socket to an error of the HTTP client. An expired timeout has the kind `TimedOut` after a
/// connect, and `WouldBlock` after a read or write.
fn client_error(cause: io::Error, reason: Timeout) -> Error {
    match cause.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(reason),
        _ => Error::Io(cause),
    }
}
