//! Polls one cluster: reads stored offsets, then the ends of the logs, and publishes what is known.
//!
//! The order matters, because both offsets only grow. With the stored offset read first, the computed delay may be
//! larger than the delay was at any moment of the reading, but never smaller.
//!
//! A cycle reads the modules that `plan` chooses, in slices, each with its logs right after it. What cannot be read keeps
//! its last numbers until they are too old. Only what failed is read again before the next cycle, beginning with what was
//! read longest ago.
//!
//! Each cluster has a thread, a ZooKeeper client and Kafka clients of its own, so an unreachable cluster does not delay
//! the others.

mod dating;
mod memory;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{Histogram, IntCounter};

use crate::admin::Component;
use crate::broker::TopicPartition;
use crate::clock::boot_instant;
use crate::keeper::discovery::BrokerList;
use crate::keeper::{KeeperError, SharedKeeper};
use crate::shutdown::Stop;

use super::board::BoardWriter;
use super::facts::{Limits, Moment, Source};
use super::failure_log::FailureLog;
use super::kafka_source::KafkaSource;
use super::log_ends::LogReader;
use super::name_filter::{ModuleFilter, NameFilter};
use super::pace::Pace;
use super::places::{ClusterState, Places};
use super::plan::{plan, slices};
use super::probe::{MAX_PROBES, Prober};
use super::readings::{ModuleKey, ModuleReading};
use super::view::Trouble;
use super::zookeeper_source::WantedModule;

pub(super) use memory::Memory;
use memory::SourceState;

/// Shortest pause between two cycles, even if a cycle took longer than the interval: the sources must not be under
/// constant load.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// First pause before what failed is read again; doubles up to the interval.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Largest number of requests for the modules of a slice, and of logs of a slice.
const SLICE: u64 = 2_000;
/// Largest number of Kafka groups whose members are read in a cycle.
const MAX_DESCRIBED: usize = 50;

/// Returns brokers of the cluster, as `host:port`.
pub(super) type FindBrokers = Box<dyn FnMut() -> Result<BrokerList, KeeperError> + Send>;

/// Polls one cluster in a loop and publishes its views.
pub(super) struct Poller {
    /// Name of the cluster, for log lines.
    pub name: String,
    /// The ZooKeeper of the cluster; `None` if stored offsets are in Kafka alone.
    pub keeper: Option<SharedKeeper>,
    /// The consumer groups in Kafka; `None` if stored offsets are in ZooKeeper alone.
    pub groups: Option<(KafkaSource, NameFilter)>,
    /// Finds out whether anything can be delivered; `None` if it is switched off or the engine cannot.
    pub prober: Option<Prober>,
    /// Which modules are monitored.
    pub filter: ModuleFilter,
    /// Finds the brokers; called at each cycle, because their addresses may change.
    pub find_brokers: FindBrokers,
    /// Reads topics and the ends of logs from the brokers found.
    pub log_reader: LogReader,
    /// Time from the start of one cycle to the start of the next.
    pub interval: Duration,
    /// The limits of a module, by its name.
    pub limits: Box<dyn Fn(&str) -> Limits + Send>,
    /// A source that was not read for this time is unknown.
    pub fresh_for: Duration,
    /// What is known.
    pub places: Places,
    /// Bound of the requests to ZooKeeper.
    pub zookeeper_pace: Pace,
    /// Bound of the requests to Kafka.
    pub kafka_pace: Pace,
    /// Publishes the views of the cluster.
    pub writer: BoardWriter,
    /// The state of the cluster in `/readyz`.
    pub component: Component,
    /// Counts and times the cycles.
    pub metrics: PollMetrics,
    /// What one cycle leaves to the next.
    pub memory: Memory,
}

/// The metrics of one cluster's cycles.
pub(super) struct PollMetrics {
    /// Cycles without a failure.
    pub complete: IntCounter,
    /// Cycles in which something could not be read.
    pub incomplete: IntCounter,
    /// Duration of each cycle.
    pub seconds: Histogram,
}

/// Which modules a cycle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All that the plan chooses.
    Whole,
    /// Those that failed.
    Failed,
}

impl Poller {
    /// Polls until the stop is triggered.
    pub(super) fn run(mut self, stop: &Stop) {
        let mut failures = FailureLog::default();
        let mut retry_pause = RETRY_PAUSE;
        let mut next_whole = Instant::now();
        loop {
            let began = Instant::now();
            let is_whole = next_whole <= began;
            let outcome = self.poll(if is_whole { Extent::Whole } else { Extent::Failed }, stop);
            // A cycle that the stop interrupted is neither counted nor logged.
            if stop.is_triggered() {
                return;
            }
            if is_whole {
                next_whole = began + self.interval;
                self.metrics.seconds.observe(began.elapsed().as_secs_f64());
                let counter = if outcome.is_ok() { &self.metrics.complete } else { &self.metrics.incomplete };
                counter.inc();
            }
            failures.record(&self.name, outcome.as_deref().map_err(String::as_str).map(drop), Instant::now());
            let now = Instant::now();
            let until_whole = next_whole.saturating_duration_since(now).max(MIN_PAUSE);
            let pause = match outcome {
                Ok(_) => {
                    retry_pause = RETRY_PAUSE;
                    until_whole
                }
                Err(_) if self.memory.has_failed_source() => {
                    let pause = until_whole.min(retry_pause);
                    retry_pause = (retry_pause * 2).min(self.interval);
                    pause.max(MIN_PAUSE)
                }
                Err(_) => until_whole,
            };
            if !stop.sleep(pause) {
                return;
            }
        }
    }

    /// Polls once and publishes what is known then. Returns what could not be read as a whole.
    fn poll(&mut self, extent: Extent, stop: &Stop) -> Result<&'static str, String> {
        let began = Instant::now();
        if extent == Extent::Whole || self.memory.brokers.failure.is_some() || self.memory.hosts.is_empty() {
            self.find_hosts();
        }
        let zookeeper = self.list_zookeeper(extent);
        let kafka = self.list_kafka(extent);
        self.read_modules(Source::Zookeeper, zookeeper, extent, stop);
        self.read_modules(Source::Kafka, kafka, extent, stop);
        self.describe_groups();
        if extent == Extent::Whole {
            self.probe();
            self.look_up_timestamps(stop);
        }
        self.places.sweep();
        self.memory.names.sweep();
        if extent == Extent::Whole {
            self.memory.last_cycle = Some(began.elapsed());
        }
        self.publish();
        let outcome = self.trouble().map_or(Ok("complete"), Err);
        self.component.set(self.readiness());
        outcome
    }

    fn find_hosts(&mut self) {
        match (self.find_brokers)() {
            Ok(list) => {
                list.skipped.into_iter().for_each(|reason| self.memory.logged.warn(reason));
                // Brokers that have all gone may come back with the same addresses.
                if !list.addresses.is_empty() || self.memory.hosts.is_empty() {
                    self.memory.hosts = list.addresses;
                }
            }
            Err(cause) => log::debug!("cluster {}: brokers cannot be listed: {cause}", self.name),
        }
    }

    /// Returns the modules in ZooKeeper; `None` if they cannot be listed.
    fn list_zookeeper(&mut self, extent: Extent) -> Option<BTreeSet<Arc<str>>> {
        let keeper = self.keeper.clone()?;
        if extent == Extent::Failed && self.memory.zookeeper.failure.is_none() {
            return None;
        }
        let mut source = self.memory.zookeeper_source(&*keeper);
        match source.group_names() {
            Ok(names) => {
                let names: BTreeSet<Arc<str>> =
                    names.into_iter().filter(|name| self.filter.has(name)).map(Arc::from).collect();
                self.places.keep_only(Source::Zookeeper, &names);
                self.memory.zookeeper.succeeded();
                Some(names)
            }
            Err(cause) => {
                self.source_failed(Source::Zookeeper, format!("stored offsets cannot be read: {cause}"));
                None
            }
        }
    }

    /// Returns the modules in Kafka; `None` if they cannot be listed.
    fn list_kafka(&mut self, extent: Extent) -> Option<BTreeSet<Arc<str>>> {
        let (source, globs) = self.groups.as_mut()?;
        if extent == Extent::Failed && self.memory.kafka.failure.is_none() {
            return None;
        }
        let filter = &self.filter;
        match source.groups(&self.memory.hosts, |name| globs.matches(name) && filter.has(name)) {
            Ok(found) => {
                let names: BTreeSet<Arc<str>> = found.has_members.keys().cloned().collect();
                match found.failure {
                    // A group that is missing may only have a coordinator that does not respond.
                    Some(failure) => {
                        self.memory.kafka.succeeded();
                        self.memory.kafka.failed(format!("some groups cannot be listed: {failure}"));
                    }
                    None => {
                        self.places.keep_only(Source::Kafka, &names);
                        self.memory.kafka.succeeded();
                    }
                }
                let now = boot_instant();
                for (name, has_members) in found.has_members {
                    self.places.record_members(&ModuleKey { name, source: Source::Kafka }, has_members, now);
                }
                Some(names)
            }
            Err(cause) => {
                self.source_failed(Source::Kafka, format!("groups cannot be listed: {cause}"));
                None
            }
        }
    }

    fn source_failed(&mut self, source: Source, cause: String) {
        self.places.record_source_failure(source, &cause.as_str().into(), boot_instant());
        match source {
            Source::Zookeeper => self.memory.zookeeper.failed(cause),
            Source::Kafka => self.memory.kafka.failed(cause),
        }
    }

    /// Reads the modules of a source that the plan chooses, each slice with its logs right after it.
    fn read_modules(&mut self, source: Source, names: Option<BTreeSet<Arc<str>>>, extent: Extent, stop: &Stop) {
        let listed = names.is_some();
        let mut candidates = self.places.candidates(source, names.unwrap_or_default(), boot_instant());
        if extent == Extent::Failed {
            candidates.retain(|candidate| self.places.has_failed(&candidate.key));
        }
        let pace = if source == Source::Zookeeper { &self.zookeeper_pace } else { &self.kafka_pace };
        let budget = pace.per_second().saturating_mul(self.interval.as_secs().max(1));
        let cost: u64 = candidates.iter().map(|candidate| candidate.cost).sum();
        if budget < cost && extent == Extent::Whole {
            // The ends show which modules are at rest.
            let all: Vec<ModuleKey> = candidates.iter().map(|candidate| candidate.key.clone()).collect();
            self.read_logs(&all, stop);
            self.places.mark_active(&mut candidates);
        }
        let count = candidates.len();
        let chosen = plan(candidates, budget, self.interval);
        for slice in slices(&chosen, SLICE) {
            if stop.is_triggered() {
                return;
            }
            // The list has failed: nothing is asked of the source, but the ends of the logs are read.
            if listed && !self.has_failed(source) {
                self.read_slice(source, &slice, stop);
            }
            self.read_logs(&slice, stop);
            self.publish_if_late();
        }
        if chosen.len() < count && listed && !self.has_failed(source) {
            self.places.confirm_idle(source, boot_instant());
        }
    }

    /// Whether a source does not respond. Of Kafka groups those of other coordinators may still be read.
    fn has_failed(&self, source: Source) -> bool {
        source == Source::Zookeeper && self.memory.zookeeper.failure.is_some()
    }

    /// Reads the stored offsets of modules.
    fn read_slice(&mut self, source: Source, slice: &[ModuleKey], stop: &Stop) {
        let readings: Vec<Result<Option<ModuleReading>, String>> = match (source, &mut self.groups) {
            (Source::Zookeeper, _) => {
                let Some(keeper) = self.keeper.clone() else { return };
                let wanted = |key: &ModuleKey| WantedModule {
                    name: Arc::clone(&key.name),
                    with_topic_ids: self.places.needs_topic_ids(key),
                };
                let wanted: Vec<_> = slice.iter().map(wanted).collect();
                let mut reader = self.memory.zookeeper_source(&*keeper);
                let found = reader.modules(&wanted);
                let wait = self.zookeeper_pace.after(reader.request_count, Instant::now());
                let _ = stop.sleep(wait);
                found.into_iter().map(|reading| reading.map_err(|cause| cause.to_string())).collect()
            }
            (Source::Kafka, Some((reader, _))) => {
                let names: Vec<Arc<str>> = slice.iter().map(|key| Arc::clone(&key.name)).collect();
                let before = reader.request_count;
                let found = reader.modules(&names, &mut self.memory.names);
                let wait = self.kafka_pace.after(reader.request_count - before, Instant::now());
                let _ = stop.sleep(wait);
                found
            }
            (Source::Kafka, None) => return,
        };
        for (key, reading) in slice.iter().zip(readings) {
            match reading {
                Ok(reading) => self.places.record_module(key, reading, Moment::now()),
                Err(cause) => {
                    self.places.record_failure(key, &cause.as_str().into(), boot_instant());
                    let state =
                        if source == Source::Zookeeper { &mut self.memory.zookeeper } else { &mut self.memory.kafka };
                    state.failure.get_or_insert_with(|| format!("stored offsets cannot be read: {cause}"));
                }
            }
        }
    }

    /// Reads the ends of the logs of these modules, and compares the stored offsets with them.
    fn read_logs(&mut self, keys: &[ModuleKey], stop: &Stop) {
        let topics = self.places.topics();
        match self.log_reader.look_up(&self.memory.hosts, &topics, Instant::now()) {
            Ok(()) => self.memory.brokers.succeeded(),
            Err(cause) => {
                self.memory.brokers.failed(format!("log end offsets cannot be read: {cause}"));
                return self.places.record_no_broker(keys);
            }
        }
        let now = Moment::now();
        keys.iter().for_each(|key| self.places.complete(key, &self.log_reader, now));
        let logs: Vec<TopicPartition> = self.places.logs_of(keys).into_iter().collect();
        for slice in logs.chunks(10 * SLICE as usize) {
            if stop.is_triggered() {
                return;
            }
            let before = self.log_reader.request_count;
            let readings = self.log_reader.ranges(slice, Instant::now());
            self.places.record_logs(slice.iter().cloned().zip(readings), &mut self.log_reader, Moment::now());
            let wait = self.kafka_pace.after(self.log_reader.request_count - before, Instant::now());
            let _ = stop.sleep(wait);
        }
        self.places.compare(keys, boot_instant());
    }

    /// Reads the members of the Kafka groups that are not as they should be.
    fn describe_groups(&mut self) {
        let Some((source, _)) = &mut self.groups else { return };
        let keys = self.places.take_undescribed(MAX_DESCRIBED, boot_instant());
        if keys.is_empty() {
            return;
        }
        let names: Vec<Arc<str>> = keys.iter().map(|key| Arc::clone(&key.name)).collect();
        for (key, group) in keys.iter().zip(source.describe(&names)) {
            if let Some(group) = group {
                self.places.record_description(key, &group, boot_instant());
            }
        }
    }

    /// Looks whether anything can be delivered where nothing moves.
    fn probe(&mut self) {
        let Some(prober) = &mut self.prober else { return };
        let probes = self.places.take_unprobed(MAX_PROBES, Moment::now());
        if !probes.is_empty() {
            let findings = prober.round(&self.memory.hosts, &probes);
            self.places.record_probes(&findings);
        }
    }

    /// Publishes in the middle of a long cycle.
    fn publish_if_late(&mut self) {
        if self.memory.published.is_some_and(|then| self.interval <= boot_instant().saturating_duration_since(then)) {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let trouble = self.trouble();
        let now = Moment::now();
        let since = trouble.as_ref().map(|_| self.memory.trouble_since.unwrap_or(now.wall));
        self.memory.trouble_since = since;
        let state = ClusterState {
            is_known: self.silent_source().is_none(),
            trouble: trouble.zip(since).map(|(text, since)| Trouble { text: text.into(), since }),
            cycle: self.memory.last_cycle,
        };
        self.writer.publish(self.places.publish(state, &self.limits, now));
        self.memory.published = Some(now.at);
    }

    /// What cannot be read now.
    fn trouble(&self) -> Option<String> {
        let Memory { zookeeper, kafka, brokers, .. } = &self.memory;
        [zookeeper, kafka, brokers].into_iter().find_map(|state| state.failure.clone())
    }

    /// Why the cluster is not ready: a source, or the brokers, were not read for too long.
    fn readiness(&self) -> Result<(), String> {
        let is_needed = !self.places.topics().is_empty();
        let brokers = Some(&self.memory.brokers).filter(|state| is_needed && !state.is_fresh(self.fresh()));
        self.silent_source().or(brokers.map(SourceState::cause)).map_or(Ok(()), Err)
    }

    /// Why a source of stored offsets was not read for too long; `None` if it was.
    fn silent_source(&self) -> Option<String> {
        let Memory { zookeeper, kafka, .. } = &self.memory;
        let sources = self.keeper.iter().map(|_| zookeeper).chain(self.groups.iter().map(|_| kafka));
        sources.into_iter().find(|state| !state.is_fresh(self.fresh())).map(SourceState::cause)
    }

    fn fresh(&self) -> Duration {
        self.fresh_for.max(self.memory.last_cycle.unwrap_or_default() * 3)
    }
}

#[cfg(test)]
mod tests;
