//! Settings of a client. They contain the contents of files, not paths: the owner of the configuration reads the files.
//!
//! Invariant: `Debug` shows neither a password nor a client secret nor a private key.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::backoff::Backoff;

pub use crate::tls_client::{Identity, TlsConfig, TrustRoots};

/// Address of a broker: host name or IP address, and TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BrokerAddress {
    /// Host name or IP address (IPv6 without brackets).
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// Settings of every connection of a client.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Name under which the broker logs and limits this client (`client.id`).
    pub client_id: String,
    /// Longest time to connect: name lookup, TCP, TLS, SASL and ApiVersions together.
    pub connect_timeout: Duration,
    /// Longest time from the end of a request to the end of its response.
    pub request_timeout: Duration,
    /// A connection without requests for this long is closed by the client (`connections.max.idle.ms`).
    pub max_idle: Duration,
    /// Largest response accepted, in bytes.
    pub max_response_bytes: usize,
    /// Encryption and authentication (`security.protocol`).
    pub security: Security,
    /// Which addresses of a broker are used (`broker.address.family`).
    pub address_family: AddressFamily,
    /// The pauses between attempts to connect to a broker; clone it for each broker (`reconnect.backoff.ms`).
    pub reconnect_backoff: Backoff,
    /// Counts the requests that are sent.
    pub requests: RequestCounter,
}

/// A number of requests, of all clients that have a clone of it.
#[derive(Clone, Debug, Default)]
pub struct RequestCounter(Arc<AtomicU64>);

impl RequestCounter {
    /// Counts one request.
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of requests so far.
    pub fn sent(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Which addresses of a host name are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// All.
    #[default]
    Any,
    /// Only IPv4 addresses.
    V4,
    /// Only IPv6 addresses.
    V6,
}

impl AddressFamily {
    /// Whether an address belongs to the family.
    pub fn contains(self, address: IpAddr) -> bool {
        match self {
            AddressFamily::Any => true,
            AddressFamily::V4 => address.is_ipv4(),
            AddressFamily::V6 => address.is_ipv6(),
        }
    }
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        ConnectionConfig {
            client_id: env!("CARGO_PKG_NAME").to_owned(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            // A broker closes an idle connection after 10 minutes, unless it is configured otherwise.
            max_idle: Duration::from_secs(9 * 60),
            max_response_bytes: 100 << 20,
            security: Security::default(),
            address_family: AddressFamily::Any,
            reconnect_backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
            requests: RequestCounter::default(),
        }
    }
}

/// Encryption and authentication of a connection; none of both by default (`security.protocol=plaintext`).
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// TLS; `None` is a connection without encryption.
    pub tls: Option<TlsConfig>,
    /// SASL; `None` is a connection without it.
    pub sasl: Option<SaslConfig>,
}

/// Settings of SASL: mechanism and credentials.
#[derive(Clone)]
pub enum SaslConfig {
    /// `PLAIN` (RFC 4616): the password is sent to the broker, so it needs TLS.
    Plain {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// `SCRAM-SHA-256` or `SCRAM-SHA-512` (RFC 5802, RFC 7677).
    Scram {
        /// The hash of the mechanism.
        hash: ScramHash,
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// `OAUTHBEARER` (RFC 7628, KIP-255).
    OauthBearer(TokenSource),
}

impl fmt::Debug for SaslConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SaslConfig::Plain { username, .. } => {
                formatter.debug_struct("Plain").field("username", username).finish_non_exhaustive()
            }
            SaslConfig::Scram { hash, username, .. } => {
                formatter.debug_struct("Scram").field("hash", hash).field("username", username).finish_non_exhaustive()
            }
            SaslConfig::OauthBearer(source) => formatter.debug_tuple("OauthBearer").field(source).finish(),
        }
    }
}

/// The hash of a SCRAM mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScramHash {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// Where the access tokens of OAUTHBEARER come from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// The token endpoint of an OpenID Connect provider (KIP-768).
    Oidc(OidcConfig),
}

/// Settings of the client credentials grant (RFC 6749 section 4.4).
#[derive(Clone)]
pub struct OidcConfig {
    /// URL of the token endpoint, `http` or `https` (`sasl.oauthbearer.token.endpoint.url`).
    pub token_url: String,
    /// Client identifier (`sasl.oauthbearer.client.id`).
    pub client_id: String,
    /// Client secret (`sasl.oauthbearer.client.secret`).
    pub client_secret: String,
    /// Scope of the requested token (`sasl.oauthbearer.scope`).
    pub scope: Option<String>,
    /// SASL extensions that the broker receives with the token, as names and values (KIP-342).
    pub extensions: Vec<(String, String)>,
    /// The certificate authorities that may sign the certificate of an `https` endpoint.
    pub roots: TrustRoots,
}

impl fmt::Debug for OidcConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OidcConfig")
            .field("token_url", &self.token_url)
            .field("client_id", &self.client_id)
            .field("scope", &self.scope)
            .field("extensions", &self.extensions)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_contains_no_secret() {
        let oidc = OidcConfig {
            token_url: "https://login/token".into(),
            client_id: "id".into(),
            client_secret: "hidden".into(),
            scope: None,
            extensions: Vec::new(),
            roots: TrustRoots::Pem(b"hidden".to_vec()),
        };
        let identity = Identity { certificates_pem: Vec::new(), key_pem: b"hidden".to_vec() };
        let (username, password) = ("user".to_owned(), "hidden".to_owned());
        let plain = SaslConfig::Plain { username: username.clone(), password: password.clone() };
        let scram = SaslConfig::Scram { hash: ScramHash::Sha256, username, password };
        for sasl in [plain, scram, SaslConfig::OauthBearer(TokenSource::Oidc(oidc))] {
            let tls = TlsConfig {
                roots: TrustRoots::System,
                identity: Some(identity.clone()),
                verify_certificate: true,
                verify_host_name: true,
            };
            let config = ConnectionConfig {
                security: Security { tls: Some(tls), sasl: Some(sasl) },
                ..ConnectionConfig::default()
            };
            let text = format!("{config:?}");
            assert!(!text.contains("hidden") && !text.contains("[104"), "{text}");
            assert!(text.contains("user") || text.contains("id"), "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_as_host_and_port() {
        let shown = |host: &str| BrokerAddress { host: host.into(), port: 9092 }.to_string();
        assert_eq!((shown("kafka"), shown("::1")), ("kafka:9092".into(), "[::1]:9092".into()));
    }
}
