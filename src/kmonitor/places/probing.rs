//! Selects the places to probe and records the results; selects the logs whose timestamps are looked up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Offset, TopicPartition};
use crate::kmonitor::facts::{Facts, LogState, Moment};
use crate::kmonitor::probe::{Finding, Probe};
use crate::kmonitor::timestamps::Timestamps;

use super::Places;
use super::collect::{first_waiting, log_state};
use super::log::Log;
use super::place::Place;

/// Time between two look-ups of the timestamps of a log, if the first one failed.
const DATING_PAUSE: Duration = Duration::from_secs(300);

impl Places {
    /// Returns the places of which it should be found out whether anything can be delivered: at most `max`, of each log
    /// one. Those that were probed longest ago come first: logs that cannot be read keep no other from it.
    pub(crate) fn take_unprobed(&mut self, max: usize, now: Moment) -> Vec<Probe> {
        let mut wanted: Vec<(&mut Place, Probe)> = Vec::new();
        for (topic, found) in self.modules.values_mut().flat_map(|module| &mut module.topics) {
            for (partition, place) in &mut found.places {
                let at = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                let log = self.logs.get(&at).filter(|log| log.came_in == 0 && log.unknown.is_none());
                let Some((from, newest)) = log.and_then(|log| waiting_range(place, log)) else { continue };
                if place.wants_probe(from, newest, now) {
                    wanted.push((&mut **place, Probe { at, from, newest }));
                }
            }
        }
        wanted.sort_by_key(|(place, _)| place.probe_tried());
        let mut probes: BTreeMap<TopicPartition, Probe> = BTreeMap::new();
        for (place, probe) in wanted {
            if probes.len() < max && !probes.contains_key(&probe.at) {
                place.probe_sent(now.at);
                probes.insert(probe.at.clone(), probe);
            }
        }
        probes.into_values().collect()
    }

    /// Returns logs with messages that wait since before they were read first: at most `max`, of which no timestamps
    /// are known and none were looked up lately.
    pub(crate) fn take_undated(&mut self, max: usize, now: Moment) -> Vec<TopicPartition> {
        let elapsed = self.elapsed(now);
        let is_due = |log: &Log| {
            let rests = |then: Instant| DATING_PAUSE <= now.at.saturating_duration_since(then);
            log.timestamps.is_none() && log.unknown.is_none() && log.timestamps_tried.is_none_or(rests)
        };
        let mut wanted = Vec::new();
        for (topic, found) in self.modules.values().flat_map(|module| &module.topics) {
            for (partition, place) in &found.places {
                let at = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                let Some(log) = self.logs.get_mut(&at).filter(|log| is_due(log)) else { continue };
                let from = waiting_range(place, log).map(|(from, _)| from);
                let seen = from.and_then(|from| log.history.arrival(elapsed, from));
                if wanted.len() < max && seen.is_some_and(|seen| seen.at_most.is_none()) {
                    log.timestamps_tried = Some(now.at);
                    wanted.push(at);
                }
            }
        }
        wanted
    }

    /// Enters the timestamps of logs.
    pub(crate) fn record_timestamps(&mut self, found: Vec<(TopicPartition, Timestamps)>) {
        for (at, timestamps) in found {
            if let Some(log) = self.logs.get_mut(&at) {
                log.timestamps = Some(Box::new(timestamps));
            }
        }
    }

    /// Enters what probes found.
    pub(crate) fn record_probes(&mut self, findings: &[(Probe, Finding)]) {
        let findings: BTreeMap<&TopicPartition, (&Probe, Finding)> =
            findings.iter().map(|(probe, finding)| (&probe.at, (probe, *finding))).collect();
        for (topic, found) in self.modules.values_mut().flat_map(|module| &mut module.topics) {
            for (partition, place) in &mut found.places {
                let at = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                let Some((probe, finding)) = findings.get(&at) else { continue };
                let range = self.logs.get(&at).and_then(|log| waiting_range(place, log));
                if range == Some((probe.from, probe.newest)) {
                    place.record_probe(probe.from, probe.newest, *finding);
                }
            }
        }
    }
}

/// From the first offset that waits to the newest, or to the first of an open transaction; `None` if none waits that
/// can be read, or it is unknown.
fn waiting_range(place: &Place, log: &Log) -> Option<(Offset, Offset)> {
    let facts = Facts {
        stored: place.stored.clone(),
        log: log_state(Some(log)),
        recreated: place.is_recreated,
        ..Facts::unread()
    };
    let LogState::Known { newest, .. } = facts.log else { return None };
    let end = log.stable.unwrap_or(newest);
    Some((first_waiting(&facts)?, end)).filter(|(from, end)| from < end)
}
