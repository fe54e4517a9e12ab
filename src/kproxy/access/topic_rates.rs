//! `rate_limits`: limits per topic, for all clients together.
//!
//! The first rule whose globs match a topic applies, and each topic has a [`RateMeter`] of its own. Bound: at most
//! [`MAX_METERS`] topics have a meter at a time. A meter that has been full for a minute equals a new one, so it may be
//! removed to make room. Topics without a meter of their own share one meter for each rule. So a client that invents
//! topic names can slow down topics without a meter, but cannot use up memory or the limit of a topic that has a meter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use log::Level;

use crate::access::TopicGlobs;
use crate::access::rate::{RateLimits, RateMeter};
use crate::config::{Problems, Section};
use crate::locks::{read, write};
use crate::log_limited;

/// Largest number of topics with a meter of their own.
const MAX_METERS: usize = 10_000;
/// Shortest time between two searches of the full table for meters to remove.
const SWEEP_INTERVAL_NANOS: u64 = 100_000_000;
/// A meter that has been full for this time is not in use and may be removed. A meter may be full for a shorter time
/// between two requests.
const IDLE_NANOS: u64 = 60_000_000_000;

/// One entry of `rate_limits`.
#[derive(Clone, Debug)]
pub(crate) struct TopicRateRule {
    topics: TopicGlobs,
    limits: RateLimits,
}

/// Takes `rate_limits`; returns `None` if it is absent.
pub(crate) fn rules(section: &mut Section, problems: &mut Problems) -> Option<Vec<TopicRateRule>> {
    let mut rules = Vec::new();
    for mut entry in section.sections("rate_limits", false, problems)? {
        let topics = TopicGlobs::from_section("topics", true, &mut entry, problems);
        let before = problems.0.len();
        let limits = RateLimits::from_section(&mut entry, problems);
        if limits.is_none() && problems.0.len() == before {
            entry.note("", "must have requests_per_second, bytes_per_second or both", problems);
        }
        entry.finish(problems);
        if let (Some(topics), Some(limits)) = (topics, limits) {
            rules.push(TopicRateRule { topics, limits });
        }
    }
    Some(rules)
}

/// The meters of all topics in use.
pub(super) struct TopicRates {
    /// Each rule with the meter that topics without a meter of their own share.
    rules: Vec<(TopicRateRule, Arc<RateMeter>)>,
    meters: RwLock<HashMap<Box<str>, Arc<RateMeter>>>,
    max_meters: usize,
    swept_at: AtomicU64,
}

impl TopicRates {
    pub(super) fn new(rules: Vec<TopicRateRule>) -> Self {
        let with_shared = |rule: TopicRateRule| {
            let shared = Arc::new(RateMeter::new(rule.limits));
            (rule, shared)
        };
        TopicRates {
            rules: rules.into_iter().map(with_shared).collect(),
            meters: RwLock::default(),
            max_meters: MAX_METERS,
            swept_at: AtomicU64::new(0),
        }
    }

    /// Returns the meter of this topic; `None` if no rule matches the topic.
    pub(super) fn meter(&self, topic: &str, now: u64) -> Option<Arc<RateMeter>> {
        // A topic that has a meter needs only the read lock.
        if let Some(meter) = read(&self.meters).get(topic) {
            return Some(Arc::clone(meter));
        }
        let (rule, shared) = self.rules.iter().find(|(rule, _)| rule.topics.contain(topic))?;
        if !self.has_room(now) {
            log_limited!(
                Level::Warn,
                "rate_limits: {} topics have limits of their own, topic {topic} shares one with all further topics",
                self.max_meters
            );
            return Some(Arc::clone(shared));
        }
        let mut meters = write(&self.meters);
        let meter = meters.entry(topic.into()).or_insert_with(|| Arc::new(RateMeter::new(rule.limits)));
        Some(Arc::clone(meter))
    }

    /// Returns the limits of this topic; `None` if no rule matches it.
    pub(super) fn limits(&self, topic: &str) -> Option<RateLimits> {
        self.rules.iter().find(|(rule, _)| rule.topics.contain(topic)).map(|(rule, _)| rule.limits)
    }

    /// Returns whether the table has room for one more meter, after removing idle meters if it is full. Threads that
    /// call this at the same time may all get true, so the table may exceed its bound by one meter for each thread.
    fn has_room(&self, now: u64) -> bool {
        if read(&self.meters).len() < self.max_meters {
            return true;
        }
        let swept_at = self.swept_at.load(Ordering::Relaxed);
        let is_due = now.saturating_sub(swept_at) >= SWEEP_INTERVAL_NANOS;
        let is_claimed =
            is_due && self.swept_at.compare_exchange(swept_at, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !is_claimed {
            return false;
        }
        let mut meters = write(&self.meters);
        // A meter with another owner belongs to a request that is about to take from it, or may still refund bytes.
        let idle_since = now.saturating_sub(IDLE_NANOS);
        meters.retain(|_, meter| !meter.is_full(idle_since) || Arc::strong_count(meter) > 1);
        meters.len() < self.max_meters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::rate::RateCost;
    use crate::access::section;

    const SECOND: u64 = 1_000_000_000;
    const ONE: RateCost = RateCost { requests: 1, bytes: 0 };

    fn rates(text: &str) -> TopicRates {
        let (mut section, mut problems) = section(text);
        let rules = rules(&mut section, &mut problems).unwrap();
        assert!(problems.0.is_empty(), "{problems}");
        TopicRates::new(rules)
    }

    #[test]
    fn the_first_matching_rule_applies_to_each_topic_separately() {
        let rates = rates(
            "rate_limits:\n - {topics: [a, 'b*'], requests_per_second: 2}\n \
             - {topics: ['*a*'], requests_per_second: 1}\n",
        );
        for (topic, expected) in [("a", 2), ("b1", 2), ("b2", 2), ("ba", 2), ("xa", 1)] {
            let passed = (0..5).filter(|_| rates.meter(topic, SECOND).unwrap().take(ONE, SECOND).is_ok()).count();
            assert_eq!(passed, expected, "{topic}");
        }
        assert!(rates.meter("other", SECOND).is_none());
        assert!(rates.meter("a", SECOND + SECOND / 2).unwrap().take(ONE, SECOND + SECOND / 2).is_ok());
    }

    #[test]
    fn topics_beyond_the_bound_share_a_meter_until_others_are_idle() {
        let mut rates = rates("rate_limits:\n - {topics: ['*'], requests_per_second: 1}\n");
        rates.max_meters = 3;
        let mut now = SECOND;
        for topic in ["a", "b", "c", "d"] {
            assert!(rates.meter(topic, now).unwrap().take(ONE, now).is_ok(), "{topic}");
        }
        assert!(
            rates.meter("e", now).unwrap().take(ONE, now).is_err(),
            "d and e share a meter, and d took its only request"
        );
        assert!(rates.meter("a", now).unwrap().take(ONE, now).is_err());
        assert_eq!(rates.meters.read().unwrap().len(), 3);

        now += IDLE_NANOS;
        assert!(
            rates.meter("e", now).unwrap().take(ONE, now).is_ok(),
            "e shares a meter: no other meter has been idle for long enough"
        );
        now += SECOND;
        let held = rates.meter("a", now).unwrap();
        assert!(rates.meter("b", now).unwrap().take(ONE, now).is_ok());
        assert!(rates.meter("e", now).unwrap().take(ONE, now).is_ok());
        let mut names: Vec<_> = rates.meters.read().unwrap().keys().map(ToString::to_string).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "e"], "c was idle and had no other owner");
        drop(held);
    }

    #[test]
    fn every_problem_of_the_rules_is_reported_at_once() {
        let (mut section, mut problems) = section(
            "rate_limits:\n - requests_per_second: 1\n - topics: [a]\n \
             - {topics: ['a['], bytes_per_second: 0, speed: 7}\n",
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
