//! One connection of a link: the client's socket, the server's socket, and the bytes that are between them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use super::{Flow, Traffic};

/// Bytes of one direction that a link holds at most; then it stops reading, as a full network buffer would.
const MAX_QUEUED_BYTES: usize = 1 << 20;
const CHUNK_BYTES: usize = 16 << 10;
/// Size of a chunk where the rate is limited, so that the bytes flow evenly.
const LIMITED_CHUNK_BYTES: usize = 512;

/// Closes a socket so that its peer receives RST.
pub(super) fn abort(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// The bytes on their way in one direction.
#[derive(Default)]
struct Pipe {
    /// Each chunk with the time from which it may be written.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    n_bytes: usize,
    /// The earliest time of the next write where the rate is limited.
    may_write_at: Option<Instant>,
    /// Whether the sender has closed its side.
    is_ended: bool,
    /// Whether the end was passed on to the receiver.
    is_closed: bool,
}

pub(super) struct Connection {
    client: TcpStream,
    /// `None` if the connection is half-open.
    server: Option<TcpStream>,
    to_server: Pipe,
    to_client: Pipe,
}

impl Connection {
    pub(super) fn new(client: TcpStream, server: TcpStream) -> io::Result<Connection> {
        for socket in [&client, &server] {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
        }
        let (to_server, to_client) = (Pipe::default(), Pipe::default());
        Ok(Connection { client, server: Some(server), to_server, to_client })
    }

    /// Reads and writes what is possible now. Returns false when the connection has ended.
    pub(super) fn forward(&mut self, traffic: &Traffic, now: Instant) -> bool {
        let Some(server) = &self.server else { return true };
        let mut forwarded = Ok(());
        if traffic.flow.has(Flow::ToServer) {
            forwarded = self.to_server.forward(&self.client, server, traffic, now);
        }
        if traffic.flow.has(Flow::ToClient) {
            forwarded = forwarded.and(self.to_client.forward(server, &self.client, traffic, now));
        }
        if forwarded.is_err() {
            // One peer has reset the connection, so the other one receives RST, too.
            [&self.client, server].into_iter().for_each(abort);
        }
        forwarded.is_ok() && !(self.to_server.is_closed && self.to_client.is_closed)
    }

    pub(super) fn close_server(&mut self) {
        self.server = None;
    }

    pub(super) fn reset(self) {
        abort(&self.client);
        self.server.iter().for_each(abort);
    }

    /// Adds the sockets for which the link waits. A socket that it does not wait for is left out, since poll(2) always
    /// reports a hang-up.
    pub(super) fn add_interests<'a>(&'a self, traffic: &Traffic, now: Instant, sockets: &mut Vec<PollFd<'a>>) {
        let Some(server) = &self.server else { return };
        for (direction, pipe, from, to) in [
            (Flow::ToServer, &self.to_server, &self.client, server),
            (Flow::ToClient, &self.to_client, server, &self.client),
        ] {
            if traffic.flow.has(direction) {
                if pipe.wants_read() {
                    sockets.push(PollFd::new(from, PollFlags::IN));
                }
                if pipe.due().is_some_and(|due| due <= now) {
                    sockets.push(PollFd::new(to, PollFlags::OUT));
                }
            }
        }
    }

    /// Returns the time of the next write that waits for its delay or for the rate.
    pub(super) fn next_due(&self, traffic: &Traffic, now: Instant) -> Option<Instant> {
        let pipes = [(Flow::ToServer, &self.to_server), (Flow::ToClient, &self.to_client)];
        let flowing = pipes.into_iter().filter(|(direction, _)| self.server.is_some() && traffic.flow.has(*direction));
        flowing.filter_map(|(_, pipe)| pipe.due()).filter(|due| *due > now).min()
    }
}

impl Pipe {
    fn wants_read(&self) -> bool {
        !self.is_ended && self.n_bytes < MAX_QUEUED_BYTES
    }

    /// Returns the time from which the first chunk, or the end, may be written.
    fn due(&self) -> Option<Instant> {
        let first = self.chunks.front().map(|(due, _)| *due)?;
        Some(self.may_write_at.map_or(first, |at| at.max(first)))
    }

    fn forward(&mut self, from: &TcpStream, to: &TcpStream, traffic: &Traffic, now: Instant) -> io::Result<()> {
        self.read(from, traffic, now)?;
        self.write(to, traffic, now)?;
        if self.is_ended && self.chunks.is_empty() && !self.is_closed {
            self.is_closed = true;
            let _ = to.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn read(&mut self, mut from: &TcpStream, traffic: &Traffic, now: Instant) -> io::Result<()> {
        let size = if traffic.bytes_per_second.is_some() { LIMITED_CHUNK_BYTES } else { CHUNK_BYTES };
        while self.wants_read() {
            let mut chunk = vec![0; size];
            match from.read(&mut chunk) {
                Ok(0) => self.is_ended = true,
                Ok(n) => {
                    chunk.truncate(n);
                    self.n_bytes += n;
                    self.chunks.push_back((now + traffic.delay, chunk));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, mut to: &TcpStream, traffic: &Traffic, now: Instant) -> io::Result<()> {
        if traffic.bytes_per_second.is_none() {
            self.may_write_at = None;
        }
        while self.due().is_some_and(|due| due <= now) {
            let chunk = &mut self.chunks[0].1;
            match to.write(chunk) {
                Ok(n) => {
                    self.n_bytes -= n;
                    chunk.drain(..n);
                    if chunk.is_empty() {
                        self.chunks.pop_front();
                    }
                    let cost = traffic.bytes_per_second.map(|rate| Duration::from_secs_f64(n as f64 / f64::from(rate)));
                    self.may_write_at = cost.map(|cost| now + cost);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
