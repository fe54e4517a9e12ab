//! The removal of partitions of topics that do not exist any more.
//!
//! The topic may exist all the same, if a broker was wrong. Then the partition is added again without its sequence
//! number, and a broker that knows the producer id and epoch would take the first batches for duplicates of earlier
//! ones. So partitions that are added after a removal begin with a later epoch, which needs no request. Other
//! partitions keep theirs.

use std::hash::Hash;

use super::{PartitionIndex, RecordAccumulator};
use crate::kafka::producer::outcome::QueuedMessage;
use crate::kafka::producer::partition::Partition;

impl<K: Eq + Hash, M: QueuedMessage> RecordAccumulator<K, M> {
    /// Whether a partition has neither messages nor a batch that is in flight or may be stored.
    pub fn is_removable(&self, index: PartitionIndex) -> bool {
        let partition = &self.partitions[index.0];
        partition.batch.is_none() && partition.waiting.is_empty() && !self.schedule.is_awaiting_producer(index)
    }

    /// Removes a partition if it is [removable](Self::is_removable). The next new partition has its index.
    pub fn remove(&mut self, name: &K) {
        let Some(index) = self.by_name.get(name).copied().filter(|index| self.is_removable(*index)) else { return };
        self.by_name.remove(name);
        self.schedule.remove(index);
        let removed = std::mem::replace(&mut self.partitions[index.0], Partition::new());
        self.pass_epoch(removed.producer);
        self.free.push(index);
    }
}
