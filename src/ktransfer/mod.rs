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
//!  ZooKeeper or Kafka           ▼ │
//!                        push-0@M … push-n@M ── POST ──▶ backends
//!                              ▲  │ letters (bounded), and their ends
//!                    addresses │  └──────────────▶ dead-letters ── append ──▶ Kafka
//!                    (a table) │                   (one for all modules)
//!                              names@M
//! ```
//!
//! `module@M` starts these threads and restarts all of them when one fails. A SIGHUP runs `reload`, which starts, stops
//! and changes modules and does not touch the others. Each worker (`push-…`) has one channel and keeps a queue for each
//! of its keys, so that a message that waits for its next attempt delays only its key. At most `window_size` messages
//! are pushed and not done (`window_slots`). Before a batch enters its channel the fetch loop takes its memory from
//! `max_in_flight_bytes` (`memory_budget`); the memory returns when a message is done. The batches in the channel hold
//! at most `waiting_queue_size` messages. While the workers have enough to do the dispatcher receives no batch, and
//! while the memory is used up or the channel is full nothing is read from Kafka. `names@M` runs only if a backend is
//! configured by name. `starts@M` looks up where partitions without a stored offset begin, for `fetch@M`, and sends
//! these offsets to the group. With `admin_port` the daemon adds the threads `admin-accept`, `admin-0` and
//! `operations`, and `dead-letters` if a module has a dead-letter topic. For groups in ZooKeeper it adds `health`,
//! `keeper@…` and `keeper-send@…` (the session with ZooKeeper) and `leases` (extends the claims of all modules); for
//! groups in Kafka each module has `kafka-group`, which sends the heartbeats.
//!
//! Reading order: `config`, `connections`, `modules` (the modules that run), `reload`, `module` (the threads and
//! channels of a module), `dispatcher` (the loop that owns the windows), `window`, `group`, `fetcher`, `worker`,
//! `backends` (the choice of a backend), `push_rate`, `backend_client` (an attempt), `outcomes` (the meaning of its
//! result), `policy` (retries), `give_up`, `dead_letters`, `operations`, `page`; the tools `move_offsets` and `replay`.
//!
//! Invariant: a message is done only when a backend accepted it (`outcomes`; without this table: answered 2xx), when
//! the method of the message is not configured, or when the message was given up: dropped, or stored as a dead letter.

mod admin_port;
mod attempt_table;
mod backend_client;
mod backends;
mod config;
mod connections;
mod dead_letters;
mod dispatcher;
mod fetcher;
mod give_up;
pub mod group;
mod job;
mod letter_thread;
mod live_module;
mod memory_budget;
mod method;
mod metrics;
mod module;
mod modules;
mod move_offsets;
mod operations;
mod outcomes;
mod page;
mod pauses;
mod plan;
mod policy;
mod push_rate;
mod read_errors;
mod reload;
mod replay;
mod stop_report;
mod template;
#[cfg(test)]
mod test_backend;
#[cfg(test)]
mod test_fixtures;
mod turn;
mod unresolved_names;
mod window;
mod window_slots;
mod worker;
mod worker_context;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::admin::Health;
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

use config::GroupService;
pub use config::{Config, load};
use connections::ZookeeperSession;
use letter_thread::LetterThread;
use metrics::Metrics;
use modules::Modules;
pub use move_offsets::MOVE_OFFSETS;
use operations::Operations;
pub use operations::command::run_if_meant as operate;
use reload::Reloader;
pub use replay::REPLAY;
use stop_report::StopReport;

/// Interval at which the session with ZooKeeper is checked for `/readyz`.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Runs all modules until the supervisor's stop, then stops in order: first the modules, then the session with
/// ZooKeeper (if there is one), in which the modules store their offsets, then the HTTP server of `admin_port`. Fails
/// if `admin_port` cannot be opened, or if a module failed, did not stop within `shutdown_grace_ms`, or could not store
/// an offset or release a claim.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    let (registry, health) = (Registry::new(), Health::new());
    // Until all components exist `/readyz` would answer 200 for those that do.
    let startup = health.component("startup");
    let operations = Operations::default();
    let server = admin_port::serve(&config, &operations, &registry, &health, supervisor)?;

    // Two supervisors, since the modules must end before the session: they need it to release their partitions.
    let session = Supervisor::new("ktransfer", Stop::new());
    let zookeeper = match &config.groups {
        GroupService::ZooKeeper(keeper) => Some(ZookeeperSession::start(keeper, &session)),
        GroupService::Kafka(_) => None,
    };
    let module_threads = Supervisor::new("modules", supervisor.stop().child());

    let shutdown_grace = config.shutdown_grace;
    let config = Arc::new(config);
    let letter_threads = Supervisor::new("dead letters", Stop::new());
    let report = StopReport::default();
    let modules = Arc::new(Modules {
        letters: LetterThread::new(&config, zookeeper.as_ref(), &letter_threads),
        config,
        zookeeper: zookeeper.clone(),
        registry: registry.clone(),
        metrics: Metrics::new(&registry),
        health: health.clone(),
        report: report.clone(),
        operations,
        supervisor: module_threads.clone(),
        table: Mutex::default(),
    });
    modules.start_all();
    let reloader = Reloader::new(Arc::clone(&modules), &registry);
    supervisor.reloads().add("configuration", move || reloader.reload());

    // A failure under one of these supervisors must end the daemon. The failure triggers that supervisor's stop, so
    // the thread spawned here returns, and the daemon's supervisor counts a thread that returns early as failed.
    for group in [session.clone(), module_threads.clone(), letter_threads.clone()] {
        supervisor.spawn(group.name().to_owned(), move || group.stop().wait());
    }
    if let Some(zookeeper) = &zookeeper {
        let (watched, component) = (Arc::clone(&zookeeper.keeper), health.component("zookeeper"));
        let stop = supervisor.stop().clone();
        supervisor.spawn("health", move || {
            component.set(watched.reachable());
            while stop.sleep(HEALTH_INTERVAL) {
                component.set(watched.reachable());
            }
        });
    }
    startup.set(Ok(()));

    supervisor.stop().wait();
    modules.close();
    let ended = module_threads.join(shutdown_grace);
    report.end_waits();
    // After the modules: their workers wait for dead letters in flight, as long as for pushes.
    letter_threads.stop().trigger();
    letter_threads.join(shutdown_grace / 20);
    if let Some(zookeeper) = zookeeper {
        zookeeper.keeper.close(shutdown_grace / 10);
    }
    session.stop().trigger();
    if let Some(server) = server {
        server.close();
    }
    let mut failures = modules.take_failures();
    match ended {
        Ended::Stopped => {}
        Ended::Failed(failure) => failures.push(failure.to_string()),
        Ended::StillRunning(left) => {
            failures.push(format!("threads still running after shutdown_grace_ms: {}", left.join(", ")));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}
