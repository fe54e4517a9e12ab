//! Makes one attempt to push one message: sends the request that [`request`](super::request) builds, and returns the
//! outcome.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::Agent;

use super::client::{self, BackendResolver};
use super::config::ModuleConfig;
use super::job::Job;
use super::policy::{AttemptOutcome, retry_after};
use super::request::RequestBuilder;

/// Limit on the bytes of a response body that are read so that the connection can be reused. If the body is longer, the
/// connection is closed.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024;

/// Pushes the messages of one module. All workers of the module share it.
pub(super) struct Pusher {
    agent: Agent,
    requests: RequestBuilder,
    is_aborted: AtomicBool,
}

impl Pusher {
    /// Creates a pusher with its own connection pool. `resolver` returns the addresses of the backends.
    pub(super) fn new(config: &ModuleConfig, resolver: Arc<BackendResolver>) -> Pusher {
        let protocol = &config.protocol;
        Pusher {
            agent: client::agent(protocol, config.worker_num.get(), resolver),
            requests: RequestBuilder::new(&config.name, &config.topic, protocol.uri.clone(), &protocol.headers),
            is_aborted: AtomicBool::new(false),
        }
    }

    /// Returns the url to which the message of `job` is pushed at `server`, for the request and for the log.
    pub(super) fn url(&self, job: &Job, server: &str) -> String {
        self.requests.url(job, server)
    }

    /// Sends the message once to `url`, waits for the response and returns the outcome. `attempt` counts from 1.
    pub(super) fn push(&self, job: &Job, url: &str, attempt: u32) -> AttemptOutcome {
        let request = match self.requests.request(job, url, attempt) {
            Ok(request) => request,
            Err(reason) => return AttemptOutcome::Impossible { reason },
        };
        let mut response = match self.agent.run(request) {
            Ok(response) => response,
            // Both errors mean that the request itself is invalid, so a retry would fail in the same way.
            Err(cause @ (ureq::Error::Http(_) | ureq::Error::BadUri(_))) => {
                return AttemptOutcome::Impossible { reason: cause.to_string() };
            }
            Err(cause) => return AttemptOutcome::Failed { reason: cause.to_string() },
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| retry_after(value.as_bytes()));
        // Only the status decides the outcome. The body is read only so that the connection can be reused.
        let mut body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).reader();
        drain(&mut body);
        AttemptOutcome::Answered { status, retry_after }
    }

    /// Ends all requests in flight, and makes every later one fail at once.
    pub(super) fn abort(&self) {
        // Set before the shutdown: a worker whose request is ended by the shutdown must see the flag, or it would count
        // the attempt as a failure of the backend.
        self.is_aborted.store(true, Ordering::SeqCst);
        self.agent.clone().shutdown();
    }

    /// Whether [`abort`](Self::abort) was called. If so, a failed attempt was ended by the stop, not by backend or
    /// message.
    pub(super) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::SeqCst)
    }
}

/// Reads `body` to its end, or to the first error; after an error the client closes the connection.
fn drain(body: &mut impl Read) {
    let mut buffer = [0; 4096];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
