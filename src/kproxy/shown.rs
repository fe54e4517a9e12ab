//! What log lines show of a request.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use super::access::{Permit, without_secrets};

/// Longest part of a query in a log line.
const LOGGED_QUERY: usize = 300;

/// The beginning of a part of a head; as sent it is visible ASCII, so that it can neither break a line nor a character.
pub(super) fn shown(text: &str) -> &str {
    text.get(..LOGGED_QUERY).unwrap_or(text)
}

/// The beginning of a query, without what may be a secret.
pub(super) fn shown_query(query: &str) -> Cow<'_, str> {
    without_secrets(shown(query))
}

/// A client's address, or `-`, and the name of its credential if there is one.
pub(super) struct Peer(pub(super) Option<SocketAddr>, pub(super) Option<Arc<str>>);

impl Peer {
    /// Of a request that goes to the broker, as so many messages in so many bytes: its rates are charged for that.
    pub(super) fn settled(address: Option<SocketAddr>, permit: Option<Permit>, messages: usize, bytes: usize) -> Peer {
        Peer(address, permit.and_then(|permit| permit.settle(messages, bytes)))
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => std::fmt::Display::fmt(&address, formatter),
            None => formatter.write_str("-"),
        }?;
        self.1.as_ref().map_or(Ok(()), |name| write!(formatter, " credential={name}"))
    }
}
