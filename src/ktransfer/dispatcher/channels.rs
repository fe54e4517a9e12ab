//! The ends of the channels that the dispatcher holds. `module.rs` creates the channels and explains each bound.

use crossbeam_channel::{Receiver, Sender};

use crate::broker::partitioner::fnv1a;
use crate::ktransfer::fetcher::{FetchCommand, Fetched};
use crate::ktransfer::group::{CommandSender, GroupEvent};
use crate::ktransfer::job::{Ack, Job};

/// All channels of a dispatcher.
pub(crate) struct Channels {
    /// Events from the group.
    pub(crate) group_events: Receiver<GroupEvent>,
    /// Commands to the group. Sending never blocks.
    pub(crate) group_commands: CommandSender,
    /// Commands to the fetch loop. When the channel is full the dispatcher blocks until the fetch loop's next turn.
    /// That is no deadlock: the fetch loop receives commands even while the channel of batches is full.
    pub(crate) fetch_commands: Sender<FetchCommand>,
    /// Messages and reports from the fetch loop. The dispatcher receives from it only while the module has fewer than
    /// `window_size` jobs, no received batch is left over, and the module is not stopping.
    pub(crate) fetched: Receiver<Fetched>,
    /// Jobs to the workers. Sending never blocks.
    pub(crate) jobs: JobQueues,
    /// Acknowledgements from the workers.
    pub(crate) acks: Receiver<Ack>,
}

/// The queues of the workers.
pub(crate) struct JobQueues {
    /// One queue for each worker, for jobs with a key: the jobs of one key are pushed one at a time and in order.
    pub(crate) own: Vec<Sender<Job>>,
    /// One queue for all workers, for jobs whose order does not matter: those without a key, or all without
    /// `serialize_by_key`.
    pub(crate) shared: Sender<Job>,
}

impl JobQueues {
    /// Queues a job for the worker of its key, or in the shared queue of all workers.
    pub(super) fn send(&self, job: Job, serialize_by_key: bool) {
        let queue = match job.message.key.as_deref() {
            Some(key) if !key.is_empty() && serialize_by_key => &self.own[fnv1a(key) as usize % self.own.len()],
            _ => &self.shared,
        };
        // Fails only after the workers have ended, and then the supervisor stops the module.
        let _ = queue.send(job);
    }
}
