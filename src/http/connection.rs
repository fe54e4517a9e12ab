//! The state of one connection that its reader shares with the thread that answers its request.
//!
//! The phase says which thread may use the socket. While `Answering`, only the owner of the request's [`super::Reply`]
//! uses it, once, to write the response; in every other phase only the reader does. A response that another thread
//! writes costs the reader nothing if the socket takes the whole response; the reader gets a message only when work is
//! left for it.
//!
//! With TLS the session is under the same lock as the phase: the thread that may use the socket also uses the session.

use std::cell::RefCell;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use log::debug;

use super::encode::{EncodeOptions, encode_head, has_body};
use super::inbox::{Inbox, InboxMessage};
use super::message::Response;
use super::refusal::Refusal;
use super::response_body::Body;
use super::tls::{Received, Session};
use super::unsent::{AnswerLease, MAX_JOINED_BYTES, Unsent, send};
use super::write_limits::{WriteLimits, WriteProgress};
use crate::locks::lock;

/// After each response the encoding buffer of a thread is shrunk to this size.
const MAX_KEPT_BUFFER_BYTES: usize = 64 * 1024;

const TOO_MANY_ANSWER_BYTES: Refusal =
    Refusal::over_limit("answer_bytes", 503, "too many unread response bytes, retry later");

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The connection is idle, or a request is arriving.
    Reading,
    /// A complete request was handed over and is not answered yet.
    Answering,
    /// The socket was full: part of a response, or of the records that TLS itself sends, is not written yet.
    Writing,
    /// The sending half is closed. Bytes that the client still sends are discarded for at most 2 s: closing the socket
    /// with unread bytes would reset the connection, possibly before the client has read the last response.
    Lingering,
    /// A write to the socket failed.
    Broken,
}

/// One connection of a client.
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
    /// `peer` as text, which is formatted once for all requests of the connection.
    pub(super) peer_text: Arc<str>,
    /// Key of the connection in the poller and the client table of its reader.
    pub(super) key: usize,
    /// Inbox of the connection's reader.
    pub(super) inbox: Arc<Inbox>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// When the socket last took bytes in phase `Writing`, and their number.
    progress: (Instant, usize),
    /// `None`: plain HTTP.
    tls: Option<Box<Session>>,
    /// The response that is being written.
    unsent: Unsent,
    /// Lease for the memory of the response.
    answer_lease: AnswerLease,
    /// Whether the sending half is closed after the response.
    closes: bool,
    /// True while the reader hands a request over. The reader checks the phase afterwards and needs no message.
    in_hand_over: bool,
    /// Whether the reader must get a message when the request is answered, since bytes or events are pending.
    recheck: bool,
}

impl Connection {
    pub(super) fn new(
        socket: TcpStream,
        peer: SocketAddr,
        key: usize,
        inbox: Arc<Inbox>,
        now: Instant,
        tls: Option<Box<Session>>,
        answer_lease: AnswerLease,
    ) -> Self {
        let state = State {
            phase: Phase::Reading,
            since: now,
            progress: (now, 0),
            tls,
            unsent: Unsent::default(),
            answer_lease,
            closes: false,
            in_hand_over: false,
            recheck: false,
        };
        Connection { socket, peer, peer_text: peer.to_string().into(), key, inbox, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns the phase, and when it began.
    pub(super) fn phase(&self) -> (Phase, Instant) {
        let state = self.lock();
        (state.phase, state.since)
    }

    /// Returns when the connection must be closed unless the client takes more of the response that is being written.
    pub(super) fn write_deadline(&self, limits: &WriteLimits) -> Instant {
        let state = self.lock();
        let (last, bytes) = state.progress;
        limits.deadline(WriteProgress { since: state.since, last, bytes })
    }

    /// Enters `Answering`. The reader calls this before it hands a request over, and [`Self::end_hand_over`]
    /// afterwards.
    pub(super) fn begin_hand_over(&self) {
        let mut state = self.lock();
        state.phase = Phase::Answering;
        state.in_hand_over = true;
        state.recheck = false;
    }

    /// Ends a hand-over and returns the phase. If the request is still unanswered and `has_more` is true, the reader
    /// gets a message when the request is answered.
    pub(super) fn end_hand_over(&self, has_more: bool) -> Phase {
        let mut state = self.lock();
        state.in_hand_over = false;
        state.recheck = has_more;
        state.phase
    }

    /// Returns the phase when the poller has reported an event. If a request is being answered, the reader gets a
    /// message when the request is answered.
    pub(super) fn phase_at_event(&self) -> Phase {
        let mut state = self.lock();
        state.recheck |= state.phase == Phase::Answering;
        state.phase
    }

    /// Encodes and writes the response, with `headers` in addition to its own; bytes that the socket does not take at
    /// once are left to the reader. A large response for which the server has no memory left is replaced by a 503.
    pub(super) fn answer(
        &self,
        mut response: Response,
        headers: Vec<(&'static str, String)>,
        mut options: EncodeOptions,
    ) {
        let sends_body = !options.head_only && has_body(response.status);
        let body_bytes = response.body.allocated();
        // A small response needs no lease, so the lock is not taken for it.
        if sends_body && body_bytes > MAX_JOINED_BYTES && !self.lock().answer_lease.admits(body_bytes) {
            let refused = self.inbox.control.refusal(TOO_MANY_ANSWER_BYTES, &self.peer_text);
            response = refused.with_header("Retry-After", "1");
        }
        response.headers.extend(headers);
        options.keep_alive &= !response.close && !self.inbox.control.is_draining();
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            encode_head(&response, options, buffer);
            let mut body = if sends_body { response.body } else { Body::default() };
            if matches!(&body, Body::Owned(bytes) if bytes.len() <= MAX_JOINED_BYTES) {
                buffer.extend_from_slice(body.parts()[0]);
                body = Body::default();
            }
            self.write(buffer, body, !options.keep_alive);
            buffer.shrink_to(MAX_KEPT_BUFFER_BYTES);
        });
    }

    /// Sends 100 Continue. Bytes that the socket does not take at once are written before any other response.
    pub(super) fn send_continue(&self) {
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n", Body::default(), false);
    }

    /// Decrypts records that arrived in phase `Reading`, and writes the records with which TLS itself responds. The new
    /// phase is `Lingering` after a TLS error, and `Writing` if the socket does not take all these records.
    pub(super) fn decrypt(&self, records: &[u8], plaintext: &mut Vec<u8>) -> Result<(Received, Phase), String> {
        let mut state = self.lock();
        let Some(session) = &mut state.tls else { return Err("a connection without TLS".to_owned()) };
        let received = session.receive(records, plaintext);
        let flushed = session.flush(&self.socket);
        if let Err(reason) = received {
            // If the socket was full, the alert is not sent.
            let _ = self.socket.shutdown(Shutdown::Write);
            state.enter(Phase::Lingering);
            return Err(reason);
        }
        match flushed {
            Ok(true) => {}
            Ok(false) => state.enter(Phase::Writing),
            Err(cause) => self.fail(&mut state, &cause),
        }
        received.map(|received| (received, state.phase))
    }

    /// Starts the idle timeout when the TLS handshake is done.
    pub(super) fn handshake_done(&self) {
        let mut state = self.lock();
        state.since = Instant::now();
    }

    /// Removes the TLS session of a client that does not use TLS, so that the error response is sent as plain HTTP.
    pub(super) fn drop_tls(&self) {
        self.lock().tls = None;
    }

    /// Sends the TLS close_notify of an idle connection, unless the socket is full.
    pub(super) fn send_close_notify(&self) {
        let mut state = self.lock();
        if let (Phase::Reading, Some(session)) = (state.phase, &mut state.tls) {
            session.close();
            // If the socket is full, the connection is closed without the close_notify.
            let _ = session.flush(&self.socket);
        }
    }

    fn write(&self, head: &[u8], body: Body, closes: bool) {
        let mut state = self.lock();
        state.closes = closes;
        let [start, middle, end] = body.parts();
        match send(&mut state.tls, &self.socket, [head, start, middle, end]) {
            Ok(sent) if sent == head.len() + body.len() => {
                state.answer_lease.release();
                self.end_response(&mut state);
            }
            Ok(sent) => {
                state.unsent = Unsent::after(sent, head, body);
                if state.keep_unsent() {
                    state.enter(Phase::Writing);
                } else {
                    self.fail(&mut state, &io::Error::other("max_in_flight_bytes is reached"));
                }
            }
            Err(cause) => self.fail(&mut state, &cause),
        }
        // If a drain began after the response was encoded as keep-alive, the reader may have closed the idle
        // connections already, and must look at this connection again.
        let has_work = state.recheck || state.phase != Phase::Reading || self.inbox.control.is_draining();
        let notifies_reader = !state.in_hand_over && has_work;
        drop(state);
        if notifies_reader {
            self.inbox.post(InboxMessage::Recheck(self.key));
        }
    }

    /// Writes unsent bytes, as far as the socket takes them.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Writing {
            return;
        }
        match state.send_more(&self.socket) {
            Ok(true) => {
                state.forget_unsent();
                self.end_response(&mut state);
            }
            Ok(false) => {}
            Err(cause) => self.fail(&mut state, &cause),
        }
    }

    fn end_response(&self, state: &mut State) {
        match state.flush_tls(&self.socket) {
            Ok(true) => {}
            // `since` is not reset: the time of the response counts from its beginning.
            Ok(false) if state.phase == Phase::Writing => return,
            Ok(false) => return state.enter(Phase::Writing),
            Err(cause) => return self.fail(state, &cause),
        }
        if state.closes {
            // This fails only when the client has disconnected, and then the reader's next read fails too.
            let _ = self.socket.shutdown(Shutdown::Write);
            state.enter(Phase::Lingering);
        } else {
            state.enter(Phase::Reading);
        }
    }

    fn fail(&self, state: &mut State, cause: &io::Error) {
        debug!("cannot write the response to {}: {cause}", self.peer);
        state.forget_unsent();
        state.enter(Phase::Broken);
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        self.progress = (self.since, 0);
    }

    /// Leases the memory of the unsent part; returns false if it cannot be kept.
    fn keep_unsent(&mut self) -> bool {
        self.answer_lease.keep(&self.unsent)
    }

    fn forget_unsent(&mut self) {
        self.unsent = Unsent::default();
        self.answer_lease.release();
    }

    /// Sends unsent bytes as far as the socket takes them; returns true if none are left.
    fn send_more(&mut self, socket: &TcpStream) -> io::Result<bool> {
        let taken_before = self.tls.as_ref().map_or(0, |session| session.written_bytes());
        let (sent, is_all) = self.unsent.send(&mut self.tls, socket)?;
        // With TLS the session takes bytes before the socket does.
        let taken = self.tls.as_ref().map_or(sent, |session| session.written_bytes() - taken_before);
        self.note_progress(taken);
        Ok(is_all)
    }

    fn note_progress(&mut self, bytes: usize) {
        if bytes > 0 {
            self.progress = (Instant::now(), self.progress.1 + bytes);
        }
    }

    /// With TLS: writes the records of the response, and the close_notify after the last response. Returns true if the
    /// socket took all records.
    fn flush_tls(&mut self, socket: &TcpStream) -> io::Result<bool> {
        let Some(session) = &mut self.tls else { return Ok(true) };
        if self.closes {
            session.close();
        }
        let before = session.written_bytes();
        let outcome = session.flush(socket);
        let taken = session.written_bytes() - before;
        self.note_progress(taken);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::inbox::InboxBatch;
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Duration;

    fn messages(inbox: &Inbox) -> Vec<InboxMessage> {
        let mut batch = InboxBatch::default();
        inbox.take(&mut batch);
        std::mem::take(&mut batch.messages)
    }

    #[test]
    fn a_100_continue_that_a_full_socket_does_not_take_is_sent_later() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut before = 0;
        loop {
            match send(&mut None, &socket, [&[b'x'; 100_000], &[], &[], &[]]).unwrap() {
                0 => break,
                count => before += count,
            }
        }
        let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
        let connection =
            Connection::new(socket, peer, 7, Arc::clone(&inbox), Instant::now(), None, AnswerLease::default());
        connection.send_continue();
        assert_eq!(connection.phase().0, Phase::Writing);
        assert!(
            matches!(messages(&inbox)[..], [InboxMessage::Recheck(7)]),
            "the reader must wait for room in the socket"
        );
        client.read_exact(&mut vec![0; before]).unwrap();
        while connection.phase().0 == Phase::Writing {
            connection.flush();
        }
        assert_eq!(connection.phase().0, Phase::Reading);
        let mut received = [0; 25];
        client.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn a_keep_alive_response_written_after_a_drain_began_notifies_the_reader() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
        let connection =
            Connection::new(socket, peer, 7, Arc::clone(&inbox), Instant::now(), None, AnswerLease::default());
        connection.begin_hand_over();
        assert_eq!(connection.end_hand_over(false), Phase::Answering);
        // The drain begins between encoding the response as keep-alive and writing it.
        inbox.control.drain(Duration::ZERO);
        connection.write(b"HTTP/1.1 200 OK\r\n\r\n", Body::default(), false);
        assert!(
            matches!(messages(&inbox)[..], [InboxMessage::Recheck(7)]),
            "without the message the connection would stay open until the idle timeout"
        );
    }
}
