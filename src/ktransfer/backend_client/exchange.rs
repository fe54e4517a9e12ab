//! The push in flight of one worker: the state that the worker, its connections and the dispatcher share.
//!
//! The worker begins a push and reads its report, the connection in use checks and reports, the dispatcher may cut. The
//! lock is held for one access, never across IO.
//!
//! No push escapes a cut: the dispatcher first ends the claim and then cuts. The cut finds a push that was registered
//! before it; a push that is registered later detects that its claim has ended.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use socket2::Socket;

use super::buffers::PushBuffers;
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::group::{Generation, TimedFence};
use crate::ktransfer::job::Assignment;
use crate::ktransfer::outcomes::TransportError;
use crate::locks::lock;

/// State of the push of one worker.
#[derive(Default)]
pub(super) struct Exchange(Mutex<State>);

#[derive(Default)]
struct State {
    claim: Option<ClaimUnderWay>,
    /// The socket of the push, also while it connects.
    socket: Option<Arc<Socket>>,
    /// Whether the module's stop has closed the HTTP client: no push begins.
    is_closed: bool,
    report: Report,
    /// The buffers of the worker's pushes while no connection uses them. So an idle connection has no buffers.
    buffers: Option<Box<PushBuffers>>,
}

struct ClaimUnderWay {
    partition: PartitionId,
    generation: Generation,
    offset: Offset,
    fence: Arc<TimedFence>,
    is_cut: bool,
}

/// The result of a push as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Whether bytes of the request may have reached the backend.
    pub(super) was_sent: bool,
    /// Whether an idle connection was used that the backend had closed already: the backend cannot have processed
    /// anything, and a new connection may work.
    pub(super) was_closed_idle: bool,
    /// The final status, once it was received.
    pub(super) status: Option<u16>,
    /// The pause that `Retry-After` requests.
    pub(super) retry_after: Option<Duration>,
    /// Why the push ended without an answer.
    pub(super) failure: Option<Failure>,
    /// Whether the push ended because of its claim, not because of the backend.
    pub(super) is_aborted: bool,
}

/// Why a push ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The kind of error; `None` for a failure of this machine.
    pub(super) error: Option<TransportError>,
    /// The error text, for the log.
    pub(super) text: String,
}

/// The claim does not permit a push now.
#[derive(Debug, thiserror::Error)]
#[error("the claim does not permit a push now")]
pub(super) struct ClaimEnded;

impl From<ClaimEnded> for io::Error {
    fn from(ended: ClaimEnded) -> Self {
        io::Error::other(ended)
    }
}

impl Exchange {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Registers a push of a claim. Fails if the claim has ended, its lease is not valid, or the client is closed.
    /// `offset` is that of the message.
    pub(super) fn begin(&self, assignment: &Assignment, offset: Offset) -> Result<(), ClaimEnded> {
        let claim = ClaimUnderWay {
            partition: assignment.partition,
            generation: assignment.generation,
            offset,
            fence: Arc::clone(&assignment.fence),
            is_cut: false,
        };
        let mut state = self.lock();
        state.report = Report::default();
        state.socket = None;
        if state.is_closed {
            return Err(ClaimEnded);
        }
        state.claim = Some(claim);
        drop(state);
        // After the registration: a cut that came before it has ended the claim.
        if assignment.may_push() { Ok(()) } else { Err(ClaimEnded) }
    }

    /// Ends the push and returns what is known about it.
    pub(super) fn finish(&self) -> Report {
        let mut state = self.lock();
        state.claim = None;
        state.socket = None;
        std::mem::take(&mut state.report)
    }

    /// Makes a cut reach `socket`. Fails if the push was cut before.
    pub(super) fn attach(&self, socket: &Arc<Socket>) -> Result<(), ClaimEnded> {
        let mut state = self.lock();
        if !state.may_continue() {
            state.report.is_aborted = true;
            return Err(ClaimEnded);
        }
        state.socket = Some(Arc::clone(socket));
        Ok(())
    }

    /// Called immediately before the first byte of a request is written to `socket`; returns the fence that limits the
    /// push. Fails if no byte may be written: the lease is not valid now, or the push was cut.
    pub(super) fn begin_request(&self, socket: &Arc<Socket>) -> Result<Arc<TimedFence>, ClaimEnded> {
        self.attach(socket)?;
        let mut state = self.lock();
        let fence = state.claim.as_ref().map(|claim| &claim.fence).filter(|fence| fence.is_valid()).map(Arc::clone);
        match &fence {
            Some(_) => state.report.was_sent = true,
            None => state.report.is_aborted = true,
        }
        fence.ok_or(ClaimEnded)
    }

    /// Reports why the push has ended without an answer. After a cut, an error of the connection is no failure of the
    /// backend.
    pub(super) fn report_failure(&self, error: Option<TransportError>, text: String, was_sent: bool) {
        let mut state = self.lock();
        let is_cut = !state.may_continue();
        state.report.is_aborted |= is_cut;
        state.report.was_sent = was_sent;
        state.report.failure.get_or_insert(Failure { error, text });
    }

    /// Changes the report of the push.
    pub(super) fn report(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.lock().report);
    }

    /// Whether the push was cut.
    pub(super) fn is_cut(&self) -> bool {
        !self.lock().may_continue()
    }

    /// Ends the push in flight if it belongs to this claim.
    pub(super) fn cut(&self, partition: PartitionId, generation: Generation) {
        self.cut_where(|claim| claim.partition == partition && claim.generation == generation);
    }

    /// Ends the push in flight if it is of this message.
    pub(super) fn cut_message(&self, partition: PartitionId, generation: Generation, offset: Offset) {
        let message = (partition, generation, offset);
        self.cut_where(|claim| (claim.partition, claim.generation, claim.offset) == message);
    }

    fn cut_where(&self, is_of: impl Fn(&ClaimUnderWay) -> bool) {
        let mut state = self.lock();
        let is_of = |claim: &&mut ClaimUnderWay| is_of(claim);
        if let Some(claim) = state.claim.as_mut().filter(is_of) {
            claim.is_cut = true;
            state.shut_down();
        }
    }

    /// Ends the push in flight, and each later one before it begins.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.shut_down();
    }

    pub(super) fn take_buffers(&self) -> Box<PushBuffers> {
        let mut buffers = self.lock().buffers.take().unwrap_or_default();
        buffers.clear();
        buffers
    }

    pub(super) fn give_back(&self, buffers: Box<PushBuffers>) {
        self.lock().buffers = Some(buffers);
    }
}

impl State {
    fn may_continue(&self) -> bool {
        !self.is_closed && self.claim.as_ref().is_some_and(|claim| !claim.is_cut)
    }

    fn shut_down(&self) {
        if let Some(socket) = &self.socket {
            // Ends a connect, read or write that another thread waits in. An error means that the connection is closed.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::test_fixtures::claim;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn connection() -> (Arc<Socket>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(client.into()), listener.accept().unwrap().0)
    }

    fn is_shut_down(peer: &mut TcpStream) -> bool {
        peer.set_nonblocking(true).unwrap();
        matches!(peer.read(&mut [0]), Ok(0))
    }

    #[test]
    fn a_cut_ends_only_the_push_of_its_claim() {
        let (exchange, assignment) = (Exchange::default(), Assignment::new(&claim(3, 7, None)));
        let (socket, mut peer) = connection();
        exchange.begin(&assignment, 42).unwrap();
        exchange.attach(&socket).unwrap();
        exchange.cut(3, Generation(6));
        exchange.cut(4, Generation(7));
        exchange.cut_message(3, Generation(7), 43);
        assert!(!exchange.is_cut() && exchange.begin_request(&socket).is_ok());
        exchange.cut(3, Generation(7));
        assert!(is_shut_down(&mut peer) && exchange.is_cut() && exchange.begin_request(&socket).is_err());
        assert!(exchange.attach(&socket).is_err(), "a connection that is made after the cut");
        assert!(exchange.finish().is_aborted);
        // The next push is another one.
        exchange.begin(&assignment, 42).unwrap();
        exchange.cut_message(3, Generation(7), 42);
        assert!(exchange.is_cut());
        exchange.begin(&assignment, 42).unwrap();
        assert!(!exchange.is_cut() && exchange.begin_request(&socket).is_ok());
    }

    #[test]
    fn a_cut_before_the_registration_is_seen_by_the_end_of_the_claim() {
        let (exchange, assignment) = (Exchange::default(), Assignment::new(&claim(3, 7, None)));
        assignment.end();
        exchange.cut(3, Generation(7));
        assert!(exchange.begin(&assignment, 42).is_err());
    }

    #[test]
    fn no_request_begins_without_a_valid_lease_or_after_the_end() {
        let (exchange, claim) = (Exchange::default(), claim(3, 7, None));
        let (assignment, (socket, _peer)) = (Assignment::new(&claim), connection());
        exchange.begin(&assignment, 42).unwrap();
        claim.fence.end();
        assert!(exchange.begin_request(&socket).is_err() && exchange.finish().is_aborted);
        let held = Assignment::new(&crate::ktransfer::test_fixtures::claim(3, 8, None));
        exchange.begin(&held, 42).unwrap();
        exchange.close();
        assert!(exchange.begin_request(&socket).is_err() && exchange.begin(&held, 42).is_err());
    }
}
