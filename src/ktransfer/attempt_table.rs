//! The attempts of a module's workers, for operators: the push of each worker that is on the wire, and the messages
//! whose latest attempt failed. The status shows them for the message that holds a commit point.
//!
//! A push that succeeds at once costs one lock that only its worker uses. Invariant: the failed messages in the table
//! are not acknowledged, so `window_size` bounds those that are retried, and `max_commit_gap` and the memory budget
//! bound those that wait for their dead letters.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::group::Generation;
use super::job::{Job, WindowId};
use super::policy::AttemptOutcome;
use crate::broker::{Offset, PartitionId};
use crate::locks::lock;

/// Number of bytes of a key that are shown.
const MAX_KEY_BYTES: usize = 64;
/// Number of characters of the outcome of an attempt that are shown.
const MAX_OUTCOME_CHARS: usize = 200;

/// A message under one claim of its partition. Messages of two logs at one offset have different windows.
pub(super) type ClaimedOffset = (PartitionId, Generation, WindowId, Offset);

/// The table of one module, for a fixed number of workers.
#[derive(Debug)]
pub(super) struct AttemptTable {
    /// The push of each worker.
    on_wire: Box<[Mutex<Option<PushOnWire>>]>,
    failed: Mutex<HashMap<ClaimedOffset, LatestFailure>>,
}

/// A push that has begun and not ended.
#[derive(Clone, Debug)]
pub(super) struct PushOnWire {
    message: ClaimedOffset,
    pub(super) key: ShortKey,
    /// Number of the attempt, from 1.
    pub(super) attempt: u32,
    /// The entry of `backend_servers`.
    pub(super) backend: Arc<str>,
    pub(super) began: Instant,
}

/// The latest attempt of a message, which failed.
#[derive(Clone, Debug)]
pub(super) struct LatestFailure {
    pub(super) key: ShortKey,
    /// Number of attempts made.
    pub(super) attempts: u32,
    /// How the latest attempt ended: its status or error.
    pub(super) outcome: String,
    /// The backend of the latest attempt.
    pub(super) backend: String,
}

/// The first bytes of a key. `Display` escapes what is not printable ASCII.
#[derive(Clone, Copy)]
pub(super) struct ShortKey {
    bytes: [u8; MAX_KEY_BYTES],
    length: u8,
    is_cut: bool,
}

impl ShortKey {
    pub(super) fn of(key: Option<&[u8]>) -> ShortKey {
        let key = key.unwrap_or_default();
        let length = key.len().min(MAX_KEY_BYTES);
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes[..length].copy_from_slice(&key[..length]);
        ShortKey { bytes, length: u8::try_from(length).unwrap_or(0), is_cut: length < key.len() }
    }
}

impl fmt::Display for ShortKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.is_cut { "…" } else { "" };
        write!(formatter, "{}{end}", self.bytes[..usize::from(self.length)].escape_ascii())
    }
}

impl fmt::Debug for ShortKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.to_string())
    }
}

fn claimed_offset(job: &Job) -> ClaimedOffset {
    (job.assignment.partition, job.assignment.generation, job.window, job.message.offset)
}

impl AttemptTable {
    /// Creates an empty table for this number of workers.
    pub(super) fn new(workers: usize) -> AttemptTable {
        AttemptTable { on_wire: (0..workers).map(|_| Mutex::default()).collect(), failed: Mutex::default() }
    }

    /// Notes that a worker begins an attempt; `attempt` counts from 1, `backend` is the entry of
    /// `backend_servers`.
    pub(super) fn begin(&self, worker: usize, job: &Job, attempt: u32, backend: &Arc<str>) {
        let (message, key) = (claimed_offset(job), ShortKey::of(job.message.key.as_deref()));
        let push = PushOnWire { message, key, attempt, backend: Arc::clone(backend), began: Instant::now() };
        *lock(&self.on_wire[worker]) = Some(push);
    }

    /// Notes that the attempt of a worker has ended.
    pub(super) fn end(&self, worker: usize) {
        *lock(&self.on_wire[worker]) = None;
    }

    /// Notes that an attempt failed, and that another one or a dead letter follows. [`forget`](Self::forget) must
    /// follow.
    pub(super) fn note_failure(&self, job: &Job, attempts: u32, outcome: &AttemptOutcome, backend: &str) {
        let failure = LatestFailure {
            key: ShortKey::of(job.message.key.as_deref()),
            attempts,
            outcome: outcome.to_string().chars().take(MAX_OUTCOME_CHARS).collect(),
            backend: backend.to_owned(),
        };
        lock(&self.failed).insert(claimed_offset(job), failure);
    }

    /// Removes a message whose work has ended.
    pub(super) fn forget(&self, job: &Job) {
        lock(&self.failed).remove(&claimed_offset(job));
    }

    /// Returns the pushes on the wire.
    pub(super) fn on_wire(&self) -> HashMap<ClaimedOffset, PushOnWire> {
        self.on_wire.iter().filter_map(|push| lock(push).clone()).map(|push| (push.message, push)).collect()
    }

    /// Returns the latest failure of a message; `None` if no attempt of it has failed.
    pub(super) fn failure(&self, message: &ClaimedOffset) -> Option<LatestFailure> {
        lock(&self.failed).get(message).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::test_fixtures::job;

    #[test]
    fn a_key_is_shortened_and_escaped() {
        for (key, shown) in [
            (None, String::new()),
            (Some(&b"a\n\xff\""[..]), "a\\n\\xff\\\"".to_owned()),
            (Some(&[b'x'; 64]), "x".repeat(64)),
            (Some(&[b'x'; 65]), format!("{}…", "x".repeat(64))),
        ] {
            assert_eq!(ShortKey::of(key).to_string(), shown);
        }
    }

    #[test]
    fn the_table_has_the_pushes_on_the_wire_and_the_failures_until_they_end() {
        let (table, job) = (AttemptTable::new(2), job(Some(b"k"), None, &[]));
        let message = claimed_offset(&job);
        table.begin(1, &job, 3, &"b:80".into());
        let push = &table.on_wire()[&message];
        assert_eq!((push.attempt, &*push.backend, push.key.to_string()), (3, "b:80", "k".to_owned()));
        table.end(1);
        assert!(table.on_wire().is_empty());
        let outcome = AttemptOutcome::Impossible { reason: "e".repeat(5_000) };
        table.note_failure(&job, 3, &outcome, "b:80");
        let failure = table.failure(&message).expect("noted");
        assert_eq!((failure.attempts, &*failure.backend, failure.outcome.len()), (3, "b:80", MAX_OUTCOME_CHARS));
        table.forget(&job);
        assert!(table.failure(&message).is_none());
    }
}
