//! The messages between dispatcher and workers: jobs to the workers, acknowledgements to the dispatcher.

use std::sync::Arc;

use super::group::{Claim, Generation, TimedFence};
use crate::broker::{Message, Offset, PartitionId};
use crate::shutdown::Stop;

/// The claim on a partition as the workers see it. One is created for each `Gained` event and shared by its jobs.
///
/// A claim ends in two steps, so that a hand-over repeats few messages: in the first step each queued job still gets
/// one attempt, in the second step no attempt begins.
pub(super) struct Assignment {
    /// The claimed partition.
    pub(super) partition: PartitionId,
    /// Number of this claim. Each claim of the partition has another number.
    pub(super) generation: Generation,
    /// The time until which pushes of this claim may begin or continue.
    pub(super) fence: Arc<TimedFence>,
    /// Fencing token of the claim, see [`Claim::token`].
    pub(super) token: u64,
    /// Triggered when the release of the partition begins: no job is retried.
    pub(super) ending: Stop,
    /// Triggered when the release takes too long, or when the claim has ended: no attempt begins.
    pub(super) stop: Stop,
}

impl Assignment {
    /// Creates a claim that has not ended. Its stops have no parent, so only the dispatcher ends it.
    pub(super) fn new(claim: &Claim) -> Self {
        Assignment {
            partition: claim.partition,
            generation: claim.generation,
            fence: Arc::clone(&claim.fence),
            token: claim.token,
            ending: Stop::new(),
            stop: Stop::new(),
        }
    }

    /// Ends the claim: takes both steps at once.
    pub(super) fn end(&self) {
        self.ending.trigger();
        self.stop.trigger();
    }

    /// Whether an attempt may begin now.
    pub(super) fn may_push(&self) -> bool {
        !self.stop.is_triggered() && self.fence.is_valid()
    }
}

/// Identifies a window of a dispatcher. An id is never reused, so a late batch or acknowledgement never matches a later
/// window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowId(pub u64);

/// A message to be pushed.
pub(super) struct Job {
    /// The claim under which the message was read.
    pub(super) assignment: Arc<Assignment>,
    /// The window that has an open slot for the message.
    pub(super) window: WindowId,
    /// The message as read from Kafka.
    pub(super) message: Message,
    /// The method of the message; `None` if the module configures no `methods`.
    pub(super) method: Option<Arc<str>>,
}

impl Job {
    /// Returns the bytes that this job takes of the dispatcher's limit on bytes in flight.
    pub(super) fn size_bytes(&self) -> usize {
        message_size_bytes(&self.message)
    }
}

/// Returns approximately how many bytes a message takes in memory.
pub(super) fn message_size_bytes(message: &Message) -> usize {
    const OVERHEAD_BYTES: usize = 200;
    let headers = message.headers.iter().map(|header| header.name.len() + header.value.as_ref().map_or(0, Vec::len));
    OVERHEAD_BYTES
        + message.key.as_ref().map_or(0, Vec::len)
        + message.value.as_ref().map_or(0, Vec::len)
        + headers.sum::<usize>()
}

/// How the work on a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// The message is delivered or given up: the commit point may move past it.
    Done,
    /// The claim ended before the message was done: the next owner of the partition pushes it.
    Abandoned,
}

/// A worker's acknowledgement of a job. The worker sends exactly one for each job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    /// Partition of the message.
    pub(super) partition: PartitionId,
    /// Number of the claim under which the message was read.
    pub(super) generation: Generation,
    /// The window that has an open slot for the message.
    pub(super) window: WindowId,
    /// Offset of the message.
    pub(super) offset: Offset,
    /// The value of [`Job::size_bytes`] for this job.
    pub(super) size_bytes: usize,
    /// How the job ended.
    pub(super) end: JobEnd,
}
