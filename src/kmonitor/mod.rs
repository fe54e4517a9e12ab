//! kmonitor reports the delay of every module and partition: how many messages ktransfer has not finished yet.
//!
//! ```text
//!  ZooKeeper ──stored offsets──▶ poll@CLUSTER ─────────▶ SnapshotStore ──────▶ DelayHandler ◀── GET /delay, /metrics
//!  brokers ────newest offsets──▶ (one per cluster)  (newest per cluster)     (on the reader threads)
//! ```
//!
//! Reading order: `delay` (pure), `stored_offsets` and `log_ends` (what a poll reads), `cluster` (the poller of one
//! cluster), `snapshot`, `report`, `handler`.
//!
//! Invariants: an unknown delay is left out of all answers; the failure of one cluster does not affect another; an HTTP
//! request never waits for ZooKeeper or Kafka.

#[allow(dead_code, reason = "the parts that use them follow")]
mod behind;
mod cluster;
mod config;
mod delay;
#[allow(dead_code, reason = "the parts that use them follow")]
mod ends_history;
#[allow(dead_code, reason = "the parts that use them follow")]
mod facts;
mod handler;
mod log_ends;
#[allow(dead_code, reason = "the parts that use them follow")]
mod page;
#[allow(dead_code, reason = "the parts that use them follow")]
mod rates;
#[allow(dead_code, reason = "the parts that use them follow")]
mod report;
#[allow(dead_code, reason = "the parts that use them follow")]
mod sentence;
mod snapshot;
#[allow(dead_code, reason = "the parts that use them follow")]
mod sparkline;
mod stored_offsets;
#[allow(dead_code, reason = "the parts that use them follow")]
mod summary;
#[allow(dead_code, reason = "the parts that use them follow")]
mod verdict;
#[allow(dead_code, reason = "the parts that use them follow")]
mod verdict_limits;
#[allow(dead_code, reason = "the parts that use them follow")]
mod view;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;
use prometheus::{HistogramVec, IntCounterVec};

use crate::admin::{Admin, Health};
use crate::broker::{self, BrokerConfig};
use crate::config::Problems;
use crate::http::{Handler, Listen, Server, ServerConfig, ServerLimits, ServerMetrics, WriteLimits};
use crate::keeper::{self, discovery};
use crate::metrics::{Registry, SECONDS_BUCKETS};
use crate::supervise::Supervisor;

use cluster::{FindBrokers, PollMetrics, Poller};
use config::{ClusterConfig, Config};
use handler::DelayHandler;
use log_ends::BrokerLogEnds;
use snapshot::{SnapshotStore, SnapshotWriter};

/// Timeout of one request to a broker. A poll makes few requests, because one covers all partitions of a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

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
    let (registry, health) = (Registry::new(), Health::new());
    let store = SnapshotStore::new(config.clusters.iter().map(|cluster| cluster.name.as_str()));
    report::snapshot_prometheus::register(&registry, &store);
    let admin = Admin::new(registry.clone(), health.clone());

    // The ports are opened first, so that a port in use ends the start before a poller runs.
    let servers = listen(&config, &store, &admin, &registry, supervisor)?;

    let metrics = Metrics::new(&registry);
    for (cluster, writer) in config.clusters.iter().zip(store.writers()) {
        let poller = poller(cluster, config.poll_interval, writer, &health, &metrics, supervisor);
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
    Ok(())
}

/// Opens `port` with all endpoints, and `admin_port`, if configured, with only the endpoints of [`Admin`].
fn listen(
    config: &Config,
    store: &SnapshotStore,
    admin: &Admin,
    registry: &Registry,
    supervisor: &Supervisor,
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
    let delay = DelayHandler { store: store.clone(), admin: admin.clone() };
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
    interval: Duration,
    writer: SnapshotWriter,
    health: &Health,
    metrics: &Metrics,
    supervisor: &Supervisor,
) -> Poller {
    let keeper = keeper::connect(cluster.keeper.clone(), supervisor);
    let find_brokers: FindBrokers = match cluster.broker_hosts.clone() {
        Some(hosts) => Box::new(move || Ok(hosts.clone())),
        None => {
            let (keeper, protocol) = (Arc::clone(&keeper), cluster.kafka.protocol());
            Box::new(move || discovery::brokers(&*keeper, &protocol))
        }
    };
    let (engine, settings) = (cluster.engine, cluster.kafka.clone());
    let engine_threads = supervisor.clone();
    let connect = move |hosts: &[String]| {
        let broker = BrokerConfig {
            hosts: hosts.to_vec(),
            engine,
            client_id: "kmonitor".to_owned(),
            request_timeout: BROKER_TIMEOUT,
            settings: settings.clone(),
        };
        broker::log_ends(&broker, &engine_threads)
    };
    Poller {
        name: cluster.name.clone(),
        keeper,
        find_brokers,
        log_ends: BrokerLogEnds::new(Box::new(connect)),
        interval,
        writer,
        component: health.component(format!("cluster {}", cluster.name)),
        metrics: metrics.of(&cluster.name),
    }
}
