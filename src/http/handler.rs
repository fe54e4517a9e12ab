//! The trait that a daemon implements to serve requests.

use std::sync::Arc;

use super::message::{Head, Request, Response};
use super::reply::Reply;

/// Processes a complete request. It may send the reply before it returns, or later from any thread. It is called on a
/// reader thread and must not block. A panic drops the reply, which answers 500 with [`super::UNANSWERED`].
pub type RequestHandler = Box<dyn FnOnce(Request, Reply) + Send>;

/// The handler's decision on a request whose head is complete.
pub enum Admission {
    /// Read the body, then call `then`.
    Read {
        /// Largest body in bytes; a larger body is answered with 413.
        max_body_bytes: usize,
        /// Called with the complete request; it may capture what the handler derived from the head. It is dropped if
        /// the request never becomes complete.
        then: RequestHandler,
    },
    /// Send this response without using the body. A body of at most 64 KiB is read and discarded first, so that the
    /// connection can stay open. If the body is larger, or the client waits for 100 Continue before it sends the body,
    /// the connection is closed after the response. The same response is sent if the body is malformed or times out.
    Refuse(Response),
}

/// Serves the requests of a server. Its methods are called on the reader threads and must not block.
pub trait Handler: Send + Sync + 'static {
    /// Decides on a request from its head, before memory for the body is allocated.
    fn admit(self: Arc<Self>, head: &Head) -> Admission;

    /// Returns header fields for every response, also for those that the server sends by itself. `head` is the head
    /// of the request; `None` if it is malformed or the connection is refused.
    fn response_headers(&self, _head: Option<&Head>) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Builds the response when the server itself refuses a request or a connection (400, 408, 413, 414, 417, 431, 500,
    /// 501, 503, 505). `peer` is the address of the client, for a log line.
    fn refusal(&self, status: u16, reason: &str, _peer: &str) -> Response {
        Response::text(status, format!("{reason}\n"))
    }
}
