//! Failures of connections and requests.

use crate::kafka::config::BrokerAddress;

/// Why a request failed on a connection. After each of these errors but [`ConnectionErrorKind::Unsupported`] the
/// connection must be dropped: it is unusable, unless the deadline passed before anything was sent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("broker {address}: {reason}")]
pub struct ConnectionError {
    /// The broker.
    pub address: BrokerAddress,
    /// The kind of failure.
    pub kind: ConnectionErrorKind,
    /// What happened, as an error text.
    pub reason: String,
}

/// The kinds of failures. An attempt to connect fails with [`NotSent`](Self::NotSent) or [`Denied`](Self::Denied).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionErrorKind {
    /// No byte of the request was handed to the socket: the connection could not be made, or was closed before.
    NotSent,
    /// The request was sent, at least in part, and no complete response came: the connection closed or failed.
    Lost,
    /// The request was sent, at least in part, and its deadline passed.
    TimedOut,
    /// The response violates the protocol.
    Malformed,
    /// The response is larger than [`max_response_bytes`](crate::kafka::config::ConnectionConfig::max_response_bytes).
    TooLarge,
    /// The broker refused the credentials, or has no such mechanism; a retry needs another configuration. No byte of
    /// the request was handed to the socket.
    Denied,
    /// The broker does not support the request in any version of this client. Nothing was sent.
    Unsupported,
}
