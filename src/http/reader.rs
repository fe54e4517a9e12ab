//! A reader: one thread, one poller, its own connections.
//!
//! It reads, parses, admits and hands over requests, gives the answers that are left to it, and does whatever an answer
//! could not do on the spot. A connection is watched for bytes all the time (level-triggered, so that nothing has to be
//! armed for each request); only one that sends while its request is being answered, or that does not take its answer, is
//! armed differently.

mod secured;

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::error;

use super::connection::{Connection, Phase};
use super::deadlines::Deadlines;
use super::encode::Form;
use super::head::Framing;
use super::inbox::{Inbox, Letters, Message};
use super::parser::{Parser, Progress};
use super::poller::{Events, Interest};
use super::scan::Refused;
use super::server::{Counters, Limits};
use super::tls::Tls;
use super::{Admission, Handler, Lease, Reply, Request, RequestHandler, Response, SHUTTING_DOWN};
use crate::logging;
use crate::panics::{self, caught};
use secured::Handshake;

/// Most bytes read at once; also what a client can send ahead of its answer.
const READ: usize = 16 * 1024;
/// Most bytes read at once in the middle of a large body.
const READ_BODY: usize = 256 * 1024;
/// A body up to this size is read and thrown away when its request is refused, so that the connection is kept.
const DISCARDED_BODY: usize = 64 * 1024;
/// After the last answer of a connection the client's bytes are thrown away for so long, and so many.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;
/// Requests of one connection that are answered in one go; then it is the turn of others.
const TURN: usize = 32;
/// The poller is left at least so often.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

const TOO_MANY_BYTES: Refused = Refused::beyond("in_flight_bytes", 503, "too many bytes are in flight");

pub(super) struct Reader {
    inbox: Arc<Inbox>,
    handler: Arc<dyn Handler>,
    limits: Limits,
    metrics: Counters,
    slots: Vec<Slot>,
    /// Slots without a connection.
    free: Vec<usize>,
    deadlines: Deadlines,
    now: Instant,
    is_draining: bool,
    tls: Option<Tls>,
    /// What a read decrypted to; kept for its memory.
    plain: Vec<u8>,
    last_complaint: Option<Instant>,
    /// Failed handshakes since then.
    unsaid: u64,
}

#[derive(Default)]
struct Slot {
    /// Part of the key, so that an event or message for a former connection of this slot is recognised.
    generation: u32,
    client: Option<Box<Client>>,
}

/// What is done when the body of a request is complete.
pub(super) enum OnComplete {
    /// It goes to the handler.
    Handle(RequestHandler),
    /// The handler refused the head; the body was discarded.
    Answer(Response),
}

/// Why a head is not followed by its body.
enum Rejection {
    /// The server refuses the request.
    Server(Refused),
    /// The handler does, and the body is not waited for.
    Handler(Response),
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Self {
        Rejection::Server(refused)
    }
}

/// What only the reader knows of a connection.
struct Client {
    connection: Arc<Connection>,
    parser: Parser<OnComplete>,
    /// Bytes after the request that is being answered; at most one read.
    pending: Vec<u8>,
    /// The memory of the request that is being read.
    lease: Lease,
    /// The memory of `pending`.
    ahead: Lease,
    /// When the first byte of the current request arrived.
    started: Instant,
    /// What the poller reports of it.
    watched: Option<Interest>,
    planned: Option<Instant>,
    /// Bytes thrown away after the last answer.
    discarded: usize,
    handshake: Handshake,
    /// TLS: the client said that it sends nothing more.
    ended: bool,
}

impl Client {
    /// Counts what is kept of the request until more of it arrives or it is answered; false where that is too much.
    fn hold_what_is_read(&mut self) -> bool {
        let response = match self.parser.admitted() {
            Some(OnComplete::Answer(response)) => response.allocated(),
            _ => 0,
        };
        self.lease.set_to(self.parser.allocated() + response)
    }

    /// Whether the request that is being read was refused by the handler.
    fn is_refused(&self) -> bool {
        matches!(self.parser.admitted(), Some(OnComplete::Answer(_)))
    }
}

impl Reader {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        handler: Arc<dyn Handler>,
        limits: Limits,
        metrics: Counters,
        tls: Option<Tls>,
    ) -> Self {
        Reader {
            inbox,
            handler,
            limits,
            metrics,
            slots: Vec::new(),
            free: Vec::new(),
            deadlines: Deadlines::default(),
            now: Instant::now(),
            is_draining: false,
            tls,
            plain: Vec::new(),
            last_complaint: None,
            unsaid: 0,
        }
    }

    /// Returns when the server ends.
    pub(super) fn run(mut self) {
        /// However it ends: who waits for an answer gets it.
        struct EndOfMail(Arc<Inbox>);
        impl Drop for EndOfMail {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        let end_of_mail = EndOfMail(Arc::clone(&self.inbox));
        self.serve();
        drop(end_of_mail);
        if !self.inbox.control.has_ended() {
            // It cannot wait any more. What is under way is still answered.
            return;
        }
        for client in self.slots.iter().filter_map(|slot| slot.client.as_ref()) {
            // Whoever still holds the connection for an answer finds it closed.
            let _ = client.connection.socket.shutdown(Shutdown::Both);
        }
    }

    fn serve(&mut self) {
        let mut events = Events::default();
        let mut letters = Letters::default();
        let mut scratch = vec![0; READ_BODY];
        while !self.inbox.control.has_ended() {
            let may_wait = self.inbox.may_wait();
            let wait = if may_wait { self.deadlines.wait(self.now, LONGEST_WAIT) } else { Duration::ZERO };
            if let Err(cause) = self.inbox.poller.wait(&mut events, Some(wait)) {
                error!("a reader cannot wait: {cause}");
                return;
            }
            self.inbox.take(&mut letters);
            self.now = Instant::now();
            if !letters.answers.is_empty() {
                // Each says a line.
                let _together = logging::batch_lines();
                letters.give_answers();
            }
            for message in letters.messages.drain(..) {
                match message {
                    Message::New(socket, peer) => self.open(socket, peer, &mut scratch),
                    Message::Attend(key) => {
                        if let Some(index) = self.find(key) {
                            self.settle(index);
                        }
                    }
                }
            }
            for key in events.keys() {
                self.react(key, &mut scratch);
            }
            while let Some(key) = self.deadlines.due(self.now) {
                if let Some(index) = self.find(key) {
                    self.client(index).planned = None;
                    self.check_deadline(index);
                }
            }
            if !self.is_draining && self.inbox.control.is_draining() {
                self.is_draining = true;
                (0..self.slots.len()).for_each(|index| self.close_if_idle(index));
            }
        }
    }

    fn open(&mut self, socket: TcpStream, peer: SocketAddr, scratch: &mut [u8]) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let key = index | (self.slots[index].generation as usize) << 32;
        // Fails only when the client is gone already.
        let _ = socket.set_nodelay(true);
        let added = self.inbox.poller.add(&socket, key, Interest::Bytes);
        let session = self.tls.as_ref().map(Tls::session);
        let first_deadline = self.now + self.tls.as_ref().map_or(self.limits.idle_timeout, Tls::handshake_timeout);
        let connection = Arc::new(Connection::new(socket, peer, key, Arc::clone(&self.inbox), self.now, session));
        let client = Client {
            connection,
            parser: Parser::new(self.limits.head),
            pending: Vec::new(),
            lease: self.limits.lease(),
            ahead: self.limits.lease(),
            started: self.now,
            watched: added.is_ok().then_some(Interest::Bytes),
            planned: None,
            discarded: 0,
            handshake: if self.tls.is_some() { Handshake::Awaited } else { Handshake::Over },
            ended: false,
        };
        self.slots[index].client = Some(Box::new(client));
        if let Err(cause) = added {
            error!("a connection cannot be watched: {cause}");
            return self.close(index);
        }
        self.plan(index, first_deadline);
        // Most clients send at once: the request is often there.
        self.react(key, scratch);
        if self.is_draining && self.find(key).is_some() {
            self.close_if_idle(index);
        }
    }

    fn find(&self, key: usize) -> Option<usize> {
        let index = key & 0xffff_ffff;
        let slot = self.slots.get(index)?;
        (slot.generation as usize == key >> 32 && slot.client.is_some()).then_some(index)
    }

    fn client(&mut self, index: usize) -> &mut Client {
        self.slots[index].client.as_mut().expect("only slots with a client are worked on")
    }

    fn react(&mut self, key: usize, scratch: &mut [u8]) {
        let Some(index) = self.find(key) else { return };
        match self.client(index).connection.phase_or_wake() {
            // What was sent ahead comes before what has arrived since; a message to attend to it is on its way.
            Phase::Reading if !self.client(index).pending.is_empty() => {}
            Phase::Reading => self.read(index, scratch),
            Phase::Answering => {
                let less = (self.client(index).watched == Some(Interest::Bytes)).then_some(Interest::Breaks);
                self.watch(index, less);
            }
            Phase::Writing => {
                self.client(index).connection.flush();
                self.settle(index);
            }
            Phase::Lingering => self.discard(index, scratch),
            Phase::Broken => self.close(index),
        }
    }

    fn read(&mut self, index: usize, scratch: &mut [u8]) {
        let client = self.client(index);
        let most = usize::try_from(client.parser.missing()).unwrap_or(usize::MAX).clamp(READ, READ_BODY);
        match (&client.connection.socket).read(&mut scratch[..most]) {
            // The end of the stream: a request that is not complete never becomes one.
            Ok(0) => self.lose(index, "the client closed the connection"),
            Ok(count) if self.tls.is_some() => self.take_records(index, &scratch[..count]),
            Ok(count) => self.take_bytes(index, &scratch[..count]),
            Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(cause) => self.lose(index, &cause.to_string()),
        }
    }

    fn discard(&mut self, index: usize, scratch: &mut [u8]) {
        let client = self.client(index);
        match (&client.connection.socket).read(scratch) {
            Ok(count) if count > 0 && client.discarded + count <= LINGER_BYTES => client.discarded += count,
            Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => self.close(index),
        }
    }

    /// Takes bytes of a client that may send.
    fn take_bytes(&mut self, index: usize, input: &[u8]) {
        if self.parse(index, input) {
            self.settle(index);
        }
    }

    /// Understands bytes of a client that may send: as many requests as are answered on the spot, then the rest waits. Whether
    /// the phase has to be looked at.
    fn parse(&mut self, index: usize, mut input: &[u8]) -> bool {
        let mut turn = 0;
        loop {
            let now = self.now;
            let client = self.client(index);
            if client.parser.is_idle() && !input.is_empty() {
                client.started = now;
                self.plan(index, now + self.limits.read_timeout);
            }
            let client = self.client(index);
            let (taken, progress) = match client.parser.advance(input) {
                Ok(step) => step,
                Err(refused) => return self.refuse(index, refused),
            };
            input = &input[taken..];
            match progress {
                Progress::NeedsMore => {
                    if !client.hold_what_is_read() {
                        return self.refuse(index, TOO_MANY_BYTES);
                    }
                    client.ahead.set_to(0);
                    return false;
                }
                Progress::Head => match self.admit(index, input.is_empty()) {
                    Ok(()) => {}
                    Err(Rejection::Server(refused)) => return self.refuse(index, refused),
                    Err(Rejection::Handler(response)) => return self.answer_and_close(index, response),
                },
                Progress::Complete => {
                    // What is answered without the handler is never held, so that operations go on when all is full.
                    let fits = client.is_refused() || client.hold_what_is_read();
                    // Before the hand-over, after which nothing can be refused.
                    if !fits || !client.ahead.set_to(input.len()) {
                        return self.refuse(index, TOO_MANY_BYTES);
                    }
                    turn += 1;
                    let is_answered = self.hand_over(index, !input.is_empty()) == Phase::Reading;
                    let has_had_its_turn = turn == TURN && !input.is_empty();
                    if !is_answered || has_had_its_turn {
                        let client = self.client(index);
                        client.pending = input.to_vec();
                        if is_answered {
                            let key = client.connection.key;
                            self.inbox.post(Message::Attend(key));
                        }
                        return !is_answered;
                    }
                }
            }
        }
    }

    /// Asks the handler whether the body is wanted.
    fn admit(&mut self, index: usize, nothing_follows: bool) -> Result<(), Rejection> {
        if self.is_draining {
            return Err(Refused::new(503, SHUTTING_DOWN).into());
        }
        let handler = Arc::clone(&self.handler);
        let client = self.client(index);
        let peer = client.connection.peer;
        let Some(head) = client.parser.head_mut() else { return Ok(()) };
        head.head.peer = Some(peer);
        let (framing, waits) = (head.framing, head.expects_continue && nothing_follows);
        let admission = caught("admitting a request", move || handler.admit(&head.head));
        let admission = admission.ok_or(Refused::new(500, "an internal error"))?;
        match admission {
            Admission::Read { max_body_bytes, then } => {
                client.parser.read_body(max_body_bytes, OnComplete::Handle(then))?;
                if waits {
                    client.connection.send_continue();
                }
                Ok(())
            }
            Admission::Refuse(response) => {
                let is_large = matches!(framing, Framing::Length(length) if length > DISCARDED_BODY as u64);
                if is_large || waits {
                    return Err(Rejection::Handler(response));
                }
                client.parser.skip_body(DISCARDED_BODY, OnComplete::Answer(response))?;
                Ok(())
            }
        }
    }

    /// Gives a complete request to the handler; the phase afterwards.
    fn hand_over(&mut self, index: usize, has_more: bool) -> Phase {
        let next_lease = self.limits.lease();
        let client = self.client(index);
        let (connection, ended) = (Arc::clone(&client.connection), client.ended);
        let Some((parsed, body, then)) = client.parser.take() else { return connection.phase().0 };
        let lease = std::mem::replace(&mut client.lease, next_lease);
        let form = Form {
            head_only: parsed.head.method == "HEAD",
            keep_alive: parsed.keep_alive,
            is_http10: parsed.is_http10,
        };
        connection.begin_answering();
        match then {
            OnComplete::Answer(response) => connection.answer(&response, form),
            OnComplete::Handle(then) => {
                let reply = Reply::on(Arc::clone(&connection), form);
                let request = Request { head: parsed.head, body, lease };
                caught("handling a request", || then(request, reply));
            }
        }
        connection.leave(has_more || ended)
    }

    /// Answers in the handler's stead and ends the connection. Returns that the phase has to be looked at.
    fn refuse(&mut self, index: usize, refused: Refused) -> bool {
        // A request that the handler refused before keeps the handler's answer.
        let client = self.client(index);
        if client.is_refused()
            && let Some((_, _, OnComplete::Answer(response))) = client.parser.take()
        {
            return self.answer_and_close(index, response);
        }
        self.metrics.refused(refused.status);
        if let Some(limit) = refused.limit {
            self.metrics.limited(limit);
        }
        let response = panics::catch(|| self.handler.refusal(refused.status, refused.reason))
            .unwrap_or_else(|_| Response::text(refused.status, refused.reason));
        self.answer_and_close(index, response)
    }

    /// Gives the last answer of a connection. Returns that the phase has to be looked at.
    fn answer_and_close(&mut self, index: usize, response: Response) -> bool {
        let head_limits = self.limits.head;
        let client = self.client(index);
        let head_only = client.parser.is_head_method();
        client.parser = Parser::new(head_limits);
        client.pending = Vec::new();
        client.lease = Lease::default();
        client.ahead = Lease::default();
        let connection = Arc::clone(&client.connection);
        connection.begin_answering();
        connection.answer(&response.closing(), Form { head_only, keep_alive: false, is_http10: false });
        connection.leave(false);
        true
    }

    /// Does what the phase asks of the reader after an answer.
    fn settle(&mut self, index: usize) {
        while self.settle_once(index) {}
    }

    fn settle_once(&mut self, index: usize) -> bool {
        let limits = (self.limits.idle_timeout, self.limits.write_timeout);
        let client = self.client(index);
        match client.connection.phase() {
            (Phase::Answering, _) => {}
            (Phase::Broken, _) => self.lose(index, "it could not be written to"),
            (Phase::Writing, since) => {
                self.watch(index, Some(Interest::Room));
                self.plan(index, since + limits.1);
            }
            (Phase::Lingering, since) => {
                client.pending = Vec::new();
                client.ahead.set_to(0);
                self.watch(index, Some(Interest::Bytes));
                self.plan(index, since + LINGER);
            }
            (Phase::Reading, since) => {
                let (pending, ended) = (std::mem::take(&mut client.pending), client.ended);
                self.watch(index, Some(Interest::Bytes));
                self.plan(index, since + limits.0);
                if !pending.is_empty() && self.parse(index, &pending) {
                    return true;
                }
                if self.is_draining || ended {
                    self.close_if_idle(index);
                }
            }
        }
        false
    }

    fn check_deadline(&mut self, index: usize) {
        let now = self.now;
        let Limits { read_timeout, write_timeout, idle_timeout, .. } = self.limits;
        let client = self.client(index);
        let (phase, since) = client.connection.phase();
        let (deadline, kind) = match phase {
            Phase::Reading | Phase::Writing if client.handshake != Handshake::Over => {
                let most = self.tls.as_ref().map_or(read_timeout, Tls::handshake_timeout);
                (self.client(index).started + most, "handshake")
            }
            Phase::Reading if client.parser.is_idle() => (since + idle_timeout, "idle"),
            Phase::Reading => (client.started + read_timeout, "read"),
            // Bounded by the handler. The answer may leave the connection idle, so look again no later than that ends.
            Phase::Answering => (now + idle_timeout, ""),
            Phase::Writing => (since + write_timeout, "write"),
            Phase::Lingering => (since + LINGER, "linger"),
            Phase::Broken => return self.close(index),
        };
        if deadline > now {
            return self.plan(index, deadline);
        }
        if kind == "handshake" {
            self.handshake_failed(index, "timeout", "it was not done in time");
            return self.close(index);
        }
        self.metrics.timed_out(kind);
        if kind == "read" {
            self.refuse(index, Refused::new(408, "the request was not complete in time"));
            self.settle(index);
        } else {
            self.close(index);
        }
    }

    fn plan(&mut self, index: usize, at: Instant) {
        if let Some(client) = &mut self.slots[index].client {
            self.deadlines.plan(client.connection.key, &mut client.planned, at);
        }
    }

    /// Has the poller report something of a connection, or nothing.
    fn watch(&mut self, index: usize, watched: Option<Interest>) {
        let poller = &self.inbox.poller;
        let Some(client) = &mut self.slots[index].client else { return };
        if client.watched == watched {
            return;
        }
        let (socket, key) = (&client.connection.socket, client.connection.key);
        let outcome = match (client.watched, watched) {
            (_, None) => poller.remove(socket),
            (None, Some(interest)) => poller.add(socket, key, interest),
            (Some(_), Some(interest)) => poller.modify(socket, key, interest),
        };
        client.watched = watched;
        if let Err(cause) = outcome {
            error!("a connection cannot be watched: {cause}");
            client.watched = None;
        }
    }

    fn close_if_idle(&mut self, index: usize) {
        let is_idle = self.slots[index].client.as_ref().is_some_and(|client| {
            client.connection.phase().0 == Phase::Reading && client.parser.is_idle() && client.pending.is_empty()
        });
        if is_idle {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        self.watch(index, None);
        let slot = &mut self.slots[index];
        let Some(client) = slot.client.take() else { return };
        if self.tls.is_some() && client.handshake == Handshake::Over {
            client.connection.say_goodbye();
        }
        slot.generation = slot.generation.wrapping_add(1);
        self.deadlines.forget(client.connection.key, client.planned);
        self.free.push(index);
        let peer = client.connection.peer;
        drop(client);
        self.metrics.connections.dec();
        self.inbox.control.connection_closed(peer.ip());
    }
}
