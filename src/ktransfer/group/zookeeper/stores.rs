//! Stores the offsets of the held partitions, and which messages above them are done.

use std::time::Instant;

use log::warn;

use super::{ClaimStage, HeldPartition, RoundResult, ZookeeperGroup, to_reason};
use crate::broker::PartitionId;
use crate::keeper::KeeperError;
use crate::ktransfer::group::claim::{Store, StoreOutcome};
use crate::ktransfer::group::progress::{EARLY_INTERVAL, StoreScope, early_pause};

/// Number of partitions whose stores are in flight at the same time.
const STORES_AT_ONCE: usize = 64;

impl ZookeeperGroup {
    /// Stores the partitions of `scope` that have changed. Returns the first failure, after an attempt for each of
    /// them.
    pub(super) fn store(&mut self, scope: StoreScope) -> RoundResult {
        let now = Instant::now();
        if self.member.is_none() {
            self.next_early_store = now + EARLY_INTERVAL;
            return Ok(());
        }
        self.note_stored_positions();
        let is_due = |(_, held): &(&PartitionId, &HeldPartition)| {
            held.progress.is_due(scope, held.stage == ClaimStage::Released, now)
        };
        let due: Vec<PartitionId> = self.held.iter().filter(is_due).map(|(partition, _)| *partition).collect();
        if scope != StoreScope::Urgent {
            self.next_early_store = now + early_pause(due.len());
        }
        due.chunks(STORES_AT_ONCE).map(|some| self.store_some(some)).fold(Ok(()), Result::and)
    }

    /// Notes the positions of `StoreNow` that are stored already, so that no store follows.
    fn note_stored_positions(&mut self) {
        for (partition, held) in &mut self.held {
            if let Some(stored) = held.progress.take_stored_start() {
                self.observers.receipts.note(*partition, held.generation, stored);
            }
        }
    }

    fn store_some(&mut self, partitions: &[PartitionId]) -> RoundResult {
        let settled = self.settle(partitions);
        let Some(member) = &self.member else { return settled };
        let stores: Vec<Store<'_>> = partitions
            .iter()
            .filter_map(|partition| {
                // A store whose outcome is unknown is not repeated before it is settled.
                let held = self.held.get(partition).filter(|held| held.attempted.is_none())?;
                let (version, progress) = (held.version, &held.progress);
                let (stored, next, ahead) = (progress.stored, progress.next()?, &progress.ahead);
                Some(Store { partition: *partition, version, stored, next, ahead })
            })
            .collect();
        let outcomes = self.claimant(member).store_all(&stores);
        let attempts: Vec<_> = stores.iter().map(|store| (store.partition, store.next, store.ahead.clone())).collect();
        let mut failure = settled;
        for ((partition, next, ahead), outcome) in attempts.into_iter().zip(outcomes) {
            match outcome {
                Ok(StoreOutcome::Stored(version)) => {
                    let held = self.held.get_mut(&partition).expect("held, since it was stored");
                    self.observers.receipts.note_store(partition, held.generation, next, &ahead);
                    held.version = version;
                    held.progress.note_stored(next, ahead);
                }
                Ok(StoreOutcome::Fenced) => self.end_fenced(partition),
                Err(error) => {
                    let held = self.held.get_mut(&partition).expect("held, since its store was attempted");
                    if matches!(error, KeeperError::Unreachable(_)) {
                        held.progress.note_unanswered(next, &ahead);
                        if held.progress.stored != Some(next) {
                            held.attempted = Some(next);
                        }
                    }
                    failure = failure.and(Err(to_reason(error)));
                }
            }
        }
        failure
    }

    /// Finds out which stores without a response were carried out.
    fn settle(&mut self, partitions: &[PartitionId]) -> RoundResult {
        let Some(member) = &self.member else { return Ok(()) };
        let attempt = |partition: &PartitionId| {
            let held = self.held.get(partition)?;
            Some((*partition, held.version, held.attempted?))
        };
        let attempts: Vec<_> = partitions.iter().filter_map(attempt).collect();
        let mut failure = Ok(());
        let versions = self.claimant(member).settle_all(&attempts);
        for ((partition, before, attempted), version) in attempts.into_iter().zip(versions) {
            match version {
                Ok(Some(version)) => {
                    let held = self.held.get_mut(&partition).expect("held, since its store was attempted");
                    if version != before {
                        (held.version, held.progress.stored) = (version, Some(attempted));
                    }
                    held.attempted = None;
                }
                Ok(None) => self.end_fenced(partition),
                Err(error) => failure = failure.and(Err(to_reason(error))),
            }
        }
        failure
    }

    fn end_fenced(&mut self, partition: PartitionId) {
        warn!("group {}: claim on partition {partition} lost, another client wrote its offset node", self.config.group);
        self.end_claim(partition);
    }
}
