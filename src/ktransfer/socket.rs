//! The TCP connections of pushes, as the HTTP client wants them made.
//!
//! Its own connector cannot switch TCP keep-alive on, and writes head and body of a request with two calls. Here a
//! dead peer is noticed without any timeout configured, and a small request leaves in one piece. No type of
//! the HTTP client leaves this file and `client.rs`.

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

/// An idle connection, or one whose answer takes long, is probed after this time …
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
/// … and then so often …
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// … until so many probes in a row got no answer: a dead peer is noticed within a minute and a half.
const KEEP_ALIVE_PROBES: u32 = 6;
/// As long for bytes that were sent and are not acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(90);
/// Output is gathered up to this size before it is sent.
const GATHERED_BYTES: usize = 16 * 1024;

/// Makes the connections.
#[derive(Debug)]
pub(super) struct TcpConnector;

impl Connector for TcpConnector {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<Connection>, Error> {
        let deadline = details.timeout.not_zero().and_then(|limit| Instant::now().checked_add(*limit));
        let mut failure = io::Error::new(ErrorKind::AddrNotAvailable, "the name has no address");
        for (index, address) in details.addrs.iter().enumerate() {
            let addresses_left = u32::try_from(details.addrs.len() - index).unwrap_or(u32::MAX);
            let connected = match deadline {
                None => TcpStream::connect(address),
                Some(deadline) => {
                    // What is left is shared by the addresses that are left; zero would be refused.
                    let share = deadline.saturating_duration_since(Instant::now()) / addresses_left;
                    TcpStream::connect_timeout(address, share.max(Duration::from_millis(1)))
                }
            };
            match connected.and_then(Connection::new) {
                Err(cause) => failure = cause,
                Ok(connection) => {
                    let socket: Weak<Socket> = Arc::downgrade(&connection.socket);
                    (details.register_shutdown)(socket)?;
                    return Ok(Some(connection));
                }
            }
        }
        Err(named(failure, Timeout::Connect))
    }
}

/// A socket that the client may shut down from another thread while it is in use.
struct Socket(TcpStream);

impl ShutdownHandle for Socket {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// One connection.
pub(super) struct Connection {
    socket: Arc<Socket>,
    buffers: LazyBuffers,
    /// Output not sent yet; it is sent before anything is waited for.
    gathered: Vec<u8>,
    /// The limit that holds for sending what was gathered.
    send_limit: NextTimeout,
    /// What the socket is set to, so that it is set only when it changes.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Connection {
    fn new(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE_AFTER)
            .with_interval(KEEP_ALIVE_EVERY)
            .with_retries(KEEP_ALIVE_PROBES);
        let options = SockRef::from(&stream);
        options.set_tcp_keepalive(&keep_alive)?;
        options.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        Ok(Connection {
            socket: Arc::new(Socket(stream)),
            // Both are allocated with the first request; a connection a worker keeps them for its life.
            buffers: LazyBuffers::new(16 * 1024, 32 * 1024),
            gathered: Vec::new(),
            send_limit: NextTimeout::default(),
            read_timeout: None,
            write_timeout: None,
        })
    }

    /// Sets the limit of the next write; returns what a failure of it is called.
    fn limit_write(&mut self, limit: NextTimeout) -> Result<Timeout, Error> {
        let limit = limit.for_write();
        let stream = &self.socket.0;
        set_if_changed(&mut self.write_timeout, allowed(limit)?, |timeout| stream.set_write_timeout(timeout))?;
        Ok(limit.reason)
    }

    fn send_gathered(&mut self) -> Result<(), Error> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let reason = self.limit_write(self.send_limit)?;
        let sent = (&self.socket.0).write_all(&self.gathered);
        self.gathered.clear();
        sent.map_err(|cause| named(cause, reason))
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, limit: NextTimeout) -> Result<(), Error> {
        self.send_limit = limit;
        if self.gathered.len() + amount <= GATHERED_BYTES {
            self.gathered.extend_from_slice(&self.buffers.output()[..amount]);
            return Ok(());
        }
        self.send_gathered()?;
        let reason = self.limit_write(limit)?;
        let output = &self.buffers.output()[..amount];
        (&self.socket.0).write_all(output).map_err(|cause| named(cause, reason))
    }

    fn await_input(&mut self, limit: NextTimeout) -> Result<bool, Error> {
        self.send_gathered()?;
        let limit = limit.for_read();
        let stream = &self.socket.0;
        set_if_changed(&mut self.read_timeout, allowed(limit)?, |timeout| stream.set_read_timeout(timeout))?;
        let buffer = self.buffers.input_append_buf();
        let n_read = loop {
            match (&mut &*stream).read(buffer) {
                // A signal: it starts the limit anew, which signals are too rare for to matter.
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(|cause| named(cause, limit.reason))?,
            }
        };
        self.buffers.input_appended(n_read);
        Ok(0 < n_read)
    }

    /// Open, and nothing came that was not asked for.
    fn is_open(&mut self) -> bool {
        let mut byte = [mem::MaybeUninit::uninit()];
        let options = SockRef::from(&self.socket.0);
        let peeked = options.recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        self.gathered.is_empty() && matches!(peeked, Err(cause) if cause.kind() == ErrorKind::WouldBlock)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("peer", &self.socket.0.peer_addr().ok()).finish()
    }
}

/// `None` is no limit. A limit that is over is an error.
fn allowed(limit: NextTimeout) -> Result<Option<Duration>, Error> {
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

/// A socket's way to say that its timeout was reached differs by call.
fn named(cause: io::Error, reason: Timeout) -> Error {
    match cause.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(reason),
        _ => Error::Io(cause),
    }
}
