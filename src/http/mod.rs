//! The HTTP server of all three daemons: HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) on non-blocking sockets.
//!
//! A [`Handler`] gets each complete request together with a [`Reply`], which owns the connection until it is
//! answered, from whatever thread the outcome arrives on. No thread waits for an answer.
//!
//! ```text
//!  acceptor ──socket──▶ reader http-i: poller, connections, deadlines
//!                          │ bytes ▶ parser (pure) ▶ Handler::admit(head) ▶ then(request, reply)
//!                          ◀── told only when bytes or events are left for it ── Reply::send writes the answer itself
//!                          ◀── given whole answers to put together and write ───── Reply::defer_to_reader, for many at once
//! ```
//!
//! Reading order: `scan`, `head` and `body` (bytes to requests, pure), `parser` (the three put together, pure),
//! `connection` (who may write when), `inbox`, `tls`, `reader`, `acceptor`, `control`, `server`; `query` serves the
//! handlers. Kept out: what the requests mean.
//!
//! Invariants: one request of a connection is in progress at a time and answers leave in the order of the requests;
//! a request whose framing is in doubt is refused and its connection closed; memory grows with bytes that arrived,
//! never with bytes that were announced, and all that is kept of requests is within one budget; the number of threads is
//! fixed.

mod acceptor;
mod body;
mod budget;
mod connection;
mod control;
mod deadlines;
mod deferred;
mod encode;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod head;
mod inbox;
mod listen;
mod message;
mod parser;
mod poller;
mod query;
mod reader;
mod reply;
mod scan;
mod server;
#[cfg(test)]
mod tests;
mod tls;

use std::sync::Arc;

pub use budget::{ByteBudget, ByteLease};
pub use deferred::DeferredResponse;
pub use listen::Listen;
pub use message::{Head, Headers, Request, Response};
pub use query::percent_decode;
pub use reply::{ReaderHandle, Reply};
pub use scan::HeadLimits;
pub use server::{Server, ServerConfig, ServerLimits, ServerMetrics};
#[cfg(test)]
#[cfg(feature = "tls")]
pub(crate) use tls::certificates;
pub use tls::{ClientCertificates, FileProblem, Tls, TlsSettings};

/// The reason of the 503 that is given while the server drains.
pub const SHUTTING_DOWN: &str = "shutting down";
/// The reason of the 500 that is given when a request was handed over and its [`Reply`] dropped: a bug, after which nobody
/// knows how far the request came.
pub const UNANSWERED: &str = "the request was not answered";

/// Takes a complete request; the reply is answered now or later, from any thread. Called on a reader thread: must not
/// block.
pub type RequestHandler = Box<dyn FnOnce(Request, Reply) + Send>;

/// What is to be done with the body of a request whose head is complete.
pub enum Admission {
    /// Read the body, then call `then`.
    Read {
        /// Largest body in bytes; a larger one is answered with 413.
        max_body_bytes: usize,
        /// Called once the body is complete, with what was found out about the head inside; dropped where it never is.
        then: RequestHandler,
    },
    /// Answer without the body. A short body is read and thrown away, so that the connection can be kept.
    Refuse(Response),
}

/// What a daemon does with requests. Called on the reader threads: must not block.
pub trait Handler: Send + Sync + 'static {
    /// Decides from the head alone, before any of the body is read or allocated.
    fn admit(self: Arc<Self>, head: &Head) -> Admission;

    /// The body of an answer the server itself has to give (400, 408, 413, 414, 417, 431, 500, 501, 503, 505); `reason` in words.
    fn refusal(&self, status: u16, reason: &str) -> Response {
        Response::text(status, format!("{reason}\n"))
    }
}
