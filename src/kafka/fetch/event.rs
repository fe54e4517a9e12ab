//! The events that a fetcher returns: messages, positions and failures.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::record_set::{MessageView, RecordSet};
use crate::kafka::metadata::TopicId;

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Number of the partition.
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.topic, self.partition)
    }
}

/// An event of one poll. The events of a partition come in the order of its log.
#[derive(Clone, Debug)]
pub enum FetchEvent {
    /// Messages.
    Messages(Messages),
    /// The position moved although no message came: past transaction markers, aborted messages, or offsets that
    /// compaction removed.
    Position {
        /// The partition.
        partition: TopicPartition,
        /// The offset to read next.
        next_offset: i64,
        /// Leader epoch of the log before `next_offset`; `None` if unknown.
        leader_epoch: Option<i32>,
    },
    /// The id of the topic that the partition is read from, confirmed by a response. Returned once for each assignment
    /// without an id, before its messages; never by brokers before Kafka 2.8.
    TopicId {
        /// The partition.
        partition: TopicPartition,
        /// The id that belongs to the offsets of this assignment.
        topic_id: TopicId,
    },
    /// The offset is outside the range of offsets that the partition keeps (OFFSET_OUT_OF_RANGE). The partition is not
    /// read any further until it is assigned again.
    OffsetOutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// The offset that was to be read next.
        offset: i64,
        /// Offset of the oldest message kept.
        oldest: i64,
        /// The log end offset: the offset after the newest replicated message.
        newest: i64,
    },
    /// The leader's log differs from the log that was read (an unclean leader election). The partition is not read any
    /// further until it is assigned again. It is not reported if no returned message is concerned.
    Truncated {
        /// The partition.
        partition: TopicPartition,
        /// The position reached: the messages from `divergence` to this offset were returned and are lost.
        position: i64,
        /// Where the logs diverge.
        divergence: Divergence,
    },
    /// The topic was deleted and created again with the same name: the offsets refer to another log. The partition is
    /// not read any further until it is assigned again.
    Recreated {
        /// The partition.
        partition: TopicPartition,
        /// Id of the topic that was read.
        old_id: TopicId,
        /// Id of the topic that has this name now.
        new_id: TopicId,
    },
    /// One partition cannot be read and is retried with back-off; the others are still read. Reported again at most
    /// once a second while it lasts.
    PartitionError {
        /// The partition.
        partition: TopicPartition,
        /// The offset to read next.
        offset: i64,
        /// The cause, as an error text.
        reason: String,
    },
    /// A partition with a reported [`PartitionError`](Self::PartitionError) is read again. Also returned if there is no
    /// message to read.
    Recovered {
        /// The partition.
        partition: TopicPartition,
    },
    /// A broker, or no broker at all, can be reached; the fetcher retries with back-off. Reported again at most once a
    /// second while it lasts.
    Unreachable {
        /// The cause, as an error text with the addresses.
        reason: String,
        /// Whether no assigned partition can be read: no broker that leads one responds.
        is_total: bool,
    },
}

impl FetchEvent {
    /// Returns the partition that the event is about; `None` for [`FetchEvent::Unreachable`].
    pub fn partition(&self) -> Option<&TopicPartition> {
        match self {
            FetchEvent::Messages(messages) => Some(&messages.partition),
            FetchEvent::Position { partition, .. }
            | FetchEvent::TopicId { partition, .. }
            | FetchEvent::OffsetOutOfRange { partition, .. }
            | FetchEvent::Truncated { partition, .. }
            | FetchEvent::Recreated { partition, .. }
            | FetchEvent::PartitionError { partition, .. }
            | FetchEvent::Recovered { partition } => Some(partition),
            FetchEvent::Unreachable { .. } => None,
        }
    }
}

/// The point up to which two logs are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Leader epoch of the last message before `end_offset`; -1 if unknown.
    pub epoch: i32,
    /// The logs are equal below this offset.
    pub end_offset: i64,
}

/// Successive messages of one partition. They share one buffer, which is freed with the last of them.
#[derive(Clone)]
pub struct Messages {
    pub(super) partition: TopicPartition,
    pub(super) set: Arc<RecordSet>,
    pub(super) range: Range<usize>,
    pub(super) next_offset: i64,
    pub(super) leader_epoch: Option<i32>,
}

impl Messages {
    /// Returns the partition.
    pub fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    /// Returns the number of messages, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one message")]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Iterates over the messages in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MessageView<'_>> {
        self.range.clone().map(|index| self.set.message(index))
    }

    /// Takes the value of a message that is alone in its buffer, without a copy; the message is a tombstone afterwards.
    /// Returns `None` and changes nothing if it is not alone or has no value. A large message is alone, and a second
    /// copy of it would be much of the memory of a reader.
    pub fn take_only_value(&mut self) -> Option<Vec<u8>> {
        Arc::get_mut(&mut self.set)?.take_only_value()
    }

    /// Returns the offset to read after these messages. It is larger than the last offset plus one if transaction
    /// markers, aborted messages or compacted offsets follow.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Returns the leader epoch of the last message; `None` if unknown.
    pub fn leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offsets: Vec<i64> = self.iter().map(|message| message.offset).collect();
        formatter
            .debug_struct("Messages")
            .field("partition", &self.partition)
            .field("offsets", &offsets)
            .field("next_offset", &self.next_offset)
            .finish_non_exhaustive()
    }
}
