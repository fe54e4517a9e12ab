//! Runs one module: starts its threads, creates its channels, and restarts all of them after a failure.
//!
//! The diagram of the threads is in [`ktransfer`](super). Invariant: modules share only the session with ZooKeeper and
//! the registry of metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use log::{error, info, warn};

use super::config::ModuleConfig;
use super::dead_letters::ModuleLetters;
use super::dispatcher::{Channels, Dispatcher};
use super::fetcher::{FOUND_STARTS, FetchChannels, FetchLoop, QUEUED_BATCHES, StartOffsets, StartRequests};
use super::group::{Group, mailbox};
use super::live_module::{ChangeableThreads, LiveModule, Resolving};
use super::memory_budget::MemoryBudget;
use super::metrics::ModuleMetrics;
use super::operations::OperatorLink;
use super::stop_report::StopReport;
use super::worker::{Worker, WorkerChannels};
use super::worker_context::WorkerContext;
use crate::admin::Component;
use crate::broker::{Fetcher, LogEnds};
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// Bound of the channel of group events. While it is full, the group keeps its events pending and claims no further
/// partition.
const GROUP_EVENTS: usize = 64;
/// Bound of the channel of commands to the fetch loop. While it is full the dispatcher blocks, until the fetch loop's
/// next turn.
const FETCH_COMMANDS: usize = 64;
/// Pause before the next attempt to start a module that cannot start yet (no ZooKeeper, no broker).
const NOT_YET_PAUSE: Duration = Duration::from_secs(1);
/// Pause before the first restart of a module. It doubles with each failure that follows within [`RECOVERED_AFTER`].
const FIRST_RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A module that has run for this long counts as recovered: its next failure counts as the first.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);
/// Extra time after the grace for threads that still block in a library; then they are abandoned.
const GRACE_MARGIN: Duration = Duration::from_millis(500);

/// Interval at which the stop of a module by a reload checks whether the daemon stops.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Prefix of the name of a group thread.
const GROUP_THREAD: &str = "group@";

/// The connections of a module to Kafka and ZooKeeper.
pub(super) struct Connectors {
    /// The membership in the module's consumer group.
    pub(super) group: Box<dyn Group>,
    /// The Kafka client that reads the topic.
    pub(super) fetcher: Box<dyn Fetcher>,
    /// The Kafka client that looks up the oldest and newest offsets of partitions.
    pub(super) log_ends: Box<dyn LogEnds>,
}

/// A module: its configuration, metrics, health components and time limits.
pub(super) struct Module {
    /// Name of the module.
    pub(super) name: Arc<str>,
    /// Its configuration, which a reload may change.
    pub(super) live: LiveModule,
    /// Metrics of the module.
    pub(super) metrics: ModuleMetrics,
    /// Dead letters of the module; `None` without `dead_letter_topic`.
    pub(super) dead_letters: Option<ModuleLetters>,
    /// Reports to `/readyz` whether the module runs.
    pub(super) health: Component,
    /// Reports to `/readyz` whether the topic can be read from the brokers.
    pub(super) broker_health: Component,
    /// Time limit of the module's stop.
    pub(super) grace: Duration,
    /// Longest pause before the module is started again after a failure.
    pub(super) max_pause: Duration,
    /// The work that the stop of the module could not do.
    pub(super) report: StopReport,
    /// The state that its dispatcher shares with operators.
    pub(super) operator: OperatorLink,
}

impl Module {
    /// Runs the module until the stop, and starts it again whenever one of its threads fails. Fails if the group thread
    /// failed and left claims behind, which only the end of the daemon releases. `connect` makes the connections, or
    /// returns the reason why they cannot be made yet; it starts their threads under the supervisor that is passed to
    /// it.
    pub(super) fn run(
        &self,
        stop: &Stop,
        connect: impl Fn(&ModuleConfig, &Supervisor) -> Result<Connectors, String>,
    ) -> Result<(), String> {
        let name = &self.name;
        let mut failure_pause = FIRST_RESTART_PAUSE.min(self.max_pause);
        let mut last_reason = String::new();
        while !stop.is_triggered() {
            let began = Instant::now();
            let threads = Supervisor::new(format!("module {name}"), stop.child());
            let pause = match connect(&self.live.config(), &threads) {
                Err(reason) => {
                    threads.stop().trigger();
                    threads.join(self.grace);
                    // Logged once for each reason, since the start is retried every second.
                    if reason != last_reason {
                        warn!("module [{name}] cannot start yet, retrying: {reason}");
                    }
                    self.health.set(Err(reason.clone()));
                    last_reason = reason;
                    NOT_YET_PAUSE.min(self.max_pause)
                }
                Ok(connectors) => {
                    last_reason.clear();
                    let keeps_claims = connectors.group.keeps_claims_of_failed_loop();
                    self.live.start(|config| self.start(config, connectors, &threads));
                    self.health.set(Ok(()));
                    info!("module [{name}] start");
                    let ended = self.join(&threads);
                    self.live.end();
                    let group_failed =
                        matches!(&ended, Ended::Failed(failure) if failure.thread.starts_with(GROUP_THREAD));
                    let is_incomplete = matches!(&ended, Ended::StillRunning(_));
                    let reason = match ended {
                        Ended::Stopped => "stopped on request".to_owned(),
                        Ended::Failed(failure) => failure.to_string(),
                        Ended::StillRunning(threads) => {
                            format!("threads still running at the end of shutdown_grace_ms: {}", threads.join(", "))
                        }
                    };
                    if group_failed && keeps_claims && (!stop.is_triggered() || self.report.has_no_limit()) {
                        // The module's partitions stay claimed until the session with ZooKeeper ends, which other
                        // modules share. So only the end of the daemon releases them to the other instances.
                        error!("module [{name}] failed in its group thread, so the daemon ends: {reason}");
                        return Err(format!("failed in its group thread: {reason}"));
                    }
                    if stop.is_triggered() {
                        if is_incomplete {
                            self.report.add(format!("module {name}: {reason}"));
                        }
                        info!("module [{name}] end: {reason}");
                        return Ok(());
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
        Ok(())
    }

    /// Waits until the threads have ended, within the grace. If a reload stops the module, it waits longer: until then
    /// the threads own the partitions, and the module may be started again.
    fn join(&self, threads: &Supervisor) -> Ended {
        threads.stop().wait();
        let (began, mut is_late) = (Instant::now(), false);
        while self.report.has_no_limit() {
            match threads.join(STOP_CHECK_INTERVAL) {
                Ended::StillRunning(running) if !is_late && self.grace + GRACE_MARGIN < began.elapsed() => {
                    is_late = true;
                    let reason = format!("a reload stops it, and these threads still run: {}", running.join(", "));
                    error!("module [{}] {reason}", self.name);
                    self.health.set(Err(reason));
                }
                Ended::StillRunning(_) => {}
                ended => return ended,
            }
        }
        threads.join(self.grace + GRACE_MARGIN)
    }

    /// Creates all channels of the module and starts all its threads.
    fn start(&self, config: &ModuleConfig, connectors: Connectors, threads: &Supervisor) -> ChangeableThreads {
        let name = &config.name;
        let stop = threads.stop();
        let context = Arc::new(WorkerContext::new(config.clone(), self.metrics.clone(), self.dead_letters.clone()));
        let profile = Arc::clone(&context.settings().profile);
        let mut resolving = Resolving::new(Arc::clone(name), threads.clone());
        resolving.start_if_needed(profile.resolver());

        // The channels to and from the workers are unbounded, but what they hold is limited: each job has an open slot
        // in the window of its partition, which has at most max_commit_gap of them, and its share of the memory budget.
        // A job has at most two reports. So no send blocks. (A bounded channel would allocate all its slots at once.)
        let (report_sender, reports) = unbounded();
        let (inboxes, receivers): (Vec<_>, Vec<_>) = (0..config.worker_num.get()).map(|_| unbounded()).unzip();
        let workers: Arc<[_]> = inboxes.into();
        let all_workers = Arc::clone(&workers);
        for (number, inbox) in receivers.into_iter().enumerate() {
            let (reports, workers) = (report_sender.clone(), Arc::clone(&workers));
            let channels = WorkerChannels { inbox, reports, workers };
            let pusher = Box::new(context.http_client.pusher(number, Arc::clone(&profile)));
            let worker = Worker::new(number, Arc::clone(&context), channels, pusher);
            threads.spawn(format!("push-{number}@{name}"), move || worker.run());
        }
        drop(report_sender);

        let (fetch_commands, fetch_command_receiver) = bounded(FETCH_COMMANDS);
        // While the workers have enough to do this channel fills up, and then the fetch loop reads no further.
        let (batches, fetched) = bounded(QUEUED_BATCHES.min(config.waiting_queue_size.get()));
        // Tables, not queues: a commit overwrites the earlier commit of the same partition, a request the earlier one.
        let (group_commands, mailbox) = mailbox();
        let start_requests = StartRequests::new();
        let (found, found_starts) = bounded(FOUND_STARTS);
        let start_offsets = StartOffsets {
            log_ends: connectors.log_ends,
            topic: Arc::clone(&config.topic),
            start_from: config.start_from,
            requests: start_requests.clone(),
            found,
            group_commands: group_commands.clone(),
        };
        let start_stop = stop.clone();
        threads.spawn(format!("starts@{name}"), move || start_offsets.run(&start_stop));
        let memory = MemoryBudget::new(config.max_in_flight_bytes.get());
        let fetch_channels = FetchChannels {
            commands: fetch_command_receiver,
            batches,
            start_requests,
            found_starts,
            memory: memory.clone(),
            read_errors: self.operator.read_errors.clone(),
        };
        let (metrics, health) = (self.metrics.clone(), self.broker_health.clone());
        let fetch_loop = FetchLoop::new(connectors.fetcher, config, metrics, health, fetch_channels);
        let fetch_stop = stop.clone();
        threads.spawn(format!("fetch@{name}"), move || fetch_loop.run(&fetch_stop));

        let (event_sender, group_events) = bounded(GROUP_EVENTS);
        let operator = self.operator.clone();
        let channels =
            Channels { group_events, group_commands, fetch_commands, fetched, memory, workers, reports, operator };
        // Half of the grace is for the pushes in flight. The rest is for closing their connections, storing offsets and
        // leaving the group.
        let dispatcher = Dispatcher::new(channels, Arc::clone(&context), stop.clone(), self.grace / 2);
        threads.spawn(format!("dispatch@{name}"), move || dispatcher.run());
        // Started last, so that all threads that act on a claim exist before the first claim. The group thread ends
        // when the dispatcher sends `Leave`.
        let group = connectors.group;
        threads.spawn(format!("{GROUP_THREAD}{name}"), move || group.run(mailbox, event_sender));
        ChangeableThreads { context, workers: all_workers, resolving }
    }
}

#[cfg(test)]
mod tests;
