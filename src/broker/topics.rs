//! The table of topics of a producer: which exist, which do not, and which are being looked up, with the appends that
//! wait for the lookup. Without IO and without a clock.
//!
//! An engine would hold a message for an unknown topic until its deadline. So a topic is looked up before its first
//! append: once for all appends that wait for it, which then leave in order and before newer ones.
//!
//! A name that does not exist causes a few lookups within a second, since a broker that creates a topic on demand
//! reports it as missing at first. For the next three seconds it causes none. So a topic that is created in the
//! meantime is found within four seconds. Names that do not exist are evicted before known topics, and never prevent
//! the lookup of another name.
//!
//! A topic whose lookup the brokers refuse (no right to describe it) is looked up again after two seconds.
//!
//! The partition count of a known topic, and its rules (`topic_rules.rs`), are refreshed every ten seconds, and within
//! about a second after a message to the topic was refused: those that have been due for longest first, so that none is
//! passed over. An append to a partition that a known topic lacks waits for such a refresh, because topics grow. All
//! other appends to the topic go on meanwhile, and nothing known is lost if the refresh fails. A topic that refreshes
//! have reported as missing for a minute is forgotten.
//!
//! [`entry`]: what the table has of a topic. `refresh`: what concerns known topics.

mod entry;
mod refresh;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::entry::{KnownTopic, MAX_PAUSE, PendingLookup, Topic};
use super::AppendFailure;
use super::topic_rules::TopicRules;

/// Time for which a topic that does not exist is not looked up again.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);
/// Time for which brokers must report a topic as missing before it counts as unknown.
const UNKNOWN_AFTER: Duration = Duration::from_secs(1);
/// Limit on the topics in the table beside those that are being looked up; when it is reached, unknown topics are
/// evicted first.
const MAX_TOPICS: usize = 10_000;
/// Time for which a table that is full of known topics is not searched for others to evict.
const FULL_FOR: Duration = Duration::from_secs(1);
/// Limit on the topics for which no broker has answered yet; appends to further ones are refused.
const MAX_LOOKUPS: usize = 256;
/// Limit on the topics that brokers reported as missing and that are looked up again; a further one is unknown at once.
const MAX_MISSED: usize = 256;

/// The table; `W` is an append that waits for a topic.
pub(super) struct TopicTable<W> {
    topics: HashMap<Arc<str>, Topic<W>>,
    /// Number of pending lookups.
    lookup_count: usize,
    /// Those of them whose topic a broker reported as missing.
    missed_count: usize,
    /// Number of known topics with items that wait for a refresh.
    awaited_count: usize,
    waiting_count: usize,
    max_waiting: usize,
    /// Until then the table is full of known topics, so that no entry is looked for that could be evicted.
    full_until: Option<Instant>,
    /// Time for which a topic is looked up again and again.
    max_lookup_time: Duration,
}

/// An item with a deadline.
pub(super) trait HasDeadline {
    /// Returns the deadline.
    fn deadline(&self) -> Instant;
}

/// The entry of the table for a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The topic exists with this number of partitions and these rules.
    Yes(i32, TopicRules),
    /// The topic does not exist.
    No,
    /// The brokers refused the lookup a short while ago, for this reason.
    Refused(AppendFailure, Arc<str>),
    /// The topic must be looked up first.
    NeedsLookup,
}

/// The answer of a broker to one lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupAnswer {
    /// The topic exists with this number of partitions.
    Exists(i32),
    /// The topic does not exist.
    DoesNotExist,
    /// The topic is being created, or has no leader yet.
    NotYet,
    /// No broker answered, for this reason.
    Unreachable(String),
    /// The brokers refuse the lookup: the client has no right to it, or the name is illegal.
    Refused(AppendFailure, String),
}

/// The result of all lookups of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupResult {
    /// The topic exists with this number of partitions and these rules.
    Exists(i32, TopicRules),
    /// The topic does not exist.
    Unknown,
    /// No broker answered, for this reason.
    Unreachable(String),
    /// The brokers refused the lookup, for this reason.
    Refused(AppendFailure, String),
}

impl<W> TopicTable<W> {
    /// Returns an empty table for at most `max_waiting` items. Each topic is looked up for at most `max_lookup_time`.
    pub(super) fn new(max_waiting: usize, max_lookup_time: Duration) -> Self {
        TopicTable {
            topics: HashMap::new(),
            lookup_count: 0,
            missed_count: 0,
            awaited_count: 0,
            waiting_count: 0,
            max_waiting,
            full_until: None,
            max_lookup_time,
        }
    }

    /// Returns the entry of `topic` for an append to `partition`. A partition that a known topic lacks must be looked
    /// up, unless the topic was refreshed a short while ago.
    pub(super) fn known(&self, topic: &str, partition: Option<i32>, now: Instant) -> Known {
        match self.topics.get(topic) {
            Some(Topic::Known(topic)) => {
                let is_missing = partition.is_some_and(|partition| partition >= topic.partition_count);
                let is_old = now.duration_since(topic.since) > UNKNOWN_FOR;
                // Behind others that wait for a missing partition an append waits, too: that keeps the order.
                match is_missing && (is_old || topic.is_awaited()) {
                    true => Known::NeedsLookup,
                    false => Known::Yes(topic.partition_count, topic.rules),
                }
            }
            Some(Topic::Unknown { until }) if now < *until => Known::No,
            Some(Topic::Refused { until, kind, reason }) if now < *until => Known::Refused(*kind, Arc::clone(reason)),
            Some(Topic::Unknown { .. } | Topic::Refused { .. } | Topic::Pending(_)) | None => Known::NeedsLookup,
        }
    }

    /// Adds an item that waits for the lookup of `topic`, or for the refresh of a known topic; returns it if the table
    /// has no room.
    pub(super) fn add(&mut self, topic: &Arc<str>, waiting: W, now: Instant) -> Result<(), W> {
        if self.waiting_count >= self.max_waiting {
            return Err(waiting);
        }
        match self.topics.get_mut(topic) {
            Some(Topic::Pending(lookup)) => lookup.waiting.push(waiting),
            Some(Topic::Known(known)) => {
                self.awaited_count += usize::from(!known.is_awaited());
                known.refresh_at = known.refresh_at.min(now);
                known.waiting.push(waiting);
            }
            Some(Topic::Unknown { .. } | Topic::Refused { .. }) | None => {
                if self.lookup_count - self.missed_count >= MAX_LOOKUPS {
                    return Err(waiting);
                }
                self.make_room(now);
                let lookup = PendingLookup::new(None, vec![waiting], now);
                self.topics.insert(Arc::clone(topic), Topic::Pending(lookup));
                self.lookup_count += 1;
            }
        }
        self.waiting_count += 1;
        Ok(())
    }

    /// Returns the topics to look up now.
    pub(super) fn due(&self, now: Instant) -> Vec<Arc<str>> {
        if self.lookup_count == 0 {
            return Vec::new();
        }
        let is_due = |topic: &Topic<W>| matches!(topic, Topic::Pending(lookup) if lookup.next <= now);
        self.topics.iter().filter(|(_, topic)| is_due(topic)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Returns the time of the next lookup.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.lookup_count == 0 {
            return None;
        }
        let next = |topic: &Topic<W>| match topic {
            Topic::Pending(lookup) => Some(lookup.next),
            Topic::Known(_) | Topic::Unknown { .. } | Topic::Refused { .. } => None,
        };
        self.topics.values().filter_map(next).min()
    }

    /// Handles the answer to a lookup; returns the result and all items that waited for it, or `None` if another
    /// lookup follows.
    pub(super) fn answer(&mut self, topic: &str, answer: LookupAnswer, now: Instant) -> Option<(LookupResult, Vec<W>)> {
        let Some((name, Topic::Pending(lookup))) = self.topics.get_key_value(topic) else { return None };
        let waited = now.duration_since(lookup.since);
        // A broker that has just started reports existing topics as missing for a while.
        let rules_before = lookup.rules_before;
        let unknown_after = match rules_before {
            Some(_) => self.max_lookup_time,
            None => UNKNOWN_AFTER.min(self.max_lookup_time),
        };
        let too_many_missed = rules_before.is_none() && !lookup.missed && self.missed_count >= MAX_MISSED;
        let name = Arc::clone(name);
        let result = match answer {
            LookupAnswer::Exists(count) => LookupResult::Exists(count, rules_before.unwrap_or(TopicRules::UNKNOWN)),
            LookupAnswer::DoesNotExist if waited >= unknown_after || too_many_missed => LookupResult::Unknown,
            LookupAnswer::NotYet if waited >= self.max_lookup_time => {
                LookupResult::Unreachable("the topic is being created or has no leader yet".to_owned())
            }
            LookupAnswer::Unreachable(reason) => LookupResult::Unreachable(reason),
            LookupAnswer::Refused(kind, reason) => LookupResult::Refused(kind, reason),
            LookupAnswer::DoesNotExist | LookupAnswer::NotYet => {
                self.postpone(topic, now);
                return None;
            }
        };
        let entry = match &result {
            LookupResult::Exists(count, rules) => Some(Topic::Known(KnownTopic::new(*count, *rules, now))),
            // A table that is full of known topics remembers no other names.
            _ if self.topics.len() > MAX_TOPICS => None,
            LookupResult::Unknown => Some(Topic::Unknown { until: now + UNKNOWN_FOR }),
            LookupResult::Refused(kind, reason) => Some(Topic::refused(*kind, reason, now)),
            LookupResult::Unreachable(_) => None,
        };
        if matches!(result, LookupResult::Exists(..)) {
            self.evict_known(topic);
        }
        let before = match entry {
            Some(entry) => self.topics.insert(name, entry),
            None => self.topics.remove(topic),
        };
        let Some(Topic::Pending(lookup)) = before else { return None };
        self.lookup_count -= 1;
        self.missed_count -= usize::from(lookup.missed);
        self.waiting_count -= lookup.waiting.len();
        Some((result, lookup.waiting))
    }

    fn postpone(&mut self, topic: &str, now: Instant) {
        if let Some(Topic::Pending(lookup)) = self.topics.get_mut(topic) {
            lookup.next = now + lookup.pause;
            lookup.pause = (lookup.pause * 2).min(MAX_PAUSE);
            if !std::mem::replace(&mut lookup.missed, true) {
                self.missed_count += 1;
            }
        }
    }

    /// Returns all waiting items, when the producer closes.
    pub(super) fn drain(&mut self) -> Vec<W> {
        let waiting = self.topics.values_mut().filter_map(Topic::waiting_mut).flat_map(std::mem::take).collect();
        (self.waiting_count, self.awaited_count) = (0, 0);
        waiting
    }

    /// Evicts another known topic if the table is too large. Only a topic that exists can have this effect.
    fn evict_known(&mut self, topic: &str) {
        if self.topics.len() > MAX_TOPICS {
            let is_other = |(name, entry): &(&Arc<str>, &Topic<W>)| {
                ***name != *topic && matches!(entry, Topic::Known(known) if !known.is_awaited())
            };
            if let Some(name) = self.topics.iter().find(is_other).map(|(name, _)| Arc::clone(name)) {
                self.topics.remove(&name);
            }
        }
    }

    /// Evicts names that are not known topics, if the table is full.
    fn make_room(&mut self, now: Instant) {
        if self.topics.len() < MAX_TOPICS || self.full_until.is_some_and(|until| now < until) {
            return;
        }
        self.topics.retain(
            |_, topic| !matches!(topic, Topic::Unknown { until } | Topic::Refused { until, .. } if *until <= now),
        );
        if self.topics.len() < MAX_TOPICS {
            return;
        }
        // A tenth at once, because each pass over the table takes time.
        let mut evictable = MAX_TOPICS / 10;
        self.topics.retain(|_, topic| {
            let is_evicted = evictable > 0 && matches!(topic, Topic::Unknown { .. } | Topic::Refused { .. });
            evictable -= usize::from(is_evicted);
            !is_evicted
        });
        self.full_until = (self.topics.len() >= MAX_TOPICS).then(|| now + FULL_FOR);
    }
}

impl<W: HasDeadline> TopicTable<W> {
    /// Returns the earliest deadline of the waiting items.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.waiting_count == 0 {
            return None;
        }
        let waiting = self.topics.values().filter_map(Topic::waiting);
        waiting.flatten().map(HasDeadline::deadline).min()
    }

    /// Removes and returns the items whose deadline is not after `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<W> {
        let mut expired = Vec::new();
        for topic in self.topics.values_mut() {
            let was_awaited = topic.is_awaited();
            if let Some(waiting) = topic.waiting_mut() {
                expired.extend(waiting.extract_if(.., |waiting| waiting.deadline() <= now));
            }
            self.awaited_count -= usize::from(was_awaited && !topic.is_awaited());
        }
        self.waiting_count -= expired.len();
        expired
    }
}

#[cfg(test)]
mod tests;
