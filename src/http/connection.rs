//! One connection as its reader and whoever answers its request share it.
//!
//! The phase says who may do what: while `Reading` only the reader touches the socket; while `Answering` only the
//! owner of the request's [`super::Reply`], once, to write the answer; in every other phase the reader again. An
//! answer that another thread gives costs the reader nothing if the socket takes it at once; only when something is left to
//! do is it told.
//!
//! With TLS the session lies beside the phase, under the same lock: whoever may touch the socket works with it.

use std::cell::RefCell;
use std::io::{self, BufRead, Cursor, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use log::debug;

use super::encode::{Form, encode};
use super::inbox::{Inbox, Message};
use super::tls::{Received, Session};
use super::{Response, UNANSWERED};
use crate::locks::lock;

/// Encoding buffers larger than this are not kept for the next answer.
const KEPT_BUFFER: usize = 64 * 1024;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting for a request, or in the middle of one.
    Reading,
    /// A request is complete and not answered.
    Answering,
    /// The socket did not take the whole answer, or not all that TLS itself has to say.
    Writing,
    /// Our last word is said; what the client still sends is thrown away for a while, so that it can read it.
    Lingering,
    /// Writing failed.
    Broken,
}

/// One connection.
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
    /// Its name at the reader.
    pub(super) key: usize,
    pub(super) reader: Arc<Inbox>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// `None`: plain HTTP.
    tls: Option<Box<Session>>,
    /// An answer whose rest, from the position on, the socket (with TLS: the session) has not taken yet.
    unsent: Cursor<Vec<u8>>,
    /// Whether the connection ends with the answer.
    closes: bool,
    /// The reader is in the middle of handing the request over and looks at the phase itself afterwards.
    attended: bool,
    /// The reader has bytes or events left for when the answer is given.
    wake: bool,
}

impl Connection {
    pub(super) fn new(
        socket: TcpStream,
        peer: SocketAddr,
        key: usize,
        reader: Arc<Inbox>,
        now: Instant,
        tls: Option<Box<Session>>,
    ) -> Self {
        let state = State {
            phase: Phase::Reading,
            since: now,
            tls,
            unsent: Cursor::default(),
            closes: false,
            attended: false,
            wake: false,
        };
        Connection { socket, peer, key, reader, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The phase, and since when.
    pub(super) fn phase(&self) -> (Phase, Instant) {
        let state = self.lock();
        (state.phase, state.since)
    }

    /// The reader hands a request over; it calls [`Self::leave`] when that is done.
    pub(super) fn begin_answering(&self) {
        let mut state = self.lock();
        state.phase = Phase::Answering;
        state.attended = true;
        state.wake = false;
    }

    /// The reader has handed the request over. Where it is still unanswered, the answer tells the reader if `has_more`.
    pub(super) fn leave(&self, has_more: bool) -> Phase {
        let mut state = self.lock();
        state.attended = false;
        state.wake = has_more;
        state.phase
    }

    /// Something arrived: if a request is still being answered, the reader is told when it is. Returns the phase.
    pub(super) fn phase_or_wake(&self) -> Phase {
        let mut state = self.lock();
        state.wake |= state.phase == Phase::Answering;
        state.phase
    }

    /// Gives the answer.
    pub(super) fn answer(&self, response: &Response, mut form: Form) {
        form.keep_alive &= !response.close && !self.reader.control.is_draining();
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            encode(response, form, buffer);
            self.write(buffer, !form.keep_alive);
            buffer.shrink_to(KEPT_BUFFER);
        });
    }

    /// Tells a client that waits for it to send its body. What the socket does not take is written before anything else.
    pub(super) fn send_continue(&self) {
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n", false);
    }

    /// The answer to a request that nobody answered.
    pub(super) fn unanswered(&self) -> Response {
        let handler = self.reader.control.handler.get();
        handler.map_or_else(|| Response::text(500, UNANSWERED), |handler| handler.refusal(500, UNANSWERED)).closing()
    }

    /// Decrypts what arrived while the phase is `Reading`, and writes what TLS has to say to it. After an error the phase
    /// is `Lingering`; `Writing` where the socket does not take all that is to be said.
    pub(super) fn decrypt(&self, records: &[u8], plain: &mut Vec<u8>) -> Result<(Received, Phase), String> {
        let mut state = self.lock();
        let Some(session) = &mut state.tls else { return Err("a connection without TLS".to_owned()) };
        let received = session.receive(records, plain);
        let flushed = session.flush(&self.socket);
        if let Err(why) = received {
            // Should the alert not fit, the client learns less.
            let _ = self.socket.shutdown(Shutdown::Write);
            state.enter(Phase::Lingering);
            return Err(why);
        }
        match flushed {
            Ok(true) => {}
            Ok(false) => state.enter(Phase::Writing),
            Err(cause) => self.fail(&mut state, &cause),
        }
        received.map(|received| (received, state.phase))
    }

    /// The handshake is done: from now on a request is waited for.
    pub(super) fn establish(&self) {
        let mut state = self.lock();
        state.since = Instant::now();
    }

    /// The client does not speak TLS: it is answered in plain.
    pub(super) fn give_up_tls(&self) {
        self.lock().tls = None;
    }

    /// Ends TLS properly before an idle connection is closed, as far as the socket takes it.
    pub(super) fn say_goodbye(&self) {
        let mut state = self.lock();
        if let (Phase::Reading, Some(session)) = (state.phase, &mut state.tls) {
            session.close();
            // Who does not take it gets an end without a goodbye.
            let _ = session.flush(&self.socket);
        }
    }

    fn write(&self, bytes: &[u8], closes: bool) {
        let mut state = self.lock();
        state.closes = closes;
        match send_by(&mut state.tls, &self.socket, bytes) {
            Ok(sent) if sent == bytes.len() => self.end_answer(&mut state),
            Ok(sent) => {
                state.unsent = Cursor::new(bytes[sent..].to_vec());
                state.enter(Phase::Writing);
            }
            Err(cause) => self.fail(&mut state, &cause),
        }
        // A drain that began since the answer was put together did not find this connection idle.
        let is_left = state.wake || state.phase != Phase::Reading || self.reader.control.is_draining();
        let tell = !state.attended && is_left;
        drop(state);
        if tell {
            self.reader.post(Message::Attend(self.key));
        }
    }

    /// Writes more of what is unsent.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Writing {
            return;
        }
        match state.send_more(&self.socket) {
            Ok(true) => {
                state.unsent = Cursor::default();
                self.end_answer(&mut state);
            }
            Ok(false) => {}
            Err(cause) => self.fail(&mut state, &cause),
        }
    }

    fn end_answer(&self, state: &mut State) {
        match state.flush_tls(&self.socket) {
            Ok(true) => {}
            Ok(false) if state.phase == Phase::Writing => return,
            Ok(false) => return state.enter(Phase::Writing),
            Err(cause) => return self.fail(state, &cause),
        }
        if state.closes {
            // Fails only when the client is gone, which the reader will see.
            let _ = self.socket.shutdown(Shutdown::Write);
            state.enter(Phase::Lingering);
        } else {
            state.enter(Phase::Reading);
        }
    }

    fn fail(&self, state: &mut State, cause: &io::Error) {
        debug!("the answer to {} could not be written: {cause}", self.peer);
        state.enter(Phase::Broken);
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    /// Sends what is taken of the rest; whether that was all.
    fn send_more(&mut self, socket: &TcpStream) -> io::Result<bool> {
        let rest = self.unsent.fill_buf()?;
        let (sent, length) = (send_by(&mut self.tls, socket, rest)?, rest.len());
        self.unsent.consume(sent);
        Ok(sent == length)
    }

    /// With TLS: whether the answer that was taken, and the goodbye after the last one, are in the socket.
    fn flush_tls(&mut self, socket: &TcpStream) -> io::Result<bool> {
        let Some(session) = &mut self.tls else { return Ok(true) };
        if self.closes {
            session.close();
        }
        session.flush(socket)
    }
}

/// Sends what is taken of `bytes`, by TLS or in plain.
fn send_by(tls: &mut Option<Box<Session>>, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match tls {
        None => send(socket, bytes),
        Some(session) => session.send(socket, bytes),
    }
}

/// Writes what the socket takes; 0 when it takes nothing now.
fn send(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::inbox::Letters;
    use std::io::Read;
    use std::net::TcpListener;

    fn mail(inbox: &Inbox) -> Vec<Message> {
        let mut letters = Letters::default();
        inbox.take(&mut letters);
        std::mem::take(&mut letters.messages)
    }

    #[test]
    fn a_client_that_took_nothing_is_told_to_go_on_when_it_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut before = 0;
        loop {
            match send(&socket, &[b'x'; 100_000]).unwrap() {
                0 => break,
                count => before += count,
            }
        }
        let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
        let connection = Connection::new(socket, peer, 7, Arc::clone(&inbox), Instant::now(), None);
        connection.send_continue();
        assert_eq!(connection.phase().0, Phase::Writing);
        assert!(matches!(mail(&inbox)[..], [Message::Attend(7)]), "the reader waits for room");
        client.read_exact(&mut vec![0; before]).unwrap();
        while connection.phase().0 == Phase::Writing {
            connection.flush();
        }
        assert_eq!(connection.phase().0, Phase::Reading);
        let mut told = [0; 25];
        client.read_exact(&mut told).unwrap();
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn an_answer_that_crosses_the_beginning_of_a_drain_is_told_to_the_reader() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
        let connection = Connection::new(socket, peer, 7, Arc::clone(&inbox), Instant::now(), None);
        connection.begin_answering();
        assert_eq!(connection.leave(false), Phase::Answering);
        // The answer was put together as one that keeps the connection; the reader has looked for idle ones since.
        inbox.control.drain();
        connection.write(b"HTTP/1.1 200 OK\r\n\r\n", false);
        assert!(matches!(mail(&inbox)[..], [Message::Attend(7)]), "it would stay open until it is idle for too long");
    }
}
