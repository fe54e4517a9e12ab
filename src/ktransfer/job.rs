//! The traffic between dispatcher and workers: jobs one way, acknowledgements back.

use std::sync::Arc;

use super::group::{Generation, Lease};
use crate::broker::{Message, Offset, PartitionId};
use crate::shutdown::Stop;

/// Our claim of a partition as the workers see it. One for each `Gained`, shared by its jobs.
///
/// It ends in two steps, so that a hand-over repeats few messages: at first each queued job still gets one attempt,
/// then no attempt begins.
pub(super) struct Assignment {
    /// The claimed partition.
    pub(super) partition: PartitionId,
    /// Number of this claim; an earlier or later claim of the partition has another.
    pub(super) generation: Generation,
    /// Triggered when the release of the partition begins: no job is retried.
    pub(super) ending: Stop,
    /// Triggered when the release took too long, or the partition was lost: no attempt begins.
    pub(super) stop: Stop,
}

impl Assignment {
    /// A claim that has not ended. Its stops have no parent: only the dispatcher ends it.
    pub(super) fn new(partition: PartitionId, generation: Generation) -> Self {
        Assignment { partition, generation, ending: Stop::new(), stop: Stop::new() }
    }

    /// Takes both steps of the end.
    pub(super) fn end(&self) {
        self.ending.trigger();
        self.stop.trigger();
    }

    /// Whether an attempt may begin now.
    pub(super) fn may_push(&self, lease: &Lease) -> bool {
        !self.stop.is_triggered() && lease.is_valid(self.partition, self.generation)
    }
}

/// Identifies a window of a dispatcher, never reused: a late batch or acknowledgement matches its own window or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowId(pub u64);

/// A message to be pushed.
pub(super) struct Job {
    /// The claim under which it was read.
    pub(super) assignment: Arc<Assignment>,
    /// The window in which its offset is open.
    pub(super) window: WindowId,
    /// The message as read from Kafka.
    pub(super) message: Message,
    /// Its method; `None` where no methods are configured.
    pub(super) method: Option<Arc<str>>,
}

impl Job {
    /// Bytes that the job counts for against the memory budget of the dispatcher.
    pub(super) fn size_bytes(&self) -> usize {
        message_size_bytes(&self.message)
    }
}

/// Approximate bytes that a message takes in memory.
pub(super) fn message_size_bytes(message: &Message) -> usize {
    const OVERHEAD_BYTES: usize = 200;
    let headers = message.headers.iter().map(|header| header.name.len() + header.value.as_ref().map_or(0, Vec::len));
    OVERHEAD_BYTES
        + message.key.as_ref().map_or(0, Vec::len)
        + message.value.as_ref().map_or(0, Vec::len)
        + headers.sum::<usize>()
}

/// How the work on a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// Delivered, or given up: the commit point may move past it.
    Done,
    /// The claim ended first: the next owner of the partition pushes it.
    Abandoned,
}

/// A worker's acknowledgement of a job; exactly one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    /// Partition of the job.
    pub(super) partition: PartitionId,
    /// Claim of the job.
    pub(super) generation: Generation,
    /// Window of the job.
    pub(super) window: WindowId,
    /// Offset of the message.
    pub(super) offset: Offset,
    /// [`Job::size_bytes`].
    pub(super) size_bytes: usize,
    /// How the job ended.
    pub(super) end: JobEnd,
}
