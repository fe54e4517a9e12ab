//! One module: its threads and channels, and its restart after a failure.
//!
//! The diagram of the threads is in [`ktransfer`](super). Invariant: a module shares nothing with other modules but the
//! session with ZooKeeper and the registry of metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use log::{error, info, warn};

use super::client::BackendResolver;
use super::config::ModuleConfig;
use super::dispatcher::{Channels, Dispatcher, JobQueues};
use super::fetcher::{FetchLoop, QUEUED_BATCHES};
use super::group::{Group, mailbox};
use super::metrics::ModuleMetrics;
use super::push::Pusher;
use super::worker::Worker;
use super::worker_context::WorkerContext;
use crate::admin::Component;
use crate::broker::{Fetcher, LogEnds};
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// Queued events of the group. When the channel is full the group blocks, so it claims nothing that the dispatcher does
/// not take.
const GROUP_EVENTS: usize = 64;
/// Queued commands to the fetch loop. When the channel is full the dispatcher blocks, for one poll at most.
const FETCH_COMMANDS: usize = 64;
/// Pause before the next try of a module that cannot start yet (no ZooKeeper, no broker).
const NOT_YET_PAUSE: Duration = Duration::from_secs(1);
/// Pause before the first restart of a module; it doubles with each failure soon after the last.
const FIRST_RESTART_PAUSE: Duration = Duration::from_secs(1);
/// After running for this long, a module counts as recovered: the next failure counts as the first.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);
/// Threads that still block in a library after the grace get this much longer, then they are abandoned.
const GRACE_MARGIN: Duration = Duration::from_millis(500);

/// Prefix of the name of a group's thread.
const GROUP_THREAD: &str = "group@";

/// The connections of a module to Kafka and ZooKeeper.
pub(super) struct Connectors {
    /// The membership in the module's consumer group.
    pub(super) group: Box<dyn Group>,
    /// Reads the topic.
    pub(super) fetcher: Box<dyn Fetcher>,
    /// Looks up the oldest and newest offsets of partitions.
    pub(super) log_ends: Box<dyn LogEnds>,
}

/// A module, with what the daemon provides for it.
pub(super) struct Module {
    /// Its configuration.
    pub(super) config: ModuleConfig,
    /// Its metrics.
    pub(super) metrics: ModuleMetrics,
    /// Whether it runs, for `/readyz`.
    pub(super) health: Component,
    /// Whether its broker can be read, for `/readyz`.
    pub(super) broker_health: Component,
    /// How long its ordered stop may take.
    pub(super) grace: Duration,
    /// Longest pause before it is started again after a failure.
    pub(super) max_pause: Duration,
}

impl Module {
    /// Runs the module until the stop, and starts it again whenever one of its threads fails. Returns early only if the
    /// group thread failed. `connect` makes the connections, or returns why it cannot yet; their threads belong to the
    /// supervisor it is given.
    pub(super) fn run(&self, stop: &Stop, connect: impl Fn(&Supervisor) -> Result<Connectors, String>) {
        let name = &self.config.name;
        let mut failure_pause = FIRST_RESTART_PAUSE.min(self.max_pause);
        let mut last_reason = String::new();
        while !stop.is_triggered() {
            let began = Instant::now();
            let threads = Supervisor::new(format!("module {name}"), stop.child());
            let pause = match connect(&threads) {
                Err(reason) => {
                    threads.stop().trigger();
                    threads.join(self.grace);
                    // Once for each reason, since it is tried every second.
                    if reason != last_reason {
                        warn!("module [{name}] cannot start yet, retrying: {reason}");
                    }
                    self.health.set(Err(reason.clone()));
                    last_reason = reason;
                    NOT_YET_PAUSE.min(self.max_pause)
                }
                Ok(connectors) => {
                    last_reason.clear();
                    self.start(connectors, &threads);
                    self.health.set(Ok(()));
                    info!("module [{name}] start");
                    let ended = threads.join(self.grace + GRACE_MARGIN);
                    let group_failed =
                        matches!(&ended, Ended::Failed(failure) if failure.thread.starts_with(GROUP_THREAD));
                    let reason = match ended {
                        Ended::Stopped => "stopped on request".to_owned(),
                        Ended::Failed(failure) => failure.to_string(),
                        Ended::StillRunning(threads) => {
                            format!("threads still running at the end of shutdown_grace_ms: {}", threads.join(", "))
                        }
                    };
                    if stop.is_triggered() {
                        info!("module [{name}] end: {reason}");
                        return;
                    }
                    if group_failed {
                        // Its partitions stay claimed as long as the session with ZooKeeper, which other modules share:
                        // only the end of the daemon frees them for the other instances.
                        error!("module [{name}] failed in its group thread, so the daemon ends: {reason}");
                        return;
                    }
                    if RECOVERED_AFTER < began.elapsed() {
                        failure_pause = FIRST_RESTART_PAUSE.min(self.max_pause);
                    }
                    let pause = failure_pause;
                    failure_pause = (pause * 2).min(self.max_pause);
                    error!("module [{name}] failed and restarts in {} ms: {reason}", pause.as_millis());
                    self.health.set(Err(reason));
                    self.metrics.restarts.inc();
                    pause
                }
            };
            stop.sleep(pause);
        }
    }

    /// Makes the channels and starts the threads, all of them.
    fn start(&self, connectors: Connectors, threads: &Supervisor) {
        let config = &self.config;
        let name = &config.name;
        let stop = threads.stop();
        let resolver = BackendResolver::new(&config.backend_servers);
        if resolver.has_names() {
            let (resolver, stop) = (Arc::clone(&resolver), stop.clone());
            threads.spawn(format!("names@{name}"), move || resolver.run(&stop));
        }
        let context = Arc::new(WorkerContext {
            pusher: Pusher::new(config, resolver),
            lease: connectors.group.lease(),
            metrics: self.metrics.clone(),
            config: config.clone(),
        });

        // Channels of jobs and acks are unbounded, but the window bounds them: the dispatcher hands out a job only
        // while fewer than window_size are in flight, and takes it off that count only with its ack. So all job
        // channels together hold at most window_size jobs, the ack channel as many acks, and no send blocks. (A bounded
        // channel allocates its slots up front: window_size of them for each worker.)
        let (shared_job_sender, shared_jobs) = unbounded();
        let (ack_sender, acks) = unbounded();
        let mut own_job_senders = Vec::new();
        for number in 0..config.worker_num.get() {
            let (own_job_sender, own_jobs) = unbounded();
            own_job_senders.push(own_job_sender);
            let worker = Worker::new(number, Arc::clone(&context));
            let (shared_jobs, acks) = (shared_jobs.clone(), ack_sender.clone());
            threads.spawn(format!("push-{number}@{name}"), move || worker.run(&own_jobs, &shared_jobs, &acks));
        }

        let (fetch_commands, fetch_command_receiver) = bounded(FETCH_COMMANDS);
        // Full while the window is: then the fetch loop reads no further.
        let (batches, fetched) = bounded(QUEUED_BATCHES.min(config.waiting_queue_size.get()));
        let fetch_loop = FetchLoop::new(
            connectors.fetcher,
            connectors.log_ends,
            config,
            self.metrics.clone(),
            self.broker_health.clone(),
        );
        let fetch_stop = stop.clone();
        threads.spawn(format!("fetch@{name}"), move || fetch_loop.run(&fetch_command_receiver, &batches, &fetch_stop));

        let (event_sender, group_events) = bounded(GROUP_EVENTS);
        // A table, not a queue: a commit overwrites an earlier one of the same partition.
        let (group_commands, mailbox) = mailbox();
        let jobs = JobQueues { own: own_job_senders, shared: shared_job_sender };
        let channels = Channels { group_events, group_commands, fetch_commands, fetched, jobs, acks };
        // Half of the grace for pushes in flight; the rest for closing their connections, storing offsets and leaving
        // the group.
        let dispatcher = Dispatcher::new(channels, context, stop.clone(), self.grace / 2);
        threads.spawn(format!("dispatch@{name}"), move || dispatcher.run());
        // Last, so that all threads that act on a claim exist before the first claim. It ends with the dispatcher's
        // Leave.
        let group = connectors.group;
        threads.spawn(format!("{GROUP_THREAD}{name}"), move || group.run(mailbox, event_sender));
    }
}

#[cfg(test)]
mod tests;
