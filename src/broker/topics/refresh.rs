//! The refresh of known topics, and what makes it due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{KnownTopic, PendingLookup, REFRESH_AGE, Topic};
use super::{LookupAnswer, LookupResult, TopicTable};
use crate::broker::topic_rules::TopicRules;

/// Age at which a known topic is refreshed after a refusal.
const REFUSED_AGE: Duration = Duration::from_secs(1);
/// Time for which refreshes must report a known topic as missing before it is forgotten: then it was deleted.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

impl<W> TopicTable<W> {
    /// Returns at most `max` known topics whose partition count must be refreshed, those first that have been due for
    /// longest. While items wait for some, these alone: a long response would delay the items, or fail.
    pub(in crate::broker) fn stale_topics(&self, max: usize, now: Instant) -> Vec<Arc<str>> {
        let has_turn = |topic: &KnownTopic<W>| topic.is_awaited() || !self.has_awaited();
        self.first_topics(max, |topic| (topic.refresh_at <= now && has_turn(topic)).then_some(topic.refresh_at))
    }

    /// Returns at most `max` known topics whose rules must be read: those that have been due for longest.
    pub(in crate::broker) fn topics_with_stale_rules(&self, max: usize, now: Instant) -> Vec<Arc<str>> {
        self.first_topics(max, |topic| (topic.rules_at <= now).then_some(topic.rules_at))
    }

    /// Returns the first `max` of the known topics that have an order.
    fn first_topics<O: Ord>(&self, max: usize, order: impl Fn(&KnownTopic<W>) -> Option<O>) -> Vec<Arc<str>> {
        let ordered = self.topics.iter().filter_map(|(name, topic)| match topic {
            Topic::Known(topic) => Some((order(topic)?, name)),
            Topic::Unknown { .. } | Topic::Refused { .. } | Topic::Pending(_) => None,
        });
        let mut ordered: Vec<(O, &Arc<str>)> = ordered.collect();
        ordered.sort_unstable();
        ordered.into_iter().take(max).map(|(_, name)| Arc::clone(name)).collect()
    }

    /// Whether items wait for the refresh of a known topic.
    pub(in crate::broker) fn has_awaited(&self) -> bool {
        self.awaited_count > 0
    }

    /// Handles the answer to the refresh of a known topic; returns the items that waited for it, with the result for
    /// them. Only an answer with partitions, or a refusal, changes what the table has; a topic that is missing for long
    /// is removed, so that the next append to it causes a lookup.
    pub(in crate::broker) fn refreshed(
        &mut self,
        topic: &str,
        answer: LookupAnswer,
        now: Instant,
    ) -> Option<(LookupResult, Vec<W>)> {
        let entry = self.topics.get_mut(topic)?;
        let Topic::Known(known) = entry else { return None };
        let waiting = std::mem::take(&mut known.waiting);
        if !matches!(answer, LookupAnswer::Unreachable(_)) {
            known.refresh_at = now + REFRESH_AGE;
        }
        let result = match answer {
            LookupAnswer::Exists(count) => {
                // A partition is reported as missing only by a count that was read since.
                (known.partition_count, known.since, known.missing_since) = (count, now, None);
                LookupResult::Exists(count, known.rules)
            }
            // The right to write includes the right to describe: without the latter, the former is missing as well.
            LookupAnswer::Refused(kind, reason) => {
                *entry = Topic::refused(kind, &reason, now);
                LookupResult::Refused(kind, reason)
            }
            LookupAnswer::DoesNotExist => {
                if now.duration_since(*known.missing_since.get_or_insert(now)) >= FORGOTTEN_AFTER {
                    self.topics.remove(topic);
                }
                missing()
            }
            LookupAnswer::NotYet => {
                known.missing_since = None;
                missing()
            }
            LookupAnswer::Unreachable(reason) => {
                // Brokers that come back may not know their topics yet.
                known.missing_since = None;
                LookupResult::Unreachable(reason)
            }
        };
        if waiting.is_empty() {
            return None;
        }
        self.awaited_count -= 1;
        self.waiting_count -= waiting.len();
        Some((result, waiting))
    }

    /// Sets the rules of a known topic; `None` if they could not be read, so that the earlier ones stay.
    pub(in crate::broker) fn set_rules(&mut self, topic: &str, rules: Option<TopicRules>, now: Instant) {
        if let Some(Topic::Known(known)) = self.topics.get_mut(topic) {
            known.rules = rules.unwrap_or(known.rules);
            (known.rules_since, known.rules_at) = (now, now + REFRESH_AGE);
        }
    }

    /// A message to a known topic was refused: refreshes it within about a second.
    pub(in crate::broker) fn refresh_soon(&mut self, topic: &str) {
        if let Some(Topic::Known(known)) = self.topics.get_mut(topic) {
            known.refresh_at = known.refresh_at.min(known.since + REFUSED_AGE);
            known.rules_at = known.rules_at.min(known.rules_since + REFUSED_AGE);
        }
    }

    /// Looks a known topic up again, because an engine found it missing; new items wait for the result. If the topic
    /// exists, its rules count until they are read again.
    pub(in crate::broker) fn invalidate(&mut self, topic: &str, now: Instant) {
        let Some(entry) = self.topics.get_mut(topic) else { return };
        let Topic::Known(known) = entry else { return };
        let (rules, waiting) = (known.rules, std::mem::take(&mut known.waiting));
        self.awaited_count -= usize::from(!waiting.is_empty());
        *entry = Topic::Pending(PendingLookup::new(Some(rules), waiting, now));
        self.lookup_count += 1;
    }
}

/// The result for items that wait for a known topic that a broker reports as missing.
fn missing() -> LookupResult {
    LookupResult::Unreachable("the brokers currently report the topic as unknown".to_owned())
}
