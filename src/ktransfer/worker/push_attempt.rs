//! The seam between a worker and the HTTP client.

use std::sync::Arc;
use std::time::Instant;

use crate::ktransfer::backend_client::{ClientProfile, PushEnd, Pusher};
use crate::ktransfer::job::Job;
use crate::ktransfer::policy::AttemptOutcome;

/// Makes the attempts of one worker.
pub(crate) trait PushAttempt: Send {
    /// Makes the next attempts with these settings.
    fn follow(&mut self, _profile: &Arc<ClientProfile>) {}

    /// Returns the url to which the message of `job` is pushed at `server`, for the request and for the log.
    fn url(&self, job: &Job, server: &str) -> String;

    /// Makes an attempt and returns its outcome; `None` if the claim or its lease prevented or ended it, or the
    /// backend's name is not resolved yet, so that the attempt does not count. `attempt` counts from 1.
    fn push(&mut self, job: &Job, url: &str, attempt: u32) -> Option<AttemptOutcome>;

    /// Closes the connections kept from earlier pushes if they have been idle for too long; returns when they will be,
    /// or `None` if there are none.
    fn close_idle(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}

impl PushAttempt for Pusher {
    fn follow(&mut self, profile: &Arc<ClientProfile>) {
        Pusher::follow(self, profile);
    }

    fn url(&self, job: &Job, server: &str) -> String {
        Pusher::url(self, job, server)
    }

    fn push(&mut self, job: &Job, url: &str, attempt: u32) -> Option<AttemptOutcome> {
        match Pusher::push(self, job, url, attempt) {
            PushEnd::Attempted(outcome) => Some(outcome),
            PushEnd::NotBegun | PushEnd::Unresolved | PushEnd::Aborted => None,
        }
    }

    fn close_idle(&mut self, now: Instant) -> Option<Instant> {
        Pusher::close_idle(self, now)
    }
}
