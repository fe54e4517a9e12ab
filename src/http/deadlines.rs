//! The time of the next deadline check of each connection of a reader.
//!
//! Each connection has at most one entry. The time of an entry is never later than the connection's true deadline, but
//! may be earlier: a check before the deadline schedules the connection again. So postponing a deadline, as every
//! request of a busy connection does, needs no change of its entry.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The connections of one reader, ordered by the time of their next check.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    entries: BTreeSet<(Instant, usize)>,
}

impl Deadlines {
    /// Schedules a check of the connection `key` at `at`, unless an earlier check is scheduled. `scheduled` is the time
    /// of the connection's current entry; it is updated.
    pub(super) fn schedule(&mut self, key: usize, scheduled: &mut Option<Instant>, at: Instant) {
        if let Some(before) = *scheduled {
            if before <= at {
                return;
            }
            self.entries.remove(&(before, key));
        }
        self.entries.insert((at, key));
        *scheduled = Some(at);
    }

    /// Removes the entry of the connection `key`, whose time is `scheduled`.
    pub(super) fn remove(&mut self, key: usize, scheduled: Option<Instant>) {
        if let Some(scheduled) = scheduled {
            self.entries.remove(&(scheduled, key));
        }
    }

    /// Removes the first entry if its time has come, and returns the key of its connection.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        let first = *self.entries.first()?;
        if first.0 > now {
            return None;
        }
        self.entries.remove(&first);
        Some(first.1)
    }

    /// Returns the time until the next check, at most `max`.
    pub(super) fn time_to_next(&self, now: Instant, max: Duration) -> Duration {
        self.entries.first().map_or(max, |(at, _)| at.saturating_duration_since(now).min(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_moved_to_an_earlier_time_but_not_to_a_later_one() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut deadlines = Deadlines::default();
        let (mut one, mut two) = (None, None);
        deadlines.schedule(1, &mut one, at(60));
        deadlines.schedule(2, &mut two, at(50));
        deadlines.schedule(1, &mut one, at(10));
        deadlines.schedule(1, &mut one, at(90));
        assert_eq!(one, Some(at(10)));
        assert_eq!(deadlines.time_to_next(start, Duration::from_secs(1)), Duration::from_millis(10));
        assert_eq!(deadlines.pop_due(at(9)), None);
        assert_eq!(deadlines.pop_due(at(10)), Some(1));
        assert_eq!(deadlines.pop_due(at(40)), None);
        deadlines.remove(2, two);
        assert_eq!(deadlines.pop_due(at(1000)), None);
        assert_eq!(deadlines.time_to_next(start, Duration::from_secs(1)), Duration::from_secs(1));
    }
}
