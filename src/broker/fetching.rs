//! The interface of a fetcher, and the types that it returns.

use std::time::Duration;

use super::{Offset, TopicId, TopicPartition};

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The partition it was read from.
    pub from: TopicPartition,
    /// Its offset in that partition.
    pub offset: Offset,
    /// Key; `None` for null. The `kafka_rust` engine cannot distinguish null from empty and returns `None` for both.
    pub key: Option<Vec<u8>>,
    /// Value of the message; `None` is a tombstone, for which the `kafka_rust` engine returns an empty value.
    pub value: Option<Vec<u8>>,
    /// Headers; always empty with the `kafka_rust` engine. Those beyond the [`HeaderLimits`] of the fetcher are left
    /// out: a producer can put a million headers into a message, which take 50 times more memory than on the wire.
    pub headers: Vec<super::Header>,
    /// Milliseconds since 1970, if the broker sent a timestamp.
    pub timestamp_ms: Option<i64>,
}

/// Limits on the headers of a message that is read. A header that does not fit is left out; the later ones that fit are
/// kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLimits {
    /// Limit on their number.
    pub max_count: usize,
    /// Limit on the bytes of their names and values.
    pub max_bytes: usize,
}

impl Default for HeaderLimits {
    fn default() -> Self {
        HeaderLimits { max_count: 64, max_bytes: 8 << 10 }
    }
}

/// Which log an offset belongs to, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogIdentity {
    /// Id of the topic. `None` if it is unknown: the broker (before Kafka 2.8) or the engine has no topic ids.
    pub topic_id: Option<TopicId>,
    /// Leader epoch of the message before the offset: with it, a broker finds where a log that lost messages in an
    /// unclean leader election diverges from the log that was read. `None` if it is unknown.
    pub leader_epoch: Option<i32>,
}

/// Successive messages of one partition, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageBatch {
    /// The partition.
    pub partition: TopicPartition,
    /// The messages, in the order of their offsets.
    pub messages: Vec<Message>,
    /// The offset to read after the messages: larger than the last offset plus one if transaction markers, aborted
    /// messages or offsets that compaction removed follow.
    pub next: Offset,
    /// Leader epoch of the last message; `None` if it is unknown.
    pub leader_epoch: Option<i32>,
}

/// An event of one poll. The events of a partition come in the order of its log. After `OffsetGone`, `Truncated` and
/// `Recreated` the partition is not read any further until it is assigned again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// Messages.
    Messages(MessageBatch),
    /// The position moved although no message came: past transaction markers, aborted messages, or offsets that
    /// compaction removed.
    Position {
        /// The partition.
        partition: TopicPartition,
        /// The offset to read next.
        next: Offset,
        /// Leader epoch of the log before `next`; `None` if it is unknown.
        leader_epoch: Option<i32>,
    },
    /// The id of the topic that the partition is read from. Comes before the messages, at most once for each
    /// assignment, and not for one that was made with an id.
    TopicId {
        /// The partition.
        partition: TopicPartition,
        /// The id that belongs to the offsets of this assignment.
        topic_id: TopicId,
    },
    /// The offset is outside the range of offsets that the partition keeps (OFFSET_OUT_OF_RANGE).
    OffsetGone {
        /// The partition.
        partition: TopicPartition,
        /// The offset that was to be read next.
        offset: Offset,
        /// Offset of the oldest message kept.
        oldest: Offset,
        /// The log end offset: that of the newest message plus one.
        newest: Offset,
    },
    /// The leader's log differs from the log that was read before (an unclean leader election).
    Truncated {
        /// The partition.
        partition: TopicPartition,
        /// The offset that was to be read next.
        position: Offset,
        /// The logs are equal below this offset; the messages from here to `position` are lost.
        divergence: Offset,
        /// Leader epoch of the message before `divergence`; `None` if it is unknown.
        leader_epoch: Option<i32>,
    },
    /// The topic was deleted and created again: it has another id than the assigned offset.
    Recreated {
        /// The partition.
        partition: TopicPartition,
        /// Id of the topic that has this name now.
        topic_id: TopicId,
    },
    /// One partition cannot be read (unknown, no leader, not authorised, undecodable) and is retried; the other
    /// partitions are still read.
    PartitionError {
        /// The partition.
        partition: TopicPartition,
        /// The cause, as an error text.
        reason: String,
    },
    /// A partition with a `PartitionError` is read again; comes also if there is no message to read.
    Recovered {
        /// The partition.
        partition: TopicPartition,
    },
    /// One broker cannot be reached and is retried; partitions of other brokers are still read.
    BrokerUnreachable {
        /// The cause, as an error text.
        reason: String,
    },
    /// No broker can be reached; the fetcher retries. While that lasts, each poll without messages returns it.
    Unreachable {
        /// The cause, as an error text.
        reason: String,
    },
}

impl FetchEvent {
    /// Returns the partition that the event is about; `None` if it is about brokers.
    pub(crate) fn partition(&self) -> Option<&TopicPartition> {
        match self {
            FetchEvent::Messages(batch) => Some(&batch.partition),
            FetchEvent::Position { partition, .. }
            | FetchEvent::TopicId { partition, .. }
            | FetchEvent::OffsetGone { partition, .. }
            | FetchEvent::Truncated { partition, .. }
            | FetchEvent::Recreated { partition, .. }
            | FetchEvent::PartitionError { partition, .. }
            | FetchEvent::Recovered { partition } => Some(partition),
            FetchEvent::BrokerUnreachable { .. } | FetchEvent::Unreachable { .. } => None,
        }
    }

    /// Whether the event only says that something cannot be read, or can be read again.
    pub(crate) fn is_error(&self) -> bool {
        use FetchEvent::{BrokerUnreachable, PartitionError, Recovered, Unreachable};
        matches!(self, PartitionError { .. } | Recovered { .. } | BrokerUnreachable { .. } | Unreachable { .. })
    }
}

/// Reads messages from offsets that its owner chooses. Used by one thread. It stays usable after every error: it
/// reconnects and retries with back-off by itself.
pub trait Fetcher: Send {
    /// Starts to read `partition` at `offset`, an offset of `log`: if the topic has another id meanwhile, or the log
    /// lost messages below the offset, that is an event and nothing is read. A partition that is assigned already
    /// restarts at `offset`. An engine without topic ids and epochs ignores `log`.
    fn assign_known(&mut self, partition: &TopicPartition, offset: Offset, log: LogIdentity);

    /// Starts to read `partition` at `offset` of the present log, whichever that is.
    fn assign(&mut self, partition: &TopicPartition, offset: Offset) {
        self.assign_known(partition, offset, LogIdentity::default());
    }

    /// Stops reading `partition`; no event of it is returned afterwards.
    fn revoke(&mut self, partition: &TopicPartition);

    /// Pauses or resumes `partition`; its position is kept.
    fn set_paused(&mut self, partition: &TopicPartition, paused: bool);

    /// Waits at most `wait` for the first event and returns events with at most `max` messages; the list is empty if
    /// none came.
    fn poll(&mut self, wait: Duration, max: usize) -> Vec<FetchEvent>;

    /// Returns the events that have come and are errors or their ends, without waiting, and leaves all others to
    /// [`poll`](Self::poll): for an owner that takes no messages at present.
    fn poll_errors(&mut self) -> Vec<FetchEvent>;
}
