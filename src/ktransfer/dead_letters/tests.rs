//! Tests of the thread that stores letters, with a broker in memory.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::unbounded;

use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{AppendFailure, Message, Stored};
use crate::ktransfer::job::{LetterError, WorkerMessage};
use crate::ktransfer::metrics::Metrics;
use crate::ktransfer::test_fixtures::job;
use crate::metrics::Registry;

struct Rig {
    broker: MemoryBroker,
    letters: ModuleLetters,
    queue: Receiver<Letter>,
    registry: Registry,
    inbox: (Sender<WorkerMessage>, Receiver<WorkerMessage>),
    n_made: AtomicUsize,
}

impl Rig {
    fn new() -> Rig {
        let broker = MemoryBroker::new();
        broker.create_topic("dead", 1);
        let (sender, queue) = channel();
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).of_module("m", "t");
        let health = Health::new().component("dead letters of m");
        let letters = ModuleLetters::new(sender, "m".into(), "dead".into(), metrics, health);
        Rig { broker, letters, queue, registry, inbox: unbounded(), n_made: AtomicUsize::new(0) }
    }

    fn send(&self, message: &Message, ticket: u64) -> bool {
        let cause = DeadLetterCause {
            reason: "outcome",
            status: Some(404),
            error: None,
            detail: "http_status_code=404".to_owned(),
            attempts: 1,
            time_ms: 5,
        };
        self.letters.begin(cause).send(message, LetterReply { worker: self.inbox.0.clone(), ticket })
    }

    /// Stores the letters in the queue.
    fn store(&self, make: impl Fn() -> Result<MemoryBroker, String>) {
        let stop = Stop::new();
        let (queue, stopped) = (&self.queue, stop.clone());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                crate::ktransfer::test_backend::wait_until("the queue is empty", || queue.is_empty());
                stopped.trigger();
            });
            store_letters(queue, &stop, || {
                self.n_made.fetch_add(1, Ordering::SeqCst);
                make().map(|broker| Arc::new(broker.producer()) as Arc<_>)
            });
        });
    }

    fn ended(&self) -> Vec<(u64, Result<(), LetterError>)> {
        let ended = |message| match message {
            WorkerMessage::LetterEnded { ticket, result } => (ticket, result),
            _ => panic!("no end of a letter"),
        };
        self.inbox.1.try_iter().map(ended).collect()
    }

    fn count(&self, result: &str) -> String {
        let metrics = String::from_utf8(self.registry.render()).unwrap();
        let begin = format!("ktransfer_dead_letters_total{{module=\"m\",result=\"{result}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&begin)).unwrap().to_owned()
    }
}

#[test]
fn a_letter_is_completed_once_stored_or_not() {
    let rig = Rig::new();
    rig.broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
    rig.broker.fail_next(AppendFailure::Full, Stored::No);
    let message = job(Some(b"k"), None, &[]).message;
    assert!((1..=3).all(|ticket| rig.send(&message, ticket)));
    rig.store(|| Ok(rig.broker.clone()));
    let failed = LetterError::Failed("TimedOut was set by the test".to_owned());
    assert_eq!(rig.ended(), [(1, Err(failed)), (2, Err(LetterError::Busy)), (3, Ok(()))]);
    assert_eq!(rig.n_made.load(Ordering::SeqCst), 1, "all letters share a producer");
    assert_eq!((rig.count("stored"), rig.count("failed")), ("1".to_owned(), "1".to_owned()));
    let stored = rig.broker.messages("dead", 0);
    let letter = DeadLetter::read(stored[0].clone()).unwrap();
    assert_eq!((stored.len(), letter.message.key, letter.message.value), (1, Some(b"k".to_vec()), None));
}

#[test]
fn without_a_producer_each_letter_fails_with_the_reason() {
    let rig = Rig::new();
    let message = job(None, None, &[]).message;
    assert!(rig.send(&message, 1) && rig.send(&message, 2));
    rig.store(|| Err("no broker is registered".to_owned()));
    let failed = || Err(LetterError::Failed("no broker is registered".to_owned()));
    assert_eq!(rig.ended(), [(1, failed()), (2, failed())]);
    assert_eq!(rig.n_made.load(Ordering::SeqCst), 2);
}

#[test]
fn the_letters_of_a_module_are_bounded_by_number_and_bytes() {
    let rig = Rig::new();
    let small = job(None, Some(b"v"), &[]).message;
    assert!((0..MAX_LETTERS as u64).all(|ticket| rig.send(&small, ticket)));
    assert!(!rig.send(&small, 999), "the share of the module is used up");
    rig.store(|| Ok(rig.broker.clone()));
    assert_eq!(rig.ended().len(), MAX_LETTERS);
    let huge = job(None, Some(&vec![0; 2 * MAX_BYTES]), &[]).message;
    assert!(rig.send(&huge, 1000), "a letter of any size is sent when no other is");
    assert!(!rig.send(&small, 1001));
}
