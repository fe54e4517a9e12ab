//! SASL on a channel: SaslHandshake, then the messages of the mechanism (KIP-43, KIP-152), also on a connection that is
//! in use (re-authentication, KIP-368).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::error::{ConnectionError, ConnectionErrorKind as Kind};
use crate::kafka::config::{SaslConfig, TokenSource};
use crate::kafka::oauth::TokenCache;
use crate::kafka::protocol::Request;
use crate::kafka::protocol::sasl_authenticate::SaslAuthenticateRequest;
use crate::kafka::protocol::sasl_handshake::SaslHandshakeRequest;
use crate::kafka::resolve::Resolver;
use crate::kafka::sasl::{SaslExchange, Step};
use crate::kafka::socket::Disconnect;
use crate::random::random;

/// Limit on the messages that the client sends; every mechanism needs fewer.
const MAX_MESSAGES: usize = 4;
/// Error codes of the protocol.
const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;
const SASL_AUTHENTICATION_FAILED: i16 = 58;

/// Authenticates connections with the credentials of a client.
#[derive(Debug)]
pub(super) struct Authenticator {
    credentials: Credentials,
}

#[derive(Debug)]
enum Credentials {
    Fixed(SaslConfig),
    Token(Arc<TokenCache>),
}

impl Authenticator {
    pub(super) fn new(config: &SaslConfig, resolver: &Resolver) -> Result<Self, String> {
        let credentials = match config {
            SaslConfig::OauthBearer(TokenSource::Oidc(oidc)) => {
                Credentials::Token(Arc::new(TokenCache::new(oidc.clone(), resolver.clone())?))
            }
            fixed => Credentials::Fixed(fixed.clone()),
        };
        let authenticator = Authenticator { credentials };
        if let Credentials::Fixed(fixed) = &authenticator.credentials {
            exchange_with(fixed)?;
        }
        Ok(authenticator)
    }

    /// Authenticates the channel. Returns when the client must authenticate again, if the broker demands that.
    pub(super) fn authenticate(
        &self,
        channel: &mut Channel,
        disconnect: &Disconnect,
        deadline: Instant,
    ) -> Result<Option<Instant>, ConnectionError> {
        let mut exchange = match &self.credentials {
            Credentials::Fixed(config) => {
                exchange_with(config).map_err(|reason| channel.error(Kind::Denied, format!("SASL: {reason}")))?
            }
            Credentials::Token(tokens) => {
                let token = tokens.token(deadline, disconnect).map_err(|failure| {
                    let kind = if failure.is_refusal { Kind::Denied } else { Kind::NotSent };
                    channel.error(kind, failure.reason)
                })?;
                SaslExchange::oauth_bearer(&token, tokens.extensions())
                    .map_err(|reason| channel.error(Kind::Denied, format!("SASL: {reason}")))?
            }
        };
        let mechanism = exchange.mechanism();
        run(channel, &mut exchange, deadline).map_err(|mut error| {
            error.reason = format!("SASL {mechanism}: {}", error.reason);
            error
        })
    }
}

fn exchange_with(config: &SaslConfig) -> Result<SaslExchange, String> {
    match config {
        SaslConfig::Plain { username, password } => SaslExchange::plain(username, password),
        SaslConfig::Scram { hash, username, password } => SaslExchange::scram(*hash, username, password, &nonce()?),
        SaslConfig::OauthBearer(_) => Err("a token is needed".to_owned()),
    }
}

/// Returns 144 random bits as base64 text.
fn nonce() -> Result<String, String> {
    use base64::Engine;
    let mut bytes = [0_u8; 18];
    let flags = rustix::rand::GetRandomFlags::empty();
    // A call for up to 256 bytes returns all of them (getrandom(2)).
    match rustix::rand::getrandom(&mut bytes, flags) {
        Ok(count) if count == bytes.len() => Ok(base64::engine::general_purpose::STANDARD.encode(bytes)),
        Ok(_) => Err("the system returned too few random bytes".to_owned()),
        Err(cause) => Err(format!("the system returned no random bytes: {cause}")),
    }
}

fn run(
    channel: &mut Channel,
    exchange: &mut SaslExchange,
    deadline: Instant,
) -> Result<Option<Instant>, ConnectionError> {
    type Authenticate = SaslAuthenticateRequest<'static>;
    let authenticate = channel.version_of(Authenticate::API_KEY, Authenticate::VERSIONS).ok();
    // Brokers before 1.0 have no SaslAuthenticate; SaslHandshake version 0 announces messages without headers.
    let supported = if authenticate.is_some() { SaslHandshakeRequest::VERSIONS } else { (0, 0) };
    let handshake = channel.version_of(SaslHandshakeRequest::API_KEY, supported).map_err(|_| {
        let reason = "the listener does not support SASL in a version of this client (security.protocol)";
        channel.error(Kind::Denied, reason.into())
    })?;
    let request = SaslHandshakeRequest { mechanism: exchange.mechanism() };
    let response = channel.call(&request, handshake, deadline)?;
    match response.error_code {
        0 => {}
        UNSUPPORTED_SASL_MECHANISM => {
            let mechanisms = response.mechanisms.join(", ");
            let reason = format!("the listener has other mechanisms (sasl.mechanisms): {mechanisms}");
            return Err(channel.error(Kind::Denied, reason));
        }
        ILLEGAL_SASL_STATE => {
            let reason = "the listener has no SASL (security.protocol)";
            return Err(channel.error(Kind::Denied, reason.into()));
        }
        code => return Err(channel.error(Kind::NotSent, format!("SaslHandshake returned error code {code}"))),
    }
    let mut message = exchange.first_message();
    for _ in 0..MAX_MESSAGES {
        let (received, lifetime) = match authenticate.filter(|_| handshake >= 1) {
            Some(version) => send_message(channel, exchange, &message, version, deadline)?,
            None => (send_raw(channel, &message, deadline)?, None),
        };
        match exchange.next(&received).map_err(|reason| channel.error(Kind::Denied, reason))? {
            Step::Send(next) => message = next,
            Step::Done => return Ok(lifetime.map(renewal)),
        }
    }
    Err(channel.error(Kind::Denied, "the broker does not end the exchange".into()))
}

/// Sends a message as SaslAuthenticate request; returns the broker's message and the lifetime of the session.
fn send_message(
    channel: &mut Channel,
    exchange: &SaslExchange,
    message: &[u8],
    version: i16,
    deadline: Instant,
) -> Result<(Vec<u8>, Option<Duration>), ConnectionError> {
    let response = channel.call(&SaslAuthenticateRequest { message }, version, deadline)?;
    let code = response.error_code;
    if code == 0 {
        let lifetime = u64::try_from(response.session_lifetime_ms).ok().filter(|ms| *ms > 0);
        return Ok((response.message, lifetime.map(Duration::from_millis)));
    }
    let text = response.error_message.unwrap_or_default();
    let details = exchange.refusal().map(|refusal| format!(": {refusal}")).unwrap_or_default();
    Err(match code {
        SASL_AUTHENTICATION_FAILED => {
            channel.error(Kind::Denied, format!("the broker refused the credentials: {text:?}{details}"))
        }
        ILLEGAL_SASL_STATE => channel.error(Kind::Denied, format!("the broker expects no SASL: {text:?}{details}")),
        _ => channel.error(Kind::NotSent, format!("SaslAuthenticate returned error code {code}: {text:?}{details}")),
    })
}

/// Sends a message without headers. Such a broker closes the connection if it refuses the credentials.
fn send_raw(channel: &mut Channel, message: &[u8], deadline: Instant) -> Result<Vec<u8>, ConnectionError> {
    channel.call_raw(message, deadline).map_err(|mut error| {
        if error.kind == Kind::Lost {
            error.kind = Kind::Denied;
            error.reason = format!("the broker refused the credentials: {}", error.reason);
        }
        error
    })
}

/// Returns when to authenticate again: at random after 80 to 90 % of the lifetime, so that the connections of a client
/// do not all do so at once.
fn renewal(lifetime: Duration) -> Instant {
    let part = lifetime.mul_f64(0.8 + 0.1 * (random() % 1000) as f64 / 1000.0);
    let now = Instant::now();
    // A lifetime that cannot be represented never ends.
    now.checked_add(part).unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}
