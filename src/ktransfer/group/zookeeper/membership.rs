//! Follows the ZooKeeper session, registers the member, and computes which partitions are assigned to it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use super::{Member, RoundResult, ZookeeperGroup, to_reason};
use crate::keeper::discovery::{self, DiscoveryError};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{KeeperError, Lifetime};
use crate::ktransfer::group::assignor::assigned_partitions;
use crate::ktransfer::group::member::registration;

/// How long the claims of other members may contradict the assignment before the leaders are read again.
const MAX_CONFLICT: Duration = Duration::from_secs(3);

impl ZookeeperGroup {
    /// Ends the claims of a session that is not the current one. Then becomes a member of the current session, if any.
    pub(super) fn follow_session(&mut self) -> RoundResult {
        let epoch = self.keeper.epoch();
        if self.member.as_ref().is_some_and(|member| member.epoch != epoch) {
            warn!(
                "group {}: ZooKeeper session lost, and with it the claims on {} partitions; joining again",
                self.config.group,
                self.held.len()
            );
            for partition in self.held.keys().copied().collect::<Vec<_>>() {
                self.end_claim(partition);
            }
            let member = self.member.take().expect("a member, checked above");
            self.former_ids.push_back((member.id, Instant::now()));
            self.clear_assignment();
        }
        if self.member.is_none() {
            // A successful call proves that a session exists; the id must belong to one.
            self.keeper.read("/").map_err(to_reason)?;
            self.member = Some(Member { id: self.member_ids.next(), epoch: self.keeper.epoch() });
        }
        Ok(())
    }

    /// Reads members and partitions, registers if needed, and computes the assignment again if something has changed.
    pub(super) fn update_assignment(&mut self) -> RoundResult {
        let Some(member) = &self.member else { return Ok(()) };
        let mut members = match self.keeper.children(&paths::group_ids(&self.config.group)) {
            Err(KeeperError::NoNode(_)) => Vec::new(),
            members => members.map_err(to_reason)?,
        };
        if !members.contains(&member.id) {
            let path = paths::group_id(&self.config.group, &member.id);
            let registration = registration(&self.config.topic, SystemTime::now());
            match create_with_parents(&*self.keeper, &path, &registration, Lifetime::Ephemeral) {
                Ok(()) | Err(KeeperError::NodeExists(_)) => {
                    info!("group {}: joined as {}", self.config.group, member.id)
                }
                Err(error) => return Err(to_reason(error)),
            }
            members.push(member.id.clone());
        }
        // Registered under a former id while the session changed: such a node may belong to a session that is alive.
        for (id, _) in self.former_ids.iter().filter(|(id, _)| members.contains(id)) {
            self.claimant(member).unregister(id).map_err(to_reason)?;
        }
        members.retain(|id| self.former_ids.iter().all(|(former, _)| former != id));
        members.sort_unstable();
        let topic = self.config.topic.clone();
        let partitions = match discovery::partition_ids(&*self.keeper, &topic) {
            // It may be created later. Releasing its partitions does no harm: without the topic they cannot be read.
            Err(DiscoveryError::UnknownTopic(_)) => {
                self.warn_rate_limited(format!("topic {topic} does not exist in ZooKeeper, retrying"));
                Vec::new()
            }
            partitions => partitions.map_err(|error| error.to_string())?,
        };
        let must_read_leaders = self.conflict_since.is_some_and(|since| since.elapsed() >= MAX_CONFLICT);
        if members == self.members && partitions == self.partitions && !must_read_leaders {
            return Ok(());
        }
        let member = self.member.as_ref().expect("a member, checked above");
        let leaders = match partitions.as_slice() {
            [] => Vec::new(),
            _ => discovery::partitions(&*self.keeper, &topic).map_err(|error| error.to_string())?,
        };
        let assigned: BTreeSet<_> = assigned_partitions(&member.id, &members, &leaders).into_iter().collect();
        if assigned != self.assigned || members != self.members {
            info!(
                "group {}: {} of {} partitions assigned to this member, {} members",
                self.config.group,
                assigned.len(),
                leaders.len(),
                members.len()
            );
        }
        (self.members, self.partitions, self.assigned, self.conflict_since) = (members, partitions, assigned, None);
        Ok(())
    }

    fn clear_assignment(&mut self) {
        self.members.clear();
        self.assigned.clear();
        self.stray_claims.clear();
        self.conflict_since = None;
        // By then every node with such an id has been seen and deleted, or has expired.
        let old = 20 * self.keeper.session_timeout();
        self.former_ids.retain(|(_, ended)| ended.elapsed() < old);
    }
}
