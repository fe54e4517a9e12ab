//! One module: its threads and channels, and that it comes back after a failure.
//!
//! ```text
//!  group@M ──events──▶ dispatch@M ──commands──▶ fetch@M ──batches──▶ dispatch@M
//!  dispatch@M ──jobs──▶ push-0@M … push-n@M ──acks──▶ dispatch@M      names@M looks names of backends up
//! ```
//!
//! Invariant: nothing here is shared with another module but the session with ZooKeeper and the registry of metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use log::{error, info, warn};

use super::client::Names;
use super::config::ModuleConfig;
use super::dispatcher::{Dispatcher, Ports};
use super::fetcher::{QUEUED_BATCHES, Reader};
use super::group::{Group, mailbox};
use super::metrics::ModuleMetrics;
use super::push::Pusher;
use super::worker::{Shared, Worker};
use crate::admin::Component;
use crate::broker::{Fetcher, LogEnds};
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// Events of the group that may wait. When it is full the group waits: it claims nothing while nobody takes what it claimed.
const GROUP_EVENTS: usize = 64;
/// Commands to the fetcher that may wait. When it is full the dispatcher waits, for one poll at most.
const FETCH_COMMANDS: usize = 64;
/// Pause before a module that could not be started yet (no ZooKeeper, no broker) is tried again.
const NOT_YET_PAUSE: Duration = Duration::from_secs(1);
/// Pause before the first restart of a module; doubles with each failure soon after the last.
const FIRST_RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A module that ran so long has recovered: the next failure counts as the first.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);
/// Threads that hang in something that nobody can end are waited for so much longer than the grace, then left.
const MARGIN: Duration = Duration::from_millis(500);

/// How the name of a group's thread begins.
const GROUP_THREAD: &str = "group@";

/// The sides of a module that touch Kafka and ZooKeeper.
pub struct Parts {
    /// Membership in the group of the module.
    pub group: Box<dyn Group>,
    /// Reads the topic.
    pub fetcher: Box<dyn Fetcher>,
    /// Knows where its partitions begin and end.
    pub log_ends: Box<dyn LogEnds>,
}

/// What a module needs from the daemon.
pub struct Module {
    /// Its configuration.
    pub config: ModuleConfig,
    /// What it counts.
    pub metrics: ModuleMetrics,
    /// Whether it runs, for `/readyz`.
    pub health: Component,
    /// Whether its broker can be read, for `/readyz`.
    pub broker_health: Component,
    /// How long its ordered stop may take.
    pub grace: Duration,
    /// Longest pause before it is started again after a failure.
    pub longest_pause: Duration,
}

impl Module {
    /// Runs the module until the stop. It is started again whenever one of its threads has failed; it returns unasked only when the
    /// group failed, see there. `make` makes new parts, or says
    /// why that is not possible yet; the threads of the parts belong to the supervisor it is given.
    pub fn run(&self, stop: &Stop, make: impl Fn(&Supervisor) -> Result<Parts, String>) {
        let name = &self.config.name;
        let mut failure_pause = FIRST_RESTART_PAUSE.min(self.longest_pause);
        let mut last_trouble = String::new();
        while !stop.is_triggered() {
            let began = Instant::now();
            let threads = Supervisor::new(format!("module {name}"), stop.child());
            let pause = match make(&threads) {
                Err(trouble) => {
                    threads.stop().trigger();
                    threads.join(self.grace);
                    if trouble != last_trouble {
                        warn!("module [{name}] cannot start yet, it is tried again and again: {trouble}");
                    }
                    self.health.set(Err(trouble.clone()));
                    last_trouble = trouble;
                    NOT_YET_PAUSE.min(self.longest_pause)
                }
                Ok(parts) => {
                    last_trouble.clear();
                    self.start(parts, &threads);
                    self.health.set(Ok(()));
                    info!("module [{name}] start");
                    let ended = threads.join(self.grace + MARGIN);
                    let group_failed =
                        matches!(&ended, Ended::Failed(failure) if failure.thread.starts_with(GROUP_THREAD));
                    let trouble = match ended {
                        Ended::Stopped => "it was stopped".to_owned(),
                        Ended::Failed(failure) => failure.to_string(),
                        Ended::StillRunning(left) => format!("still running at the end: {}", left.join(", ")),
                    };
                    if stop.is_triggered() {
                        info!("module [{name}] end: {trouble}");
                        return;
                    }
                    if group_failed {
                        // What it claimed stays claimed as long as the session with ZooKeeper lives, which other modules share:
                        // only the end of the daemon frees it for the other instances.
                        error!("module [{name}] failed in its group, so the daemon ends: {trouble}");
                        return;
                    }
                    if RECOVERED_AFTER < began.elapsed() {
                        failure_pause = FIRST_RESTART_PAUSE.min(self.longest_pause);
                    }
                    let pause = failure_pause;
                    failure_pause = (pause * 2).min(self.longest_pause);
                    error!("module [{name}] failed and starts again in {} ms: {trouble}", pause.as_millis());
                    self.health.set(Err(trouble));
                    self.metrics.restarts.inc();
                    pause
                }
            };
            stop.sleep(pause);
        }
    }

    /// Makes the channels and starts the threads. Everything that works on a module is born here.
    fn start(&self, parts: Parts, threads: &Supervisor) {
        let config = &self.config;
        let name = &config.name;
        let stop = threads.stop();
        let names = Names::new(&config.backend_servers);
        if names.has_names() {
            let (names, stop) = (Arc::clone(&names), stop.clone());
            threads.spawn(format!("names@{name}"), move || names.run(&stop));
        }
        let shared = Arc::new(Shared {
            pusher: Pusher::new(config, names),
            lease: parts.group.lease(),
            metrics: self.metrics.clone(),
            config: config.clone(),
        });

        // Jobs and acks need no bound of their own: the dispatcher hands out a job only for an open slot of the window, so of
        // both there are at most window_size, and no send waits. (A bound would reserve window_size slots for each worker.)
        let (anyone_sender, anyone) = unbounded();
        let (ack_sender, acks) = unbounded();
        let mut own = Vec::new();
        for number in 0..config.worker_num.get() {
            let (job_sender, jobs) = unbounded();
            own.push(job_sender);
            let worker = Worker::new(number, Arc::clone(&shared));
            let (anyone, acks) = (anyone.clone(), ack_sender.clone());
            threads.spawn(format!("push-{number}@{name}"), move || worker.run(&jobs, &anyone, &acks));
        }

        let (fetch, fetch_commands) = bounded(FETCH_COMMANDS);
        // Full while the window is: then the fetcher reads no further.
        let (fetched_sender, fetched) = bounded(QUEUED_BATCHES.min(config.waiting_queue_size.get()));
        let reader = Reader {
            fetcher: parts.fetcher,
            log_ends: parts.log_ends,
            module: Arc::clone(name),
            topic: Arc::clone(&config.topic),
            start_from: config.start_from,
            waiting_queue_size: config.waiting_queue_size.get(),
            metrics: self.metrics.clone(),
            health: self.broker_health.clone(),
            assigned: Vec::new(),
            unplaced: Vec::new(),
            place_after: Instant::now(),
        };
        let reader_stop = stop.clone();
        threads.spawn(format!("fetch@{name}"), move || reader.run(&fetch_commands, &fetched_sender, &reader_stop));

        let (event_sender, group_events) = bounded(GROUP_EVENTS);
        let (group, mailbox) = mailbox();
        let ports = Ports { group_events, group, fetch, fetched, own, anyone: anyone_sender, acks };
        // Half of the grace for pushes under way; the rest for cutting them, storing offsets and leaving the group.
        let dispatcher = Dispatcher::new(ports, shared, stop.clone(), self.grace / 2);
        threads.spawn(format!("dispatch@{name}"), move || dispatcher.run());
        // Last, so that everyone who acts on what it claims is there. It ends when the dispatcher tells it to leave.
        let membership = parts.group;
        threads.spawn(format!("{GROUP_THREAD}{name}"), move || membership.run(mailbox, event_sender));
    }
}

#[cfg(test)]
#[path = "module_tests.rs"]
mod tests;
