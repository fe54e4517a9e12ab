//! ktransfer: posts each message of a topic to the backends of a module, in order per key.
//!
//! ```text
//!  for each module M:
//!
//!             events (64)                commands (64)
//!   group@M ───────────────▶ dispatch@M ──────────────▶ fetch@M ◀── messages ── Kafka
//!    │ ▲ ▲                    │ │ ▲ ▲                      │
//!    │ │ └────────────────────┘ │ │ └──────────────────────┘
//!    │ │  commands (a table)    │ │       batches (8)
//!    ▼ │                   jobs │ │ reports
//!  ZooKeeper                    ▼ │
//!                        push-0@M … push-n@M ── POST ──▶ backends
//!                              ▲  │ letters (bounded), and their ends
//!                    addresses │  └──────────────▶ dead-letters ── append ──▶ Kafka
//!                    (a table) │                   (one for all modules)
//!                              names@M
//! ```
//!
//! `module@M` starts these threads and restarts all of them when one fails. Each worker (`push-…`) has one channel; it
//! keeps a queue for each of its keys, so that a message that waits for its next attempt holds up its key alone. At
//! most `window_size` messages are pushed and not done (`window_slots`). Before a batch enters its channel the fetch
//! loop takes its memory from `max_in_flight_bytes` (`memory_budget`); the memory returns when a message is done. The
//! batches in the channel hold at most `waiting_queue_size` messages. While the workers have enough to do the
//! dispatcher receives no batch, and while the memory is used up or the channel is full nothing is read from Kafka.
//! `names@M` runs only if a backend is configured by name. `starts@M` looks up where partitions without a stored offset
//! begin, for `fetch@M`, and sends these offsets to the group. The daemon adds the threads `health`, `keeper@…` and
//! `keeper-send@…` (the session with ZooKeeper), `leases` (extends the claims of all modules), `dead-letters` if a module
//! has a dead-letter topic and, with `admin_port`, `admin-accept` and `admin-0`.
//!
//! Reading order: `config`, `module` (the threads and channels of a module), `dispatcher` (the loop that owns the
//! windows), `window`, `group`, `fetcher`, `worker`, `backends` (which one a push goes to), `push_rate`,
//! `backend_client` (an attempt), `outcomes` (what its result means), `policy` (retries), `give_up`, `dead_letters`,
//! `replay` (a command).
//!
//! Invariant: a message is done only when a backend accepted it (`outcomes`; without this table: answered 2xx), when the
//! method of the message is not configured, or when the message was given up: dropped, or stored as a dead letter.

mod backend_client;
mod backends;
mod config;
mod dead_letters;
mod dispatcher;
mod fetcher;
mod give_up;
pub mod group;
mod job;
mod memory_budget;
mod method;
mod metrics;
mod module;
mod outcomes;
mod policy;
mod push_rate;
mod replay;
mod stop_report;
mod template;
#[cfg(test)]
mod test_backend;
#[cfg(test)]
mod test_fixtures;
mod window;
mod window_slots;
mod worker;
mod worker_context;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use log::info;

use crate::admin::{Admin, Health};
use crate::broker::{self, BrokerConfig, FetcherConfig, HeaderLimits, PartitionerKind, Producer, ProducerConfig};
use crate::daemon;
use crate::http::{Listen, Server, ServerConfig, ServerLimits, ServerMetrics};
use crate::keeper::{self, Keeper, SharedKeeper, discovery};
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

use config::ModuleConfig;
pub use config::{Config, load};
use dead_letters::{LetterCompletion, ModuleLetters};
use group::Leases;
use group::zookeeper::{GroupObservers, ZookeeperGroup, ZookeeperGroupConfig};
use metrics::Metrics;
use module::{Connectors, Module};
use stop_report::StopReport;

/// Timeout of one request to a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which the session with ZooKeeper is checked for `/readyz`.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// Limit on the bytes that a Kafka client prefetches for each module.
const PREFETCH_BYTES: usize = 8 << 20;
/// Time limit of one attempt to store a dead letter. It is longer than most outages of a broker: within one attempt the
/// producer stores a letter once, also if a response is lost.
const LETTER_TIMEOUT: Duration = Duration::from_secs(30);
/// Size of the largest message that can be read, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Entry point of `ktransfer_bin`: the daemon, or one of its commands.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if replay::command::is_meant(&arguments) {
        return replay::command::main(arguments, broker_config);
    }
    let code = daemon::main("ktransfer", "./conf/ktransfer.yaml", load, run);
    if matches!(arguments.as_slice(), [only] if only == "-h" || only == "--help") {
        // A closed pipe is no error.
        let _ = io::stdout().write_all(replay::command::HELP.as_bytes());
    }
    code
}

/// Runs all modules until the supervisor's stop, then stops in order: first the modules, then the session with
/// ZooKeeper, in which the modules store their offsets, then the HTTP server of `admin_port`. Fails if `admin_port`
/// cannot be opened, or if a module failed, did not stop within `shutdown_grace_ms`, or could not store an offset or
/// release a claim.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    let (registry, health) = (Registry::new(), Health::new());
    // Until all components exist `/readyz` would answer 200 for those that do.
    let startup = health.component("startup");
    let server = serve_operations(&config, &registry, &health, supervisor)?;

    // Two supervisors, since the modules must end before the session: they need it to release their partitions.
    let session = Supervisor::new("ktransfer", Stop::new());
    let keeper = keeper::connect(config.keeper.clone(), &session);
    let leases = Leases::new(Arc::clone(&keeper));
    let (extended, stop) = (Arc::clone(&leases), session.stop().clone());
    session.spawn("leases", move || extended.run(&stop));
    let modules = Supervisor::new("modules", supervisor.stop().child());

    let metrics = Metrics::new(&registry);
    let shared = Arc::new(config);
    let (letter_sender, letters) = dead_letters::channel(shared.modules.len());
    let letter_threads = Supervisor::new("dead letters", Stop::new());
    if shared.modules.iter().any(|module| module.dead_letter_topic.is_some()) {
        let (shared, keeper, threads) = (Arc::clone(&shared), Arc::clone(&keeper), letter_threads.clone());
        letter_threads.spawn("dead-letters", move || {
            let make = || letter_producer(&shared, keeper.as_ref(), &threads);
            dead_letters::store_letters(&letters, threads.stop(), make);
        });
    }
    let report = StopReport::default();
    for module_config in &shared.modules {
        let module_metrics = metrics.of_module(&module_config.name, &module_config.topic);
        let module = Module {
            config: module_config.clone(),
            dead_letters: module_config.dead_letter_topic.as_ref().map(|topic| {
                let (name, component) = (&module_config.name, format!("dead letters of {}", module_config.name));
                let (metrics, health) = (module_metrics.clone(), health.component(component));
                ModuleLetters::new(letter_sender.clone(), Arc::clone(name), Arc::clone(topic), metrics, health)
            }),
            metrics: module_metrics,
            health: health.component(format!("module {}", module_config.name)),
            broker_health: health.component(format!("broker of {}", module_config.name)),
            // The remaining fifth of the grace is for closing the session with ZooKeeper.
            grace: shared.shutdown_grace * 4 / 5,
            max_pause: shared.retry_interval,
            report: report.clone(),
        };
        let membership = Membership {
            keeper: Arc::clone(&keeper),
            leases: Arc::clone(&leases),
            observers: GroupObservers {
                health: Some(health.component(format!("group of {}", module_config.name))),
                unreadable: Some(module.metrics.unreadable_offsets.clone()),
                unowned: Some(module.metrics.unowned.clone()),
                report: report.clone(),
            },
        };
        let (shared, stop) = (Arc::clone(&shared), modules.stop().clone());
        modules.spawn(format!("module@{}", module_config.name), move || {
            module.run(&stop, |threads| connect(&shared, &module.config, &membership, threads));
        });
    }

    // A failure under one of these supervisors must end the daemon. The failure triggers that supervisor's stop, so
    // the thread spawned here returns, and the daemon's supervisor counts a thread that returns early as failed.
    for group in [session.clone(), modules.clone(), letter_threads.clone()] {
        supervisor.spawn(group.name().to_owned(), move || group.stop().wait());
    }
    let (watched, component, stop) = (Arc::clone(&keeper), health.component("zookeeper"), supervisor.stop().clone());
    startup.set(Ok(()));
    supervisor.spawn("health", move || {
        component.set(watched.reachable());
        while stop.sleep(HEALTH_INTERVAL) {
            component.set(watched.reachable());
        }
    });

    supervisor.stop().wait();
    let ended = modules.join(shared.shutdown_grace);
    report.end_waits();
    // After the modules: their workers wait for dead letters on their way, within the time of a push.
    letter_threads.stop().trigger();
    letter_threads.join(shared.shutdown_grace / 20);
    keeper.close(shared.shutdown_grace / 10);
    session.stop().trigger();
    if let Some(server) = server {
        server.close();
    }
    let mut failures = report.take();
    match ended {
        Ended::Stopped => {}
        Ended::Failed(failure) => failures.push(failure.to_string()),
        Ended::StillRunning(left) => {
            failures.push(format!("threads still running after shutdown_grace_ms: {}", left.join(", ")));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// What the groups of a module need besides their configuration.
struct Membership {
    keeper: SharedKeeper,
    leases: Arc<Leases>,
    observers: GroupObservers,
}

/// Starts the HTTP server of `admin_port`; returns `None` if it is not configured. Fails if the port cannot be opened.
fn serve_operations(
    config: &Config,
    registry: &Registry,
    health: &Health,
    supervisor: &Supervisor,
) -> Result<Option<Server>, String> {
    let Some(port) = config.admin_port else { return Ok(None) };
    let server_config = ServerConfig {
        listen: Listen::Everywhere(port),
        name: "admin",
        readers: 1,
        limits: ServerLimits::default(),
        tls: None,
    };
    let handler = Arc::new(Admin::new(registry.clone(), health.clone()));
    let server = Server::start(server_config, handler, supervisor, &ServerMetrics::new(registry))
        .map_err(|cause| format!("admin_port: cannot listen on port {port}: {cause}"))?;
    info!("admin_port: listening on {}", server.local_addr());
    Ok(Some(server))
}

/// Makes the connections of a module: its group in ZooKeeper, and the Kafka clients. Fails if no broker is known or a
/// client cannot be created.
fn connect(
    config: &Config,
    module: &ModuleConfig,
    membership: &Membership,
    threads: &Supervisor,
) -> Result<Connectors, String> {
    let broker = broker_config(config, membership.keeper.as_ref())?;
    let fetcher_config = FetcherConfig {
        prefetch_bytes: PREFETCH_BYTES,
        max_message_bytes: MAX_MESSAGE_BYTES,
        headers: HeaderLimits::default(),
    };
    let group = ZookeeperGroupConfig {
        group: module.name.to_string(),
        topic: module.topic.to_string(),
        offset_update_interval: module.offset_update_interval,
        // A module has four fifths of the grace; half of these are for the pushes in flight.
        leave_timeout: config.shutdown_grace * 3 / 10,
    };
    let (keeper, leases) = (Arc::clone(&membership.keeper), Arc::clone(&membership.leases));
    let group = ZookeeperGroup::new(group, keeper, leases).observed_by(membership.observers.clone());
    Ok(Connectors {
        fetcher: broker::fetcher(&broker, fetcher_config, threads)?,
        log_ends: broker::log_ends(&broker, threads)?,
        group: Box::new(group),
    })
}

/// Returns how to connect to the brokers in `broker_hosts`, or else to those registered in ZooKeeper. Fails if no broker
/// is known.
fn broker_config(config: &Config, keeper: &dyn Keeper) -> Result<BrokerConfig, String> {
    let hosts = match &config.broker_hosts {
        Some(hosts) => hosts.clone(),
        None => discovery::brokers(keeper, &config.kafka.protocol()).map_err(|cause| cause.to_string())?,
    };
    if hosts.is_empty() {
        let chroot = &config.keeper.chroot;
        let protocol = config.kafka.protocol();
        return Err(format!(
            "no broker with {protocol} is registered in ZooKeeper under zk_chroot {chroot:?}: check zk_chroot and \
             security.protocol"
        ));
    }
    Ok(BrokerConfig {
        hosts,
        engine: config.engine,
        client_id: "ktransfer".to_owned(),
        request_timeout: BROKER_TIMEOUT,
        settings: config.kafka.clone(),
    })
}

/// Makes the producer of the dead letters of all modules.
fn letter_producer(
    config: &Config,
    keeper: &dyn Keeper,
    threads: &Supervisor,
) -> Result<Arc<dyn Producer<LetterCompletion>>, String> {
    let mut broker = broker_config(config, keeper)?;
    // A topic that brokers create on demand has their default replication, which may lose messages.
    broker.settings = broker.settings.without_topic_creation();
    let producer = ProducerConfig {
        partitioner: PartitionerKind::default(),
        max_message_bytes: MAX_MESSAGE_BYTES,
        max_in_flight: dead_letters::MAX_LETTERS * config.modules.len(),
        timeout: LETTER_TIMEOUT,
    };
    broker::producer(&broker, producer, threads)
}
