//! The messages of one acks level, with the threads that send them: one [`Sender`](super::sender) a broker.
//!
//! The lock of the level is held while a message is queued, while the batches of a request are formed and encoded, and
//! while the results of a request are applied; never during IO, and never while a message is ended.

use std::collections::HashMap;
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::gather::{Gather, PartitionIndex};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{BrokerId, EndedMessage, Limits, Outcome, Stored};
use crate::kafka::connection::Disconnect;
use crate::kafka::metadata::TopicMetadata;
use crate::locks::lock;
use crate::random::random;

/// Time for which messages without a key and without a chosen partition go to the same partition: in one batch they
/// cost the client and the broker less than in a batch for each partition.
const STICKY_TIME: Duration = Duration::from_millis(5);

/// Time for which a response is waited for after a partition of the request got another leader. The former leader may
/// hang; while its request is in flight, the new leader is not sent the messages of the partition.
const MAX_WAIT_FOR_FORMER_LEADER: Duration = Duration::from_secs(1);

/// Name of a partition in a [`Gather`].
pub(super) type PartitionName = (Arc<str>, i32);

/// One acks level.
pub(super) struct Level<M> {
    pub(super) acks: AcksLevel,
    state: Mutex<LevelState<M>>,
}

pub(super) struct LevelState<M> {
    pub(super) gather: Gather<PartitionName, M>,
    topics: HashMap<Arc<str>, LevelTopic>,
    pub(super) senders: HashMap<BrokerId, SenderHandle>,
    /// Encoded bytes of the batches that must be retried unchanged.
    pub(super) retained: HashMap<PartitionIndex, Vec<u8>>,
    pub(super) producer_id: ProducerIdState,
    /// Time at which the deadline thread looks at this level next.
    pub(super) next_expiry: Instant,
    /// Cause of the latest failure of partitions whose latest batch failed, as an error text.
    failures: HashMap<PartitionIndex, Arc<str>>,
    max_messages: usize,
}

#[derive(Default)]
struct LevelTopic {
    partitions: Vec<PartitionIndex>,
    sticky: Option<Sticky>,
}

/// The partition of messages without a key, until messages have this deadline.
struct Sticky {
    partition: i32,
    until_deadline: Instant,
}

/// The thread that sends to one broker.
#[derive(Default)]
pub(super) struct SenderHandle {
    /// `None` until the thread runs.
    pub(super) thread: Option<Thread>,
    /// Closes the connection of the thread; `None` without a connection.
    pub(super) disconnect: Option<Disconnect>,
    /// Cause of the latest failure; empty while the connection works.
    pub(super) last_failure: String,
    /// Requests sent so far.
    pub(super) request_count: u64,
    /// Closes the connection at this time if this request is still in flight: its partitions have another leader.
    abandon: Option<(u64, Instant)>,
}

/// How far the level is with its producer id. Without idempotence it stays `Idle`.
#[derive(Default)]
pub(super) enum ProducerIdState {
    #[default]
    Idle,
    /// A sender has requested an id.
    Requested,
    /// The cluster refused an id with this error code and reason; messages are refused until then.
    Refused { code: i16, reason: String, until: Instant, pause: Duration },
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
    End(M, Outcome, String),
}

impl<M: ProducerMessage> Level<M> {
    /// Returns a level for at most `max_messages` messages that have not ended.
    pub(super) fn new(acks: AcksLevel, limits: Limits, max_messages: usize) -> Self {
        Level {
            acks,
            state: Mutex::new(LevelState {
                gather: Gather::new(Limits { is_idempotent: acks == AcksLevel::All, ..limits }),
                topics: HashMap::new(),
                senders: HashMap::new(),
                retained: HashMap::new(),
                producer_id: ProducerIdState::Idle,
                next_expiry: Instant::now(),
                failures: HashMap::new(),
                max_messages,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LevelState<M>> {
        lock(&self.state)
    }
}

impl<M: ProducerMessage> LevelState<M> {
    /// Whether `topic` has partition `partition` here.
    pub(super) fn has_partition(&self, topic: &str, partition: i32) -> bool {
        self.topics.get(topic).is_some_and(|topic| index_of(topic, partition).is_some())
    }

    /// Chooses the partition of a message without a key: one with a leader, if any has one.
    pub(super) fn sticky_partition(&mut self, topic: &str, count: i32, deadline: Instant) -> i32 {
        let Some(entry) = self.topics.get_mut(topic) else { return random_below(count) };
        if let Some(sticky) = &entry.sticky
            && deadline < sticky.until_deadline
            && sticky.partition < count
            && index_of(entry, sticky.partition).is_some_and(|index| self.gather.leader(index).is_some())
        {
            return sticky.partition;
        }
        let first = random_below(count);
        let has_leader =
            |partition: &i32| index_of(entry, *partition).is_some_and(|index| self.gather.leader(index).is_some());
        let partition = (first..count).chain(0..first).find(has_leader).unwrap_or(first);
        entry.sticky = Some(Sticky { partition, until_deadline: deadline + STICKY_TIME });
        partition
    }

    /// Queues a message whose partition is here.
    pub(super) fn append(&mut self, message: M) -> AfterAppend<M> {
        if let ProducerIdState::Refused { code, reason, until, .. } = &self.producer_id
            && Instant::now() < *until
        {
            return AfterAppend::End(message, Outcome::Rejected(*code, Stored::No), reason.clone());
        }
        let index = self.topics.get(message.topic()).and_then(|topic| index_of(topic, message.partition()));
        let Some(index) = index else {
            let reason = "the partition has no metadata".to_owned();
            return AfterAppend::End(message, Outcome::TimedOut(Stored::No), reason);
        };
        if self.gather.message_count() >= self.max_messages {
            return AfterAppend::End(message, Outcome::QueueFull, String::new());
        }
        let topic = self.gather.leader(index).is_none().then(|| Arc::clone(message.topic()));
        match (self.gather.append(index, message), topic) {
            (Some(broker), _) => self.wake(broker),
            (None, Some(topic)) => AfterAppend::FindLeader(topic),
            (None, None) => AfterAppend::Nothing,
        }
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
            let partition = entry.partitions.len() as i32;
            entry.partitions.push(self.gather.partition((Arc::clone(topic), partition)));
        }
        let mut woken: Vec<BrokerId> = Vec::new();
        for (index, leader) in entry.partitions.iter().zip(leaders.iter().copied().chain(iter::repeat(None))) {
            if let (Some(former), Some(_)) = (self.gather.leader(*index).filter(|id| Some(*id) != leader), leader)
                && self.gather.is_in_flight(*index)
                && let Some(sender) = self.senders.get_mut(&former)
            {
                let until = Instant::now() + MAX_WAIT_FOR_FORMER_LEADER;
                sender.abandon.get_or_insert((sender.request_count, until));
                self.next_expiry = self.next_expiry.min(until);
            }
            woken.extend(self.gather.set_leader(*index, leader));
        }
        woken.sort_unstable();
        woken.dedup();
        woken
    }

    /// Closes the connections whose request has been in flight for too long after a change of leaders. Returns the time
    /// of the next such look.
    pub(super) fn abandon_requests(&mut self, now: Instant) -> Option<Instant> {
        let mut next = None::<Instant>;
        for sender in self.senders.values_mut() {
            match sender.abandon {
                Some((request, _)) if request != sender.request_count => sender.abandon = None,
                Some((_, until)) if until <= now => {
                    sender.abandon = None;
                    sender.disconnect.iter().for_each(|connection| connection.disconnect());
                }
                Some((_, until)) => next = Some(next.map_or(until, |next| next.min(until))),
                None => {}
            }
        }
        next
    }

    /// Ends all messages of a topic that does not exist.
    pub(super) fn end_topic(&mut self, topic: &str, end: &mut impl FnMut(EndedMessage<M>)) {
        let Some(topic) = self.topics.get(topic) else { return };
        for index in &topic.partitions {
            self.gather.drain(*index, end);
        }
    }

    /// Whether the topic has messages that have not ended.
    pub(super) fn has_messages(&self, topic: &str) -> bool {
        let topic = self.topics.get(topic);
        topic.is_some_and(|topic| topic.partitions.iter().any(|index| self.gather.has_messages(*index)))
    }

    /// Whether messages were sent to this topic.
    pub(super) fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// Records why the latest batch of a partition failed; `None` if it did not fail.
    pub(super) fn record_failure(&mut self, index: PartitionIndex, reason: Option<Arc<str>>) {
        match reason {
            Some(reason) => {
                self.failures.insert(index, reason);
            }
            None if self.failures.is_empty() => {}
            None => {
                self.failures.remove(&index);
            }
        }
    }

    /// Returns why a message of this partition has not been stored so far, as an error text.
    pub(super) fn reason_for(&self, topic: &str, partition: i32) -> String {
        let index = self.topics.get(topic).and_then(|topic| index_of(topic, partition));
        if let Some(failure) = index.and_then(|index| self.failures.get(&index)) {
            return failure.to_string();
        }
        match index.and_then(|index| self.gather.leader(index)) {
            None => format!("partition {partition} of topic {topic} has no leader"),
            Some(leader) => match self.senders.get(&leader) {
                Some(sender) if !sender.last_failure.is_empty() => sender.last_failure.clone(),
                _ => format!("broker {leader} has not confirmed earlier messages"),
            },
        }
    }
}

fn index_of(topic: &LevelTopic, partition: i32) -> Option<PartitionIndex> {
    topic.partitions.get(usize::try_from(partition).ok()?).copied()
}

fn random_below(count: i32) -> i32 {
    (random() % count.max(1).unsigned_abs() as u64) as i32
}

/// Returns the leaders of the partitions from 0. The numbers of the partitions of a topic have no gap, so a number
/// beyond their count is ignored.
pub(super) fn leaders_of(topic: &TopicMetadata) -> Vec<Option<BrokerId>> {
    let mut leaders = vec![None; topic.partitions.len()];
    for partition in &topic.partitions {
        if let Some(leader) = usize::try_from(partition.partition).ok().and_then(|index| leaders.get_mut(index)) {
            *leader = partition.leader;
        }
    }
    leaders
}
