//! A limit in bytes on the memory of all requests of a server together: incomplete heads, bodies, pipelined bytes; or
//! on the memory of its large responses.
//!
//! The capacity of a buffer is counted, not its content. The [`ByteLease`] of a request is passed on with the body;
//! dropping the lease releases the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of bytes that all leases together may not exceed. Clones share the budget.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    counters: Arc<BudgetCounters>,
}

#[derive(Debug)]
struct BudgetCounters {
    max: usize,
    used: AtomicUsize,
    /// Highest `used` since the last [`ByteBudget::take_peak`].
    peak: AtomicUsize,
}

impl ByteBudget {
    /// Creates a budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        ByteBudget { counters: Arc::new(BudgetCounters { max, used: AtomicUsize::new(0), peak: AtomicUsize::new(0) }) }
    }

    /// Creates a lease of 0 bytes, which can grow.
    pub fn lease(&self) -> ByteLease {
        ByteLease { budget: Some(self.clone()), bytes: 0 }
    }

    /// Returns the largest number of bytes that may be leased.
    pub fn max(&self) -> usize {
        self.counters.max
    }

    /// Returns the number of bytes leased now.
    pub fn used(&self) -> usize {
        self.counters.used.load(Ordering::Relaxed)
    }

    /// Returns the highest number of bytes that were leased at one time since the last call.
    pub fn take_peak(&self) -> usize {
        self.counters.peak.swap(0, Ordering::Relaxed)
    }

    fn reserve(&self, bytes: usize) -> bool {
        // Not added and taken back: a large reservation that fails would make small ones beside it fail for a moment.
        let grown = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.counters.max);
        let Ok(used) = self.counters.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) else {
            return false;
        };
        if used + bytes > self.counters.peak.load(Ordering::Relaxed) {
            self.counters.peak.fetch_max(used + bytes, Ordering::Relaxed);
        }
        true
    }

    fn release(&self, bytes: usize) {
        self.counters.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes leased from a budget; dropping the lease releases them.
#[derive(Debug, Default)]
pub struct ByteLease {
    budget: Option<ByteBudget>,
    bytes: usize,
}

impl ByteLease {
    /// Returns the size of the lease in bytes; 0 for a lease without a budget.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the largest size that the lease can have: the whole budget.
    pub fn max(&self) -> usize {
        self.budget.as_ref().map_or(usize::MAX, ByteBudget::max)
    }

    /// Grows the lease to `bytes`; if the budget is exhausted, returns false and leaves the lease as it was.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        match &self.budget {
            Some(budget) if more > 0 => {
                let fits = budget.reserve(more);
                if fits {
                    self.bytes = bytes;
                }
                fits
            }
            _ => true,
        }
    }

    /// Changes the lease to `bytes`, as [`ByteLease::grow_to`] does, but also shrinks a larger lease.
    pub fn set_to(&mut self, bytes: usize) -> bool {
        if let Some(budget) = self.budget.as_ref().filter(|_| bytes < self.bytes) {
            budget.release(self.bytes - bytes);
            self.bytes = bytes;
        }
        self.grow_to(bytes)
    }
}

impl ByteLease {
    /// Returns whether no bytes are leased from the budget.
    pub(super) fn is_budget_unused(&self) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.used() == 0)
    }

    /// Changes the lease to `bytes`, also if the budget is then exceeded. Returns whether it was exceeded before.
    pub(super) fn force_to(&mut self, bytes: usize) -> bool {
        let fits = self.set_to(bytes);
        let Some(budget) = self.budget.as_ref().filter(|_| !fits) else { return false };
        let used = budget.counters.used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
        used >= budget.counters.max
    }
}

impl Drop for ByteLease {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.as_ref().filter(|_| self.bytes > 0) {
            budget.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_a_lease_reserves_the_difference_and_dropping_it_releases_all() {
        let budget = ByteBudget::new(100);
        let mut first = budget.lease();
        let mut second = budget.lease();
        assert!(first.grow_to(60) && first.grow_to(50) && first.grow_to(60));
        assert!(!second.grow_to(41));
        assert_eq!(budget.used(), 60, "a failed growth reserves nothing");
        assert!(second.grow_to(40));
        assert!(!first.grow_to(61));
        assert!(first.set_to(10) && second.set_to(90) && !second.set_to(91) && second.set_to(40) && first.set_to(60));
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!(budget.used(), 0);
        assert_eq!((budget.take_peak(), budget.take_peak()), (100, 0));
        assert!(ByteLease::default().grow_to(usize::MAX), "a lease without a budget is not limited");
    }

    #[test]
    fn a_forced_lease_exceeds_the_budget_until_it_is_released() {
        let budget = ByteBudget::new(100);
        let (mut first, mut forced) = (budget.lease(), budget.lease());
        assert!(first.grow_to(90));
        assert!(!forced.force_to(30), "there was room before");
        assert_eq!(budget.used(), 120);
        assert!(!first.grow_to(91));
        assert!(budget.lease().force_to(1));
        assert!(!forced.force_to(20));
        assert_eq!(budget.used(), 110);
        drop(forced);
        assert!(first.grow_to(100));
    }

    #[test]
    fn a_reservation_that_fails_takes_nothing_from_those_beside_it() {
        let budget = ByteBudget::new(100);
        std::thread::scope(|scope| {
            let large = budget.clone();
            scope.spawn(move || (0..100_000).for_each(|_| assert!(!large.lease().grow_to(101))));
            (0..100_000).for_each(|_| assert!(budget.lease().grow_to(1)));
        });
    }
}
