//! Which of the backends that can be used a push prefers, and the share of each in the pushes under way.
//!
//! While a backend fails its pushes quickly and the others have their share, it is the only one with room: without a
//! wait, every retry would go to it again. So a retry looks for room at another backend at intervals, as long as pushes
//! end there, but not for ever. First attempts leave it some of the room that becomes free, or they would take it
//! first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::retry_wait::RetryWait;
use super::{Backend, BackendRotation, Backends, NextPush};

/// How long a retry waits for another backend.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How long it waits while no push ends at another backend.
const MAX_QUIET: Duration = Duration::from_secs(1);
/// Interval at which a worker looks whether a backend has an address.
const NAME_CHECK_INTERVAL: Duration = Duration::from_millis(200);

impl NextPush {
    /// Whether the push, for which the backend at `index` was found, waits for another one. `n_usable`: number of
    /// backends in use.
    pub(super) fn waits_for_other(&self, index: Option<usize>, n_usable: usize) -> bool {
        self.may_wait && n_usable > 1 && index.is_some() && index == self.last
    }
}

impl Backends {
    /// Returns the usable backends whose name has no address yet; none if no usable one has an address.
    pub(super) fn spared(&self, is_usable: impl Fn(usize) -> bool) -> Vec<usize> {
        if !self.unresolved.has_any() {
            return Vec::new();
        }
        let usable = (0..self.backends.len()).filter(|index| is_usable(*index));
        let (spared, others): (Vec<_>, Vec<_>) = usable.partition(|index| self.is_unresolved(*index));
        if others.is_empty() { Vec::new() } else { spared }
    }

    /// Whether every backend is in use and has an address. Takes no lock.
    pub(in crate::ktransfer) fn are_all_ready(&self) -> bool {
        self.are_all_in_use() && !self.unresolved.has_any()
    }

    /// Returns when to look whether a backend has an address; `None` if all have one.
    pub(super) fn next_look_for_names(&self, now: Instant) -> Option<Instant> {
        self.unresolved.has_any().then(|| now + NAME_CHECK_INTERVAL)
    }

    /// Whether the name of the backend has no address yet.
    pub(super) fn is_unresolved(&self, index: usize) -> bool {
        self.unresolved.has(&self.backends[index].server)
    }

    /// Returns the next backend of the round robin for which `has_turn` returns a value. Prefers, for a first attempt,
    /// one that returns true (it need not be spared), then one that has less than its share of the pushes under way: a
    /// backend that never answers must not get them all. For a retry that comes first, then that it is not `last`.
    pub(super) fn next_of(
        &self,
        rotation: &BackendRotation,
        last: Option<usize>,
        n_usable: usize,
        has_turn: impl Fn(usize) -> Option<bool>,
    ) -> Option<usize> {
        let mut best: Option<((bool, bool, bool), usize)> = None;
        for index in rotation.order(self.backends.len()) {
            let Some(is_turn) = has_turn(index) else { continue };
            let is_full = !self.has_room(index, n_usable);
            let rank = match last {
                None => (!is_turn, is_full, self.is_kept_for_retries(index, n_usable)),
                Some(last) => (is_full, last == index, !is_turn),
            };
            if best.is_none_or(|(best_rank, _)| rank < best_rank) {
                best = Some((rank, index));
            }
            if rank == (false, false, false) {
                break;
            }
        }
        best.map(|(_, index)| index)
    }

    /// Whether a backend has less than its share of the pushes under way, where `n` backends share them.
    pub(super) fn has_room(&self, index: usize, n: usize) -> bool {
        self.backends[index].n_under_way.load(Ordering::Relaxed) < self.share(n)
    }

    /// Returns the share of one of `n` backends, in pushes under way.
    pub(super) fn share(&self, n: usize) -> usize {
        self.worker_num.div_ceil(n.max(1))
    }

    /// Begins the wait of a retry whose latest attempt was at `last`; `None` if that is no backend any more.
    pub(crate) fn begin_retry_wait(&self, last: &str, now: Instant) -> Option<RetryWait> {
        let last = &self.backends[self.index_of(last)?].retries;
        Some(RetryWait::begin(last, &self.n_waiting_retries, now))
    }

    /// Whether a retry may wait longer.
    pub(crate) fn may_wait(&self, wait: &RetryWait, now: Instant) -> bool {
        let others = self.backends.iter().map(|backend| &backend.retries).filter(|of| !Arc::ptr_eq(of, &wait.last));
        let quiet_since = others.map(|other| other.last_end()).chain([wait.since]).max().unwrap_or(wait.since);
        now < wait.since + MAX_WAIT && now < quiet_since + MAX_QUIET
    }

    /// Whether the room of a backend is kept for retries of others: up to half of its share.
    fn is_kept_for_retries(&self, index: usize, n_usable: usize) -> bool {
        let n_waiting = self.n_waiting_retries.load(Ordering::Relaxed);
        if n_waiting == 0 {
            return false;
        }
        let Backend { n_under_way, retries, .. } = &*self.backends[index];
        let share = self.share(n_usable);
        let n_kept = n_waiting.saturating_sub(retries.n_waiting()).min(share.div_ceil(2));
        share <= n_under_way.load(Ordering::Relaxed) + n_kept
    }
}
