//! The arrival times of the messages of a log, derived from the readings of its end: for "seconds behind". Pure.
//!
//! Each reading that finds a larger end offset adds a [`Span`]: these offsets arrived between the previous reading and
//! this one. So the age of a message is known with an error of one cycle. At most [`MAX_SPANS`] are kept. Older spans
//! are merged, so they become longer with age: an age of up to an hour has an error of at most one cycle or 15 %.
//!
//! Nothing is extrapolated. A message that arrived before the first reading is at least as old as that reading.

use std::time::Duration;

use crate::broker::Offset;

/// With 36 spans and a cycle of 5 s the error stays below 15 % up to an hour; see the test with an exact oracle.
const MAX_SPANS: usize = 36;

/// A span that is older may be dropped instead of merging others.
const KEPT: u32 = 36_000;

/// The arrivals of one log. Times are in units of 0.1 s since the start of the poller.
#[derive(Clone, Debug, Default)]
pub(super) struct EndsHistory {
    /// Messages below this offset arrived before `start`.
    base: Offset,
    start: u32,
    /// Time of the last reading; `None` before the first.
    last_read: Option<u32>,
    /// Sorted by time and by offset.
    spans: Vec<Span>,
}

/// Offsets that arrived between `at - length` and `at`.
#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    length: u32,
    /// The offset after the last of them, relative to `base`.
    ahead: u32,
}

/// How long ago a message arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// At least this long ago.
    pub at_least: Duration,
    /// At most this long ago; `None` if it arrived before the first reading.
    pub at_most: Option<Duration>,
}

impl Arrival {
    /// The best estimate of the age, and how much it may be off; `None` if the message may be of any age.
    pub(super) fn estimate(self) -> Option<(Duration, Duration)> {
        let at_most = self.at_most?;
        let middle = (self.at_least + at_most) / 2;
        Some((middle, middle.saturating_sub(self.at_least)))
    }
}

impl EndsHistory {
    /// Records that the log ended at `end`, read `elapsed` after the start of the poller.
    pub(super) fn record(&mut self, elapsed: Duration, end: Offset) {
        let now = tenths(elapsed);
        let Some(last_read) = self.last_read.replace(now) else { return self.restart(now, end) };
        let newest = self.newest();
        if end < newest {
            self.truncate(now, end);
        } else if newest < end {
            self.push(last_read, now, end);
        }
    }

    /// Returns when the message at `offset` arrived; `None` if it has not arrived.
    pub(super) fn arrival(&self, elapsed: Duration, offset: Offset) -> Option<Arrival> {
        let now = tenths(elapsed);
        if self.last_read.is_none() || self.newest() <= offset {
            return None;
        }
        if offset < self.base {
            return Some(Arrival { at_least: duration(now.saturating_sub(self.start)), at_most: None });
        }
        let first_beyond = self.spans.partition_point(|span| self.end_of(span) <= offset);
        self.spans.get(first_beyond).map(|span| Arrival {
            at_least: duration(now.saturating_sub(span.at)),
            at_most: Some(duration(now.saturating_sub(span.at.saturating_sub(span.length)))),
        })
    }

    fn newest(&self) -> Offset {
        self.spans.last().map_or(self.base, |span| self.end_of(span))
    }

    fn end_of(&self, span: &Span) -> Offset {
        self.base.saturating_add(i64::from(span.ahead))
    }

    fn restart(&mut self, now: u32, end: Offset) {
        (self.base, self.start) = (end, now);
        self.spans.clear();
    }

    fn push(&mut self, last_read: u32, now: u32, end: Offset) {
        let ahead = loop {
            if let Ok(ahead) = u32::try_from(end.saturating_sub(self.base)) {
                break ahead;
            }
            if self.spans.is_empty() {
                return self.restart(now, end);
            }
            self.drop_first();
        };
        if self.spans.len() == self.spans.capacity() && MAX_SPANS / 2 < self.spans.len() {
            // One more than are kept. A vector that doubles would have room for 64.
            self.spans.reserve_exact(MAX_SPANS + 1 - self.spans.len());
        }
        self.spans.push(Span { at: now, length: now.saturating_sub(last_read), ahead });
        if MAX_SPANS < self.spans.len() && KEPT < now.saturating_sub(self.spans[0].at) {
            self.drop_first();
        }
        if MAX_SPANS < self.spans.len() {
            self.merge(now, now.saturating_sub(last_read));
        }
    }

    /// Forgets the first span: its messages now count as older than the history.
    fn drop_first(&mut self) {
        let first = self.spans.remove(0);
        self.base = self.end_of(&first);
        self.start = first.at;
        for span in &mut self.spans {
            span.ahead -= first.ahead;
        }
    }

    /// Merges the two neighbours for which it costs the least accuracy relative to their age. So the times of the last
    /// minute, which alarms depend on, stay known to one cycle.
    fn merge(&mut self, now: u32, cycle: u32) {
        let cost = |index: usize| {
            let (first, second) = (self.spans[index], self.spans[index + 1]);
            let length = second.at - first.at.saturating_sub(first.length);
            let age = now.saturating_sub(second.at).max(cycle).max(1);
            f64::from(length) / f64::from(age)
        };
        // `min_by` returns the first of equal costs, which is the oldest.
        let cheapest = (0..self.spans.len() - 1).map(|index| (index, cost(index))).min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((index, _)) = cheapest {
            let first = self.spans.remove(index);
            let merged = &mut self.spans[index];
            merged.length = merged.at - first.at.saturating_sub(first.length);
        }
    }

    /// The log became shorter: for a moment after the election of a leader, or because the topic was created again. The
    /// messages beyond `end` do not exist, and arrive when they are seen.
    fn truncate(&mut self, now: u32, end: Offset) {
        if end < self.base {
            return self.restart(now, end);
        }
        let kept = self.spans.partition_point(|span| self.end_of(span) <= end);
        let ahead = u32::try_from(end.saturating_sub(self.base)).unwrap_or(u32::MAX);
        let begins = kept.checked_sub(1).map_or(0, |last| self.spans[last].ahead);
        // The span in which `end` lies keeps its messages below `end`.
        if begins < ahead {
            self.spans[kept].ahead = ahead;
            self.spans.truncate(kept + 1);
        } else {
            self.spans.truncate(kept);
        }
    }
}

fn tenths(elapsed: Duration) -> u32 {
    u32::try_from(elapsed.as_millis() / 100).unwrap_or(u32::MAX)
}

fn duration(tenths: u32) -> Duration {
    Duration::from_millis(u64::from(tenths) * 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn arrival(at_least: u64, at_most: u64) -> Option<Arrival> {
        Some(Arrival { at_least: seconds(at_least), at_most: Some(seconds(at_most)) })
    }

    #[test]
    fn an_arrival_lies_between_two_readings_however_long_the_log_was_idle() {
        let mut history = EndsHistory::default();
        assert_eq!(history.arrival(seconds(1), 0), None);
        for at in (0..=10_000).step_by(5) {
            history.record(seconds(at), if at < 10_000 { 7 } else { 9 });
        }
        let now = seconds(10_030);
        assert_eq!(history.arrival(now, 7), arrival(30, 35), "not from the middle of the idle time");
        assert_eq!(history.arrival(now, 9), None, "it has not arrived");
        let before = Arrival { at_least: now, at_most: None };
        assert_eq!(history.arrival(now, 6), Some(before), "at least since the first reading");
    }

    #[test]
    fn a_log_that_becomes_shorter_keeps_what_is_still_there() {
        let mut history = EndsHistory::default();
        for (at, end) in [(0, 10), (5, 20), (10, 30), (15, 25), (20, 30)] {
            history.record(seconds(at), end);
        }
        let now = seconds(20);
        assert_eq!(history.arrival(now, 10), arrival(15, 20));
        assert_eq!(history.arrival(now, 22), arrival(10, 15));
        assert_eq!(history.arrival(now, 27), arrival(0, 5), "appended a second time");
        history.record(seconds(25), 3);
        assert_eq!(history.arrival(seconds(26), 2), Some(Arrival { at_least: seconds(1), at_most: None }));
        assert_eq!(history.arrival(seconds(26), 3), None);
    }

    #[test]
    fn more_messages_than_fit_into_32_bits_only_shorten_the_history() {
        let mut history = EndsHistory::default();
        let step = 3_000_000_000;
        for (at, end) in [(0, 0), (5, step), (10, 2 * step), (15, 3 * step), (20, 30 * step), (25, 30 * step + 1)] {
            history.record(seconds(at), end);
        }
        assert_eq!(history.arrival(seconds(25), 30 * step), arrival(0, 5));
        assert_eq!(history.arrival(seconds(25), 0).unwrap().at_most, None);
        history.record(seconds(30), Offset::MAX);
        assert_eq!(history.arrival(seconds(30), Offset::MAX - 1).unwrap().at_most, None);
    }

    /// Readings of a log each `cycle` seconds, and the exact times at which its messages arrived.
    fn check(cycle: u64, arrivals_a_cycle: &[u8]) -> Result<(), TestCaseError> {
        let mut history = EndsHistory::default();
        let mut exact = Vec::new();
        history.record(Duration::ZERO, 0);
        for (index, count) in arrivals_a_cycle.iter().enumerate() {
            let (from, to) = (index as u64 * cycle, (index as u64 + 1) * cycle);
            // The messages of a cycle arrive evenly within it.
            let step = |n: u8| from as f64 + cycle as f64 * (f64::from(n) + 1.0) / (f64::from(*count) + 1.0);
            exact.extend((0..*count).map(step));
            history.record(seconds(to), i64::try_from(exact.len()).unwrap());
            prop_assert!(history.spans.len() <= MAX_SPANS);
            if index % 29 != 0 {
                continue;
            }
            for (offset, arrived) in exact.iter().enumerate() {
                let age = to as f64 - arrived;
                let found = history.arrival(seconds(to), i64::try_from(offset).unwrap()).unwrap();
                let at_most = found.at_most.map_or(f64::INFINITY, |at_most| at_most.as_secs_f64());
                prop_assert!(found.at_least.as_secs_f64() <= age + 0.01 && age <= at_most + 0.01, "{age} {found:?}");
                if age <= 3_600.0 {
                    let estimate = found.estimate().map_or(found.at_least, |(age, _)| age);
                    let error = (estimate.as_secs_f64() - age).abs();
                    prop_assert!(error <= (cycle as f64).max(0.15 * age), "{age} s: {found:?}, off by {error}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_steady_log_is_known_to_a_cycle_or_15_percent_for_an_hour() {
        check(5, &[1; 3000]).unwrap();
        check(10, &[2; 1500]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_log_is_known_to_a_cycle_or_15_percent_for_an_hour(
            busy in 1..400_usize,
            idle in 0..400_usize,
            counts in proptest::collection::vec(0..4_u8, 1..40),
        ) {
            let pattern = counts.iter().cycle().enumerate();
            let arrivals: Vec<u8> =
                pattern.map(|(n, count)| if n % (busy + idle) < busy { *count } else { 0 }).take(1500).collect();
            check(5, &arrivals)?;
        }
    }
}
