//! The table of a cluster: every place (a partition of a topic of a module, by source), with its observations.
//!
//! The poller enters readings; [`Places::publish`](publish) computes the verdict of each place and the view from which
//! all answers are made. Known numbers are kept with their age if they cannot be read again; the rules for verdicts
//! decide how old a number may be.
//!
//! - [`place`], [`recent_delays`], [`log`]: what was seen of one place and of one log.
//! - [`members`]: who has which partition, of Kafka groups.
//! - [`counting`]: which of the topics and sources of a module it pushes now.
//! - [`polling`]: the next reads. [`probing`]: the places whose logs are probed for deliverable messages.
//! - [`collect`]: the facts. [`publish`]: the verdicts and the view.

mod collect;
mod counting;
mod log;
mod members;
mod place;
mod polling;
mod probing;
mod publish;
mod recent_delays;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::broker::{PartitionId, TopicPartition};
use crate::rates::Rates;

use super::facts::{Moment, Owner, Source, Stored, Verdict};
use super::log_ends::{LogReader, LogReading};
use super::pauses::Pauses;
use super::readings::{ModuleKey, ModuleReading, PlaceReading};
use super::sparkline::Sparkline;

use log::Log;
use place::Place;
pub(super) use publish::ClusterState;

/// The places of one cluster.
pub(super) struct Places {
    cluster: Arc<str>,
    sources: Vec<Source>,
    /// Modules whose offsets were not written for this time, and that nobody owns, are not shown.
    forget_after: Option<Duration>,
    /// A topic without an owner for this time is left behind if the module owns another one.
    left_behind_after: Duration,
    start: Moment,
    modules: BTreeMap<ModuleKey, Module>,
    /// In boxes, like the places: a half-full table of large entries would take twice the memory.
    logs: HashMap<TopicPartition, Box<Log>>,
    /// The source that counts, of the modules that have two.
    counted: HashMap<(Arc<str>, Arc<str>), Source>,
    view_number: u64,
}

/// After which times a module or a topic does not count any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// See `forget_after_hours`; `None`: never.
    pub forget_after: Option<Duration>,
    /// See `left_behind_after_ms`.
    pub left_behind_after: Duration,
}

/// A module by one source.
#[derive(Default)]
struct Module {
    topics: BTreeMap<Arc<str>, ModuleTopic>,
    /// Number of live members; `None` if unknown.
    members: Option<u32>,
    /// Whether it has any; for a Kafka group whose members were not read.
    has_members: Option<bool>,
    nobody_since: Option<Instant>,
    /// When its members were read last.
    members_read: Option<Instant>,
    /// When it was read last, or would have been read had it not been idle.
    valid_at: Option<Instant>,
    /// When it was read last.
    read: Option<Instant>,
    /// When reading it was tried last.
    tried: Option<Instant>,
    /// Why reading it failed the last time.
    failure: Option<Arc<str>>,
    /// Since when reading it fails.
    failing_since: Option<Instant>,
    /// How often in a row reading it failed, while its source responded.
    failure_count: u32,
    /// What is denied.
    refused: Option<Arc<str>>,
    /// When it was read last who has which partition, of a Kafka group.
    described: Option<Instant>,
    /// When that was tried last.
    describe_tried: Option<Instant>,
    /// Whether that was ever read.
    was_described: bool,
    /// The verdict while no topic is known, and since when.
    without_topics: Option<(Verdict, SystemTime)>,
    /// Some end moved or something was odd since it was read.
    is_active: bool,
    /// The last list of Kafka groups, which was complete, lacks it.
    is_unlisted: bool,
}

/// A topic of a module.
struct ModuleTopic {
    places: BTreeMap<PartitionId, Box<Place>>,
    refused: Option<Arc<str>>,
    first_read: Instant,
    /// Members of the Kafka group have partitions of it, or had until `released`.
    is_assigned: bool,
    /// Since when the group has no members.
    released: Option<Instant>,
    /// When a partition had an owner last.
    owned: Option<Instant>,
    /// When the module began to own it; `None` if that was not seen.
    began: Option<Instant>,
    /// It was read without an owner, or was not there, when the module was read before.
    was_unowned: bool,
    is_left_behind: bool,
    /// What operators have paused, as it was read last.
    pauses: Arc<Pauses>,
    rates: Rates<2>,
    line: Sparkline,
}

impl Places {
    /// Makes an empty table.
    pub(super) fn new(cluster: Arc<str>, sources: Vec<Source>, times: Times) -> Self {
        let Times { forget_after, left_behind_after } = times;
        Places {
            cluster,
            sources,
            forget_after,
            left_behind_after,
            start: Moment::now(),
            modules: BTreeMap::new(),
            logs: HashMap::new(),
            counted: HashMap::new(),
            view_number: 0,
        }
    }

    /// Time since the start of the poller.
    pub(super) fn elapsed(&self, now: Moment) -> Duration {
        now.at.saturating_duration_since(self.start.at)
    }

    /// Forgets the modules of a source that are not in `names`. A Kafka group that moves to another coordinator may be
    /// in no list for a moment: the next reading of its offsets decides.
    pub(super) fn keep_only(&mut self, source: Source, names: &BTreeSet<Arc<str>>) {
        if source == Source::Zookeeper {
            return self.modules.retain(|key, _| key.source != source || names.contains(&key.name));
        }
        for (key, module) in self.modules.iter_mut().filter(|(key, _)| key.source == source) {
            module.is_unlisted = !names.contains(&key.name);
            module.is_active |= module.is_unlisted;
        }
    }

    /// Enters what was read of a module; `None` if it has neither offsets nor owners.
    pub(super) fn record_module(&mut self, key: &ModuleKey, reading: Option<ModuleReading>, now: Moment) {
        let Some(mut reading) = reading else {
            self.modules.remove(key);
            return;
        };
        let module = self.modules.entry(key.clone()).or_default();
        if module.is_unlisted && reading.topics.is_empty() && reading.refused.is_none() {
            self.modules.remove(key);
            return;
        }
        let is_first = module.read.is_none();
        if key.source == Source::Zookeeper {
            // The members of a Kafka group are not part of the reading of its offsets.
            module.set_members(reading.members, now.at);
        }
        (module.read, module.tried, module.valid_at) = (Some(now.at), Some(now.at), Some(now.at));
        (module.failure, module.failing_since, module.failure_count) = (None, None, 0);
        module.is_active = false;
        module.refused = reading.refused;
        if module.refused.is_some() {
            // Which topics there are is not known now; what was known stays.
            return;
        }
        // A consumer of a topic that never committed is part of no reading, but of the description of its group.
        let is_shown = |topic: &ModuleTopic| topic.is_shown_uncommitted(self.left_behind_after, now.at);
        for (name, _) in module.topics.iter().filter(|(_, topic)| is_shown(topic)) {
            reading.topics.entry(Arc::clone(name)).or_default();
        }
        module.topics.retain(|name, _| reading.topics.contains_key(name));
        for (name, found) in reading.topics {
            let topic = module
                .topics
                .entry(Arc::clone(&name))
                .or_insert_with(|| ModuleTopic { was_unowned: !is_first, ..ModuleTopic::new(now.at) });
            topic.refused = found.refused;
            if topic.refused.is_some() {
                continue;
            }
            let other = PlaceReading::nothing(found.other_owner.unwrap_or(Owner::Unknown));
            let at = |partition| TopicPartition { topic: Arc::clone(&name), partition };
            for (partition, place) in &mut topic.places {
                if !found.places.contains_key(partition) {
                    place.record(&other, self.logs.get(&at(*partition)).map(Box::as_ref), false, now);
                }
            }
            for (partition, reading) in &found.places {
                let is_new = is_first || !topic.places.contains_key(partition);
                let place = topic.places.entry(*partition).or_insert_with(|| Box::new(Place::new(now)));
                place.record(reading, self.logs.get(&at(*partition)).map(Box::as_ref), is_new, now);
            }
            topic.note_owner(self.left_behind_after, now.at);
            if let Some(pauses) = found.pauses {
                topic.pauses = Arc::new(pauses);
            }
            topic.note_pauses(now.at);
        }
    }

    /// Notes that a module could not be read.
    pub(super) fn record_failure(&mut self, key: &ModuleKey, cause: &Arc<str>, now: Instant) {
        let module = self.modules.entry(key.clone()).or_default();
        module.fail(cause, now);
        module.failure_count = module.failure_count.saturating_add(1);
    }

    /// Notes that no module of a source could be read.
    pub(super) fn record_source_failure(&mut self, source: Source, cause: &Arc<str>, now: Instant) {
        for (_, module) in self.modules.iter_mut().filter(|(key, _)| key.source == source) {
            module.fail(cause, now);
        }
    }

    /// Adds the partitions of which a module has no stored offset, of the topics of which it has some, and drops those
    /// that neither the module nor the topic has.
    pub(super) fn complete(&mut self, key: &ModuleKey, reader: &LogReader, now: Moment) {
        let Some(module) = self.modules.get_mut(key) else { return };
        for (name, topic) in module.topics.iter_mut().filter(|(_, topic)| !topic.places.is_empty()) {
            let partitions: BTreeSet<PartitionId> = reader.partitions(name).collect();
            if partitions.is_empty() {
                continue;
            }
            topic.places.retain(|partition, place| {
                partitions.contains(partition) || place.stored != Stored::Nothing || place.owner_name().is_some()
            });
            let owner = topic.places.values().map(|place| place.owner()).find(|owner| !is_named(owner));
            for partition in partitions {
                let owner = owner.clone().unwrap_or(Owner::Unknown);
                topic.places.entry(partition).or_insert_with(|| Box::new(Place::without_offset(owner, now)));
            }
        }
    }

    /// Returns the topics of all modules.
    pub(super) fn topics(&self) -> BTreeSet<Arc<str>> {
        self.modules.values().flat_map(|module| module.topics.keys()).cloned().collect()
    }

    /// Returns the logs of these modules.
    pub(super) fn logs_of<'a>(&self, keys: impl IntoIterator<Item = &'a ModuleKey>) -> BTreeSet<TopicPartition> {
        let modules = keys.into_iter().filter_map(|key| self.modules.get(key));
        let topics = modules.flat_map(|module| &module.topics);
        let logs = topics.flat_map(|(name, topic)| {
            topic.places.keys().map(|partition| TopicPartition { topic: Arc::clone(name), partition: *partition })
        });
        logs.collect()
    }

    /// Enters what was read of logs.
    pub(super) fn record_logs(
        &mut self,
        readings: impl IntoIterator<Item = (TopicPartition, LogReading)>,
        reader: &mut LogReader,
        now: Moment,
    ) {
        let elapsed = self.elapsed(now);
        for (at, reading) in readings {
            let topic_id = reader.topic_id(&at.topic);
            let topic = Arc::clone(&at.topic);
            if self.logs.entry(at).or_default().record(&reading, topic_id, now.at, elapsed) {
                // It may be another topic of the same name.
                reader.doubt(&topic);
            }
        }
    }

    /// Notes which logs of these modules are those of topics that were created again.
    pub(super) fn note_recreations(&mut self, keys: &[ModuleKey]) {
        for key in keys {
            let Some(module) = self.modules.get_mut(key) else { continue };
            for (name, topic) in &mut module.topics {
                for (partition, place) in &mut topic.places {
                    let at = TopicPartition { topic: Arc::clone(name), partition: *partition };
                    if let Some(log) = self.logs.get(&at) {
                        place.note_recreation(log);
                    }
                }
            }
        }
    }

    /// Compares the stored offsets of these modules with the ends of the logs, which were read after them. A module
    /// whose stored offsets could not be read has only those of before: with the ends of now they make no delay.
    pub(super) fn compare<'a>(&mut self, keys: impl IntoIterator<Item = &'a ModuleKey>, now: Instant) {
        for key in keys {
            let Some(module) = self.modules.get_mut(key) else { continue };
            let (read, has_failed) = (module.read, module.failure.is_some());
            for (name, topic) in &mut module.topics {
                for (partition, place) in &mut topic.places {
                    let at = TopicPartition { topic: Arc::clone(name), partition: *partition };
                    match self.logs.get(&at) {
                        Some(log) if has_failed => place.note_recreation(log),
                        Some(log) => place.compare(log, read, now),
                        None => {}
                    }
                }
            }
        }
    }

    /// Forgets the logs that no place needs any more.
    pub(super) fn sweep(&mut self) {
        let wanted = self.logs_of(self.modules.keys());
        self.logs.retain(|at, _| wanted.contains(at));
    }
}

fn is_named(owner: &Owner) -> bool {
    matches!(owner, Owner::Named(_))
}

impl Module {
    fn fail(&mut self, cause: &Arc<str>, now: Instant) {
        (self.tried, self.failure) = (Some(now), Some(Arc::clone(cause)));
        self.failing_since.get_or_insert(now);
    }
}

impl ModuleTopic {
    fn note_pauses(&mut self, now: Instant) {
        for (partition, place) in self.places.iter_mut().filter(|_| !self.pauses.is_empty()) {
            if self.pauses.of(*partition).is_some() {
                place.note_pause(now);
            }
        }
    }

    fn new(now: Instant) -> Self {
        ModuleTopic {
            places: BTreeMap::new(),
            refused: None,
            first_read: now,
            is_assigned: false,
            released: None,
            owned: None,
            began: None,
            was_unowned: false,
            is_left_behind: false,
            pauses: Arc::default(),
            rates: Rates::default(),
            line: Sparkline::default(),
        }
    }
}

#[cfg(test)]
mod member_tests;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod pause_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod truth_tests;
#[cfg(test)]
mod unknown_tests;
