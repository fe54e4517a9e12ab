//! A client instance: one client of the zookeeper crate, its one session and the threads that call the client.
//!
//! The crate's calls have no deadline, and its client does not survive every connection loss. So calls run on threads
//! of the instance, several in flight on one connection, and a caller waits for the result until the call's deadline.
//! If the outcome of a call is unclear, the whole instance is given up. The threads of that instance, and the drop of
//! the crate's client, may then hang without a time limit, because no other thread waits for them.
//!
//! Two faults of the crate are worked around:
//!
//! - The crate reconnects without a pause. So each instance gets a second server address, of a local listener that
//!   never responds: a client that lost its server waits for that listener instead of using a whole CPU.
//! - The crate loses a close request if the client is reconnecting at that moment; the client would then keep its
//!   session, and so its ephemeral nodes, forever. So closing is repeated until the crate reports the client as closed.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use zookeeper::{WatchedEvent, ZkError, ZkResult, ZkState, ZooKeeper};

use crate::panics;
use crate::shutdown::Never;
use crate::supervise::spawn_expendable;

/// Limit on the calls in flight on one instance; further calls wait for a free thread.
const N_CALL_THREADS: usize = 6;

/// Limit on the instances whose threads have not ended, including those that were given up and hang. An instance has 9
/// threads: [`N_CALL_THREADS`], one that closes the session, and two of the crate.
const MAX_INSTANCES: usize = 8;

/// Pause between two attempts to close the session.
const CLOSE_RETRY_PAUSE: Duration = Duration::from_millis(300);

type Call = Box<dyn FnOnce(&ZooKeeper) + Send>;

/// The handle of an instance, for calling and closing it. Dropping the handle without
/// [`close_after`](Self::close_after) closes the session at once.
pub(super) struct ClientInstance {
    calls: Sender<Call>,
    /// Set when the crate reports any state but Connected, and when this instance is given up.
    lost: Arc<AtomicBool>,
    close: Sender<Duration>,
    closed: Receiver<Never>,
}

/// How one call ended.
pub(super) enum CallOutcome<T> {
    /// The server responded. The request was sent at this instant or later.
    Response(Instant, ZkResult<T>),
    /// No response arrived by the deadline, the call panicked, or the instance was given up.
    NoResponse(&'static str),
}

/// Counts as one instance in the shared count until it is dropped.
struct InstanceSlot(Arc<AtomicUsize>);

impl InstanceSlot {
    /// Increments the count; returns `None` if it is [`MAX_INSTANCES`] already.
    fn acquire(count: &Arc<AtomicUsize>) -> Option<InstanceSlot> {
        let below_max = |count| (count < MAX_INSTANCES).then_some(count + 1);
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, below_max).ok()?;
        Some(InstanceSlot(Arc::clone(count)))
    }
}

impl Drop for InstanceSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The client that the threads of an instance share. The last thread to end drops it.
struct SharedClient {
    client: ZooKeeper,
    is_closed: Arc<AtomicBool>,
    /// The listener at the second server address. It stays open and never accepts a connection.
    _silent_server: TcpListener,
    _slot: InstanceSlot,
}

impl ClientInstance {
    /// Creates a client of the server at `address` and starts the threads of the instance. The session is established
    /// when the first call has succeeded. `wake` gets a message when the client leaves the state Connected. Fails at
    /// once if no socket or thread can be created, or if [`MAX_INSTANCES`] have not ended.
    pub(super) fn start(
        address: SocketAddr,
        session_timeout: Duration,
        instance_count: &Arc<AtomicUsize>,
        wake: Sender<()>,
    ) -> Result<ClientInstance, String> {
        let slot = InstanceSlot::acquire(instance_count).ok_or_else(|| {
            format!("{MAX_INSTANCES} ZooKeeper clients that were given up still hang, waiting until one ends")
        })?;
        let silent_server =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|cause| format!("cannot open a socket: {cause}"))?;
        let silent = silent_server.local_addr().map_err(|cause| format!("cannot open a socket: {cause}"))?;
        let servers = format!("{address},{silent}");
        let ignore = |_: WatchedEvent| ();
        // The crate panics if it cannot open a socket.
        let client = panics::catch(|| ZooKeeper::connect(&servers, session_timeout, ignore))
            .map_err(|text| format!("the zookeeper crate panicked: {text}"))?
            .map_err(|error| format!("cannot create a client: {error:?}"))?;
        let lost = Arc::new(AtomicBool::new(false));
        let is_closed = Arc::new(AtomicBool::new(false));
        watch_state(&client, &is_closed, &lost, wake);
        let shared = Arc::new(SharedClient { client, is_closed, _silent_server: silent_server, _slot: slot });
        // This queue is filled only while all call threads are busy. A call that is not queued by its deadline fails.
        let (calls, queued) = bounded::<Call>(N_CALL_THREADS);
        let (close, close_requested) = bounded(1);
        let (closing, closed) = bounded(0);
        let instance = ClientInstance { calls, lost, close, closed };
        let closer = Arc::clone(&shared);
        let lost = Arc::clone(&instance.lost);
        let started = spawn_expendable("zk-close", move || {
            // An error means that the instance was dropped: the session is closed without a delay.
            let delay = close_requested.recv().unwrap_or_default();
            lost.store(true, Ordering::Release);
            thread::sleep(delay);
            close_session(&closer, session_timeout);
            drop(closing);
        });
        started.map_err(|cause| format!("cannot start a thread: {cause}"))?;
        for number in 0..N_CALL_THREADS {
            let (shared, queued, lost) = (Arc::clone(&shared), queued.clone(), Arc::clone(&instance.lost));
            let body = move || {
                for call in queued {
                    // If the instance was given up, the caller of a queued call has got an error, so the call is not
                    // sent.
                    if !lost.load(Ordering::Acquire) {
                        call(&shared.client);
                    }
                }
            };
            spawn_expendable(format!("zk-call-{number}"), body)
                .map_err(|cause| format!("cannot start a thread: {cause}"))?;
        }
        Ok(instance)
    }

    /// Runs `work` on a call thread and waits for the result until `deadline`.
    pub(super) fn call<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static,
    ) -> CallOutcome<T> {
        match self.submit(deadline, work) {
            Some(result) => Self::wait_response(&result, deadline),
            None => CallOutcome::NoResponse("all calls in flight still wait for a response"),
        }
    }

    /// Queues `work` for a call thread and returns the channel of the result; `None` if the queue is full until
    /// `deadline`.
    fn submit<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static,
    ) -> Option<Receiver<(Instant, ZkResult<T>)>> {
        let (sender, result) = bounded(1);
        let call = Box::new(move |client: &ZooKeeper| {
            // The crate sends the request after this instant, so the server restarts the session timeout no earlier.
            let sent = Instant::now();
            if sent < deadline
                && let Ok(outcome) = panics::catch(|| work(client))
            {
                // Fails if the caller has stopped waiting.
                let _ = sender.try_send((sent, outcome));
            }
        });
        self.calls.send_deadline(call, deadline).is_ok().then_some(result)
    }

    fn wait_response<T>(result: &Receiver<(Instant, ZkResult<T>)>, deadline: Instant) -> CallOutcome<T> {
        match result.recv_deadline(deadline) {
            Ok((sent, result)) => CallOutcome::Response(sent, result),
            Err(RecvTimeoutError::Timeout) => CallOutcome::NoResponse("no response by the deadline"),
            Err(RecvTimeoutError::Disconnected) => {
                CallOutcome::NoResponse("the call panicked or its client was given up")
            }
        }
    }

    /// Runs `works`, at most [`N_CALL_THREADS`] at once. Each call must get its response within `timeout` after the
    /// call before it got one. The outcomes have the order of `works` and end with the first call without a response.
    pub(super) fn call_all<T: Send + 'static>(
        &self,
        timeout: Duration,
        works: Vec<impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static>,
    ) -> Vec<CallOutcome<T>> {
        let mut in_flight: VecDeque<Receiver<(Instant, ZkResult<T>)>> = VecDeque::new();
        let mut works = works.into_iter();
        let mut outcomes = Vec::with_capacity(works.len());
        loop {
            let deadline = Instant::now() + timeout;
            while in_flight.len() < N_CALL_THREADS
                && let Some(work) = works.next()
            {
                match self.submit(deadline, work) {
                    Some(result) => in_flight.push_back(result),
                    None => {
                        outcomes.push(CallOutcome::NoResponse("all calls in flight still wait for a response"));
                        return outcomes;
                    }
                }
            }
            let Some(oldest) = in_flight.pop_front() else { return outcomes };
            let outcome = Self::wait_response(&oldest, deadline);
            let is_last = matches!(outcome, CallOutcome::NoResponse(_));
            outcomes.push(outcome);
            if is_last {
                return outcomes;
            }
        }
    }

    /// Whether the connection was lost or the instance was given up.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Gives the instance up: no further call is sent, and the thread `zk-close` closes the session after `delay`.
    pub(super) fn close_after(&self, delay: Duration) {
        self.lost.store(true, Ordering::Release);
        // A full channel means that a close was requested before.
        let _ = self.close.try_send(delay);
    }

    /// Waits until the session is closed, at most for `grace`. Returns whether the session is closed.
    pub(super) fn wait_closed(&self, grace: Duration) -> bool {
        matches!(self.closed.recv_timeout(grace), Err(RecvTimeoutError::Disconnected))
    }
}

/// Sets `is_closed` and `lost` when the state of the client changes. The listener runs on the crate's IO thread, so it
/// must neither block nor make a call.
fn watch_state(client: &ZooKeeper, is_closed: &Arc<AtomicBool>, lost: &Arc<AtomicBool>, wake: Sender<()>) {
    let (is_closed, lost) = (Arc::clone(is_closed), Arc::clone(lost));
    client.add_listener(move |state| {
        if state == ZkState::Closed {
            is_closed.store(true, Ordering::Release);
        }
        if state != ZkState::Connected {
            lost.store(true, Ordering::Release);
            let _ = wake.try_send(());
        }
    });
}

/// Closes the session, with retries until the client is closed, for at most three session timeouts. By that time the
/// crate's IO thread must have ended.
fn close_session(shared: &SharedClient, session_timeout: Duration) {
    let started = Instant::now();
    while !shared.is_closed.load(Ordering::Acquire) && started.elapsed() < 3 * session_timeout {
        match panics::catch(|| shared.client.close()) {
            Ok(Err(ZkError::ConnectionLoss)) => thread::sleep(CLOSE_RETRY_PAUSE),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_instances_that_hang_is_limited() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut slots: Vec<_> =
            (0..MAX_INSTANCES).map(|_| InstanceSlot::acquire(&count).expect("below the bound")).collect();
        assert!(InstanceSlot::acquire(&count).is_none());
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let start = || {
            let (wake, _woken) = bounded(1);
            ClientInstance::start(silent.local_addr().unwrap(), Duration::from_millis(300), &count, wake)
        };
        assert!(start().is_err_and(|reason| reason.contains("still hang")));
        slots.pop();
        // This server never responds: the call ends at its deadline, and the client ends when the server's listener is
        // closed.
        let instance = start().expect("one slot is free");
        let deadline = Instant::now() + Duration::from_millis(100);
        let outcome = instance.call(deadline, |client| client.exists("/", false));
        assert!(matches!(outcome, CallOutcome::NoResponse("no response by the deadline")));
        assert!(Instant::now() < deadline + Duration::from_secs(5));
        instance.close_after(Duration::ZERO);
        assert_eq!(count.load(Ordering::Relaxed), MAX_INSTANCES, "the instance hangs, so it still counts");
        drop(silent);
        assert!(instance.wait_closed(Duration::from_secs(60)));
    }
}
