//! The messages of a producer, the results of their batches, and the outcomes that follow from them.

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::kafka::metadata::BrokerId;

/// A message that a [`RecordAccumulator`](super::accumulator::RecordAccumulator) can queue.
pub trait QueuedMessage {
    /// Upper bound of the bytes that the message adds to a batch.
    fn cost_bytes(&self) -> usize;

    /// Time at which the message ends with [`Outcome::TimedOut`] if the broker has not confirmed it. The value does not
    /// change.
    fn deadline(&self) -> Instant;
}

/// Whether a message that was not confirmed may be in the partition log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The message is not in the log, and no request that may still arrive contains it.
    No,
    /// The message may be in the log, or may still get there.
    Unknown,
}

/// Final outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker confirmed the message at this offset; `None` if the response had no offset.
    Appended(Option<i64>),
    /// The broker rejected the message with this error code of the protocol.
    Rejected(i16, Stored),
    /// The deadline of the message passed, or
    /// [`RecordAccumulator::drain_all`](super::accumulator::RecordAccumulator::drain_all) ended it.
    TimedOut(Stored),
    /// The message was not sent, because a quota of the broker leaves no time for it before its deadline. The next
    /// message can be sent after this time.
    Throttled(Duration),
    /// The producer has as many messages as it may have; the message was not queued.
    QueueFull,
    /// The producer was closed before the broker confirmed the message.
    Closed(Stored),
}

impl Outcome {
    /// Whether the message may be stored.
    pub fn stored(&self) -> Stored {
        match self {
            Outcome::Appended(_) => Stored::Unknown,
            Outcome::QueueFull | Outcome::Throttled(_) => Stored::No,
            Outcome::Rejected(_, stored) | Outcome::TimedOut(stored) | Outcome::Closed(stored) => *stored,
        }
    }
}

/// Result of sending a batch once, derived from the response or from the failure of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchResult {
    /// The batch is stored and its first record has this offset; `None` if the offset is unknown. At acks=0: the
    /// request was handed to the socket.
    Stored(Option<i64>),
    /// The broker takes the batch for one that it has stored (DUPLICATE_SEQUENCE_NUMBER). At the first sending it is
    /// not: the sequence number is wrong, as after [`BatchResult::UnknownProducer`].
    Duplicate,
    /// The batch was not stored, and no copy of it is under way; its messages are retried after the back-off. At
    /// acks=-1 NOT_LEADER_OR_FOLLOWER and UNKNOWN_TOPIC_OR_PARTITION are [`BatchResult::MaybeStored`] instead: a broker
    /// that loses the partition after the append, while it waits for the replicas, returns these codes, too.
    NotStored,
    /// The batch may be stored: the connection closed, the request timed out, or the error code does not exclude it.
    /// The batch is retried unchanged after the back-off. Without idempotence it may then be stored twice.
    MaybeStored,
    /// The broker rejected the batch with this error code because of the records at these positions. The messages at
    /// the other positions are retried. All records are rejected if no position is in the batch.
    Rejected(Vec<usize>, i16),
    /// The broker rejected the batch with this error code because the batch as a whole is too large.
    TooLarge(i16),
    /// The broker has no state of the producer id, or expects another sequence number (UNKNOWN_PRODUCER_ID,
    /// OUT_OF_ORDER_SEQUENCE_NUMBER). This sending of the batch stored nothing.
    UnknownProducer,
    /// The broker has a higher epoch of the producer id (INVALID_PRODUCER_EPOCH, PRODUCER_FENCED). This sending of the
    /// batch stored nothing.
    InvalidProducerEpoch,
    /// The broker failed with this error code, which leaves open whether the batch is stored. The messages end: the
    /// broker would fail again.
    Failed(i16),
}

/// Size limits and retry settings.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Upper bound of the bytes of a batch; a batch of a single message may be larger.
    pub max_batch_bytes: usize,
    /// Upper bound of the bytes of a request; a request with a single batch may be larger.
    pub max_request_bytes: usize,
    /// Back-off of a partition after its first failure. It doubles with each further failure, until a broker accepts or
    /// rejects a batch of the partition.
    pub retry_backoff: Duration,
    /// Upper bound of the back-off of a partition.
    pub max_retry_backoff: Duration,
    /// Whether batches carry a producer id and sequence numbers.
    pub is_idempotent: bool,
}

/// A message with its final outcome.
pub type EndedMessage<M> = (M, Outcome);

/// A message that has ended, with its outcome and the cause; `None` without a cause beyond the outcome.
pub type EndedWithReason<M> = (M, Outcome, Option<Arc<str>>);
