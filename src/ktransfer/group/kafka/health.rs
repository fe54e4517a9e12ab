//! Reports the state of a group to `/readyz`, to the metrics and to the log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{KafkaGroup, StepResult};
use crate::broker::PartitionId;

/// Interval at which members and partitions are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time without an owner after which a partition is reported; a hand-over takes less.
const MIN_UNOWNED: Duration = Duration::from_secs(10);
/// How long the topic cannot be looked at, or does not exist, before that is reported: it may be created at the same
/// time as the module, and an election takes seconds.
const PATIENCE: Duration = Duration::from_secs(10);

impl KafkaGroup {
    /// Looks at the topic and at the assignments of all members. Logs a failure that lasts.
    pub(super) fn look(&mut self) -> StepResult {
        let now = Instant::now();
        self.next_look = now + LOOK_INTERVAL;
        let outcome = self.look_once();
        let since = self.look_failure.as_ref().map_or(now, |(since, _)| *since);
        self.look_failure = outcome.as_ref().err().map(|reason| (since, reason.clone()));
        if let Some((_, reason)) = self.look_failure.as_ref().filter(|(since, _)| *since < now) {
            self.warnings.warn(&self.config.group, format!("{reason}, retrying"));
        }
        outcome
    }

    fn look_once(&mut self) -> StepResult {
        let deadline = self.begin_call();
        self.n_partitions = self.membership.n_partitions(deadline)?;
        let Some(n_partitions) = self.n_partitions else {
            self.topic_was_missing = true;
            self.unowned_since.clear();
            return Err(format!("topic {} does not exist", self.config.topic));
        };
        let deadline = self.begin_call();
        // Unknown during a rebalance: what was known counts on.
        if let Some(assigned) = self.membership.members(deadline)?.assigned {
            self.note_unowned(n_partitions, &assigned);
        }
        Ok(())
    }

    fn note_unowned(&mut self, n_partitions: PartitionId, assigned: &BTreeSet<PartitionId>) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.unowned_since);
        let unowned = (0..n_partitions).filter(|partition| !assigned.contains(partition));
        self.unowned_since = unowned.map(|id| (id, before.get(&id).copied().unwrap_or(now))).collect();
        if let Some(trouble) = self.unread() {
            self.warnings.warn(&self.config.group, trouble);
        }
    }

    /// Returns which partitions nobody has read for long.
    fn unread(&self) -> Option<String> {
        let patience = MIN_UNOWNED.max(2 * self.config.session_timeout);
        let is_long = |since: &Instant| patience <= since.elapsed();
        let long: Vec<PartitionId> =
            self.unowned_since.iter().filter(|(_, since)| is_long(since)).map(|(id, _)| *id).collect();
        let (topic, seconds) = (&self.config.topic, patience.as_secs());
        (!long.is_empty()).then(|| format!("partitions {long:?} of topic {topic} have had no owner for {seconds} s"))
    }

    pub(super) fn report_health(&self) {
        if let Some(gauge) = &self.observers.unreadable {
            // Every offset that is committed to Kafka is a number.
            gauge.set(0);
        }
        if let Some(gauge) = &self.observers.unowned {
            gauge.set(i64::try_from(self.unowned_since.len()).unwrap_or(i64::MAX));
        }
        if let Some(health) = &self.observers.health {
            health.set(self.state(Instant::now()));
        }
    }

    /// Returns whether the member has joined and claimed its partitions, and where they begin is stored.
    pub(super) fn state(&self, now: Instant) -> Result<(), String> {
        let without_offset = self.held.iter().filter(|(_, held)| held.progress.stored.is_none());
        let without_offset: Vec<_> = without_offset.map(|(partition, _)| partition).collect();
        if !self.has_joined {
            Err("the group is not joined yet".to_owned())
        } else if let Some((_, reason)) = self.look_failure.as_ref().filter(|(since, _)| *since + PATIENCE <= now) {
            Err(reason.clone())
        } else if let Some(trouble) = self.unread() {
            Err(trouble)
        } else if !self.to_claim.is_empty() {
            Err(format!("partitions {:?} are not claimed yet", self.to_claim))
        } else if !without_offset.is_empty() {
            Err(format!("where partitions {without_offset:?} begin is not stored yet"))
        } else {
            Ok(())
        }
    }

    /// Returns why the member has ended, with the key of the configuration that may be the cause.
    pub(super) fn explained(&self, reason: &str) -> String {
        let hints = [
            (
                "INVALID_SESSION_TIMEOUT",
                format!(
                    "session_timeout_ms is {}, but must be within group.min.session.timeout.ms and \
                     group.max.session.timeout.ms of the brokers (6000 and 1800000 by default)",
                    self.config.session_timeout.as_millis()
                ),
            ),
            ("FENCED_INSTANCE_ID", "another process has the same instance_id".to_owned()),
            (
                "INCONSISTENT_GROUP_PROTOCOL",
                "the group has members of another program: each module needs a group name of its own".to_owned(),
            ),
            (
                "GROUP_AUTHORIZATION_FAILED",
                "the daemon needs the right Read on the group, and Read on the topic".to_owned(),
            ),
        ];
        let hint = hints.iter().find(|(code, _)| reason.contains(code));
        hint.map_or_else(|| reason.to_owned(), |(_, hint)| format!("{reason}: {hint}"))
    }
}
