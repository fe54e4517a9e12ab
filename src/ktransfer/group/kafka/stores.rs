//! Commits the offsets of the held partitions with what is done ahead of them, and gives up released partitions.

use std::sync::Arc;
use std::time::Instant;

use log::warn;

use super::metadata::{self, CommitMetadata};
use super::pause_fields::{GroupPauses, PauseFields};
use super::{ClaimStage, HeldPartition, KafkaGroup, MAX_CALL, StepResult};
use crate::broker::membership::{CommitError, CommittedOffset};
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::group::Generation;
use crate::ktransfer::group::held_claims;
use crate::ktransfer::group::mailbox::DoneAhead;
use crate::ktransfer::group::progress::{EARLY_INTERVAL, StoreScope, early_pause, unstored};

/// One commit in flight.
pub(super) struct Store {
    pub(super) partition: PartitionId,
    generation: Generation,
    next: Offset,
    ahead: DoneAhead,
    pauses: PauseFields,
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
        let known = &self.pausing.known;
        let is_due = |(partition, held): &(&PartitionId, &HeldPartition)| {
            let has_new_pauses = match &held.stored_pauses {
                Some(stored) => scope != StoreScope::Early && known.fields(**partition) != *stored,
                // After a commit that failed: not at once.
                None => scope != StoreScope::Urgent,
            };
            has_new_pauses || held.progress.is_due(scope, held.is_released(), now)
        };
        let due: Vec<Store> =
            self.held.iter().filter(is_due).filter_map(|(id, held)| store_of(*id, held, known)).collect();
        if scope != StoreScope::Urgent {
            self.next_early_store = now + early_pause(due.len());
        }
        self.commit(due, deadline).outcome
    }

    /// Commits these, in one request.
    pub(super) fn commit(&mut self, stores: Vec<Store>, deadline: Instant) -> Committed {
        let mut done = Committed { outcome: Ok(()), n_stored: 0, is_uncertain: false };
        let (mut commits, mut sent) = (Vec::new(), Vec::new());
        for store in stores {
            match self.commit_of(&store) {
                Some(commit) => {
                    commits.push(commit);
                    sent.push(store);
                }
                None => done.add_failure(self.no_room_for_pause(store.partition)),
            }
        }
        if commits.is_empty() {
            return done;
        }
        let began = Instant::now();
        let results = self.membership.commit(&commits, deadline);
        // A failed call may have taken its whole time: not again at once. During a rebalance it fails quickly.
        let retry_at = Instant::now() + began.elapsed().clamp(EARLY_INTERVAL, MAX_CALL / 2);
        let mut is_too_long = false;
        for (Store { partition, generation, next, ahead, pauses }, result) in sent.into_iter().zip(results) {
            let Some(held) = held_claims::current(&mut self.held, partition, generation) else { continue };
            match result {
                Ok(()) => {
                    self.observers.receipts.note_store(partition, generation, next, &ahead);
                    held.progress.note_stored(next, ahead);
                    held.stored_pauses = Some(pauses);
                    self.has_stored = true;
                    done.n_stored += 1;
                }
                Err(CommitError::MetadataTooLong) => is_too_long = true,
                Err(failure) => {
                    self.next_early_store = self.next_early_store.max(retry_at);
                    let is_uncertain = matches!(failure, CommitError::Failed(_));
                    done.is_uncertain |= is_uncertain;
                    if is_uncertain {
                        held.progress.note_unanswered(next, &ahead);
                        held.stored_pauses.take_if(|stored| *stored != pauses);
                    }
                    done.add_failure(format!("cannot store offset {next} of partition {partition}: {failure}"));
                }
            }
        }
        // Once for all partitions of a commit.
        if is_too_long && let Err(reason) = self.shorten_metadata() {
            done.add_failure(reason);
        }
        done
    }

    /// Returns what the brokers are to store; `None` without room for a pause.
    pub(super) fn commit_of(&self, store: &Store) -> Option<CommittedOffset> {
        let Store { partition, next, ahead, pauses, .. } = store;
        let metadata = CommitMetadata {
            token: self.held.get(partition)?.token,
            pauses: pauses.clone(),
            first_partitions: self.first_partitions,
            topic_id: ahead.topic_id,
            ranges: Arc::clone(&ahead.ranges),
            read_epoch: ahead.read_epoch,
        };
        Some(CommittedOffset {
            partition: *partition,
            offset: *next,
            leader_epoch: ahead.leader_epoch,
            metadata: metadata::encode(*next, &metadata, self.max_metadata_bytes)?,
        })
    }

    /// Returns what to commit of these partitions with the pauses `known`; those without an offset are left out.
    pub(super) fn stores_of(&self, is_meant: impl Fn(PartitionId) -> bool, known: &GroupPauses) -> Vec<Store> {
        let meant = self.held.iter().filter(|(partition, _)| is_meant(**partition));
        meant.filter_map(|(partition, held)| store_of(*partition, held, known)).collect()
    }

    /// Returns the reason why nothing is committed for a paused partition.
    pub(super) fn no_room_for_pause(&self, partition: PartitionId) -> String {
        format!(
            "offset.metadata.max.bytes of the brokers has no room for the pause of partition {partition} ({} bytes were \
             tried): raise it, and restart",
            self.max_metadata_bytes
        )
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

/// How a commit ended.
pub(super) struct Committed {
    /// The first failure.
    pub(super) outcome: StepResult,
    /// Number of partitions that are stored.
    pub(super) n_stored: usize,
    /// Whether partitions may be stored although there was no confirmation.
    pub(super) is_uncertain: bool,
}

impl Committed {
    fn add_failure(&mut self, reason: String) {
        let before = std::mem::replace(&mut self.outcome, Ok(()));
        self.outcome = before.and(Err(reason));
    }
}

/// Returns what to commit for a partition; `None` without an offset.
fn store_of(partition: PartitionId, held: &HeldPartition, known: &GroupPauses) -> Option<Store> {
    let (next, pauses) = (held.progress.next()?, known.fields(partition));
    Some(Store { partition, generation: held.generation, next, ahead: held.progress.ahead.clone(), pauses })
}
