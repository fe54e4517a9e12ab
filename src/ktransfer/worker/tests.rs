//! Tests of one worker alone: the test is its dispatcher, its backend and the thread that stores letters.

use super::*;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Mutex;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::dead_letters::Letter;
use crate::ktransfer::group::Generation;
use crate::ktransfer::job::{JobEnd, SkipOrder, Unpushable, WindowId};
use crate::ktransfer::outcomes::{OutcomeTable, TransportError};
use crate::ktransfer::test_backend::wait_until;
use crate::ktransfer::test_fixtures::{complete, context_with_letters, job, module_config};
use crate::ktransfer::turn::Turn;
use crate::metrics::Registry;

struct Rig {
    worker: Worker,
    inbox: Sender<WorkerMessage>,
    reports: Receiver<WorkerReport>,
    letters: Receiver<Letter>,
    /// The keys of the pushes.
    pushed: Arc<Mutex<Vec<String>>>,
    /// Their backends.
    servers: Arc<Mutex<Vec<String>>>,
}

/// Ends each push without an answer. Messages with the key `retried` are refused instead.
struct NoAnswer {
    pushed: Arc<Mutex<Vec<String>>>,
    servers: Arc<Mutex<Vec<String>>>,
}

impl PushAttempt for NoAnswer {
    fn url(&self, _: &Job, server: &str) -> String {
        server.to_owned()
    }

    fn push(&mut self, job: &Job, url: &str, _: u32) -> Option<AttemptOutcome> {
        let key = String::from_utf8(job.message.key.clone().unwrap_or_default()).unwrap();
        self.pushed.lock().unwrap().push(key.clone());
        self.servers.lock().unwrap().push(url.to_owned());
        Some(match key.as_str() {
            "retried" => AttemptOutcome::Answered { status: 404, retry_after: None },
            _ => AttemptOutcome::Failed { error: Some(TransportError::Closed), reason: "reset".to_owned() },
        })
    }
}

impl Rig {
    fn new(n_backends: usize, adapt: impl FnOnce(&mut ModuleConfig)) -> Rig {
        let servers: Vec<String> = (0..n_backends).map(|number| format!("10.0.0.{number}:80")).collect();
        let mut config = module_config(&servers.iter().map(String::as_str).collect::<Vec<_>>());
        let table = serde_yaml::from_str("{closed: dead_letter, 200-299: ok, default: retry}").unwrap();
        config.outcomes = OutcomeTable::from_yaml(&table).unwrap();
        config.worker_num = NonZeroUsize::MIN;
        // A letter that could not be stored is sent again at once.
        (config.retry.first_pause, config.retry.max_pause) = (Duration::ZERO, Duration::ZERO);
        adapt(&mut config);
        let (context, letters) = context_with_letters(config, &Registry::new());
        let ((inbox, received), (reports, reported)) = (unbounded(), unbounded());
        let channels = WorkerChannels { inbox: received, reports, workers: [inbox.clone()].into() };
        let (pushed, servers) = Default::default();
        let pusher = NoAnswer { pushed: Arc::clone(&pushed), servers: Arc::clone(&servers) };
        let worker = Worker::new(0, Arc::new(context), channels, Box::new(pusher));
        Rig { worker, inbox, reports: reported, letters, pushed, servers }
    }

    fn send(&self, key: &str, offset: i64, unpushable: Option<Unpushable>) {
        let mut job = job(Some(key.as_bytes()), Some(b"v"), &[]);
        (job.message.offset, job.unpushable) = (offset, unpushable);
        self.inbox.send(WorkerMessage::Job(Box::new(job))).unwrap();
    }

    fn letter(&self) -> Letter {
        self.letters.try_recv().expect("a letter is to be stored")
    }

    /// Returns the offsets of the jobs that were done since the last call.
    fn done(&self) -> Vec<i64> {
        let done = self.reports.try_iter().filter_map(|report| match report {
            WorkerReport::Ack(ack) if ack.end == JobEnd::Done => Some(ack.offset),
            _ => None,
        });
        done.collect()
    }

    fn skip(&mut self, offset: i64, stores_letter: bool, is_cancelled: bool) -> Arc<SkipOrder> {
        let turn = Turn::default();
        if is_cancelled {
            turn.cancel();
        }
        let (partition, generation, window) = (3, Generation(1), WindowId(1));
        let order = SkipOrder { partition, generation, window, offset, by: "ann".into(), stores_letter, turn };
        let order = Arc::new(order);
        self.inbox.send(WorkerMessage::Skip(Arc::clone(&order))).unwrap();
        self.worker.receive_all();
        order
    }
}

#[test]
fn dead_letters_go_on_while_all_backends_are_ejected_or_the_rate_is_reached() {
    let ejected = |config: &mut ModuleConfig| {
        config.ejection.failures = Some(1);
        config.ejection.interval = Duration::from_secs(60);
    };
    let limited = |config: &mut ModuleConfig| config.max_pushes_per_second = NonZeroU64::new(1);
    for (mut rig, n_pushes) in [(Rig::new(2, ejected), 2), (Rig::new(1, limited), 0)] {
        if let Some(rate) = &rig.worker.context.settings().push_rate {
            // Ten minutes of it are used up.
            for _ in 0..600 {
                let _ = rate.permit(&mut None, Instant::now());
            }
        }
        for number in 0..4 {
            rig.send(&format!("k{number}"), number, None);
        }
        rig.send("k8", 8, Some(Unpushable::Filtered));
        while rig.worker.step() {}
        assert_eq!((rig.pushed.lock().unwrap().len(), rig.letters.len()), (n_pushes, n_pushes + 1));
        assert!(rig.worker.held_until.is_some(), "no push may begin");
        // One that could not be stored is sent again, and one that needs no push is sent at once.
        complete(rig.letter(), false);
        rig.send("k9", 9, Some(Unpushable::Filtered));
        while rig.worker.step() {}
        assert_eq!(rig.letters.len(), n_pushes + 2);
        while let Ok(letter) = rig.letters.try_recv() {
            complete(letter, true);
        }
        while rig.worker.step() {}
        let mut done = rig.done();
        done.sort_unstable();
        let expected: Vec<i64> = (0..n_pushes as i64).chain([8, 9]).collect();
        assert_eq!((done, rig.pushed.lock().unwrap().len()), (expected, n_pushes));
        assert_eq!(rig.worker.context.slots.in_use(), 0, "no slot is kept");
    }
}

#[test]
fn no_push_begins_while_no_backend_has_an_address() {
    // Nothing looks the name up.
    let mut rig = Rig::new(0, |config| config.backend_servers = vec!["pending.invalid:80".to_owned()]);
    rig.send("k0", 0, None);
    rig.send("k1", 1, Some(Unpushable::Filtered));
    while rig.worker.step() {}
    let soon = Instant::now() + Duration::from_secs(1);
    assert!(rig.worker.held_until.is_some_and(|until| until <= soon) && rig.worker.may_block());
    assert_eq!((rig.pushed.lock().unwrap().len(), rig.letters.len(), rig.worker.context.slots.in_use()), (0, 1, 0));
    let mut config = rig.worker.context.config.clone();
    config.backend_servers = vec!["10.0.0.1:80".to_owned()];
    rig.worker.context.change(&config);
    while rig.worker.step() {}
    assert_eq!(rig.pushed.lock().unwrap()[..], ["k0"]);
}

#[test]
fn a_skip_that_was_cancelled_leaves_the_message_its_pause() {
    let pause = Duration::from_secs(60);
    let mut rig = Rig::new(1, |config| (config.retry.first_pause, config.retry.max_pause) = (pause, pause));
    rig.send("retried", 7, None);
    while rig.worker.step() {}
    let due = rig.worker.queues.next_due().expect("it waits");
    rig.skip(7, true, true);
    assert_eq!((rig.worker.queues.next_due(), rig.done()), (Some(due), vec![]));
    assert!(!rig.worker.step() && rig.pushed.lock().unwrap().len() == 1);
    rig.skip(7, false, false);
    assert_eq!(rig.done(), [7]);
}

#[test]
fn a_message_whose_dead_letter_is_not_stored_is_skipped_without_one() {
    let mut rig = Rig::new(1, |_| {});
    for (key, offset) in [("a", 0), ("a", 1), ("b", 2)] {
        rig.send(key, offset, None);
    }
    while rig.worker.step() {}
    // The letter of `a` is on its way, that of `b` has failed and waits.
    let (on_its_way, failed) = (rig.letter(), rig.letter());
    complete(failed, false);
    rig.worker.receive_all();
    for offset in [0, 2] {
        let order = rig.skip(offset, true, false);
        assert!(rig.done().is_empty() && order.turn.cancel(), "it was given up already");
        assert!(rig.skip(offset, false, false).turn.is_taken());
        assert_eq!(rig.done(), [offset]);
    }
    while rig.worker.step() {}
    let next = rig.letter();
    complete(on_its_way, true);
    while rig.worker.step() {}
    assert!(rig.done().is_empty(), "the letter of a skipped message ends nothing");
    complete(next, true);
    while rig.worker.step() {}
    assert_eq!(rig.done(), [1], "the next message of the key went on");
}

#[test]
fn a_lease_that_stays_invalid_is_looked_at_less_and_less_often() {
    let mut rig = Rig::new(1, |_| {});
    rig.send("k", 0, None);
    rig.worker.receive_all();
    let (mut queue, mut pending) = rig.worker.queues.take_fresh().unwrap();
    for pause_ms in [50, 100, 200, 400, 800, 800, 800] {
        let (before, pause) = (Instant::now(), Duration::from_millis(pause_ms));
        rig.worker.wait_for_lease(queue, pending);
        let due = rig.worker.queues.next_due().expect("it waits");
        assert!(before + pause <= due && due <= Instant::now() + pause, "{pause_ms}");
        (queue, pending) = rig.worker.queues.take_where(|_| true).unwrap();
    }
}

#[test]
fn a_retry_waits_a_bounded_time_for_another_backend_that_has_its_share() {
    for is_freed in [true, false] {
        let mut rig = Rig::new(2, |_| {});
        // The only push that the second backend may have.
        let settings = rig.worker.context.settings();
        let (push, now) = (NextPush::default(), Instant::now());
        let choice = settings.backends.choose(&mut BackendRotation::starting_at(1), push, now);
        let Choice::Use(busy) = choice else { panic!("{choice:?}") };
        rig.send("retried", 7, None);
        while rig.worker.step() {}
        assert_eq!(rig.servers.lock().unwrap()[..], ["10.0.0.0:80"], "the retry waits");
        if is_freed {
            let _ = settings.backends.end(busy, PushVerdict::Good, now);
        }
        wait_until("the retry is made", || {
            rig.worker.step();
            rig.pushed.lock().unwrap().len() > 1
        });
        let expected = if is_freed { "10.0.0.1:80" } else { "10.0.0.0:80" };
        assert_eq!(rig.servers.lock().unwrap()[1], expected);
        assert!(is_freed || now.elapsed() >= Duration::from_secs(1));
    }
}
