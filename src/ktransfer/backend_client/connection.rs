//! A connection to a backend, as a transport of the HTTP client. It enforces the limits of a push.
//!
//! - The lease is checked immediately before the first byte of a request is written, and a push ends with its lease.
//! - The status decides: the connection reads the head of the response before the client does and reports the status,
//!   so the client's handling of the rest of the response cannot change the outcome.
//! - An answer that arrives while the request is still being sent counts; the rest of the request is not sent.
//!
//! Head and small body are sent with one write, and the timeouts of most pushes need no system call.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use ureq::Error;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport};

use super::buffers::PushBuffers;
use super::exchange::Exchange;
use super::head::{Head, end_of_head, field, quoted, read_head};
use super::retry_after::retry_after;
use super::stream::{Stream, StreamFailure};
use super::timeouts::{Timeouts, coarse_timeout};
use crate::ktransfer::group::TimedFence;
use crate::ktransfer::outcomes::TransportError;

/// Longest wait of one system call. A lease that was extended meanwhile is noticed after it.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// How long the rest of a response is awaited after its status was received.
const REST_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit on the bytes of all interim responses (1xx) before the final one.
const MAX_INTERIM_BYTES: usize = 256 * 1024;
/// The end of an incomplete interim head that is kept, because the blank line may begin in it.
const KEPT_INTERIM_BYTES: usize = 3;

/// One connection to a backend.
pub(super) struct BackendConnection {
    stream: Stream,
    exchange: Arc<Exchange>,
    timeouts: Timeouts,
    /// Whether the connection has served an earlier push.
    is_kept: bool,
    /// The receive timeout that is set on the socket; zero if none is set.
    receive_timeout: Duration,
    /// Lent by the exchange for the time of a push.
    buffers: Option<Box<PushBuffers>>,
    push: Push,
}

/// The push that uses the connection.
#[derive(Debug)]
struct Push {
    phase: Phase,
    /// The end of the phase.
    deadline: Option<Instant>,
    /// The lease of the claim; `None` before the first byte of the request.
    fence: Option<Arc<TimedFence>>,
    /// What the stream had written before the first byte of the request.
    n_written_before: u64,
    /// The length of the interim responses so far.
    n_interim_bytes: usize,
    /// Whether the input begins inside of an interim head that is longer than the buffer.
    is_inside_interim: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The request is being sent, within `write_timeout_ms`.
    Sending,
    /// The head of the response is awaited, within `read_timeout_ms`.
    Receiving,
    /// The status is reported. Only the reuse of the connection depends on the rest of the response.
    Answered,
}

impl Push {
    const NEW: Push = Push {
        phase: Phase::Sending,
        deadline: None,
        fence: None,
        n_written_before: 0,
        n_interim_bytes: 0,
        is_inside_interim: false,
    };

    fn enter(&mut self, phase: Phase, timeout: Option<Duration>) {
        self.phase = phase;
        self.deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    }
}

impl BackendConnection {
    /// Creates the transport for a connected stream.
    pub(super) fn new(stream: Stream, exchange: Arc<Exchange>, timeouts: Timeouts) -> BackendConnection {
        BackendConnection {
            stream,
            exchange,
            timeouts,
            is_kept: false,
            receive_timeout: Duration::ZERO,
            buffers: None,
            push: Push::NEW,
        }
    }

    /// Returns the buffers; the first call of a push borrows them from the exchange.
    fn lent(&mut self) -> &mut PushBuffers {
        let exchange = &self.exchange;
        self.buffers.get_or_insert_with(|| exchange.take_buffers())
    }

    fn unsent(&self) -> &[u8] {
        self.buffers.as_ref().map_or(&[], |buffers| buffers.unsent())
    }

    /// Whether a byte of the request may have reached the backend. Then the attempt counts: the backend may have
    /// processed the request, also if the connection was closed before an answer.
    fn has_sent(&self) -> bool {
        self.push.fence.is_some() && self.push.n_written_before < self.stream.n_written()
    }

    /// Whether the backend closed the connection while it was idle: nothing of the request was received, and so it
    /// cannot have been processed. The end of a connection acknowledges what was received before it.
    fn was_closed_idle(&self) -> bool {
        let is_unread = || self.stream.n_written() - self.push.n_written_before <= self.stream.n_unacknowledged();
        self.is_kept && self.push.n_interim_bytes == 0 && (!self.has_sent() || is_unread())
    }

    /// Sends the collected output. Before the first byte of a request, checks that the claim permits the push.
    fn send_output(&mut self) -> io::Result<()> {
        let mut n_sent = 0;
        loop {
            if self.push.fence.is_none() && !self.unsent().is_empty() {
                self.push.fence = Some(self.exchange.begin_request(self.stream.socket())?);
                self.push.n_written_before = self.stream.n_written();
                self.push.enter(Phase::Sending, self.timeouts.write);
            }
            let unsent = self.buffers.as_ref().map_or(&[][..], |buffers| &buffers.unsent()[n_sent..]);
            let sent = match unsent.is_empty() {
                true if !self.stream.has_output() => break,
                true => self.stream.flush().map(|()| 0),
                false => self.stream.send(unsent),
            };
            match sent {
                Ok(n) => n_sent += n,
                Err(StreamFailure::Socket(Errno::INTR)) => {}
                Err(StreamFailure::Socket(Errno::AGAIN)) => self.wait_until_writable()?,
                Err(cause) => return Err(self.send_failed(cause)),
            }
        }
        self.lent().sent_all();
        Ok(())
    }

    /// Waits until more of the request can be sent. Fails if an answer comes instead.
    fn wait_until_writable(&mut self) -> io::Result<()> {
        loop {
            let wait = Timespec::try_from(self.next_wait()?).map_err(io::Error::other)?;
            let mut polled = [PollFd::new(&**self.stream.socket(), PollFlags::IN | PollFlags::OUT)];
            match poll(&mut polled, Some(&wait)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(cause) => return Err(cause.into()),
            }
            let events = polled[0].revents();
            if events.contains(PollFlags::IN) {
                match self.receive(RecvFlags::DONTWAIT) {
                    Ok(0) => return Err(self.closed()),
                    Ok(_) => self.stop_if_answered()?,
                    Err(StreamFailure::Socket(Errno::AGAIN | Errno::INTR)) => {}
                    Err(cause) => return Err(self.send_failed(cause)),
                }
            }
            if events.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                return Ok(());
            }
        }
    }

    /// Fails if the input has the status of the final response: then the rest of the request is not sent.
    fn stop_if_answered(&mut self) -> io::Result<()> {
        let is_complete = self.note_head()?;
        if self.push.phase != Phase::Answered {
            return Ok(());
        }
        if !is_complete {
            // Only for `Retry-After`. An error changes nothing, since the status is reported.
            let _ = self.receive_head();
        }
        Err(io::Error::other("the backend answered before it had received the request"))
    }

    /// Returns the error of a write that failed. If the backend answered before it closed the connection, the answer is
    /// in the socket's buffer, and counts.
    fn send_failed(&mut self, mut cause: StreamFailure) -> io::Error {
        while !self.lent().is_full() {
            match self.receive(RecvFlags::DONTWAIT) {
                Ok(n_read) if n_read > 0 => {}
                // The backend says why it closed the connection.
                Err(refusal @ StreamFailure::Tls(_)) => {
                    cause = refusal;
                    break;
                }
                _ => break,
            }
            if let Err(ended) = self.stop_if_answered() {
                return ended;
            }
        }
        // A broken pipe comes after the end of the connection, a reset instead of it.
        let has_end = matches!(cause, StreamFailure::Socket(Errno::PIPE));
        if self.is_kept && !self.has_sent() || has_end && self.was_closed_idle() {
            self.exchange.report(|report| report.was_closed_idle = true);
        }
        match cause {
            StreamFailure::Socket(cause) => {
                self.fail(TransportError::Closed, format!("cannot send the request: {}", io::Error::from(cause)))
            }
            StreamFailure::Tls(reason) => self.fail(TransportError::Tls, format!("tls: {reason}")),
        }
    }

    /// Receives until the head of the final response is complete. Fails if it cannot be completed; then the status is
    /// reported if it was received.
    fn receive_head(&mut self) -> io::Result<()> {
        while !self.note_head()? {
            if self.lent().is_full() {
                let text = "the head of the response is longer than 16 KiB".to_owned();
                return Err(self.fail(TransportError::NotHttp, text));
            }
            if self.receive_waiting()? == 0 {
                return Err(self.closed());
            }
        }
        Ok(())
    }

    /// Interprets the input: consumes interim responses, and reports the status of the final response as soon as it is
    /// received. Returns whether the head of the final response is complete.
    fn note_head(&mut self) -> io::Result<bool> {
        loop {
            let is_inside = self.push.is_inside_interim;
            let buffers = self.lent();
            let is_full = buffers.is_full();
            let input = buffers.input();
            let head = if is_inside { Head::Interim { len: end_of_head(input) } } else { read_head(input) };
            match head {
                Head::Nothing => return Ok(false),
                Head::Invalid => {
                    let quote = quoted(input);
                    let text = format!("the backend answered {quote}, which is not HTTP");
                    return Err(self.fail(TransportError::NotHttp, text));
                }
                Head::Final { status, is_complete } => {
                    // Of any status: the module's table may say that a 202 is retried.
                    let pause = field(input, "retry-after").and_then(|value| retry_after(value, SystemTime::now()));
                    self.exchange.report(|report| (report.status, report.retry_after) = (Some(status), pause));
                    if self.push.phase != Phase::Answered {
                        self.push.enter(Phase::Answered, Some(REST_TIMEOUT));
                    }
                    return Ok(is_complete);
                }
                Head::Interim { len: Some(len) } => self.skip_interim(len, false)?,
                Head::Interim { len: None } if is_full || is_inside => {
                    let len = input.len().saturating_sub(KEPT_INTERIM_BYTES);
                    self.skip_interim(len, true)?;
                    return Ok(false);
                }
                Head::Interim { len: None } => return Ok(false),
            }
        }
    }

    fn skip_interim(&mut self, len: usize, is_inside: bool) -> io::Result<()> {
        self.lent().input_consume(len);
        self.push.is_inside_interim = is_inside;
        self.push.n_interim_bytes += len;
        if self.push.n_interim_bytes > MAX_INTERIM_BYTES {
            let text = format!("more than {MAX_INTERIM_BYTES} bytes of interim responses (1xx)");
            return Err(self.fail(TransportError::NotHttp, text));
        }
        Ok(())
    }

    /// Receives what is there, or waits for the receive timeout of the socket.
    fn receive(&mut self, flags: RecvFlags) -> Result<usize, StreamFailure> {
        let exchange = &self.exchange;
        let buffers = self.buffers.get_or_insert_with(|| exchange.take_buffers());
        let n_read = self.stream.receive(buffers.input_append_buf(), flags)?;
        buffers.input_appended(n_read);
        Ok(n_read)
    }

    /// Waits for input until the end of the phase. Returns the number of bytes received; zero at the end of the stream.
    fn receive_waiting(&mut self) -> io::Result<usize> {
        loop {
            let wait = self.next_wait()?;
            if let Some(timeout) = coarse_timeout(self.receive_timeout, wait) {
                self.stream.socket().set_read_timeout(Some(timeout))?;
                self.receive_timeout = timeout;
            }
            match self.receive(RecvFlags::empty()) {
                Ok(n_read) => return Ok(n_read),
                Err(StreamFailure::Socket(Errno::AGAIN | Errno::INTR)) => {}
                Err(StreamFailure::Socket(cause)) => {
                    return Err(self.fail(TransportError::Closed, format!("no answer: {}", io::Error::from(cause))));
                }
                Err(StreamFailure::Tls(reason)) => return Err(self.fail(TransportError::Tls, format!("tls: {reason}"))),
            }
        }
    }

    /// Returns how long the next system call may wait. Fails if the phase or the lease has ended.
    fn next_wait(&self) -> io::Result<Duration> {
        let lease = self.push.fence.as_ref().map_or(MAX_WAIT, |fence| fence.remaining());
        if lease.is_zero() {
            self.exchange.report(|report| report.is_aborted = true);
            return Err(io::Error::other("the lease has ended"));
        }
        let left = self.push.deadline.map_or(MAX_WAIT, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(self.timed_out());
        }
        Ok(lease.min(left).min(MAX_WAIT))
    }

    fn timed_out(&self) -> io::Error {
        let millis = |timeout: Option<Duration>| timeout.unwrap_or_default().as_millis();
        let (error, text) = match self.push.phase {
            Phase::Sending => (
                TransportError::WriteTimeout,
                format!(
                    "timeout: the request was not sent within write_timeout_ms, {} ms",
                    millis(self.timeouts.write)
                ),
            ),
            Phase::Receiving => (
                TransportError::ReadTimeout,
                format!("timeout: no answer within read_timeout_ms, {} ms", millis(self.timeouts.read)),
            ),
            Phase::Answered => (TransportError::ReadTimeout, "timeout: the response did not end".to_owned()),
        };
        self.fail(error, text)
    }

    fn closed(&mut self) -> io::Error {
        if let Some(refusal) = self.stream.closed_early().filter(|_| self.lent().input().is_empty()) {
            return self.fail(TransportError::Tls, format!("tls: {refusal}"));
        }
        let phase = self.push.phase;
        if self.lent().input().is_empty() && self.was_closed_idle() {
            self.exchange.report(|report| report.was_closed_idle = true);
        }
        let text = match (self.lent().input(), phase) {
            ([], Phase::Sending) => "the backend closed the connection before it had received the request".to_owned(),
            ([], _) => "the backend closed the connection without an answer".to_owned(),
            (input, _) => format!("the backend closed the connection after {}", quoted(input)),
        };
        self.fail(TransportError::Closed, text)
    }

    /// Reports why the push has ended without an answer.
    fn fail(&self, error: TransportError, text: String) -> io::Error {
        self.exchange.report_failure(Some(error), text, self.has_sent());
        io::Error::other("reported to the exchange")
    }
}

impl Transport for BackendConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.lent()
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
        if self.lent().add_output(amount) {
            self.send_output()?;
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
        self.send_output()?;
        if self.push.phase == Phase::Sending {
            self.push.enter(Phase::Receiving, self.timeouts.read);
        }
        if self.push.phase == Phase::Receiving {
            self.receive_head()?;
            return Ok(true);
        }
        Ok(self.receive_waiting()? > 0)
    }

    /// The client calls this after a push, before it keeps the connection, and again before the next push. Bytes that
    /// the backend sent without a request would be taken for the answer to the next one, so they are looked for once:
    /// immediately before the next request.
    fn is_open(&mut self) -> bool {
        let Some(buffers) = self.buffers.take() else { return self.stream.is_silent() };
        let is_clean = buffers.unsent().is_empty() && self.push.phase == Phase::Answered;
        self.exchange.give_back(buffers);
        self.push = Push::NEW;
        self.is_kept = true;
        is_clean
    }

    fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }
}

impl Drop for BackendConnection {
    fn drop(&mut self) {
        if let Some(buffers) = self.buffers.take() {
            self.exchange.give_back(buffers);
        }
    }
}

impl fmt::Debug for BackendConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.stream.socket().peer_addr().ok().and_then(|address| address.as_socket());
        formatter.debug_struct("BackendConnection").field("peer", &peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
