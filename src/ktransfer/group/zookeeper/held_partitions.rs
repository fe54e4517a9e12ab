//! Claims and releases partitions until the held partitions are the assigned ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use log::warn;

use super::{CLAIMS_AT_ONCE, ClaimStage, HeldPartition, RoundResult, ZookeeperGroup, to_reason};
use crate::broker::{Offset, PartitionId};
use crate::keeper::{Epoch, KeeperError, paths};
use crate::ktransfer::group::claim::ClaimOutcome;
use crate::ktransfer::group::mailbox::DoneAhead;
use crate::ktransfer::group::progress::Progress;
use crate::ktransfer::group::{Claim, Generation, GroupEvent, StoredPosition};

impl ZookeeperGroup {
    /// Starts to release held partitions that are not assigned, and lists assigned partitions to claim.
    pub(super) fn reconcile(&mut self) -> RoundResult {
        if self.member.is_none() {
            return Ok(());
        }
        let owned = match self.keeper.children(&paths::owners(&self.config.group, &self.config.topic)) {
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
        for deleted in self.held.keys().copied().filter(|held| !owned.contains(held)).collect::<Vec<_>>() {
            warn!("group {}: claim on partition {deleted} lost, its owner node was deleted", self.config.group);
            self.end_claim(deleted);
        }
        let is_conflict = |partition: &PartitionId| match owned.contains(partition) {
            false => !self.assigned.contains(partition),
            true => {
                let is_own = self.held.contains_key(partition) || self.stray_claims.contains(partition);
                self.assigned.contains(partition) && !is_own
            }
        };
        let has_conflict = self.partitions.iter().any(is_conflict);
        self.conflict_since = has_conflict.then(|| self.conflict_since.unwrap_or_else(Instant::now));
        self.to_claim = self.assigned.iter().copied().filter(|assigned| !self.held.contains_key(assigned)).collect();
        self.prepare_offset_nodes()?;
        let (assigned, held) = (&self.assigned, &self.held);
        self.foreign_since.retain(|partition, _| {
            owned.contains(partition) && assigned.contains(partition) && !held.contains_key(partition)
        });
        self.note_unowned(&owned);
        self.delete_stray_claims()
    }

    /// Claims the next partitions of the list, unless the dispatcher has not received all events. Fails if ZooKeeper is
    /// unreachable or the session has ended.
    pub(super) fn claim_some(&mut self) -> RoundResult {
        if !self.pending_events.is_empty() || self.to_claim.is_empty() {
            return Ok(());
        }
        let Some(member) = &self.member else { return Ok(()) };
        let epoch = member.epoch;
        let partitions: Vec<_> = self.to_claim.drain(..self.to_claim.len().min(CLAIMS_AT_ONCE)).collect();
        // Recorded before the attempt, because the attempt may create the owner node and then fail.
        self.stray_claims.extend(&partitions);
        let outcomes = self.claimant(member).claim_all(&partitions);
        if self.keeper.epoch() != epoch {
            return Err("ZooKeeper session ended while partitions were claimed, retrying".into());
        }
        // After the claims: a partition that was paused before is not pushed.
        self.read_pauses();
        let mut failure = Ok(());
        for (partition, outcome) in partitions.into_iter().zip(outcomes) {
            match outcome {
                Ok(outcome) => self.on_claim(partition, epoch, outcome),
                Err(error @ KeeperError::Unreachable(_)) => failure = Err(to_reason(error)),
                // Another client wrote a node at the same moment. The next round retries this partition.
                Err(error) => {
                    self.warn_rate_limited(format!("cannot claim partition {partition} yet, retrying: {error}"));
                }
            }
        }
        failure
    }

    fn on_claim(&mut self, partition: PartitionId, epoch: Epoch, outcome: ClaimOutcome) {
        match outcome {
            ClaimOutcome::Claimed { version, token, position, ahead } => {
                self.hold(partition, epoch, (version, token), position, ahead);
            }
            ClaimOutcome::Owned => {
                self.stray_claims.remove(&partition);
                self.foreign_since.entry(partition).or_insert_with(Instant::now);
            }
            // The owner node stays: another member could not read the offset either.
            ClaimOutcome::Unreadable(bad) => {
                let path = paths::offset(&self.config.group, &self.config.topic, partition);
                self.unreadable.insert(partition, format!("correct the data of node {path}: {bad}"));
            }
        }
    }

    fn hold(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
        (version, token): (i32, u64),
        stored: Option<Offset>,
        ahead: DoneAhead,
    ) {
        self.last_generation += 1;
        let generation = Generation(self.last_generation);
        let fence = self.leases.new_fence(epoch);
        let position = stored.map(|next| StoredPosition {
            next,
            topic_id: ahead.topic_id,
            leader_epoch: ahead.leader_epoch,
            done_ahead: Arc::clone(&ahead.ranges),
            read_epoch: ahead.read_epoch,
        });
        let claim = Claim { partition, generation, fence: Arc::clone(&fence), token, position };
        let held = HeldPartition {
            generation,
            fence,
            version,
            attempted: None,
            progress: Progress::new(stored, ahead),
            stage: ClaimStage::Active,
        };
        self.held.insert(partition, held);
        self.stray_claims.remove(&partition);
        self.unreadable.remove(&partition);
        self.pending_events.push_back(GroupEvent::Gained(claim));
    }

    /// Deletes the owner nodes of released partitions. Must be called after the offsets are stored, because the next
    /// owner reads them.
    pub(super) fn delete_released(&mut self) -> RoundResult {
        let Some(member) = &self.member else { return Ok(()) };
        let is_released = |held: &HeldPartition| held.stage == ClaimStage::Released;
        let released: Vec<_> =
            self.held.iter().filter(|(_, held)| is_released(held)).map(|(partition, _)| *partition).collect();
        if released.is_empty() {
            return Ok(());
        }
        let results = self.claimant(member).release_all(&released);
        let mut failure = Ok(());
        for (partition, result) in released.into_iter().zip(results) {
            match result {
                Ok(()) => drop(self.held.remove(&partition)),
                Err(error) => failure = failure.and(Err(to_reason(error))),
            }
        }
        failure
    }

    /// Deletes owner nodes of this member that belong to no claim, unless the partition is assigned and will be claimed
    /// again.
    pub(super) fn delete_stray_claims(&mut self) -> RoundResult {
        let strays: Vec<_> = self.stray_claims.difference(&self.assigned).copied().collect();
        let Some(member) = self.member.as_ref().filter(|_| !strays.is_empty()) else { return Ok(()) };
        let results = self.claimant(member).release_all(&strays);
        let mut failure = Ok(());
        for (partition, result) in strays.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    self.stray_claims.remove(&partition);
                    self.unreadable.remove(&partition);
                }
                Err(error) => failure = failure.and(Err(to_reason(error))),
            }
        }
        failure
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
