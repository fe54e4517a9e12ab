//! Stores the offsets of the held partitions, and which messages above them are done.

use std::time::{Duration, Instant};

use log::warn;

use super::{ClaimStage, EARLY_INTERVAL, HeldPartition, RoundResult, StoreScope, ZookeeperGroup, to_reason};
use crate::broker::{Offset, PartitionId};
use crate::keeper::KeeperError;
use crate::ktransfer::group::claim::{Store, StoreOutcome};
use crate::ktransfer::group::mailbox::DoneAhead;

/// Number of partitions whose stores are in flight at the same time.
const STORES_AT_ONCE: usize = 64;
/// Interval for partitions with fewer than [`MANY_AHEAD`] messages ahead.
const RARE_AHEAD_INTERVAL: Duration = Duration::from_secs(2);
/// From this number of messages ahead, a crash would repeat enough pushes to store them every [`EARLY_INTERVAL`].
const MANY_AHEAD: i64 = 16;
/// When the commit point is beyond the stored offset by this number of messages, it is stored at the next early store.
/// So a crash repeats few pushes, whatever the store interval; a slow topic still causes few writes.
const MANY_DONE: i64 = 4;
/// Time between two early stores, for each partition stored before: at most 100 writes a second.
const EARLY_PAUSE_A_WRITE: Duration = Duration::from_millis(10);

impl HeldPartition {
    /// The offset to store; `None` before the first commit.
    fn next(&self) -> Option<Offset> {
        self.committed.or(self.stored)
    }

    pub(super) fn has_new_offset(&self) -> bool {
        self.committed.is_some() && self.committed != self.stored
    }

    /// Whether messages are done ahead that are not stored, and an offset that they can be stored with.
    pub(super) fn has_new_ahead(&self) -> bool {
        self.ahead != self.stored_ahead && self.next().is_some()
    }

    /// Whether the commit point has moved by so much that a crash would repeat many pushes.
    fn has_many_new_done(&self) -> bool {
        let (Some(committed), Some(stored)) = (self.committed, self.stored) else { return false };
        MANY_DONE <= committed.saturating_sub(stored).saturating_abs()
    }

    fn is_due(&self, scope: StoreScope, now: Instant) -> bool {
        let has_changed = self.has_new_offset() || self.has_new_ahead();
        match scope {
            StoreScope::All => has_changed,
            StoreScope::Urgent if self.is_urgent || self.stage == ClaimStage::Released => has_changed,
            StoreScope::Urgent => self.has_new_offset() && self.stored.is_none(),
            StoreScope::Early if self.has_many_new_done() => true,
            StoreScope::Early => {
                let n_ahead: i64 = self.ahead.ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
                let log = |ahead: &DoneAhead| (ahead.topic_id, ahead.leader_epoch);
                let is_other_log = log(&self.ahead) != log(&self.stored_ahead);
                let is_old = RARE_AHEAD_INTERVAL <= now.saturating_duration_since(self.ahead_stored_at);
                self.has_new_ahead() && (MANY_AHEAD <= n_ahead || is_other_log || is_old)
            }
        }
    }
}

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
        let due: Vec<PartitionId> =
            self.held.iter().filter(|(_, held)| held.is_due(scope, now)).map(|(partition, _)| *partition).collect();
        if scope != StoreScope::Urgent {
            let writes = u32::try_from(due.len()).unwrap_or(u32::MAX);
            self.next_early_store = now + EARLY_INTERVAL.max(EARLY_PAUSE_A_WRITE.saturating_mul(writes));
        }
        due.chunks(STORES_AT_ONCE).map(|some| self.store_some(some)).fold(Ok(()), Result::and)
    }

    /// Notes the positions of `StoreNow` that are stored already, so that no store follows.
    fn note_stored_positions(&mut self) {
        for (partition, held) in &mut self.held {
            if held.is_urgent && !held.has_new_offset() && !held.has_new_ahead() {
                held.is_urgent = false;
                if let Some(stored) = held.stored {
                    self.observers.receipts.note(*partition, held.generation, stored);
                }
            }
        }
    }

    fn store_some(&mut self, partitions: &[PartitionId]) -> RoundResult {
        let settled = partitions.iter().map(|partition| self.settle(*partition)).fold(Ok(()), Result::and);
        let Some(member) = &self.member else { return settled };
        let stores: Vec<Store<'_>> = partitions
            .iter()
            .filter_map(|partition| {
                // A store whose outcome is unknown is not repeated before it is settled.
                let held = self.held.get(partition).filter(|held| held.attempted.is_none())?;
                let (version, stored, next) = (held.version, held.stored, held.next()?);
                Some(Store { partition: *partition, version, stored, next, ahead: &held.ahead })
            })
            .collect();
        let outcomes = self.claimant(member).store_all(&stores);
        let attempts: Vec<_> = stores.iter().map(|store| (store.partition, store.next, store.ahead.clone())).collect();
        let mut failure = settled;
        for ((partition, next, ahead), outcome) in attempts.into_iter().zip(outcomes) {
            match outcome {
                Ok(StoreOutcome::Stored(version)) => {
                    let held = self.held.get_mut(&partition).expect("held, since it was stored");
                    self.observers.receipts.note(partition, held.generation, next);
                    (held.version, held.stored, held.stored_ahead) = (version, Some(next), ahead);
                    (held.ahead_stored_at, held.is_urgent) = (Instant::now(), false);
                }
                Ok(StoreOutcome::Fenced) => self.end_fenced(partition),
                Err(error) => {
                    let held = self.held.get_mut(&partition).expect("held, since its store was attempted");
                    if matches!(error, KeeperError::Unreachable(_)) && held.stored != Some(next) {
                        held.attempted = Some(next);
                    }
                    failure = failure.and(Err(to_reason(error)));
                }
            }
        }
        failure
    }

    /// Finds out whether a store without a response was carried out.
    fn settle(&mut self, partition: PartitionId) -> RoundResult {
        let (Some(member), Some(held)) = (&self.member, self.held.get(&partition)) else { return Ok(()) };
        let Some(attempted) = held.attempted else { return Ok(()) };
        match self.claimant(member).settle(partition, held.version, attempted).map_err(to_reason)? {
            Some(version) => {
                let held = self.held.get_mut(&partition).expect("held, checked above");
                if version != held.version {
                    (held.version, held.stored) = (version, Some(attempted));
                }
                held.attempted = None;
            }
            None => self.end_fenced(partition),
        }
        Ok(())
    }

    fn end_fenced(&mut self, partition: PartitionId) {
        warn!("group {}: claim on partition {partition} lost, another client wrote its offset node", self.config.group);
        self.end_claim(partition);
    }
}
