//! The configuration of kproxy; `conf/kproxy.yaml` is its reference.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::access::AccessConfig;
use super::content_coding::CommitCoding;
use super::cors::AllowedOrigins;
use crate::broker::{Engine, KafkaSettings, PartitionerKind, Role};
use crate::config::{Problems, Section};
use crate::daemon::{Settings, shutdown_grace};
use crate::http::{ClientCertificates, HeadLimits, Listen, Tls, TlsSettings};
use crate::logging::LogConfig;

/// Largest `max_request_size_bytes`: with all that belongs to it, a message must stay below the 2 GiB of a Kafka
/// request.
const MAX_MESSAGE_BYTES: usize = 1_000_000_000;

/// Largest `max_uri_bytes` and `max_header_bytes`.
const MAX_HEAD_BYTES: usize = 1 << 20;

/// The whole configuration of kproxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// `log_dir`, `log_level`.
    pub log: LogConfig,
    /// `listen` and `port`: the address for clients.
    pub listen: Listen,
    /// `admin_port`: a separate port for `/metrics`, `/healthz`, `/readyz` and the page.
    pub admin: Option<Listen>,
    /// `tls`: the certificates; `None` serves plain HTTP.
    pub tls: Option<Tls>,
    /// `http_threads`: threads that read requests and, when many are in flight, answer them.
    pub http_threads: NonZeroUsize,
    /// `read_timeout_ms`: longest time from the first byte of a request to its last.
    pub read_timeout: Duration,
    /// `write_timeout_ms`: time for a client to receive an answer.
    pub write_timeout: Duration,
    /// `idle_timeout_ms`: longest time from an answer to the next request.
    pub idle_timeout: Duration,
    /// `max_connections`: largest number of open client connections.
    pub max_connections: NonZeroUsize,
    /// `max_connections_per_ip`: largest number of open connections from one address; `None` (0 in the file) means no
    /// limit.
    pub max_connections_per_ip: Option<usize>,
    /// `max_uri_bytes` and `max_header_bytes`: bounds of a request's head.
    pub head: HeadLimits,
    /// `req_pool_size`: largest number of messages in flight to Kafka.
    pub max_commits: NonZeroUsize,
    /// `max_in_flight_bytes`: memory of all requests, including those still arriving.
    pub max_in_flight_bytes: NonZeroUsize,
    /// `max_request_size_bytes`: largest value of one message.
    pub max_message_bytes: NonZeroUsize,
    /// `max_batch_messages`: largest number of messages in one `/commit_batch`.
    pub max_batch_messages: NonZeroUsize,
    /// `max_batch_bytes`: largest body of one `/commit_batch`.
    pub max_batch_bytes: NonZeroUsize,
    /// `content_encoding`: what happens with the body of a `/commit` that has a content coding.
    pub(super) commit_coding: CommitCoding,
    /// `commit_timeout_ms`: longest time from a complete request to Kafka's confirmation.
    pub commit_timeout: Duration,
    /// `allowed_topics`, `credentials_file` and `rate_limits`.
    pub access: AccessConfig,
    /// `allowed_origins`: origins whose pages may use kproxy; `None` answers without any of CORS.
    pub(super) origins: Option<AllowedOrigins>,
    /// `broker_hosts`: bootstrap servers.
    pub broker_hosts: Vec<String>,
    /// `kafka_client`: the Kafka client library.
    pub engine: Engine,
    /// `kafka`: settings of the Kafka client.
    pub kafka: KafkaSettings,
    /// `partitioner`: chooses the partition of a message that has a key and no `partition=`.
    pub partitioner: PartitionerKind,
    /// `producer_num`: number of producers.
    pub producers: NonZeroUsize,
    /// `shutdown_grace_ms`: time to finish requests in progress when the daemon stops.
    pub shutdown_grace: Duration,
}

impl Settings for Config {
    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn shutdown_grace(&self) -> Duration {
        self.shutdown_grace
    }
}

impl Config {
    /// Loads a file, or returns every problem in it.
    pub fn load(file: &Path) -> Result<Config, Problems> {
        let mut problems = Problems::default();
        let mut section = Section::load(file, &mut problems);
        let config = Config::take(&mut section, &mut problems);
        section.finish(&mut problems);
        problems.or(config)
    }

    fn take(section: &mut Section, problems: &mut Problems) -> Config {
        let log = LogConfig::from_section(section, problems);
        let address = address(section, problems);
        let port = section.port("port", Some(5030), problems);
        let admin_port = section.optional_port("admin_port", problems);
        if admin_port.is_some_and(|admin| admin == port && port != 0) {
            section.note("admin_port", "must differ from port", problems);
        }
        let at = |port| address.map_or(Listen::Everywhere(port), |address| Listen::At((address, port).into()));
        let max_message_bytes = section.count("max_request_size_bytes", Some(10_485_760), MAX_MESSAGE_BYTES, problems);
        let max_in_flight_bytes = section.count("max_in_flight_bytes", Some(268_435_456), 1 << 40, problems);
        let head = head_limits(section, problems);
        let largest_request = max_message_bytes.get() + 2 * head.head;
        if max_in_flight_bytes.get() < largest_request {
            section.note(
                "max_in_flight_bytes",
                format!(
                    "is {max_in_flight_bytes}, but must be at least {largest_request}, the largest request \
                     (max_request_size_bytes + 2 * max_header_bytes)"
                ),
                problems,
            );
        }
        let max_batch_bytes =
            section.count("max_batch_bytes", Some(max_message_bytes.get()), MAX_MESSAGE_BYTES, problems);
        let largest_batch = max_in_flight_bytes.get().saturating_sub(2 * head.head);
        // If max_in_flight_bytes is too small for one request, only that problem is reported.
        if max_batch_bytes.get() > largest_batch && largest_request <= max_in_flight_bytes.get() {
            section.note(
                "max_batch_bytes",
                format!(
                    "is {max_batch_bytes}, but must be at most {largest_batch} \
                     (max_in_flight_bytes - 2 * max_header_bytes)"
                ),
                problems,
            );
        }
        let commit_timeout = section.millis("commit_timeout_ms", Some(30_000), 10..=900_000, problems);
        let broker_hosts = section.hosts("broker_hosts", true, problems).unwrap_or_default();
        let engine = Engine::from_section(section, problems);
        let role = Role::Writes { timeout: commit_timeout };
        let kafka = engine.settings_from_section(section, role, problems);
        Config {
            log,
            listen: at(port),
            admin: admin_port.map(at),
            tls: tls(section, problems),
            http_threads: section.count("http_threads", Some(2), 64, problems),
            read_timeout: section.timeout("read_timeout_ms", 100, problems),
            write_timeout: section.timeout("write_timeout_ms", 100, problems),
            idle_timeout: section.millis("idle_timeout_ms", Some(75_000), 1..=86_400_000, problems),
            max_connections: section.count("max_connections", Some(16_384), 1_000_000, problems),
            max_connections_per_ip: Some(section.integer("max_connections_per_ip", Some(0), 0..=1_000_000, problems))
                .and_then(|max| usize::try_from(max).ok())
                .filter(|max| *max > 0),
            head,
            max_commits: section.count("req_pool_size", Some(10_240), 1_000_000, problems),
            max_in_flight_bytes,
            max_message_bytes,
            max_batch_messages: section.count("max_batch_messages", Some(1000), 100_000, problems),
            max_batch_bytes,
            commit_coding: section.choice(
                "content_encoding",
                &[("keep", CommitCoding::Keep), ("decode", CommitCoding::Decode), ("refuse", CommitCoding::Refuse)],
                problems,
            ),
            commit_timeout,
            access: AccessConfig::from_section(section, problems),
            origins: AllowedOrigins::from_section(section, problems),
            broker_hosts,
            engine,
            kafka,
            partitioner: section.choice(
                "partitioner",
                &[("fnv1a", PartitionerKind::Fnv1a), ("murmur2", PartitionerKind::Murmur2)],
                problems,
            ),
            producers: section.count("producer_num", Some(1), 16, problems),
            shutdown_grace: shutdown_grace(section, problems),
        }
    }
}

/// Takes `max_uri_bytes` and `max_header_bytes`; the latter includes the URI.
fn head_limits(section: &mut Section, problems: &mut Problems) -> HeadLimits {
    let default = HeadLimits::default();
    let uri = section.count("max_uri_bytes", Some(default.uri), MAX_HEAD_BYTES, problems).get();
    let head = section.count("max_header_bytes", Some(default.head), MAX_HEAD_BYTES, problems).get();
    if uri >= head {
        let text = format!("is {uri}, but must be less than max_header_bytes ({head}), which includes the URI");
        section.note("max_uri_bytes", text, problems);
    }
    HeadLimits { uri, head }
}

/// Takes `listen`; returns `None` for all addresses.
fn address(section: &mut Section, problems: &mut Problems) -> Option<IpAddr> {
    let text = section.string("listen", Some("*"), problems);
    if text == "*" {
        return None;
    }
    let address = text.parse().ok();
    if address.is_none() {
        section.note("listen", format!("is {text:?}, but must be an IP address, or \"*\" for all addresses"), problems);
    }
    address
}

/// Takes `tls` and loads its files; returns `None` when the key is absent, or with a problem.
fn tls(section: &mut Section, problems: &mut Problems) -> Option<Tls> {
    let before = problems.0.len();
    let mut tls = section.section("tls", false, problems)?;
    if cfg!(not(feature = "tls")) {
        section.note("tls", "is set, but this build has no TLS (cargo feature tls)", problems);
        return None;
    }
    let certificate = PathBuf::from(tls.string("certificate_file", None, problems));
    let key = PathBuf::from(tls.string("key_file", None, problems));
    let client_ca = tls.has("client_ca_file").then(|| tls.string("client_ca_file", None, problems).into());
    if client_ca.is_none() && tls.has("client_certificates") {
        tls.note("client_certificates", "needs client_ca_file", problems);
    }
    let choices = [("required", ClientCertificates::Required), ("optional", ClientCertificates::Optional)];
    let client_certificates = tls.choice("client_certificates", &choices, problems);
    let handshake_timeout = tls.millis("handshake_timeout_ms", Some(10_000), 1..=3_600_000, problems);
    // With a problem in the keys the files are not opened.
    if problems.0.len() > before {
        tls.finish(problems);
        return None;
    }
    let settings = TlsSettings { certificate, key, client_ca, client_certificates, handshake_timeout };
    let loaded =
        Tls::load(settings).map_err(|wrong| wrong.iter().for_each(|(key, text)| tls.note(key, text, problems)));
    tls.finish(problems);
    loaded.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference::{assert_has_all, in_force, keys_of};
    use std::fs;

    const ORIGINAL: &str = include_str!("../../tests/fixtures/original/kproxy.yaml");
    const REFERENCE: &str = include_str!("../../conf/kproxy.yaml");

    fn load(text: &str) -> Result<Config, Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(file.path())
            .map_err(|problems| problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect())
    }

    #[test]
    fn the_configuration_of_the_original_loads_unchanged() {
        let config = load(ORIGINAL).unwrap();
        assert_eq!(config.listen, Listen::Everywhere(5030));
        assert_eq!(config.read_timeout, Duration::from_millis(100));
        assert_eq!((config.max_commits.get(), config.max_message_bytes.get()), (10_240, 10_485_760));
        assert_eq!(config.broker_hosts, ["10.1.4.17:5031", "10.1.5.17:5031"]);
        assert_eq!(config.commit_timeout, Duration::from_secs(30));
        assert_eq!(config.admin, None);
        assert_eq!((config.max_batch_messages.get(), config.max_batch_bytes.get()), (1000, 10_485_760));
    }

    #[test]
    fn a_timeout_of_0_is_none_as_in_the_original() {
        let config = load(&ORIGINAL.replace("timeout_ms: 100", "timeout_ms: 0")).unwrap();
        assert_eq!([config.read_timeout, config.write_timeout], [Duration::from_secs(3600); 2]);
    }

    #[test]
    fn the_reference_shows_every_key_with_its_default() {
        let mut keys = keys_of(include_str!("config.rs"));
        for source in [
            include_str!("access/control.rs"),
            include_str!("access/topic_rates.rs"),
            include_str!("../access/rate.rs"),
        ] {
            keys.extend(keys_of(source));
        }
        let in_force = in_force(REFERENCE, &keys);
        assert_has_all(&keys, &in_force);
        let in_force = without_tls(&in_force);
        let hosts = &REFERENCE[REFERENCE.find("broker_hosts:\n").unwrap()..];
        let minimal = load(hosts).unwrap();
        assert_eq!(format!("{:?}", load(REFERENCE).unwrap()), format!("{minimal:?}"));
        // The keys without a default, with the examples of the reference.
        let examples = "admin_port: 5031
allowed_origins: ['https://app.example', 'http://localhost:3000']
allowed_topics: [audit, 'orders.*']
credentials_file: ./conf/kproxy.credentials.yaml
rate_limits:
 - {topics: ['orders.*'], requests_per_second: 2000, bytes_per_second: 10485760, burst_seconds: 2}
 - {topics: ['*'], requests_per_second: 500}
";
        let minimal_with_examples = load(&format!("{examples}{hosts}")).unwrap();
        assert_eq!(format!("{:?}", load(&in_force).unwrap()), format!("{minimal_with_examples:?}"));
    }

    /// The configuration without its `tls` section.
    fn without_tls(file: &str) -> String {
        let mut is_inside = false;
        let outside = file.lines().filter(|line| {
            is_inside = *line == "tls:" || is_inside && line.starts_with(' ');
            !is_inside
        });
        outside.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    #[cfg(feature = "tls")]
    fn tls_is_loaded_with_its_files_or_their_problems_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let clients = crate::certificates::Authority::new(folder.path(), "clients");
        clients.issue("server", 30);
        let place = folder.path().to_str().unwrap();
        let in_force = in_force(REFERENCE, &keys_of(include_str!("config.rs"))).replace("/etc/kproxy/tls", place);
        let tls = load(&in_force).unwrap().tls.unwrap();
        let minimal = format!(
            "tls: {{certificate_file: {place}/server.pem, key_file: {place}/server.key}}\nbroker_hosts: ['a:1']\n"
        );
        let with_ca = minimal.replace("}", &format!(", client_ca_file: {place}/clients.pem}}"));
        assert_eq!(format!("{tls:?}"), format!("{:?}", load(&with_ca).unwrap().tls.unwrap()));
        assert!(load(&minimal).unwrap().tls.is_some());

        for (from, to, starts) in [
            ("server.key", "clients.key", &["tls.key_file: is /"][..]),
            ("server.pem", "no.pem", &["tls.certificate_file: is /"]),
            ("}", ", client_certificates: required}", &["tls.client_certificates: needs client_ca_file"]),
            ("}", ", client_ca_file: 5, x: 1}", &["tls.client_ca_file: is 5", "tls.x: "]),
            (&*format!("certificate_file: {place}/server.pem,"), "", &["tls.certificate_file: is missing"]),
        ] {
            let problems = load(&minimal.replace(from, to)).unwrap_err();
            let as_expected =
                problems.len() == starts.len() && problems.iter().zip(starts).all(|(it, start)| it.starts_with(start));
            assert!(as_expected, "{from} {to}: {problems:?}");
        }
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn tls_is_a_problem_where_it_is_not_built_in() {
        let problems = load("tls: {certificate_file: a, key_file: b}\nbroker_hosts: ['a:1']\n").unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("tls: is set, but this build has no TLS"), "{problems:?}");
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems = load(
            "port: 70000\nlisten: here\nreq_pool_size: 0\nread_timeout_ms: -1\nmax_in_flight_bytes: 5\n\
             prot: 1\nkafka_client: x\n",
        )
        .unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "listen",
                "port",
                "max_in_flight_bytes",
                "broker_hosts",
                "kafka_client",
                "read_timeout_ms",
                "req_pool_size",
                "prot"
            ],
            "{problems:?}"
        );
        let heads =
            "max_uri_bytes: 9000\nmax_header_bytes: 9000\nmax_request_size_bytes: 1000\nmax_in_flight_bytes: 18999\n";
        let problems = load(&format!("{heads}broker_hosts: ['a:1']\n")).unwrap_err();
        assert!(problems.len() == 2 && problems[0].starts_with("max_uri_bytes: "), "{problems:?}");
        assert!(problems[1].starts_with("max_in_flight_bytes: ") && problems[1].contains("19000"), "{problems:?}");
        let batch =
            load("max_in_flight_bytes: 20000000\nmax_batch_bytes: 20000001\nbroker_hosts: ['a:1']\n").unwrap_err();
        assert!(batch.len() == 1 && batch[0].starts_with("max_batch_bytes: is 20000001, but"), "{batch:?}");
        let origins = load("allowed_origins: ['*', 'https://a/', null]\nbroker_hosts: ['a:1']\n").unwrap_err();
        assert!(origins.len() == 1 && origins[0].starts_with("allowed_origins: "), "{origins:?}");
        let origins = load("allowed_origins: ['*', 'https://a/', 'B']\nbroker_hosts: ['a:1']\n").unwrap_err();
        assert!(origins.len() == 2 && origins[0].starts_with("allowed_origins: has \"https://a/\""), "{origins:?}");
        assert_eq!(load("port: 80\nadmin_port: 80\nbroker_hosts: ['a:1']\n").unwrap_err().len(), 1);
    }
}
