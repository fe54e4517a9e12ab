//! Sends the progress of a partition to the group: its commit point, and the messages that are done ahead of it.
//!
//! The commit point is sent once for all acknowledgements of a turn. The messages ahead are sent as a snapshot, so that
//! each store of the group has a recent one; the group decides how often it stores.

use std::time::{Duration, Instant};

use super::Dispatcher;
use super::partition::ClaimedPartition;
use crate::broker::PartitionId;
use crate::ktransfer::group::GroupCommand;

/// Longest time from a change of the messages ahead to its snapshot.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(200);
/// Limit on the ranges of one snapshot. What is left out is pushed again after a crash.
const MAX_SNAPSHOT_RANGES: usize = 4096;

impl Dispatcher {
    /// Notes that the commit point or the messages ahead of it have changed.
    pub(super) fn note_progress(&mut self, partition: PartitionId, now: Instant) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if !std::mem::replace(&mut state.has_moved, true) {
            self.changed.push(partition);
        }
        if state.window.done_ahead() > 0 || state.has_snapshot {
            let due = *state.snapshot_due.get_or_insert(now + SNAPSHOT_INTERVAL);
            self.next_snapshot_due = Some(self.next_snapshot_due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// Sends the commit points that have moved in this turn.
    pub(super) fn send_commits(&mut self) {
        for partition in std::mem::take(&mut self.changed) {
            let Some(state) = self.partitions.get_mut(&partition) else { continue };
            state.has_moved = false;
            state.skip_read_offsets();
            if let Some(command) = state.commit_command() {
                self.send_progress(command);
            }
        }
    }

    /// Sends a commit point. If it is of another log than the group knows, a snapshot of that log follows: it has the
    /// id of the topic, and replaces that of the log before.
    pub(super) fn send_progress(&mut self, command: GroupCommand) {
        let new_log = if let GroupCommand::StoreNow { partition, .. } = command { Some(partition) } else { None };
        self.channels.group_commands.send(command);
        if let Some(state) = new_log.and_then(|partition| self.partitions.get_mut(&partition)) {
            let ranges = state.window.ahead(MAX_SNAPSHOT_RANGES);
            (state.snapshot_due, state.has_snapshot) = (None, !ranges.is_empty());
            self.channels.group_commands.send(state.done_ahead_command(ranges));
        }
    }

    /// Sends the snapshots that are due.
    pub(super) fn send_snapshots(&mut self, now: Instant) {
        if self.next_snapshot_due.is_none_or(|due| now < due) {
            return;
        }
        let is_due = |state: &ClaimedPartition| state.snapshot_due.is_some_and(|due| due <= now);
        let due: Vec<PartitionId> =
            self.partitions.iter().filter(|(_, state)| is_due(state)).map(|(partition, _)| *partition).collect();
        for partition in due {
            self.send_snapshot(partition);
        }
        self.next_snapshot_due = self.partitions.values().filter_map(|state| state.snapshot_due).min();
    }

    /// Sends the messages done ahead of the commit point, if they have changed.
    pub(super) fn send_snapshot(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.snapshot_due.take().is_none() {
            return;
        }
        let ranges = state.window.ahead(MAX_SNAPSHOT_RANGES);
        let was_empty = !std::mem::replace(&mut state.has_snapshot, !ranges.is_empty());
        if !(was_empty && ranges.is_empty()) {
            self.channels.group_commands.send(state.done_ahead_command(ranges));
        }
    }
}
