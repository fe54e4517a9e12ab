//! Polls one cluster: reads stored offsets, then the log end offsets, and publishes a view.
//!
//! The order matters, because both offsets only grow. With the stored offset read first, the computed delay may be
//! larger than the delay was at any moment of the reading, but never smaller.
//!
//! A cycle reads the modules that `plan` chooses, in slices, each followed by its logs ([`reading`]), and publishes at
//! least once per interval, even while it waits for its budget. A module that cannot be read keeps its last numbers
//! until they are too old. Before the next cycle only failed reads are repeated, the oldest first.
//!
//! Each cluster has its own thread, ZooKeeper client and Kafka clients, so an unreachable cluster does not delay the
//! others.

mod dating;
mod memory;
mod reading;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{Histogram, IntCounter};

use crate::admin::Component;
use crate::broker::RequestCounter;
use crate::clock::boot_instant;
use crate::keeper::discovery::BrokerList;
use crate::keeper::{KeeperError, SharedKeeper};
use crate::shutdown::Stop;

use super::facts::{Limits, Moment, Source};
use super::failure_log::FailureLog;
use super::kafka_source::KafkaSource;
use super::log_ends::LogReader;
use super::name_filter::{ModuleFilter, NameFilter};
use super::places::{ClusterState, Places};
use super::probe::Prober;
use super::rate_limit::RateLimit;
use super::readings::ModuleKey;
use super::view::Trouble;
use super::view_store::ViewWriter;

pub(super) use memory::Memory;
use memory::SourceState;

/// Shortest pause between two cycles, even if a cycle took longer than the interval: the sources must not be under
/// constant load.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// First pause before what failed is read again; doubles up to the interval.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Longest time for which numbers are fresh because cycles take long; longer only if the interval is.
const MAX_FRESH: Duration = Duration::from_secs(300);
/// Every wait of a poller that publishes once an interval is shorter.
const HANGS_AFTER: Duration = Duration::from_secs(30);

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
    pub zookeeper_rate: RateLimit,
    /// Bound of the requests to Kafka.
    pub kafka_rate: RateLimit,
    /// Counts the requests to Kafka.
    pub kafka_requests: RequestCounter,
    /// Publishes the views of the cluster.
    pub writer: ViewWriter,
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
        // The first cycle publishes as it goes, too.
        self.memory.published.get_or_insert_with(boot_instant);
        (self.memory.cycle_began, self.memory.no_broker_until) = (Some(began), None);
        (self.memory.waited, self.memory.is_cut) = (Duration::ZERO, false);
        if extent == Extent::Whole || self.memory.brokers.failure.is_some() || self.memory.hosts.is_empty() {
            self.find_hosts();
        }
        let zookeeper = self.list_zookeeper(extent);
        let kafka = self.list_kafka(extent, stop);
        let are_listed = (self.keeper.is_none() || zookeeper.is_some()) && (self.groups.is_none() || kafka.is_some());
        self.read_modules(Source::Zookeeper, zookeeper, extent, stop);
        self.read_modules(Source::Kafka, kafka, extent, stop);
        self.describe_groups(stop);
        if extent == Extent::Whole {
            self.probe(stop);
            self.look_up_timestamps(stop);
        }
        self.places.sweep();
        self.memory.listings.sweep(Instant::now());
        self.memory.names.sweep();
        let outcome = self.trouble().map_or(Ok("complete"), Err);
        self.memory.has_read_all |= are_listed && !stop.is_triggered();
        // What was read in a long cycle stays known until the next one, whatever single modules failed in it.
        if extent == Extent::Whole && are_listed && !self.memory.is_cut && !stop.is_triggered() {
            self.memory.last_cycle = Some(began.elapsed().saturating_sub(self.memory.waited));
        }
        self.memory.cycle_began = None;
        self.publish();
        self.component.set(self.readiness());
        outcome
    }

    fn find_hosts(&mut self) {
        match (self.find_brokers)() {
            Ok(list) => {
                self.zookeeper_rate.count(list.request_count, Instant::now());
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
        let asked = Instant::now();
        let mut source = self.memory.zookeeper_source(&*keeper);
        let names = source.group_names();
        self.zookeeper_rate.count(source.request_count, Instant::now());
        match names {
            Ok(names) => {
                let names: BTreeSet<Arc<str>> =
                    names.into_iter().filter(|name| self.filter.has(name)).map(Arc::from).collect();
                self.places.keep_only(Source::Zookeeper, &names);
                self.memory.zookeeper.succeeded();
                Some(names)
            }
            Err(cause) => {
                self.memory.waited += asked.elapsed();
                self.memory.is_cut = true;
                self.source_failed(Source::Zookeeper, format!("stored offsets cannot be read: {cause}"));
                None
            }
        }
    }

    /// Returns the modules in Kafka; `None` if they cannot be listed.
    fn list_kafka(&mut self, extent: Extent, stop: &Stop) -> Option<BTreeSet<Arc<str>>> {
        if self.groups.is_none() || (extent == Extent::Failed && self.memory.kafka.failure.is_none()) {
            return None;
        }
        self.pause(self.kafka_rate.wait(Instant::now()), stop);
        let (source, globs) = self.groups.as_mut()?;
        let (filter, asked) = (&self.filter, Instant::now());
        let found = source.groups(&self.memory.hosts, |name| globs.matches(name) && filter.has(name));
        self.count_kafka();
        match found {
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
                self.memory.waited += asked.elapsed();
                self.memory.is_cut = true;
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

    /// Publishes in the middle of a long cycle.
    fn publish_if_late(&mut self) {
        if self.until_publication().is_zero() {
            self.publish();
        }
    }

    fn until_publication(&self) -> Duration {
        let age = self.memory.published.map(|then| boot_instant().saturating_duration_since(then));
        age.map_or(Duration::ZERO, |age| self.interval.saturating_sub(age))
    }

    /// Waits until the next requests are within the budget, and publishes meanwhile.
    fn pause(&mut self, wait: Duration, stop: &Stop) {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !stop.sleep(left.min(self.until_publication().max(MIN_PAUSE))) {
                return;
            }
            self.publish_if_late();
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
            fresh_for: self.three_cycles(),
            valid_for: HANGS_AFTER + self.interval + self.fresh(),
            is_partial: !self.memory.has_read_all,
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
        sources.into_iter().find(|state| state.is_silent(self.fresh())).map(SourceState::cause)
    }

    /// How long a number is fresh.
    fn fresh(&self) -> Duration {
        self.fresh_for.max(self.three_cycles())
    }

    /// The time of three cycles, for which a number is fresh even if they take long or come rarely; at least until it
    /// is read again after a reading that failed. Time that was waited for nothing does not count.
    fn three_cycles(&self) -> Duration {
        let Memory { last_cycle, cycle_began, waited, is_cut, .. } = self.memory;
        let present = cycle_began.map(|began| began.elapsed().saturating_sub(waited));
        let present = present.filter(|_| !is_cut);
        let cycle = last_cycle.max(present).unwrap_or_default();
        (cycle.max(self.interval) * 3).min(MAX_FRESH).max(self.interval * 2)
    }
}

#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod tests;
