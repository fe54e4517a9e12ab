//! The HTTP client of ktransfer: one attempt to push one message to one backend.
//!
//! `request` builds the request and `pusher` makes the attempt, with the `ureq` crate over our own transport:
//! `connector` opens a connection, whose bytes go through `stream`, with `tls` or without; `connection` enforces the
//! limits of the push and reports the status that it reads with `head`. `exchange` is the state of a push that the
//! worker, its connections and the dispatcher share, so that the dispatcher can cut it. `client` creates all of this
//! for a module, with the settings in `profile`, which a reload may change; `resolver` looks the backends' names up.
//!
//! Invariants:
//! - No byte of a request is written unless the lease of the message's claim is valid at that moment. A push ends when
//!   its lease ends, or when the dispatcher cuts it.
//! - Once a final status was received, nothing that follows can change the outcome.

mod agent;
mod buffers;
mod client;
mod connection;
mod connector;
mod exchange;
mod head;
mod name_lookup;
mod profile;
mod pusher;
mod request;
mod resolver;
mod retry_after;
mod signature;
mod stream;
mod timeouts;
mod tls;
#[cfg(test)]
#[cfg(feature = "tls")]
mod tls_fixtures;

pub(super) use client::HttpClient;
pub(super) use profile::ClientProfile;
pub(super) use pusher::{PushEnd, Pusher};
pub(super) use request::{HTTPS, IdempotencyKey, check_header, check_server};
pub(super) use resolver::BackendResolver;
pub(super) use signature::{SIGNATURE_HEADERS, SigningSecret};
pub(super) use tls::BackendTls;
