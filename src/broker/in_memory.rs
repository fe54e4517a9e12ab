//! A broker in memory, for unit tests of the modules above the seam.
//!
//! It has topics, offsets and trimmed logs like a real broker. A test can make it unreachable, hold completions back,
//! fail the next appends and trim logs. It has no threads and no clock. It keeps each message until
//! [`MemoryBroker::trim`], so the test bounds the memory.

mod producer;
mod reading;
mod state;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use self::state::{BrokerState, PartitionLog, Release, SharedBroker};
use super::{
    AppendError, AppendFailure, Completion, Message, Offset, PartitionId, PartitionerKind, Stored, TopicPartition,
};

pub use producer::MemoryProducer;
pub use reading::{MemoryFetcher, MemoryLogEnds};

/// A handle on the broker; clones share it.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    shared: Arc<SharedBroker>,
}

impl MemoryBroker {
    /// A reachable broker without topics.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a topic, or adds partitions to an existing one.
    pub fn create_topic(&self, name: &str, partitions: i32) {
        let (mut state, name) = (self.shared.lock(), Arc::from(name));
        if !state.topics.contains_key(&name) {
            state.name_topic(&name);
        }
        let logs = state.topics.entry(name).or_default();
        while (logs.len() as i32) < partitions {
            logs.push(PartitionLog::default());
        }
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, name: &str) {
        self.change(|state| drop(state.topics.remove(name)));
    }

    /// Deletes a topic and creates it again, with another id and empty partitions.
    pub fn recreate_topic(&self, name: &str, partitions: i32) {
        self.delete_topic(name);
        self.create_topic(name, partitions);
        self.shared.changed.notify_all();
    }

    /// Makes a broker that has topic ids (default), or none like Kafka before 2.8.
    pub fn set_topic_ids(&self, has_ids: bool) {
        self.change(|state| state.hides_topic_ids = !has_ids);
    }

    /// Appends a transaction marker, which takes an offset and is no message.
    pub fn put_marker(&self, partition: &TopicPartition) {
        self.change(|state| {
            if let Some(log) = state.log_mut(partition) {
                log.take_offset();
            }
        });
    }

    /// Makes the messages of a partition from `offset` on part of an open transaction; `None` ends it.
    pub fn set_open_transaction(&self, partition: &TopicPartition, offset: Option<Offset>) {
        self.change(|state| {
            if let Some(log) = state.log_mut(partition) {
                log.open_transaction = offset;
            }
        });
    }

    /// Loses the messages of a partition from `offset` on, as an unclean leader election does.
    pub fn truncate(&self, partition: &TopicPartition, offset: Offset) {
        self.change(|state| {
            if let Some(log) = state.log_mut(partition) {
                log.messages.retain(|message| message.offset < offset);
                (log.newest, log.epoch) = (log.newest.min(offset), log.epoch + 1);
                log.truncations.push((log.epoch, offset));
            }
        });
    }

    /// Makes an append to an unknown topic create the topic with this number of partitions; with 0 (default) the append
    /// fails.
    pub fn set_auto_create(&self, partitions: i32) {
        self.change(|state| state.auto_create_partitions = partitions);
    }

    /// Makes an append with a larger value fail as [`AppendFailure::TooLarge`]; `None` (default) removes the limit.
    pub fn set_max_message_bytes(&self, limit: Option<usize>) {
        self.change(|state| state.max_message_bytes = limit);
    }

    /// Makes the broker reachable or unreachable.
    pub fn set_reachable(&self, reachable: bool) {
        self.change(|state| state.unreachable = !reachable);
    }

    /// From now on appends are stored, but their completions wait for [`MemoryBroker::release_completions`].
    pub fn hold_completions(&self) {
        self.change(|state| state.holds_completions = true);
    }

    /// Runs the completions held so far and holds no further ones; returns how many ran.
    pub fn release_completions(&self) -> usize {
        let mut state = self.shared.lock();
        state.holds_completions = false;
        let ready = std::mem::take(&mut state.held);
        drop(state);
        let ready_count = ready.len();
        for held in ready {
            (held.finish)(Release::Confirmed);
        }
        self.shared.changed.notify_all();
        ready_count
    }

    /// Number of completions held now.
    pub fn held_count(&self) -> usize {
        self.shared.lock().held.len()
    }

    /// Makes the next append fail with `kind` and store nothing. After several calls, the next appends fail in the
    /// order of the calls.
    pub fn fail_next(&self, kind: AppendFailure, stored: Stored) {
        let reason = format!("{kind:?} was set by the test");
        self.change(|state| state.failures.push_back(AppendError { kind, stored, reason }));
    }

    /// Makes reading a partition fail with this error text; `None` makes it succeed again.
    pub fn set_broken(&self, partition: &TopicPartition, reason: Option<&str>) {
        self.change(|state| match reason {
            Some(reason) => drop(state.broken.insert(partition.clone(), reason.to_owned())),
            None => drop(state.broken.remove(partition)),
        });
    }

    /// Removes the messages of a partition below `oldest`.
    pub fn trim(&self, partition: &TopicPartition, oldest: Offset) {
        self.change(|state| {
            if let Some(log) = state.log_mut(partition) {
                log.messages.retain(|message| message.offset >= oldest);
                log.oldest = log.oldest.max(oldest);
                log.newest = log.newest.max(oldest);
            }
        });
    }

    /// Appends without a producer and returns the offset.
    ///
    /// # Panics
    /// Panics if the partition does not exist.
    pub fn put(&self, topic: &str, partition: PartitionId, key: Option<&[u8]>, value: &[u8]) -> Offset {
        self.put_value(topic, partition, key, Some(value))
    }

    /// Appends a message without a value, and returns the offset.
    ///
    /// # Panics
    /// Panics if the partition does not exist.
    pub fn put_tombstone(&self, topic: &str, partition: PartitionId, key: &[u8]) -> Offset {
        self.put_value(topic, partition, Some(key), None)
    }

    fn put_value(&self, topic: &str, partition: PartitionId, key: Option<&[u8]>, value: Option<&[u8]>) -> Offset {
        let from = TopicPartition { topic: Arc::from(topic), partition };
        let mut state = self.shared.lock();
        let log = state.log_mut(&from).expect("a test puts messages into a partition that it has created");
        let offset = log.take_offset();
        let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        log.messages.push_back(Message { from, offset, key, value, headers: Vec::new(), timestamp_ms: Some(0) });
        drop(state);
        self.shared.changed.notify_all();
        offset
    }

    /// Returns the messages that a partition keeps now; empty if the partition does not exist.
    pub fn messages(&self, topic: &str, partition: PartitionId) -> Vec<Message> {
        let partition = TopicPartition { topic: Arc::from(topic), partition };
        self.shared.lock().log_mut(&partition).map_or_else(Vec::new, |log| log.messages.iter().cloned().collect())
    }

    /// A producer with the default partitioner.
    pub fn producer<C: Completion>(&self) -> MemoryProducer<C> {
        self.producer_with(PartitionerKind::default())
    }

    /// A producer with this partitioner.
    pub fn producer_with<C: Completion>(&self, partitioner: PartitionerKind) -> MemoryProducer<C> {
        let mut state = self.shared.lock();
        state.producers_made += 1;
        let number = state.producers_made;
        MemoryProducer {
            shared: Arc::clone(&self.shared),
            partitioner,
            number,
            closed: AtomicBool::new(false),
            completion: PhantomData,
        }
    }

    /// A fetcher without assigned partitions.
    pub fn fetcher(&self) -> MemoryFetcher {
        MemoryFetcher { shared: Arc::clone(&self.shared), assigned: BTreeMap::new(), turn: 0 }
    }

    /// A reader of log end offsets.
    pub fn log_ends(&self) -> MemoryLogEnds {
        MemoryLogEnds { shared: Arc::clone(&self.shared) }
    }

    fn change(&self, apply: impl FnOnce(&mut BrokerState)) {
        apply(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{
        Acks, AppendResult, FetchEvent, Fetcher as _, LogEnds as _, LogIdentity, LogRange, Producer as _, Record,
    };
    use std::time::Duration;

    use crossbeam_channel::{Receiver, unbounded};

    type Boxed = Box<dyn FnOnce(AppendResult) + Send>;

    fn append(producer: &MemoryProducer<Boxed>, topic: &str) -> Receiver<AppendResult> {
        let (sender, receiver) = unbounded();
        let (topic, value) = (Arc::from(topic), Some(b"v".to_vec()));
        let record = Record { topic, partition: None, key: None, value, headers: Vec::new(), timestamp_ms: None };
        producer.append(record, Acks::Leader, Box::new(move |outcome| drop(sender.send(outcome))));
        receiver
    }

    fn failure(outcome: &Receiver<AppendResult>) -> (AppendFailure, Stored) {
        let error = outcome.try_recv().expect("it has completed").expect_err("it fails");
        (error.kind, error.stored)
    }

    #[test]
    fn held_completions_run_when_they_are_released_and_fail_when_the_producer_is_closed() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let producer = broker.producer();
        broker.hold_completions();
        let first = append(&producer, "t");
        assert!(first.try_recv().is_err());
        assert_eq!((broker.held_count(), broker.messages("t", 0).len()), (1, 1));
        assert_eq!(broker.release_completions(), 1);
        assert_eq!(first.try_recv().expect("it has completed").expect("it is stored").offset, Some(0));
        broker.hold_completions();
        let second = append(&producer, "t");
        producer.close(Duration::ZERO);
        assert_eq!(failure(&second), (AppendFailure::Closed, Stored::Unknown));
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::Closed, Stored::No));
    }

    #[test]
    fn appends_fail_in_the_order_in_which_the_failures_were_set() {
        let broker = MemoryBroker::new();
        let producer = broker.producer();
        broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::TimedOut, Stored::Unknown));
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::UnknownTopic, Stored::No));
        broker.set_auto_create(2);
        broker.set_reachable(false);
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::Unreachable, Stored::No));
        assert!(producer.reachable().is_err());
        broker.set_reachable(true);
        assert!(append(&producer, "t").try_recv().expect("it has completed").is_ok());
    }

    #[test]
    fn reading_a_trimmed_offset_fails_once_and_the_kept_range_moves() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let partition = TopicPartition { topic: Arc::from("t"), partition: 0 };
        for _ in 0..5 {
            broker.put("t", 0, None, b"v");
        }
        broker.trim(&partition, 3);
        let mut fetcher = broker.fetcher();
        fetcher.assign(&partition, 1);
        let gone = fetcher.poll(Duration::ZERO, 10);
        let expected = FetchEvent::OffsetGone { partition: partition.clone(), offset: 1, oldest: 3, newest: 5 };
        assert_eq!(gone.last(), Some(&expected), "after the id of the topic");
        assert_eq!(fetcher.poll(Duration::ZERO, 10), []);
        let range = broker.log_ends().range(&partition).expect("it exists");
        assert_eq!(range, LogRange { oldest: 3, newest: 5, stable: 5 });
    }

    #[test]
    fn positions_pass_markers_and_another_log_is_an_event() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let partition = TopicPartition { topic: Arc::from("t"), partition: 0 };
        let mut fetcher = broker.fetcher();
        fetcher.assign(&partition, 0);
        let [FetchEvent::TopicId { topic_id, .. }] = fetcher.poll(Duration::ZERO, 9)[..] else { panic!("the id") };
        for _ in 0..4 {
            broker.put("t", 0, None, b"v");
        }
        broker.put_marker(&partition);
        let [FetchEvent::Messages(batch)] = &fetcher.poll(Duration::ZERO, 9)[..] else { panic!("messages") };
        assert_eq!((batch.messages.len(), batch.next, batch.leader_epoch), (4, 5, Some(0)));
        broker.put_marker(&partition);
        let [FetchEvent::Position { next: 6, .. }] = fetcher.poll(Duration::ZERO, 9)[..] else { panic!("6") };
        broker.truncate(&partition, 3);
        let truncated = &fetcher.poll(Duration::ZERO, 9)[..];
        assert!(matches!(truncated, [FetchEvent::Truncated { position: 6, divergence: 3, .. }]), "{truncated:?}");
        let known = LogIdentity { topic_id: Some(topic_id), leader_epoch: Some(0) };
        fetcher.assign_known(&partition, 4, known);
        let truncated = &fetcher.poll(Duration::ZERO, 9)[..];
        assert!(matches!(truncated, [FetchEvent::Truncated { position: 4, divergence: 3, .. }]), "{truncated:?}");
        broker.recreate_topic("t", 1);
        fetcher.assign_known(&partition, 3, known);
        let recreated = &fetcher.poll(Duration::ZERO, 9)[..];
        assert!(matches!(recreated, [FetchEvent::Recreated { topic_id: id, .. }] if *id != topic_id), "{recreated:?}");
    }
}
