//! One client of the zookeeper crate with the threads that call it, from birth to its thrown-away end.
//!
//! The crate's calls have no deadline and its clients do not survive trouble. So calls run on a few threads of the client's own
//! (several are in flight on its one connection), and whoever asked waits only so long. A client in doubt is ended as a whole: its
//! threads and its drop may hang for as long as they like, for nobody waits for them.
//!
//! Two traps are closed here. A client that cannot reconnect spins without a pause: its second server is a socket of ours
//! that never answers, where it waits instead. And a closing request that falls into a reconnect is lost, while the client would keep its
//! session, and so its ephemeral nodes, alive for ever: closing is repeated until the client is known to be closed.

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

/// Calls in flight on one client; what comes on top waits its turn.
const CALLERS: usize = 6;

/// Clients that live, ended ones whose threads still hang included. With [`CALLERS`] this bounds the threads: 9 a client.
pub(super) const MAX_LIVING_THREADS: usize = 8;

/// Pause between two tries to close.
const CLOSE_PAUSE: Duration = Duration::from_millis(300);

type Job = Box<dyn FnOnce(&ZooKeeper) + Send>;

/// A client and how to call it. Dropping it without [`end`](Self::end) ends it at once.
pub(super) struct Incarnation {
    jobs: Sender<Job>,
    /// Set when the crate reports any state but Connected, and when this client was given up.
    lost: Arc<AtomicBool>,
    end: Sender<Duration>,
    ended: Receiver<Never>,
}

/// What became of one call.
pub(super) enum Outcome<T> {
    /// The server answered; the request went out at this instant or later.
    Answered(Instant, ZkResult<T>),
    /// No answer by the deadline, or the call panicked, or the client is being ended.
    None(&'static str),
}

/// Counts one living client until it is dropped.
struct Living(Arc<AtomicUsize>);

impl Living {
    fn register(count: &Arc<AtomicUsize>) -> Option<Living> {
        let below = |living| (living < MAX_LIVING_THREADS).then_some(living + 1);
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).ok()?;
        Some(Living(Arc::clone(count)))
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the threads of a client share; gone with the last of them.
struct Shared {
    client: ZooKeeper,
    closed: Arc<AtomicBool>,
    /// The silent second server.
    _parking: TcpListener,
    _living: Living,
}

impl Incarnation {
    /// Makes a client of the server at `address`. It has no session yet: the first call waits for it. `wake` is told when the
    /// state changes. Fails at once where the system is out of something, or where too many ended clients still hang.
    pub(super) fn begin(
        address: SocketAddr,
        session_timeout: Duration,
        living: &Arc<AtomicUsize>,
        wake: Sender<()>,
    ) -> Result<Incarnation, String> {
        let living = Living::register(living).ok_or_else(|| {
            format!("{MAX_LIVING_THREADS} lost clients still hang; no more are made until one of them ends")
        })?;
        let parking = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|cause| format!("no socket: {cause}"))?;
        let silent = parking.local_addr().map_err(|cause| format!("no socket: {cause}"))?;
        let servers = format!("{address},{silent}");
        let ignore = |_: WatchedEvent| ();
        // It panics where it gets no socket.
        let client = panics::catch(|| ZooKeeper::connect(&servers, session_timeout, ignore))
            .map_err(|text| format!("the client panicked: {text}"))?
            .map_err(|error| format!("the client could not be made: {error:?}"))?;
        let lost = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(AtomicBool::new(false));
        listen(&client, &closed, &lost, wake);
        let shared = Arc::new(Shared { client, closed, _parking: parking, _living: living });
        // A job waits here only while all callers are busy; one that finds no room by its deadline has failed.
        let (jobs, queued) = bounded::<Job>(CALLERS);
        let (end, end_asked) = bounded(1);
        let (alive, ended) = bounded(0);
        let begun = Incarnation { jobs, lost, end, ended };
        let closer = Arc::clone(&shared);
        let lost = Arc::clone(&begun.lost);
        let started = spawn_expendable("zk-end", move || {
            let delay = end_asked.recv().unwrap_or_default();
            lost.store(true, Ordering::Release);
            thread::sleep(delay);
            close(&closer, session_timeout);
            drop(alive);
        });
        started.map_err(|cause| format!("no thread: {cause}"))?;
        for number in 0..CALLERS {
            let (shared, queued, lost) = (Arc::clone(&shared), queued.clone(), Arc::clone(&begun.lost));
            let body = move || {
                for job in queued {
                    // What was asked of a client that is given up must not be carried out still later.
                    if !lost.load(Ordering::Acquire) {
                        job(&shared.client);
                    }
                }
            };
            spawn_expendable(format!("zk-call-{number}"), body).map_err(|cause| format!("no thread: {cause}"))?;
        }
        Ok(begun)
    }

    /// Runs `work` on a thread of the client and waits for it until `deadline`.
    pub(super) fn call<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static,
    ) -> Outcome<T> {
        match self.ask(deadline, work) {
            Some(answer) => Self::await_answer(&answer, deadline),
            None => Outcome::None("all calls before it are still waiting"),
        }
    }

    /// Hands `work` to a thread; `None` if none had room by the deadline.
    fn ask<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static,
    ) -> Option<Receiver<(Instant, ZkResult<T>)>> {
        let (reply, answer) = bounded(1);
        let job = Box::new(move |client: &ZooKeeper| {
            let sent = Instant::now();
            if sent < deadline
                && let Ok(outcome) = panics::catch(|| work(client))
            {
                // Nobody may be waiting any more.
                let _ = reply.try_send((sent, outcome));
            }
        });
        self.jobs.send_deadline(job, deadline).is_ok().then_some(answer)
    }

    fn await_answer<T>(answer: &Receiver<(Instant, ZkResult<T>)>, deadline: Instant) -> Outcome<T> {
        match answer.recv_deadline(deadline) {
            Ok((sent, outcome)) => Outcome::Answered(sent, outcome),
            Err(RecvTimeoutError::Timeout) => Outcome::None("no answer in time"),
            Err(RecvTimeoutError::Disconnected) => Outcome::None("the call was given up"),
        }
    }

    /// Runs `works` with as many at the same time as there are threads; each must be answered within `timeout` of the one before it.
    /// The outcomes are in order; after the first without an answer there are no more.
    pub(super) fn call_all<T: Send + 'static>(
        &self,
        timeout: Duration,
        works: Vec<impl FnOnce(&ZooKeeper) -> ZkResult<T> + Send + 'static>,
    ) -> Vec<Outcome<T>> {
        let mut outcomes: VecDeque<Receiver<(Instant, ZkResult<T>)>> = VecDeque::new();
        let mut works = works.into_iter();
        let mut answered = Vec::with_capacity(works.len());
        loop {
            let deadline = Instant::now() + timeout;
            while outcomes.len() < CALLERS
                && let Some(work) = works.next()
            {
                match self.ask(deadline, work) {
                    Some(answer) => outcomes.push_back(answer),
                    None => {
                        answered.push(Outcome::None("all calls before it are still waiting"));
                        return answered;
                    }
                }
            }
            let Some(answer) = outcomes.pop_front() else { return answered };
            let outcome = Self::await_answer(&answer, deadline);
            let is_none = matches!(outcome, Outcome::None(_));
            answered.push(outcome);
            if is_none {
                return answered;
            }
        }
    }

    /// Whether the connection was lost, or the client given up.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Gives the client up: nothing more is asked of it, and after `delay` its session is closed, on a thread that nobody
    /// waits for.
    pub(super) fn end(&self, delay: Duration) {
        self.lost.store(true, Ordering::Release);
        // Full: it was asked to end before.
        let _ = self.end.try_send(delay);
    }

    /// Waits until the session is closed, for `grace` at most; says whether it is.
    pub(super) fn await_end(&self, grace: Duration) -> bool {
        matches!(self.ended.recv_timeout(grace), Err(RecvTimeoutError::Disconnected))
    }
}

/// The listener runs on the client's own io thread: it may neither wait nor call.
fn listen(client: &ZooKeeper, closed: &Arc<AtomicBool>, lost: &Arc<AtomicBool>, wake: Sender<()>) {
    let (closed, lost) = (Arc::clone(closed), Arc::clone(lost));
    client.add_listener(move |state| {
        if state == ZkState::Closed {
            closed.store(true, Ordering::Release);
        }
        if state != ZkState::Connected {
            lost.store(true, Ordering::Release);
            let _ = wake.try_send(());
        }
    });
}

/// Closes the session, again and again until the client is closed (or so long that its io thread must be gone).
fn close(shared: &Shared, session_timeout: Duration) {
    let started = Instant::now();
    while !shared.closed.load(Ordering::Acquire) && started.elapsed() < 3 * session_timeout {
        match panics::catch(|| shared.client.close()) {
            Ok(Err(ZkError::ConnectionLoss)) => thread::sleep(CLOSE_PAUSE),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_clients_live_and_no_more() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut living: Vec<_> =
            (0..MAX_LIVING_THREADS).map(|_| Living::register(&count).expect("below the bound")).collect();
        assert!(Living::register(&count).is_none());
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let begin = || {
            let (wake, _woken) = bounded(1);
            Incarnation::begin(silent.local_addr().unwrap(), Duration::from_millis(300), &count, wake)
        };
        assert!(begin().is_err_and(|reason| reason.contains("still hang")));
        living.pop();
        // A server that accepts and says nothing: the call ends at its deadline, and the client by itself once the server is gone.
        let begun = begin().expect("one may live again");
        let deadline = Instant::now() + Duration::from_millis(100);
        assert!(matches!(begun.call(deadline, |client| client.exists("/", false)), Outcome::None("no answer in time")));
        assert!(Instant::now() < deadline + Duration::from_secs(5));
        begun.end(Duration::ZERO);
        assert_eq!(count.load(Ordering::Relaxed), MAX_LIVING_THREADS, "it hangs");
        drop(silent);
        assert!(begun.await_end(Duration::from_secs(60)));
    }
}
