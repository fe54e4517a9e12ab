//! The state of one claimed partition: its window, the messages held back, and the progress of its release.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;

use super::log_track::LogTrack;
use crate::broker::{Message, Offset};
use crate::ktransfer::fetcher::StartPosition;
use crate::ktransfer::group::{Generation, GroupCommand};
use crate::ktransfer::job::{Assignment, WindowId};
use crate::ktransfer::window::Window;

/// The state of the release of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReleaseState {
    /// The partition is not being released.
    Owned,
    /// Until the deadline, each job that a worker has still gets one attempt.
    Draining {
        /// Deadline of the drain.
        until: Instant,
    },
    /// No further attempt begins. The partition is released when the attempts in flight have ended.
    AwaitingAttempts,
}

/// The state of one claim on a partition.
pub(super) struct ClaimedPartition {
    pub(super) assignment: Arc<Assignment>,
    pub(super) window_id: WindowId,
    pub(super) window: Window,
    /// How far the partition was read, and in which log.
    pub(super) log: LogTrack,
    /// Number of jobs of this claim that workers have.
    pub(super) in_flight: usize,
    /// Messages read but held back by `max_commit_gap`. Bounded: the partition is paused, so only messages that were
    /// already read or prefetched are added.
    pub(super) held_back: VecDeque<Message>,
    pub(super) release: ReleaseState,
    /// The metric that shows the commit point.
    pub(super) commit_point: IntGauge,
}

impl ClaimedPartition {
    /// Creates the state of a new claim, with an empty window. `start`: the stored position.
    pub(super) fn new(
        assignment: Assignment,
        window_id: WindowId,
        commit_point: IntGauge,
        start: Option<StartPosition>,
    ) -> ClaimedPartition {
        ClaimedPartition {
            assignment: Arc::new(assignment),
            window_id,
            window: start.map_or_else(Window::new, |start| Window::starting_at(start.offset)),
            log: LogTrack::starting_at(start),
            in_flight: 0,
            held_back: VecDeque::new(),
            release: ReleaseState::Owned,
            commit_point,
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.assignment.generation
    }

    /// Whether messages read for `window` belong to this claim and are to be pushed.
    pub(super) fn is_reading_for(&self, window: WindowId) -> bool {
        self.window_id == window && self.release == ReleaseState::Owned
    }

    /// Replaces the window by an empty one that starts at `start`. Jobs of the earlier window may still be in flight;
    /// they move no commit point.
    pub(super) fn replace_window(&mut self, window_id: WindowId, start: StartPosition) {
        self.window_id = window_id;
        self.window = Window::starting_at(start.offset);
        self.log = LogTrack::starting_at(Some(start));
        self.held_back.clear();
    }

    /// Moves the commit point to the position of reading if all messages before it are done. It is behind the last
    /// message where transaction markers or aborted messages follow. Returns the commit point if it moved.
    pub(super) fn skip_read_offsets(&mut self) -> Option<Offset> {
        let has_all_messages = self.log.last_message().is_none_or(|last| self.window.has_passed(last));
        self.log.next().filter(|_| has_all_messages).and_then(|next| self.window.skip_to(next))
    }

    /// Returns the command that stores `next`: at once if the group does not know the log that it belongs to.
    pub(super) fn commit_command(&mut self, next: Offset) -> GroupCommand {
        let (partition, generation) = (self.assignment.partition, self.assignment.generation);
        match self.log.new_identity(next) {
            Some(log) => GroupCommand::StoreNow { partition, generation, next, log },
            None => GroupCommand::Commit { partition, generation, next },
        }
    }

    /// Takes the first step of the release: retries end, and until the deadline each queued job still gets one attempt.
    pub(super) fn begin_drain(&mut self, until: Instant) {
        self.release = ReleaseState::Draining { until };
        self.held_back.clear();
        self.assignment.ending.trigger();
    }

    /// Takes the second step of the release: no further attempt begins.
    pub(super) fn end_drain(&mut self) {
        self.release = ReleaseState::AwaitingAttempts;
        self.assignment.stop.trigger();
    }

    /// Whether the partition is being released and no worker has a job of it.
    pub(super) fn is_drained(&self) -> bool {
        self.release != ReleaseState::Owned && self.in_flight == 0
    }
}

/// Returns the offset as text for a log line.
pub(super) fn shown(offset: Option<Offset>) -> String {
    offset.map_or_else(|| "unknown".to_owned(), |offset| offset.to_string())
}
