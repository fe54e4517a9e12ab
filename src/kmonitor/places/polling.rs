//! The information about the places from which the poller decides its next reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::TopicPartition;
use crate::kmonitor::facts::{Source, UnknownReason};
use crate::kmonitor::log_ends::LogReading;
use crate::kmonitor::plan::Candidate;
use crate::kmonitor::readings::ModuleKey;

use super::log::Log;
use super::{Module, Places};

/// Nodes of a module in ZooKeeper beside those of its topics: which topics have offsets and owners, and the members.
const MODULE_NODES: u64 = 3;
/// Nodes of a module that was never read, as an estimate.
const NEW_MODULE_NODES: u64 = 200;

impl Places {
    /// Returns the modules of a source that could be read: those in `names`, and those in the table.
    pub(crate) fn candidates(
        &self,
        source: Source,
        names: BTreeSet<Arc<str>>,
        now: Instant,
    ) -> Vec<Candidate<ModuleKey>> {
        let known = self.modules.keys().filter(|key| key.source == source).cloned();
        let keys: BTreeSet<_> = names.into_iter().map(|name| ModuleKey { name, source }).chain(known).collect();
        let candidate = |key: ModuleKey| match self.modules.get(&key) {
            None => Candidate { key, cost: new_cost(source), is_active: true, age: None, failures: 0 },
            Some(module) => Candidate {
                cost: module.cost(source),
                is_active: module.is_active || module.failure.is_some(),
                age: module.tried.map(|then| now.saturating_duration_since(then)),
                failures: module.failure_count,
                key,
            },
        };
        keys.into_iter().map(candidate).collect()
    }

    /// Marks the modules as active whose logs have moved with the last reading.
    pub(crate) fn mark_active(&self, candidates: &mut [Candidate<ModuleKey>]) {
        for candidate in candidates.iter_mut().filter(|candidate| !candidate.is_active) {
            let Some(module) = self.modules.get(&candidate.key) else { continue };
            candidate.is_active = module.has_moved_logs(&self.logs);
        }
    }

    /// Notes that the idle modules of a source, which are not read in this cycle, are as they were.
    pub(crate) fn confirm_idle(&mut self, source: Source, now: Instant) {
        let Places { modules, logs, .. } = self;
        let idle = modules.iter_mut().filter(|(key, module)| key.source == source && module.failure.is_none());
        idle.filter(|(_, module)| !module.is_active && module.read.is_some() && !module.has_moved_logs(logs))
            .for_each(|(_, module)| module.valid_at = Some(now));
    }

    /// Whether it has to be read to which topics the stored offsets of a module belong: it was never read, or a topic
    /// was created again.
    pub(crate) fn needs_topic_ids(&self, key: &ModuleKey) -> bool {
        let Some(module) = self.modules.get(key).filter(|module| module.read.is_some()) else { return true };
        module.topics.values().flat_map(|topic| topic.places.values()).any(|place| place.wants_topic_id)
    }

    /// Whether it has to be read what operators have paused: nothing moves somewhere, or something was paused.
    pub(crate) fn needs_pauses(&self, key: &ModuleKey) -> bool {
        let topics = self.modules.get(key).into_iter().flat_map(|module| module.topics.values());
        topics
            .into_iter()
            .any(|topic| !topic.pauses.is_empty() || topic.places.values().any(|place| place.stands_still))
    }

    /// Whether reading a module failed the last time, or was never tried.
    pub(crate) fn has_failed(&self, key: &ModuleKey) -> bool {
        self.modules.get(key).is_none_or(|module| module.failure.is_some() || module.tried.is_none())
    }

    /// Notes that no broker responds.
    pub(crate) fn record_no_broker(&mut self, keys: &[ModuleKey]) {
        for at in self.logs_of(keys) {
            let reading = LogReading::Unknown(UnknownReason::NoBroker);
            let elapsed = Duration::ZERO;
            self.logs.entry(at).or_default().record(&reading, None, self.start.at, elapsed);
        }
    }
}

fn new_cost(source: Source) -> u64 {
    if source == Source::Zookeeper { NEW_MODULE_NODES } else { 1 }
}

impl Module {
    /// Whether the end of a log has moved, or a log is not known, since the stored offsets were read.
    fn has_moved_logs(&self, logs: &HashMap<TopicPartition, Box<Log>>) -> bool {
        let mut places = self.topics.iter().flat_map(|(topic, found)| {
            found
                .places
                .iter()
                .map(|(partition, place)| (TopicPartition { topic: Arc::clone(topic), partition: *partition }, place))
        });
        places.any(|(at, place)| logs.get(&at).is_none_or(|log| place.has_moved(log)))
    }

    fn cost(&self, source: Source) -> u64 {
        if source == Source::Kafka {
            return 1;
        }
        // Two nodes say that lists and owners are as they were.
        let topics = self.topics.values().map(|topic| 2 + topic.places.len() as u64);
        MODULE_NODES + topics.sum::<u64>()
    }
}
