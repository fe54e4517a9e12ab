//! TCP: connects, reads and writes with deadlines, on non-blocking sockets and poll(2), so that a deadline costs no
//! `setsockopt`.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, TcpKeepalive, Type};

use crate::locks::lock;
use crate::shutdown::Stop;

/// TCP keep-alive: time without traffic before the first probe.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
/// TCP keep-alive: interval between two probes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// TCP keep-alive: number of probes without a reply after which the connection is closed.
const KEEP_ALIVE_PROBES: u32 = 6;

/// Ends the waits of a connection from another thread: an attempt to connect fails, an open connection closes. It works
/// once.
#[derive(Clone, Debug, Default)]
pub struct Disconnect {
    shared: Arc<DisconnectState>,
}

#[derive(Debug, Default)]
struct DisconnectState {
    stop: Stop,
    /// The sockets in use: that of the connection, and one to a token endpoint.
    sockets: Mutex<Vec<Weak<TcpStream>>>,
}

impl Disconnect {
    /// Creates a handle for [`Connector::connect_with`](super::connection::Connector::connect_with).
    pub fn new() -> Self {
        Self::default()
    }

    /// Closes the connection in both directions, now or as soon as it has a socket.
    pub fn disconnect(&self) {
        self.shared.stop.trigger();
        self.close_sockets();
    }

    /// The stop that [`disconnect`](Self::disconnect) triggers.
    pub(super) fn stop(&self) -> &Stop {
        &self.shared.stop
    }

    /// Makes [`disconnect`](Self::disconnect) close `socket`.
    fn attach(&self, socket: &Arc<TcpStream>) {
        let mut sockets = lock(&self.shared.sockets);
        sockets.retain(|known| known.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
        drop(sockets);
        // A disconnect that came before did not find this socket.
        if self.shared.stop.is_triggered() {
            self.close_sockets();
        }
    }

    fn close_sockets(&self) {
        for socket in lock(&self.shared.sockets).iter().filter_map(Weak::upgrade) {
            // An error means that the socket is not connected any more.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A TCP connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    /// Whether the last read filled its buffer: more bytes are then likely to be there, and the next read needs no
    /// poll.
    is_read_full: bool,
}

impl Socket {
    /// Connects to one address until `deadline` at the latest.
    pub(super) fn connect(address: SocketAddr, deadline: Instant, disconnect: &Disconnect) -> io::Result<Socket> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE_AFTER)
            .with_interval(KEEP_ALIVE_INTERVAL)
            .with_retries(KEEP_ALIVE_PROBES);
        socket.set_tcp_keepalive(&keep_alive)?;
        let is_complete = match socket.connect(&address.into()) {
            Ok(()) => true,
            Err(cause) if cause.raw_os_error() == Some(libc::EINPROGRESS) => false,
            Err(cause) => return Err(cause),
        };
        let stream = Arc::new(TcpStream::from(socket));
        disconnect.attach(&stream);
        if !is_complete {
            wait(&stream, PollFlags::OUT, deadline)?;
        }
        if disconnect.stop().is_triggered() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if let Some(cause) = stream.take_error()? {
            return Err(cause);
        }
        // If nothing listens on a port of the ephemeral range, a connection can get that port as its own and so reach
        // itself (TCP simultaneous open).
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        Ok(Socket { stream, is_read_full: false })
    }

    /// Writes at least one byte; `slices` are not all empty. Fails with `TimedOut` at `deadline`.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>], deadline: Instant) -> io::Result<usize> {
        self.write_with(deadline, |mut stream| match slices {
            [all] => stream.write(all),
            // std passes on as many slices as the system takes.
            _ => stream.write_vectored(slices),
        })
    }

    /// Calls `write` with the non-blocking socket until it succeeds or fails; waits in between.
    pub(super) fn write_with(
        &mut self,
        deadline: Instant,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match write(&self.stream) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => wait(&self.stream, PollFlags::OUT, deadline)?,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    /// Reads at least one byte; 0 means that the peer has closed the connection. Fails with `TimedOut` at `deadline`.
    pub(super) fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        if !self.is_read_full {
            wait(&self.stream, PollFlags::IN, deadline)?;
        }
        loop {
            match (&*self.stream).read(buffer) {
                Ok(count) => {
                    self.is_read_full = count == buffer.len();
                    return Ok(count);
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => wait(&self.stream, PollFlags::IN, deadline)?,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    /// The non-blocking socket.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads without waiting; fails with `WouldBlock` if there is nothing to read.
    pub(super) fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.stream).read(buffer)
    }

    /// Whether the peer has sent bytes that have not been read, or has closed the connection, or it has failed.
    pub(super) fn has_input(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(rustix::net::recv(&*self.stream, &mut [0_u8; 1][..], flags), Err(rustix::io::Errno::AGAIN))
    }
}

/// Waits for one of `events` or a failure of the socket. Fails with `TimedOut` at `deadline`.
fn wait(stream: &TcpStream, events: PollFlags, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(stream, events)], Some(&timeout)) {
            // The kernel may round the timeout: the loop compares the deadline again.
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        }
    }
}
