//! Rate limits of a credential or a topic: requests and bytes a second, each a
//! [`TokenBucket`](crate::token_bucket::TokenBucket).

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::config::{Problems, Section};
use crate::token_bucket::TokenBucket;

/// Largest `requests_per_second`.
const MAX_REQUESTS: i64 = 1_000_000_000;
/// Largest `bytes_per_second`.
const MAX_BYTES: i64 = 1_000_000_000_000;

/// The keys `requests_per_second`, `bytes_per_second` and `burst_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateLimits {
    requests_per_second: Option<NonZeroU64>,
    bytes_per_second: Option<NonZeroU64>,
    burst_seconds: u32,
}

impl RateLimits {
    /// Takes the three keys; returns `None` if neither rate is given.
    pub(crate) fn from_section(section: &mut Section, problems: &mut Problems) -> Option<Self> {
        let requests = section.optional_integer("requests_per_second", 1..=MAX_REQUESTS, problems);
        let bytes = section.optional_integer("bytes_per_second", 1..=MAX_BYTES, problems);
        let rate = |number: i64| NonZeroU64::new(number.unsigned_abs()).unwrap_or(NonZeroU64::MIN);
        let (requests_per_second, bytes_per_second) = (requests.map(rate), bytes.map(rate));
        let has_rate = requests_per_second.is_some() || bytes_per_second.is_some();
        if !has_rate && section.has("burst_seconds") {
            section.note("burst_seconds", "has no effect without requests_per_second or bytes_per_second", problems);
        }
        // At most an hour: a larger burst would hardly be a limit.
        let burst_seconds = section.integer("burst_seconds", Some(1), 1..=3600, problems);
        let burst_seconds = u32::try_from(burst_seconds).unwrap_or(1);
        has_rate.then_some(RateLimits { requests_per_second, bytes_per_second, burst_seconds })
    }
}

impl fmt::Display for RateLimits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.requests_per_second, self.bytes_per_second) {
            (Some(requests), Some(bytes)) => write!(formatter, "{requests} requests, {bytes} B /s"),
            (Some(requests), None) => write!(formatter, "{requests} requests /s"),
            (None, Some(bytes)) => write!(formatter, "{bytes} B /s"),
            (None, None) => Ok(()),
        }
    }
}

/// The units that a request takes from the buckets of a meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateCost {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

/// The buckets of one credential or topic, one for each of its [`RateLimits`].
#[derive(Debug)]
pub(crate) struct RateMeter {
    limits: RateLimits,
    requests: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl RateMeter {
    pub(crate) fn new(limits: RateLimits) -> Self {
        let burst = Duration::from_secs(limits.burst_seconds.into());
        let bucket = |rate: NonZeroU64| TokenBucket::new(rate, burst);
        RateMeter {
            limits,
            requests: limits.requests_per_second.map(bucket),
            bytes: limits.bytes_per_second.map(bucket),
        }
    }

    pub(crate) fn limits(&self) -> RateLimits {
        self.limits
    }

    /// Takes the whole cost, or takes nothing and returns how long to wait until it can be taken.
    pub(crate) fn take(&self, cost: RateCost, now: u64) -> Result<(), Duration> {
        // Both buckets are tried even if the first refuses, because the longer wait is returned.
        let outcomes = [(&self.requests, cost.requests), (&self.bytes, cost.bytes)]
            .map(|(bucket, units)| (bucket, units, bucket.as_ref().map_or(Ok(()), |bucket| bucket.take(units, now))));
        let Some(longest) = outcomes.iter().filter_map(|(_, _, outcome)| outcome.err()).max() else { return Ok(()) };
        for (bucket, units, outcome) in outcomes {
            if let (Some(bucket), Ok(())) = (bucket, outcome) {
                bucket.give_back(units, 0);
            }
        }
        Err(longest)
    }

    /// Refunds the part of a cost, taken `age` nanoseconds ago, that the rate has not refilled meanwhile.
    pub(crate) fn give_back(&self, cost: RateCost, age: u64) {
        self.each(cost, |bucket, units| bucket.give_back(units, age));
    }

    /// Takes a cost even if the buckets have too few tokens; the missing ones are a debt.
    pub(crate) fn take_anyway(&self, cost: RateCost, now: u64) {
        self.each(cost, |bucket, units| bucket.take_anyway(units, now));
    }

    /// Returns whether all buckets are full, so that the meter equals a new one.
    pub(crate) fn is_full(&self, now: u64) -> bool {
        [&self.requests, &self.bytes].into_iter().flatten().all(|bucket| bucket.is_full(now))
    }

    fn each(&self, cost: RateCost, act: impl Fn(&TokenBucket, u64)) {
        for (bucket, units) in [(&self.requests, cost.requests), (&self.bytes, cost.bytes)] {
            if let Some(bucket) = bucket {
                act(bucket, units);
            }
        }
    }
}

/// Returns the value of `Retry-After`: whole seconds, rounded up, at least one.
pub(crate) fn retry_after_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::section;

    const SECOND: u64 = 1_000_000_000;

    fn limits(text: &str) -> Option<RateLimits> {
        let (mut section, mut problems) = section(text);
        let limits = RateLimits::from_section(&mut section, &mut problems);
        section.finish(&mut problems);
        assert!(problems.0.is_empty(), "{text}: {problems}");
        limits
    }

    fn cost(requests: u64, bytes: u64) -> RateCost {
        RateCost { requests, bytes }
    }

    #[test]
    fn a_meter_takes_all_of_a_cost_or_nothing() {
        let meter = RateMeter::new(limits("requests_per_second: 10\nbytes_per_second: 100\n").unwrap());
        assert_eq!(meter.take(cost(1, 90), SECOND), Ok(()));
        // The bytes are refused, and nine requests are still left.
        assert_eq!(meter.take(cost(1, 20), SECOND), Err(Duration::from_millis(100)));
        assert_eq!(meter.take(cost(9, 0), SECOND), Ok(()));
        assert_eq!(meter.take(cost(1, 90), SECOND), Err(Duration::from_millis(800)), "the longer wait is returned");
        assert_eq!(meter.take(cost(1, 5), SECOND), Err(Duration::from_millis(100)));
        assert!(!meter.is_full(SECOND) && meter.is_full(2 * SECOND));
        meter.give_back(cost(9, 90), 0);
        assert_eq!(meter.take(cost(9, 90), SECOND), Ok(()));
        meter.take_anyway(cost(20, 0), 2 * SECOND);
        assert_eq!(meter.take(cost(1, 0), 2 * SECOND), Err(Duration::from_millis(1100)));
    }

    #[test]
    fn limits_are_parsed_or_a_problem_of_their_key() {
        assert_eq!(limits("{}"), None);
        let both = limits("requests_per_second: 5\nbytes_per_second: 1000000000000\nburst_seconds: 3600\n").unwrap();
        assert_eq!((both.requests_per_second.unwrap().get(), both.burst_seconds), (5, 3600));
        assert_eq!(limits("bytes_per_second: 1\n").unwrap().requests_per_second, None);
        for text in [
            "requests_per_second: 0",
            "requests_per_second: 0.5",
            "requests_per_second: -1",
            "bytes_per_second: 10MB",
            "bytes_per_second: 1000000000001",
            "requests_per_second: 1\nburst_seconds: 0",
            "burst_seconds: 2",
        ] {
            let (mut section, mut problems) = section(text);
            RateLimits::from_section(&mut section, &mut problems);
            assert_eq!(problems.0.len(), 1, "{text}: {problems}");
        }
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(retry_after_seconds(Duration::from_millis(millis)), seconds, "{millis}");
        }
    }
}
