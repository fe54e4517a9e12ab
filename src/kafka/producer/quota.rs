//! Keeps a sender within a quota of its broker (`producer_byte_rate`), without IO and without a clock.
//!
//! A broker that throttles the client states a time in its response, and does not read from the connection until then
//! (KIP-219). The more was sent, the longer the time. Here it becomes back-pressure: a request is made so small that
//! the next pause is short, and a message that could be sent only after its deadline is refused at once, before it is
//! sent. So no message is in a request that the broker does not read, and pauses are short enough to notice the end of
//! the quota soon.

use std::time::{Duration, Instant};

/// The pause that a request should cause.
pub(super) const TARGET_PAUSE: Duration = Duration::from_millis(500);
/// Lower bound of the size of a request that the rate suggests. Other clients may share the quota: their bytes make the
/// pauses longer, and the rate that this client computes from its own bytes would shrink with each request.
const MIN_REQUEST_BYTES: f64 = 4096.0;
/// A message is sent this long before its deadline, so that its response arrives in time; or a quarter of its time.
const MAX_MARGIN: Duration = Duration::from_millis(500);

/// The known state of a broker's quota; a broker that does not throttle has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// No request is sent before.
    until: Instant,
    /// The rate that the broker accepts, by its latest response; infinite if unknown.
    bytes_per_second: f64,
    /// When the messages accepted so far will have been sent at this rate.
    busy_until: Instant,
}

impl Quota {
    /// The broker throttles a request of `sent_bytes` bytes for `pause`; 0 bytes if the pause does not depend on them.
    /// `waiting_bytes`: the bytes of the messages that wait for this broker.
    pub(super) fn throttled(now: Instant, pause: Duration, sent_bytes: usize, waiting_bytes: usize) -> Quota {
        let bytes_per_second = match sent_bytes {
            0 => f64::INFINITY,
            bytes => {
                (bytes as f64 / pause.as_secs_f64().max(0.001)).max(MIN_REQUEST_BYTES / TARGET_PAUSE.as_secs_f64())
            }
        };
        let until = now + pause;
        let mut quota = Quota { until, bytes_per_second, busy_until: until };
        quota.occupy(until, waiting_bytes);
        quota
    }

    /// The broker does not throttle any more. Returns `None` once requests need not be smaller than `max_bytes`. Until
    /// then the rate doubles with each response, because a broker measures rates in steps.
    pub(super) fn relaxed(self, now: Instant, max_bytes: usize) -> Option<Quota> {
        let bytes_per_second = self.bytes_per_second * 2.0;
        let quota = Quota { until: now, bytes_per_second, busy_until: now };
        (quota.max_request_bytes() < max_bytes).then_some(quota)
    }

    /// The pause ends at this time, by a later answer of the broker.
    pub(super) fn ends(&mut self, until: Instant) {
        let earlier = self.until.saturating_duration_since(until);
        self.until = until;
        self.busy_until = self.busy_until.checked_sub(earlier).unwrap_or(until).max(until);
    }

    /// Returns when a request may be sent.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Returns the size of a request that causes a short pause; at least [`MIN_REQUEST_BYTES`].
    pub(super) fn max_request_bytes(&self) -> usize {
        (self.bytes_per_second * TARGET_PAUSE.as_secs_f64()) as usize
    }

    /// Accepts a message, or returns the time after which it could be sent if that is too late for its deadline.
    pub(super) fn accept(&mut self, now: Instant, deadline: Instant, bytes: usize) -> Result<(), Duration> {
        if now >= self.until {
            return Ok(());
        }
        let sent_at = self.busy_until.max(now);
        if sent_at + margin(now, deadline) > deadline {
            return Err(sent_at.saturating_duration_since(now));
        }
        self.occupy(sent_at, bytes);
        Ok(())
    }

    fn occupy(&mut self, from: Instant, bytes: usize) {
        let seconds = (bytes as f64 / self.bytes_per_second).min(3600.0);
        self.busy_until = from + Duration::from_secs_f64(seconds.max(0.0));
    }
}

/// Returns how long before its deadline a message must be sent.
pub(super) fn margin(now: Instant, deadline: Instant) -> Duration {
    (deadline.saturating_duration_since(now) / 4).min(MAX_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_request_is_as_large_as_the_quota_allows_in_half_a_second() {
        let now = Instant::now();
        let quota = Quota::throttled(now, SECOND * 25, 500_000, 0);
        assert_eq!((quota.max_request_bytes(), quota.until()), (10_000, now + SECOND * 25));
        // The rate doubles with each response that is not throttled.
        let mut quota = Some(quota);
        let mut responses = 0;
        while let Some(relaxed) = quota {
            quota = relaxed.relaxed(now, 4 << 20);
            responses += 1;
        }
        assert_eq!(responses, 9);
        let unknown = Quota::throttled(now, SECOND, 0, 1_000_000);
        assert_eq!(unknown.max_request_bytes(), usize::MAX);
        assert!(unknown.relaxed(now, usize::MAX).is_none());
        assert_eq!(Quota::throttled(now, SECOND * 60, 1, 0).max_request_bytes(), 4096);
    }

    #[test]
    fn a_message_is_accepted_if_the_quota_leaves_time_for_it() {
        let now = Instant::now();
        // 20 KB/s: a pause of half a second, and 20 KB that wait.
        let mut quota = Quota::throttled(now, SECOND / 2, 10_000, 20_000);
        let deadline = now + SECOND * 5;
        // Up to 4.5 s: at 1.5 s the next can be sent.
        let accepted = (0..).take_while(|_| quota.accept(now, deadline, 1_000).is_ok()).count();
        assert!((60..=61).contains(&accepted), "{accepted}");
        let wait = quota.accept(now, deadline, 1_000).unwrap_err();
        assert!(wait > SECOND * 4 && wait < SECOND * 5, "{wait:?}");
        assert!(quota.accept(now, now + SECOND * 60, 1_000).is_ok());
        // Between two pauses everything is accepted.
        assert!(quota.accept(now + SECOND / 2, deadline, 1_000).is_ok());
    }

    #[test]
    fn a_pause_can_become_shorter() {
        let now = Instant::now();
        let mut quota = Quota::throttled(now, SECOND * 40, 100_000, 0);
        assert_eq!(quota.accept(now, now + SECOND * 5, 1), Err(SECOND * 40));
        quota.ends(now + SECOND);
        assert_eq!(quota.accept(now, now + SECOND * 5, 1), Ok(()));
        quota.ends(now);
        assert_eq!(quota.accept(now, now + SECOND, 1_000_000), Ok(()));
    }
}
