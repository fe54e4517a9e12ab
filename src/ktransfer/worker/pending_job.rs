//! A job of a worker, until it is acknowledged.

use std::sync::Arc;

use super::key_queues::Queued;
use crate::ktransfer::dead_letters::PendingLetter;
use crate::ktransfer::job::Job;

/// A job that is not acknowledged yet.
pub(super) struct PendingJob {
    pub(super) job: Box<Job>,
    /// Number of attempts made.
    pub(super) attempts: u32,
    /// The backend of the latest attempt.
    pub(super) last_backend: Option<Arc<str>>,
    /// Whether the job has a slot of the window: from its first attempt until it is acknowledged.
    pub(super) has_slot: bool,
    /// Whether the report that the job waits was sent.
    pub(super) has_waited: bool,
    /// The dead letter that the job ends with; `None` while it is to be pushed.
    pub(super) letter: Option<Box<PendingLetter>>,
    /// Whether the attempt board has its latest failure.
    pub(super) is_on_board: bool,
}

impl Queued for PendingJob {
    fn has_slot(&self) -> bool {
        self.has_slot || self.letter.is_some()
    }

    fn note_behind(&mut self) {
        self.has_waited = true;
    }
}

impl PendingJob {
    /// Creates the state of a job that waits for its first attempt.
    pub(super) fn new(job: Box<Job>) -> PendingJob {
        PendingJob {
            job,
            attempts: 0,
            last_backend: None,
            has_slot: false,
            has_waited: false,
            letter: None,
            is_on_board: false,
        }
    }

    /// Whether the claim permits no further work on the job.
    pub(super) fn is_over(&self) -> bool {
        let is_started = self.attempts > 0 || self.letter.is_some();
        self.job.assignment.is_over_for(self.job.message.offset, is_started)
    }

    /// Whether the job has the same claim as `job`.
    pub(super) fn is_of_claim(&self, job: &Job) -> bool {
        Arc::ptr_eq(&self.job.assignment, &job.assignment)
    }
}
