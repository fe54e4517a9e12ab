//! The producer: queues messages by acks level and partition, and owns the threads that send them.
//!
//! Threads: a [`Sender`] for each level and broker in use, `kafka-leaders` (metadata of the topics in use) and
//! `kafka-deadline`, which ends each message at its deadline, whatever the other threads wait for.
//!
//! Locks: the lock of a [`Level`] is taken before that of the [`ClusterView`], never after it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::leaders::{ClusterView, DoubtedTopics, LeaderRefresh};
use super::level::{AfterAppend, Level, LevelState};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{Limits, Outcome, Stored};
use super::sender::Sender;
use crate::kafka::compression::Codec;
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::Connector;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataResponse};
use crate::kafka::produce::NodeAddress;
use crate::locks::{lock, wait_timeout};
use crate::supervise::Supervisor;

/// Settings of a producer.
#[derive(Clone, Copy, Debug)]
pub struct ProducerConfig {
    /// Size limits and retry settings; [`Limits::is_idempotent`] is set by level.
    pub limits: Limits,
    /// Compression of the batches.
    pub codec: Codec,
    /// Longest time between two looks at the deadlines: the usual time-out of a message.
    pub timeout: Duration,
    /// Largest number of messages of an acks level that have not ended.
    pub max_messages: usize,
    /// Time for which a message may wait for others although it could be sent (`linger.ms`).
    pub linger: Duration,
    /// Longest time that a broker may wait for its replicas (`request.timeout.ms`).
    pub ack_timeout: Duration,
}

/// Sends messages to the leaders of their partitions. Shared by threads.
pub struct KafkaProducer<M: ProducerMessage> {
    shared: Arc<Shared<M>>,
}

/// What the threads of a producer share.
pub(super) struct Shared<M> {
    pub(super) connector: Connector,
    pub(super) config: ProducerConfig,
    levels: [Arc<Level<M>>; 3],
    view: Mutex<ClusterView>,
    doubted: DoubtedTopics,
    is_closed: AtomicBool,
    /// Whether [`KafkaProducer::close`] waits for the end of all messages.
    is_closing: AtomicBool,
    closing: Mutex<()>,
    all_ended: Condvar,
    deadline_thread: Mutex<Option<thread::Thread>>,
    supervisor: Supervisor,
}

impl<M: ProducerMessage> KafkaProducer<M> {
    /// Makes the producer and starts its threads; no broker need be reachable. The threads end after
    /// [`close`](Self::close).
    pub fn new(
        connector: Connector,
        bootstrap: Vec<BrokerAddress>,
        config: ProducerConfig,
        supervisor: &Supervisor,
    ) -> Self {
        let level = |acks| Arc::new(Level::new(acks, config.limits, config.max_messages));
        let shared = Arc::new(Shared {
            connector: connector.clone(),
            config,
            levels: AcksLevel::EACH.map(level),
            view: Mutex::default(),
            doubted: DoubtedTopics::default(),
            is_closed: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            closing: Mutex::default(),
            all_ended: Condvar::new(),
            deadline_thread: Mutex::default(),
            supervisor: supervisor.clone(),
        });
        let refresh = LeaderRefresh::new(Arc::clone(&shared), connector, bootstrap);
        supervisor.spawn_task("kafka-leaders", move || refresh.run());
        let of_deadlines = Arc::clone(&shared);
        supervisor.spawn_task("kafka-deadline", move || of_deadlines.end_at_deadlines());
        KafkaProducer { shared }
    }

    /// Queues a message; never blocks. The metadata of its topic must have been passed to
    /// [`update`](Self::update). Messages of one partition and level are stored in the order of these calls.
    pub fn append(&self, level: AcksLevel, message: M) {
        let level = self.shared.level(level);
        let deadline = message.deadline();
        let mut state = level.lock();
        let after = self.shared.append(&mut state, message);
        let is_early = deadline < state.next_expiry;
        drop(state);
        self.shared.finish(level, after);
        if is_early {
            self.shared.wake_deadline_thread();
        }
    }

    /// Chooses a partition for a message without a key: for a few milliseconds the same one, then another. `count` is
    /// the number of partitions of the topic.
    pub fn sticky_partition(&self, level: AcksLevel, topic: &str, count: i32, deadline: Instant) -> i32 {
        self.shared.level(level).lock().sticky_partition(topic, count, deadline)
    }

    /// Takes over metadata from a response.
    pub fn update(&self, metadata: &MetadataResponse) {
        self.shared.update(metadata);
    }

    /// Returns what takes over metadata without keeping the producer alive.
    pub fn metadata_sink(&self) -> impl Fn(&MetadataResponse) + Send + 'static {
        let shared = Arc::downgrade(&self.shared);
        move |metadata| {
            if let Some(shared) = shared.upgrade() {
                shared.update(metadata);
            }
        }
    }

    /// Waits at most `grace` until all messages have ended, then ends each remaining one with
    /// [`Outcome::Closed`](super::outcome::Outcome). All threads then end.
    pub fn close(&self, grace: Duration) {
        self.shared.close(grace);
    }
}

impl<M: ProducerMessage> Drop for KafkaProducer<M> {
    fn drop(&mut self) {
        self.shared.close(Duration::ZERO);
    }
}

impl<M: ProducerMessage> Shared<M> {
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn level(&self, acks: AcksLevel) -> &Arc<Level<M>> {
        &self.levels[acks as usize]
    }

    fn append(&self, state: &mut LevelState<M>, message: M) -> AfterAppend<M> {
        if self.is_closed() {
            return AfterAppend::End(message, Outcome::Closed(Stored::No), String::new());
        }
        if !state.has_partition(message.topic(), message.partition())
            && let Some(leaders) = lock(&self.view).leaders(message.topic())
        {
            // The first message of this topic at this level.
            state.set_leaders(message.topic(), &leaders);
        }
        state.append(message)
    }

    fn finish(self: &Arc<Self>, level: &Arc<Level<M>>, after: AfterAppend<M>) {
        match after {
            AfterAppend::Nothing => {}
            AfterAppend::Wake(thread) => thread.unpark(),
            AfterAppend::Start(broker) => {
                let sender = Sender::new(Arc::clone(self), Arc::clone(level), broker);
                let name = format!("kafka-{broker}-{}", level.acks.name());
                self.supervisor.spawn_task(name, move || sender.run());
            }
            AfterAppend::FindLeader(topic) => self.doubted.add([topic]),
            AfterAppend::End(message, outcome, reason) => message.end(outcome, &reason),
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
        let changed = lock(&self.view).update(metadata);
        self.set_leaders(&changed);
    }

    fn set_leaders(self: &Arc<Self>, changed: &HashMap<Arc<str>, Vec<Option<BrokerId>>>) {
        for level in &self.levels {
            let mut woken = Vec::new();
            let mut state = level.lock();
            let before = state.next_expiry;
            for (topic, leaders) in changed {
                // A level takes over the leaders of a topic with the first message.
                if state.has_topic(topic) {
                    woken.extend(state.set_leaders(topic, leaders));
                }
            }
            let is_earlier = state.next_expiry < before;
            drop(state);
            self.wake(level, &woken);
            if is_earlier {
                self.wake_deadline_thread();
            }
        }
    }

    /// Requests metadata of all topics with a partition that `broker` leads.
    pub(super) fn doubt_leader(&self, broker: BrokerId) {
        let topics = lock(&self.view).topics_of(broker);
        self.doubted.add(topics);
    }

    /// Requests metadata of these topics; a leader that the response named is used at once.
    pub(super) fn doubt_partitions(
        self: &Arc<Self>,
        partitions: &[(Arc<str>, i32, Option<(BrokerId, i32)>)],
        nodes: &[NodeAddress],
    ) {
        let changed = lock(&self.view).apply_hints(partitions, nodes);
        self.set_leaders(&changed);
        self.doubted.add(partitions.iter().map(|(topic, ..)| Arc::clone(topic)));
    }

    pub(super) fn doubted(&self) -> &DoubtedTopics {
        &self.doubted
    }

    /// Whether messages of a topic wait while some partition of it has no leader.
    pub(super) fn waits_for_leader(&self, topic: &str) -> bool {
        lock(&self.view).lacks_leader(topic) && self.has_messages(topic)
    }

    /// Whether a topic has messages that have not ended.
    pub(super) fn has_messages(&self, topic: &str) -> bool {
        self.levels.iter().any(|level| level.lock().has_messages(topic))
    }

    /// Ends the messages of a topic that does not exist any more.
    pub(super) fn end_topic(&self, topic: &str) {
        const UNKNOWN: i16 = error_code::UNKNOWN_TOPIC_OR_PARTITION;
        for level in &self.levels {
            let mut ended = Vec::new();
            level.lock().end_topic(topic, &mut |message| ended.push(message));
            for (message, outcome) in ended {
                message.end(Outcome::Rejected(UNKNOWN, outcome.stored()), &error_code::name(UNKNOWN));
            }
        }
        self.ended();
    }

    /// Some messages have ended; wakes [`close`](Self::close) if it waits for that.
    pub(super) fn ended(&self) {
        if self.is_closing.load(Ordering::Acquire) {
            drop(lock(&self.closing));
            self.all_ended.notify_all();
        }
    }

    fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.lock().gather.is_empty())
    }

    fn close(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.is_closing.store(true, Ordering::Release);
        let mut guard = lock(&self.closing);
        while !self.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard = wait_timeout(&self.all_ended, guard, left);
        }
        drop(guard);
        self.is_closed.store(true, Ordering::Release);
        for level in &self.levels {
            let mut ended = Vec::new();
            let mut state = level.lock();
            state.gather.drain_all(&mut |(message, outcome)| ended.push((message, outcome.stored())));
            for sender in state.senders.values() {
                sender.disconnect.iter().for_each(|connection| connection.disconnect());
                sender.thread.iter().for_each(thread::Thread::unpark);
            }
            drop(state);
            for (message, stored) in ended {
                message.end(Outcome::Closed(stored), "");
            }
        }
        self.doubted.wake();
        self.wake_deadline_thread();
    }

    fn wake_deadline_thread(&self) {
        lock(&self.deadline_thread).iter().for_each(thread::Thread::unpark);
    }

    /// The deadline thread.
    fn end_at_deadlines(self: Arc<Self>) {
        *lock(&self.deadline_thread) = Some(thread::current());
        while !self.is_closed() {
            let mut next = Instant::now() + self.config.timeout;
            for level in &self.levels {
                let mut ended = Vec::new();
                let mut state = level.lock();
                state.gather.expire(Instant::now(), &mut |message| ended.push(message));
                // A message that is appended later has a later deadline, unless it waited for the lookup of its topic.
                let next_abandon = state.abandon_requests(Instant::now());
                let next_expiry = [state.gather.next_deadline(), next_abandon].into_iter().flatten().min();
                let next_expiry = next_expiry.map_or(next, |expiry| expiry.min(next));
                state.next_expiry = next_expiry;
                let reason = |message: &M| state.reason_for(message.topic(), message.partition());
                let ended: Vec<_> =
                    ended.into_iter().map(|(message, outcome)| (reason(&message), message, outcome)).collect();
                drop(state);
                next = next.min(next_expiry);
                for (reason, message, outcome) in ended {
                    message.end(outcome, &reason);
                }
            }
            self.ended();
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
    }
}
