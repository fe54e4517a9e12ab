//! The stored state of a claimed partition, the state to be stored, and when to store it: the same for groups in
//! ZooKeeper and in Kafka.

use std::time::{Duration, Instant};

use super::mailbox::DoneAhead;
use crate::broker::{LogIdentity, Offset, PartitionId};

/// Shortest interval between two stores before the store interval of the configuration.
pub(super) const EARLY_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two early stores, for each partition stored before: at most 100 writes a second.
const EARLY_PAUSE_A_WRITE: Duration = Duration::from_millis(10);
/// Interval for partitions with fewer than [`MANY_AHEAD`] messages ahead.
const RARE_AHEAD_INTERVAL: Duration = Duration::from_secs(2);
/// From this number of messages ahead, a crash would repeat enough pushes to store them every [`EARLY_INTERVAL`].
const MANY_AHEAD: i64 = 16;
/// When the commit point is beyond the stored offset by this number of messages, it is stored at the next early store.
/// So a crash repeats few pushes, whatever the store interval; a slow topic still causes few writes.
const MANY_DONE: i64 = 4;

/// Returns the pause before the next early store, after a store of this number of partitions.
pub(super) fn early_pause(n_stored: usize) -> Duration {
    EARLY_INTERVAL.max(EARLY_PAUSE_A_WRITE.saturating_mul(u32::try_from(n_stored).unwrap_or(u32::MAX)))
}

/// Which partitions to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreScope {
    /// Released partitions, those of the command `StoreNow`, and those without a stored offset: the next owner would
    /// look `start_from` up again and might start at another offset.
    Urgent,
    /// Those with messages that are done and not stored, as often as their number requires.
    Early,
    /// All whose commit point or messages ahead have changed.
    All,
}

/// The progress of one claim.
#[derive(Debug)]
pub(super) struct Progress {
    /// The offset that is stored; `None` if none is stored.
    pub(super) stored: Option<Offset>,
    /// Whether `stored` and `stored_ahead` are certain: no store of anything else ended without a response.
    is_certain: bool,
    /// The latest commit, to be stored if it differs from `stored`.
    pub(super) committed: Option<Offset>,
    /// `committed` and `ahead` are to be stored at once.
    pub(super) is_urgent: bool,
    /// What is done ahead of the stored offset, as it is stored.
    pub(super) stored_ahead: DoneAhead,
    /// The latest snapshot of what is done ahead, to be stored if it differs from `stored_ahead`.
    pub(super) ahead: DoneAhead,
    /// When `stored_ahead` was stored.
    ahead_stored_at: Instant,
}

impl Progress {
    /// The progress of a claim that begins: this is stored.
    pub(super) fn new(stored: Option<Offset>, ahead: DoneAhead) -> Progress {
        Progress {
            stored,
            is_certain: true,
            committed: None,
            is_urgent: false,
            stored_ahead: ahead.clone(),
            ahead,
            ahead_stored_at: Instant::now(),
        }
    }

    /// Takes a position to store at once. It replaces an earlier commit and snapshot.
    pub(super) fn start_at(&mut self, next: Offset, log: LogIdentity) {
        let LogIdentity { topic_id, leader_epoch } = log;
        self.ahead = DoneAhead { topic_id, leader_epoch, ..DoneAhead::default() };
        (self.committed, self.is_urgent) = (Some(next), true);
    }

    /// Returns the position of [`start_at`](Self::start_at) once, if it is stored already, so that no store follows.
    pub(super) fn take_stored_start(&mut self) -> Option<Offset> {
        if !self.is_urgent || self.has_new_offset() || self.has_new_ahead() {
            return None;
        }
        self.is_urgent = false;
        self.stored
    }

    /// Takes a snapshot of what is done ahead, which has no leader epoch of the commit point.
    pub(super) fn set_ahead(&mut self, ahead: DoneAhead) {
        self.ahead = DoneAhead { leader_epoch: self.ahead.leader_epoch, ..ahead };
    }

    /// Notes that this offset and what is done ahead of it were stored.
    pub(super) fn note_stored(&mut self, next: Offset, ahead: DoneAhead) {
        (self.stored, self.stored_ahead, self.is_certain) = (Some(next), ahead, true);
        (self.ahead_stored_at, self.is_urgent) = (Instant::now(), false);
    }

    /// Notes that a store got no response: until the next one that does, either may be stored, and so something is to
    /// be stored even if it is what was stored before.
    pub(super) fn note_unanswered(&mut self, next: Offset, ahead: &DoneAhead) {
        self.is_certain &= (self.stored, &self.stored_ahead) == (Some(next), ahead);
    }

    /// The offset to store; `None` before the first commit.
    pub(super) fn next(&self) -> Option<Offset> {
        self.committed.or(self.stored)
    }

    pub(super) fn has_new_offset(&self) -> bool {
        self.committed.is_some() && (self.committed != self.stored || !self.is_certain)
    }

    /// Whether messages are done ahead that are not stored, and an offset that they can be stored with.
    pub(super) fn has_new_ahead(&self) -> bool {
        (self.ahead != self.stored_ahead || !self.is_certain) && self.next().is_some()
    }

    /// Whether the commit point has moved by so much that a crash would repeat many pushes.
    fn has_many_new_done(&self) -> bool {
        let (Some(committed), Some(stored)) = (self.committed, self.stored) else { return false };
        MANY_DONE <= committed.saturating_sub(stored).saturating_abs()
    }

    /// Whether something is to be stored now. `is_released`: the claim ends with this store.
    pub(super) fn is_due(&self, scope: StoreScope, is_released: bool, now: Instant) -> bool {
        let has_changed = self.has_new_offset() || self.has_new_ahead();
        match scope {
            StoreScope::All => has_changed,
            StoreScope::Urgent if self.is_urgent || is_released => has_changed,
            StoreScope::Urgent => self.has_new_offset() && self.stored.is_none(),
            StoreScope::Early if self.has_many_new_done() => true,
            StoreScope::Early => {
                let n_ahead: i64 = self.ahead.ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
                let log = |ahead: &DoneAhead| (ahead.topic_id, ahead.leader_epoch);
                let is_other_log = log(&self.ahead) != log(&self.stored_ahead);
                let is_old = RARE_AHEAD_INTERVAL <= now.saturating_duration_since(self.ahead_stored_at);
                self.has_new_ahead() && (MANY_AHEAD <= n_ahead || is_other_log || is_old)
            }
        }
    }
}

/// Lists the offsets that are not stored, as text for an error that a stop reports; empty without any.
pub(super) fn unstored<'a>(progress: impl Iterator<Item = (PartitionId, &'a Progress)>) -> String {
    let shown = |offset: Option<Offset>| offset.map_or("none".to_owned(), |offset| offset.to_string());
    let has_unstored = |progress: &Progress| progress.committed.is_some() && progress.committed != progress.stored;
    let unstored = progress.filter(|(_, progress)| has_unstored(progress));
    let listed: Vec<String> = unstored
        .map(|(partition, progress)| {
            format!("{partition} at {} (stored: {})", shown(progress.committed), shown(progress.stored))
        })
        .collect();
    match listed.is_empty() {
        true => String::new(),
        false => format!("offsets not stored, so their messages are pushed again: {}; ", listed.join(", ")),
    }
}
