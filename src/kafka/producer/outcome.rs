//! The messages of a producer, the results of their batches, and the outcomes that follow from them.

use std::time::{Duration, Instant};

pub use crate::kafka::metadata::BrokerId;

/// A message that a [`Gather`](super::gather::Gather) can queue.
pub trait Gathered {
    /// Upper bound of the bytes that the message adds to a batch.
    fn cost_bytes(&self) -> usize;

    /// Time at which the message ends with [`Outcome::TimedOut`] if the broker has not confirmed it.
    fn deadline(&self) -> Instant;
}

/// Whether a message that was not confirmed may be in the partition log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The message is not in the log.
    No,
    /// The message may be in the log.
    Unknown,
}

/// Final outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker confirmed the message at this offset; `None` if the response had no offset.
    Appended(Option<i64>),
    /// The broker rejected the message with this error code of the protocol.
    Rejected(i16, Stored),
    /// The deadline of the message passed.
    TimedOut(Stored),
}

/// Result of sending a batch once, derived from the response or from the failure of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchResult {
    /// The batch is stored and its first record has this offset; `None` if the offset is unknown (acks=0, or the
    /// broker recognised a duplicate).
    Stored(Option<i64>),
    /// The batch was not stored; its messages are retried after the back-off. At acks=-1 NOT_LEADER_OR_FOLLOWER,
    /// UNKNOWN_TOPIC_OR_PARTITION and KAFKA_STORAGE_ERROR are [`BatchResult::MaybeStored`] instead: a broker that loses
    /// the partition after the append, while it waits for the replicas, returns these codes, too.
    NotStored,
    /// The batch may be stored: the connection closed, the request timed out, or the error code does not exclude it.
    /// The batch is retried unchanged after the back-off.
    MaybeStored,
    /// The broker rejected the batch with this error code because of the records at these positions (empty: all
    /// records). The messages at the other positions are retried.
    Rejected(Vec<usize>, i16),
    /// The broker rejected the batch with this error code because the batch as a whole is too large.
    TooLarge(i16),
    /// The broker does not know the producer id, or expects a lower sequence number (UNKNOWN_PRODUCER_ID,
    /// OUT_OF_ORDER_SEQUENCE_NUMBER). This sending of the batch stored nothing.
    UnknownProducer,
}

/// Size limits and retry settings.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Upper bound of the bytes of a batch; a batch of a single message may be larger.
    pub max_batch_bytes: usize,
    /// Upper bound of the bytes of a request; a request with a single batch may be larger.
    pub max_request_bytes: usize,
    /// Back-off before a batch is retried.
    pub retry_backoff: Duration,
    /// Whether batches carry a producer id and sequence numbers.
    pub is_idempotent: bool,
}

/// A message with its final outcome.
pub type EndedMessage<M> = (M, Outcome);
