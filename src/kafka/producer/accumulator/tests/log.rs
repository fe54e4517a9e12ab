use crate::kafka::producer::outcome::BatchResult;
use crate::kafka::record_batch::ProducerState;

/// Batches of a producer id whose duplicates a broker recognises (Kafka: ProducerStateEntry.NUM_BATCHES_TO_RETAIN).
const RETAINED_BATCHES: usize = 5;

struct StoredBatch {
    producer: ProducerState,
    offset: usize,
    count: usize,
}

/// A partition log with the checks of Kafka's UnifiedLog and ProducerAppendInfo, in their order.
#[derive(Default)]
pub(super) struct Log {
    /// Message ids by offset.
    pub(super) ids: Vec<u32>,
    /// Message ids in the order in which they were appended, those included that were truncated later.
    pub(super) history: Vec<u32>,
    batches: Vec<StoredBatch>,
    /// Batches before this position have no producer state: it expired.
    forgotten: usize,
    /// End offset of the batches that were confirmed: at acks=-1 a leader change keeps them.
    pub(super) confirmed_end: usize,
    /// `max.message.bytes`.
    max_batch_bytes: usize,
    /// Whether the broker is older than 2.5 and rejects a sequence number other than 0 of an unknown producer id.
    is_old: bool,
}

/// Returns the size of the message with this id.
pub(super) fn cost_bytes(id: u32) -> usize {
    match id % 11 {
        0 => 45,
        1..=3 => 20,
        _ => 10,
    }
}

/// Whether the broker rejects the record with this id.
pub(super) fn is_invalid(id: u32) -> bool {
    id % 13 == 5
}

impl Log {
    /// Returns an empty log.
    pub(super) fn new(max_batch_bytes: usize, is_old: bool) -> Log {
        Log { max_batch_bytes, is_old, ..Log::default() }
    }

    /// Appends a batch and returns the offset of its first record, also if the batch is a duplicate.
    pub(super) fn append(&mut self, producer: ProducerState, ids: &[u32]) -> Result<usize, BatchResult> {
        if ids.iter().copied().map(cost_bytes).sum::<usize>() > self.max_batch_bytes {
            return Err(BatchResult::TooLarge(10));
        }
        let invalid: Vec<usize> = (0..ids.len()).filter(|position| is_invalid(ids[*position])).collect();
        if !invalid.is_empty() {
            return Err(BatchResult::Rejected(invalid, 87));
        }
        if producer.producer_id >= 0
            && let Some(duplicate) = self.check(producer, ids.len())?
        {
            return Ok(duplicate);
        }
        let offset = self.ids.len();
        self.batches.push(StoredBatch { producer, offset, count: ids.len() });
        self.ids.extend(ids);
        self.history.extend(ids);
        Ok(offset)
    }

    /// Checks epoch and sequence number; returns the offset of the batch that is a duplicate of this one.
    fn check(&self, producer: ProducerState, count: usize) -> Result<Option<usize>, BatchResult> {
        let of_id = self.batches[self.forgotten..].iter().rev();
        let mut of_id = of_id.filter(|batch| batch.producer.producer_id == producer.producer_id).peekable();
        let Some(last) = of_id.peek() else {
            let is_accepted = producer.base_sequence == 0 || !self.is_old;
            return if is_accepted { Ok(None) } else { Err(BatchResult::UnknownProducer) };
        };
        let (epoch, next) = (last.producer.epoch, last.producer.base_sequence + last.count as i32);
        if producer.epoch < epoch {
            return Err(BatchResult::InvalidProducerEpoch);
        }
        if producer.epoch > epoch {
            return if producer.base_sequence == 0 { Ok(None) } else { Err(BatchResult::UnknownProducer) };
        }
        let mut retained = of_id.take_while(|batch| batch.producer.epoch == epoch).take(RETAINED_BATCHES);
        let duplicate = retained.find(|batch| (batch.producer, batch.count) == (producer, count));
        match duplicate {
            Some(duplicate) => Ok(Some(duplicate.offset)),
            None if producer.base_sequence == next => Ok(None),
            None => Err(BatchResult::UnknownProducer),
        }
    }

    /// Removes the last `count` batches, as a leader change does; at most down to `min_end`.
    pub(super) fn truncate(&mut self, count: usize, min_end: usize) {
        for _ in 0..count {
            let Some(batch) = self.batches.pop_if(|batch| batch.offset >= min_end) else { break };
            self.ids.truncate(batch.offset);
        }
        self.forgotten = self.forgotten.min(self.batches.len());
    }

    /// Forgets the producer ids, as after `producer.id.expiration.ms`.
    pub(super) fn forget_producers(&mut self) {
        self.forgotten = self.batches.len();
    }
}
