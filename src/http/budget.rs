//! A bound, in bytes, on what all connections together keep in memory: half-read heads, bodies, what was sent ahead.
//!
//! Memory is counted as it is allocated, not as it is filled, and given back when the [`ByteLease`] is dropped, wherever the
//! body went meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes and no more. Clones share the bytes.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    most: usize,
    used: AtomicUsize,
    /// The most that was used since somebody asked.
    high: AtomicUsize,
}

impl ByteBudget {
    /// A budget of `most` bytes.
    pub fn new(most: usize) -> Self {
        ByteBudget { shared: Arc::new(Shared { most, used: AtomicUsize::new(0), high: AtomicUsize::new(0) }) }
    }

    /// A lease of nothing, which can grow.
    pub fn lease(&self) -> ByteLease {
        ByteLease { budget: Some(self.clone()), bytes: 0 }
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> usize {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were taken at a time since this was last asked.
    pub fn take_high(&self) -> usize {
        self.shared.high.swap(0, Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let used = self.shared.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = used.saturating_add(bytes) <= self.shared.most;
        if !fits {
            self.give(bytes);
        } else if used + bytes > self.shared.high.load(Ordering::Relaxed) {
            self.shared.high.fetch_max(used + bytes, Ordering::Relaxed);
        }
        fits
    }

    fn give(&self, bytes: usize) {
        self.shared.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug, Default)]
pub struct ByteLease {
    budget: Option<ByteBudget>,
    bytes: usize,
}

impl ByteLease {
    /// Takes what is missing to `bytes` in all; false, and nothing taken, where the budget has not got it.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        match &self.budget {
            Some(budget) if more > 0 => {
                let fits = budget.take(more);
                if fits {
                    self.bytes = bytes;
                }
                fits
            }
            _ => true,
        }
    }

    /// As [`ByteLease::grow_to`], and gives back what is beyond `bytes`.
    pub fn set_to(&mut self, bytes: usize) -> bool {
        if let Some(budget) = self.budget.as_ref().filter(|_| bytes < self.bytes) {
            budget.give(self.bytes - bytes);
            self.bytes = bytes;
        }
        self.grow_to(bytes)
    }
}

impl Drop for ByteLease {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.as_ref().filter(|_| self.bytes > 0) {
            budget.give(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_takes_what_is_missing_and_gives_all_back() {
        let budget = ByteBudget::new(100);
        let mut first = budget.lease();
        let mut second = budget.lease();
        assert!(first.grow_to(60) && first.grow_to(50) && first.grow_to(60));
        assert!(!second.grow_to(41));
        assert_eq!(budget.used(), 60, "a refusal takes nothing");
        assert!(second.grow_to(40));
        assert!(!first.grow_to(61));
        assert!(first.set_to(10) && second.set_to(90) && !second.set_to(91) && second.set_to(40) && first.set_to(60));
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!(budget.used(), 0);
        assert_eq!((budget.take_high(), budget.take_high()), (100, 0));
        assert!(ByteLease::default().grow_to(usize::MAX), "a lease of no budget is not limited");
    }
}
