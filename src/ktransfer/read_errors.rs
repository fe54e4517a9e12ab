//! Which partitions of a module cannot be read, since when and why: the fetch loop writes it, `/readyz`, `/v1/modules`
//! and the page show it.
//!
//! An error lasts until the partition is read again, even if there is no message to read. An election or a restart of a
//! broker is over within seconds, so `/readyz` fails only after [`PATIENCE`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::broker::PartitionId;
use crate::locks::lock;

/// How long a partition cannot be read before the module counts as not ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// The partitions of one module that cannot be read. Clones share the table, which has at most one entry for each
/// assigned partition.
#[derive(Clone, Default)]
pub(crate) struct ReadErrors(Arc<Mutex<BTreeMap<PartitionId, LastingError>>>);

struct LastingError {
    since: Instant,
    /// The latest reason.
    reason: String,
}

/// Why a partition cannot be read, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ReadError {
    /// The latest reason.
    pub(crate) reason: String,
    /// How long the partition has not been readable.
    pub(crate) for_ms: u64,
}

impl ReadErrors {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionId, LastingError>> {
        lock(&self.0)
    }

    /// Notes that a partition cannot be read.
    pub(super) fn note(&self, partition: PartitionId, reason: String, now: Instant) {
        self.lock().entry(partition).or_insert_with(|| LastingError { since: now, reason: String::new() }).reason =
            reason;
    }

    /// Notes that a partition can be read, or is not to be read.
    pub(super) fn clear(&self, partition: PartitionId) {
        self.lock().remove(&partition);
    }

    /// Notes that no partition is to be read.
    pub(super) fn clear_all(&self) {
        self.lock().clear();
    }

    /// Returns why a partition cannot be read; `None` if it can.
    pub(super) fn of(&self, partition: PartitionId, now: Instant) -> Option<ReadError> {
        self.lock().get(&partition).map(|error| ReadError {
            reason: error.reason.clone(),
            for_ms: u64::try_from(now.saturating_duration_since(error.since).as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Returns which partitions of `topic` have not been readable for [`PATIENCE`], with the reason of the first.
    pub(super) fn trouble(&self, topic: &str, now: Instant) -> Option<String> {
        let errors = self.lock();
        let mut lasting = errors.iter().filter(|(_, error)| error.since + PATIENCE <= now);
        let (partition, first) = lasting.next()?;
        let more = match lasting.count() {
            0 => String::new(),
            more => format!(" (and {more} more partitions cannot be read)"),
        };
        Some(format!("{topic}/{partition} cannot be read: {}{more}", first.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_lasts_is_trouble_until_the_partition_is_read_again() {
        let (errors, start) = (ReadErrors::default(), Instant::now());
        let second = Duration::from_secs(1);
        errors.note(3, "no leader".to_owned(), start);
        assert_eq!(errors.trouble("t", start + PATIENCE - second), None, "an election ends sooner");
        // A repeated error is the same error.
        errors.note(3, "TOPIC_AUTHORIZATION_FAILED".to_owned(), start + 9 * second);
        errors.note(4, "another".to_owned(), start + 9 * second);
        let shown = errors.of(3, start + PATIENCE).unwrap();
        assert_eq!((&*shown.reason, shown.for_ms), ("TOPIC_AUTHORIZATION_FAILED", 10_000));
        let one = "t/3 cannot be read: TOPIC_AUTHORIZATION_FAILED";
        assert_eq!(errors.trouble("t", start + PATIENCE).unwrap(), one);
        let both = format!("{one} (and 1 more partitions cannot be read)");
        assert_eq!(errors.trouble("t", start + 20 * second).unwrap(), both);
        errors.clear(3);
        assert_eq!(errors.trouble("t", start + 20 * second).unwrap(), "t/4 cannot be read: another");
        assert_eq!(errors.of(3, start + 20 * second), None);
        // After it was read, the same error begins once more.
        errors.note(3, "no leader".to_owned(), start + 20 * second);
        assert_eq!(errors.trouble("t", start + 20 * second).unwrap(), "t/4 cannot be read: another");
        errors.clear_all();
        assert_eq!(errors.trouble("t", start + 60 * second), None);
    }
}
