//! The configuration `kmonitor.yaml`: the keys of the original, and optional keys that the original does not have.

use std::path::Path;
use std::time::Duration;

use crate::broker::{Engine, KafkaSettings, Role};
use crate::config::{Problems, Section};
use crate::daemon::{Settings, shutdown_grace};
use crate::keeper::{self, KeeperConfig};
use crate::logging::LogConfig;

use super::facts::Source;
use super::name_filter::{ModuleFilter, NameFilter};
use super::report::prometheus::{Detail, DetailLevel};
use super::verdict_limits::VerdictLimits;

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
    /// A number that is older is unknown (`base.fresh_for_ms`).
    pub fresh_for: Duration,
    /// When a partition gets which verdict (`base.verdicts`).
    pub(super) limits: VerdictLimits,
    /// A topic that a module has not owned for this time, while it owns another, is left behind
    /// (`base.left_behind_after_ms`).
    pub left_behind_after: Duration,
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
    pub keeper: Option<KeeperConfig>,
    /// Where modules have their stored offsets (`sources`); at least one.
    pub(super) sources: Vec<Source>,
    /// The consumer groups in Kafka that are modules (`groups`); none without it.
    pub(super) groups: Option<NameFilter>,
    /// Which modules are monitored (`modules`, `ignore`).
    pub(super) modules: ModuleFilter,
    /// A module whose offsets were not written for this time, and that nobody owns, is not shown
    /// (`forget_after_hours`).
    pub forget_after: Option<Duration>,
    /// Bound of the requests to ZooKeeper in a second (`zookeeper_requests_per_second`).
    pub zookeeper_requests_per_second: u64,
    /// Bound of the requests to Kafka in a second (`kafka_requests_per_second`).
    pub kafka_requests_per_second: u64,
    /// Whether messages are read to find out whether there is anything to deliver (`probe`).
    pub probe: bool,
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
            if (whole.is_map_with(&name, "zk_hosts") || whole.is_map_with(&name, "broker_hosts"))
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
            fresh_for: base.fresh_for,
            limits: base.limits,
            left_behind_after: base.left_behind_after,
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
    fresh_for: Duration,
    limits: VerdictLimits,
    left_behind_after: Duration,
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
        let fresh_for = base.millis("fresh_for_ms", Some(15_000), 1_000..=MAX_MILLIS, problems);
        let limits = VerdictLimits::take(&mut base, fresh_for, problems);
        let left_behind_after = base.millis("left_behind_after_ms", Some(600_000), 1_000..=MAX_MILLIS * 24, problems);
        let shutdown_grace = shutdown_grace(&mut base, problems);
        let levels =
            [("auto", DetailLevel::Auto), ("module", DetailLevel::Module), ("partition", DetailLevel::Partition)];
        let detail = Detail {
            level: base.choice("metrics_detail", &levels, problems),
            max_partitions: base.count("metrics_partitions", Some(10_000), MAX_METRICS_PARTITIONS, problems).get(),
        };
        base.finish(problems);
        Base { log, clusters, poll_interval, fresh_for, limits, left_behind_after, shutdown_grace, detail }
    }
}

impl HttpConfig {
    fn take(mut http: Section, problems: &mut Problems) -> Self {
        let config = HttpConfig {
            port: http.port("port", None, problems),
            admin_port: http.optional_port("admin_port", problems),
            read_timeout: http.timeout("read_timeout_ms", 100, problems),
            write_timeout: http.timeout("write_timeout_ms", 100, problems),
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
        let (has_brokers, has_groups) = (cluster.has("broker_hosts"), cluster.has("groups"));
        let has_zookeeper = cluster.has("zk_hosts");
        let hosts = cluster.hosts("zk_hosts", !has_brokers || !has_groups, problems);
        let chroot = keeper::chroot("chroot", &mut cluster, problems);
        let session_timeout = cluster.millis("zk_session_timeout_ms", Some(6_000), 500..=MAX_MILLIS, problems);
        let connect_timeout = cluster.millis("zk_connect_timeout_ms", Some(1_000), 1..=MAX_MILLIS, problems);
        let keeper = hosts.map(|hosts| KeeperConfig { hosts, chroot, session_timeout, connect_timeout });
        let engine = Engine::from_section(&mut cluster, problems);
        let kafka = engine.settings_from_section(&mut cluster, Role::Reads, problems);
        let broker_hosts = cluster.hosts("broker_hosts", false, problems);
        let groups = NameFilter::take("groups", &mut cluster, problems);
        let sources = sources(&mut cluster, has_zookeeper, has_groups, problems);
        if sources.contains(&Source::Kafka) && engine == Engine::KafkaRust {
            cluster.note("kafka_client", "is \"kafka-rust\", which does not read the groups of Kafka", problems);
        }
        if has_groups && !has_brokers {
            cluster.note("groups", "needs broker_hosts", problems);
        }
        let modules = ModuleFilter {
            only: NameFilter::take("modules", &mut cluster, problems),
            ignore: NameFilter::take("ignore", &mut cluster, problems),
        };
        const RATES: std::ops::RangeInclusive<i64> = 1..=1_000_000;
        let zookeeper = cluster.integer("zookeeper_requests_per_second", Some(2_000), RATES, problems);
        let kafka_rate = cluster.integer("kafka_requests_per_second", Some(200), RATES, problems);
        let forget_after = cluster.optional_integer("forget_after_hours", 1..=87_600, problems);
        let probe = cluster.boolean("probe", true, problems);
        cluster.finish(problems);
        ClusterConfig {
            name: name.to_owned(),
            keeper,
            sources,
            groups,
            modules,
            forget_after: forget_after.and_then(|hours| u64::try_from(hours).ok()).map(Duration::from_hours),
            zookeeper_requests_per_second: zookeeper.unsigned_abs(),
            kafka_requests_per_second: kafka_rate.unsigned_abs(),
            probe,
            engine,
            kafka,
            broker_hosts,
        }
    }
}

/// Takes `sources`; by default ZooKeeper if it is configured, and Kafka if there are groups.
fn sources(cluster: &mut Section, has_zookeeper: bool, has_groups: bool, problems: &mut Problems) -> Vec<Source> {
    let Some(words) = cluster.strings("sources", false, problems) else {
        let zookeeper = (has_zookeeper || !has_groups).then_some(Source::Zookeeper);
        return zookeeper.into_iter().chain(has_groups.then_some(Source::Kafka)).collect();
    };
    let mut sources = Vec::new();
    for word in &words {
        match word.as_str() {
            "zookeeper" => sources.push(Source::Zookeeper),
            "kafka" => sources.push(Source::Kafka),
            _ => cluster.note("sources", format!("has {word:?}, but must name zookeeper or kafka"), problems),
        }
    }
    if sources.contains(&Source::Zookeeper) && !has_zookeeper {
        cluster.note("sources", "has zookeeper, which needs zk_hosts", problems);
    }
    if sources.contains(&Source::Kafka) && !has_groups {
        cluster.note("sources", "has kafka, which needs groups, for instance [\"*\"]", problems);
    }
    sources
}

#[cfg(test)]
mod tests;
