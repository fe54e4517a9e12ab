//! In-flight slots: the bound `req_pool_size` on messages that wait for Kafka.
//!
//! Each message takes one slot. A request that finds too few free slots is refused with 503 at once; no request waits
//! for a slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// All slots of the daemon.
pub(super) struct SlotPool {
    used: Arc<AtomicUsize>,
    size: usize,
}

impl SlotPool {
    pub(super) fn new(size: usize) -> Self {
        SlotPool { used: Arc::default(), size }
    }

    /// Returns the number of slots, free or not: `req_pool_size`.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `count` slots. If fewer are free, takes none and returns how many are in use.
    pub(super) fn acquire(&self, count: usize) -> Result<InFlightSlots, usize> {
        let grown = |used: usize| used.checked_add(count).filter(|used| *used <= self.size);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown)
            .map(|_| InFlightSlots { used: Arc::clone(&self.used), count })
    }
}

/// Acquired slots. Dropping them releases them.
pub(super) struct InFlightSlots {
    used: Arc<AtomicUsize>,
    count: usize,
}

impl InFlightSlots {
    /// Returns the number of slots in use in the whole daemon, including these.
    pub(super) fn used_in_pool(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Moves one slot into a value of its own, which is released separately.
    pub(super) fn split_one(&mut self) -> InFlightSlots {
        let count = self.count.min(1);
        self.count -= count;
        InFlightSlots { used: Arc::clone(&self.used), count }
    }
}

impl Drop for InFlightSlots {
    fn drop(&mut self) {
        if self.count > 0 {
            self.used.fetch_sub(self.count, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_acquired_all_or_none_and_released_on_drop() {
        let pool = SlotPool::new(3);
        let mut two = pool.acquire(2).expect("two of three are free");
        assert_eq!(pool.acquire(2).err(), Some(2));
        assert_eq!(pool.acquire(usize::MAX).err(), Some(2));
        let one = two.split_one();
        assert_eq!((one.count, two.count, two.used_in_pool()), (1, 1, 2));
        drop(two);
        assert_eq!(pool.used(), 1);
        drop(one);
        assert_eq!(pool.used(), 0);
    }
}
