//! The state of one claimed partition: its window, its messages held back, and the progress of its release.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;

use crate::broker::Message;
use crate::ktransfer::group::Generation;
use crate::ktransfer::job::{Assignment, WindowId};
use crate::ktransfer::window::Window;

/// How far the release of a partition has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReleaseState {
    /// It is not being released.
    Owned,
    /// Until then, each job that a worker has still gets one attempt.
    Draining {
        /// The deadline.
        until: Instant,
    },
    /// Only attempts in flight are awaited.
    AwaitingAttempts,
}

/// One claim of a partition.
pub(super) struct ClaimedPartition {
    pub(super) assignment: Arc<Assignment>,
    pub(super) window_id: WindowId,
    pub(super) window: Window,
    /// Jobs of this claim that workers have.
    pub(super) in_flight: usize,
    /// Messages read but held back by `max_commit_gap`. Bounded: the partition is paused, so there are only those that
    /// were queued at that time.
    pub(super) held_back: VecDeque<Message>,
    pub(super) release: ReleaseState,
    pub(super) commit_point: IntGauge,
}

impl ClaimedPartition {
    /// A new claim, with an empty window.
    pub(super) fn new(assignment: Assignment, window_id: WindowId, commit_point: IntGauge) -> ClaimedPartition {
        ClaimedPartition {
            assignment: Arc::new(assignment),
            window_id,
            window: Window::new(),
            in_flight: 0,
            held_back: VecDeque::new(),
            release: ReleaseState::Owned,
            commit_point,
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.assignment.generation
    }

    /// Whether what was read for `window` belongs to this claim and is to be pushed.
    pub(super) fn is_reading_for(&self, window: WindowId) -> bool {
        self.window_id == window && self.release == ReleaseState::Owned
    }

    /// Begins again with an empty window. Jobs of the earlier window are still in flight, but move no commit point.
    pub(super) fn replace_window(&mut self, window_id: WindowId) {
        self.window_id = window_id;
        self.window = Window::new();
        self.held_back.clear();
    }

    /// First step of the release: retries end, and each queued job gets one attempt until the deadline.
    pub(super) fn begin_drain(&mut self, until: Instant) {
        self.release = ReleaseState::Draining { until };
        self.held_back.clear();
        self.assignment.ending.trigger();
    }

    /// Second step of the release: no attempt begins.
    pub(super) fn end_drain(&mut self) {
        self.release = ReleaseState::AwaitingAttempts;
        self.assignment.stop.trigger();
    }

    /// Whether it is being released and no worker has a job of it.
    pub(super) fn is_drained(&self) -> bool {
        self.release != ReleaseState::Owned && self.in_flight == 0
    }
}
