//! Commits the offsets of the held partitions with what is done ahead of them, and gives up released partitions.

use std::sync::Arc;
use std::time::Instant;

use log::warn;

use super::metadata::{self, CommitMetadata};
use super::{ClaimStage, HeldPartition, KafkaGroup, MAX_CALL, StepResult};
use crate::broker::membership::{CommitError, CommittedOffset};
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::group::Generation;
use crate::ktransfer::group::held_claims;
use crate::ktransfer::group::mailbox::DoneAhead;
use crate::ktransfer::group::progress::{StoreScope, unstored};

/// One commit in flight.
struct Store {
    partition: PartitionId,
    generation: Generation,
    next: Offset,
    ahead: DoneAhead,
}

impl KafkaGroup {
    /// Commits the partitions of `scope` that have changed, in one request. Returns the first failure.
    pub(super) fn store(&mut self, scope: StoreScope) -> StepResult {
        let deadline = self.begin_call();
        self.store_until(scope, deadline)
    }

    /// As [`store`](Self::store), with this deadline of the call.
    pub(super) fn store_until(&mut self, scope: StoreScope, deadline: Instant) -> StepResult {
        let (now, receipts) = (Instant::now(), self.observers.receipts.clone());
        for (partition, held) in &mut self.held {
            if let Some(stored) = held.progress.take_stored_start() {
                receipts.note(*partition, held.generation, stored);
            }
        }
        let due = self.held.iter().filter(|(_, held)| held.progress.is_due(scope, held.is_released(), now));
        let stores: Vec<Store> = due.filter_map(|(partition, held)| store_of(*partition, held)).collect();
        if stores.is_empty() {
            return Ok(());
        }
        let commits: Vec<CommittedOffset> = stores.iter().filter_map(|store| self.commit_of(store)).collect();
        let results = self.membership.commit(&commits, deadline);
        let (mut outcome, mut is_too_long) = (Ok(()), false);
        for (Store { partition, generation, next, ahead }, result) in stores.into_iter().zip(results) {
            let Some(held) = held_claims::current(&mut self.held, partition, generation) else { continue };
            match result {
                Ok(()) => {
                    receipts.note(partition, generation, next);
                    held.progress.note_stored(next, ahead);
                    self.has_stored = true;
                }
                Err(CommitError::MetadataTooLong) => is_too_long = true,
                Err(failure) => {
                    // A failed call may have taken its whole time: not again at once.
                    self.next_early_store = Instant::now() + MAX_CALL / 2;
                    outcome =
                        outcome.and(Err(format!("cannot store offset {next} of partition {partition}: {failure}")));
                }
            }
        }
        // Once for all partitions of a commit.
        if is_too_long { outcome.and(self.shorten_metadata()) } else { outcome }
    }

    fn commit_of(&self, store: &Store) -> Option<CommittedOffset> {
        let Store { partition, next, ahead, .. } = store;
        let metadata = CommitMetadata {
            token: self.held.get(partition)?.token,
            first_partitions: self.first_partitions,
            topic_id: ahead.topic_id,
            ranges: Arc::clone(&ahead.ranges),
        };
        Some(CommittedOffset {
            partition: *partition,
            offset: *next,
            leader_epoch: ahead.leader_epoch,
            metadata: metadata::encode(*next, &metadata, self.max_metadata_bytes),
        })
    }

    /// Gives up the released partitions whose offset is stored, and those for which that was not possible in time: a
    /// rebalance of the group waits for them.
    pub(super) fn finish_released(&mut self) {
        let leave_timeout = self.config.leave_timeout;
        let group = &self.config.group;
        self.held.retain(|partition, held| {
            let ClaimStage::Released(since) = held.stage else { return true };
            let is_stored = !held.progress.has_new_offset() && !held.progress.has_new_ahead();
            let is_over = leave_timeout < since.elapsed();
            if is_over && !is_stored {
                let unstored = unstored(std::iter::once((*partition, &held.progress)));
                warn!("group {group}: partition {partition} is given up: {unstored}the commit failed for too long");
            }
            !is_stored && !is_over
        });
        let held = &self.held;
        let is_waiting =
            |partition: &PartitionId| held.get(partition).is_some_and(|held| held.stage != ClaimStage::Active);
        let membership = &mut self.membership;
        self.revoked.retain(|(token, partitions)| {
            let is_waiting = partitions.iter().any(is_waiting);
            if !is_waiting {
                membership.released(*token);
            }
            is_waiting
        });
    }
}

/// Returns what to commit for a partition; `None` without an offset.
fn store_of(partition: PartitionId, held: &HeldPartition) -> Option<Store> {
    let next = held.progress.next()?;
    Some(Store { partition, generation: held.generation, next, ahead: held.progress.ahead.clone() })
}
