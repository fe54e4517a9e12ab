//! The configuration `kmonitor.yaml`: the keys of the original, and optional keys that the original does not have.

use std::path::Path;
use std::time::Duration;

use crate::broker::{Engine, KafkaSettings, Role};
use crate::config::{Problems, Section};
use crate::daemon::{Settings, shutdown_grace};
use crate::keeper::{self, KeeperConfig};
use crate::logging::LogConfig;

use super::report::prometheus::{Detail, DetailLevel};

/// Longest time that a key may have: an hour. A longer time is almost certainly a mistake in the unit.
const MAX_MILLIS: u64 = 3_600_000;

/// Largest `metrics_partitions`. A Prometheus cannot use more series of one process.
const MAX_METRICS_PARTITIONS: usize = 1_000_000;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `base.log_dir`, `base.log_level`.
    pub log: LogConfig,
    /// The clusters listed in `base.clusters`, in the same order; at least one.
    pub clusters: Vec<ClusterConfig>,
    /// Time from the start of one poll of a cluster to the start of the next (`base.poll_interval_ms`).
    pub poll_interval: Duration,
    /// Time to answer requests in flight when the daemon stops (`base.shutdown_grace_ms`).
    pub shutdown_grace: Duration,
    /// Which partitions have metrics (`base.metrics_detail`, `base.metrics_partitions`).
    pub detail: Detail,
    /// Section `http_server`.
    pub http: HttpConfig,
}

/// Section `http_server`.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Port of `/delay`, `/metrics`, `/healthz` and `/readyz`.
    pub port: u16,
    /// A second port, which has `/metrics`, `/healthz` and `/readyz` but not `/delay`.
    pub admin_port: Option<u16>,
    /// Longest time from the first byte of a request to its last (`read_timeout_ms`).
    pub read_timeout: Duration,
    /// Time for a client to receive an answer (`write_timeout_ms`).
    pub write_timeout: Duration,
}

/// The section of one cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The name of the section, which is the name of the cluster in all answers.
    pub name: String,
    /// The ZooKeeper of the cluster: `zk_hosts`, `chroot`, `zk_connect_timeout_ms`, `zk_session_timeout_ms`.
    pub keeper: KeeperConfig,
    /// Which Kafka client reads the newest offsets (`kafka_client`).
    pub engine: Engine,
    /// Settings of the Kafka client (`kafka`).
    pub kafka: KafkaSettings,
    /// Some brokers of the cluster (`broker_hosts`); with `None` the brokers are found in ZooKeeper.
    pub broker_hosts: Option<Vec<String>>,
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
        let mut whole = Section::load(file, &mut problems);
        let base = whole.section("base", true, &mut problems);
        let http = whole.section("http_server", true, &mut problems);
        let base = base.map(|base| Base::take(base, &mut problems));
        let http = http.map(|http| HttpConfig::take(http, &mut problems));
        let mut clusters = Vec::new();
        for name in base.iter().flat_map(|base| &base.clusters) {
            if let Some(section) = whole.section(name, true, &mut problems) {
                clusters.push(ClusterConfig::take(name, section, &mut problems));
            }
        }
        // To switch a cluster off it is enough to remove it from `clusters`. Its section may stay, and is still
        // checked.
        let others: Vec<String> = whole.remaining().collect();
        for name in others {
            if whole.is_map_with(&name, "zk_hosts")
                && let Some(section) = whole.section(&name, false, &mut problems)
            {
                ClusterConfig::take(&name, section, &mut problems);
            }
        }
        whole.finish(&mut problems);
        let config = base.zip(http).map(|(base, http)| Config {
            log: base.log,
            clusters,
            poll_interval: base.poll_interval,
            shutdown_grace: base.shutdown_grace,
            detail: base.detail,
            http,
        });
        match config {
            Some(config) => problems.or(config),
            // The missing section, `base` or `http_server`, is one of the problems.
            None => Err(problems),
        }
    }
}

struct Base {
    log: LogConfig,
    clusters: Vec<String>,
    poll_interval: Duration,
    shutdown_grace: Duration,
    detail: Detail,
}

impl Base {
    fn take(mut base: Section, problems: &mut Problems) -> Self {
        let log = LogConfig::from_section(&mut base, problems);
        let clusters = base.strings("clusters", true, problems).unwrap_or_default();
        for name in clusters.iter().filter(|name| ["base", "http_server"].contains(&name.as_str())) {
            base.note("clusters", format!("has {name:?}, but that section is not a cluster"), problems);
        }
        let poll_interval = base.millis("poll_interval_ms", Some(5_000), 100..=MAX_MILLIS, problems);
        let shutdown_grace = shutdown_grace(&mut base, problems);
        let levels =
            [("auto", DetailLevel::Auto), ("module", DetailLevel::Module), ("partition", DetailLevel::Partition)];
        let detail = Detail {
            level: base.choice("metrics_detail", &levels, problems),
            max_partitions: base.count("metrics_partitions", Some(10_000), MAX_METRICS_PARTITIONS, problems).get(),
        };
        base.finish(problems);
        Base { log, clusters, poll_interval, shutdown_grace, detail }
    }
}

impl HttpConfig {
    fn take(mut http: Section, problems: &mut Problems) -> Self {
        let config = HttpConfig {
            port: http.port("port", None, problems),
            admin_port: http.optional_port("admin_port", problems),
            read_timeout: http.millis("read_timeout_ms", Some(100), 1..=MAX_MILLIS, problems),
            write_timeout: http.millis("write_timeout_ms", Some(100), 1..=MAX_MILLIS, problems),
        };
        if config.port != 0 && config.admin_port == Some(config.port) {
            http.note("admin_port", format!("is {}, but must differ from port", config.port), problems);
        }
        http.finish(problems);
        config
    }
}

impl ClusterConfig {
    fn take(name: &str, mut cluster: Section, problems: &mut Problems) -> Self {
        let keeper = KeeperConfig {
            hosts: cluster.hosts("zk_hosts", true, problems).unwrap_or_default(),
            chroot: keeper::chroot("chroot", &mut cluster, problems),
            session_timeout: cluster.millis("zk_session_timeout_ms", Some(6_000), 500..=MAX_MILLIS, problems),
            connect_timeout: cluster.millis("zk_connect_timeout_ms", Some(1_000), 1..=MAX_MILLIS, problems),
        };
        let engine = Engine::from_section(&mut cluster, problems);
        let kafka = engine.settings_from_section(&mut cluster, Role::Reads, problems);
        let broker_hosts = cluster.hosts("broker_hosts", false, problems);
        cluster.finish(problems);
        ClusterConfig { name: name.to_owned(), keeper, engine, kafka, broker_hosts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference::{assert_has_all, in_force, keys_of};

    const ORIGINAL: &str = include_str!("../../tests/fixtures/original/kmonitor.yaml");
    const REFERENCE: &str = include_str!("../../conf/kmonitor.yaml");

    fn load(text: &str) -> Result<Config, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kmonitor.yaml");
        std::fs::write(&file, text).unwrap();
        let text = |problem: &crate::config::Problem| format!("{}: {}", problem.key, problem.text);
        Config::load(&file).map_err(|problems| problems.0.iter().map(text).collect())
    }

    #[test]
    fn the_file_of_the_original_loads_unchanged() {
        let config = load(ORIGINAL).unwrap();
        let names: Vec<_> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["test_cluster", "common_cluster"]);
        assert_eq!(config.http.port, 55325);
        assert_eq!(config.http.admin_port, None);
        assert_eq!(config.poll_interval, Duration::from_secs(5));
        assert_eq!(config.log.level, 4);
        let cluster = &config.clusters[0];
        assert_eq!(cluster.keeper.chroot, "/mq/test_cluster");
        assert_eq!((cluster.keeper.hosts.len(), &*cluster.keeper.hosts[1]), (5, "10.1.2.1:2181"));
        assert_eq!(cluster.keeper.session_timeout, Duration::from_secs(6));
        assert_eq!((cluster.engine, &cluster.broker_hosts), (Engine::Auto, &None));
    }

    #[test]
    fn all_problems_are_returned_at_once() {
        let text = ORIGINAL
            .replace("log_level: 4", "log_level: 17")
            .replace("chroot: /mq/test_cluster", "chroot: mq/")
            .replace(" port: 55325", " prot: 55325")
            .replace("10.2.1.1:2181", "10.2.1.1")
            .replace("  - common_cluster", "  - common_cluster\n  - third");
        let problems = load(&text).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "base.log_level",
                "http_server.port",
                "http_server.prot",
                "test_cluster.chroot",
                "common_cluster.zk_hosts",
                "third"
            ],
            "{problems:#?}"
        );
    }

    #[test]
    fn the_section_of_a_cluster_that_is_not_listed_is_checked_but_unused() {
        let text = ORIGINAL.replace("  - common_cluster\n", "");
        assert_eq!(load(&text).unwrap().clusters.len(), 1);
        let problems = load(&text.replace("10.2.1.1:2181", "nowhere")).unwrap_err();
        assert!(problems[0].starts_with("common_cluster.zk_hosts"), "{problems:?}");
        let problems = load(&format!("{ORIGINAL}\nstray:\n a: 1\n")).unwrap_err();
        assert_eq!(problems, ["stray: unknown key (misspelt?)"]);
    }

    #[test]
    fn a_chroot_is_empty_or_a_clean_path() {
        for (chroot, good) in
            [("''", true), ("/", true), ("/a", true), ("a", false), ("/a/", true), ("/a//b", false), ("/a/../b", false)]
        {
            let text = ORIGINAL.replace("chroot: /mq/test_cluster", &format!("chroot: {chroot}"));
            assert_eq!(load(&text).is_ok(), good, "{chroot}");
        }
        assert_eq!(load(&ORIGINAL.replace(" chroot: /mq/test_cluster\n", "")).unwrap().clusters[0].keeper.chroot, "");
    }

    #[test]
    fn a_file_without_its_sections_is_refused() {
        for text in ["", "base: 1\n", "base:\n clusters: []\nhttp_server:\n port: 1\n", "http_server:\n port: 1\n"] {
            assert!(!load(text).unwrap_err().is_empty(), "{text:?}");
        }
    }

    #[test]
    fn the_reference_shows_every_key_with_its_default() {
        let keys = keys_of(include_str!("config.rs"));
        let in_force = in_force(REFERENCE, &keys);
        assert_has_all(&keys, &in_force);
        let hosts = |net: u8| {
            let host = |n: u8| format!("    - 10.{net}.{n}.1:2181\n");
            format!(
                "  chroot: /mq/{}_cluster\n  zk_hosts:\n{}",
                ["test", "common"][usize::from(net - 1)],
                (1..6).map(host).collect::<String>()
            )
        };
        let (test, common) = (hosts(1), hosts(2));
        let minimal = |port: &str, brokers: &str| {
            let text = format!(
                "base:\n  clusters: [test_cluster, common_cluster]\nhttp_server:\n  port: 55325\n{port}\
                 test_cluster:\n{test}common_cluster:\n{common}{brokers}"
            );
            format!("{:?}", load(&text).unwrap())
        };
        assert_eq!(format!("{:?}", load(REFERENCE).unwrap()), minimal("", ""));
        let examples = minimal("  admin_port: 55326\n", "  broker_hosts: ['10.2.1.1:9092']\n");
        assert_eq!(format!("{:?}", load(&in_force).unwrap()), examples);
    }
}
