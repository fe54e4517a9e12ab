//! What passes between the dispatcher and the workers: a job there, an acknowledgement back.

use std::sync::Arc;

use super::group::{Generation, Lease};
use crate::broker::{Message, Offset, PartitionId};
use crate::shutdown::Stop;

/// Our claim of a partition as the workers see it. One for each `Gained`, shared by its jobs.
///
/// It ends in two steps, so that a hand-over repeats little: first what is queued is still tried once, then
/// nothing begins any more.
pub struct Assignment {
    /// Which partition.
    pub partition: PartitionId,
    /// Which claim of it.
    pub generation: Generation,
    /// Triggered when the partition is to be given back: nothing is tried again.
    pub ending: Stop,
    /// Triggered when that took too long, or the partition was lost: no attempt begins.
    pub stop: Stop,
}

impl Assignment {
    /// A claim that has not ended. Its stops are nobody's children: how it ends is the dispatcher's to decide.
    pub fn new(partition: PartitionId, generation: Generation) -> Self {
        Assignment { partition, generation, ending: Stop::new(), stop: Stop::new() }
    }

    /// Both steps of the end.
    pub fn end(&self) {
        self.ending.trigger();
        self.stop.trigger();
    }

    /// Whether an attempt may begin now.
    pub fn may_push(&self, lease: &Lease) -> bool {
        !self.stop.is_triggered() && lease.is_valid(self.partition, self.generation)
    }
}

/// Distinguishes the windows of a dispatcher: a late acknowledgement finds its own window or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId(pub u64);

/// A message to be pushed.
pub struct Job {
    /// Under which claim.
    pub assignment: Arc<Assignment>,
    /// The window it is open in.
    pub window: WindowId,
    /// The message.
    pub message: Message,
    /// Its method; `None` where no methods are configured.
    pub method: Option<Arc<str>>,
}

impl Job {
    /// What it counts for against the memory budget.
    pub fn size(&self) -> usize {
        size_of_message(&self.message)
    }
}

/// Bytes of a message with what surrounds it, about.
pub fn size_of_message(message: &Message) -> usize {
    const SURROUNDINGS: usize = 200;
    let headers = message.headers.iter().map(|header| header.name.len() + header.value.as_ref().map_or(0, Vec::len));
    SURROUNDINGS
        + message.key.as_ref().map_or(0, Vec::len)
        + message.value.as_ref().map_or(0, Vec::len)
        + headers.sum::<usize>()
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// Delivered, or given up for good: the message is done.
    Done,
    /// The claim ended first: the message is not done, whoever has the partition next pushes it.
    Abandoned,
}

/// What a worker reports of each job, exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Partition of the job.
    pub partition: PartitionId,
    /// Claim of the job.
    pub generation: Generation,
    /// Window of the job.
    pub window: WindowId,
    /// Offset of the message.
    pub offset: Offset,
    /// [`Job::size`].
    pub size: usize,
    /// How it ended.
    pub end: JobEnd,
}
