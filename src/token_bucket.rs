//! A token bucket: a limit on units a second, such as requests, bytes or pushes.
//!
//! A bucket starts full and fills at a steady rate. A caller that needs more tokens than the bucket has gets the time
//! to wait instead ([`TokenBucket::take`]), or reserves them and waits for that time ([`TokenBucket::reserve`]). The
//! whole state of a bucket is one number, the time at which it will be full again. So taking tokens is one atomic
//! operation, and an idle bucket equals a new one.
//!
//! Time is nanoseconds since any fixed moment. Invariant: the units that pass in any period are at most those of the
//! rate, plus the burst, plus one take, plus what [`TokenBucket::take_anyway`] takes.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A token bucket for one kind of unit.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    per_second: NonZeroU64,
    /// Nanoseconds in which an empty bucket becomes full.
    capacity_nanos: u64,
    /// Time at which the bucket will be full again; not in the future if it is full.
    full_at: AtomicU64,
}

impl TokenBucket {
    /// Creates a full bucket whose capacity is the number of tokens that the rate yields in `burst`.
    pub(crate) fn new(per_second: NonZeroU64, burst: Duration) -> Self {
        let capacity_nanos = u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX);
        TokenBucket { per_second, capacity_nanos, full_at: AtomicU64::new(0) }
    }

    /// Takes all of the units, or takes nothing and returns how long to wait until they can be taken.
    pub(crate) fn take(&self, units: u64, now: u64) -> Result<(), Duration> {
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

    /// Takes the units even if the bucket has too few; the missing ones are a debt.
    pub(crate) fn take_anyway(&self, units: u64, now: u64) {
        let time = self.time_for(units);
        self.change(|full_at| full_at.max(now).saturating_add(time));
    }

    /// Takes the units and returns how long to wait before they may be used. Reservations are served in the order in
    /// which they were made, so of many waiting threads only one is due at a time.
    pub(crate) fn reserve(&self, units: u64, now: u64) -> Duration {
        let time = self.time_for(units);
        let before = self.change(|full_at| full_at.max(now).saturating_add(time));
        let missing = before.max(now).saturating_add(time) - now;
        Duration::from_nanos(missing.saturating_sub(self.capacity_nanos.max(time)))
    }

    /// Refunds units that were taken `age` nanoseconds ago.
    ///
    /// Meanwhile the bucket has filled at its rate, so only the rest of the cost is refunded. Otherwise tokens that
    /// were taken one after the other, and are refunded together, would make a burst larger than the capacity.
    pub(crate) fn give_back(&self, units: u64, age: u64) {
        let time = self.time_for(units).saturating_sub(age);
        self.change(|full_at| full_at.saturating_sub(time));
    }

    /// Changes the state and returns the state before.
    fn change(&self, to: impl Fn(u64) -> u64) -> u64 {
        // The closure always returns a value, so both arms are the state before.
        match self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(to(full_at))) {
            Ok(before) | Err(before) => before,
        }
    }

    /// Whether the bucket is full, so that it equals a new one.
    pub(crate) fn is_full(&self, now: u64) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    /// A bucket that fills in `burst` seconds.
    fn bucket(per_second: u64, burst: u64) -> TokenBucket {
        TokenBucket::new(NonZeroU64::new(per_second).unwrap(), Duration::from_secs(burst))
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
            rate in 1..50_u64, burst in 1..4_u64,
            steps in proptest::collection::vec((0..SECOND, 1..60_u64, proptest::bool::ANY), 1..200)
        ) {
            let bucket = bucket(rate, burst);
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
            let allowed = rate as f64 * (now as f64 / SECOND as f64 + burst as f64) + largest as f64 + 1.0;
            prop_assert!(passed as f64 <= allowed, "{} passed, {} allowed", passed, allowed);
        }

        #[test]
        fn no_more_passes_than_the_rate_the_burst_and_one_request(
            rate in 1..50_u64, burst in 1..4_u64, steps in proptest::collection::vec((0..SECOND, 0..120_u64), 1..200)
        ) {
            let bucket = bucket(rate, burst);
            let (mut now, mut passed, mut largest) = (0, 0, 0);
            for (pause, units) in steps {
                now += pause;
                if bucket.take(units, now).is_ok() {
                    passed += units;
                    largest = largest.max(units);
                }
            }
            let allowed = rate as f64 * (now as f64 / SECOND as f64 + burst as f64) + largest as f64;
            prop_assert!(passed as f64 <= allowed, "{} passed, {} allowed", passed, allowed);
        }
    }

    #[test]
    fn bytes_that_were_announced_one_after_the_other_are_not_refunded_together() {
        let bucket = bucket(10, 1);
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
    fn reservations_are_due_one_after_the_other_at_the_rate() {
        let bucket = TokenBucket::new(NonZeroU64::new(10).unwrap(), Duration::from_millis(200));
        let waits = [(); 5].map(|()| bucket.reserve(1, SECOND).as_millis());
        assert_eq!(waits, [0, 0, 100, 200, 300], "two are the burst");
        assert_eq!(bucket.reserve(1, 2 * SECOND).as_millis(), 0);
        let small = TokenBucket::new(NonZeroU64::new(2).unwrap(), Duration::ZERO);
        let waits = [(); 3].map(|()| small.reserve(1, SECOND).as_millis());
        assert_eq!(waits, [0, 500, 1000], "a burst below one unit is one unit");
    }

    #[test]
    fn threads_that_share_a_bucket_get_no_more_than_its_capacity() {
        let bucket = bucket(100, 3);
        let got: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| bucket.take(1, SECOND).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(got, 300);
    }
}
