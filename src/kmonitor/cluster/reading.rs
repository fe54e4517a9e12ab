//! The reads of one cycle: modules in slices, the ends of their logs, members of groups, and probes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::TopicPartition;
use crate::clock::boot_instant;
use crate::keeper::SharedKeeper;
use crate::kmonitor::facts::{Moment, Source};
use crate::kmonitor::log_ends::LogReading;
use crate::kmonitor::names::shortened;
use crate::kmonitor::plan::{ALONE_AFTER, plan, slices};
use crate::kmonitor::probe::MAX_PROBES;
use crate::kmonitor::readings::{ModuleKey, ModuleReading};
use crate::kmonitor::zookeeper_source::{Reading, WantedModule};
use crate::shutdown::Stop;

use super::{Extent, Poller};

/// Largest number of nodes that are read together, and in a slice, unless one module has more.
const MAX_NODES: u64 = 10_000;
/// Number of nodes that are read together even if the budget for a second is less.
const MIN_NODES: u64 = 50;
/// Largest number of Kafka groups of a slice: a coordinator that does not respond delays each slice.
const MAX_GROUPS: u64 = 500;
/// Largest number of logs whose ends are read together.
const MAX_LOGS: usize = 20_000;
/// Largest number of Kafka groups whose members are read in a cycle.
const MAX_DESCRIBED: usize = 500;
/// After no broker responded, none is asked for this time in the same cycle.
const NO_BROKER_PAUSE: Duration = Duration::from_secs(30);
/// Time between two attempts to read a module in ZooKeeper that always fails.
const FAILING_PAUSE: Duration = Duration::from_secs(30);
/// Longest wait for another connection to ZooKeeper after one was lost.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two looks whether there is a connection.
const RECONNECT_STEP: Duration = Duration::from_millis(20);

type ReadModule = Result<Option<ModuleReading>, String>;

/// Which logs are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogsOf {
    /// Those of a slice, whose stored offsets were read just before.
    Slice,
    /// Those of other modules, or of a slice whose stored offsets cannot be read. With stored offsets that were read
    /// long ago their ends make no delay.
    Any,
}

impl Poller {
    /// Reads the modules of a source that the plan chooses, each slice with its logs right after it.
    pub(super) fn read_modules(
        &mut self,
        source: Source,
        names: Option<BTreeSet<Arc<str>>>,
        extent: Extent,
        stop: &Stop,
    ) {
        // If the list has failed nothing is asked of the source, but the ends of the logs are read.
        let mut is_readable = names.is_some();
        let mut candidates = self.places.candidates(source, names.unwrap_or_default(), boot_instant());
        if extent == Extent::Failed {
            candidates.retain(|candidate| self.places.has_failed(&candidate.key));
        }
        if source == Source::Zookeeper {
            // Alone it has failed, and each attempt may cost the connection.
            candidates.retain(|candidate| {
                candidate.failures < ALONE_AFTER || candidate.age.is_none_or(|age| FAILING_PAUSE <= age)
            });
        }
        let per_second = self.per_second(source);
        let budget = per_second.saturating_mul(self.interval.as_secs().max(1));
        let cost: u64 = candidates.iter().map(|candidate| candidate.cost).sum();
        if budget < cost && extent == Extent::Whole {
            // The ends show which modules are at rest.
            let all: Vec<ModuleKey> = candidates.iter().map(|candidate| candidate.key.clone()).collect();
            self.read_logs(&all, LogsOf::Any, stop);
            self.places.mark_active(&mut candidates);
        }
        let count = candidates.len();
        let chosen = plan(candidates, budget, self.interval);
        let (max, narrows) = match source {
            Source::Zookeeper => (per_second.clamp(MIN_NODES, MAX_NODES), true),
            Source::Kafka => (MAX_GROUPS, false),
        };
        for slice in slices(&chosen, max, narrows) {
            // Not between the stored offsets and the ends of their logs.
            self.pause(self.kafka_rate.wait(Instant::now()), stop);
            if is_readable {
                is_readable = self.read_slice(source, &slice, stop);
                self.memory.is_cut |= !is_readable;
            }
            if stop.is_triggered() {
                return;
            }
            // Without new stored offsets there is no new delay: the latest one stays until it is too old.
            let of = if is_readable { LogsOf::Slice } else { LogsOf::Any };
            self.read_logs(&slice, of, stop);
            self.publish_if_late();
        }
        if chosen.len() < count && is_readable {
            self.places.confirm_idle(source, boot_instant());
        }
    }

    /// What may be read of a source in a second: nodes, or groups.
    fn per_second(&self, source: Source) -> u64 {
        match source {
            Source::Zookeeper => {
                let nodes = self.keeper.as_ref().map_or(1, |keeper| keeper.nodes_per_read());
                self.zookeeper_rate.per_second().saturating_mul(nodes)
            }
            Source::Kafka => self.kafka_rate.per_second(),
        }
    }

    /// Reads the stored offsets of modules. Returns whether the source responds, so that others can be read.
    fn read_slice(&mut self, source: Source, slice: &[ModuleKey], stop: &Stop) -> bool {
        if source == Source::Zookeeper {
            self.pause(self.zookeeper_rate.wait(Instant::now()), stop);
        }
        // A slice may take a while: no offset is newer than its beginning.
        let (began, asked) = (Moment::now(), Instant::now());
        let readings = match source {
            Source::Zookeeper => self.read_from_zookeeper(slice, stop),
            Source::Kafka => self.read_from_kafka(slice),
        };
        if stop.is_triggered() {
            return false;
        }
        let (mut has_failed, mut has_succeeded) = (false, false);
        for (key, reading) in slice.iter().zip(readings) {
            let state = match source {
                Source::Zookeeper => &mut self.memory.zookeeper,
                Source::Kafka => &mut self.memory.kafka,
            };
            match reading {
                Ok(reading) => {
                    has_succeeded = true;
                    state.read = Some(began.at);
                    self.places.record_module(key, reading, began);
                }
                Err(cause) => {
                    has_failed = true;
                    let cause = shortened(cause);
                    self.places.record_failure(key, &cause.as_str().into(), boot_instant());
                    state
                        .failure
                        .get_or_insert_with(|| format!("stored offsets of {} cannot be read: {cause}", key.name));
                }
            }
        }
        if !has_succeeded {
            self.memory.waited += asked.elapsed();
        }
        let Some(keeper) = self.keeper.as_ref().filter(|_| has_failed && source == Source::Zookeeper) else {
            return true;
        };
        let asked = Instant::now();
        let is_connected = is_connected(keeper, stop);
        self.memory.waited += asked.elapsed();
        is_connected
    }

    fn read_from_zookeeper(&mut self, slice: &[ModuleKey], stop: &Stop) -> Vec<ReadModule> {
        let Some(keeper) = self.keeper.clone() else { return Vec::new() };
        let wanted = |key: &ModuleKey| WantedModule {
            name: Arc::clone(&key.name),
            with_topic_ids: self.places.needs_topic_ids(key),
            with_pauses: self.places.needs_pauses(key),
        };
        let mut reading = Reading::new(slice.iter().map(wanted).collect());
        while !reading.is_done() && !stop.is_triggered() {
            self.pause(self.zookeeper_rate.wait(Instant::now()), stop);
            let max = self.per_second(Source::Zookeeper).clamp(MIN_NODES, MAX_NODES);
            let mut reader = self.memory.zookeeper_source(&*keeper);
            reader.step(&mut reading, max);
            self.zookeeper_rate.count(reader.request_count, Instant::now());
        }
        reading.finish().into_iter().map(|reading| reading.map_err(|cause| cause.to_string())).collect()
    }

    fn read_from_kafka(&mut self, slice: &[ModuleKey]) -> Vec<ReadModule> {
        let Some((reader, _)) = &mut self.groups else { return Vec::new() };
        let names: Vec<Arc<str>> = slice.iter().map(|key| Arc::clone(&key.name)).collect();
        let found = reader.modules(&names, &mut self.memory.names);
        self.count_kafka();
        found
    }

    /// Reads the ends of the logs of these modules. Of a slice, the stored offsets are compared with them.
    fn read_logs(&mut self, keys: &[ModuleKey], of: LogsOf, stop: &Stop) {
        // A wait for brokers of which none responds is long, and each slice would wait again.
        if self.memory.no_broker_until.is_some_and(|until| Instant::now() < until) {
            return self.places.record_no_broker(keys);
        }
        let topics = self.places.topics();
        let asked = Instant::now();
        match self.log_reader.look_up(&self.memory.hosts, &topics, asked) {
            Ok(()) => self.memory.brokers.succeeded(),
            Err(cause) => {
                self.memory.waited += asked.elapsed();
                self.memory.is_cut = true;
                self.memory.brokers.failed(format!("log end offsets cannot be read: {cause}"));
                self.memory.no_broker_until = Some(Instant::now() + NO_BROKER_PAUSE);
                return self.places.record_no_broker(keys);
            }
        }
        let now = Moment::now();
        keys.iter().for_each(|key| self.places.complete(key, &self.log_reader, now));
        let logs: Vec<TopicPartition> = self.places.logs_of(keys).into_iter().collect();
        for (number, part) in logs.chunks(MAX_LOGS).enumerate() {
            if of == LogsOf::Any || 0 < number {
                self.pause(self.kafka_rate.wait(Instant::now()), stop);
            }
            if stop.is_triggered() {
                return;
            }
            let asked = Instant::now();
            let readings = self.log_reader.ranges(part, asked);
            self.count_kafka();
            if readings.iter().all(|reading| matches!(reading, LogReading::Unknown(_))) {
                self.memory.waited += asked.elapsed();
            }
            self.places.record_logs(part.iter().cloned().zip(readings), &mut self.log_reader, Moment::now());
            // Before the next pause, which may publish.
            match of {
                LogsOf::Slice => self.places.compare(keys, boot_instant()),
                LogsOf::Any => self.places.note_recreations(keys),
            }
        }
    }

    /// Reads the members of Kafka groups and what is assigned to them.
    pub(super) fn describe_groups(&mut self, stop: &Stop) {
        if self.groups.is_none() {
            return;
        }
        let keys = self.places.take_undescribed(MAX_DESCRIBED, boot_instant());
        if keys.is_empty() {
            return;
        }
        self.pause(self.kafka_rate.wait(Instant::now()), stop);
        let Some((source, _)) = &mut self.groups else { return };
        let names: Vec<Arc<str>> = keys.iter().map(|key| Arc::clone(&key.name)).collect();
        let found = source.describe(&names);
        self.count_kafka();
        let mut with_new = Vec::new();
        for (key, group) in keys.into_iter().zip(found) {
            if group.is_some_and(|group| self.places.record_description(&key, &group, Moment::now())) {
                with_new.push(key);
            }
        }
        if !with_new.is_empty() {
            // Before the next view, in which they would be unknown.
            self.read_logs(&with_new, LogsOf::Any, stop);
        }
    }

    /// Looks whether anything can be delivered where nothing moves.
    pub(super) fn probe(&mut self, stop: &Stop) {
        if self.prober.is_none() {
            return;
        }
        let probes = self.places.take_unprobed(MAX_PROBES, Moment::now());
        if probes.is_empty() {
            return;
        }
        self.pause(self.kafka_rate.wait(Instant::now()), stop);
        let Some(prober) = &mut self.prober else { return };
        let asked = Instant::now();
        let findings = prober.round(&self.memory.hosts, &probes);
        if findings.is_empty() {
            self.memory.waited += asked.elapsed();
        }
        self.places.record_probes(&findings);
        self.count_kafka();
    }

    /// Counts the requests to Kafka since the last call. An engine that does not count them sent about as many as the
    /// readers estimate.
    pub(super) fn count_kafka(&mut self) {
        let groups = self.groups.as_ref().map_or(0, |(source, _)| source.request_count);
        let (sent, estimated) = (self.kafka_requests.sent(), self.log_reader.request_count + groups);
        let (sent_before, estimated_before) = std::mem::replace(&mut self.memory.counted, (sent, estimated));
        self.kafka_rate.count((sent - sent_before).max(estimated - estimated_before), Instant::now());
    }
}

/// Whether there is a connection to ZooKeeper, or soon another one after it was lost.
fn is_connected(keeper: &SharedKeeper, stop: &Stop) -> bool {
    let deadline = Instant::now() + RECONNECT_TIMEOUT;
    while keeper.reachable().is_err() {
        if deadline <= Instant::now() || !stop.sleep(RECONNECT_STEP) {
            return false;
        }
    }
    true
}
