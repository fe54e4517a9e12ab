//! One connection to a broker: connect, requests and responses with deadlines. Used by one thread at a time, which
//! blocks; another thread can end the wait through a [`Disconnect`].
//!
//! A request costs three system calls without TLS: write, poll, read.
//!
//! - `connector`: look-up, TCP, TLS, ApiVersions and SASL, over the addresses of the broker's name.
//! - `channel`: requests and responses on a stream.
//! - `authenticate`: SASL on a channel.
//! - `failure_log`: which failures to connect are logged.

mod authenticate;
mod channel;
mod connector;
mod error;
mod failure_log;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use channel::SentRequest;
pub use connector::Connector;
pub use error::{ConnectionError, ConnectionErrorKind};

pub use super::socket::Disconnect;

use authenticate::Authenticator;
use channel::Channel;

use super::config::BrokerAddress;
use super::frame::RequestBuffer;
use super::protocol::{Request, is_flexible};
use super::wire::Malformed;

/// A connection without traffic for this long is checked before a request is sent: the broker may have closed it, and
/// then the request is known not to have been sent.
const CHECK_AFTER: Duration = Duration::from_millis(50);

/// A connection to a broker that is ready for requests.
pub struct Connection {
    channel: Channel,
    disconnect: Disconnect,
    max_idle: Duration,
    authenticator: Option<Arc<Authenticator>>,
    /// When the client must authenticate again (KIP-368).
    renewal: Option<Instant>,
}

impl Connection {
    /// Returns the address of the broker.
    pub fn address(&self) -> &BrokerAddress {
        self.channel.address()
    }

    /// Returns what closes this connection from another thread.
    pub fn disconnect_handle(&self) -> Disconnect {
        self.disconnect.clone()
    }

    /// Returns the highest version of an API that the broker and this client support.
    pub fn version_of(&self, api_key: i16, supported: (i16, i16)) -> Result<i16, ConnectionError> {
        self.channel.version_of(api_key, supported)
    }

    /// Sends a request and waits for its response.
    pub fn call<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<R::Response, ConnectionError> {
        let sent = self.send(request, deadline)?;
        self.receive::<R>(sent, deadline)
    }

    /// Sends a request; [`receive`](Self::receive) returns its response. Responses come in the order of the requests.
    pub fn send<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<SentRequest, ConnectionError> {
        let version = self.version_of(R::API_KEY, R::VERSIONS)?;
        self.send_with(R::API_KEY, version, is_flexible::<R>(version), deadline, |buffer| {
            request.encode(&mut buffer.bytes, version);
        })
    }

    /// Sends a request whose body `body` appends. Calls [`maintain`](Self::maintain) before.
    pub fn send_with<'a>(
        &mut self,
        api_key: i16,
        version: i16,
        flexible: bool,
        deadline: Instant,
        body: impl FnOnce(&mut RequestBuffer<'a>),
    ) -> Result<SentRequest, ConnectionError> {
        self.maintain(deadline)?;
        self.channel.send_with(api_key, version, flexible, deadline, body)
    }

    /// Notes that a request, the latest one sent, gets no response: Produce with acks=0.
    pub fn expect_no_response(&mut self, _sent: SentRequest) {
        self.channel.expect_no_response();
    }

    /// Waits for the response to the oldest request without one.
    pub fn receive<R: Request>(
        &mut self,
        sent: SentRequest,
        deadline: Instant,
    ) -> Result<R::Response, ConnectionError> {
        self.channel.receive::<R>(sent, deadline)
    }

    /// Waits for the response to the oldest request without one and decodes its body with `decode`.
    pub fn receive_with<T>(
        &mut self,
        sent: SentRequest,
        deadline: Instant,
        decode: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, ConnectionError> {
        self.channel.receive_with(sent, deadline, decode)
    }

    /// Makes the connection fit for a request: fails with [`ConnectionErrorKind::NotSent`] if the broker has closed it,
    /// and authenticates again if most of the session's lifetime has passed. Does nothing while a request is in flight;
    /// so at least once in a tenth of the session's lifetime there must be none. Waits only to authenticate.
    pub fn maintain(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        if self.channel.in_flight() > 0 {
            return Ok(());
        }
        let now = Instant::now();
        if now >= deadline {
            let reason = "the deadline passed before the request was sent".to_owned();
            return Err(self.channel.error(ConnectionErrorKind::NotSent, reason));
        }
        if now.saturating_duration_since(self.channel.last_used()) > CHECK_AFTER && self.channel.is_closed() {
            let reason = "the broker closed the connection while it was idle".to_owned();
            return Err(self.channel.error(ConnectionErrorKind::NotSent, reason));
        }
        if let (Some(renewal), Some(authenticator)) = (self.renewal, &self.authenticator)
            && renewal <= now
        {
            let outcome = authenticator.authenticate(&mut self.channel, &self.disconnect, deadline);
            self.renewal = outcome.map_err(|error| {
                // The broker is in the middle of an exchange, or about to close the connection.
                self.channel.set_broken();
                before_request("re-authentication failed", error)
            })?;
        }
        Ok(())
    }

    /// When [`maintain`](Self::maintain) will authenticate again; `None` if the session has no limit.
    pub fn renewal(&self) -> Option<Instant> {
        self.renewal
    }

    /// Whether the connection is unusable: a request has failed, the broker has closed it, or it has sent bytes that
    /// belong to no request. Does not block. While a request is in flight a close is not noticed;
    /// [`receive`](Self::receive) notices it.
    pub fn is_closed(&mut self) -> bool {
        self.channel.is_closed()
    }

    /// Whether the connection has had no request for longer than `max_idle` and should be dropped: the broker is about
    /// to close it.
    pub fn is_idle_too_long(&self, now: Instant) -> bool {
        self.channel.in_flight() == 0 && now.saturating_duration_since(self.channel.last_used()) >= self.max_idle
    }
}

/// Converts a failure of something that precedes a request: the request itself was not sent.
fn before_request(phase: &str, error: ConnectionError) -> ConnectionError {
    let kind = match error.kind {
        ConnectionErrorKind::Denied => ConnectionErrorKind::Denied,
        _ => ConnectionErrorKind::NotSent,
    };
    ConnectionError { kind, reason: format!("{phase}: {}", error.reason), ..error }
}
