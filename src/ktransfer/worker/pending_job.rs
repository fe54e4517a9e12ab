//! A job in the queues of a worker.

use std::sync::Arc;

use super::key_queues::Queued;
use crate::ktransfer::job::Job;

/// A job that is not acknowledged yet.
pub(super) struct PendingJob {
    pub(super) job: Box<Job>,
    /// Number of attempts made.
    pub(super) attempts: u32,
    /// Index of the backend of the latest attempt.
    pub(super) last_backend: Option<usize>,
    /// Whether the job has a slot of the window: from its first attempt until it is acknowledged.
    pub(super) has_slot: bool,
    /// Whether [`WorkerReport::Waits`] was sent.
    pub(super) has_waited: bool,
    /// Whether the attempt board has its latest failure.
    pub(super) is_on_board: bool,
}

impl Queued for PendingJob {
    fn has_slot(&self) -> bool {
        self.has_slot
    }

    fn note_behind(&mut self) {
        self.has_waited = true;
    }
}

impl PendingJob {
    /// Creates a job that was not attempted.
    pub(super) fn new(job: Box<Job>) -> PendingJob {
        let (attempts, last_backend) = (0, None);
        PendingJob { job, attempts, last_backend, has_slot: false, has_waited: false, is_on_board: false }
    }

    /// Whether no attempt may follow.
    pub(super) fn is_over(&self) -> bool {
        self.job.assignment.is_over_for(self.job.message.offset, self.attempts > 0)
    }

    /// Whether `job` was read under the same claim.
    pub(super) fn is_of_claim(&self, job: &Job) -> bool {
        Arc::ptr_eq(&self.job.assignment, &job.assignment)
    }
}
