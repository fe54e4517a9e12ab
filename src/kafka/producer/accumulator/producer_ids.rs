//! The producer ids of the partitions: which id and epoch a partition begins with, and when another id is needed.

use std::hash::Hash;

use super::{PartitionIndex, RecordAccumulator};
use crate::kafka::producer::outcome::{BrokerId, EndedMessage, QueuedMessage};
use crate::kafka::record_batch::ProducerState;

/// Epochs that are left when a new producer id is requested, so that the partition need not wait for the id.
const EPOCH_RESERVE: i16 = 1000;

impl<K: Eq + Hash, M: QueuedMessage> RecordAccumulator<K, M> {
    /// Sets the producer id, and its first epoch, of partitions that have no id or need a new one; returns the brokers
    /// that may have a batch to send. Other partitions keep their id.
    pub fn set_producer(&mut self, producer_id: i64, epoch: i16) -> Vec<BrokerId> {
        self.producer = Some((producer_id, epoch));
        self.needs_new_id = false;
        for index in 0..self.partitions.len() {
            self.note_need_of_id(PartitionIndex(index));
        }
        let awaiting = self.schedule.take_awaiting_producer();
        let mut brokers: Vec<_> = awaiting.into_iter().filter_map(|index| self.schedule(index)).collect();
        brokers.sort_unstable();
        brokers.dedup();
        brokers
    }

    /// Whether [`RecordAccumulator::set_producer`] must be called: some partition cannot send its next batch before, or
    /// will soon have used up the epochs of its id. May become true by each call that takes, completes or ends
    /// messages.
    pub fn needs_producer(&self) -> bool {
        self.limits.is_idempotent && (self.producer.is_none() || self.needs_new_id)
    }

    /// Returns the partitions that wait for a producer id. Their messages may have ended meanwhile.
    pub fn awaiting_producer(&self) -> &[PartitionIndex] {
        self.schedule.awaiting_producer()
    }

    pub(super) fn note_need_of_id(&mut self, index: PartitionIndex) {
        let partition = &self.partitions[index.0];
        let is_needed = partition.needs_new_id || partition.producer.epoch > i16::MAX - EPOCH_RESERVE;
        if is_needed && self.producer.is_some_and(|(id, _)| id == partition.producer.producer_id) {
            self.needs_new_id = true;
        }
    }

    /// Makes partitions without an epoch begin behind this one. Near the last epoch they wait for a new producer id.
    pub(super) fn pass_epoch(&mut self, used: ProducerState) {
        if let Some((id, epoch)) = self.producer
            && id == used.producer_id
            && used.epoch >= epoch
        {
            self.producer = (used.epoch < i16::MAX - EPOCH_RESERVE).then(|| (id, used.epoch + 1));
        }
    }

    /// Forgets the producer id of every partition, because the brokers belong to another cluster: there another client
    /// may have the same id, and a broker would take batches of this one for duplicates. A message that may be stored
    /// ends, since its batch cannot be sent again; one whose batch is in flight ends with its result, at the latest.
    pub fn forget_producer(&mut self, end: &mut impl FnMut(EndedMessage<M>)) {
        self.producer = None;
        self.needs_new_id = false;
        let RecordAccumulator { partitions, message_count, .. } = self;
        let end = &mut |ended: EndedMessage<M>| {
            *message_count -= 1;
            end(ended);
        };
        let mut emptied = Vec::new();
        for partition in partitions {
            emptied.push(partition.forget_producer(end));
        }
        emptied.into_iter().for_each(|emptied| self.recycle(emptied));
    }
}
