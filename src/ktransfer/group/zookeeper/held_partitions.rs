//! Claims and releases partitions until the held partitions are the assigned ones, and stores their offsets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use log::warn;

use super::{ClaimStage, HeldPartition, RoundResult, ZookeeperGroup, to_reason};
use crate::broker::PartitionId;
use crate::clock::BootTime;
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{KeeperError, Lifetime};
use crate::ktransfer::group::claim::{ClaimOutcome, StoreOutcome};
use crate::ktransfer::group::{Claim, Generation, GroupEvent, StoredPosition, TimedFence};

impl ZookeeperGroup {
    /// Starts to release held partitions that are not assigned, and claims assigned partitions that are not held.
    pub(super) fn reconcile(&mut self) -> RoundResult {
        if self.member.is_none() {
            return Ok(());
        }
        let owners = match self.keeper.children(&paths::owners(&self.config.group, &self.config.topic)) {
            Err(KeeperError::NoNode(_)) => BTreeSet::new(),
            owners => owners.map_err(to_reason)?.iter().filter_map(|name| paths::parse_partition(name)).collect(),
        };
        for (partition, held) in &mut self.held {
            if held.stage == ClaimStage::Active && !self.assigned.contains(partition) {
                held.stage = ClaimStage::Releasing;
                self.pending_events
                    .push_back(GroupEvent::Releasing { partition: *partition, generation: held.generation });
            }
        }
        // A missing owner node was deleted by hand. A later round may claim the partition again.
        for deleted in self.held.keys().copied().filter(|held| !owners.contains(held)).collect::<Vec<_>>() {
            warn!("group {}: claim on partition {deleted} lost, its owner node was deleted", self.config.group);
            self.end_claim(deleted);
        }
        let mut has_conflict =
            self.partitions.iter().any(|partition| !owners.contains(partition) && !self.assigned.contains(partition));
        if self.pending_events.is_empty() {
            let missing: Vec<_> =
                self.assigned.iter().copied().filter(|assigned| !self.held.contains_key(assigned)).collect();
            if !missing.is_empty() {
                self.prepare_offset_nodes()?;
            }
            for partition in missing {
                has_conflict |= !self.claim(partition)?;
            }
        }
        if has_conflict {
            self.conflict_since.get_or_insert_with(Instant::now);
        } else {
            self.conflict_since = None;
        }
        self.delete_stray_claims()
    }

    /// Distinguishes partitions that are new to the group from those that exist when the group begins. While the group
    /// has no stored offset, each partition gets an offset node without an offset, so `start_from` decides about it. A
    /// partition that has no node once the group has offsets was added to the topic later: nothing in it is older than
    /// the group, so it is read from its beginning. So is a topic that is younger than the group.
    fn prepare_offset_nodes(&mut self) -> RoundResult {
        self.group_has_offsets = false;
        let (group, topic) = (&self.config.group, &self.config.topic);
        let names = match self.keeper.children(&paths::offsets(group, topic)) {
            Err(KeeperError::NoNode(_)) => Vec::new(),
            names => names.map_err(to_reason)?,
        };
        let known: BTreeSet<_> = names.iter().filter_map(|name| paths::parse_partition(name)).collect();
        for partition in &known {
            let node = self.keeper.read(&paths::offset(group, topic, *partition)).map_err(to_reason)?;
            // An unreadable offset is an offset, too.
            if node.is_some_and(|node| paths::parse_offset(&node.data) != Ok(None)) {
                self.group_has_offsets = true;
                return Ok(());
            }
        }
        let is_new_topic = self.topic_was_missing && known.is_empty();
        let data = if is_new_topic { paths::offset_text(0) } else { paths::NOTHING_STORED.to_vec() };
        for partition in self.partitions.iter().filter(|partition| !known.contains(partition)) {
            let node = paths::offset(group, topic, *partition);
            match create_with_parents(&*self.keeper, &node, &data, Lifetime::Persistent) {
                Ok(()) | Err(KeeperError::NodeExists(_)) => {}
                Err(error) => return Err(to_reason(error)),
            }
        }
        self.group_has_offsets = is_new_topic;
        Ok(())
    }

    /// Tries to claim `partition`. Returns false if another member owns it, and true in all other cases, even if the
    /// claim has to be retried. Fails if ZooKeeper is unreachable or the session is lost.
    fn claim(&mut self, partition: PartitionId) -> Result<bool, String> {
        let member = self.member.as_ref().expect("only a member claims");
        let epoch = member.epoch;
        // Recorded before the attempt, because the attempt may create the owner node and then fail.
        self.stray_claims.insert(partition);
        let outcome = match self.claimant(member).claim(partition, self.group_has_offsets) {
            Err(error @ KeeperError::Unreachable(_)) => return Err(to_reason(error)),
            // Another client wrote a node at the same moment. The next round retries this partition; the claims of the
            // other partitions continue.
            Err(error) => {
                self.warn_rate_limited(format!("cannot claim partition {partition} yet, retrying: {error}"));
                return Ok(true);
            }
            Ok(outcome) => outcome,
        };
        if self.keeper.epoch() != epoch {
            // The owner node may belong to another session than `epoch`, and a lease for `epoch` would not cover it.
            return Err(format!("ZooKeeper session lost while claiming partition {partition}, retrying"));
        }
        match outcome {
            ClaimOutcome::Claimed { version, position } => {
                self.last_generation += 1;
                let generation = Generation(self.last_generation);
                let fence = TimedFence::until(self.lease_end(epoch).unwrap_or_else(BootTime::now));
                let (stage, claim_fence) = (ClaimStage::Active, Arc::clone(&fence));
                let (stored, committed, is_urgent) = (position, None, false);
                let held = HeldPartition { generation, fence, version, stored, committed, is_urgent, stage };
                self.held.insert(partition, held);
                self.stray_claims.remove(&partition);
                self.pending_events.push_back(GroupEvent::Gained(Claim {
                    partition,
                    generation,
                    fence: claim_fence,
                    // A claim writes the offset node, so every claim of the partition has a higher version.
                    token: u64::try_from(version).unwrap_or(0),
                    position: position.map(StoredPosition::at),
                }));
                Ok(true)
            }
            ClaimOutcome::OwnedBy(owner) => {
                self.stray_claims.remove(&partition);
                self.delete_former_owner(partition, &owner).map(|()| false)
            }
            ClaimOutcome::Unreadable(bad) => {
                let path = paths::offset(&self.config.group, &self.config.topic, partition);
                self.warn_rate_limited(format!(
                    "partition {partition} is not read until node {path} is corrected: {bad}"
                ));
                Ok(true)
            }
        }
    }

    /// Deletes an owner node with an id that this member had in a former session. Such a node normally expires with the
    /// former session. But ZooKeeper may have created it late, in a session that is alive, so it is deleted once the
    /// former session has certainly expired.
    fn delete_former_owner(&self, partition: PartitionId, owner: &str) -> RoundResult {
        let Some(member) = &self.member else { return Ok(()) };
        let has_expired = |ended: &Instant| ended.elapsed() > 2 * self.keeper.session_timeout();
        match self.former_ids.iter().find(|(id, ended)| id == owner && has_expired(ended)) {
            Some((id, _)) => self.claimant(member).delete_owner(partition, id).map_err(to_reason),
            None => Ok(()),
        }
    }

    /// Stores the commits of all partitions; with `urgent_only` only those of released partitions, of partitions
    /// without a stored offset, and those of the command `StoreNow`. A partition without a stored offset is urgent
    /// because the next owner would look `start_from` up again and might start at another offset.
    pub(super) fn store(&mut self, urgent_only: bool) -> RoundResult {
        for partition in self.held.keys().copied().collect::<Vec<_>>() {
            let (Some(member), Some(held)) = (&self.member, self.held.get(&partition)) else { continue };
            let Some(next) = held.committed.filter(|next| held.stored != Some(*next)) else { continue };
            let is_urgent = held.is_urgent || held.stage == ClaimStage::Released || held.stored.is_none();
            if urgent_only && !is_urgent {
                continue;
            }
            match self.claimant(member).store(partition, next, held.version).map_err(to_reason)? {
                StoreOutcome::Stored(version) => {
                    let held = self.held.get_mut(&partition).expect("held, checked above");
                    (held.version, held.stored, held.is_urgent) = (version, Some(next), false);
                }
                StoreOutcome::Fenced => {
                    warn!(
                        "group {}: claim on partition {partition} lost, another client wrote its offset node",
                        self.config.group
                    );
                    self.end_claim(partition);
                }
            }
        }
        Ok(())
    }

    /// Deletes the owner nodes of released partitions. Must be called after [`Self::store`], because the next owner
    /// reads the stored offset.
    pub(super) fn delete_released(&mut self) -> RoundResult {
        let released =
            self.held.iter().filter(|(_, held)| held.stage == ClaimStage::Released).map(|(partition, _)| *partition);
        for partition in released.collect::<Vec<_>>() {
            let Some(member) = &self.member else { break };
            self.claimant(member).release(partition).map_err(to_reason)?;
            self.held.remove(&partition);
        }
        Ok(())
    }

    /// Deletes owner nodes of this member that belong to no claim, unless the partition is assigned and will be claimed
    /// again.
    pub(super) fn delete_stray_claims(&mut self) -> RoundResult {
        for partition in self.stray_claims.difference(&self.assigned).copied().collect::<Vec<_>>() {
            let Some(member) = &self.member else { break };
            self.claimant(member).release(partition).map_err(to_reason)?;
            self.stray_claims.remove(&partition);
        }
        Ok(())
    }

    /// Ends a claim that was lost and queues the event `Lost`. The owner node of the claim may still exist.
    pub(super) fn end_claim(&mut self, partition: PartitionId) {
        self.stray_claims.insert(partition);
        let Some(held) = self.held.remove(&partition) else { return };
        held.fence.end();
        // After it has sent `Release`, the dispatcher does not know this generation any more.
        if held.stage != ClaimStage::Released {
            self.pending_events.push_back(GroupEvent::Lost { partition, generation: held.generation });
        }
    }
}
