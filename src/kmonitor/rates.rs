//! How many messages a second come in and go out, over about a minute. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// The time over which a rate is computed.
const OVER: Duration = Duration::from_secs(60);

/// With less time between the first and the last point, a rate says nothing.
const MIN_SPAN: Duration = Duration::from_secs(10);

/// Points are at least this far apart, so that there are at most 14.
const STEP: Duration = Duration::from_secs(5);

/// The messages of one module: how many were appended and how many pushed.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    total_in: u64,
    total_out: u64,
    points: VecDeque<Point>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    elapsed: Duration,
    total_in: u64,
    total_out: u64,
}

impl Rates {
    /// Adds the messages that came in and went out since the last call. Sums of differences, not differences of sums: so
    /// a partition that is unknown for a while adds nothing instead of making a peak.
    pub(super) fn record(&mut self, elapsed: Duration, came_in: u64, went_out: u64) {
        self.total_in = self.total_in.saturating_add(came_in);
        self.total_out = self.total_out.saturating_add(went_out);
        if self.points.back().is_some_and(|last| elapsed < last.elapsed + STEP) {
            return;
        }
        self.points.push_back(Point { elapsed, total_in: self.total_in, total_out: self.total_out });
        // The point at which the minute begins stays.
        while self.points.get(1).is_some_and(|second| second.elapsed + OVER <= elapsed) {
            self.points.pop_front();
        }
    }

    /// Returns the messages a second that came in and that went out; `None` until there are points for 10 s.
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
    pub(super) fn per_second(&self) -> Option<(f64, f64)> {
        let (first, last) = self.points.front().zip(self.points.back())?;
        let span = last.elapsed.checked_sub(first.elapsed).filter(|span| MIN_SPAN <= *span)?.as_secs_f64();
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / span;
        Some((rate(first.total_in, last.total_in), rate(first.total_out, last.total_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let mut rates = Rates::default();
        rates.record(Duration::ZERO, 1_000_000, 0);
        assert_eq!(rates.per_second(), None);
        for second in 1..=600 {
            rates.record(Duration::from_secs(second), if second <= 500 { 100 } else { 3 }, 2);
            assert!(rates.points.len() <= 14, "{}", rates.points.len());
            if second == 60 {
                assert_eq!(rates.per_second(), Some((100.0, 2.0)), "what was there at first did not come in");
            }
        }
        assert_eq!(rates.per_second(), Some((3.0, 2.0)));
    }
}
