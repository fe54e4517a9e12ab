//! Which of the backends that can be used a push prefers, and the share of each in the pushes under way.

use std::sync::atomic::Ordering;

use super::{BackendRotation, Backends};

impl Backends {
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
}
