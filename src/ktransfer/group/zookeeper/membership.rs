//! Follows the ZooKeeper session, registers the member, and computes which partitions are assigned to this member.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use super::{Member, RoundResult, ZookeeperGroup, to_reason};
use crate::broker::PartitionId;
use crate::keeper::discovery::{self, DiscoveryError};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{KeeperError, Lifetime};
use crate::ktransfer::group::assignor::{range_partitions, sticky_partitions};
use crate::ktransfer::group::member::{MemberKind, kind_of, registration};

/// How long the claims of other members may contradict the assignment of the range assignor before the leaders are read
/// again.
const MAX_RANGE_CONFLICT: Duration = Duration::from_secs(3);
/// The same for the sticky assignor, which reads the owners.
const MAX_STICKY_CONFLICT: Duration = Duration::from_secs(1);
/// Interval at which the sticky assignor reads the owners in any case. A member that computed its assignment while
/// others moved may keep too many partitions, and sees no conflict itself.
const STICKY_INTERVAL: Duration = Duration::from_secs(10);

impl ZookeeperGroup {
    /// Ends the claims of a session that is no longer the current one. Then creates the member's id for the current
    /// session. Fails if there is no session.
    pub(super) fn follow_session(&mut self) -> RoundResult {
        let epoch = self.keeper.epoch();
        if self.member.as_ref().is_some_and(|member| member.epoch != epoch) {
            warn!(
                "group {}: ZooKeeper session ended, and with it the claims on {} partitions; joining again",
                self.config.group,
                self.held.len()
            );
            for partition in self.held.keys().copied().collect::<Vec<_>>() {
                self.end_claim(partition);
            }
            let member = self.member.take().expect("a member, checked above");
            self.leases.remove_registration(&paths::group_id(&self.config.group, &member.id));
            self.clear_assignment();
        }
        if self.member.is_none() {
            // An id must belong to a session, and a successful call proves that a session exists.
            self.keeper.read("/").map_err(to_reason)?;
            self.member = Some(Member { id: self.member_ids.next(), epoch: self.keeper.epoch() });
        }
        Ok(())
    }

    /// Reads the members and the partitions, registers this member if it is missing, and computes the assignment again
    /// if members or partitions have changed or a conflict lasts.
    pub(super) fn update_assignment(&mut self) -> RoundResult {
        let members = self.read_members()?;
        let topic = self.config.topic.clone();
        let partitions = match discovery::partition_ids(&*self.keeper, &topic) {
            // The topic may be created later. Until then its partitions are released: without the topic they cannot be
            // read.
            Err(DiscoveryError::UnknownTopic(_)) => {
                self.warn_rate_limited(format!("topic {topic} does not exist in ZooKeeper, retrying"));
                self.topic_was_missing = true;
                self.topic_missing_since.get_or_insert_with(Instant::now);
                Vec::new()
            }
            partitions => {
                let partitions = partitions.map_err(|error| error.to_string())?;
                self.topic_missing_since = None;
                partitions
            }
        };
        let is_sticky = members.iter().all(|member| self.kinds.get(member) == Some(&MemberKind::Sticky));
        let max_conflict = if is_sticky { MAX_STICKY_CONFLICT } else { MAX_RANGE_CONFLICT };
        let is_due = self.conflict_since.is_some_and(|since| since.elapsed() >= max_conflict)
            || is_sticky && self.assigned_at.elapsed() >= STICKY_INTERVAL;
        if members == self.members && partitions == self.partitions && !is_due {
            return Ok(());
        }
        let assigned = match partitions.as_slice() {
            [] => BTreeSet::new(),
            _ if is_sticky => self.sticky_assignment(&members, &partitions)?,
            _ => self.range_assignment(&members)?,
        };
        if assigned != self.assigned || members != self.members {
            info!(
                "group {}: {} of {} partitions assigned to this member, {} members, {} assignor",
                self.config.group,
                assigned.len(),
                partitions.len(),
                members.len(),
                if is_sticky { "sticky" } else { "range" }
            );
        }
        (self.members, self.partitions, self.assigned, self.conflict_since) = (members, partitions, assigned, None);
        self.assigned_at = Instant::now();
        Ok(())
    }

    /// Returns the sorted ids of the members that read the topic, and registers this member if it is missing.
    fn read_members(&mut self) -> Result<Vec<String>, String> {
        let mut members = match self.keeper.children(&paths::group_ids(&self.config.group)) {
            Err(KeeperError::NoNode(_)) => Vec::new(),
            members => members.map_err(to_reason)?,
        };
        let own = self.member.as_ref().map(|member| member.id.clone()).unwrap_or_default();
        if !members.contains(&own) {
            self.register(&own)?;
            members.push(own.clone());
        }
        self.kinds.retain(|member, _| members.contains(member));
        self.kinds.insert(own.clone(), MemberKind::Sticky);
        members.sort_unstable();
        let unknown: Vec<String> = members.iter().filter(|member| !self.kinds.contains_key(*member)).cloned().collect();
        let nodes = self.keeper.read_all(&unknown.iter().map(|id| self.registration_path(id)).collect::<Vec<_>>());
        for (id, node) in unknown.into_iter().zip(nodes) {
            match node {
                // This process created the registration in the current session for an earlier member, whose leave
                // failed or whose request was carried out late. Such a node does not expire.
                Ok(Some(node)) if Some(node.ephemeral_owner) == self.keeper.session_id() => {
                    let member = self.member.as_ref().expect("a member reads the members");
                    self.claimant(member).unregister(&id).map_err(to_reason)?;
                }
                Ok(Some(node)) => drop(self.kinds.insert(id, kind_of(&node.data, &self.config.topic))),
                // The member has left meanwhile.
                Ok(None) => {}
                Err(error @ KeeperError::Unreachable(_)) => return Err(to_reason(error)),
                Err(_) => drop(self.kinds.insert(id, MemberKind::Range)),
            }
        }
        members.retain(|member| self.kinds.get(member).is_some_and(|kind| *kind != MemberKind::OtherTopic));
        Ok(members)
    }

    fn registration_path(&self, id: &str) -> String {
        paths::group_id(&self.config.group, id)
    }

    fn register(&mut self, id: &str) -> RoundResult {
        let path = self.registration_path(id);
        let registration = registration(&self.config.topic, SystemTime::now());
        match create_with_parents(&*self.keeper, &path, &registration, Lifetime::Ephemeral) {
            Ok(()) | Err(KeeperError::NodeExists(_)) => info!("group {}: joined as {id}", self.config.group),
            Err(error) => return Err(to_reason(error)),
        }
        self.leases.add_registration(path, registration);
        Ok(())
    }

    fn sticky_assignment(
        &self,
        members: &[String],
        partitions: &[PartitionId],
    ) -> Result<BTreeSet<PartitionId>, String> {
        let (group, topic) = (&self.config.group, &self.config.topic);
        let paths: Vec<String> = partitions.iter().map(|partition| paths::owner(group, topic, *partition)).collect();
        let mut owners = BTreeMap::new();
        for (partition, node) in partitions.iter().zip(self.keeper.read_all(&paths)) {
            if let Some(node) = node.map_err(to_reason)? {
                owners.insert(*partition, String::from_utf8_lossy(&node.data).into_owned());
            }
        }
        let own = self.member.as_ref().map_or("", |member| member.id.as_str());
        Ok(sticky_partitions(own, members, partitions, &owners))
    }

    fn range_assignment(&self, members: &[String]) -> Result<BTreeSet<PartitionId>, String> {
        let leaders = discovery::partitions(&*self.keeper, &self.config.topic).map_err(|error| error.to_string())?;
        let own = self.member.as_ref().map_or("", |member| member.id.as_str());
        Ok(range_partitions(own, members, &leaders).into_iter().collect())
    }

    fn clear_assignment(&mut self) {
        self.members.clear();
        self.assigned.clear();
        self.stray_claims.clear();
        self.unreadable.clear();
        self.foreign_since.clear();
        self.kinds.clear();
        self.conflict_since = None;
    }
}
