//! The fetcher and the reader of log end offsets of a [`MemoryBroker`](super::MemoryBroker).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{BrokerState, SharedBroker};
use crate::broker::{
    FetchError, Fetcher, LogEnds, LogRange, Message, MetadataError, Offset, PartitionInfo, TopicPartition,
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
    is_paused: bool,
}

impl Fetcher for MemoryFetcher {
    fn assign(&mut self, partition: &TopicPartition, offset: Offset) {
        self.assigned.insert(partition.clone(), MemoryReader { next: offset, is_paused: false });
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.assigned.remove(partition);
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(reader) = self.assigned.get_mut(partition) {
            reader.is_paused = paused;
        }
    }

    fn poll(&mut self, wait: Duration, max: usize) -> Result<Vec<Message>, FetchError> {
        let deadline = Instant::now() + wait;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            let found = if state.unreachable { Vec::new() } else { self.read(&mut state, max)? };
            let left = deadline.saturating_duration_since(Instant::now());
            if !found.is_empty() || left.is_zero() {
                return match state.unreachable {
                    true => Err(FetchError::Unreachable("the test made the broker unreachable".to_owned())),
                    false => Ok(found),
                };
            }
            state = wait_timeout(&shared.changed, state, left);
        }
    }
}

impl MemoryFetcher {
    fn read(&mut self, state: &mut BrokerState, max: usize) -> Result<Vec<Message>, FetchError> {
        let mut found = Vec::new();
        self.turn += 1;
        let first = self.turn % self.assigned.len().max(1);
        let order: Vec<TopicPartition> =
            self.assigned.keys().skip(first).chain(self.assigned.keys().take(first)).cloned().collect();
        for partition in order {
            let Some(reader) = self.assigned.get_mut(&partition).filter(|reader| !reader.is_paused) else {
                continue;
            };
            let broken = state.broken.get(&partition).cloned();
            let reason = match (broken, state.log_mut(&partition)) {
                (Some(reason), _) => reason,
                (None, None) => "it does not exist".to_owned(),
                (None, Some(log)) if (log.oldest..=log.newest()).contains(&reader.next) => {
                    let skipped = (reader.next - log.oldest) as usize;
                    found.extend(log.messages.iter().skip(skipped).take(max - found.len()).cloned());
                    if let Some(last) = found.last().filter(|last| last.from == partition) {
                        reader.next = last.offset + 1;
                    }
                    continue;
                }
                (None, Some(log)) if found.is_empty() => {
                    let (offset, oldest, newest) = (reader.next, log.oldest, log.newest());
                    self.assigned.remove(&partition);
                    return Err(FetchError::OffsetGone { partition, offset, oldest, newest });
                }
                (None, Some(_)) => continue,
            };
            if found.is_empty() {
                return Err(FetchError::Partition { partition, reason });
            }
        }
        Ok(found)
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

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        partitions.iter().map(|partition| self.range(partition).map(|range| range.newest)).collect()
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
            Some(log) => Ok(LogRange { oldest: log.oldest, newest: log.newest() }),
            None => Err(MetadataError::Partition(format!("{partition} does not exist"))),
        }
    }
}
