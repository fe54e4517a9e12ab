//! The fence of a claim: the time until which a push of the claim may begin or continue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::BootTime;

/// The value of a fence whose claim has ended.
const ENDED: u64 = 0;

/// The time limit of one claim. The group extends it with each proof that the claim is still held, and ends it with the
/// claim. A worker's check reads one atomic number.
#[derive(Debug)]
pub struct TimedFence {
    /// Nanoseconds of [`BootTime`]; [`ENDED`] after the end of the claim.
    until: AtomicU64,
}

impl TimedFence {
    /// Creates the fence of a claim that is held until `until`, unless it is extended.
    pub fn until(until: BootTime) -> Arc<TimedFence> {
        Arc::new(TimedFence { until: AtomicU64::new(until.as_nanos().max(ENDED + 1)) })
    }

    /// Moves the time limit forward to `until`. Has no effect if the limit is later already, or after
    /// [`end`](Self::end).
    pub fn extend(&self, until: BootTime) {
        let until = until.as_nanos();
        let later = |limit: u64| (limit != ENDED && limit < until).then_some(until);
        // Fails only if `later` returned `None`: then nothing is to be changed.
        let _ = self.until.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }

    /// Ends the claim; the fence is never valid again.
    pub fn end(&self) {
        self.until.store(ENDED, Ordering::SeqCst);
    }

    /// Returns how long a push may still last if the time limit is not extended; zero if no push may begin.
    pub fn remaining(&self) -> Duration {
        Duration::from_nanos(self.until.load(Ordering::SeqCst).saturating_sub(BootTime::now().as_nanos()))
    }

    /// Whether a push may begin or continue now. Becomes false before another member can take the claim over, and true
    /// again if the claim has survived, until the claim ends.
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_valid_until_its_limit_and_never_after_its_end() {
        let now = BootTime::now();
        let fence = TimedFence::until(now - Duration::from_secs(1));
        assert!(!fence.is_valid());
        fence.extend(now + Duration::from_secs(60));
        assert!(fence.is_valid() && fence.remaining() > Duration::from_secs(50));
        fence.extend(now + Duration::from_secs(1));
        assert!(fence.remaining() > Duration::from_secs(50), "a limit never moves back");
        fence.end();
        assert!(!fence.is_valid());
        fence.extend(now + Duration::from_secs(60));
        assert!(!fence.is_valid(), "the end of a claim is final");
    }

    #[test]
    fn a_limit_before_the_start_of_the_machine_is_not_taken_for_the_end() {
        let fence = TimedFence::until(BootTime::now() - Duration::MAX);
        fence.extend(BootTime::now() + Duration::from_secs(60));
        assert!(fence.is_valid());
    }
}
