//! The fetcher and the reader of log end offsets of a [`MemoryBroker`](super::MemoryBroker).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{BrokerState, PartitionLog, SharedBroker};
use crate::broker::{
    FetchEvent, Fetcher, LogEnds, LogIdentity, LogRange, Message, MessageBatch, MetadataError, Offset, PartitionInfo,
    TopicId, TopicInfo, TopicPartition,
};
use crate::locks::wait_timeout;

/// Reads from a [`MemoryBroker`](super::MemoryBroker).
pub struct MemoryFetcher {
    pub(super) shared: Arc<SharedBroker>,
    pub(super) assigned: BTreeMap<TopicPartition, MemoryReader>,
    /// Number of reads so far. Each read begins with the next partition, so that no partition starves.
    pub(super) turn: usize,
}

/// The read position of one assigned partition.
pub(super) struct MemoryReader {
    next: Offset,
    log: LogIdentity,
    /// The owner knows the id of the topic.
    is_id_reported: bool,
    is_paused: bool,
    /// The last read reported an error.
    has_failed: bool,
}

impl Fetcher for MemoryFetcher {
    fn assign_known(&mut self, partition: &TopicPartition, offset: Offset, log: LogIdentity) {
        let is_id_reported = log.topic_id.is_some();
        let reader = MemoryReader { next: offset, log, is_id_reported, is_paused: false, has_failed: false };
        self.assigned.insert(partition.clone(), reader);
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.assigned.remove(partition);
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(reader) = self.assigned.get_mut(partition) {
            reader.is_paused = paused;
        }
    }

    fn poll(&mut self, wait: Duration, max: usize) -> Vec<FetchEvent> {
        let deadline = Instant::now() + wait;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            let found = if state.unreachable { Vec::new() } else { self.read(&mut state, max) };
            let left = deadline.saturating_duration_since(Instant::now());
            if !found.is_empty() || left.is_zero() {
                return if state.unreachable { vec![unreachable()] } else { found };
            }
            state = wait_timeout(&shared.changed, state, left);
        }
    }

    fn poll_errors(&mut self) -> Vec<FetchEvent> {
        let shared = Arc::clone(&self.shared);
        let state = shared.lock();
        if state.unreachable {
            return vec![unreachable()];
        }
        let mut events = Vec::new();
        for (partition, reader) in &mut self.assigned {
            let partition = partition.clone();
            match state.broken.get(&partition) {
                Some(reason) => {
                    reader.has_failed = true;
                    events.push(FetchEvent::PartitionError { partition, reason: reason.clone() });
                }
                None if std::mem::take(&mut reader.has_failed) => events.push(FetchEvent::Recovered { partition }),
                None => {}
            }
        }
        events
    }
}

impl MemoryFetcher {
    fn read(&mut self, state: &mut BrokerState, max: usize) -> Vec<FetchEvent> {
        let (mut events, mut left) = (Vec::new(), max);
        self.turn += 1;
        let first = self.turn % self.assigned.len().max(1);
        let order: Vec<TopicPartition> =
            self.assigned.keys().skip(first).chain(self.assigned.keys().take(first)).cloned().collect();
        for partition in order {
            let Some(reader) = self.assigned.get_mut(&partition) else { continue };
            let topic_id = state.topic_id(&partition.topic);
            let reason = match (state.broken.get(&partition).cloned(), state.log_mut(&partition)) {
                (Some(reason), _) => reason,
                (None, None) => "it does not exist".to_owned(),
                (None, Some(log)) => {
                    if std::mem::take(&mut reader.has_failed) {
                        events.push(FetchEvent::Recovered { partition: partition.clone() });
                    }
                    let found = reader.read(&partition, topic_id, log, left);
                    left -= found.iter().map(message_count).sum::<usize>();
                    if found.iter().any(ends_reading) {
                        self.assigned.remove(&partition);
                    }
                    events.extend(found);
                    continue;
                }
            };
            reader.has_failed = true;
            events.push(FetchEvent::PartitionError { partition, reason });
        }
        events
    }
}

fn unreachable() -> FetchEvent {
    FetchEvent::Unreachable { reason: "the test made the broker unreachable".to_owned() }
}

fn message_count(event: &FetchEvent) -> usize {
    if let FetchEvent::Messages(batch) = event { batch.messages.len() } else { 0 }
}

fn ends_reading(event: &FetchEvent) -> bool {
    matches!(event, FetchEvent::OffsetGone { .. } | FetchEvent::Truncated { .. } | FetchEvent::Recreated { .. })
}

impl MemoryReader {
    /// Returns the events of the log from the position on, with at most `max` messages.
    fn read(
        &mut self,
        partition: &TopicPartition,
        topic_id: Option<TopicId>,
        log: &PartitionLog,
        max: usize,
    ) -> Vec<FetchEvent> {
        let (mut events, partition) = (Vec::new(), partition.clone());
        if let Some(topic_id) = topic_id.filter(|id| self.log.topic_id.is_some_and(|known| known != *id)) {
            return vec![FetchEvent::Recreated { partition, topic_id }];
        }
        let epoch = self.log.leader_epoch.unwrap_or(log.epoch);
        let diverged = log.truncations.iter().filter(|(later, _)| epoch < *later).map(|(_, offset)| *offset).min();
        if let Some(divergence) = diverged.filter(|offset| *offset < self.next) {
            let position = self.next;
            return vec![FetchEvent::Truncated { partition, position, divergence, leader_epoch: Some(log.epoch) }];
        }
        self.log = LogIdentity { topic_id: topic_id.or(self.log.topic_id), leader_epoch: Some(log.epoch) };
        if let Some(topic_id) = self.log.topic_id.filter(|_| !self.is_id_reported) {
            self.is_id_reported = true;
            events.push(FetchEvent::TopicId { partition: partition.clone(), topic_id });
        }
        if !(log.oldest..=log.newest).contains(&self.next) {
            let (offset, oldest, newest) = (self.next, log.oldest, log.newest);
            events.push(FetchEvent::OffsetGone { partition, offset, oldest, newest });
            return events;
        }
        if self.is_paused || max == 0 {
            return events;
        }
        let unread = log.messages.iter().filter(|message| self.next <= message.offset);
        let messages: Vec<_> = unread.take(max).cloned().collect();
        let next = match messages.last() {
            Some(last) if messages.len() == max => last.offset + 1,
            _ => log.newest,
        };
        let leader_epoch = Some(log.epoch);
        if !messages.is_empty() {
            events.push(FetchEvent::Messages(MessageBatch { partition, messages, next, leader_epoch }));
        } else if self.next < next {
            events.push(FetchEvent::Position { partition, next, leader_epoch });
        }
        self.next = next;
        events
    }
}

/// Reads the log end offsets of a [`MemoryBroker`](super::MemoryBroker).
pub struct MemoryLogEnds {
    pub(super) shared: Arc<SharedBroker>,
}

impl LogEnds for MemoryLogEnds {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        let state = self.shared.lock();
        if state.unreachable {
            return Err(MetadataError::Unreachable("the test made the broker unreachable".to_owned()));
        }
        let logs = state.topics.get(topic).ok_or_else(|| MetadataError::UnknownTopic(topic.to_owned()))?;
        Ok((0..logs.len() as i32).map(|partition| PartitionInfo { partition, leader: Some(1) }).collect())
    }

    fn topics(&mut self, topics: &[Arc<str>], _deadline: Instant) -> Vec<Result<TopicInfo, MetadataError>> {
        let info = |topic: &Arc<str>| {
            let partitions = self.partitions(topic)?;
            Ok(TopicInfo { id: self.shared.lock().topic_id(topic), partitions })
        };
        topics.iter().map(info).collect()
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        partitions.iter().map(|partition| self.range(partition).map(|range| range.newest)).collect()
    }

    fn at_time(
        &mut self,
        partitions: &[TopicPartition],
        time_ms: i64,
        _: Instant,
    ) -> Vec<Result<Option<Offset>, MetadataError>> {
        let mut state = self.shared.lock();
        let mut first = |at: &TopicPartition| {
            let log = state.log_mut(at).ok_or_else(|| MetadataError::Partition(format!("{at} does not exist")))?;
            let is_found = |message: &&Message| message.timestamp_ms.is_some_and(|time| time_ms <= time);
            Ok(log.messages.iter().find(is_found).map(|message| message.offset))
        };
        partitions.iter().map(&mut first).collect()
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        let mut state = self.shared.lock();
        if state.unreachable {
            return Err(MetadataError::Unreachable("the test made the broker unreachable".to_owned()));
        }
        if let Some(reason) = state.broken.get(partition) {
            return Err(MetadataError::Partition(format!("{partition}: {reason}")));
        }
        match state.log_mut(partition) {
            Some(log) => Ok(LogRange {
                oldest: log.oldest,
                newest: log.newest,
                stable: log.open_transaction.map_or(log.newest, |first| first.min(log.newest)),
            }),
            None => Err(MetadataError::Partition(format!("{partition} does not exist"))),
        }
    }
}
