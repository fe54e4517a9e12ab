//! kmonitor shows how far the pushers are behind: for each module and partition, how many messages wait.
//!
//! ```text
//!  ZooKeeper ──stored offsets──▶ poll@CLUSTER ──view──▶ board ◀──views── DelayHandler ◀── GET /delay, /metrics
//!  brokers ────newest offsets──▶ (one a cluster)                        (on the reader threads)
//! ```
//!
//! Reading order: `delay` (pure), `stored_offsets` and `log_ends` (what is read), `cluster` (one poller), `board`, `report`, `handler`.
//!
//! Invariants: a delay that is not known is left out; a cluster's trouble stays its own; an answer waits for nobody.

pub mod board;
pub mod cluster;
pub mod config;
pub mod delay;
pub mod handler;
pub mod log_ends;
pub mod report;
pub mod stored_offsets;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;
use prometheus::{HistogramVec, IntCounterVec};

use crate::admin::{Admin, Health};
use crate::broker::{self, BrokerConfig};
use crate::config::Problems;
use crate::http::{Handler, Listen, Server, ServerConfig, ServerLimits, ServerMetrics};
use crate::keeper::{self, discovery};
use crate::metrics::{Registry, SECONDS_BUCKETS};
use crate::supervise::Supervisor;

use board::{Board, Place};
use cluster::{FindBrokers, PollMetrics, Poller};
use config::{ClusterConfig, Config};
use handler::DelayHandler;
use log_ends::BrokerLogEnds;

/// Bound of one question to a broker. A reading asks few: all partitions of a broker together.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads that read requests and format answers.
const READERS: usize = 2;

/// More connections than this at the same time are refused with 503.
const MAX_CONNECTIONS: usize = 1024;

/// Reads the configuration, or tells all that is wrong with it.
pub fn load(file: &Path) -> Result<Config, Problems> {
    Config::load(file)
}

/// Serves until the supervisor's stop: port, then pollers; ends in the same order.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    let (registry, health) = (Registry::new(), Health::new());
    let board = Board::new(config.clusters.iter().map(|cluster| cluster.name.as_str()));
    report::prometheus::register(&registry, &board);
    let admin = Admin::new(registry.clone(), health.clone());

    // A port that is taken ends the start before anything else has begun.
    let servers = listen(&config, &board, &admin, &registry, supervisor)?;

    let metrics = Metrics::new(&registry);
    for (cluster, place) in config.clusters.iter().zip(board.places()) {
        let poller = poller(cluster, config.poll_interval, place, &health, &metrics, supervisor);
        let stop = supervisor.stop().clone();
        supervisor.spawn(format!("poll@{}", cluster.name), move || poller.run(&stop));
    }

    supervisor.stop().wait();
    // The pollers end by themselves; answers that are under way are still given, by both servers within the one grace.
    let deadline = Instant::now() + config.shutdown_grace;
    for server in &servers {
        server.drain(deadline.saturating_duration_since(Instant::now()));
        server.close();
    }
    Ok(())
}

/// Opens the ports: `/delay` with all the rest, and operations alone where `admin_port` asks for it.
fn listen(
    config: &Config,
    board: &Board,
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
        info!("{name} listens on {}", server.local_addr());
        Ok::<_, String>(server)
    };
    let limits = ServerLimits {
        read_timeout: config.http.read_timeout,
        write_timeout: config.http.write_timeout,
        max_connections: MAX_CONNECTIONS,
        ..ServerLimits::default()
    };
    let delay = DelayHandler { board: board.clone(), admin: admin.clone() };
    let mut servers = vec![start("port", "http", config.http.port, READERS, limits, Arc::new(delay))?];
    if let Some(port) = config.http.admin_port {
        servers.push(start("admin_port", "admin", port, 1, ServerLimits::default(), Arc::new(admin.clone()))?);
    }
    Ok(servers)
}

/// What is counted, before it is told apart by cluster.
struct Metrics {
    polls: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Metrics {
            polls: registry.counter(
                "kmonitor_polls_total",
                "Readings of a cluster: complete, or incomplete where something stayed unknown.",
                &["cluster", "outcome"],
            ),
            seconds: registry.histogram(
                "kmonitor_poll_seconds",
                "How long a reading of a cluster took.",
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
    place: Place,
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
        place,
        component: health.component(format!("cluster {}", cluster.name)),
        metrics: metrics.of(&cluster.name),
    }
}
