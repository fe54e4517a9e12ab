//! Computes rates per second from counts, over about the last minute. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// The time over which a rate is computed.
const OVER: Duration = Duration::from_secs(60);

/// Shortest time between the first and the last point for which a rate is computed.
const MIN_SPAN: Duration = Duration::from_secs(10);

/// Points are at least this far apart, so that there are at most 14.
const STEP: Duration = Duration::from_secs(5);

/// Several counts of one thing, for instance the messages of a module that were appended and that were pushed.
#[derive(Clone, Debug)]
pub(crate) struct Rates<const N: usize> {
    totals: [u64; N],
    points: VecDeque<Point<N>>,
}

#[derive(Clone, Copy, Debug)]
struct Point<const N: usize> {
    elapsed: Duration,
    totals: [u64; N],
}

impl<const N: usize> Default for Rates<N> {
    fn default() -> Self {
        Rates { totals: [0; N], points: VecDeque::new() }
    }
}

impl<const N: usize> Rates<N> {
    /// Adds the counts since the last call. These are differences, not totals, so a partition that is unknown for a
    /// while adds nothing instead of causing a peak.
    pub(crate) fn record(&mut self, elapsed: Duration, added: [u64; N]) {
        for (total, added) in self.totals.iter_mut().zip(added) {
            *total = total.saturating_add(added);
        }
        self.add_point(elapsed);
    }

    /// Takes the counters as they are now. A counter never goes back.
    pub(crate) fn record_totals(&mut self, elapsed: Duration, totals: [u64; N]) {
        self.totals = totals;
        self.add_point(elapsed);
    }

    fn add_point(&mut self, elapsed: Duration) {
        if self.points.back().is_some_and(|last| elapsed < last.elapsed + STEP) {
            return;
        }
        self.points.push_back(Point { elapsed, totals: self.totals });
        // The point at which the minute begins stays.
        while self.points.get(1).is_some_and(|second| second.elapsed + OVER <= elapsed) {
            self.points.pop_front();
        }
    }

    /// Returns the counts per second; `None` until the points cover 10 s.
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
    pub(crate) fn per_second(&self) -> Option<[f64; N]> {
        let (first, last) = self.points.front().zip(self.points.back())?;
        let span = last.elapsed.checked_sub(first.elapsed).filter(|span| MIN_SPAN <= *span)?.as_secs_f64();
        Some(std::array::from_fn(|index| last.totals[index].saturating_sub(first.totals[index]) as f64 / span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let mut rates = Rates::default();
        rates.record(Duration::ZERO, [1_000_000, 0]);
        assert_eq!(rates.per_second(), None);
        for second in 1..=600 {
            rates.record(Duration::from_secs(second), [if second <= 500 { 100 } else { 3 }, 2]);
            assert!(rates.points.len() <= 14, "{}", rates.points.len());
            if second == 60 {
                assert_eq!(rates.per_second(), Some([100.0, 2.0]), "what was there at first did not come in");
            }
        }
        assert_eq!(rates.per_second(), Some([3.0, 2.0]));
    }

    #[test]
    fn counters_are_taken_as_they_are() {
        let mut rates = Rates::default();
        for second in 0..=30 {
            rates.record_totals(Duration::from_secs(second), [1_000 + 7 * second]);
        }
        assert_eq!(rates.per_second(), Some([7.0]));
    }
}
