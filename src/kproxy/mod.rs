//! kproxy: takes messages by HTTP and answers when Kafka has them.
//!
//! ```text
//!  accept ─▶ http-0 … http-N ──Commit (message, reply)──▶ producers (librdkafka's threads) ──outcome──▶ answer written
//!                 ▲    ▲                                                                        │   (what does not fit: its reader)
//!                 │    └────────────────── outcomes, when there are many at a time ─────────────┘
//!  clients ───────┘        watch: reachability, levels, memory after floods; once a second
//! ```
//!
//! Reading order: `query`, `headers` and `answer` (pure), `access` (who may write what, and how much), `commit` (between HTTP and
//! Kafka), `in_flight` (from the outcome to the answer), `batch` (many in one request), `lanes`, `metrics`, `memory`, `config`; here
//! the parts are put together. Invariant: a 200 is given only for what Kafka confirmed at the level asked for.
//!
//! Bounds: connections `max_connections` (more: 503), memory of requests `max_in_flight_bytes` (more: 503), commits `req_pool_size`
//! (more: 503); the producers' own queues are larger than that. Threads are as many as the configuration says: `main`, `signals`,
//! `watchdog`, `watch`, `http-accept`, the readers; for each of `producer_num` a `kafka-ask`, and for each level of acks in use a
//! `kafka-acks-…` with librdkafka's `rdk:main`, an internal `rdk:broker-1` and an `rdk:brokerN` for each broker (with three of them and
//! the default configuration 26 in all, never more than 32 under any load; while no broker answers, librdkafka tries each host of
//! the configuration with one more).

mod access;
mod answer;
mod batch;
mod commit;
pub mod config;
#[cfg(fuzzing)]
pub mod fuzzing;
mod headers;
mod in_flight;
mod lanes;
mod memory;
mod metrics;
mod query;
mod shown;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::admin::{Admin, Component, Health};
use crate::broker::{self, BrokerConfig, ProducerConfig};
use crate::config::Problems;
use crate::daemon::raise_open_files;
use crate::http::{ByteBudget, Handler, Listen, Server, ServerConfig, ServerLimits, ServerMetrics};
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

use access::Access;
use batch::Bounds;
use commit::CommitHandler;
use config::Config;
use in_flight::Delivery;
use lanes::Lanes;
use memory::Tide;
use metrics::Metrics;

/// Bound of a question to a broker and of connecting to one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often reachability is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Descriptors besides those of clients: brokers, logs, pollers, the endpoints of operations.
const OTHER_DESCRIPTORS: u64 = 400;
/// The end of the grace that is kept for telling clients what did not become of their messages, at most.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Reads the configuration, or tells everything that is wrong with it.
pub fn load(file: &Path) -> Result<Config, Problems> {
    Config::load(file)
}

/// Serves until the supervisor's stop is triggered, then stops in order.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    memory::keep_large_buffers_apart();
    let max_connections = connections_within(config.max_connections.get(), raise_open_files());
    let (registry, health) = (Registry::new(), Health::new());
    let admin = Admin::new(registry.clone(), health.clone());
    let metrics = Arc::new(Metrics::new(&registry));
    let in_flight = Arc::new(AtomicUsize::new(0));
    let budget = ByteBudget::new(config.max_in_flight_bytes.get());

    // What a daemon cannot do without comes first: a port that is taken must end the start before threads run.
    let commits = Arc::new(CommitHandler {
        lanes: producers(&config, supervisor)?,
        admin: admin.clone(),
        metrics: Arc::clone(&metrics),
        access: Access::new(config.access.clone(), &registry, supervisor.reloads()),
        in_flight: Arc::clone(&in_flight),
        max_commits: config.max_commits.get(),
        max_message_bytes: config.max_message_bytes.get(),
        batches: Bounds {
            messages: config.max_batch_messages.get(),
            bytes: config.max_batch_bytes.get(),
            value_bytes: config.max_message_bytes.get(),
            places: config.max_commits.get(),
        },
        has_headers_and_timestamps: config.engine.has_headers_and_timestamps(),
    });
    let limits = ServerLimits {
        read_timeout: config.read_timeout,
        write_timeout: config.write_timeout,
        idle_timeout: config.idle_timeout,
        max_connections,
        max_connections_per_ip: config.max_connections_per_ip,
        head: config.head,
        body_budget: Some(budget.clone()),
    };
    let server_metrics = ServerMetrics::new(&registry);
    let tls = config.tls.clone();
    if let Some(tls) = tls.clone() {
        supervisor.reloads().add("tls", move || tls.reload());
    }
    let start = |name, key, listen, readers, limits, tls, handler: Arc<dyn Handler>| {
        let server =
            Server::start(ServerConfig { listen, name, readers, limits, tls }, handler, supervisor, &server_metrics)
                .map_err(|cause| format!("{key}: cannot listen on {listen}: {cause}"))?;
        info!("{key}: listening on {}", server.local_addr());
        Ok::<Server, String>(server)
    };
    let admin_server = config
        .admin
        .map(|listen: Listen| start("admin", "admin_port", listen, 1, ServerLimits::default(), None, Arc::new(admin)))
        .transpose()?;
    let server = start(
        "http",
        "port",
        config.listen,
        config.http_threads.get(),
        limits,
        tls,
        Arc::<CommitHandler>::clone(&commits),
    )?;

    let watch = Watch { commits: Arc::clone(&commits), broker: health.component("broker"), in_flight, budget, metrics };
    let stop = supervisor.stop().clone();
    supervisor.spawn("watch", move || watch.run(&stop));

    supervisor.stop().wait();
    health.component("kproxy").set(Err("shutting down".to_owned()));
    stop_in_order(&server, &commits.lanes, config.shutdown_grace);
    drop(admin_server);
    Ok(())
}

/// First no new requests, then the answers of those in progress, then the producers, whose closing tells the outcome of what is
/// left. The readers, which may have to answer that, end last.
fn stop_in_order(server: &Server, lanes: &Lanes<Delivery>, grace: Duration) {
    let deadline = Instant::now() + grace;
    let left = || deadline.saturating_duration_since(Instant::now());
    let last_words = last_words(grace);
    server.drain(grace.saturating_sub(2 * last_words));
    lanes.close(left().saturating_sub(last_words));
    server.drain(left());
    server.close();
}

/// A short grace, too, is mostly for what is in progress.
fn last_words(grace: Duration) -> Duration {
    LAST_WORDS.min(grace / 8)
}

fn producers(config: &Config, supervisor: &Supervisor) -> Result<Lanes<Delivery>, String> {
    let broker = BrokerConfig {
        hosts: config.broker_hosts.clone(),
        engine: config.engine,
        client_id: "kproxy".to_owned(),
        request_timeout: REQUEST_TIMEOUT.min(config.commit_timeout),
        settings: config.kafka.clone(),
    };
    let producer = ProducerConfig {
        partitioner: config.partitioner,
        max_message_bytes: config.max_message_bytes.get(),
        max_in_flight: config.max_commits.get(),
        timeout: config.commit_timeout,
    };
    (0..config.producers.get())
        .map(|_| broker::producer(&broker, producer.clone(), supervisor))
        .collect::<Result<_, _>>()
        .map(Lanes::new)
}

/// So many connections as there are descriptors for: clients must not take those that the way to the brokers needs.
fn connections_within(wanted: usize, open_files: u64) -> usize {
    let others = OTHER_DESCRIPTORS.min(open_files / 2);
    let allowed = wanted.min(usize::try_from(open_files - others).unwrap_or(usize::MAX)).max(1);
    if allowed < wanted {
        warn!(
            "max_connections is {wanted}, but this process may have {open_files} open files (ulimit -n, LimitNOFILE), so \
             there are {allowed} at most"
        );
    }
    allowed
}

/// Looks once a second at what `/readyz` and the gauges show, and after a flood gives its memory back.
struct Watch {
    commits: Arc<CommitHandler>,
    broker: Component,
    in_flight: Arc<AtomicUsize>,
    budget: ByteBudget,
    metrics: Arc<Metrics>,
}

impl Watch {
    fn run(&self, stop: &Stop) {
        let mut tide = Tide::default();
        loop {
            self.broker.set(self.commits.lanes.reachable());
            let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.in_flight.set(gauge(self.in_flight.load(Ordering::Relaxed)));
            let used = self.budget.used();
            self.metrics.in_flight_bytes.set(gauge(used));
            if tide.has_fallen(self.budget.take_peak(), used) {
                memory::give_back();
            }
            let questions = self.commits.lanes.topic_lookups();
            self.metrics.topic_lookups.inc_by(questions.saturating_sub(self.metrics.topic_lookups.get()));
            if !stop.sleep(WATCH_INTERVAL) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_the_brokers() {
        for (wanted, open_files, allowed) in
            [(16_384, 1 << 20, 16_384), (16_384, 1024, 624), (16_384, 100, 50), (600, 1024, 600), (5, 0, 1)]
        {
            assert_eq!(connections_within(wanted, open_files), allowed, "{wanted} of {open_files}");
        }
    }

    #[test]
    fn most_of_a_short_grace_is_for_what_is_in_progress() {
        for (grace, end) in [(10_000, 500), (4_000, 500), (1_000, 125), (0, 0)] {
            assert_eq!(last_words(Duration::from_millis(grace)), Duration::from_millis(end), "{grace}");
        }
    }
}
