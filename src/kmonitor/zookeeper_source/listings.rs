//! Caches the children of nodes as long as the nodes show that they are unchanged.
//!
//! The children of a node are the same while the id of their last change (`pzxid`) is. So a cycle reads this id and not
//! the list, and of the owners, which are written when they are created only, not the nodes either.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::PartitionId;

/// Longest time that a list is kept without being read again: a server that loads an old snapshot may show an old id.
/// For each node it is shorter by up to a half, or lists that were read together would be read together for ever.
const MAX_AGE: Duration = Duration::from_secs(300);
/// A list that is not needed for this time is forgotten.
const UNUSED_AFTER: Duration = Duration::from_secs(600);

/// The owners of the partitions of a topic.
pub(super) type Owners = Vec<(PartitionId, Arc<str>)>;

/// The lists of one cluster.
#[derive(Default)]
pub(in crate::kmonitor) struct Listings {
    /// The topics with offsets, or with owners, of each module.
    pub(super) topics: Kept<Vec<Arc<str>>>,
    /// The partitions with offsets of each topic.
    pub(super) partitions: Kept<Vec<PartitionId>>,
    /// The owners of each topic.
    pub(super) owners: Kept<Owners>,
}

/// Lists of one kind, by the path of the node.
pub(super) struct Kept<T>(HashMap<Box<str>, Entry<T>>);

struct Entry<T> {
    changed: i64,
    read: Instant,
    used: Instant,
    list: Arc<T>,
}

impl Listings {
    /// Forgets what was not needed lately.
    pub(in crate::kmonitor) fn sweep(&mut self, now: Instant) {
        self.topics.sweep(now);
        self.partitions.sweep(now);
        self.owners.sweep(now);
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(HashMap::new())
    }
}

impl<T> Kept<T> {
    /// Returns the list of the node whose children changed last with `changed`; `None` if it has to be read.
    pub(super) fn get(&mut self, path: &str, changed: i64, now: Instant) -> Option<Arc<T>> {
        let entry = self.0.get_mut(path)?;
        if entry.changed != changed || max_age(path) <= now.saturating_duration_since(entry.read) {
            return None;
        }
        entry.used = now;
        Some(Arc::clone(&entry.list))
    }

    /// Keeps a list that was read at `now`, after `changed` was.
    pub(super) fn put(&mut self, path: &str, changed: i64, list: Arc<T>, now: Instant) {
        // A server that does not know the id would seem to have the same children for ever.
        if 0 < changed {
            self.0.insert(path.into(), Entry { changed, read: now, used: now, list });
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, entry| now.saturating_duration_since(entry.used) < UNUSED_AFTER);
    }
}

/// Returns the longest time that the list of a node is kept.
fn max_age(path: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    MAX_AGE - Duration::from_millis(hasher.finish() % (MAX_AGE.as_millis() as u64 / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_while_the_children_are_the_same_and_not_for_too_long() {
        let (mut kept, start) = (Kept::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        kept.put("/a", 5, Arc::new(vec![1]), start);
        kept.put("/b", 0, Arc::new(vec![2]), start);
        assert_eq!(kept.get("/a", 5, at(149)).as_deref(), Some(&vec![1]));
        assert_eq!(kept.get("/a", 6, at(1)), None);
        assert_eq!(kept.get("/a", 5, at(300)), None);
        assert_eq!(kept.get("/b", 0, start), None, "the id is not known");
        kept.sweep(at(748));
        assert_eq!(kept.0.len(), 1);
        kept.sweep(at(749));
        assert_eq!(kept.0.len(), 0);
    }

    #[test]
    fn lists_that_were_read_together_are_read_again_at_different_times() {
        let (mut kept, start) = (Kept::default(), Instant::now());
        let paths: Vec<String> = (0..1_000).map(|number| format!("/consumers/m{number}/offsets/t")).collect();
        paths.iter().for_each(|path| kept.put(path, 5, Arc::new(()), start));
        let mut in_five_seconds = Vec::new();
        let mut is_due = |path: &String, now| kept.get(path, 5, now).is_none();
        let mut due_before = 0;
        for second in (5..=300).step_by(5) {
            let now = start + Duration::from_secs(second);
            let due = paths.iter().filter(|path| is_due(path, now)).count();
            in_five_seconds.push(due - due_before);
            due_before = due;
        }
        assert_eq!(due_before, paths.len());
        // 33 on average over the last 150 seconds.
        assert!(in_five_seconds.iter().all(|count| *count < 80), "{in_five_seconds:?}");
        assert_eq!(in_five_seconds[..29], [0; 29]);
    }
}
