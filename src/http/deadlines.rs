//! When to look at which connection next.
//!
//! Each connection has exactly one entry, so that the size is that of the connections. An entry is never later than
//! the connection's true deadline and may be earlier: whoever takes it out looks, and puts it back where it belongs.
//! A deadline that only moves away, as on every request of a busy connection, thereby costs nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The connections of one reader by the time at which they are looked at.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    entries: BTreeSet<(Instant, usize)>,
}

impl Deadlines {
    /// Looks at `key` at `at`; `planned` is when it was to be looked at so far, and is brought up to date.
    pub(super) fn plan(&mut self, key: usize, planned: &mut Option<Instant>, at: Instant) {
        if let Some(before) = *planned {
            if before <= at {
                return;
            }
            self.entries.remove(&(before, key));
        }
        self.entries.insert((at, key));
        *planned = Some(at);
    }

    /// Forgets `key`.
    pub(super) fn forget(&mut self, key: usize, planned: Option<Instant>) {
        if let Some(planned) = planned {
            self.entries.remove(&(planned, key));
        }
    }

    /// Takes out a connection whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<usize> {
        let first = *self.entries.first()?;
        if first.0 > now {
            return None;
        }
        self.entries.remove(&first);
        Some(first.1)
    }

    /// How long until the first one is due, at most `most`.
    pub(super) fn wait(&self, now: Instant, most: Duration) -> Duration {
        self.entries.first().map_or(most, |(at, _)| at.saturating_duration_since(now).min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_moves_nearer_but_not_away() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut deadlines = Deadlines::default();
        let (mut one, mut two) = (None, None);
        deadlines.plan(1, &mut one, at(60));
        deadlines.plan(2, &mut two, at(50));
        deadlines.plan(1, &mut one, at(10));
        deadlines.plan(1, &mut one, at(90));
        assert_eq!(one, Some(at(10)));
        assert_eq!(deadlines.wait(start, Duration::from_secs(1)), Duration::from_millis(10));
        assert_eq!(deadlines.due(at(9)), None);
        assert_eq!(deadlines.due(at(10)), Some(1));
        assert_eq!(deadlines.due(at(40)), None);
        deadlines.forget(2, two);
        assert_eq!(deadlines.due(at(1000)), None);
        assert_eq!(deadlines.wait(start, Duration::from_secs(1)), Duration::from_secs(1));
    }
}
