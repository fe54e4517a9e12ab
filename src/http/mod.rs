//! The HTTP server of all three daemons: HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) on non-blocking sockets.
//!
//! A [`Handler`] gets each complete request together with a [`Reply`]. The reply owns the connection until it sends the
//! response, from any thread. No thread blocks while the outcome of a request is pending.
//!
//! ```text
//!  acceptor ──socket──▶ reader http-i: poller, connections, deadlines
//!                          │ bytes ▶ parser (pure) ▶ Handler::admit(head) ▶ then(request, reply)
//!                          ◀── a message, only if work is left for the reader ── Reply::send writes the response
//!                          ◀── a DeferredResponse to build and send ──────────── DeferredResponses, for many at once
//! ```
//!
//! Reading order: `scan`, `target`, `head` and `body` (bytes to requests, pure), `parser` (these combined, pure),
//! `handler`, `connection` (which thread may write when), `unsent`, `reply`, `inbox`, `tls`, `reader`, `acceptor`,
//! `control`, `server`; `query` and `conditional` are for the handlers. The server does not know the meaning of a path,
//! query or body.
//!
//! Invariants: one request of a connection is in progress at a time, and responses are sent in the order of the
//! requests; a request with ambiguous framing is refused and its connection closed; memory grows with the bytes that
//! arrived, never with an announced length, and all memory of requests is within `body_budget`, if it is set; the
//! memory of large responses is within a budget too, and a body that many responses share is never copied; the number
//! of threads is fixed.

mod acceptor;
mod body;
mod budget;
mod conditional;
mod connection;
mod control;
mod deadlines;
mod deferred;
mod deferred_responses;
mod encode;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
mod handler;
mod head;
mod inbox;
mod limits;
mod listen;
mod message;
mod metrics;
mod older_pages;
mod parser;
mod poller;
mod query;
mod reader;
mod refusal;
mod reply;
mod response_body;
mod scan;
mod server;
mod target;
#[cfg(test)]
mod tests;
mod tls;
mod unsent;
mod write_limits;

pub use budget::{ByteBudget, ByteLease};
pub use conditional::Version;
pub use deferred::DeferredResponse;
pub use deferred_responses::{DeferredResponses, HasReply};
pub use handler::{Admission, Handler, RequestHandler};
pub use limits::ServerLimits;
pub use listen::Listen;
pub use message::{Head, Headers, Request, Response};
pub use metrics::ServerMetrics;
pub use older_pages::OlderPages;
pub use query::{QueryPair, percent_decode, query_pairs};
pub use refusal::{SHUTTING_DOWN, UNANSWERED};
pub use reply::Reply;
pub use response_body::{Body, PageWatch, SharedBytes};
pub use scan::HeadLimits;
pub use server::{Server, ServerConfig};
pub use tls::{ClientCertificates, FileProblem, Tls, TlsSettings};
pub use write_limits::WriteLimits;
