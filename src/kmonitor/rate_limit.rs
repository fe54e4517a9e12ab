//! Keeps the requests to a source within a number in a second.

use std::time::{Duration, Instant};

/// The requests of one source.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: u64,
    /// The time at which the requests so far would have been sent one after the other.
    until: Instant,
}

impl RateLimit {
    /// Allows `per_second` requests in a second, at least one.
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        RateLimit { per_second: per_second.max(1), until: now }
    }

    /// The number of requests in a second.
    pub(super) fn per_second(&self) -> u64 {
        self.per_second
    }

    /// Counts requests that were sent. Time without requests is not saved up.
    pub(super) fn count(&mut self, requests: u64, now: Instant) {
        let micros = requests.saturating_mul(1_000_000) / self.per_second;
        self.until = self.until.max(now) + Duration::from_micros(micros);
    }

    /// Returns how long to wait before the next request.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_spread_over_the_time_that_they_may_take() {
        let start = Instant::now();
        let mut rate = RateLimit::new(2_000, start);
        let second = Duration::from_secs(1);
        let mut after = |requests, now| {
            rate.count(requests, now);
            rate.wait(now)
        };
        assert_eq!(after(1_000, start), second / 2);
        assert_eq!(after(1_000, start + second / 2), second / 2);
        assert_eq!(after(0, start + second * 10), Duration::ZERO);
        assert_eq!(after(4_000, start + second * 10), second * 2, "the time without requests is not saved up");
        assert_eq!(rate.wait(start + second * 11), second);
    }
}
