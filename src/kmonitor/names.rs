//! Interns names, and records which lines were logged already.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest number of different lines that [`LoggedOnce`] logs in [`FORGET_AFTER`].
const MAX_LINES: usize = 1_000;
/// After this time the lines are forgotten if there were too many.
const FORGET_AFTER: Duration = Duration::from_secs(86_400);
/// Longest line or cause. The names in ZooKeeper and Kafka may be very long.
const MAX_LINE_BYTES: usize = 1_000;

/// Keeps one copy of each topic name, which all partitions and modules of the topic share.
#[derive(Default)]
pub(super) struct NameInterner(HashSet<Arc<str>>);

impl NameInterner {
    /// Returns the shared copy of `name`.
    pub(super) fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.0.insert(Arc::clone(&name));
        name
    }

    /// Forgets the names that nobody uses any more.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|name| 1 < Arc::strong_count(name));
    }
}

/// Logs each line once, as far as it is not too long. A poll finds the same faults in ZooKeeper every few seconds.
#[derive(Default)]
pub(super) struct LoggedOnce {
    hasher: RandomState,
    /// The hashes of the lines.
    lines: HashSet<u64>,
    /// When there were too many.
    full_since: Option<Instant>,
}

impl LoggedOnce {
    /// Logs a warning, unless this line was logged before.
    pub(super) fn warn(&mut self, line: String) {
        if let Some(line) = self.line(line, Instant::now()) {
            log::warn!("{line}");
        }
    }

    /// Returns what is logged of `line` at `now`.
    fn line(&mut self, line: String, now: Instant) -> Option<String> {
        let hash = self.hasher.hash_one(&line);
        if self.lines.contains(&hash) {
            return None;
        }
        if let Some(since) = self.full_since {
            if now.saturating_duration_since(since) < FORGET_AFTER {
                return None;
            }
            self.lines.clear();
            self.full_since = None;
        }
        self.lines.insert(hash);
        if MAX_LINES <= self.lines.len() {
            self.full_since = Some(now);
            return Some(format!("{} (one of many: no further ones are logged for a day)", shortened(line)));
        }
        Some(shortened(line))
    }
}

/// Cuts a text that is too long for a line of the log.
pub(super) fn shortened(mut text: String) -> String {
    if MAX_LINE_BYTES < text.len() {
        text.truncate(text.floor_char_boundary(MAX_LINE_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once_and_as_long_as_it_is_used() {
        let mut names = NameInterner::default();
        let (first, second) = (names.intern("t"), names.intern("t"));
        assert!(Arc::ptr_eq(&first, &second));
        names.intern("unused");
        names.sweep();
        assert_eq!(names.0.len(), 1);
    }

    #[test]
    fn the_lines_that_are_logged_are_bounded_in_number_and_length() {
        let (mut logged, start) = (LoggedOnce::default(), Instant::now());
        let mut count = |from: usize, now| {
            (from..from + 2 * MAX_LINES).filter_map(|number| logged.line(format!("line {number}"), now)).count()
        };
        assert_eq!(count(0, start), MAX_LINES);
        assert_eq!(count(0, start + FORGET_AFTER / 2), 0);
        assert_eq!(count(5_000, start + FORGET_AFTER), MAX_LINES);
        let mut logged = LoggedOnce::default();
        let long = "ü".repeat(MAX_LINE_BYTES);
        let line = logged.line(long.clone(), start).unwrap();
        assert!((MAX_LINE_BYTES..MAX_LINE_BYTES + 4).contains(&line.len()) && line.ends_with('…'), "{}", line.len());
        assert_eq!(logged.line(long.clone(), start), None);
        assert!(logged.line(long + "x", start).is_some(), "another line, although it begins as the one before");
        assert_eq!(shortened("short".into()), "short");
    }
}
