//! The state of a [`MemoryBroker`](super::MemoryBroker): its topics, and the failures and limits that a test has set.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroI32;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::broker::partitioner::{Spread, partition_of};
use crate::broker::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, Message, Offset, PartitionerKind, Record, Stored,
    TopicId, TopicPartition,
};
use crate::locks::lock;

/// A broker, shared by its handles, producers and fetchers.
#[derive(Default)]
pub(super) struct SharedBroker {
    pub(super) state: Mutex<BrokerState>,
    /// Notified when `state` has changed.
    pub(super) changed: Condvar,
    pub(super) spread: Spread,
}

#[derive(Default)]
pub(super) struct BrokerState {
    pub(super) topics: HashMap<Arc<str>, Vec<PartitionLog>>,
    /// The ids of topics. A test makes a broker without ids by [`MemoryBroker::set_topic_ids`](super::MemoryBroker).
    pub(super) topic_ids: HashMap<Arc<str>, TopicId>,
    pub(super) last_topic_id: u8,
    pub(super) hides_topic_ids: bool,
    /// Partitions whose reading fails, with the error text.
    pub(super) broken: HashMap<TopicPartition, String>,
    pub(super) unreachable: bool,
    pub(super) holds_completions: bool,
    /// Number of partitions of a topic that an append creates; 0 creates none.
    pub(super) auto_create_partitions: i32,
    pub(super) max_message_bytes: Option<usize>,
    /// Failures of the next appends, chosen by the test; the messages of these appends are not stored.
    pub(super) failures: VecDeque<AppendError>,
    /// Completions held back; the test that holds them bounds their number.
    pub(super) held: Vec<HeldCompletion>,
    pub(super) producers_made: u64,
}

/// A completion that waits for its release.
pub(super) struct HeldCompletion {
    /// Number of the producer whose append it completes.
    pub(super) producer: u64,
    /// Completes with the outcome of the append, or with a failure because the producer was closed first.
    pub(super) finish: Box<dyn FnOnce(Release) + Send>,
}

/// How a held completion ends.
pub(super) enum Release {
    Confirmed,
    Closed,
}

/// The messages of one partition. Offsets without a message are transaction markers.
#[derive(Default)]
pub(super) struct PartitionLog {
    pub(super) oldest: Offset,
    pub(super) newest: Offset,
    pub(super) messages: VecDeque<Message>,
    /// The first offset of an open transaction. It holds no message back from a fetcher.
    pub(super) open_transaction: Option<Offset>,
    /// Leader epoch; it rises with each truncation.
    pub(super) epoch: i32,
    /// Each truncation: the epoch after it, and the offset from which messages were lost.
    pub(super) truncations: Vec<(i32, Offset)>,
}

impl PartitionLog {
    /// Takes the next offset.
    pub(super) fn take_offset(&mut self) -> Offset {
        self.newest += 1;
        self.newest - 1
    }
}

impl SharedBroker {
    pub(super) fn lock(&self) -> MutexGuard<'_, BrokerState> {
        lock(&self.state)
    }
}

impl BrokerState {
    /// Gives a topic an id that no topic had before.
    pub(super) fn name_topic(&mut self, topic: &Arc<str>) {
        self.last_topic_id += 1;
        self.topic_ids.insert(Arc::clone(topic), [self.last_topic_id; 16]);
    }

    /// Returns the id of a topic; `None` if the broker has no ids.
    pub(super) fn topic_id(&self, topic: &str) -> Option<TopicId> {
        self.topic_ids.get(topic).copied().filter(|_| !self.hides_topic_ids)
    }

    pub(super) fn log_mut(&mut self, partition: &TopicPartition) -> Option<&mut PartitionLog> {
        let index = usize::try_from(partition.partition).ok()?;
        self.topics.get_mut(&partition.topic)?.get_mut(index)
    }

    pub(super) fn append(
        &mut self,
        record: Record,
        acks: Acks,
        partitioner: PartitionerKind,
        spread: &Spread,
    ) -> AppendResult {
        let refuse = |kind, reason| Err(AppendError { kind, stored: Stored::No, reason });
        if let Some(failure) = self.failures.pop_front() {
            return Err(failure);
        }
        if self.unreachable {
            return refuse(AppendFailure::Unreachable, "no broker can be reached".to_owned());
        }
        if let Some(limit) = self.max_message_bytes.filter(|&limit| record.value_bytes() > limit) {
            return refuse(
                AppendFailure::TooLarge,
                format!("larger than {limit} bytes, the limit of topic {}", record.topic),
            );
        }
        let created_partitions = self.auto_create_partitions;
        if !self.topics.contains_key(&record.topic) && created_partitions > 0 {
            let logs = std::iter::repeat_with(PartitionLog::default).take(created_partitions as usize).collect();
            self.topics.insert(Arc::clone(&record.topic), logs);
            self.name_topic(&record.topic);
        }
        let known = self.topics.get_mut(&record.topic).map(|logs| (NonZeroI32::new(logs.len() as i32), logs));
        let Some((Some(count), logs)) = known else {
            return refuse(AppendFailure::UnknownTopic, format!("topic {} does not exist", record.topic));
        };
        let partition = record.partition.unwrap_or_else(|| match &record.key {
            Some(key) => partition_of(partitioner, key, count),
            None => spread.next(count),
        });
        let Some(log) = usize::try_from(partition).ok().and_then(|index| logs.get_mut(index)) else {
            let reason = format!("topic {} has no partition {partition}: it has {count} partitions", record.topic);
            return refuse(AppendFailure::UnknownPartition, reason);
        };
        let offset = log.take_offset();
        log.messages.push_back(Message {
            from: TopicPartition { topic: record.topic, partition },
            offset,
            key: record.key,
            value: record.value,
            headers: record.headers,
            timestamp_ms: Some(record.timestamp_ms.unwrap_or(0)),
        });
        Ok(Appended { partition, offset: (acks != Acks::None).then_some(offset) })
    }
}
