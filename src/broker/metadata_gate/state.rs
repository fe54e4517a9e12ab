//! The state that the gate, its metadata thread and the engine share: the table of topics, and the interfaces between
//! them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::broker::topic_rules::TopicRules;
use crate::broker::topics::{HasDeadline, LookupAnswer, TopicTable};
use crate::broker::{Acks, AppendError, AppendFailure, Completion, ProducerConfig, Record, Stored};
use crate::locks::{lock, read, write};

/// Longest time of one lookup.
pub(super) const MAX_LOOKUP_TIME: Duration = Duration::from_secs(2);

/// An engine that appends.
pub(in crate::broker) trait ProducerEngine<C: Completion>: Send + Sync + 'static {
    /// Takes an append for a topic with this number of partitions; never blocks. A chosen partition exists.
    fn submit(&self, append: PendingAppend<C>, partition_count: i32) -> Result<(), NotSubmitted<C>>;

    /// Returns the size of a batch with this record alone, as it is sent; 0 if it is not known before.
    fn batch_bytes(&self, _record: &Record) -> usize {
        0
    }

    /// Takes over the known rules of a topic.
    fn set_rules(&self, _topic: &Arc<str>, _rules: TopicRules) {}
}

/// A topic, and the answer to its lookup.
pub(in crate::broker) type TopicAnswer = (Arc<str>, LookupAnswer);

/// A client for metadata requests. Used by one thread; it reconnects by itself.
pub(in crate::broker) trait MetadataClient: Send + 'static {
    /// Fails, with the reason, if no broker answers within `wait`.
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String>;

    /// Looks topics up with one request; returns within `wait`. Fails, with the reason, if no broker answers. Brokers
    /// may create the topics that do not exist.
    fn look_up(&mut self, topics: &[Arc<str>], wait: Duration) -> Result<Vec<TopicAnswer>, String>;

    /// Looks known topics up, for new partitions. A client that can look up without creating does so, so that a deleted
    /// topic does not come back.
    fn refresh(&mut self, topics: &[Arc<str>], wait: Duration) -> Result<Vec<TopicAnswer>, String> {
        self.look_up(topics, wait)
    }

    /// Reads the rules of topics; returns within `wait`. The result lacks the topics whose rules cannot be read.
    fn rules(&mut self, _topics: &[Arc<str>], _wait: Duration) -> HashMap<Arc<str>, TopicRules> {
        HashMap::new()
    }
}

/// An append that has not completed.
pub(in crate::broker) struct PendingAppend<C> {
    pub(in crate::broker) record: Record,
    pub(in crate::broker) acks: Acks,
    pub(in crate::broker) completion: C,
    /// Time by which the append must complete.
    pub(in crate::broker) deadline: Instant,
}

impl<C> HasDeadline for PendingAppend<C> {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// An append that failed at once: its completion, and the error to complete it with.
pub(in crate::broker) type FailedAppend<C> = (C, AppendError);

/// An append that an engine did not take.
pub(in crate::broker) enum NotSubmitted<C> {
    /// It failed.
    Failed(FailedAppend<C>),
    /// The engine does not know the partition any more: the topic must be looked up again.
    NeedsLookup(Box<PendingAppend<C>>),
}

/// The state that the gate and the engine share.
pub(in crate::broker) struct GateState<C> {
    pub(super) topics: RwLock<TopicTable<Waiting<C>>>,
    pub(super) is_closed: AtomicBool,
    /// Known topics that an engine found missing, to look up again; there are no more than known topics.
    pub(super) invalidated: Mutex<HashSet<String>>,
    /// Known topics to which a message was refused, to refresh; there are no more than known topics.
    pub(super) refused: Mutex<HashSet<Arc<str>>>,
    /// Whether a broker confirmed a message since the latest check whether a broker can be reached.
    pub(super) has_confirmed: AtomicBool,
    /// Wakes the metadata thread. One token is enough, so nothing is lost if the channel is full.
    pub(super) wake: Sender<()>,
    pub(super) woken: Receiver<()>,
    pub(super) lookup_count: AtomicU64,
}

/// An append in the table, in a mutex: the table is shared by threads, and a completion need not be `Sync`.
pub(super) struct Waiting<C> {
    append: Mutex<PendingAppend<C>>,
    deadline: Instant,
}

impl<C> Waiting<C> {
    pub(super) fn new(append: PendingAppend<C>) -> Self {
        Waiting { deadline: append.deadline, append: Mutex::new(append) }
    }

    pub(super) fn into_append(self) -> PendingAppend<C> {
        crate::locks::into_inner(self.append)
    }
}

impl<C> HasDeadline for Waiting<C> {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl<C: Completion> GateState<C> {
    /// Returns a state without known topics.
    pub(in crate::broker) fn new(config: &ProducerConfig) -> Arc<Self> {
        let max_lookup_time = (MAX_LOOKUP_TIME * 2).min(config.timeout);
        let topics = RwLock::new(TopicTable::new(config.max_in_flight.max(1), max_lookup_time));
        let (wake, woken) = bounded(1);
        Arc::new(GateState {
            topics,
            is_closed: AtomicBool::new(false),
            invalidated: Mutex::default(),
            refused: Mutex::default(),
            has_confirmed: AtomicBool::new(false),
            wake,
            woken,
            lookup_count: AtomicU64::new(0),
        })
    }

    /// Whether the producer is being closed.
    pub(in crate::broker) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Converts the error of an append to a topic that was known to exist. A broker that has just started has no topics
    /// yet, so "unknown topic" counts as a passing failure and causes a lookup. Only the result of that lookup can make
    /// the topic unknown.
    pub(in crate::broker) fn reconsider(&self, topic: &str, error: AppendError) -> AppendError {
        let kind = match (error.kind, error.stored) {
            (AppendFailure::UnknownTopic | AppendFailure::UnknownPartition, Stored::No) => AppendFailure::Unreachable,
            (AppendFailure::UnknownTopic | AppendFailure::UnknownPartition, Stored::Unknown) => AppendFailure::TimedOut,
            _ => return error,
        };
        self.invalidate(topic);
        AppendError { kind, reason: format!("the brokers currently report topic {topic} as unknown"), ..error }
    }

    /// Looks a known topic up again; new appends to it wait for the result.
    pub(in crate::broker) fn invalidate(&self, topic: &str) {
        // The metadata thread applies it, since the caller may hold the lock of the table.
        lock(&self.invalidated).insert(topic.to_owned());
        let _ = self.wake.try_send(());
    }

    /// Refreshes a known topic soon, because a message to it was refused. New appends do not wait for it.
    pub(in crate::broker) fn refresh_soon(&self, topic: &Arc<str>) {
        // The metadata thread looks at it at the latest with its next check.
        let mut refused = lock(&self.refused);
        if !refused.contains(topic) {
            refused.insert(Arc::clone(topic));
        }
    }

    /// A broker confirmed a message.
    pub(in crate::broker) fn confirmed(&self) {
        // Written only if it changes, because all threads of an engine share it.
        if !self.has_confirmed.load(Ordering::Relaxed) {
            self.has_confirmed.store(true, Ordering::Relaxed);
        }
    }

    /// Applies [`refresh_soon`](Self::refresh_soon).
    pub(super) fn apply_refused(&self) {
        let refused = std::mem::take(&mut *lock(&self.refused));
        if !refused.is_empty() {
            let mut topics = self.write_topics();
            refused.iter().for_each(|topic| topics.refresh_soon(topic));
        }
    }

    /// Applies [`invalidate`](Self::invalidate).
    pub(super) fn apply_invalidated(&self) {
        let invalidated = std::mem::take(&mut *lock(&self.invalidated));
        if !invalidated.is_empty() {
            let mut topics = self.write_topics();
            invalidated.iter().for_each(|topic| topics.invalidate(topic, Instant::now()));
        }
    }

    pub(super) fn read_topics(&self) -> RwLockReadGuard<'_, TopicTable<Waiting<C>>> {
        read(&self.topics)
    }

    pub(super) fn write_topics(&self) -> RwLockWriteGuard<'_, TopicTable<Waiting<C>>> {
        write(&self.topics)
    }
}

/// Returns the error of an append that is certainly not stored.
pub(in crate::broker) fn not_stored(kind: AppendFailure, reason: String) -> AppendError {
    AppendError { kind, stored: Stored::No, reason }
}
