//! The ends of the channels that the dispatcher holds. They are made in `module.rs`, which gives the reason for each
//! bound.

use crossbeam_channel::{Receiver, Sender};

use crate::broker::partitioner::fnv1a;
use crate::ktransfer::fetcher::{FetchCommand, Fetched};
use crate::ktransfer::group::{CommandSender, GroupEvent};
use crate::ktransfer::job::{Ack, Job};

/// All channels of a dispatcher.
pub(crate) struct Channels {
    /// From the group.
    pub(crate) group_events: Receiver<GroupEvent>,
    /// To the group; never blocks.
    pub(crate) group_commands: CommandSender,
    /// To the fetch loop. When it is full the dispatcher blocks, for one poll at most. That cannot become a deadlock: the
    /// fetch loop takes commands even while its batches find no room, so it never waits for the dispatcher.
    pub(crate) fetch_commands: Sender<FetchCommand>,
    /// From the fetch loop; not received from while the window is full.
    pub(crate) fetched: Receiver<Fetched>,
    /// To the workers; never blocks.
    pub(crate) jobs: JobQueues,
    /// From the workers.
    pub(crate) acks: Receiver<Ack>,
}

/// The queues of the workers.
pub(crate) struct JobQueues {
    /// One for each worker: jobs with a key, so that those of one key are pushed one at a time and in order.
    pub(crate) own: Vec<Sender<Job>>,
    /// One for all workers: jobs whose order does not matter.
    pub(crate) shared: Sender<Job>,
}

impl JobQueues {
    /// Queues a job for the worker of its key, or for all workers.
    pub(super) fn send(&self, job: Job, serialize_by_key: bool) {
        let queue = match job.message.key.as_deref() {
            Some(key) if !key.is_empty() && serialize_by_key => &self.own[fnv1a(key) as usize % self.own.len()],
            _ => &self.shared,
        };
        // Fails only when the workers have ended, and then the module is being stopped.
        let _ = queue.send(job);
    }
}
