//! A job of a worker, until it is acknowledged.

use std::sync::Arc;

use super::key_queues::{Need, Queued};
use crate::ktransfer::backends::RetryWait;
use crate::ktransfer::dead_letters::PendingLetter;
use crate::ktransfer::job::{Assignment, ClaimPhase, Job, JobPlace};

/// A job that is not acknowledged yet.
pub(super) struct PendingJob {
    pub(super) job: Box<Job>,
    /// Number of attempts made.
    pub(super) attempts: u32,
    /// The backend of the latest attempt.
    pub(super) last_backend: Option<Arc<str>>,
    /// The wait for another backend than that; `None` if it has not waited since the latest attempt.
    pub(super) retry_wait: Option<RetryWait>,
    /// Whether the job has a slot of the window: from its first attempt until it is acknowledged.
    pub(super) has_slot: bool,
    /// How often in a row the job has waited for a valid lease.
    pub(super) n_lease_waits: u32,
    /// Whether the report that the job waits was sent.
    pub(super) has_waited: bool,
    /// The dead letter that the job ends with; `None` while it is to be pushed.
    pub(super) letter: Option<Box<PendingLetter>>,
    /// Whether the table of attempts has its latest failure.
    pub(super) has_failure: bool,
}

impl Queued for PendingJob {
    fn need(&self) -> Need {
        match self {
            PendingJob { letter: Some(_), .. } => Need::NoPush,
            PendingJob { job, .. } if job.unpushable.is_some() => Need::NoPush,
            PendingJob { has_slot: true, .. } => Need::Push,
            PendingJob { .. } => Need::Slot,
        }
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
            retry_wait: None,
            has_slot: false,
            n_lease_waits: 0,
            has_waited: false,
            letter: None,
            has_failure: false,
        }
    }

    /// Whether the claim permits no further work on the job.
    pub(super) fn is_over(&self) -> bool {
        let assignment = &self.job.assignment;
        match self.letter {
            Some(_) => assignment.phase() != ClaimPhase::Held,
            None => assignment.is_over_for(self.job.window, self.job.message.offset, self.attempts > 0),
        }
    }

    /// Returns which job it is, for a report.
    pub(super) fn place(&self) -> JobPlace {
        let Job { assignment, window, message, .. } = &*self.job;
        let Assignment { partition, generation, .. } = **assignment;
        JobPlace { partition, generation, window: *window, offset: message.offset }
    }

    /// Whether the job must not be attempted after `abandoned`, a job before it, was abandoned: they have the same
    /// claim, and its next owner pushes both. Nobody pushes a message of a log that is gone again, so none waits for
    /// it.
    pub(super) fn follows(&self, abandoned: &Job) -> bool {
        let Job { assignment, window, .. } = abandoned;
        Arc::ptr_eq(&self.job.assignment, assignment) && assignment.is_of_present_log(*window)
    }
}
