//! `max_pushes_per_second`: the limit on the pushes of a module, retries included.
//!
//! A worker reserves a permit before its next push and waits until the permit is due; meanwhile it has no slot of the
//! window. So each worker wakes once for a push, and pushes are spread evenly over time.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::token_bucket::TokenBucket;

/// Pushes that may begin at once after a pause, as the time in which the rate yields them.
const BURST: Duration = Duration::from_millis(100);
/// A permit that was not used for this time has expired. Otherwise workers that had nothing to push would begin their
/// pushes at the same time.
const PERMIT_LIFETIME: Duration = Duration::from_secs(1);

/// The rate limit of one module.
pub(super) struct PushRate {
    bucket: TokenBucket,
    began: Instant,
}

impl PushRate {
    /// Creates the limit; `None` is no limit.
    pub(super) fn new(per_second: Option<NonZeroU64>) -> Option<PushRate> {
        Some(PushRate { bucket: TokenBucket::new(per_second?, BURST), began: Instant::now() })
    }

    /// Returns from when the next push of a worker may begin. `permit` is what the worker keeps of it until that push.
    pub(super) fn permit(&self, permit: &mut Option<Instant>, now: Instant) -> Instant {
        if let Some(due) = permit.filter(|due| now < *due + PERMIT_LIFETIME) {
            return due;
        }
        let elapsed = now.saturating_duration_since(self.began);
        let wait = self.bucket.reserve(1, u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        *permit.insert(now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_due_at_the_rate_and_are_kept_until_they_are_used_or_expire() {
        let rate = PushRate::new(NonZeroU64::new(20)).unwrap();
        let (now, mut permits) = (rate.began, [None; 6]);
        let due: Vec<u128> =
            permits.iter_mut().map(|permit| rate.permit(permit, now).duration_since(now).as_millis()).collect();
        assert_eq!(due, [0, 0, 50, 100, 150, 200]);
        assert_eq!(rate.permit(&mut permits[5], now).duration_since(now).as_millis(), 200, "the same permit");
        // The worker pushes.
        permits[2] = None;
        let later = now + Duration::from_millis(60);
        assert_eq!(rate.permit(&mut permits[2], later).duration_since(now).as_millis(), 250);
        let much_later = now + Duration::from_millis(1200);
        assert_eq!(rate.permit(&mut permits[5], much_later), much_later, "a new permit: the old one has expired");
        assert!(PushRate::new(None).is_none());
    }
}
