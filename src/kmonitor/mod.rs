//! kmonitor reports the delay of every module and partition: how many messages ktransfer has not finished yet.
//!
//! ```text
//! ZooKeeper ─stored offsets, owners─▶ poll@CLUSTER ─ClusterView─▶ ViewStore ──▶ PublishedPages ──▶ DelayHandler ◀─ GET
//! brokers ───log ends, groups───────▶ (one per cluster)       (newest per cluster)  (by the poller)       ▲
//!                                                                                   answers of /v1/ ── render
//! ```
//!
//! Reading order: `facts` (what is known of a place), `verdict` and `sentence` (what that means), `readings`, `pauses`,
//! `zookeeper_source`, `kafka_source` and `log_ends` (what a cycle reads), `places` (what was seen over time), `plan`
//! and `cluster` (the poller of one cluster), `view`, `view_store`, `delay`, `report`, `published`, `query`,
//! `refusals`, `zabbix_pages`, `page`, `handler`, `renderer`.
//!
//! Invariants: an unknown delay is left out of all answers; the failure of one cluster does not affect another; an HTTP
//! request never waits for ZooKeeper or Kafka.

mod behind;
mod client;
mod cluster;
mod config;
mod delay;
mod ends_history;
mod facts;
mod failure_log;
mod handler;
mod kafka_source;
mod log_ends;
mod name_filter;
mod names;
mod page;
mod pauses;
mod places;
mod plan;
mod probe;
mod published;
mod query;
mod rate_limit;
mod readings;
mod refusals;
mod renderer;
mod report;
mod sentence;
mod sparkline;
mod summary;
mod timestamps;
mod verdict;
mod verdict_limits;
mod view;
mod view_store;
mod zabbix_pages;
mod zookeeper_source;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use log::info;
use prometheus::{HistogramVec, IntCounterVec};

use crate::admin::{Admin, Health};
use crate::broker::{self, BrokerConfig, FetcherConfig, HeaderLimits, RequestCounter};
use crate::clock::boot_instant;
use crate::config::Problems;
use crate::heap;
use crate::http::{Handler, Listen, Server, ServerConfig, ServerLimits, ServerMetrics, WriteLimits};
use crate::keeper::discovery::{self, BrokerList};
use crate::keeper::{self, SharedKeeper};
use crate::metrics::{Registry, SECONDS_BUCKETS};
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

use cluster::{FindBrokers, Memory, PollMetrics, Poller};
use config::{ClusterConfig, Config};
use facts::Source;
use handler::DelayAnswers;
use kafka_source::KafkaSource;
use log_ends::LogReader;
use page::DelayPageAnswers;
use places::{Places, Times};
use probe::Prober;
use published::PublishedPages;
use rate_limit::RateLimit;
use renderer::{DelayHandler, MAX_WAITING};
use view_store::{ViewStore, ViewWriter};

/// Timeout of one request to a broker. A poll makes few requests, because one covers all partitions of a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a probe may read: one message is enough, however large it is.
const PROBES: FetcherConfig = FetcherConfig {
    prefetch_bytes: 1 << 20,
    max_message_bytes: 10 << 20,
    headers: HeaderLimits { max_count: 0, max_bytes: 0 },
};

/// Threads that read requests and format the answers.
const READERS: usize = 2;

/// Largest number of connections to `port`; one more is refused with 503.
const MAX_CONNECTIONS: usize = 1024;

/// Loads the configuration, or returns all its problems.
pub fn load(file: &Path) -> Result<Config, Problems> {
    Config::load(file)
}

/// Opens the ports, starts the pollers, and drains the ports when the supervisor's stop is triggered. Fails if a port
/// cannot be opened.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    // The pages of a view are large, and another view comes every few seconds.
    heap::map_large_buffers();
    let (registry, health) = (Registry::new(), Health::new());
    let store = ViewStore::new(config.clusters.iter().map(|cluster| cluster.name.as_str()));
    let newest = store.clone();
    let pages = Arc::new(PublishedPages::new(move || newest.view(), config.detail));
    let (published, metrics_pages) = (Arc::downgrade(&pages), Arc::clone(&pages));
    store.on_publish(move || published.upgrade().iter().for_each(|pages| pages.refresh()));
    let admin = Admin::new(registry.clone(), health.clone())
        .with_metrics(Arc::new(move || metrics_pages.pages().metrics(boot_instant())));

    // The ports are opened first, so that a port in use ends the start before a poller runs.
    let ended = Stop::new();
    let servers = listen(&config, &pages, &admin, &registry, supervisor, &ended)?;

    let metrics = Metrics::new(&registry);
    for (cluster, writer) in config.clusters.iter().zip(store.writers()) {
        let poller = poller(cluster, &config, writer, &health, &metrics, supervisor);
        let stop = supervisor.stop().clone();
        supervisor.spawn(format!("poll@{}", cluster.name), move || poller.run(&stop));
    }

    supervisor.stop().wait();
    // The pollers end with the same stop. Both servers together have `shutdown_grace` to answer requests in flight.
    let deadline = Instant::now() + config.shutdown_grace;
    for server in &servers {
        server.drain(deadline.saturating_duration_since(Instant::now()));
        server.close();
    }
    ended.trigger();
    Ok(())
}

/// Opens `port` with all endpoints, and `admin_port`, if configured, with only the endpoints of [`Admin`]. Until
/// `ended` a thread renders answers.
fn listen(
    config: &Config,
    pages: &Arc<PublishedPages>,
    admin: &Admin,
    registry: &Registry,
    supervisor: &Supervisor,
    ended: &Stop,
) -> Result<Vec<Server>, String> {
    let metrics = ServerMetrics::new(registry);
    let start = |key: &str, name, port, readers, limits, handler: Arc<dyn Handler>| {
        let listen = Listen::Everywhere(port);
        let server =
            Server::start(ServerConfig { listen, name, readers, limits, tls: None }, handler, supervisor, &metrics)
                .map_err(|cause| format!("http_server.{key}: cannot listen on port {port}: {cause}"))?;
        info!("http_server.{key}: listening on {}", server.local_addr());
        Ok::<_, String>(server)
    };
    let limits = ServerLimits {
        read_timeout: config.http.read_timeout,
        write: WriteLimits::with_timeout(config.http.write_timeout),
        max_connections: MAX_CONNECTIONS,
        ..ServerLimits::default()
    };
    let answers = DelayAnswers { pages: Arc::clone(pages), page: DelayPageAnswers::default(), admin: admin.clone() };
    let answers = Arc::new(answers);
    // A request that does not fit into the queue is answered with 503.
    let (sender, waiting) = bounded(MAX_WAITING);
    let (rendering, ended) = (Arc::clone(&answers), ended.clone());
    supervisor.spawn_task("render", move || renderer::render(&rendering, &waiting, &ended));
    let delay = DelayHandler { answers, waiting: sender };
    let mut servers = vec![start("port", "http", config.http.port, READERS, limits, Arc::new(delay))?];
    if let Some(port) = config.http.admin_port {
        servers.push(start("admin_port", "admin", port, 1, ServerLimits::default(), Arc::new(admin.clone()))?);
    }
    Ok(servers)
}

/// The metrics of all clusters, labelled by cluster.
struct Metrics {
    polls: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Metrics {
            polls: registry.counter(
                "kmonitor_polls_total",
                "Polls of a cluster: complete, or incomplete if offsets could not be read.",
                &["cluster", "outcome"],
            ),
            seconds: registry.histogram(
                "kmonitor_poll_seconds",
                "Duration of a poll of a cluster.",
                &["cluster"],
                SECONDS_BUCKETS,
            ),
        }
    }

    fn of(&self, cluster: &str) -> PollMetrics {
        PollMetrics {
            complete: self.polls.with_label_values(&[cluster, "complete"]),
            incomplete: self.polls.with_label_values(&[cluster, "incomplete"]),
            seconds: self.seconds.with_label_values(&[cluster]),
        }
    }
}

fn poller(
    cluster: &ClusterConfig,
    config: &Config,
    writer: ViewWriter,
    health: &Health,
    metrics: &Metrics,
    supervisor: &Supervisor,
) -> Poller {
    let keeper = cluster.keeper.clone().map(|keeper| keeper::connect(keeper, supervisor));
    let kafka_requests = RequestCounter::default();
    let template = BrokerConfig {
        hosts: Vec::new(),
        engine: cluster.engine,
        client_id: "kmonitor".to_owned(),
        request_timeout: BROKER_TIMEOUT,
        settings: cluster.kafka.clone(),
        requests: kafka_requests.clone(),
    };
    let with_hosts = move |hosts: &[String]| BrokerConfig { hosts: hosts.to_vec(), ..template.clone() };
    let (for_groups, for_probes) = (with_hosts.clone(), with_hosts.clone());
    let (engine_threads, probe_threads) = (supervisor.clone(), supervisor.clone());
    let connect = move |hosts: &[String]| broker::log_ends(&with_hosts(hosts), &engine_threads);
    let connect_groups = move |hosts: &[String]| broker::group_reader(&for_groups(hosts));
    let connect_probes = move |hosts: &[String]| broker::fetcher(&for_probes(hosts), PROBES, &probe_threads);
    let now = Instant::now();
    let limits = config.limits.clone();
    let times = Times { forget_after: cluster.forget_after, left_behind_after: config.left_behind_after };
    let has = |source| cluster.sources.contains(&source);
    Poller {
        name: cluster.name.clone(),
        find_brokers: find_brokers(cluster, keeper.clone()),
        keeper: keeper.filter(|_| has(Source::Zookeeper)),
        groups: cluster
            .groups
            .clone()
            .filter(|_| has(Source::Kafka))
            .map(|globs| (KafkaSource::new(Box::new(connect_groups)), globs)),
        prober: (cluster.probe && cluster.engine.has_groups()).then(|| Prober::new(Box::new(connect_probes))),
        filter: cluster.modules.clone(),
        log_reader: LogReader::new(Box::new(connect)),
        interval: config.poll_interval,
        fresh_for: config.fresh_for,
        places: Places::new(cluster.name.as_str().into(), cluster.sources.clone(), times),
        limits: Box::new(move |module| limits.of(module)),
        zookeeper_rate: RateLimit::new(cluster.zookeeper_requests_per_second, now),
        kafka_rate: RateLimit::new(cluster.kafka_requests_per_second, now),
        kafka_requests,
        writer,
        component: health.component(format!("cluster {}", cluster.name)),
        metrics: metrics.of(&cluster.name),
        memory: Memory::default(),
    }
}

/// Returns what finds the brokers of a cluster: in the configuration, or else in ZooKeeper.
fn find_brokers(cluster: &ClusterConfig, keeper: Option<SharedKeeper>) -> FindBrokers {
    match (cluster.broker_hosts.clone(), keeper) {
        (Some(addresses), _) => {
            Box::new(move || Ok(BrokerList { addresses: addresses.clone(), ..BrokerList::default() }))
        }
        (None, Some(keeper)) => {
            let protocol = cluster.kafka.protocol();
            Box::new(move || discovery::broker_list(&*keeper, &protocol))
        }
        (None, None) => Box::new(|| Ok(BrokerList::default())),
    }
}
