//! One copy of each name, and which lines were logged already.

use std::collections::HashSet;
use std::sync::Arc;

/// Largest number of different lines that [`LoggedOnce`] remembers. Beyond it no further line is logged.
const MAX_LINES: usize = 1_000;

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

/// Logs each line once. A poll finds the same faults in ZooKeeper every few seconds.
#[derive(Default)]
pub(super) struct LoggedOnce(HashSet<String>);

impl LoggedOnce {
    /// Logs a warning, unless this line was logged before.
    pub(super) fn warn(&mut self, line: String) {
        if self.0.len() < MAX_LINES && !self.0.contains(&line) {
            log::warn!("{line}");
            self.0.insert(line);
        }
    }
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
    fn the_lines_that_are_remembered_are_bounded() {
        let mut logged = LoggedOnce::default();
        (0..2 * MAX_LINES).for_each(|number| logged.warn(format!("line {number}")));
        assert_eq!(logged.0.len(), MAX_LINES);
    }
}
