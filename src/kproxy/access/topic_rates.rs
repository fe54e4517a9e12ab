//! `rate_limits`: how much may be written to a topic, whoever writes.
//!
//! The first rule whose globs match a topic is its rule, and each topic has a [`Meter`] of its own. Bounds: at most
//! [`MAX_METERS`] topics have one at a time; one that is full again equals a new one and makes room. If there are more
//! topics in use at the same time than that, the rest share one meter for each rule: names that strangers make up
//! can slow down new names, never take memory or anything from the topics that have theirs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use log::Level;

use super::rate::{Limits, Meter};
use super::topics::TopicGlobs;
use crate::config::{Problems, Section};
use crate::locks::{read, write};
use crate::log_limited;

/// Topics that have a meter of their own at the same time.
const MAX_METERS: usize = 10_000;
/// The full table is searched for meters that are full again at most so often, in nanoseconds.
const SWEEP_INTERVAL: u64 = 100_000_000;
/// A meter that has been full for so many nanoseconds is not in use and makes room for another; one that is only full between
/// two requests is.
const REST: u64 = 60_000_000_000;

/// One entry of `rate_limits`.
#[derive(Clone, Debug)]
pub(in crate::kproxy) struct Rule {
    topics: TopicGlobs,
    limits: Limits,
}

/// Takes `rate_limits`; `None` when it is absent.
pub(in crate::kproxy) fn rules(section: &mut Section, problems: &mut Problems) -> Option<Vec<Rule>> {
    let mut rules = Vec::new();
    for mut entry in section.sections("rate_limits", false, problems)? {
        let topics = TopicGlobs::from_section("topics", true, &mut entry, problems);
        let before = problems.0.len();
        let limits = Limits::from_section(&mut entry, problems);
        if limits.is_none() && problems.0.len() == before {
            entry.note("", "must have requests_per_second, bytes_per_second or both", problems);
        }
        entry.finish(problems);
        if let (Some(topics), Some(limits)) = (topics, limits) {
            rules.push(Rule { topics, limits });
        }
    }
    Some(rules)
}

/// The meters of topics.
pub(super) struct TopicRates {
    /// Each with the meter that topics without one of their own share.
    rules: Vec<(Rule, Arc<Meter>)>,
    meters: RwLock<HashMap<Box<str>, Arc<Meter>>>,
    most: usize,
    swept_at: AtomicU64,
}

impl TopicRates {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let with_shared = |rule: Rule| {
            let shared = Arc::new(Meter::new(rule.limits));
            (rule, shared)
        };
        TopicRates {
            rules: rules.into_iter().map(with_shared).collect(),
            meters: RwLock::default(),
            most: MAX_METERS,
            swept_at: AtomicU64::new(0),
        }
    }

    /// The meter of this topic; `None` if it is not limited.
    pub(super) fn meter(&self, topic: &str, now: u64) -> Option<Arc<Meter>> {
        if let Some(meter) = read(&self.meters).get(topic) {
            return Some(Arc::clone(meter));
        }
        let (rule, shared) = self.rules.iter().find(|(rule, _)| rule.topics.contain(topic))?;
        if !self.has_room(now) {
            log_limited!(Level::Warn, "rate_limits: {} topics are in use at once, {topic} shares a limit", self.most);
            return Some(Arc::clone(shared));
        }
        let mut meters = write(&self.meters);
        let meter = meters.entry(topic.into()).or_insert_with(|| Arc::new(Meter::new(rule.limits)));
        Some(Arc::clone(meter))
    }

    /// Whether there is room for one more, after meters that are as new were thrown away if need be. Readers that come
    /// at once may all be told so: the table grows beyond its bound by one for each of them at most.
    fn has_room(&self, now: u64) -> bool {
        if read(&self.meters).len() < self.most {
            return true;
        }
        let swept_at = self.swept_at.load(Ordering::Relaxed);
        let is_due = now.saturating_sub(swept_at) >= SWEEP_INTERVAL;
        let is_mine =
            is_due && self.swept_at.compare_exchange(swept_at, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !is_mine {
            return false;
        }
        let mut meters = write(&self.meters);
        // One that is in someone's hands may be about to be taken from.
        let rested = now.saturating_sub(REST);
        meters.retain(|_, meter| !meter.is_full(rested) || Arc::strong_count(meter) > 1);
        meters.len() < self.most
    }
}

#[cfg(test)]
mod tests {
    use super::super::rate::Cost;
    use super::super::tests::section;
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const ONE: Cost = Cost { requests: 1, bytes: 0 };

    fn rates(text: &str) -> TopicRates {
        let (mut section, mut problems) = section(text);
        let rules = rules(&mut section, &mut problems).unwrap();
        assert!(problems.0.is_empty(), "{problems}");
        TopicRates::new(rules)
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_each_topic_for_itself() {
        let rates = rates(
            "rate_limits:\n - {topics: [a, 'b*'], requests_per_second: 2}\n - {topics: ['*a*'], requests_per_second: 1}\n",
        );
        for (topic, most) in [("a", 2), ("b1", 2), ("b2", 2), ("ba", 2), ("xa", 1)] {
            let passed = (0..5).filter(|_| rates.meter(topic, SECOND).unwrap().take(ONE, SECOND).is_ok()).count();
            assert_eq!(passed, most, "{topic}");
        }
        assert!(rates.meter("other", SECOND).is_none());
        assert!(rates.meter("a", SECOND + SECOND / 2).unwrap().take(ONE, SECOND + SECOND / 2).is_ok());
    }

    #[test]
    fn names_beyond_the_bound_share_a_meter_until_others_rest() {
        let mut rates = rates("rate_limits:\n - {topics: ['*'], requests_per_second: 1}\n");
        rates.most = 3;
        let mut now = SECOND;
        for topic in ["a", "b", "c", "d"] {
            assert!(rates.meter(topic, now).unwrap().take(ONE, now).is_ok(), "{topic}");
        }
        assert!(rates.meter("e", now).unwrap().take(ONE, now).is_err(), "d took what e shares with it");
        assert!(rates.meter("a", now).unwrap().take(ONE, now).is_err());
        assert_eq!(rates.meters.read().unwrap().len(), 3);

        now += REST;
        assert!(
            rates.meter("e", now).unwrap().take(ONE, now).is_ok(),
            "shared, for the others have not rested for long"
        );
        now += SECOND;
        let held = rates.meter("a", now).unwrap();
        assert!(rates.meter("b", now).unwrap().take(ONE, now).is_ok());
        assert!(rates.meter("e", now).unwrap().take(ONE, now).is_ok());
        let mut names: Vec<_> = rates.meters.read().unwrap().keys().map(ToString::to_string).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "e"], "c was full and in nobody's hands");
        drop(held);
    }

    #[test]
    fn wrong_rules_are_told_all_at_once() {
        let (mut section, mut problems) = section(
            "rate_limits:\n - requests_per_second: 1\n - topics: [a]\n - topics: ['a[']\n   bytes_per_second: 0\n   speed: 7\n",
        );
        rules(&mut section, &mut problems);
        let keys: Vec<_> = problems.0.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "rate_limits[1].topics",
                "rate_limits[2]",
                "rate_limits[3].topics",
                "rate_limits[3].bytes_per_second",
                "rate_limits[3].speed"
            ],
            "{problems}"
        );
    }
}
