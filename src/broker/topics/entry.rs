//! What the table has of a topic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::AppendFailure;
use crate::broker::topic_rules::TopicRules;

/// Time for which a topic whose lookup the brokers refused is not looked up again.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// Age at which the partition count and the rules of a known topic are refreshed.
pub(super) const REFRESH_AGE: Duration = Duration::from_secs(10);
/// The pause before the second lookup; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);

/// An entry of the table; `W` is an append that waits.
pub(super) enum Topic<W> {
    Known(KnownTopic<W>),
    Unknown { until: Instant },
    Refused { until: Instant, kind: AppendFailure, reason: Arc<str> },
    Pending(PendingLookup<W>),
}

pub(super) struct KnownTopic<W> {
    pub(super) partition_count: i32,
    /// When the partition count was read, and when it is read again.
    pub(super) since: Instant,
    pub(super) refresh_at: Instant,
    pub(super) rules: TopicRules,
    /// When the rules were read, and when they are read again.
    pub(super) rules_since: Instant,
    pub(super) rules_at: Instant,
    /// Since when each refresh has found that the topic does not exist.
    pub(super) missing_since: Option<Instant>,
    /// Items for partitions that the topic lacks; they wait for the next refresh.
    pub(super) waiting: Vec<W>,
}

pub(super) struct PendingLookup<W> {
    pub(super) since: Instant,
    pub(super) next: Instant,
    pub(super) pause: Duration,
    /// The rules of a topic that was known before.
    pub(super) rules_before: Option<TopicRules>,
    /// Whether a broker reported the topic as missing.
    pub(super) missed: bool,
    pub(super) waiting: Vec<W>,
}

impl<W> Topic<W> {
    pub(super) fn refused(kind: AppendFailure, reason: &str, now: Instant) -> Self {
        Topic::Refused { until: now + REFUSED_FOR, kind, reason: Arc::from(reason) }
    }

    /// Returns the items that wait for this topic.
    pub(super) fn waiting(&self) -> Option<&Vec<W>> {
        match self {
            Topic::Known(known) => Some(&known.waiting),
            Topic::Pending(lookup) => Some(&lookup.waiting),
            Topic::Unknown { .. } | Topic::Refused { .. } => None,
        }
    }

    pub(super) fn waiting_mut(&mut self) -> Option<&mut Vec<W>> {
        match self {
            Topic::Known(known) => Some(&mut known.waiting),
            Topic::Pending(lookup) => Some(&mut lookup.waiting),
            Topic::Unknown { .. } | Topic::Refused { .. } => None,
        }
    }

    /// Whether items wait for the refresh of this known topic.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Topic::Known(known) if known.is_awaited())
    }
}

impl<W> KnownTopic<W> {
    /// Returns a topic whose rules are read at once; until then these count.
    pub(super) fn new(partition_count: i32, rules: TopicRules, now: Instant) -> Self {
        KnownTopic {
            partition_count,
            since: now,
            refresh_at: now + REFRESH_AGE,
            rules,
            rules_since: now,
            rules_at: now,
            missing_since: None,
            waiting: Vec::new(),
        }
    }

    /// Whether items wait for the refresh of this topic.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl<W> PendingLookup<W> {
    pub(super) fn new(rules_before: Option<TopicRules>, waiting: Vec<W>, now: Instant) -> Self {
        PendingLookup { since: now, next: now, pause: FIRST_PAUSE, rules_before, missed: false, waiting }
    }
}
