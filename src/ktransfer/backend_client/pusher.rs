//! Makes one attempt to push one message: sends the request that [`request`](super::request) builds, and returns how
//! the attempt ended.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use ureq::Agent;
use ureq::http::{Request, Response, header};

use super::agent::{MAX_IDLE_AGE, new_agent};
use super::exchange::{Exchange, Failure, Report};
use super::profile::ClientProfile;
use super::resolver::LookupFailure;
use crate::ktransfer::job::Job;
use crate::ktransfer::outcomes::TransportError;
use crate::ktransfer::policy::AttemptOutcome;
use crate::panics;

/// Limit on the bytes of a response body that are read so that the connection can be reused. If the body is longer, the
/// connection is closed.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024;

/// How a push ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PushEnd {
    /// The attempt ended with this outcome.
    Attempted(AttemptOutcome),
    /// The claim did not permit a push when the request was to be sent: its lease was not valid, or the claim has
    /// ended. The backend received nothing.
    NotBegun,
    /// The first look-up of the backend's name has not ended. The backend received nothing.
    Unresolved,
    /// The lease or the claim ended during the push, or the client was closed. Whether the backend received the message
    /// is unknown. This is no failure of the backend.
    Aborted,
}

/// Pushes the messages of one worker, one at a time.
pub(crate) struct Pusher {
    profile: Arc<ClientProfile>,
    exchange: Arc<Exchange>,
    agent: Agent,
    /// When the connections of the agent have been idle for too long; `None` if it has none.
    idle_end: Option<Instant>,
}

impl Pusher {
    /// Creates a pusher whose connections report to `exchange`.
    pub(super) fn new(profile: Arc<ClientProfile>, exchange: Arc<Exchange>) -> Pusher {
        Pusher { agent: new_agent(&profile, &exchange), profile, exchange, idle_end: None }
    }

    /// Makes the next pushes with `profile`. The connections stay open, unless they were made with other settings.
    pub(crate) fn follow(&mut self, profile: &Arc<ClientProfile>) {
        if Arc::ptr_eq(&self.profile, profile) {
            return;
        }
        let former = std::mem::replace(&mut self.profile, Arc::clone(profile));
        if !profile.has_connections_of(&former) {
            self.renew_agent();
        }
    }

    fn renew_agent(&mut self) {
        self.agent = new_agent(&self.profile, &self.exchange);
    }

    /// Returns the url to which the message of `job` is pushed at `server`, for the request and for the log.
    pub(crate) fn url(&self, job: &Job, server: &str) -> String {
        self.profile.requests.url(job, server)
    }

    /// Sends the message to `url`, waits for the response and returns the outcome. `attempt` counts from 1.
    pub(crate) fn push(&mut self, job: &Job, url: &str, attempt: u32) -> PushEnd {
        let end = self.push_until_ended(job, url, attempt);
        self.idle_end = Some(Instant::now() + MAX_IDLE_AGE);
        end
    }

    /// Closes the connections if there was no push for [`MAX_IDLE_AGE`]; returns when that will be, or `None` if there
    /// are no connections. The HTTP client closes idle connections only when it makes another request.
    pub(crate) fn close_idle(&mut self, now: Instant) -> Option<Instant> {
        if self.idle_end.is_some_and(|end| end <= now) {
            self.renew_agent();
            self.idle_end = None;
        }
        self.idle_end
    }

    fn push_until_ended(&mut self, job: &Job, url: &str, attempt: u32) -> PushEnd {
        loop {
            let request = match self.profile.requests.request(job, url, attempt) {
                Ok(request) => request,
                Err(reason) => return PushEnd::Attempted(AttemptOutcome::Impossible { reason }),
            };
            if self.exchange.begin(&job.assignment, job.message.offset).is_err() {
                return PushEnd::NotBegun;
            }
            let ended = panics::catch(|| exchange_with_backend(&self.agent, request));
            let report = self.exchange.finish();
            if ended.is_err() {
                // The panic may have left the pool of the client unusable.
                self.renew_agent();
            }
            if let Some(end) = push_end(ended, report) {
                return end;
            }
            // Nothing was sent, because the idle connection was closed. The pool has no other connection to this
            // backend, so this ends with a new connection.
        }
    }
}

/// Returns how a push ended; `None` if it is to be repeated on a new connection. `ended` has the status that the HTTP
/// client read, its error, or the text of its panic.
fn push_end(ended: Result<Result<u16, ureq::Error>, String>, report: Report) -> Option<PushEnd> {
    // The status decides, whatever came after it.
    if let Some(status) = report.status {
        return Some(PushEnd::Attempted(AttemptOutcome::Answered { status, retry_after: report.retry_after }));
    }
    if report.is_aborted {
        return Some(if report.was_sent { PushEnd::Aborted } else { PushEnd::NotBegun });
    }
    if report.was_closed_idle {
        return None;
    }
    Some(PushEnd::Attempted(match ended {
        Ok(Ok(status)) => AttemptOutcome::Answered { status, retry_after: None },
        // Both errors mean that the request itself is invalid, so a retry would fail in the same way.
        Ok(Err(cause @ (ureq::Error::Http(_) | ureq::Error::BadUri(_)))) if !report.was_sent => {
            AttemptOutcome::Impossible { reason: cause.to_string() }
        }
        Ok(Err(cause)) if is_pending(&cause) => return Some(PushEnd::Unresolved),
        Ok(Err(cause)) => {
            let failure = report.failure.unwrap_or_else(|| failure_of(&cause));
            AttemptOutcome::Failed { error: failure.error, reason: failure.text }
        }
        Err(panic) => AttemptOutcome::Failed { error: None, reason: format!("the HTTP client panicked: {panic}") },
    }))
}

/// Whether the resolver has no addresses yet.
fn is_pending(cause: &ureq::Error) -> bool {
    let ureq::Error::Io(cause) = cause else { return false };
    let failure = cause.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(failure, Some(LookupFailure::Pending(_)))
}

/// Returns the failure of a push that ended before it had a connection. The resolver reports `NotFound`.
fn failure_of(cause: &ureq::Error) -> Failure {
    let is_lookup = match cause {
        ureq::Error::HostNotFound => true,
        ureq::Error::Io(cause) => cause.kind() == io::ErrorKind::NotFound,
        _ => false,
    };
    Failure { error: is_lookup.then_some(TransportError::NameLookup), text: cause.to_string() }
}

fn exchange_with_backend(agent: &Agent, request: Request<&[u8]>) -> Result<u16, ureq::Error> {
    let mut response = agent.run(request)?;
    if is_worth_draining(&response) {
        drain(&mut response.body_mut().as_reader());
    }
    Ok(response.status().as_u16())
}

/// Whether the connection can be reused after the body. The end of a body without a length is the end of the
/// connection.
fn is_worth_draining(response: &Response<ureq::Body>) -> bool {
    match response.body().content_length() {
        Some(length) => length <= MAX_RESPONSE_BYTES,
        None => response.headers().contains_key(header::TRANSFER_ENCODING),
    }
}

/// Reads `body` to its end, to the limit or to the first error. Without the end, the client closes the connection.
fn drain(body: &mut impl Read) {
    let mut buffer = [0; 4096];
    let mut n_read = 0;
    while n_read <= MAX_RESPONSE_BYTES {
        match body.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n_read += n as u64,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
