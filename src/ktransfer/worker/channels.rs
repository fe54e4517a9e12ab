//! The channels of a worker.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use crate::ktransfer::job::{WorkerMessage, WorkerReport};

/// The ends of the channels that a worker holds. All of them are unbounded: `max_commit_gap` and the memory budget
/// bound the jobs, and each job has at most three reports.
pub(crate) struct WorkerChannels {
    /// Messages to this worker.
    pub(crate) inbox: Receiver<WorkerMessage>,
    /// Reports to the dispatcher.
    pub(crate) reports: Sender<WorkerReport>,
    /// The inboxes of all workers of the module, by number.
    pub(crate) workers: Arc<[Sender<WorkerMessage>]>,
}
