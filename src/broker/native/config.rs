//! Converts the configuration of the daemons into that of the client in `src/kafka`. Reads the PEM files.
//!
//! Invariant: no error text contains a value that may be secret.

use std::path::Path;
use std::time::Duration;

use super::values::{boolean, millis, parse_pairs};
use crate::broker::settings::SettingProblem;
use crate::broker::{BrokerConfig, FetcherConfig, KafkaSettings};
use crate::kafka::backoff::Backoff;
use crate::kafka::config::{
    AddressFamily, BrokerAddress, ConnectionConfig, Identity, OidcConfig, SaslConfig, ScramHash, Security, TlsConfig,
    TokenSource, TrustRoots,
};
use crate::kafka::connection::Connector;
use crate::kafka::fetch::FetchConfig;
use crate::regular_file::{self, ReadError};

/// Limit on the size of a PEM file in bytes; larger than any list of authorities.
const MAX_FILE_BYTES: usize = 4 << 20;
/// Bounds of the default of `socket.connection.setup.timeout.ms`, which is the timeout of a metadata request.
const DEFAULT_CONNECT_TIMEOUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// Default of `socket.timeout.ms`. Longer than a broker waits for its replicas (`request.timeout.ms`).
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Default of `connections.max.idle.ms`: a minute less than a broker waits (`connections.max.idle.ms` there), so that
/// the client does not send a request on a connection that the broker is closing.
const DEFAULT_MAX_IDLE: Duration = Duration::from_secs(9 * 60);
/// Defaults of `reconnect.backoff.ms` and `reconnect.backoff.max.ms`, and of `retry.backoff.ms` and
/// `retry.backoff.max.ms`.
const DEFAULT_BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// Default of `fetch.wait.max.ms`.
const DEFAULT_FETCH_WAIT: Duration = Duration::from_millis(500);
/// Largest response to a request for metadata or offsets: 100,000 partitions have some 10 MB.
pub(super) const MAX_METADATA_RESPONSE_BYTES: usize = 100 << 20;
/// Bytes of a fetch response beside the record data.
const FETCH_RESPONSE_OVERHEAD_BYTES: usize = 1 << 20;
/// `connections.max.idle.ms: 0`: no limit.
const NO_IDLE_LIMIT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Returns the addresses of the bootstrap brokers (`host:port`, an IPv6 address in brackets).
pub(super) fn bootstrap(hosts: &[String]) -> Result<Vec<BrokerAddress>, String> {
    let address = |text: &String| {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (!host.is_empty()).then(|| BrokerAddress { host: host.into(), port })
        });
        parsed.ok_or_else(|| format!("{text:?} is no broker address: it must be host:port"))
    };
    hosts.iter().map(address).collect()
}

/// Makes what connects to the brokers. `max_response_bytes` is the largest response accepted.
pub(super) fn connector(broker: &BrokerConfig, max_response_bytes: usize) -> Result<Connector, String> {
    let connector = Connector::new(connection(broker, max_response_bytes)?);
    connector.check()?;
    Ok(connector)
}

/// Returns the configuration of every connection.
fn connection(broker: &BrokerConfig, max_response_bytes: usize) -> Result<ConnectionConfig, String> {
    let settings = &broker.settings;
    let [min, max] = DEFAULT_CONNECT_TIMEOUT;
    let connect_timeout = millis(settings, "socket.connection.setup.timeout.ms");
    let max_idle = match millis(settings, "connections.max.idle.ms") {
        Some(Duration::ZERO) => NO_IDLE_LIMIT,
        idle => idle.unwrap_or(DEFAULT_MAX_IDLE),
    };
    Ok(ConnectionConfig {
        client_id: settings.get("client.id").unwrap_or(&broker.client_id).to_owned(),
        connect_timeout: connect_timeout.unwrap_or_else(|| broker.request_timeout.clamp(min, max)),
        request_timeout: millis(settings, "socket.timeout.ms").unwrap_or(DEFAULT_REQUEST_TIMEOUT),
        max_idle,
        max_response_bytes,
        security: security(settings).map_err(|(key, text)| format!("kafka.{key} {text}"))?,
        address_family: match settings.get("broker.address.family").map(str::to_ascii_lowercase).as_deref() {
            Some("v4") => AddressFamily::V4,
            Some("v6") => AddressFamily::V6,
            _ => AddressFamily::Any,
        },
        reconnect_backoff: backoff(settings, "reconnect.backoff"),
        requests: broker.requests.clone(),
    })
}

/// Returns the security of the connections. Fails if a file cannot be read, with the key of the setting that names it.
pub(super) fn security(settings: &KafkaSettings) -> Result<Security, SettingProblem> {
    let protocol = settings.protocol();
    let tls = if protocol.ends_with("SSL") { Some(tls(settings)?) } else { None };
    let sasl = if protocol.starts_with("SASL") { sasl(settings)? } else { None };
    Ok(Security { tls, sasl })
}

fn tls(settings: &KafkaSettings) -> Result<TlsConfig, SettingProblem> {
    let verify_certificate = boolean(settings, "enable.ssl.certificate.verification").unwrap_or(true);
    let identification = settings.get("ssl.endpoint.identification.algorithm").unwrap_or("https");
    let certificates = pem(settings, "ssl.certificate")?;
    let key = pem(settings, "ssl.key")?;
    let identity = match (certificates, key) {
        (Some(certificates_pem), Some(key_pem)) => Some(Identity { certificates_pem, key_pem }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(problem_with(settings, "ssl.certificate", "needs ssl.key.location or ssl.key.pem"));
        }
        (None, Some(_)) => {
            return Err(problem_with(settings, "ssl.key", "needs ssl.certificate.location or ssl.certificate.pem"));
        }
    };
    Ok(TlsConfig {
        roots: roots(settings, "ssl.ca")?,
        identity,
        verify_certificate,
        verify_host_name: verify_certificate && !identification.eq_ignore_ascii_case("none"),
    })
}

/// Returns the SASL settings; `None` without a mechanism, which the check of the settings refuses.
fn sasl(settings: &KafkaSettings) -> Result<Option<SaslConfig>, SettingProblem> {
    let text = |name: &str| settings.get(name).unwrap_or_default().to_owned();
    let (username, password) = (text("sasl.username"), text("sasl.password"));
    Ok(Some(match settings.get("sasl.mechanisms") {
        Some("PLAIN") => SaslConfig::Plain { username, password },
        Some("SCRAM-SHA-256") => SaslConfig::Scram { hash: ScramHash::Sha256, username, password },
        Some("SCRAM-SHA-512") => SaslConfig::Scram { hash: ScramHash::Sha512, username, password },
        Some("OAUTHBEARER") => SaslConfig::OauthBearer(TokenSource::Oidc(OidcConfig {
            token_url: text("sasl.oauthbearer.token.endpoint.url"),
            client_id: text("sasl.oauthbearer.client.id"),
            client_secret: text("sasl.oauthbearer.client.secret"),
            scope: settings.get("sasl.oauthbearer.scope").map(str::to_owned),
            extensions: settings.get("sasl.oauthbearer.extensions").and_then(parse_pairs).unwrap_or_default(),
            roots: roots(settings, "https.ca")?,
        })),
        _ => return Ok(None),
    }))
}

/// Returns the authorities in `PREFIX.location` or `PREFIX.pem`; those of the system if neither is set.
fn roots(settings: &KafkaSettings, prefix: &str) -> Result<TrustRoots, SettingProblem> {
    if settings.get(&format!("{prefix}.location")) == Some("probe") {
        return Ok(TrustRoots::System);
    }
    Ok(pem(settings, prefix)?.map_or(TrustRoots::System, TrustRoots::Pem))
}

/// Returns the bytes of `PREFIX.pem`, or of the file `PREFIX.location`; `None` if neither is set.
fn pem(settings: &KafkaSettings, prefix: &str) -> Result<Option<Vec<u8>>, SettingProblem> {
    if let Some(text) = settings.get(&format!("{prefix}.pem")) {
        return Ok(Some(text.as_bytes().to_vec()));
    }
    let Some(path) = settings.get(&format!("{prefix}.location")) else { return Ok(None) };
    let read = regular_file::read(Path::new(path), MAX_FILE_BYTES);
    read.map(Some).map_err(|cause| {
        let text = match cause {
            ReadError::Folder => {
                format!("is {path:?}, a folder, but must be a file with all certificates (cat FOLDER/*.pem >FILE)")
            }
            _ => format!("is {path:?}, which {cause}"),
        };
        problem_with(settings, prefix, &text)
    })
}

/// Returns a problem with whichever of `PREFIX.location` and `PREFIX.pem` is set.
fn problem_with(settings: &KafkaSettings, prefix: &str, text: &str) -> SettingProblem {
    let names = [format!("{prefix}.location"), format!("{prefix}.pem")];
    let name = names.iter().find(|name| settings.get(name).is_some());
    (name.map_or("", |name| settings.key_of(name)).to_owned(), text.to_owned())
}

/// Returns what is wrong with the contents of the files and texts of these settings, such as a file that is not PEM.
pub(super) fn check(settings: &KafkaSettings) -> Result<(), SettingProblem> {
    let security = security(settings)?;
    let connector = Connector::new(ConnectionConfig { security, ..ConnectionConfig::default() });
    connector.check().map_err(|text| (settings.key_of("security.protocol").to_owned(), text))
}

/// Returns the configuration of a fetcher.
pub(super) fn fetcher(settings: &KafkaSettings, config: &FetcherConfig) -> FetchConfig {
    FetchConfig {
        prefetch_bytes: config.prefetch_bytes,
        max_message_bytes: config.max_message_bytes,
        max_wait: millis(settings, "fetch.wait.max.ms").unwrap_or(DEFAULT_FETCH_WAIT),
        client_rack: settings.get("client.rack").map(Into::into),
        read_committed: true,
    }
}

/// Returns the largest fetch response: a broker returns at least one batch, however large.
pub(super) fn max_fetch_response_bytes(config: &FetcherConfig) -> usize {
    config.prefetch_bytes.max(config.max_message_bytes) + config.max_message_bytes + FETCH_RESPONSE_OVERHEAD_BYTES
}

/// Returns the pauses in `PREFIX.ms` and `PREFIX.max.ms`. If one of them is set beyond the default of the other, the
/// other follows it.
pub(super) fn backoff(settings: &KafkaSettings, prefix: &str) -> Backoff {
    let [default_min, default_max] = DEFAULT_BACKOFF;
    let (min, max) = (millis(settings, &format!("{prefix}.ms")), millis(settings, &format!("{prefix}.max.ms")));
    let min = min.unwrap_or_else(|| default_min.min(max.unwrap_or(default_min)));
    Backoff::new(min, max.unwrap_or(default_max.max(min)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_become_addresses() {
        let hosts = ["kafka-1:9092", "10.0.0.1:1", "[::1]:9093"].map(str::to_owned);
        let shown: Vec<String> = bootstrap(&hosts).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(shown, hosts);
        for wrong in ["kafka", "kafka:0", ":9092", "[]:1", "kafka:99999"] {
            let error = bootstrap(&[wrong.to_owned()]).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
