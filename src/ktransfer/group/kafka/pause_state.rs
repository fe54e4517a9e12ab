//! What a member knows of pauses, and the change that it is storing.

use std::time::Instant;

use super::pause_fields::{GroupPauses, PauseFields};
use crate::broker::PartitionId;
use crate::clock::unix_ms;
use crate::ktransfer::pauses::PauseRequest;

/// What the loop knows of pauses, and the change that it is storing.
pub(super) struct Pausing {
    pub(super) known: GroupPauses,
    /// Largest number of a change of the module in the commits that were read last.
    pub(super) stored_module: u64,
    /// Largest number of a change that was attempted, and of a change of the module.
    pub(super) attempted: u64,
    pub(super) attempted_module: u64,
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
        let known = GroupPauses::default();
        Pausing { known, stored_module: 0, attempted: 0, attempted_module: 0, change: None, next_read: now }
    }

    /// Returns the lowest number that the next change may take.
    pub(super) fn lowest_number(&self) -> u64 {
        u64::try_from(unix_ms()).unwrap_or_default().max(self.attempted + 1)
    }

    /// Notes that a commit of these pauses is attempted.
    pub(super) fn note_attempt(&mut self, changed: &GroupPauses) {
        self.attempted = self.attempted.max(changed.largest_number());
        self.attempted_module = self.attempted_module.max(changed.module_number());
    }

    /// Whether a commit has what is known of the module, and no other change of it may be found later: one that was
    /// attempted without a confirmation.
    pub(super) fn is_module_stored(&self) -> bool {
        let number = self.known.module_number();
        self.attempted_module <= number && number <= self.stored_module
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
