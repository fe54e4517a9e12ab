//! Rate limits: token buckets.
//!
//! A bucket starts full and fills at a steady rate. A request takes tokens; if the bucket has too few, the request is
//! refused with the time to wait. The whole state of a bucket is one number, the time at which it will be full again.
//! So taking tokens is one atomic operation, and an idle bucket equals a new one.
//!
//! Time is nanoseconds since any fixed moment. Invariant: the units that pass in any period are at most those of the
//! rate, plus the burst, plus one request, plus what [`TokenBucket::take_anyway`] takes.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{Problems, Section};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
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
        let bucket = |rate: NonZeroU64| TokenBucket::new(rate, limits.burst_seconds);
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

    /// Refunds what is left of a cost that was taken `age` nanoseconds ago.
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

/// A token bucket for one kind of unit.
#[derive(Debug)]
struct TokenBucket {
    per_second: NonZeroU64,
    /// Nanoseconds in which an empty bucket becomes full.
    capacity_nanos: u64,
    /// Time at which the bucket will be full again; not in the future if it is full.
    full_at: AtomicU64,
}

impl TokenBucket {
    fn new(per_second: NonZeroU64, burst_seconds: u32) -> Self {
        let capacity_nanos = u64::from(burst_seconds) * NANOS_PER_SECOND;
        TokenBucket { per_second, capacity_nanos, full_at: AtomicU64::new(0) }
    }

    fn take(&self, units: u64, now: u64) -> Result<(), Duration> {
        let time = self.time_for(units);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = take(self.capacity_nanos, full_at, now, time)?;
            // `Relaxed` is enough here and below, because the number guards no other memory.
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => full_at = seen,
            }
        }
    }

    fn take_anyway(&self, units: u64, now: u64) {
        let time = self.time_for(units);
        self.change(|full_at| full_at.max(now).saturating_add(time));
    }

    /// Meanwhile the bucket has filled at its rate, so only the rest of the cost is refunded. Otherwise tokens that
    /// were taken one after the other, and are refunded together, would make a burst larger than the capacity.
    fn give_back(&self, units: u64, age: u64) {
        let time = self.time_for(units).saturating_sub(age);
        self.change(|full_at| full_at.saturating_sub(time));
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        // The closure always returns a value, so this cannot fail.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(to(full_at)));
    }

    fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }

    /// Returns the nanoseconds in which the rate yields `units`, rounded up.
    fn time_for(&self, units: u64) -> u64 {
        let nanos = u128::from(units) * u128::from(NANOS_PER_SECOND);
        u64::try_from(nanos.div_ceil(u128::from(self.per_second.get()))).unwrap_or(u64::MAX)
    }
}

/// The token bucket rule. Tokens are counted as the nanoseconds in which the rate yields them, so `time` is the cost.
/// Returns the next `full_at` if the bucket has the tokens, else how long to wait. A full bucket also grants a cost
/// larger than `capacity`, which leaves a debt.
fn take(capacity: u64, full_at: u64, now: u64, time: u64) -> Result<u64, Duration> {
    let start = full_at.max(now);
    let missing = start - now;
    if missing == 0 || missing.saturating_add(time) <= capacity {
        return Ok(start.saturating_add(time));
    }
    Err(Duration::from_nanos(missing.saturating_add(time.min(capacity)) - capacity))
}

/// Returns the value of `Retry-After`: whole seconds, rounded up, at least one.
pub(crate) fn retry_after_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::section;
    use proptest::prelude::*;

    const SECOND: u64 = NANOS_PER_SECOND;

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
    fn a_bucket_grants_a_cost_or_returns_the_wait() {
        // Capacity, full at, now, time of the cost; full at afterwards, or the wait.
        for (capacity, full_at, now, time, outcome) in [
            (10, 0, 100, 10, Ok(110)),
            (10, 0, 100, 3, Ok(103)),
            (10, 107, 100, 3, Ok(110)),
            (10, 107, 100, 4, Err(1)),
            (10, 110, 100, 1, Err(1)),
            (10, 110, 100, 10, Err(10)),
            (10, 110, 109, 9, Ok(119)),
            // More than the capacity: granted when full, then a debt.
            (10, 100, 100, 50, Ok(150)),
            (10, 150, 100, 50, Err(50)),
            (10, 150, 100, 1, Err(41)),
            (10, 101, 100, 50, Err(1)),
            // A cost of zero passes unless there is a debt.
            (10, 110, 100, 0, Ok(110)),
            (10, 111, 100, 0, Err(1)),
            (10, 0, 0, u64::MAX, Ok(u64::MAX)),
            (10, u64::MAX, 5, u64::MAX, Err(u64::MAX - 10)),
        ] {
            let expected = outcome.map_err(Duration::from_nanos);
            assert_eq!(take(capacity, full_at, now, time), expected, "{capacity} {full_at} {now} {time}");
        }
    }

    proptest! {
        #[test]
        fn the_returned_wait_is_enough_and_not_too_long(
            capacity in 1..1_000_u64, full_at in 0..5_000_u64, now in 0..5_000_u64, time in 0..3_000_u64
        ) {
            if let Err(wait) = take(capacity, full_at, now, time) {
                let wait = u64::try_from(wait.as_nanos()).unwrap();
                prop_assert!(take(capacity, full_at, now + wait, time).is_ok());
                prop_assert!(take(capacity, full_at, now + wait - 1, time).is_err());
            }
        }

        /// Requests that announce bytes and never send them: some of the charges are refunded, each at a later time.
        #[test]
        fn refunds_make_no_burst_larger_than_the_capacity(
            rate in 1..50_u64, burst in 1..4_u32,
            steps in proptest::collection::vec((0..SECOND, 1..60_u64, proptest::bool::ANY), 1..200)
        ) {
            let bucket = TokenBucket::new(NonZeroU64::new(rate).unwrap(), burst);
            let (mut now, mut open, mut passed, mut largest) = (0, Vec::new(), 0, 0);
            for (pause, units, is_sent) in steps {
                now += pause;
                if bucket.take(units, now).is_ok() {
                    largest = largest.max(units);
                    if is_sent { passed += units } else { open.push((units, now)) }
                }
            }
            open.into_iter().for_each(|(units, at)| bucket.give_back(units, now - at));
            while bucket.take(1, now).is_ok() {
                passed += 1;
            }
            let allowed = rate as f64 * (now as f64 / SECOND as f64 + f64::from(burst)) + largest as f64 + 1.0;
            prop_assert!(passed as f64 <= allowed, "{} passed, {} allowed", passed, allowed);
        }

        #[test]
        fn no_more_passes_than_the_rate_the_burst_and_one_request(
            rate in 1..50_u64, burst in 1..4_u32, steps in proptest::collection::vec((0..SECOND, 0..120_u64), 1..200)
        ) {
            let bucket = TokenBucket::new(NonZeroU64::new(rate).unwrap(), burst);
            let (mut now, mut passed, mut largest) = (0, 0, 0);
            for (pause, units) in steps {
                now += pause;
                if bucket.take(units, now).is_ok() {
                    passed += units;
                    largest = largest.max(units);
                }
            }
            let allowed = rate as f64 * (now as f64 / SECOND as f64 + f64::from(burst)) + largest as f64;
            prop_assert!(passed as f64 <= allowed, "{} passed, {} allowed", passed, allowed);
        }
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
    fn bytes_that_were_announced_one_after_the_other_are_not_refunded_together() {
        let bucket = TokenBucket::new(NonZeroU64::new(10).unwrap(), 1);
        for second in 1..=10 {
            assert_eq!(bucket.take(10, second * SECOND), Ok(()), "ten a second");
        }
        (1..=10).for_each(|second| bucket.give_back(10, (11 - second) * SECOND));
        let now = 11 * SECOND;
        assert_eq!((0..100).filter(|_| bucket.take(1, now).is_ok()).count(), 10, "not a hundred at once");
        bucket.give_back(1, SECOND / 20);
        assert_eq!(bucket.take(1, now), Err(Duration::from_millis(50)), "half of it has been paid by the rate");
    }

    #[test]
    fn threads_that_share_a_bucket_get_no_more_than_its_capacity() {
        let bucket = TokenBucket::new(NonZeroU64::new(100).unwrap(), 3);
        let got: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| bucket.take(1, SECOND).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(got, 300);
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
