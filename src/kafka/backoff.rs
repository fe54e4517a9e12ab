//! Pauses between attempts: they double from a minimum to a maximum (exponential back-off, KIP-580).
//!
//! Invariant: a pause is at least `MIN_PAUSE` and at most the maximum.

use std::time::Duration;

use crate::random::random;

/// Lower bound of every pause, so that a minimum of zero does not make a busy loop.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// Part of a pause, in percent, by which the pause is shortened or lengthened at random, as in Kafka's Java client.
const JITTER_PERCENT: u64 = 20;

/// The pauses between the attempts of one action.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// The next pause, before jitter.
    base: Duration,
}

impl Backoff {
    /// Creates a back-off whose first pause is about `min`, and whose longest pause is `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        let min = min.max(MIN_PAUSE);
        Backoff { min, max: max.max(min), base: min }
    }

    /// Returns the shortest pause, before jitter.
    pub fn min(&self) -> Duration {
        self.min
    }

    /// Returns the longest pause.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// Returns the pause before the next attempt. Call it once after each failed attempt.
    #[allow(clippy::should_implement_trait, reason = "an endless iterator would invite collecting it")]
    pub fn next(&mut self) -> Duration {
        let pause = with_jitter(self.base, random()).clamp(MIN_PAUSE, self.max);
        self.base = self.base.saturating_mul(2).min(self.max);
        pause
    }

    /// Makes the next pause the shortest one. Call it after a success.
    pub fn reset(&mut self) {
        self.base = self.min;
    }
}

/// Returns `pause`, changed by at most 20 % in either direction as `random` says. Clients that failed at the same time
/// then do not all try again at the same time.
fn with_jitter(pause: Duration, random: u64) -> Duration {
    let percent = 100 - JITTER_PERCENT + random % (2 * JITTER_PERCENT + 1);
    pause.mul_f64(percent as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for base in [100, 200, 400, 800] {
            let pause = backoff.next().as_millis();
            assert!((base * 8 / 10..=base * 12 / 10).contains(&pause), "{base}: {pause}");
        }
        for _ in 0..100 {
            let pause = backoff.next().as_millis();
            assert!((800..=1000).contains(&pause), "{pause}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(120));
    }

    #[test]
    fn a_pause_is_never_zero_and_an_inverted_range_is_a_constant() {
        assert!(Backoff::new(Duration::ZERO, Duration::ZERO).next() >= MIN_PAUSE);
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(1));
        assert!((0..10).all(|_| backoff.next() <= Duration::from_secs(2)));
    }

    #[test]
    fn jitter_is_at_most_a_fifth_in_both_directions() {
        let pauses: Vec<_> =
            (0..41).map(|random| with_jitter(Duration::from_millis(100), random).as_millis()).collect();
        assert_eq!((pauses.iter().min(), pauses.iter().max()), (Some(&80), Some(&120)));
    }
}
