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
//!                                 ▲
//!                                 │ addresses (a table)
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
//! `keeper-send@…` (the session with ZooKeeper), `leases` (extends the claims of all modules) and, with `admin_port`,
//! `admin-accept`, `admin-0` and `operations` (see [`operations`]).
//!
//! Reading order: `config`, `module` (the threads and channels of a module), `dispatcher` (the loop that owns the
//! windows), `window`, `group`, `fetcher`, `worker`, `backend_client` (an attempt), `policy` (retries), `give_up`.
//!
//! Invariant: a message is done only when a backend answered 2xx, when the method of the message is not configured, or
//! when the message was given up.

mod admin_port;
mod attempt_board;
mod backend_client;
mod backends;
mod config;
mod dispatcher;
mod fetcher;
mod give_up;
pub mod group;
mod job;
mod memory_budget;
mod method;
mod metrics;
mod module;
mod modules;
mod operations;
mod pauses;
mod policy;
mod stop_report;
mod template;
#[cfg(test)]
mod test_backend;
#[cfg(test)]
mod test_fixtures;
mod turn;
mod window;
mod window_slots;
mod worker;
mod worker_context;

use std::sync::Arc;
use std::time::Duration;

use crate::admin::Health;
use crate::keeper;
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

pub use config::{Config, load};
use group::Leases;
use metrics::Metrics;
use modules::Modules;
use operations::Operations;
use stop_report::StopReport;

/// Interval at which the session with ZooKeeper is checked for `/readyz`.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Runs all modules until the supervisor's stop, then stops in order: first the modules, then the session with
/// ZooKeeper, in which the modules store their offsets, then the HTTP server of `admin_port`. Fails if `admin_port`
/// cannot be opened, or if a module failed, did not stop within `shutdown_grace_ms`, or could not store an offset or
/// release a claim.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    let (registry, health) = (Registry::new(), Health::new());
    // Until all components exist `/readyz` would answer 200 for those that do.
    let startup = health.component("startup");
    let operations = Operations::default();
    let server = admin_port::serve(&config, &operations, &registry, &health, supervisor)?;

    // Two supervisors, since the modules must end before the session: they need it to release their partitions.
    let session = Supervisor::new("ktransfer", Stop::new());
    let keeper = keeper::connect(config.keeper.clone(), &session);
    let leases = Leases::new(Arc::clone(&keeper));
    let (extended, stop) = (Arc::clone(&leases), session.stop().clone());
    session.spawn("leases", move || extended.run(&stop));
    let module_threads = Supervisor::new("modules", supervisor.stop().child());

    let report = StopReport::default();
    let shutdown_grace = config.shutdown_grace;
    let modules = Modules {
        config: Arc::new(config),
        keeper: Arc::clone(&keeper),
        leases,
        metrics: Metrics::new(&registry),
        health: health.clone(),
        report: report.clone(),
        operations,
        supervisor: module_threads.clone(),
    };
    for module_config in &modules.config.modules {
        modules.start(module_config);
    }

    // A failure under one of these two supervisors must end the daemon. The failure triggers that supervisor's stop, so
    // the thread spawned here returns, and the daemon's supervisor counts a thread that returns early as failed.
    for group in [session.clone(), module_threads.clone()] {
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
    let ended = module_threads.join(shutdown_grace);
    report.end_waits();
    keeper.close(shutdown_grace / 10);
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
