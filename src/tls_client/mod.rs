//! TLS of a client: [`TlsClient`] is the configuration, [`TlsSession`] the state of one connection, which does no IO.
//!
//! In a build without the cargo feature `tls` both are types without values, and a configuration with TLS is an error.

#[cfg(feature = "tls")]
mod client;
mod config;
#[cfg(not(feature = "tls"))]
mod disabled;
#[cfg(feature = "tls")]
mod failure;
#[cfg(feature = "tls")]
mod session;
#[cfg(feature = "tls")]
mod verifier;

#[cfg(feature = "tls")]
pub(crate) use client::TlsClient;
pub use config::{Identity, TlsConfig, TrustRoots};
#[cfg(not(feature = "tls"))]
pub(crate) use disabled::{TlsClient, TlsSession};
#[cfg(feature = "tls")]
pub(crate) use session::TlsSession;

/// Why a TLS connection failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct TlsFailure {
    /// The cause, as an error text.
    pub(crate) reason: String,
    /// Whether the server refused this client's certificate, or its lack.
    pub(crate) is_refusal: bool,
}

/// The result of [`TlsSession::decrypt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "only a session returns it"))]
pub(crate) enum Decrypted {
    /// This number of bytes was decrypted.
    Bytes(usize),
    /// All received records are decrypted.
    NeedsInput,
    /// The peer has announced that it sends nothing more (close_notify).
    Closed,
}
