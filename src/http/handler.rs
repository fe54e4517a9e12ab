//! What a daemon implements to serve requests.

use std::sync::Arc;

use super::message::{Head, Request, Response};
use super::reply::Reply;

/// Processes a complete request. The reply is sent now or later, from any thread. Called on a reader thread: must not
/// block.
pub type RequestHandler = Box<dyn FnOnce(Request, Reply) + Send>;

/// What the server does with the body of a request whose head is complete.
pub enum Admission {
    /// Read the body, then call `then`.
    Read {
        /// Largest body in bytes; a larger one is answered with 413.
        max_body_bytes: usize,
        /// Called with the complete request; carries what the handler derived from the head. Dropped if the body never
        /// completes.
        then: RequestHandler,
    },
    /// Answer without the body. A short body is read and discarded, so that the connection can be kept.
    Refuse(Response),
}

/// What a daemon does with requests. Called on the reader threads: must not block.
pub trait Handler: Send + Sync + 'static {
    /// Decides from the head alone, before any of the body is read or allocated.
    fn admit(self: Arc<Self>, head: &Head) -> Admission;

    /// The response when the server itself refuses a request (400, 408, 413, 414, 417, 431, 500, 501, 503, 505).
    fn refusal(&self, status: u16, reason: &str) -> Response {
        Response::text(status, format!("{reason}\n"))
    }
}
