//! The queue through which other threads send messages and deferred responses to a reader.
//!
//! A reader checks its queue before each wait, so another thread needs to wake it only while it waits, and only once.
//! Every deferred response in the queue is sent, also when the reader ends or panics before it has run all of them.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use log::error;

use super::control::Control;
use super::deferred::DeferredResponse;
use super::poller::Poller;
use super::refusal::Refusal;
use crate::locks::lock;
use crate::panics::caught;

/// A message to a reader.
pub(super) enum InboxMessage {
    /// A connection was accepted.
    NewConnection(TcpStream, SocketAddr),
    /// A connection was accepted that exceeds a limit: the reader answers it with this refusal.
    RefusedConnection(TcpStream, SocketAddr, Refusal),
    /// The reader must look at the phase of the connection with this key: another thread has sent the response, or
    /// pipelined requests are left after the connection's turn.
    Recheck(usize),
}

/// The queue of one reader, and the poller on which the reader waits.
pub(super) struct Inbox {
    /// Number of the reader; unique in the process.
    pub(super) reader: usize,
    pub(super) poller: Poller,
    pub(super) control: Arc<Control>,
    state: Mutex<InboxState>,
}

#[derive(Default)]
struct InboxState {
    queued: InboxBatch,
    /// The reader waits, or is about to: a thread that queues something must wake the reader.
    is_waiting: bool,
    /// The reader has ended.
    is_closed: bool,
}

/// The content of an inbox. Dropping a batch runs its deferred responses.
#[derive(Default)]
pub(super) struct InboxBatch {
    /// At most one response for each connection.
    pub(super) responses: VecDeque<Box<dyn DeferredResponse>>,
    /// At most three messages for each connection: accepted, response sent, turn ended.
    pub(super) messages: Vec<InboxMessage>,
}

impl InboxBatch {
    fn is_empty(&self) -> bool {
        self.responses.is_empty() && self.messages.is_empty()
    }

    /// Removes the deferred responses and runs each of them.
    pub(super) fn run_responses(&mut self) {
        while let Some(response) = self.responses.pop_front() {
            run(response);
        }
    }
}

impl Drop for InboxBatch {
    fn drop(&mut self) {
        self.run_responses();
    }
}

impl Inbox {
    pub(super) fn new(control: Arc<Control>) -> io::Result<Self> {
        static NEXT_READER: AtomicUsize = AtomicUsize::new(0);
        let reader = NEXT_READER.fetch_add(1, Ordering::Relaxed);
        Ok(Inbox { reader, poller: Poller::new()?, control, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, InboxState> {
        lock(&self.state)
    }

    /// Queues a message; drops the message if the reader has ended.
    pub(super) fn post(&self, message: InboxMessage) {
        let mut state = self.state();
        if !state.is_closed {
            state.queued.messages.push(message);
            self.wake_if_waiting(state);
        }
    }

    /// Queues all of `responses`; if the reader has ended, runs them on the calling thread.
    pub(super) fn post_responses(&self, responses: &mut Vec<Box<dyn DeferredResponse>>) {
        let mut state = self.state();
        if state.is_closed {
            // Running a response may post to this inbox, so the lock is released first.
            drop(state);
            responses.drain(..).for_each(run);
        } else {
            state.queued.responses.extend(responses.drain(..));
            self.wake_if_waiting(state);
        }
    }

    fn wake_if_waiting(&self, mut state: MutexGuard<'_, InboxState>) {
        let is_waiting = std::mem::take(&mut state.is_waiting);
        // Waking is a system call, so the lock is released first.
        drop(state);
        if is_waiting {
            self.wake();
        }
    }

    /// Wakes the reader, which then takes the content of its inbox and checks the server's [`Control`].
    pub(super) fn wake(&self) {
        if let Err(cause) = self.poller.wake() {
            error!("cannot wake a reader thread: {cause}");
        }
    }

    /// Returns true if the inbox is empty. Then the reader may wait: from now on, a thread that queues something wakes
    /// it.
    pub(super) fn may_wait(&self) -> bool {
        let mut state = self.state();
        state.is_waiting = state.queued.is_empty();
        state.is_waiting
    }

    /// Swaps the content with `batch`, which must be empty. The memory of `batch` is reused for the next content.
    pub(super) fn take(&self, batch: &mut InboxBatch) {
        let mut state = self.state();
        state.is_waiting = false;
        std::mem::swap(&mut state.queued, batch);
    }

    /// Closes the inbox when the reader ends: runs the queued responses on the calling thread, drops the queued
    /// messages, and queues nothing from now on.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let remaining = std::mem::take(&mut state.queued);
        // Running a response may post to this inbox, so the lock is released first.
        drop(state);
        drop(remaining);
    }
}

/// Runs a deferred response and catches its panic. A panic drops the reply of the response, which answers 500.
fn run(response: Box<dyn DeferredResponse>) {
    caught("answering a request", || response.run());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::poller::Events;
    use crate::http::{Reply, Response};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    struct TestResponse {
        reply: Reply,
        panics: bool,
    }

    impl DeferredResponse for TestResponse {
        fn run(self: Box<Self>) {
            assert!(!self.panics, "a panic of the test");
            self.reply.send(Response::text(200, ""));
        }
    }

    fn inbox() -> Inbox {
        Inbox::new(Arc::default()).unwrap()
    }

    /// Returns whether the reader was woken. A wake is not reported as an event; it ends a wait before its timeout.
    fn is_woken(inbox: &Inbox, timeout: Duration) -> bool {
        let started = Instant::now();
        inbox.poller.wait(&mut Events::default(), Some(timeout)).unwrap();
        started.elapsed() < timeout
    }

    #[test]
    fn only_a_waiting_reader_is_woken_and_only_once() {
        const LONG: Duration = Duration::from_secs(60);
        const SHORT: Duration = Duration::from_millis(100);
        let (inbox, mut batch) = (inbox(), InboxBatch::default());
        inbox.post(InboxMessage::Recheck(1));
        assert!(!is_woken(&inbox, SHORT), "the reader takes its inbox before it waits");
        assert!(!inbox.may_wait());
        inbox.take(&mut batch);
        assert!(matches!(batch.messages[..], [InboxMessage::Recheck(1)]));
        batch.messages.clear();
        assert!(inbox.may_wait());
        inbox.post(InboxMessage::Recheck(2));
        assert!(is_woken(&inbox, LONG));
        inbox.post(InboxMessage::Recheck(3));
        assert!(!is_woken(&inbox, SHORT), "the reader is awake already");
        inbox.take(&mut batch);
        assert!(matches!(batch.messages[..], [InboxMessage::Recheck(2), InboxMessage::Recheck(3)]));
    }

    #[test]
    fn deferred_responses_are_sent_when_the_reader_ends_or_a_response_panics() {
        let (inbox, (sender, answers)) = (inbox(), mpsc::channel());
        let post = |panics| {
            let sender = sender.clone();
            let reply = Reply::to(move |response| sender.send(response.status).unwrap());
            let mut responses: Vec<Box<dyn DeferredResponse>> = vec![Box::new(TestResponse { reply, panics })];
            inbox.post_responses(&mut responses);
            assert!(responses.is_empty());
        };
        let sent = || answers.try_iter().collect::<Vec<_>>();
        post(false);
        post(true);
        post(false);
        let mut batch = InboxBatch::default();
        inbox.take(&mut batch);
        post(false);
        assert_eq!(sent(), [0; 0], "queued for the reader");
        drop(batch);
        assert_eq!(sent(), [200, 500, 200], "a reader that panics drops its batch");
        inbox.close();
        assert_eq!(sent(), [200]);
        post(false);
        assert_eq!(sent(), [200], "after the reader has ended, the posting thread runs the response");
    }
}
