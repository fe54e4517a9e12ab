//! Serves one connection of a backend: reads requests, records them, and sends the replies of the script.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::backend::{read_body, read_head};
use super::{Arrival, Door, Ending, MAX_RECORDED_BYTES, Reads, Reply, Server, lock};

/// Ends the record of a request, also if the connection fails.
struct Open<'a> {
    server: &'a Server,
    number: usize,
}

impl Open<'_> {
    fn end(&self, status: Option<u16>) {
        lock(&self.server.journal).end(self.number, status);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// Serves a connection until the client or the script ends it.
pub(super) fn connection(server: &Server, stream: &TcpStream, door: Door) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if door == Door::Silent {
        wait_for_hang_up(stream, None);
        return Ok(());
    }
    let mut reader = BufReader::with_capacity(16 << 10, stream);
    loop {
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let Some(request) = read_head(&mut reader)? else { return Ok(()) };
        let arrival = Arrival { server: server.index, request, began, ended: None, status: None };
        let (number, is_stale) = lock(&server.journal).begin(arrival.clone());
        let open = Open { server, number };
        let script = Arc::clone(&lock(&server.script));
        let is_refused = is_stale && server.is_fencing.load(std::sync::atomic::Ordering::Relaxed);
        let reply = if is_refused { Reply::status(412) } else { script(&arrival) };
        if reply.reads == Reads::All {
            let mut body = read_body(&mut reader, &arrival.request)?;
            body.truncate(MAX_RECORDED_BYTES);
            lock(&server.journal).arrivals[number].request.body = body;
        }
        if !answer(stream, &open, &reply)? {
            return Ok(());
        }
    }
}

/// Sends a reply; returns whether the connection serves a further request.
fn answer(mut stream: &TcpStream, open: &Open<'_>, reply: &Reply) -> io::Result<bool> {
    if !reply.after.is_zero() && wait_for_hang_up(stream, Some(reply.after)) {
        return Ok(false);
    }
    // Where no status is sent, the request stays open until the connection ends.
    if reply.status.is_some() {
        open.end(reply.status);
    }
    stream.write_all(&reply.bytes)?;
    if let Some((piece, times, pause)) = &reply.repeated {
        for _ in 0..*times {
            if !pause.is_zero() && wait_for_hang_up(stream, Some(*pause)) {
                return Ok(false);
            }
            stream.write_all(piece)?;
        }
    }
    match reply.ending {
        Ending::KeepAlive => return Ok(true),
        Ending::Close => {}
        Ending::CloseLater(after) => {
            stream.shutdown(Shutdown::Write)?;
            std::thread::sleep(after);
        }
        Ending::Hold => {
            wait_for_hang_up(stream, None);
        }
    }
    Ok(false)
}

/// Waits until the client closes or resets the connection; returns false if `timeout` passes first.
fn wait_for_hang_up(stream: &TcpStream, timeout: Option<Duration>) -> bool {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut [PollFd::new(stream, PollFlags::RDHUP)], left.as_ref()) {
            Ok(0) => {}
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return false;
        }
    }
}
