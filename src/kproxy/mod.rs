//! kproxy receives messages over HTTP and answers a request when Kafka has confirmed its messages.
//!
//! ```text
//!  accept ─▶ http-0 … http-N ──Record, PendingMessage──▶ producers (their threads)       ──delivery report──▶ answer
//!                 ▲    ▲                                                                          │
//!                 │    └────────────── answers, when many messages are in flight ─────────────────┘
//!  clients ───────┘        watch: once a second updates readiness and gauges, and may trim the heap
//! ```
//!
//! Reading order: `query`, `headers`, `content_coding` and `answer` (pure), `access` (which client may write what, and
//! how much), `cors` (browsers), `handler` (checks a request and hands its messages to the broker seam), `in_flight`
//! (from the delivery report to the answer), `batch` (many messages in one request), `in_flight_slots`,
//! `producer_pool`, `metrics`, `log_fields`, `heap_trim`, `traffic`, `page` and `admin_port` (what operators see),
//! `config`; this file only wires them. Invariant: 200 is answered only for messages that Kafka confirmed at the acks
//! level of the request.
//!
//! Bounds: `max_connections` and `max_connections_per_ip` for connections, `max_in_flight_bytes` for the memory of
//! requests, `req_pool_size` for messages in flight. Whatever exceeds a bound is answered with 503. The producers' own
//! queues never fill up first: they have room for more than `req_pool_size` messages.
//!
//! The configuration and the cluster fix the number of threads:
//!
//! - `main`, `signals`, `watchdog`, `log`, `watch`, `http-accept`, and the readers;
//! - for each of the `producer_num` producers `kafka-metadata`, `kafka-leaders` and `kafka-deadline`, and for each
//!   broker and each acks level in use `kafka-BROKER-LEVEL`;
//! - at most four threads that look up host names.
//!
//! That makes 20 threads with three brokers, all acks levels and the default configuration, under any load.

mod access;
mod admin_port;
mod answer;
mod batch;
pub mod config;
mod content_coding;
mod cors;
#[cfg(fuzzing)]
pub mod fuzz_targets;
mod handler;
mod headers;
mod heap_trim;
mod in_flight;
mod in_flight_slots;
mod log_fields;
mod metrics;
mod page;
mod producer_pool;
mod query;
mod traffic;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::admin::{Admin, Component, Health};
use crate::broker::{self, BrokerConfig, ProducerConfig, RequestCounter};
use crate::config::Problems;
use crate::daemon::raise_open_files;
use crate::heap;
use crate::http::{ByteBudget, Handler, Listen, Server, ServerConfig, ServerLimits, ServerMetrics, Tls, WriteLimits};
use crate::metrics::Registry;
use crate::panics;
use crate::reload::Reloads;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

use access::AccessControl;
use admin_port::{AdminPort, PageSource};
use batch::BatchLimits;
use config::Config;
use handler::CommitHandler;
use heap_trim::TrimTrigger;
use in_flight::PendingMessage;
use in_flight_slots::SlotPool;
use metrics::KproxyMetrics;
use producer_pool::ProducerPool;
use traffic::Traffic;

/// Timeout of connecting to a broker and of a metadata request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which [`Watch`] updates readiness and gauges.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// File descriptors reserved for everything but client connections: brokers, logs, pollers, the admin port, and clients
/// that are answered with 503 because there are too many.
const OTHER_DESCRIPTORS: u64 = 400;
/// Longest of the two equal reserves that [`stop_in_order`] takes from `shutdown_grace_ms`.
const MAX_ANSWER_RESERVE: Duration = Duration::from_millis(500);

/// Loads the configuration, or returns all its problems.
pub fn load(file: &Path) -> Result<Config, Problems> {
    Config::load(file)
}

/// Serves requests until the supervisor's stop is triggered, then shuts down. Fails if a producer cannot be made or a
/// port cannot be opened.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    heap::map_large_buffers();
    let max_connections = connections_within(config.max_connections.get(), raise_open_files());
    let (registry, health) = (Registry::new(), Health::new());
    let admin = Admin::new(registry.clone(), health.clone());
    let metrics = Arc::new(KproxyMetrics::new(&registry));
    let budget = ByteBudget::new(config.max_in_flight_bytes.get());

    let handler = Arc::new(CommitHandler {
        producers: producers(&config, supervisor)?,
        admin,
        metrics: Arc::clone(&metrics),
        access: AccessControl::new(config.access.clone(), &registry, supervisor.reloads()),
        origins: config.origins.clone(),
        slots: SlotPool::new(config.max_commits.get()),
        max_message_bytes: config.max_message_bytes.get(),
        commit_coding: config.commit_coding,
        batch_limits: BatchLimits {
            max_messages: config.max_batch_messages.get(),
            max_body_bytes: config.max_batch_bytes.get(),
            max_value_bytes: config.max_message_bytes.get(),
            max_slots: config.max_commits.get(),
        },
        has_headers_and_timestamps: config.engine.has_headers_and_timestamps(),
    });
    let limits = ServerLimits {
        read_timeout: config.read_timeout,
        write: WriteLimits::with_timeout(config.write_timeout),
        idle_timeout: config.idle_timeout,
        max_connections,
        max_connections_per_ip: config.max_connections_per_ip,
        head: config.head,
        body_budget: Some(budget.clone()),
        answer_budget: None,
    };
    let server_metrics = ServerMetrics::new(&registry);
    let tls = config.tls.clone();
    reload_certificates(tls.clone(), &registry, supervisor.reloads());
    // Before the servers start: without components `/readyz` would answer 200.
    let broker = health.component("broker");
    let start = |name, key, listen, readers, limits, tls, handler: Arc<dyn Handler>| {
        let server =
            Server::start(ServerConfig { listen, name, readers, limits, tls }, handler, supervisor, &server_metrics)
                .map_err(|cause| format!("{key}: cannot listen on {listen}: {cause}"))?;
        info!("{key}: listening on {}", server.local_addr());
        Ok::<Server, String>(server)
    };
    let traffic = Arc::new(Traffic::new());
    let admin_port = AdminPort::new(PageSource {
        handler: Arc::clone(&handler),
        traffic: Arc::clone(&traffic),
        budget: budget.clone(),
        max_connections,
        servers: server_metrics.clone(),
        registry: registry.clone(),
        reloads: supervisor.reloads().clone(),
    });
    admin_port.register_metrics(&registry);
    let admin_server = config
        .admin
        .map(|listen: Listen| {
            start("admin", "admin_port", listen, 1, ServerLimits::default(), None, Arc::new(admin_port))
        })
        .transpose()?;
    let server = start(
        "http",
        "port",
        config.listen,
        config.http_threads.get(),
        limits,
        tls,
        Arc::<CommitHandler>::clone(&handler),
    )?;

    let watch = Watch { handler: Arc::clone(&handler), broker, budget, metrics, traffic };
    let stop = supervisor.stop().clone();
    supervisor.spawn("watch", move || watch.run(&stop));

    supervisor.stop().wait();
    // `/readyz` fails from here on, so that a load balancer sends no more requests.
    health.component("kproxy").set(Err("shutting down".to_owned()));
    stop_in_order(&server, &handler.producers, config.shutdown_grace);
    // The admin port stays open to the end, so that the shutdown can be observed.
    drop(admin_server);
    Ok(())
}

/// Registers the reload of the certificates on SIGHUP. A reload that fails leaves those in use that were loaded before.
/// Without TLS only the metric is registered.
fn reload_certificates(tls: Option<Tls>, registry: &Registry, reloads: &Reloads) {
    let stale = registry.gauge(
        "kproxy_certificates_stale",
        "1 while the files of tls cannot be reloaded and the certificates loaded before stay in use.",
        &[],
    );
    let stale = stale.with_label_values::<&str>(&[]);
    if let Some(tls) = tls {
        reloads.add("tls", move || {
            let outcome = panics::catch(|| tls.reload()).unwrap_or_else(|text| Err(format!("panicked: {text}")));
            stale.set(i64::from(outcome.is_err()));
            outcome
        });
    }
}

/// Stops accepting requests and waits for the answers to those in progress. Then closes the producers, which complete
/// the remaining messages with `AppendFailure::Closed`. The readers end last, because they answer those messages too.
fn stop_in_order(server: &Server, producers: &ProducerPool<PendingMessage>, grace: Duration) {
    let deadline = Instant::now() + grace;
    let left = || deadline.saturating_duration_since(Instant::now());
    let reserve = answer_reserve(grace);
    // One reserve is for the producers to flush their messages, the other for the answers after the flush.
    server.drain(grace.saturating_sub(2 * reserve));
    producers.close(left().saturating_sub(reserve));
    server.drain(left());
    server.close();
}

/// Returns at most an eighth of `grace`, so that most of a short grace is left for requests in progress.
fn answer_reserve(grace: Duration) -> Duration {
    MAX_ANSWER_RESERVE.min(grace / 8)
}

fn producers(config: &Config, supervisor: &Supervisor) -> Result<ProducerPool<PendingMessage>, String> {
    let broker = BrokerConfig {
        hosts: config.broker_hosts.clone(),
        engine: config.engine,
        client_id: "kproxy".to_owned(),
        // A metadata request must not take longer than a message may wait.
        request_timeout: REQUEST_TIMEOUT.min(config.commit_timeout),
        settings: config.kafka.clone(),
        requests: RequestCounter::default(),
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
        .map(ProducerPool::new)
}

/// Returns `max_connections`, reduced if the process may open too few files: client connections must leave file
/// descriptors for the connections to brokers.
fn connections_within(max_connections: usize, open_files: u64) -> usize {
    // If the process may open fewer than 800 files, half of them are for clients.
    let others = OTHER_DESCRIPTORS.min(open_files / 2);
    let allowed = max_connections.min(usize::try_from(open_files - others).unwrap_or(usize::MAX)).max(1);
    if allowed < max_connections {
        warn!(
            "max_connections: {max_connections} is reduced to {allowed}, because this process may open {open_files} \
             files (ulimit -n, LimitNOFILE)"
        );
    }
    allowed
}

/// Updates `/readyz` and the gauges once a second, and trims the heap after a flood of large bodies.
struct Watch {
    handler: Arc<CommitHandler>,
    broker: Component,
    budget: ByteBudget,
    metrics: Arc<KproxyMetrics>,
    traffic: Arc<Traffic>,
}

impl Watch {
    fn run(&self, stop: &Stop) {
        let mut trim_trigger = TrimTrigger::default();
        loop {
            self.broker.set(self.handler.producers.reachable());
            let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.in_flight.set(gauge(self.handler.slots.used()));
            let used = self.budget.used();
            self.metrics.in_flight_bytes.set(gauge(used));
            if trim_trigger.fires(self.budget.take_peak(), used) {
                heap_trim::trim();
            }
            // The producers return the total since their start, so the counter is raised by the difference.
            let lookups = self.handler.producers.topic_lookups();
            self.metrics.topic_lookups.inc_by(lookups.saturating_sub(self.metrics.topic_lookups.get()));
            self.traffic.sample(&self.metrics, Instant::now());
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
        for (max_connections, open_files, allowed) in
            [(16_384, 1 << 20, 16_384), (16_384, 1024, 624), (16_384, 100, 50), (600, 1024, 600), (5, 0, 1)]
        {
            assert_eq!(connections_within(max_connections, open_files), allowed, "{max_connections} of {open_files}");
        }
    }

    #[test]
    fn most_of_a_short_grace_is_for_requests_in_progress() {
        for (grace, reserve) in [(10_000, 500), (4_000, 500), (1_000, 125), (0, 0)] {
            assert_eq!(answer_reserve(Duration::from_millis(grace)), Duration::from_millis(reserve), "{grace}");
        }
    }
}
