//! Follows the ZooKeeper session, registers the member, and computes which partitions are assigned to this member.

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
    /// Ends the claims of a session that is no longer the current one. Then creates the member's id for the current
    /// session. Fails if there is no session.
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
            // An id must belong to a session, and a successful call proves that a session exists.
            self.keeper.read("/").map_err(to_reason)?;
            self.member = Some(Member { id: self.member_ids.next(), epoch: self.keeper.epoch() });
        }
        Ok(())
    }

    /// Reads the members and the partitions, registers this member if it is missing, and computes the assignment again
    /// if members or partitions have changed or a conflict lasts.
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
        // A registration that was sent while the session changed may have created a node with a former id in a session
        // that is alive. Such a node does not expire, so it is deleted here.
        for (id, _) in self.former_ids.iter().filter(|(id, _)| members.contains(id)) {
            self.claimant(member).unregister(id).map_err(to_reason)?;
        }
        members.retain(|id| self.former_ids.iter().all(|(former, _)| former != id));
        members.sort_unstable();
        let topic = self.config.topic.clone();
        let partitions = match discovery::partition_ids(&*self.keeper, &topic) {
            // The topic may be created later. Until then its partitions are released: without the topic they cannot be
            // read.
            Err(DiscoveryError::UnknownTopic(_)) => {
                self.warn_rate_limited(format!("topic {topic} does not exist in ZooKeeper, retrying"));
                self.topic_was_missing = true;
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
        // After 20 session timeouts, every node with a former id has been deleted by this member or has expired.
        let old = 20 * self.keeper.session_timeout();
        self.former_ids.retain(|(_, ended)| ended.elapsed() < old);
    }
}
