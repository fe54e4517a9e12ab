//! The gate in front of a producer engine: it looks topics up, holds appends until their topic is known, and refuses at
//! once what cannot work.
//!
//! An append to a known topic goes straight to the engine. Another one waits for the thread `kafka-metadata`
//! (`metadata_loop`), which also checks whether a broker can be reached.
//!
//! Invariants: the appends of each topic reach the engine in the order of the calls, since the lock of the table is held
//! while one is submitted; the time in the table counts towards an append's timeout; at its deadline an append fails,
//! whatever the metadata thread waits for.

mod metadata_loop;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{info, warn};

use super::topics::{HasDeadline, Known, LookupAnswer, LookupResult, TopicTable};
use super::{Acks, AppendError, AppendFailure, Completion, ProducerConfig, Record, Stored};
use crate::locks::{lock, read, write};
use crate::supervise::Supervisor;
use metadata_loop::{MAX_LOOKUP_TIME, MetadataLoop};

/// An engine that appends.
pub(super) trait ProducerEngine<C: Completion>: Send + Sync + 'static {
    /// Takes an append for a topic with this number of partitions; never blocks. A chosen partition exists.
    fn submit(&self, append: PendingAppend<C>, partition_count: i32) -> Result<(), FailedAppend<C>>;
}

/// A client for metadata requests. Used by one thread; it reconnects by itself.
pub(super) trait MetadataClient: Send + 'static {
    /// Fails, with the reason, if no broker answers within `wait`.
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String>;

    /// Looks a topic up; returns within `wait`. Brokers may create a topic that does not exist.
    fn look_up(&mut self, topic: &str, wait: Duration) -> LookupAnswer;

    /// Looks a known topic up, for new partitions; returns within `wait`. Never creates it again if it was deleted.
    fn refresh(&mut self, topic: &str, wait: Duration) -> LookupAnswer;
}

/// An append that has not completed.
pub(super) struct PendingAppend<C> {
    pub(super) record: Record,
    pub(super) acks: Acks,
    pub(super) completion: C,
    /// Time by which the append must complete.
    pub(super) deadline: Instant,
}

impl<C> HasDeadline for PendingAppend<C> {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// An append that failed at once: its completion, and the error to complete it with.
pub(super) type FailedAppend<C> = (C, AppendError);

/// The gate of a producer whose engine is `E`.
pub(super) struct MetadataGate<C: Completion, E> {
    pub(super) engine: E,
    state: Arc<GateState<C>>,
    max_message_bytes: usize,
    timeout: Duration,
    reachability: Reachability,
}

/// What the gate and the engine share.
pub(super) struct GateState<C> {
    topics: RwLock<TopicTable<Waiting<C>>>,
    is_closed: AtomicBool,
    /// Known topics that an engine found missing, to look up again; there are no more than known topics.
    invalidated: Mutex<HashSet<String>>,
    /// Wakes the metadata thread. One token is enough, so nothing is lost if the channel is full.
    wake: Sender<()>,
    woken: Receiver<()>,
    lookup_count: AtomicU64,
}

/// An append in the table, in a mutex: the table is shared by threads, and a completion need not be `Sync`.
struct Waiting<C> {
    append: Mutex<PendingAppend<C>>,
    deadline: Instant,
}

impl<C> Waiting<C> {
    fn new(append: PendingAppend<C>) -> Self {
        Waiting { deadline: append.deadline, append: Mutex::new(append) }
    }

    fn into_append(self) -> PendingAppend<C> {
        crate::locks::into_inner(self.append)
    }
}

impl<C> HasDeadline for Waiting<C> {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// Whether a broker can be reached, by the latest checks of the metadata thread.
struct Reachability {
    /// Whether appends are refused at once.
    is_refusing: AtomicBool,
    state: Mutex<Result<(), String>>,
}

impl<C: Completion> GateState<C> {
    /// Returns a state without known topics.
    pub(super) fn new(config: &ProducerConfig) -> Arc<Self> {
        let max_lookup_time = (MAX_LOOKUP_TIME * 2).min(config.timeout);
        let topics = RwLock::new(TopicTable::new(config.max_in_flight.max(1), max_lookup_time));
        let (wake, woken) = bounded(1);
        Arc::new(GateState {
            topics,
            is_closed: AtomicBool::new(false),
            invalidated: Mutex::default(),
            wake,
            woken,
            lookup_count: AtomicU64::new(0),
        })
    }

    /// Whether the producer is being closed.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Converts the error of an append to a topic that was known to exist. A broker that has just started has no topics
    /// yet, so "unknown topic" counts as a passing failure and causes a lookup. Only the result of that lookup can make
    /// the topic unknown.
    pub(super) fn reconsider(&self, topic: &str, error: AppendError) -> AppendError {
        let kind = match (error.kind, error.stored) {
            (AppendFailure::UnknownTopic | AppendFailure::UnknownPartition, Stored::No) => AppendFailure::Unreachable,
            (AppendFailure::UnknownTopic | AppendFailure::UnknownPartition, Stored::Unknown) => AppendFailure::TimedOut,
            _ => return error,
        };
        self.invalidate(topic);
        AppendError { kind, reason: format!("the brokers currently report topic {topic} as unknown"), ..error }
    }

    /// Looks a known topic up again; new appends to it wait for the result.
    pub(super) fn invalidate(&self, topic: &str) {
        // The metadata thread applies it, since the caller may hold the lock of the table.
        lock(&self.invalidated).insert(topic.to_owned());
        let _ = self.wake.try_send(());
    }

    fn apply_invalidated(&self) {
        let invalidated = std::mem::take(&mut *lock(&self.invalidated));
        if !invalidated.is_empty() {
            let mut topics = self.write_topics();
            invalidated.iter().for_each(|topic| topics.invalidate(topic, Instant::now()));
        }
    }

    fn read_topics(&self) -> RwLockReadGuard<'_, TopicTable<Waiting<C>>> {
        read(&self.topics)
    }

    fn write_topics(&self) -> RwLockWriteGuard<'_, TopicTable<Waiting<C>>> {
        write(&self.topics)
    }
}

impl<C: Completion, E: ProducerEngine<C>> MetadataGate<C, E> {
    /// Makes the gate of `engine` and starts the metadata thread. A lookup takes at most `wait`.
    pub(super) fn new(
        engine: E,
        state: Arc<GateState<C>>,
        config: &ProducerConfig,
        client: impl MetadataClient,
        wait: Duration,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let (max_message_bytes, timeout) = (config.max_message_bytes, config.timeout);
        let gate =
            Arc::new(MetadataGate { engine, state, max_message_bytes, timeout, reachability: Reachability::new() });
        let metadata_loop = MetadataLoop::new(Arc::clone(&gate), client, wait);
        let stop = supervisor.stop().clone();
        // A task, which may end at any time: it ends when the producer is closed. Until then it looks topics up, also
        // after the supervisor's stop.
        supervisor.spawn_task("kafka-metadata", move || metadata_loop.run(&stop));
        gate
    }

    /// [`super::Producer::append`].
    pub(super) fn append(&self, record: Record, acks: Acks, completion: C) {
        let now = Instant::now();
        let append = PendingAppend { record, acks, completion, deadline: now + self.timeout };
        if let Err((completion, error)) = self.start(append, now) {
            completion.complete(Err(error));
        }
    }

    /// Refuses further appends and fails those that wait for their topic. The engine completes its own.
    pub(super) fn close(&self) {
        self.state.is_closed.store(true, Ordering::Release);
        // Every append reads `is_closed` under this lock, so afterwards none reaches the engine.
        let waiting = self.state.write_topics().drain();
        for waiting in waiting {
            waiting.into_append().completion.complete(Err(closed_error()));
        }
        let _ = self.state.wake.try_send(());
    }

    /// [`super::Producer::reachable`].
    pub(super) fn reachable(&self) -> Result<(), String> {
        lock(&self.reachability.state).clone()
    }

    /// [`super::Producer::topic_lookups`].
    pub(super) fn topic_lookups(&self) -> u64 {
        self.state.lookup_count.load(Ordering::Relaxed)
    }

    fn start(&self, append: PendingAppend<C>, now: Instant) -> Result<(), FailedAppend<C>> {
        let limit = self.max_message_bytes;
        if append.record.value.len() > limit {
            let reason = format!("larger than {limit} bytes (max_request_size_bytes)");
            return Err(refused(append, AppendFailure::TooLarge, reason));
        }
        let known = |topics: &TopicTable<Waiting<C>>, append: &PendingAppend<C>| {
            topics.known(&append.record.topic, append.record.partition, now)
        };
        {
            let topics = self.state.read_topics();
            if self.state.is_closed() {
                return Err((append.completion, closed_error()));
            }
            if self.reachability.is_refusing.load(Ordering::Relaxed) {
                return Err(refused(append, AppendFailure::Unreachable, self.reachability.reason()));
            }
            match known(&topics, &append) {
                Known::Yes(partition_count) => return self.submit(append, partition_count),
                Known::No => return Err(unknown_topic(append)),
                Known::NeedsLookup => {}
            }
        }
        let mut topics = self.state.write_topics();
        if self.state.is_closed() {
            return Err((append.completion, closed_error()));
        }
        // The result of a lookup may have come between the two locks.
        match known(&topics, &append) {
            Known::Yes(partition_count) => return self.submit(append, partition_count),
            Known::No => return Err(unknown_topic(append)),
            Known::NeedsLookup => {}
        }
        let topic = Arc::clone(&append.record.topic);
        topics.add(&topic, Waiting::new(append), now).map_err(|waiting| {
            let reason = "too many messages wait for a topic lookup".to_owned();
            refused(waiting.into_append(), AppendFailure::Full, reason)
        })?;
        drop(topics);
        let _ = self.state.wake.try_send(());
        Ok(())
    }

    /// Submits an append to the engine. The caller holds the lock of the table, which keeps the order.
    fn submit(&self, append: PendingAppend<C>, partition_count: i32) -> Result<(), FailedAppend<C>> {
        let chosen = append.record.partition;
        if let Some(partition) = chosen.filter(|partition| !(0..partition_count).contains(partition)) {
            let topic = &append.record.topic;
            let reason =
                format!("topic {topic} has no partition {partition}: it has {partition_count} partitions, from 0 on");
            return Err(refused(append, AppendFailure::UnknownPartition, reason));
        }
        self.engine.submit(append, partition_count)
    }

    /// Fails the appends whose deadline passed in the table.
    fn expire(&self, now: Instant) {
        if self.state.read_topics().next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let expired = self.state.write_topics().expire(now);
        for waiting in expired {
            let append = waiting.into_append();
            let reason = format!("the lookup of topic {} timed out", append.record.topic);
            append.completion.complete(Err(not_stored(AppendFailure::Unreachable, reason)));
        }
    }

    /// Handles the answer to a lookup: submits or fails the appends that waited for the result.
    fn handle_answer(&self, topic: &str, answer: LookupAnswer) {
        let mut failed = Vec::new();
        let mut topics = self.state.write_topics();
        let Some((result, waiting)) = topics.answer(topic, answer, Instant::now()) else { return };
        for waiting in waiting {
            let append = waiting.into_append();
            let submitted = match &result {
                LookupResult::Exists(partition_count) => self.submit(append, *partition_count),
                LookupResult::Unknown => Err(unknown_topic(append)),
                LookupResult::Unreachable(reason) => {
                    let reason = format!("the lookup of topic {topic} failed: {reason}");
                    Err(refused(append, AppendFailure::Unreachable, reason))
                }
                LookupResult::Refused(reason) => {
                    let reason = format!("the brokers refused topic {topic}: {reason}");
                    Err(refused(append, AppendFailure::Refused, reason))
                }
            };
            failed.extend(submitted.err());
        }
        drop(topics);
        for (completion, error) in failed {
            completion.complete(Err(error));
        }
    }
}

impl Reachability {
    fn new() -> Self {
        Reachability {
            is_refusing: AtomicBool::new(false),
            state: Mutex::new(Err("no broker has responded yet".to_owned())),
        }
    }

    fn reason(&self) -> String {
        let state = lock(&self.state);
        state.clone().err().unwrap_or_else(|| "no broker can be reached".to_owned())
    }

    fn set(&self, outcome: Result<(), String>, is_refusing: bool) {
        let was_refusing = self.is_refusing.swap(is_refusing, Ordering::Relaxed);
        match (&outcome, was_refusing, is_refusing) {
            (Err(reason), false, true) => warn!("no broker can be reached, commits fail until one can: {reason}"),
            (Ok(()), true, _) => info!("a broker can be reached again"),
            _ => {}
        }
        *lock(&self.state) = outcome;
    }
}

/// Returns the error of an append that is certainly not stored.
pub(super) fn not_stored(kind: AppendFailure, reason: String) -> AppendError {
    AppendError { kind, stored: Stored::No, reason }
}

fn refused<C>(append: PendingAppend<C>, kind: AppendFailure, reason: String) -> FailedAppend<C> {
    (append.completion, not_stored(kind, reason))
}

fn unknown_topic<C>(append: PendingAppend<C>) -> FailedAppend<C> {
    let reason = format!("topic {} does not exist", append.record.topic);
    refused(append, AppendFailure::UnknownTopic, reason)
}

fn closed_error() -> AppendError {
    not_stored(AppendFailure::Closed, "the producer is being closed".to_owned())
}
