//! The messages of one acks level, with the threads that send them: one [`Sender`](super::sender) a broker.
//!
//! The lock of the level is held while a message is queued, while the batches of a request are formed and their records
//! copied, and while the results of a request are applied; never during IO or compression, and never while a message is
//! ended.

mod usage;

use std::collections::HashMap;
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::{Duration, Instant};

use log::info;

use super::accumulator::{BatchToSend, PartitionIndex, RecordAccumulator};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{BrokerId, EndedMessage, EndedWithReason, Limits, Outcome};
use super::sender_handle::{Activity, SenderHandle, check_all};
use super::sticky::{Sticky, random_below};
use crate::locks::lock;

/// Time for which messages that need a producer id are refused after the cluster refused one; it doubles with each
/// further refusal up to the maximum.
const MIN_REFUSAL_TIME: Duration = Duration::from_secs(1);
const MAX_REFUSAL_TIME: Duration = Duration::from_secs(30);

/// Name of a partition in a [`RecordAccumulator`].
pub(super) type PartitionName = (Arc<str>, i32);

/// One acks level.
pub(super) struct Level<M> {
    pub(super) acks: AcksLevel,
    state: Mutex<LevelState<M>>,
}

pub(super) struct LevelState<M> {
    pub(super) acks: AcksLevel,
    pub(super) accumulator: RecordAccumulator<PartitionName, M>,
    topics: HashMap<Arc<str>, LevelTopic>,
    /// By [`PartitionIndex`].
    partitions: Vec<LevelPartition>,
    pub(super) senders: HashMap<BrokerId, SenderHandle>,
    /// Encoded bytes of the batches that must be retried unchanged.
    retained: HashMap<PartitionIndex, Vec<u8>>,
    refusal: Option<ProducerIdRefusal>,
    /// Time at which the deadline thread looks at this level next.
    pub(super) next_look: Instant,
    max_messages: usize,
}

struct LevelTopic {
    partitions: Vec<PartitionIndex>,
    sticky: Sticky,
    limits: BatchLimits,
    /// Latest deadline of a message; `None` before the first.
    latest_deadline: Option<Instant>,
}

/// How large the batches of a topic may be, as they are sent.
#[derive(Clone, Copy)]
pub(super) struct BatchLimits {
    /// Upper bound of a batch of more than one message.
    pub(super) batch_bytes: usize,
    /// A batch above it is not sent at acks=0.
    pub(super) max_bytes: usize,
}

/// The state of a partition in a level, apart from its messages.
struct LevelPartition {
    topic: Arc<str>,
    number: i32,
    /// The broker that was sent the latest batch.
    sent_to: Option<BrokerId>,
    /// Cause of the failure of the latest batch, as an error text; `None` if it did not fail.
    failure: Option<Arc<str>>,
}

/// The cluster refused a producer id with this error code.
#[derive(Clone)]
struct ProducerIdRefusal {
    code: i16,
    reason: Arc<str>,
    /// Messages are refused until then, for this time.
    until: Instant,
    time: Duration,
}

/// What the caller of [`LevelState::append`] must do after it has released the lock.
pub(super) enum AfterAppend<M> {
    Nothing,
    /// Wake this thread.
    Wake(Thread),
    /// Start a thread for this broker.
    Start(BrokerId),
    /// Request metadata of this topic: the partition has no leader.
    FindLeader(Arc<str>),
    /// End the message.
    End(M, Outcome, &'static str),
}

impl<M: ProducerMessage> Level<M> {
    /// Returns a level for at most `max_messages` messages that have not ended.
    pub(super) fn new(acks: AcksLevel, limits: Limits, max_messages: usize) -> Self {
        Level {
            acks,
            state: Mutex::new(LevelState {
                acks,
                accumulator: RecordAccumulator::new(Limits { is_idempotent: acks == AcksLevel::All, ..limits }),
                topics: HashMap::new(),
                partitions: Vec::new(),
                senders: HashMap::new(),
                retained: HashMap::new(),
                refusal: None,
                next_look: Instant::now(),
                max_messages,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LevelState<M>> {
        lock(&self.state)
    }
}

impl<M: ProducerMessage> LevelState<M> {
    /// Returns the index of a partition; `None` if this level does not have the partition yet.
    pub(super) fn index_of(&self, topic: &str, partition: i32) -> Option<PartitionIndex> {
        index_of(self.topics.get(topic)?, partition)
    }

    /// Returns the index of the partition of a message that is going to be queued, as [`index_of`](Self::index_of).
    pub(super) fn use_partition(&mut self, message: &M) -> Option<PartitionIndex> {
        let topic = self.topics.get_mut(message.topic())?;
        topic.latest_deadline = topic.latest_deadline.max(Some(message.deadline()));
        index_of(topic, message.partition())
    }

    /// Chooses the partition of a message without a key, see [`Sticky`].
    pub(super) fn sticky_partition(&mut self, topic: &str, count: i32, deadline: Instant) -> i32 {
        let LevelState { accumulator, topics, senders, .. } = self;
        let Some(LevelTopic { partitions, sticky, .. }) = topics.get_mut(topic) else { return random_below(count) };
        let now = Instant::now();
        let leader = |number| accumulator.leader(*partitions.get(usize::try_from(number).ok()?)?);
        let works = |leader| senders.get(&leader).is_none_or(|sender| !sender.is_avoided(now));
        sticky.choose(count, deadline, leader, works)
    }

    /// Queues a message.
    pub(super) fn append(&mut self, index: PartitionIndex, message: M) -> AfterAppend<M> {
        if self.accumulator.message_count() >= self.max_messages {
            return AfterAppend::End(message, Outcome::QueueFull, "");
        }
        let message = match self.accept(index, message) {
            Ok(message) => message,
            Err(refused) => return refused,
        };
        self.look_by(message.deadline());
        let topic = self.accumulator.leader(index).is_none().then(|| Arc::clone(message.topic()));
        match (self.accumulator.append(index, message), topic) {
            (Some(broker), _) => self.wake(broker),
            (None, Some(topic)) => AfterAppend::FindLeader(topic),
            (None, None) => AfterAppend::Nothing,
        }
    }

    /// Makes the deadline thread look at this level at `time` at the latest. The caller wakes that thread if
    /// [`next_look`](Self::next_look) is earlier now.
    fn look_by(&mut self, time: Instant) {
        self.next_look = self.next_look.min(time);
    }

    /// Returns how to wake the thread that sends to `broker`.
    pub(super) fn wake(&mut self, broker: BrokerId) -> AfterAppend<M> {
        match self.senders.get(&broker) {
            Some(SenderHandle { thread: Some(thread), .. }) => AfterAppend::Wake(thread.clone()),
            // The thread has been started and looks at the queue before it waits.
            Some(SenderHandle { thread: None, .. }) => AfterAppend::Nothing,
            None => {
                self.senders.insert(broker, SenderHandle::default());
                AfterAppend::Start(broker)
            }
        }
    }

    /// Sets the leaders of a topic; returns the brokers that may have something to send. `leaders` are those of the
    /// partitions from 0; a partition beyond them has none.
    pub(super) fn set_leaders(&mut self, topic: &Arc<str>, leaders: &[Option<BrokerId>]) -> Vec<BrokerId> {
        let entry = self.topics.entry(Arc::clone(topic)).or_default();
        while entry.partitions.len() < leaders.len() {
            let number = entry.partitions.len() as i32;
            let index = self.accumulator.partition((Arc::clone(topic), number));
            self.accumulator.set_max_batch_bytes(index, entry.limits.batch_bytes);
            entry.partitions.push(index);
            let partition = LevelPartition { topic: Arc::clone(topic), number, sent_to: None, failure: None };
            match self.partitions.get_mut(index.0) {
                Some(removed) => *removed = partition,
                None => self.partitions.push(partition),
            }
        }
        let mut woken: Vec<BrokerId> = Vec::new();
        for (index, leader) in entry.partitions.iter().zip(leaders.iter().copied().chain(iter::repeat(None))) {
            let sent_to = self.partitions[index.0].sent_to.filter(|_| self.accumulator.is_in_flight(*index));
            if let (Some(former), Some(leader)) = (sent_to, leader)
                && former != leader
                && let Some(limit) = self.senders.get_mut(&former).and_then(SenderHandle::limit_wait)
            {
                self.next_look = self.next_look.min(limit);
            }
            woken.extend(self.accumulator.set_leader(*index, leader));
        }
        woken.sort_unstable();
        woken.dedup();
        woken
    }

    /// Sets how large the batches of a topic may be.
    pub(super) fn set_limits(&mut self, topic: &str, limits: BatchLimits) {
        let Some(topic) = self.topics.get_mut(topic) else { return };
        topic.limits = limits;
        for index in &topic.partitions {
            self.accumulator.set_max_batch_bytes(*index, limits.batch_bytes);
        }
    }

    /// Returns the size above which a batch of a topic is not sent at acks=0.
    pub(super) fn max_batch_bytes(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(usize::MAX, |topic| topic.limits.max_bytes)
    }

    /// The sender to `broker` begins to wait for the broker.
    pub(super) fn begin(&mut self, broker: BrokerId, activity: Activity, now: Instant) {
        if let Some(due) = self.senders.get_mut(&broker).map(|sender| sender.begin(activity, now)) {
            self.look_by(due);
        }
    }

    /// The sender to `broker` does not wait for the broker any more.
    pub(super) fn end(&mut self, broker: BrokerId, activity: Activity) {
        if let Some(sender) = self.senders.get_mut(&broker) {
            sender.end(activity);
        }
    }

    /// Records why the sender to `broker` cannot send; empty if it can.
    pub(super) fn set_failure(&mut self, broker: BrokerId, reason: String) {
        if let Some(sender) = self.senders.get_mut(&broker) {
            sender.failed_at = (!reason.is_empty()).then(Instant::now);
            sender.last_failure = reason;
        }
    }

    /// See [`check_all`].
    pub(super) fn check_senders(&mut self, now: Instant) -> (Vec<BrokerId>, Option<Instant>) {
        check_all(&mut self.senders, now)
    }

    /// Passes the batches of one request to `broker` to `send`, with topic and number of the partition, and with the
    /// bytes of a batch that is retried unchanged.
    pub(super) fn take(
        &mut self,
        broker: BrokerId,
        now: Instant,
        mut send: impl FnMut(BatchToSend<M>, &Arc<str>, i32, Option<Vec<u8>>),
    ) {
        let max_bytes = self.max_request_bytes(broker);
        let LevelState { accumulator, partitions, retained, .. } = self;
        accumulator.take(broker, now, max_bytes, |batch| {
            let index = batch.sending.partition;
            let partition = &mut partitions[index.0];
            partition.sent_to = Some(broker);
            let bytes = if retained.is_empty() { None } else { retained.remove(&index) };
            send(batch, &partition.topic, partition.number, bytes);
        });
    }

    /// Records why the latest batch of a partition failed; `None` if it did not fail.
    pub(super) fn record_failure(&mut self, index: PartitionIndex, reason: Option<Arc<str>>) {
        self.partitions[index.0].failure = reason;
    }

    /// Keeps the bytes of a batch if it must be retried unchanged, else returns them.
    pub(super) fn retain(&mut self, index: PartitionIndex, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if !self.accumulator.has_unchanged_retry(index) {
            return Some(bytes);
        }
        self.retained.insert(index, bytes);
        None
    }

    /// Frees the bytes of batches that will not be retried, because their messages have ended.
    fn free_retained(&mut self) {
        self.retained.retain(|index, _| self.accumulator.has_unchanged_retry(*index));
    }

    /// Ends the messages whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<EndedWithReason<M>> {
        let mut expired = Vec::new();
        self.accumulator.expire(now, &mut |message| expired.push(message));
        self.free_retained();
        let mut latest: Option<(Arc<str>, i32, Arc<str>)> = None;
        let with_reason = |(message, outcome): EndedMessage<M>| {
            let (topic, number) = (message.topic(), message.partition());
            let reason = match &latest {
                // Messages of a partition follow each other.
                Some((of_topic, of_number, reason)) if of_topic == topic && *of_number == number => Arc::clone(reason),
                _ => {
                    let reason: Arc<str> = Arc::from(self.reason_for(topic, number));
                    latest = Some((Arc::clone(topic), number, Arc::clone(&reason)));
                    reason
                }
            };
            let outcome = self.outcome_after_quota(topic, number, outcome, now);
            (message, outcome, Some(reason))
        };
        expired.into_iter().map(with_reason).collect()
    }

    /// Ends all messages of the partitions of a topic from number `first` on.
    pub(super) fn drain_topic(&mut self, topic: &str, first: usize) -> Vec<EndedMessage<M>> {
        let mut ended = Vec::new();
        let partitions = self.topics.get(topic).into_iter().flat_map(|topic| topic.partitions.iter().skip(first));
        for index in partitions {
            self.accumulator.drain(*index, &mut |message| ended.push(message));
        }
        self.free_retained();
        ended
    }

    /// Ends all messages.
    pub(super) fn drain_all(&mut self) -> Vec<EndedMessage<M>> {
        let mut ended = Vec::new();
        self.accumulator.drain_all(&mut |message| ended.push(message));
        self.retained.clear();
        ended
    }

    /// Whether the topic has messages that have not ended, in partitions from number `first` on.
    pub(super) fn has_messages(&self, topic: &str, first: usize) -> bool {
        self.partitions_of(topic).skip(first).any(|index| self.accumulator.has_messages(*index))
    }

    /// Whether a partition of the topic has messages that have not ended, and no leader.
    pub(super) fn waits_for_leader(&self, topic: &str) -> bool {
        let waits =
            |index: &PartitionIndex| self.accumulator.leader(*index).is_none() && self.accumulator.has_messages(*index);
        self.partitions_of(topic).any(waits)
    }

    /// Whether messages were sent to this topic.
    pub(super) fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    fn partitions_of(&self, topic: &str) -> impl Iterator<Item = &PartitionIndex> {
        self.topics.get(topic).into_iter().flat_map(|topic| &topic.partitions)
    }

    /// Whether a partition that `broker` leads has messages that wait for a producer id.
    pub(super) fn awaits_producer_id(&self, broker: BrokerId) -> bool {
        let awaits = |index: &PartitionIndex| {
            self.accumulator.leader(*index) == Some(broker) && self.accumulator.has_messages(*index)
        };
        self.accumulator.awaiting_producer().iter().any(awaits)
    }

    /// The cluster refused a producer id. Returns whether it did not do so before, for the same reason.
    pub(super) fn refuse_producer_id(&mut self, code: i16, reason: &str, now: Instant) -> bool {
        let earlier = self.refusal.as_ref();
        let is_new = earlier.is_none_or(|refusal| *refusal.reason != *reason);
        let time = match earlier {
            None => MIN_REFUSAL_TIME,
            // Several senders request an id at the same time.
            Some(refusal) if now < refusal.until => refusal.time,
            Some(refusal) => (refusal.time * 2).min(MAX_REFUSAL_TIME),
        };
        self.refusal = Some(ProducerIdRefusal { code, reason: Arc::from(reason), until: now + time, time });
        is_new
    }

    /// Takes over a producer id, unless another sender has obtained one in the meantime. Returns the brokers that may
    /// have a batch to send.
    pub(super) fn set_producer_id(&mut self, producer_id: i64, epoch: i16) -> Vec<BrokerId> {
        if self.refusal.take().is_some() {
            info!("messages with acks=-1 are accepted again");
        }
        // A connected sender can only have failed to obtain an id, which does not matter any more.
        for sender in self.senders.values_mut().filter(|sender| sender.disconnect.is_some()) {
            sender.last_failure.clear();
            sender.failed_at = None;
        }
        if self.accumulator.needs_producer() { self.accumulator.set_producer(producer_id, epoch) } else { Vec::new() }
    }

    /// Forgets the producer ids, because the brokers belong to another cluster. Returns the messages that end.
    pub(super) fn forget_producer(&mut self) -> Vec<EndedMessage<M>> {
        let mut ended = Vec::new();
        self.accumulator.forget_producer(&mut |message| ended.push(message));
        self.free_retained();
        ended
    }

    /// Ends the messages that wait for a producer id if the cluster has refused one; `None` if it has not, and one
    /// should be requested.
    pub(super) fn end_refused(&mut self, now: Instant) -> Option<Vec<EndedWithReason<M>>> {
        let refusal = self.refusal.clone().filter(|refusal| now < refusal.until)?;
        let mut ended = Vec::new();
        for index in self.accumulator.awaiting_producer().to_vec() {
            self.accumulator.drain(index, &mut |(message, outcome)| {
                let outcome = Outcome::Rejected(refusal.code, outcome.stored());
                ended.push((message, outcome, Some(Arc::clone(&refusal.reason))));
            });
        }
        Some(ended)
    }

    /// Returns why a message of this partition has not been stored so far, as an error text.
    fn reason_for(&self, topic: &str, number: i32) -> String {
        let index = self.index_of(topic, number);
        let Some((index, leader)) = index.and_then(|index| Some((index, self.accumulator.leader(index)?))) else {
            return format!("partition {number} of topic {topic} has no leader");
        };
        let sender = self.senders.get(&leader);
        match (sender, &self.partitions[index.0].failure) {
            (Some(sender), _) if !sender.last_failure.is_empty() => sender.last_failure.clone(),
            (_, Some(failure)) => failure.to_string(),
            (Some(sender), None) => sender.reason(leader),
            (None, None) => SenderHandle::default().reason(leader),
        }
    }
}

fn index_of(topic: &LevelTopic, partition: i32) -> Option<PartitionIndex> {
    topic.partitions.get(usize::try_from(partition).ok()?).copied()
}

impl Default for LevelTopic {
    fn default() -> Self {
        LevelTopic {
            partitions: Vec::new(),
            sticky: Sticky::default(),
            limits: BatchLimits { batch_bytes: usize::MAX, max_bytes: usize::MAX },
            latest_deadline: None,
        }
    }
}

#[cfg(test)]
mod tests;
