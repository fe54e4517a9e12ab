//! The state that the threads of a producer share: the queues of the levels, and the leaders of the partitions.
//!
//! Locks: the lock of a [`Level`] is taken before that of the [`ClusterView`], never after it; those of several levels
//! in their order. Messages are ended without a lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use super::leaders::{ClusterView, LeaderHint};
use super::level::{AfterAppend, BatchLimits, Level, LevelState};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{EndedMessage, EndedWithReason, Limits, Outcome, Stored};
use super::stale_topics::StaleTopics;
use super::topic_limit::TopicLimit;
use crate::kafka::compression::Codec;
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::{Connector, Disconnect};
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataResponse};
use crate::kafka::produce::NodeAddress;
use crate::locks::{lock, wait_timeout};
use crate::supervise::Supervisor;

/// Upper bound of [`ProducerConfig::timeout`] and [`ProducerConfig::linger`].
const MAX_CONFIGURED_TIME: Duration = Duration::from_secs(3600);
/// Number of topics whose leaders are passed to a level at a time, or that are removed from the levels.
const MAX_PASSED_UNDER_LOCK: usize = 32;

/// Pause before another attempt to start a thread.
const START_PAUSE: Duration = Duration::from_secs(1);

/// Settings of a producer.
#[derive(Clone, Copy, Debug)]
pub struct ProducerConfig {
    /// Size limits and retry settings; [`Limits::is_idempotent`] is set by level.
    pub limits: Limits,
    /// Compression of the batches.
    pub codec: Codec,
    /// Longest time between two checks of the deadlines: the usual timeout of a message. At most an hour.
    pub timeout: Duration,
    /// Largest number of messages of an acks level that have not ended.
    pub max_messages: usize,
    /// Time for which a message may wait for others although it could be sent (`linger.ms`). At most an hour.
    pub linger: Duration,
    /// Longest time that a broker may wait for its replicas (`request.timeout.ms`).
    pub ack_timeout: Duration,
}

/// The state that the threads of a producer share.
pub(super) struct Shared<M> {
    pub(super) connector: Connector,
    pub(super) config: ProducerConfig,
    levels: [Arc<Level<M>>; 3],
    view: Mutex<ClusterView>,
    stale_topics: StaleTopics,
    /// Ends the metadata request in progress.
    metadata_disconnect: Disconnect,
    is_closed: AtomicBool,
    /// Whether [`Shared::close`] waits for the end of all messages.
    is_closing: AtomicBool,
    closing: Mutex<()>,
    all_ended: Condvar,
    /// Number of [`Ending`]s.
    ending_count: AtomicUsize,
    deadline_thread: Mutex<Option<thread::Thread>>,
    supervisor: Supervisor,
    /// Runs the sender of a level to a broker until it ends.
    run_sender: RunSender<M>,
    on_possible_refusal: OnceLock<RefusalHandler>,
}

/// Receives the topics that a broker may have refused at acks=0.
type RefusalHandler = Box<dyn Fn(&Arc<str>) + Send + Sync>;

/// Runs a sender; a pointer, because senders use [`Shared`] themselves.
pub(super) type RunSender<M> = fn(Arc<Shared<M>>, Arc<Level<M>>, BrokerId);

/// Exists while a thread takes messages out of the queue and ends them, so that [`Shared::close`] does not return
/// in between.
pub(super) struct Ending<'a, M: ProducerMessage>(&'a Shared<M>);

impl<M: ProducerMessage> Ending<'_, M> {
    /// Ends messages that were taken out of the queue. The caller holds no lock.
    pub(super) fn end_all(&self, ended: impl IntoIterator<Item = EndedWithReason<M>>) {
        M::end_all(ended.into_iter());
    }
}

impl<M: ProducerMessage> Drop for Ending<'_, M> {
    fn drop(&mut self) {
        self.0.ending_count.fetch_sub(1, Ordering::SeqCst);
        if self.0.is_closing.load(Ordering::SeqCst) {
            // Under the lock, so that `close` either sees the new count or is woken.
            drop(lock(&self.0.closing));
            self.0.all_ended.notify_all();
        }
    }
}

impl<M: ProducerMessage> Shared<M> {
    /// Makes the state without any message. `run_sender` is called on a new thread for each sender.
    pub(super) fn new(
        connector: Connector,
        config: ProducerConfig,
        supervisor: &Supervisor,
        run_sender: RunSender<M>,
    ) -> Arc<Self> {
        let (timeout, linger) = (config.timeout.min(MAX_CONFIGURED_TIME), config.linger.min(MAX_CONFIGURED_TIME));
        let config = ProducerConfig { timeout, linger, ..config };
        let level = |acks| Arc::new(Level::new(acks, config.limits, config.max_messages));
        Arc::new(Shared {
            connector,
            config,
            levels: AcksLevel::EACH.map(level),
            view: Mutex::default(),
            stale_topics: StaleTopics::default(),
            metadata_disconnect: Disconnect::new(),
            is_closed: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            closing: Mutex::default(),
            all_ended: Condvar::new(),
            ending_count: AtomicUsize::new(0),
            deadline_thread: Mutex::default(),
            supervisor: supervisor.clone(),
            run_sender,
            on_possible_refusal: OnceLock::new(),
        })
    }

    /// Returns the level with these acks.
    pub(super) fn level(&self, acks: AcksLevel) -> &Arc<Level<M>> {
        &self.levels[acks as usize]
    }

    /// Makes this thread the one that [`watch_time`](Self::watch_time) runs on.
    pub(super) fn become_deadline_thread(&self) {
        *lock(&self.deadline_thread) = Some(thread::current());
    }

    /// Returns what ends the metadata request in progress.
    pub(super) fn metadata_disconnect(&self) -> Disconnect {
        self.metadata_disconnect.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(super) fn levels(&self) -> &[Arc<Level<M>>] {
        &self.levels
    }

    /// Changes a level; wakes the deadline thread if it must look at the level earlier than planned.
    pub(super) fn change<T>(&self, level: &Level<M>, change: impl FnOnce(&mut LevelState<M>) -> T) -> T {
        let mut state = level.lock();
        let planned = state.next_look;
        let result = change(&mut state);
        let is_earlier = state.next_look < planned;
        drop(state);
        if is_earlier {
            self.wake_deadline_thread();
        }
        result
    }

    /// Queues a message; returns it if its partition has no metadata.
    pub(super) fn append(self: &Arc<Self>, level: &Arc<Level<M>>, message: M) -> Result<(), M> {
        let mut woken = Vec::new();
        let after = self.change(level, |state| {
            // Under the lock: `close` ends what was queued before it.
            if self.is_closed() {
                return Ok(AfterAppend::End(message, Outcome::Closed(Stored::No), ""));
            }
            let mut index = state.use_partition(&message);
            if index.is_none() && self.pass(state, message.topic(), &mut woken) {
                // The first message of this topic at this level.
                index = state.use_partition(&message);
            }
            match index {
                Some(index) => Ok(state.append(index, message)),
                None => Err(message),
            }
        });
        self.wake(level, &woken);
        after.map(|after| self.finish(level, after))
    }

    fn finish(self: &Arc<Self>, level: &Arc<Level<M>>, after: AfterAppend<M>) {
        match after {
            AfterAppend::Nothing => {}
            AfterAppend::Wake(thread) => thread.unpark(),
            AfterAppend::Start(broker) => self.start_sender(level, broker),
            AfterAppend::FindLeader(topic) => self.stale_topics.add([topic]),
            AfterAppend::End(message, outcome, reason) => message.end(outcome, reason),
        }
    }

    /// Starts the thread that sends to a broker; if that fails, the deadline thread tries it again.
    pub(super) fn start_sender(self: &Arc<Self>, level: &Arc<Level<M>>, broker: BrokerId) {
        let (shared, sender_level, run_sender) = (Arc::clone(self), Arc::clone(level), self.run_sender);
        let name = format!("kafka-{broker}-{}", level.acks.name());
        let run = move || run_sender(shared, sender_level, broker);
        if let Err(cause) = self.supervisor.try_spawn_task(name, run) {
            warn!("a thread that sends to broker {broker} cannot be started, retrying: {cause}");
            self.change(level, |state| {
                state.set_failure(broker, format!("broker {broker}: a thread cannot be started: {cause}"));
                let start_at = Instant::now() + START_PAUSE;
                state.next_look = state.next_look.min(start_at);
                if let Some(sender) = state.senders.get_mut(&broker) {
                    sender.start_at = Some(start_at);
                }
            });
        }
    }

    /// Wakes the senders of a level to these brokers.
    pub(super) fn wake(self: &Arc<Self>, level: &Arc<Level<M>>, brokers: &[BrokerId]) {
        for broker in brokers {
            let after = level.lock().wake(*broker);
            self.finish(level, after);
        }
    }

    pub(super) fn address_of(&self, broker: BrokerId) -> Option<BrokerAddress> {
        lock(&self.view).address_of(broker)
    }

    /// Takes over metadata: leaders newer than those known, and the addresses of the brokers.
    pub(super) fn update(self: &Arc<Self>, metadata: &MetadataResponse) {
        let now = Instant::now();
        self.enter_cluster(metadata.cluster_id.as_deref());
        let changed = lock(&self.view).update(metadata, now);
        self.pass_changed(&changed);
        self.forget_missing(now);
    }

    /// See [`ClusterView::higher_counts`].
    pub(super) fn higher_counts(&self, metadata: &MetadataResponse) -> HashMap<Arc<str>, usize> {
        lock(&self.view).higher_counts(metadata)
    }

    /// Takes over the id of the cluster that a broker belongs to. If it is another cluster than before, forgets the
    /// producer ids.
    pub(super) fn enter_cluster(&self, id: Option<&str>) {
        if !lock(&self.view).is_other_cluster(id) {
            return;
        }
        let ending = self.ending();
        // Under the lock of the level: when its senders see the new id, they have no batch with an old producer id.
        let mut level = self.level(AcksLevel::All).lock();
        if !lock(&self.view).enter_cluster(id) {
            return;
        }
        warn!("the brokers belong to another cluster than before: messages with acks=-1 get another producer id");
        let ended = level.forget_producer();
        drop(level);
        let reason: Arc<str> = Arc::from("the brokers belong to another cluster than before");
        ending.end_all(ended.into_iter().map(|(message, outcome)| (message, outcome, Some(Arc::clone(&reason)))));
    }

    /// Forgets the topics that brokers have reported as missing for long, and that are not used.
    pub(super) fn forget_missing(&self, now: Instant) {
        let missing = lock(&self.view).long_missing(now);
        // Appends wait for the locks.
        for topics in missing.chunks(MAX_PASSED_UNDER_LOCK) {
            // Under the locks of all levels, so that none of them uses a topic in between.
            let mut levels: Vec<_> = self.levels.iter().map(|level| level.lock()).collect();
            for topic in topics {
                if levels.iter().all(|level| level.is_removable(topic, now))
                    && lock(&self.view).remove_missing(topic, now)
                {
                    levels.iter_mut().for_each(|level| level.remove(topic));
                }
            }
        }
    }

    /// Changes what is known of the largest batch of a topic.
    pub(super) fn change_limit(self: &Arc<Self>, topic: &Arc<str>, change: impl FnOnce(&mut TopicLimit)) {
        let is_changed = lock(&self.view).change_limit(topic, change);
        if is_changed {
            self.pass_changed(std::slice::from_ref(topic));
        }
    }

    /// Passes leaders and limits of these topics to the levels. A level takes them over with the first message.
    fn pass_changed(self: &Arc<Self>, topics: &[Arc<str>]) {
        for (level, topics) in self.levels.iter().flat_map(|level| {
            // Appends wait for the lock.
            topics.chunks(MAX_PASSED_UNDER_LOCK).map(move |topics| (level, topics))
        }) {
            let woken = self.change(level, |state| {
                let mut woken = Vec::new();
                for topic in topics {
                    if state.has_topic(topic) {
                        self.pass(state, topic, &mut woken);
                    }
                }
                woken
            });
            self.wake(level, &woken);
        }
    }

    /// Passes leaders and limit of a topic to a level; returns whether they are known. Adds the brokers to wake to
    /// `woken`.
    fn pass(&self, state: &mut LevelState<M>, topic: &Arc<str>, woken: &mut Vec<BrokerId>) -> bool {
        // Read under the lock of the level: of two threads with metadata, the later one here has the newer leaders.
        let view = lock(&self.view);
        let (leaders, limit) = (view.leaders(topic), view.limit(topic));
        drop(view);
        let Some(leaders) = leaders else { return false };
        woken.extend(state.set_leaders(topic, &leaders));
        state.set_limits(topic, self.batch_limits(state.acks, &limit));
        true
    }

    /// Returns the limits of batches before compression. The compressed size is known only afterwards: batches are made
    /// smaller when a broker refuses one. That must not happen at acks=0.
    fn batch_limits(&self, acks: AcksLevel, limit: &TopicLimit) -> BatchLimits {
        let max_bytes = limit.configured_bytes;
        let batch_bytes = match acks {
            AcksLevel::None => limit.unconfirmed_batch_bytes(),
            AcksLevel::Leader | AcksLevel::All if self.config.codec == Codec::None => max_bytes,
            AcksLevel::Leader | AcksLevel::All => usize::MAX,
        };
        BatchLimits { batch_bytes, max_bytes }
    }

    /// Requests metadata of all topics in use with a partition that `broker` leads.
    pub(super) fn mark_topics_of(&self, broker: BrokerId) {
        let now = Instant::now();
        for level in &self.levels {
            let topics = level.lock().topics_of(broker, now);
            self.stale_topics.add(topics);
        }
    }

    /// Requests metadata of these topics; a leader that the response named is used at once.
    pub(super) fn mark_partitions(self: &Arc<Self>, hints: &[LeaderHint], nodes: &[NodeAddress]) {
        let changed = lock(&self.view).apply_hints(hints, nodes);
        self.pass_changed(&changed);
        self.stale_topics.add(hints.iter().map(|(topic, ..)| Arc::clone(topic)));
    }

    /// See `KafkaProducer::on_possible_refusal`; only the first call counts.
    pub(super) fn set_on_possible_refusal(&self, handler: RefusalHandler) {
        let _ = self.on_possible_refusal.set(handler);
    }

    /// A broker has closed a connection with acks=0, perhaps because it refused one of these topics.
    pub(super) fn report_possible_refusal<'a>(&self, topics: impl Iterator<Item = &'a Arc<str>>) {
        if let Some(handler) = self.on_possible_refusal.get() {
            topics.for_each(handler);
        }
    }

    pub(super) fn stale_topics(&self) -> &StaleTopics {
        &self.stale_topics
    }

    /// Whether a partition of the topic has messages and no leader.
    pub(super) fn waits_for_leader(&self, topic: &str) -> bool {
        self.levels.iter().any(|level| level.lock().waits_for_leader(topic))
    }

    /// Whether a topic has messages that have not ended, in partitions from number `first` on.
    pub(super) fn has_messages(&self, topic: &str, first: usize) -> bool {
        self.levels.iter().any(|level| level.lock().has_messages(topic, first))
    }

    /// Ends the messages of partitions that do not exist any more: those from number `first` on.
    pub(super) fn end_missing(&self, topic: &str, first: usize) {
        const CODE: i16 = error_code::UNKNOWN_TOPIC_OR_PARTITION;
        let reason: Arc<str> = Arc::from(error_code::name(CODE));
        let ending = self.ending();
        for level in &self.levels {
            let ended = level.lock().drain_topic(topic, first);
            let rejected = |(message, outcome): EndedMessage<M>| {
                (message, Outcome::Rejected(CODE, outcome.stored()), Some(Arc::clone(&reason)))
            };
            ending.end_all(ended.into_iter().map(rejected));
        }
    }

    /// Call it before messages are taken out of the queue.
    pub(super) fn ending(&self) -> Ending<'_, M> {
        self.ending_count.fetch_add(1, Ordering::SeqCst);
        Ending(self)
    }

    fn has_ended_all(&self) -> bool {
        self.levels.iter().all(|level| level.lock().accumulator.message_count() == 0)
            && self.ending_count.load(Ordering::SeqCst) == 0
    }

    /// Ends all messages and threads, see `KafkaProducer::close`.
    pub(super) fn close(&self, grace: Duration) {
        let started = Instant::now();
        self.is_closing.store(true, Ordering::SeqCst);
        let mut guard = lock(&self.closing);
        while !self.has_ended_all() {
            let left = grace.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            guard = wait_timeout(&self.all_ended, guard, left);
        }
        drop(guard);
        self.is_closed.store(true, Ordering::SeqCst);
        for level in &self.levels {
            let ending = self.ending();
            let mut state = level.lock();
            let ended = state.drain_all();
            for sender in state.senders.values() {
                sender.disconnect.iter().for_each(|connection| connection.disconnect());
                sender.thread.iter().for_each(thread::Thread::unpark);
            }
            drop(state);
            let closed = |(message, outcome): EndedMessage<M>| (message, Outcome::Closed(outcome.stored()), None);
            ending.end_all(ended.into_iter().map(closed));
        }
        self.metadata_disconnect.disconnect();
        self.stale_topics.wake();
        self.wake_deadline_thread();
    }

    fn wake_deadline_thread(&self) {
        lock(&self.deadline_thread).iter().for_each(thread::Thread::unpark);
    }
}
