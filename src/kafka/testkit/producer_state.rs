//! The state that a partition leader keeps about idempotent and transactional producers, and its checks of their
//! batches.
//!
//! The rules are those of `ProducerStateManager` and `ProducerAppendInfo` of Apache Kafka: the last five batches of a
//! producer id are remembered, a batch with the sequence range of one of them is a duplicate, and any other batch must
//! continue after the last one. They changed twice: Kafka 2.0 no longer distinguishes old duplicates from gaps, and
//! Kafka 2.5 (KIP-360) accepts any first sequence number of a producer id that the partition does not remember.

use std::collections::{BTreeMap, VecDeque};

use super::batch::Batch;
use super::codes;

/// Batches of a producer id that are remembered (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
pub const REMEMBERED_BATCHES: usize = 5;

/// The rules of a Kafka release about sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRules {
    /// Whether a batch older than the remembered ones is DUPLICATE_SEQUENCE_NUMBER (before Kafka 2.0), else it is
    /// OUT_OF_ORDER_SEQUENCE_NUMBER.
    pub old_duplicate_has_own_code: bool,
    /// Whether a producer id without state must begin with sequence number 0 (before Kafka 2.5): UNKNOWN_PRODUCER_ID.
    pub unknown_producer_is_rejected: bool,
}

impl SequenceRules {
    /// The rules of Kafka 2.5 and later.
    pub const CURRENT: SequenceRules =
        SequenceRules { old_duplicate_has_own_code: false, unknown_producer_is_rejected: false };
}

/// How a batch is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The batch continues the sequence: it is appended.
    Append,
    /// The batch is one of the remembered ones: it is answered with its first offset and timestamp, and not appended.
    Duplicate {
        /// Offset of the first record of the stored batch.
        base_offset: i64,
        /// Timestamp of the stored batch.
        timestamp_ms: i64,
    },
    /// The batch is rejected with this error code.
    Reject(i16),
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
    timestamp_ms: i64,
}

/// State of a producer id.
#[derive(Clone, Debug)]
struct Entry {
    epoch: i16,
    batches: VecDeque<Remembered>,
    /// Offset of the first record of the open transaction.
    transaction_start: Option<i64>,
}

/// The producers of a partition.
#[derive(Clone, Debug, Default)]
pub struct ProducerStates {
    entries: BTreeMap<i64, Entry>,
}

impl ProducerStates {
    /// Judges a batch of a client. Batches without producer id are appended.
    pub fn judge(&self, batch: &Batch, rules: SequenceRules) -> Judgement {
        if batch.producer_id < 0 {
            return Judgement::Append;
        }
        let Some(entry) = self.entries.get(&batch.producer_id) else {
            return match rules.unknown_producer_is_rejected && batch.base_sequence != 0 {
                true => Judgement::Reject(codes::UNKNOWN_PRODUCER_ID),
                false => Judgement::Append,
            };
        };
        if entry.epoch == batch.producer_epoch {
            let is_same = |known: &&Remembered| {
                (known.first_sequence, known.last_sequence) == (batch.base_sequence, batch.last_sequence())
            };
            if let Some(known) = entry.batches.iter().find(is_same) {
                let (base_offset, timestamp_ms) = (known.base_offset, known.timestamp_ms);
                return Judgement::Duplicate { base_offset, timestamp_ms };
            }
        }
        if batch.producer_epoch < entry.epoch {
            return Judgement::Reject(codes::INVALID_PRODUCER_EPOCH);
        }
        if let Some(code) = entry.sequence_error(batch, rules) {
            return Judgement::Reject(code);
        }
        if entry.transaction_start.is_some() && !batch.is_transactional() {
            return Judgement::Reject(codes::INVALID_TXN_STATE);
        }
        Judgement::Append
    }

    /// Remembers a batch with its offset, also when a log is read again.
    pub fn record(&mut self, batch: &Batch) {
        if batch.producer_id < 0 {
            return;
        }
        let entry = self.entries.entry(batch.producer_id).or_insert_with(|| Entry {
            epoch: batch.producer_epoch,
            batches: VecDeque::new(),
            transaction_start: None,
        });
        if entry.epoch != batch.producer_epoch {
            entry.epoch = batch.producer_epoch;
            entry.batches.clear();
        }
        if batch.is_control() {
            entry.transaction_start = None;
            return;
        }
        if entry.batches.len() == REMEMBERED_BATCHES {
            entry.batches.pop_front();
        }
        entry.batches.push_back(Remembered {
            first_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base_offset: batch.base_offset,
            timestamp_ms: batch.max_timestamp_ms,
        });
        if batch.is_transactional() && entry.transaction_start.is_none() {
            entry.transaction_start = Some(batch.base_offset);
        }
    }

    /// Returns the offset of the first record of the open transaction of a producer id.
    pub fn transaction_start(&self, producer_id: i64) -> Option<i64> {
        self.entries.get(&producer_id)?.transaction_start
    }

    /// Returns the offset of the first record of the oldest open transaction.
    pub fn first_open_offset(&self) -> Option<i64> {
        self.entries.values().filter_map(|entry| entry.transaction_start).min()
    }

    /// Forgets a producer id, as brokers do after `transactional.id.expiration.ms` without a batch of it.
    pub fn expire(&mut self, producer_id: i64) {
        self.entries.remove(&producer_id);
    }

    /// Forgets all producer ids.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

impl Entry {
    fn sequence_error(&self, batch: &Batch, rules: SequenceRules) -> Option<i16> {
        let first = batch.base_sequence;
        if batch.producer_epoch != self.epoch {
            return (first != 0).then_some(codes::OUT_OF_ORDER_SEQUENCE_NUMBER);
        }
        // After a marker with a new epoch no batch is remembered: the sequence begins at 0 again.
        let last = self.batches.back().map_or(-1, |known| known.last_sequence);
        if i64::from(first) == i64::from(last) + 1 || (first == 0 && last == i32::MAX) {
            return None;
        }
        let oldest = self.batches.front().map(|known| known.first_sequence);
        match rules.old_duplicate_has_own_code && oldest.is_some_and(|oldest| batch.last_sequence() < oldest) {
            true => Some(codes::DUPLICATE_SEQUENCE_NUMBER),
            false => Some(codes::OUT_OF_ORDER_SEQUENCE_NUMBER),
        }
    }
}
