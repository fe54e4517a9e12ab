//! The trait of a message, and the acks levels.

use std::sync::Arc;

use super::outcome::{EndedWithReason, Outcome, QueuedMessage};
use crate::kafka::record_batch::RecordView;

/// A message that a [`KafkaProducer`](super::client::KafkaProducer) can send.
pub trait ProducerMessage: QueuedMessage + Sized + Send + 'static {
    /// Name of the topic.
    fn topic(&self) -> &Arc<str>;

    /// Number of the partition.
    fn partition(&self) -> i32;

    /// Passes the record to `encode`, once.
    fn with_record(&self, encode: &mut dyn FnMut(&RecordView));

    /// Ends the message; called exactly once, without a lock held, on a thread of the producer or on the thread that
    /// calls a method of it. `reason` is the cause of a failure, as an error text; empty if there is none beyond the
    /// outcome.
    fn end(self, outcome: Outcome, reason: &str);

    /// Ends many messages at the same time, instead of [`end`](Self::end).
    fn end_all(ended: impl Iterator<Item = EndedWithReason<Self>>) {
        ended.for_each(|(message, outcome, reason)| message.end(outcome, reason.as_deref().unwrap_or_default()));
    }
}

/// How many replicas must have a message before the broker confirms it (`acks` of a Produce request).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcksLevel {
    /// No replica: there is no response.
    None,
    /// The leader of the partition.
    Leader,
    /// All in-sync replicas; with producer id and sequence numbers, so that no message is stored twice.
    All,
}

impl AcksLevel {
    /// All levels.
    pub const EACH: [AcksLevel; 3] = [AcksLevel::None, AcksLevel::Leader, AcksLevel::All];

    /// Returns the number of this level in a Produce request.
    pub fn number(self) -> i16 {
        match self {
            AcksLevel::None => 0,
            AcksLevel::Leader => 1,
            AcksLevel::All => -1,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            AcksLevel::None => "acks0",
            AcksLevel::Leader => "acks1",
            AcksLevel::All => "acksall",
        }
    }
}
