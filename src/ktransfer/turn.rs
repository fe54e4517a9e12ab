//! A decision between two threads: either one takes the turn, or the other cancels it, whichever is first.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const TAKEN: u8 = 1;
const CANCELLED: u8 = 2;

/// A decision that is made once.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU8);

impl Turn {
    /// Returns whether it is taken, now or before.
    pub(super) fn take(&self) -> bool {
        self.decide(TAKEN)
    }

    /// Returns whether it is cancelled, now or before: it will not be taken.
    pub(super) fn cancel(&self) -> bool {
        self.decide(CANCELLED)
    }

    /// Whether it was taken.
    pub(super) fn is_taken(&self) -> bool {
        self.0.load(Ordering::SeqCst) == TAKEN
    }

    fn decide(&self, decision: u8) -> bool {
        match self.0.compare_exchange(OPEN, decision, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(before) => before == decision,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_decision_stays() {
        let (taken, cancelled) = (Turn::default(), Turn::default());
        assert!(taken.take() && taken.take() && !taken.cancel() && taken.is_taken());
        assert!(cancelled.cancel() && cancelled.cancel() && !cancelled.take() && !cancelled.is_taken());
    }
}
