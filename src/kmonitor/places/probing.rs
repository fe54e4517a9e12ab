//! Which places are probed, and what the probes found.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{Offset, TopicPartition};
use crate::kmonitor::facts::{Facts, LogState, Moment};
use crate::kmonitor::probe::{Finding, Probe};

use super::Places;
use super::log::Log;
use super::place::Place;
use super::publish::{first_waiting, log_state};

impl Places {
    /// Returns the places of which it should be found out whether anything can be delivered: at most `max`, of each log
    /// one.
    pub(crate) fn take_unprobed(&mut self, max: usize, now: Moment) -> Vec<Probe> {
        let mut probes: BTreeMap<TopicPartition, Probe> = BTreeMap::new();
        for module in self.modules.values_mut() {
            for (topic, found) in &mut module.topics {
                for (partition, place) in &mut found.places {
                    let at = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                    let Some(log) = self.logs.get(&at).filter(|log| log.came_in == 0 && log.unknown.is_none()) else {
                        continue;
                    };
                    let Some((from, newest)) = waiting_range(place, log) else { continue };
                    if max <= probes.len() || probes.contains_key(&at) || !place.wants_probe(from, newest, now) {
                        continue;
                    }
                    place.probe_sent(now.at);
                    probes.insert(at.clone(), Probe { at, from, newest });
                }
            }
        }
        probes.into_values().collect()
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

/// From the first offset that waits to the newest; `None` if none waits or it is unknown.
fn waiting_range(place: &Place, log: &Log) -> Option<(Offset, Offset)> {
    let facts = Facts {
        stored: place.stored.clone(),
        log: log_state(Some(log)),
        recreated: place.is_recreated,
        ..Facts::unread()
    };
    let LogState::Known { newest, .. } = facts.log else { return None };
    Some((first_waiting(&facts)?, newest)).filter(|(from, newest)| from < newest)
}
