//! A reader is a thread that owns a part of the server's connections, and the poller of these connections.
//!
//! The reader reads, parses, admits and hands over requests, runs deferred responses, and writes the bytes of a
//! response that the socket did not take at once. Each connection stays registered with epoll for incoming bytes,
//! level-triggered, so that a request needs no system call to register it again. The interest changes only for a client
//! that sends while its request is being answered, or that does not read its response.

mod clients;
mod late;
mod requests;
mod tls_input;

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::error;

use super::connection::{Connection, Phase};
use super::handler::Handler;
use super::inbox::{Inbox, InboxBatch, InboxMessage};
use super::limits::ServerLimits;
use super::metrics::ServerCounters;
use super::parser::Parser;
use super::poller::{Events, Interest};
use super::refusal::Refusal;
use super::tls::Tls;
use clients::{ClientState, ClientTable, Handshake};

/// Size of one read in bytes. This is also the limit on the pipelined bytes that are kept for a connection.
const READ_BYTES: usize = 16 * 1024;
/// Largest size in bytes of one read of a large body.
const MAX_READ_BYTES: usize = 256 * 1024;
/// After the last response of a connection, bytes from the client are discarded for this time, and at most
/// `MAX_LINGER_BYTES` bytes in all; then the connection is closed.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 64 << 20;
/// Largest number of reads of TLS handshakes between two waits for events.
const MAX_HANDSHAKE_READS_PER_TURN: usize = 8;
/// Longest wait for events, if no connection has a deadline.
const MAX_WAIT: Duration = Duration::from_secs(3600);

pub(super) struct Reader {
    inbox: Arc<Inbox>,
    handler: Arc<dyn Handler>,
    limits: ServerLimits,
    metrics: ServerCounters,
    clients: ClientTable,
    /// When the last wait returned.
    now: Instant,
    /// Whether idle connections are closed and requests refused.
    is_draining: bool,
    tls: Option<Tls>,
    /// Buffer for the plaintext of one read. It is a field only so that every read reuses its memory.
    plaintext: Vec<u8>,
    /// Number of reads of TLS handshakes that this turn may still do.
    handshake_reads_left: usize,
    last_handshake_warning: Option<Instant>,
    /// Number of failed handshakes since the last warning, which were counted but not logged.
    suppressed_warnings: u64,
}

impl Reader {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        handler: Arc<dyn Handler>,
        limits: ServerLimits,
        metrics: ServerCounters,
        tls: Option<Tls>,
    ) -> Self {
        Reader {
            inbox,
            handler,
            limits,
            metrics,
            clients: ClientTable::default(),
            now: Instant::now(),
            is_draining: false,
            tls,
            plaintext: Vec::new(),
            handshake_reads_left: MAX_HANDSHAKE_READS_PER_TURN,
            last_handshake_warning: None,
            suppressed_warnings: 0,
        }
    }

    /// Serves the connections; returns when the server ends or the poller fails.
    pub(super) fn run(mut self) {
        /// Closes the inbox when it is dropped, so that queued responses are sent also after a panic.
        struct CloseInbox(Arc<Inbox>);
        impl Drop for CloseInbox {
            fn drop(&mut self) {
                self.0.close();
            }
        }
        let close_inbox = CloseInbox(Arc::clone(&self.inbox));
        self.serve();
        drop(close_inbox);
        if !self.inbox.control.has_ended() {
            // The poller failed. Other threads may still answer requests in progress, so the sockets are not shut down.
            return;
        }
        for client in self.clients.iter() {
            // A reply may still own the connection and keep the socket open; `shutdown` also ends the connection then.
            let _ = client.connection.socket.shutdown(Shutdown::Both);
        }
    }

    fn serve(&mut self) {
        let mut events = Events::default();
        let mut batch = InboxBatch::default();
        let mut scratch = vec![0; MAX_READ_BYTES];
        while !self.inbox.control.has_ended() {
            let may_wait = self.inbox.may_wait();
            let timeout = if may_wait { self.clients.time_to_next_check(self.now, MAX_WAIT) } else { Duration::ZERO };
            let timeout = self.time_to_drain().map_or(timeout, |left| left.min(timeout));
            if let Err(cause) = self.inbox.poller.wait(&mut events, Some(timeout)) {
                error!("a reader thread cannot wait for events: {cause}");
                return;
            }
            self.inbox.take(&mut batch);
            self.now = Instant::now();
            batch.run_responses();
            for message in batch.messages.drain(..) {
                match message {
                    InboxMessage::NewConnection(socket, peer) => self.open(socket, peer, &mut scratch),
                    InboxMessage::RefusedConnection(socket, peer, refusal) => self.open_refused(socket, peer, refusal),
                    InboxMessage::Recheck(key) => {
                        if let Some(index) = self.clients.find(key) {
                            self.apply_phase(index);
                        }
                    }
                }
            }
            self.handshake_reads_left = MAX_HANDSHAKE_READS_PER_TURN;
            for key in events.keys() {
                self.on_event(key, &mut scratch);
            }
            while let Some(index) = self.clients.pop_due(self.now) {
                self.check_deadline(index, &mut scratch);
            }
            if self.time_to_drain().is_some_and(|left| left.is_zero()) {
                self.begin_drain(&mut scratch);
            }
        }
    }

    /// Returns the time until [`Self::begin_drain`]; `None` if the server does not drain, or the reader does already.
    fn time_to_drain(&self) -> Option<Duration> {
        let at = self.inbox.control.closes_idle_at().filter(|_| !self.is_draining)?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Closes the idle connections. A request that has arrived and was not read yet is served before: closing its
    /// connection would reset it, and the client could not know whether the request was processed.
    fn begin_drain(&mut self, scratch: &mut [u8]) {
        for index in self.clients.slots() {
            if self.is_idle(index) {
                self.read(index, scratch);
            }
        }
        self.is_draining = true;
        self.clients.slots().for_each(|index| self.close_if_idle(index));
    }

    fn open(&mut self, socket: TcpStream, peer: SocketAddr, scratch: &mut [u8]) {
        let Some((index, key)) = self.insert(socket, peer, false) else { return };
        let first_deadline = self.now + self.tls.as_ref().map_or(self.limits.idle_timeout, Tls::handshake_timeout);
        self.clients.schedule(index, first_deadline);
        // Most clients send a request at once, so a read now often finds the request and saves a wait.
        self.on_event(key, scratch);
        if self.is_draining && self.clients.find(key).is_some() {
            self.close_if_idle(index);
        }
    }

    /// Sends the response to a connection that exceeds a limit. It stays open while the client sends its request, like
    /// any connection after its last response.
    fn open_refused(&mut self, socket: TcpStream, peer: SocketAddr, refusal: Refusal) {
        if let Some((index, _)) = self.insert(socket, peer, true) {
            self.refuse(index, refusal);
            self.apply_phase(index);
        }
    }

    /// Adds a connection to the table and the poller; returns its slot and its key, or `None` if it had to be closed.
    fn insert(&mut self, socket: TcpStream, peer: SocketAddr, exceeds_limit: bool) -> Option<(usize, usize)> {
        let (index, key) = self.clients.reserve();
        // This fails only when the client has already disconnected.
        let _ = socket.set_nodelay(true);
        let added = self.inbox.poller.add(&socket, key, Interest::Readable);
        let session = self.tls.as_ref().map(Tls::session);
        let connection = Arc::new(Connection::new(
            socket,
            peer,
            key,
            Arc::clone(&self.inbox),
            self.now,
            session,
            self.limits.answer_lease(),
        ));
        let client = ClientState {
            connection,
            parser: Parser::new(self.limits.head),
            pending: Vec::new(),
            request_lease: self.limits.lease(),
            pending_lease: self.limits.lease(),
            started: self.now,
            interest: added.is_ok().then_some(Interest::Readable),
            next_check: None,
            discarded_bytes: 0,
            handshake: if self.tls.is_some() { Handshake::Awaited } else { Handshake::Over },
            peer_closed: false,
            exceeds_limit,
        };
        self.clients.insert(index, client);
        if let Err(cause) = added {
            error!("cannot register the connection of {peer} with epoll, closing it: {cause}");
            self.close(index);
            return None;
        }
        Some((index, key))
    }

    fn client(&mut self, index: usize) -> &mut ClientState {
        self.clients.get_mut(index).expect("the slot has a client")
    }

    /// Handles an event that the poller reported for a connection.
    fn on_event(&mut self, key: usize, scratch: &mut [u8]) {
        let Some(index) = self.clients.find(key) else { return };
        match self.client(index).connection.phase_at_event() {
            // Another thread has just answered the request, and its `Recheck` message is queued. The reader handles
            // that message first: it must parse the pending bytes before it reads new bytes.
            Phase::Reading if !self.client(index).pending.is_empty() => {}
            Phase::Reading => {
                self.read(index, scratch);
            }
            Phase::Answering => {
                // The poller is level-triggered: unread bytes would end every wait, so only errors are reported from
                // now on. After an error, nothing is reported until the request is answered.
                let is_first = self.client(index).interest == Some(Interest::Readable);
                self.watch(index, is_first.then_some(Interest::ErrorsOnly));
            }
            Phase::Writing => {
                self.client(index).connection.flush();
                self.apply_phase(index);
            }
            Phase::Lingering => self.discard(index, scratch),
            Phase::Broken => self.close(index),
        }
    }

    /// Reads once; returns whether bytes arrived. A TLS handshake is left for the next turn if many were served in this
    /// turn: its signature takes a millisecond, in which no other connection is served.
    fn read(&mut self, index: usize, scratch: &mut [u8]) -> bool {
        if self.client(index).handshake != Handshake::Over {
            if self.handshake_reads_left == 0 {
                return false;
            }
            self.handshake_reads_left -= 1;
        }
        let client = self.client(index);
        let missing = usize::try_from(client.parser.missing()).unwrap_or(usize::MAX);
        let length = missing.clamp(READ_BYTES, MAX_READ_BYTES);
        match (&client.connection.socket).read(&mut scratch[..length]) {
            // At the end of the stream an incomplete request can never become complete.
            Ok(0) => self.connection_lost(index, "the client closed the connection"),
            Ok(count) if self.tls.is_some() => {
                self.on_records(index, &scratch[..count]);
                return true;
            }
            Ok(count) => {
                self.on_bytes(index, &scratch[..count]);
                return true;
            }
            Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(cause) => self.connection_lost(index, &cause.to_string()),
        }
        false
    }

    /// Reads and discards bytes that arrive after the last response; closes the connection at the end of the stream,
    /// after an error, or after [`MAX_LINGER_BYTES`].
    fn discard(&mut self, index: usize, scratch: &mut [u8]) {
        let client = self.client(index);
        match (&client.connection.socket).read(scratch) {
            Ok(count) if count > 0 && client.discarded_bytes + count <= MAX_LINGER_BYTES => {
                client.discarded_bytes += count;
            }
            Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => self.close(index),
        }
    }

    /// Does the work of the reader that the current phase of a connection requires, until no work is left.
    fn apply_phase(&mut self, index: usize) {
        while self.apply_phase_once(index) {}
    }

    /// Does the work of [`Self::apply_phase`] once; returns true if parsing pending bytes may have changed the phase.
    fn apply_phase_once(&mut self, index: usize) -> bool {
        let (idle_timeout, write_limits) = (self.limits.idle_timeout, self.limits.write);
        let client = self.client(index);
        match client.connection.phase() {
            (Phase::Answering, _) => {}
            (Phase::Broken, _) => self.connection_lost(index, "writing to the client failed"),
            (Phase::Writing, _) => {
                let deadline = client.connection.write_deadline(&write_limits);
                self.watch(index, Some(Interest::Writable));
                self.clients.schedule(index, deadline);
            }
            (Phase::Lingering, since) => {
                client.pending = Vec::new();
                client.pending_lease.set_to(0);
                self.watch(index, Some(Interest::Readable));
                self.clients.schedule(index, since + LINGER);
            }
            (Phase::Reading, since) => {
                let (pending, peer_closed) = (std::mem::take(&mut client.pending), client.peer_closed);
                self.watch(index, Some(Interest::Readable));
                self.clients.schedule(index, since + idle_timeout);
                if !pending.is_empty() && self.parse(index, &pending) {
                    return true;
                }
                if self.is_draining || peer_closed {
                    self.close_if_idle(index);
                }
            }
        }
        false
    }

    fn check_deadline(&mut self, index: usize, scratch: &mut [u8]) {
        let now = self.now;
        let ServerLimits { read_timeout, write, idle_timeout, .. } = self.limits;
        let client = self.client(index);
        let (phase, since) = client.connection.phase();
        let (deadline, kind) = match phase {
            Phase::Reading | Phase::Writing if client.handshake != Handshake::Over => {
                let timeout = self.tls.as_ref().map_or(read_timeout, Tls::handshake_timeout);
                (self.client(index).started + timeout, "handshake")
            }
            Phase::Reading if client.parser.is_idle() => (since + idle_timeout, "idle"),
            Phase::Reading => (client.started + read_timeout, "read"),
            // The handler limits the duration of this phase. The connection is checked again after `idle_timeout`: a
            // response sent right now could reach its idle deadline then.
            Phase::Answering => (now + idle_timeout, ""),
            Phase::Writing => (client.connection.write_deadline(&write), "write"),
            Phase::Lingering => (since + LINGER, "linger"),
            Phase::Broken => return self.close(index),
        };
        if deadline > now {
            return self.clients.schedule(index, deadline);
        }
        if kind == "read" && self.complete_late(index, scratch) || kind == "idle" && self.begin_late(index, scratch) {
            return;
        }
        if kind == "handshake" {
            self.fail_handshake(index, "timeout", "timed out");
            return self.close(index);
        }
        self.metrics.timed_out(kind);
        if kind == "read" {
            self.refuse(index, Refusal::new(408, "timed out before the request was complete"));
            self.apply_phase(index);
        } else {
            self.close(index);
        }
    }

    /// Changes the events that the poller reports for a connection; `None` removes the connection from the poller.
    fn watch(&mut self, index: usize, interest: Option<Interest>) {
        let poller = &self.inbox.poller;
        let Some(client) = self.clients.get_mut(index) else { return };
        if client.interest == interest {
            return;
        }
        let (socket, key) = (&client.connection.socket, client.connection.key);
        let outcome = match (client.interest, interest) {
            (_, None) => poller.remove(socket),
            (None, Some(interest)) => poller.add(socket, key, interest),
            (Some(_), Some(interest)) => poller.modify(socket, key, interest),
        };
        client.interest = interest;
        if let Err(cause) = outcome {
            error!("cannot register the connection of {} with epoll: {cause}", client.connection.peer);
            client.interest = None;
        }
    }

    fn is_idle(&self, index: usize) -> bool {
        self.clients.get(index).is_some_and(|client| {
            client.connection.phase().0 == Phase::Reading && client.parser.is_idle() && client.pending.is_empty()
        })
    }

    fn close_if_idle(&mut self, index: usize) {
        if self.is_idle(index) {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        self.watch(index, None);
        let Some(client) = self.clients.remove(index) else { return };
        if self.tls.is_some() && client.handshake == Handshake::Over {
            client.connection.send_close_notify();
        }
        let (peer, exceeds_limit) = (client.connection.peer, client.exceeds_limit);
        drop(client);
        if exceeds_limit {
            self.inbox.control.refused_connection_closed();
        } else {
            self.metrics.connections.dec();
            self.inbox.control.connection_closed(peer.ip());
        }
    }
}
