//! Access tokens of the client credentials grant (RFC 6749 section 4.4), cached and shared by the connections of a
//! client.
//!
//! While the cached token is valid, a new one is requested on a thread of its own, so that a slow endpoint delays no
//! connection.
//!
//! Invariants: one thread at a time requests a token; a request is bounded by [`REQUEST_TIMEOUT`], without a valid
//! token also by the deadline of its caller, and its response by [`MAX_RESPONSE_BYTES`]. Error texts name the endpoint
//! and never contain the secret or a token.

mod response;
#[cfg(test)]
mod tests;
mod transport;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::Agent;
use ureq::http::Uri;

use super::config::{OidcConfig, TlsConfig};
use super::resolve::Resolver;
use super::socket::Disconnect;
use crate::locks::{lock, wait_timeout};
use crate::panics;
use crate::supervise::spawn_expendable;
use crate::tls_client::TlsClient;
use response::{explain_refusal, parse};
use transport::{EndpointConnector, EndpointResolver};

/// Limit on the size of a response; tokens have a few kilobytes.
const MAX_RESPONSE_BYTES: u64 = 256 * 1024;
/// A token is replaced after this part of its lifetime, in percent: before the connections that were authenticated with
/// it authenticate again, which is after 80 % of the lifetime that was left at most.
const REFRESH_PERCENT: u32 = 75;
/// Limit on the duration of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A caller waits this long for the replacement of a token that is still valid.
const REPLACEMENT_WAIT: Duration = Duration::from_millis(500);
/// After a failed request the failure is returned without another request for this long.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no token.
#[derive(Clone, Debug)]
pub(super) struct TokenFailure {
    /// The cause, as an error text.
    pub(super) reason: String,
    /// Whether the endpoint refused the client's credentials or request.
    pub(super) is_refusal: bool,
}

/// The current access token.
pub(super) struct TokenCache {
    config: OidcConfig,
    resolver: Resolver,
    tls: Option<TlsClient>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    failure: Option<(TokenFailure, Instant)>,
    is_requesting: bool,
}

#[derive(Clone)]
struct Token {
    value: String,
    refresh_at: Instant,
    expires_at: Instant,
}

impl State {
    /// Returns the token if it has not expired.
    fn valid(&self, now: Instant) -> Option<&Token> {
        self.token.as_ref().filter(|token| now < token.expires_at)
    }
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TokenCache").field("config", &self.config).finish_non_exhaustive()
    }
}

impl TokenCache {
    /// Creates an empty cache. The error names the setting that cannot be used.
    pub(super) fn new(config: OidcConfig, resolver: Resolver) -> Result<Self, String> {
        let setting = "sasl.oauthbearer.token.endpoint.url";
        let url: Uri = config.token_url.parse().map_err(|_| format!("{setting} is not a URL"))?;
        // A user name and password in the URL would be shown in error texts.
        let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(format!("{setting} has no host, or credentials in it"));
        }
        let tls = match url.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let tls = TlsConfig {
                    roots: config.roots.clone(),
                    identity: None,
                    verify_certificate: true,
                    verify_host_name: true,
                };
                Some(TlsClient::new(&tls).map_err(|reason| format!("the token endpoint: {reason}"))?)
            }
            _ => return Err(format!("{setting} is neither an http nor an https URL")),
        };
        super::sasl::SaslExchange::oauth_bearer("token", &config.extensions)?;
        Ok(TokenCache { config, resolver, tls, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Returns the SASL extensions that accompany the token.
    pub(super) fn extensions(&self) -> &[(String, String)] {
        &self.config.extensions
    }

    /// Returns a valid token, from the cache if it has one. `disconnect` ends a request that this call must wait for.
    pub(super) fn token(self: &Arc<Self>, deadline: Instant, disconnect: &Disconnect) -> Result<String, TokenFailure> {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let valid = state.valid(now);
            if let Some(token) = valid
                && (now < token.refresh_at || state.is_requesting)
            {
                return Ok(token.value.clone());
            }
            let recent = state.failure.as_ref().filter(|(_, at)| now.saturating_duration_since(*at) < RETRY_PAUSE);
            if let Some((failure, _)) = recent {
                return valid.map(|token| token.value.clone()).ok_or_else(|| failure.clone());
            }
            if !state.is_requesting {
                let value = valid.map(|token| token.value.clone());
                state.is_requesting = true;
                drop(state);
                return match value {
                    Some(value) => Ok(self.replaced(value, deadline)),
                    None => self.renew(deadline.min(now + REQUEST_TIMEOUT), disconnect),
                };
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let reason = self.failed("another thread is still waiting for the response");
                return Err(TokenFailure { reason, is_refusal: false });
            }
            state = wait_timeout(&self.changed, state, left);
        }
    }

    /// Requests a token on another thread. Returns it if it arrives soon, or else `value`, which is valid.
    fn replaced(self: &Arc<Self>, value: String, deadline: Instant) -> String {
        let cache = Arc::clone(self);
        let request = move || {
            // The failure is in the cache.
            let _ = cache.renew(Instant::now() + REQUEST_TIMEOUT, &Disconnect::new());
        };
        if let Err(cause) = spawn_expendable("kafka-token", request) {
            let reason = self.failed(&format!("a thread could not be started: {cause}"));
            let _ = self.finish(Err(TokenFailure { reason, is_refusal: false }));
        }
        let until = deadline.min(Instant::now() + REPLACEMENT_WAIT);
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            if !state.is_requesting || now >= until {
                return state.valid(now).map_or(value, |token| token.value.clone());
            }
            state = wait_timeout(&self.changed, state, until - now);
        }
    }

    /// Requests a token and stores the outcome. The caller has set `is_requesting`.
    fn renew(&self, deadline: Instant, disconnect: &Disconnect) -> Result<String, TokenFailure> {
        let outcome = panics::catch(|| self.request(deadline, disconnect))
            .unwrap_or_else(|panic| Err(TokenFailure { reason: self.failed(&panic), is_refusal: false }));
        self.finish(outcome)
    }

    /// Stores the outcome of a request, and returns the token that is valid now.
    fn finish(&self, outcome: Result<Token, TokenFailure>) -> Result<String, TokenFailure> {
        let mut state = lock(&self.state);
        state.is_requesting = false;
        self.changed.notify_all();
        match outcome {
            Ok(token) => {
                let value = token.value.clone();
                state.token = Some(token);
                state.failure = None;
                Ok(value)
            }
            Err(failure) => {
                let now = Instant::now();
                state.failure = Some((failure.clone(), now));
                state.valid(now).map(|token| token.value.clone()).ok_or(failure)
            }
        }
    }

    /// Requests a token from the endpoint.
    fn request(&self, deadline: Instant, disconnect: &Disconnect) -> Result<Token, TokenFailure> {
        let failure = |reason: &str| TokenFailure { reason: self.failed(reason), is_refusal: false };
        let connector = EndpointConnector { tls: self.tls.clone(), deadline, disconnect: disconnect.clone() };
        let resolver = EndpointResolver { resolver: self.resolver.clone(), deadline, stop: disconnect.stop().clone() };
        let agent_config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .accept_encoding("")
            .build();
        let agent = Agent::with_parts(agent_config, connector, resolver);
        let requested_at = Instant::now();
        // Id and secret are not URL-encoded: Kafka's Java client and librdkafka do not encode them by default, although
        // RFC 6749 section 2.3.1 says so, and some providers do not decode them.
        let credentials = STANDARD.encode(format!("{}:{}", self.config.client_id, self.config.client_secret));
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &self.config.scope {
            form += &format!("&scope={}", form_encoded(scope));
        }
        let mut response = agent
            .post(&self.config.token_url)
            .header("Authorization", format!("Basic {credentials}"))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .send(form)
            .map_err(|cause| failure(&shown(&cause)))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec();
        let body = body.map_err(|cause| failure(&format!("the response cannot be read: {}", shown(&cause))))?;
        if status != 200 {
            let reason = format!("status {status}{}", explain_refusal(&body, &self.config.client_secret));
            // RFC 6749 section 5.2: 400 and 401 are errors of the client.
            let is_refusal = matches!(status, 400 | 401 | 403);
            return Err(TokenFailure { reason: self.failed(&reason), is_refusal });
        }
        let (value, lifetime) = parse(&body, SystemTime::now()).map_err(|reason| failure(&reason))?;
        let at = |part: Duration| requested_at.checked_add(part).unwrap_or(requested_at);
        let refresh_at = at(lifetime * REFRESH_PERCENT / 100);
        Ok(Token { value, refresh_at, expires_at: at(lifetime) })
    }

    fn failed(&self, reason: &str) -> String {
        format!("cannot get an access token from {}: {reason}", self.config.token_url)
    }
}

/// Returns an error without the prefix that ureq adds to errors of sockets.
fn shown(cause: &ureq::Error) -> String {
    match cause {
        ureq::Error::Io(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

/// Encodes a value of a form (`application/x-www-form-urlencoded`).
fn form_encoded(value: &str) -> String {
    let mut encoded = String::new();
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => encoded.push(byte.into()),
            b' ' => encoded.push('+'),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
