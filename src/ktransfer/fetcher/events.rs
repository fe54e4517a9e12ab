//! The messages between the dispatcher and the fetch loop.

use crate::broker::{LogIdentity, Message, Offset, PartitionId, TopicId};
use crate::ktransfer::group::Generation;
use crate::ktransfer::job::{WindowId, message_size_bytes};

/// A command of the dispatcher to the fetch loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchCommand {
    /// Read the partition, and return its messages with this window. Ends a pause of the partition.
    Assign {
        /// Number of the partition.
        partition: PartitionId,
        /// The window that its messages belong to.
        window: WindowId,
        /// Number of the claim, for the store of a start offset that is looked up.
        generation: Generation,
        /// Where to start; `None` starts at the oldest or newest offset, as `start_from` says.
        start: Option<StartPosition>,
    },
    /// Stop reading the partition.
    Revoke(PartitionId),
    /// Read nothing of the partition until `Resume`. Its position is kept.
    Pause(PartitionId),
    /// Continue reading a paused partition.
    Resume(PartitionId),
}

/// An offset to start at, and the log that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartPosition {
    /// The first offset to read.
    pub(crate) offset: Offset,
    /// The log that the offset belongs to, as far as it is known.
    pub(crate) log: LogIdentity,
}

/// Messages of one partition; none if only the position moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchedBatch {
    /// The window of the assignment.
    pub(crate) window: WindowId,
    /// Number of the partition.
    pub(crate) partition: PartitionId,
    /// The messages, in the order of their offsets.
    pub(crate) messages: Vec<Message>,
    /// The offset to read after them, which may be behind transaction markers and aborted messages.
    pub(crate) next: Offset,
    /// Leader epoch of the message before `next`; `None` if it is unknown.
    pub(crate) leader_epoch: Option<i32>,
}

/// A report of the fetch loop to the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// Messages of one or more partitions.
    Messages(Vec<FetchedBatch>),
    /// The start offset was found for a partition that was assigned without a position. It was already sent to the
    /// group, which stores it.
    StartsAt {
        /// The window of the assignment.
        window: WindowId,
        /// Number of the partition.
        partition: PartitionId,
        /// The first offset that is read.
        offset: Offset,
    },
    /// The id of the topic that the offsets of this assignment belong to.
    TopicId {
        /// The window of the assignment.
        window: WindowId,
        /// Number of the partition.
        partition: PartitionId,
        /// Id of the topic.
        topic_id: TopicId,
    },
    /// The log is not the one that was read before, or does not keep the offset. The partition is not read until the
    /// next `Assign`.
    LogChanged {
        /// The window of the assignment.
        window: WindowId,
        /// Number of the partition.
        partition: PartitionId,
        /// What has changed.
        change: LogChange,
    },
}

/// Why a partition cannot be read at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogChange {
    /// Kafka does not keep the offset (offset out of range).
    OffsetGone {
        /// The requested offset.
        offset: Offset,
        /// The oldest offset that Kafka keeps.
        oldest: Offset,
        /// The offset after the newest message.
        newest: Offset,
    },
    /// Kafka lost messages that were read before (an unclean leader election).
    Truncated {
        /// The offset that was to be read next.
        position: Offset,
        /// The log is the same below this offset.
        divergence: Offset,
        /// Leader epoch of the message before `divergence`; `None` if it is unknown.
        leader_epoch: Option<i32>,
    },
    /// The topic was deleted and created again.
    Recreated {
        /// Id of the new topic.
        topic_id: TopicId,
    },
}

impl Fetched {
    /// Returns the memory that the messages take, and how much of it the largest one takes.
    pub(crate) fn size_bytes(&self) -> (usize, usize) {
        let Fetched::Messages(batches) = self else { return (0, 0) };
        let sizes = batches.iter().flat_map(|batch| &batch.messages).map(message_size_bytes);
        sizes.fold((0, 0), |(sum, largest), size| (sum + size, largest.max(size)))
    }
}
