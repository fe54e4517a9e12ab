//! Reports the state of a group to `/readyz`, to the metrics and to the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ZookeeperGroup;
use crate::broker::PartitionId;
use crate::keeper::paths;

/// Shortest time without an owner after which a partition is reported; a hand-over takes less.
const MIN_UNOWNED: Duration = Duration::from_secs(10);
/// Shortest time with the owner node of another member after which an assigned partition is reported: a hand-over may
/// take a fifth of the other's `shutdown_grace_ms`, which is at most 10 minutes.
const MIN_FOREIGN: Duration = Duration::from_secs(150);
/// How long the topic is missing, or no round is completed, before that is reported: the topic may be created at the
/// same time as the module, and a connection to ZooKeeper be lost for some seconds.
const PATIENCE: Duration = Duration::from_secs(10);

impl ZookeeperGroup {
    /// Notes which partitions of the topic have no owner node. `owned` are the others.
    pub(super) fn note_unowned(&mut self, owned: &BTreeSet<PartitionId>) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.unowned_since);
        let unowned = self.partitions.iter().copied().filter(|known| !owned.contains(known));
        self.unowned_since = unowned.map(|id| (id, before.get(&id).copied().unwrap_or(now))).collect();
        if let Some(trouble) = self.unread() {
            self.warn_rate_limited(trouble);
        }
    }

    /// Notes why a round was not completed; `None` if it was.
    pub(super) fn note_round(&mut self, failure: Option<&String>) {
        let since = self.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        self.failing = failure.map(|reason| (since, reason.clone()));
    }

    /// Returns why the topic has not been read for long by any member.
    fn lasting_failure(&self, now: Instant) -> Option<String> {
        let is_long = |since: &Instant| *since + PATIENCE <= now;
        let failure = self.failing.as_ref().filter(|(since, _)| is_long(since)).map(|(_, reason)| reason.clone());
        let is_missing = self.topic_missing_since.as_ref().is_some_and(is_long);
        failure.or_else(|| is_missing.then(|| format!("topic {} does not exist in ZooKeeper", self.config.topic)))
    }

    /// Returns which partitions are not read, and why: those without an owner for long, those that another member does
    /// not release, and those whose offset is not readable.
    fn unread(&self) -> Option<String> {
        let sessions = 2 * self.keeper.session_timeout();
        let long = |since: &BTreeMap<PartitionId, Instant>, patience: Duration| -> Vec<PartitionId> {
            since.iter().filter(|(_, since)| patience <= since.elapsed()).map(|(id, _)| *id).collect()
        };
        let (unowned_for, foreign_for) = (MIN_UNOWNED.max(sessions), MIN_FOREIGN.max(sessions));
        let unowned = long(&self.unowned_since, unowned_for);
        let foreign = long(&self.foreign_since, foreign_for);
        let mut troubles: Vec<String> = self
            .unreadable
            .iter()
            .map(|(partition, why)| format!("partition {partition} is not read: {why}"))
            .collect();
        let topic = &self.config.topic;
        if !unowned.is_empty() {
            let seconds = unowned_for.as_secs();
            troubles.push(format!("partitions {unowned:?} of topic {topic} have had no owner for {seconds} s"));
        }
        if let Some(first) = foreign.first() {
            // The node of a member that is alive goes with its release, that of a dead one with its session.
            let (node, seconds) = (paths::owner(&self.config.group, topic, *first), foreign_for.as_secs());
            troubles.push(format!(
                "partitions {foreign:?} of topic {topic} are assigned to this member, but have had the owner node of \
                 another one for {seconds} s: if nobody pushes them, delete the node, as {node}"
            ));
        }
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    pub(super) fn report_health(&self) {
        let as_gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        if let Some(gauge) = &self.observers.unreadable {
            gauge.set(as_gauge(self.unreadable.len()));
        }
        if let Some(gauge) = &self.observers.unowned {
            gauge.set(as_gauge(self.unowned_since.len()));
        }
        if let Some(health) = &self.observers.health {
            health.set(self.state(Instant::now()));
        }
    }

    /// Returns whether the member has joined and claimed its partitions, and where they begin is stored.
    pub(super) fn state(&self, now: Instant) -> Result<(), String> {
        let missing = self.assigned.iter().filter(|partition| !self.held.contains_key(partition));
        let without_offset =
            self.held.iter().filter(|(_, held)| held.progress.stored.is_none()).map(|(partition, _)| partition);
        let (missing, without_offset): (Vec<_>, Vec<_>) = (missing.collect(), without_offset.collect());
        if self.member.is_none() || !self.has_joined {
            Err("the group is not joined yet".to_owned())
        } else if let Some(trouble) = self.lasting_failure(now).or_else(|| self.unread()) {
            Err(trouble)
        } else if !missing.is_empty() && self.conflict_since.is_none() {
            Err(format!("partitions {missing:?} are not claimed yet"))
        } else if !without_offset.is_empty() {
            Err(format!("where partitions {without_offset:?} begin is not stored yet"))
        } else {
            Ok(())
        }
    }
}
