//! The configuration of kproxy; `conf/kproxy.yaml` is its reference.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use crate::broker::{Engine, KafkaSettings, PartitionerKind, Role};
use crate::config::{Problems, Section};
use crate::daemon::{Settings, shutdown_grace};
use crate::http::Listen;
use crate::logging::LogConfig;

/// What librdkafka and brokers can be told at most.
const MOST_MESSAGE_BYTES: usize = 1_000_000_000;

/// Everything kproxy is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `log_dir`, `log_level`.
    pub log: LogConfig,
    /// `listen` and `port`: where clients post to.
    pub listen: Listen,
    /// `admin_port`: one more port for `/metrics`, `/healthz` and `/readyz`.
    pub admin: Option<Listen>,
    /// `http_threads`: threads that read requests.
    pub http_threads: NonZeroUsize,
    /// `read_timeout_ms`: from the first byte of a request to its last.
    pub read_timeout: Duration,
    /// `write_timeout_ms`: for an answer to be taken.
    pub write_timeout: Duration,
    /// `idle_timeout_ms`: from an answer to the next request.
    pub idle_timeout: Duration,
    /// `max_connections`.
    pub max_connections: NonZeroUsize,
    /// `req_pool_size`: commits that wait for Kafka.
    pub max_commits: NonZeroUsize,
    /// `max_in_flight_bytes`: bodies in memory, those that are still arriving included.
    pub max_in_flight_bytes: NonZeroUsize,
    /// `max_request_size_bytes`.
    pub max_message_bytes: NonZeroUsize,
    /// `commit_timeout_ms`: from a complete request to Kafka's confirmation.
    pub commit_timeout: Duration,
    /// `broker_hosts`.
    pub broker_hosts: Vec<String>,
    /// `kafka_client`.
    pub engine: Engine,
    /// `kafka`: settings of librdkafka.
    pub kafka: KafkaSettings,
    /// `partitioner`.
    pub partitioner: PartitionerKind,
    /// `producer_num`.
    pub producers: NonZeroUsize,
    /// `shutdown_grace_ms`.
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
    /// Reads a file, or tells everything that is wrong with it.
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
            section.note("admin_port", "is the same as port, but must be another one", problems);
        }
        let at = |port| address.map_or(Listen::Everywhere(port), |address| Listen::At((address, port).into()));
        let max_message_bytes = section.count("max_request_size_bytes", Some(10_485_760), MOST_MESSAGE_BYTES, problems);
        let max_in_flight_bytes = section.count("max_in_flight_bytes", Some(268_435_456), 1 << 40, problems);
        if max_in_flight_bytes < max_message_bytes {
            section.note(
                "max_in_flight_bytes",
                format!("is {max_in_flight_bytes}, but must be at least max_request_size_bytes, {max_message_bytes}"),
                problems,
            );
        }
        let commit_timeout = section.millis("commit_timeout_ms", Some(30_000), 10..=900_000, problems);
        let broker_hosts = section.hosts("broker_hosts", true, problems).unwrap_or_default();
        let engine = Engine::from_section(section, problems);
        let role = Role::Writes { timeout: commit_timeout };
        let kafka = KafkaSettings::from_section(section, engine, role, problems);
        Config {
            log,
            listen: at(port),
            admin: admin_port.map(at),
            http_threads: section.count("http_threads", Some(2), 64, problems),
            read_timeout: section.millis("read_timeout_ms", Some(100), 1..=3_600_000, problems),
            write_timeout: section.millis("write_timeout_ms", Some(100), 1..=3_600_000, problems),
            idle_timeout: section.millis("idle_timeout_ms", Some(60_000), 1..=86_400_000, problems),
            max_connections: section.count("max_connections", Some(16_384), 1_000_000, problems),
            max_commits: section.count("req_pool_size", Some(10_240), 1_000_000, problems),
            max_in_flight_bytes,
            max_message_bytes,
            commit_timeout,
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

/// `listen`; `None` is every address.
fn address(section: &mut Section, problems: &mut Problems) -> Option<IpAddr> {
    let text = section.string("listen", Some("*"), problems);
    if text == "*" {
        return None;
    }
    let address = text.parse().ok();
    if address.is_none() {
        section.note("listen", format!("is {text:?}, but must be an IP address, or \"*\" for all"), problems);
    }
    address
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
    fn the_file_of_the_original_loads_unchanged() {
        let config = load(ORIGINAL).unwrap();
        assert_eq!(config.listen, Listen::Everywhere(5030));
        assert_eq!(config.read_timeout, Duration::from_millis(100));
        assert_eq!((config.max_commits.get(), config.max_message_bytes.get()), (10_240, 10_485_760));
        assert_eq!(config.broker_hosts, ["10.1.4.17:5031", "10.1.5.17:5031"]);
        assert_eq!(config.commit_timeout, Duration::from_secs(30));
        assert_eq!(config.admin, None);
    }

    #[test]
    fn the_reference_shows_every_key_with_its_default() {
        let keys = keys_of(include_str!("config.rs"));
        let in_force = in_force(REFERENCE, &keys);
        assert_has_all(&keys, &in_force);
        let hosts = &REFERENCE[REFERENCE.find("broker_hosts:\n").unwrap()..];
        let least = load(hosts).unwrap();
        assert_eq!(format!("{:?}", load(REFERENCE).unwrap()), format!("{least:?}"));
        let least_with_admin = load(&format!("admin_port: 5031\n{hosts}")).unwrap();
        assert_eq!(format!("{:?}", load(&in_force).unwrap()), format!("{least_with_admin:?}"));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let problems = load(
            "port: 70000\nlisten: here\nreq_pool_size: 0\nread_timeout_ms: 0\nmax_in_flight_bytes: 5\nprot: 1\nkafka_client: x\n",
        )
        .unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "listen",
                "port",
                "max_in_flight_bytes",
                "read_timeout_ms",
                "req_pool_size",
                "broker_hosts",
                "kafka_client",
                "prot"
            ],
            "{problems:?}"
        );
        assert_eq!(load("port: 80\nadmin_port: 80\nbroker_hosts: ['a:1']\n").unwrap_err().len(), 1);
    }
}
