//! What a member knows of pauses, and the change that it is storing.

use std::time::Instant;

use super::pause_fields::{GroupPauses, PauseFields};
use crate::broker::PartitionId;
use crate::ktransfer::pauses::PauseRequest;

/// What the loop knows of pauses, and the change that it is storing.
pub(super) struct Pausing {
    pub(super) known: GroupPauses,
    pub(super) change: Option<PendingChange>,
    /// When the pauses of other members are read next.
    pub(super) next_read: Instant,
}

/// A change that is not answered.
pub(super) struct PendingChange {
    pub(super) request: PauseRequest,
    /// No attempt is made before this time.
    pub(super) next_attempt: Instant,
    /// Whether an attempt may have stored it although there was no confirmation.
    pub(super) is_uncertain: bool,
}

impl Pausing {
    pub(super) fn new(now: Instant) -> Pausing {
        Pausing { known: GroupPauses::default(), change: None, next_read: now }
    }

    /// Whether the next change may be taken.
    pub(super) fn accepts(&self) -> bool {
        self.change.is_none()
    }

    /// Returns what a commit of `partition` says.
    pub(super) fn fields(&self, partition: PartitionId) -> PauseFields {
        self.known.fields(partition)
    }
}
