//! The state of a module that operators see: its dispatcher writes it once a second.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Serialize;

use crate::broker::{Offset, PartitionId};
use crate::ktransfer::read_errors::ReadError;
use crate::locks::lock;

/// The state of a module.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModuleStatus {
    /// The window of the module.
    pub(crate) window: WindowStatus,
    /// The partitions that this process has claimed.
    pub(crate) partitions: Vec<PartitionStatus>,
    /// The backends, in the order of `backend_servers`.
    pub(crate) backends: Vec<BackendStatus>,
    /// The messages done and the attempts that failed since the start of the process.
    pub(crate) messages: MessageCounts,
    /// The rates per second, over the last minute; `None` for the first seconds.
    pub(crate) per_second: Option<MessageRates>,
}

/// Messages by how they ended, and attempts that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct MessageCounts {
    /// Delivered.
    pub(crate) delivered: u64,
    /// Filtered out: their method is not configured or cannot be read, or they are tombstones.
    pub(crate) filtered: u64,
    /// Given up or dropped without a dead letter.
    pub(crate) given_up: u64,
    /// Done because their dead letter is stored.
    pub(crate) dead_lettered: u64,
    /// Skipped by operators.
    pub(crate) skipped: u64,
    /// Attempts without an answer, or whose answer is no delivery.
    pub(crate) failed_attempts: u64,
    /// Messages that wait until their dead letter is stored.
    pub(crate) dead_letters_waiting: u64,
}

/// Messages and attempts in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct MessageRates {
    /// Messages delivered.
    pub(crate) delivered: f64,
    /// Attempts without an answer, or whose answer is no delivery.
    pub(crate) failed_attempts: f64,
}

/// The state of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BackendStatus {
    /// The entry of `backend_servers`.
    pub(crate) server: String,
    /// Whether pushes go to it.
    pub(crate) state: BackendState,
    /// How long ago it was ejected; for a slow start: how long that has lasted. `None` while it is in use.
    pub(crate) since_ms: Option<u64>,
    /// Time until the next probe may begin; `None` while the backend is in use.
    pub(crate) next_probe_ms: Option<u64>,
    /// Pushes to it that are on the wire.
    pub(crate) on_wire: usize,
    /// Failures in a row, while it is in use.
    pub(crate) failures: u32,
    /// Why it was ejected last; `None` if it never was.
    pub(crate) reason: Option<String>,
}

/// Whether pushes go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BackendState {
    /// They do.
    InUse,
    /// It is back, and its share grows to that of the others.
    SlowStart,
    /// Only one push goes to it, as a probe.
    Probed,
    /// None, until the next probe.
    Ejected,
}

/// How much of its bounds a module uses.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WindowStatus {
    /// Messages pushed and not done.
    pub(crate) in_use: usize,
    /// `window_size`.
    pub(crate) size: usize,
    /// Messages that were read and are not done, over all partitions.
    pub(crate) not_done: usize,
    /// Memory of the messages that were read and are not done.
    pub(crate) in_flight_bytes: usize,
    /// `max_in_flight_bytes`.
    pub(crate) max_in_flight_bytes: usize,
}

/// The state of a claimed partition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionStatus {
    /// Number of the partition.
    pub(crate) partition: PartitionId,
    /// Whether it is pushed.
    pub(crate) state: PartitionState,
    /// The offset to store: every message below it is done.
    pub(crate) commit_point: Option<Offset>,
    /// The offset to read next.
    pub(crate) read_to: Option<Offset>,
    /// Messages that were read and are not done.
    pub(crate) not_done: usize,
    /// Messages above the commit point that are done.
    pub(crate) done_ahead: usize,
    /// Messages that were read and wait for `max_commit_gap`.
    pub(crate) held_back: usize,
    /// How long the claim is valid without another proof of the session.
    pub(crate) lease_ms: u64,
    /// Why it cannot be read; `None` if it can.
    pub(crate) read_error: Option<ReadError>,
    /// The message that holds the commit point.
    pub(crate) head: Option<HeadStatus>,
}

/// Whether a partition is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartitionState {
    /// It is.
    Pushing,
    /// An operator has paused it.
    Paused,
    /// An operator has paused it or seeks, and pushes are still on the wire.
    Draining,
    /// An operator seeks, and the new position is not stored yet.
    Seeking,
    /// It is being handed over.
    Releasing,
}

/// The message that holds the commit point of a partition: its head of line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HeadStatus {
    /// Offset of the message.
    pub(crate) offset: Offset,
    /// How long it has held the commit point.
    pub(crate) held_ms: u64,
    /// Its state.
    pub(crate) state: HeadState,
    /// How long its push has been on the wire; `None` if it is not.
    pub(crate) on_wire_ms: Option<u64>,
    /// Its key, shortened and escaped; `None` if it was never pushed.
    pub(crate) key: Option<String>,
    /// Attempts that were begun.
    pub(crate) attempts: u32,
    /// How the latest attempt ended: status or error.
    pub(crate) last: Option<String>,
    /// The backend of the latest attempt.
    pub(crate) backend: Option<String>,
}

/// The state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeadState {
    /// It waits for its first attempt: behind its key, for a slot of the window, or for a worker.
    Queued,
    /// A push of it is on the wire.
    OnWire,
    /// It waits for its next attempt.
    Waiting,
    /// It was given up, and waits until its dead letter is stored.
    DeadLetter,
}

/// The latest status of a module. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct StatusBoard(Arc<Mutex<Option<(Instant, ModuleStatus)>>>);

impl StatusBoard {
    /// Replaces the status.
    pub(crate) fn set(&self, status: ModuleStatus) {
        *lock(&self.0) = Some((Instant::now(), status));
    }

    /// Removes the status: the module does not run.
    pub(crate) fn clear(&self) {
        *lock(&self.0) = None;
    }

    /// Returns the latest status and when it was written.
    pub(crate) fn latest(&self) -> Option<(Instant, ModuleStatus)> {
        lock(&self.0).clone()
    }
}
