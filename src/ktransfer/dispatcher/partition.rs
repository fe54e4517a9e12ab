//! The state of one claimed partition: its window, the messages held back, and the progress of its release.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;

use super::hold::{Head, Interruption};
use super::log_position::LogPosition;
use crate::broker::{Message, Offset};
use crate::ktransfer::fetcher::StartPosition;
use crate::ktransfer::group::{Claim, Generation, GroupCommand};
use crate::ktransfer::job::{Ack, Assignment, ClaimPhase, JobEnd, WindowId};
use crate::ktransfer::memory_budget::BudgetShare;
use crate::ktransfer::window::Window;

/// The state of the release of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReleaseState {
    /// The partition is not being released.
    Owned,
    /// Until the deadline, each job below the highest offset that was pushed still gets one attempt.
    Draining {
        /// Deadline of the drain.
        until: Instant,
    },
    /// No further attempt begins, and the pushes in flight were cut. The partition is released when the workers have
    /// acknowledged that, at the latest at the deadline.
    Cut {
        /// Deadline of the acknowledgements.
        until: Instant,
    },
}

impl ReleaseState {
    /// Returns the deadline of this state.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            ReleaseState::Owned => None,
            ReleaseState::Draining { until } | ReleaseState::Cut { until } => Some(until),
        }
    }
}

/// The state of one claim on a partition.
pub(super) struct ClaimedPartition {
    pub(super) claim: Claim,
    pub(super) assignment: Arc<Assignment>,
    pub(super) window_id: WindowId,
    pub(super) window: Window,
    /// The first window of the log that is read: offsets of earlier windows may mean other messages.
    log_since: WindowId,
    /// The jobs among `in_flight` whose messages were given up, and wait for their dead letters.
    letters: BTreeSet<(Offset, WindowId)>,
    /// Those whose messages may have been replaced since: their letters say nothing about the present log.
    void_letters: BTreeSet<(Offset, WindowId)>,
    /// How far the partition was read, and in which log.
    pub(super) log: LogPosition,
    /// The highest leader epoch that had been read when the messages were done that the window takes as done before;
    /// `None` if it is unknown.
    done_before_epoch: Option<i32>,
    /// Number of jobs of this claim that are not acknowledged.
    pub(super) in_flight: usize,
    /// Messages read but held back by `max_commit_gap`.
    pub(super) held_back: VecDeque<(Message, BudgetShare)>,
    /// Whether the latest command to the fetch loop about this partition is `Pause`.
    pub(super) is_paused: bool,
    /// Whether the partition is in the dispatcher's list of those whose commit point may have moved in this turn.
    pub(super) has_moved: bool,
    /// The commit point that was sent to the group last.
    pub(super) commit_sent: Option<Offset>,
    /// When the messages done ahead of the commit point are sent to the group next; `None` if they have not changed.
    pub(super) snapshot_due: Option<Instant>,
    /// Whether the group has a snapshot with messages.
    pub(super) has_snapshot: bool,
    pub(super) release: ReleaseState,
    /// Why the partition is not pushed although it is owned; `None` if it is pushed.
    pub(super) interruption: Option<Interruption>,
    /// Whether an operator has paused the partition.
    pub(super) is_held_by_operator: bool,
    /// The message that holds the commit point, as of the latest status.
    pub(super) head: Option<Head>,
    /// The metric that shows the commit point.
    pub(super) commit_point: IntGauge,
}

impl ClaimedPartition {
    /// Creates the state of a new claim. Its window has no message yet.
    pub(super) fn new(claim: &Claim, window_id: WindowId, commit_point: IntGauge) -> ClaimedPartition {
        let (window, start) = match &claim.position {
            None => (Window::new(), None),
            Some(stored) => {
                commit_point.set(stored.next);
                let start = StartPosition { offset: stored.next, log: stored.log() };
                (Window::resuming(stored.next, &stored.done_ahead), Some(start))
            }
        };
        ClaimedPartition {
            claim: claim.clone(),
            assignment: Arc::new(Assignment::new(claim)),
            window_id,
            window,
            log_since: window_id,
            letters: BTreeSet::new(),
            void_letters: BTreeSet::new(),
            log: LogPosition::starting_at(start),
            // A snapshot of an earlier version has only the epoch of the commit point.
            done_before_epoch: claim.position.as_ref().and_then(|stored| stored.read_epoch.or(stored.leader_epoch)),
            in_flight: 0,
            held_back: VecDeque::new(),
            is_paused: false,
            has_moved: false,
            commit_sent: claim.position.as_ref().map(|stored| stored.next),
            snapshot_due: None,
            has_snapshot: claim.position.as_ref().is_some_and(|stored| !stored.done_ahead.is_empty()),
            release: ReleaseState::Owned,
            interruption: None,
            is_held_by_operator: false,
            head: None,
            commit_point,
        }
    }

    /// Looks at the leader epoch of messages that were read, before they are taken. If it is above all epochs that had
    /// been read when messages were done before, these may have been cut off and replaced, so all that were not read
    /// again are pushed, also those whose dead letters are on their way since before a pause.
    ///
    /// Why this is enough: an unclean election makes a broker the leader that misses messages at the end of the log.
    /// What it appends in their place has its epoch, which is above that of every earlier leader, so above every epoch
    /// that was read before. Epochs do not fall along a log: before the first replaced message is taken, its batch has
    /// shown such an epoch. A leader that changed in order left the messages and their epochs as they are, so nothing
    /// is repeated for it. (A second unclean election may bring older messages back, with their older epochs. No
    /// consumer notices that above its position.)
    pub(super) fn note_epoch_read(&mut self, leader_epoch: Option<i32>) {
        if let (Some(before), Some(read)) = (self.done_before_epoch, leader_epoch)
            && before < read
        {
            self.window.repeat_done_before();
            let next = self.log.next().unwrap_or(Offset::MIN);
            self.void_letters.append(&mut self.letters.split_off(&(next, WindowId(0))));
        }
    }

    /// Returns the highest leader epoch that was read of the messages that are done: in this window, or before.
    fn read_epoch(&self) -> Option<i32> {
        self.done_before_epoch.max(self.log.read_epoch())
    }

    /// Returns the command that stores these messages as done ahead of the commit point.
    pub(super) fn done_ahead_command(&self, ranges: Vec<Range<Offset>>) -> GroupCommand {
        let (partition, generation) = (self.assignment.partition, self.generation());
        let read_epoch = self.read_epoch().filter(|_| !ranges.is_empty());
        let (topic_id, ranges) = (self.log.topic_id(), ranges.into());
        GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch }
    }

    pub(super) fn generation(&self) -> Generation {
        self.assignment.generation
    }

    /// Returns the number of jobs that are not acknowledged and do not wait for their dead letter.
    pub(super) fn n_pushing(&self) -> usize {
        self.in_flight.saturating_sub(self.letters.len() + self.void_letters.len())
    }

    /// Notes that a message waits for its dead letter.
    pub(super) fn note_letter(&mut self, window: WindowId, offset: Offset) {
        self.letters.insert((offset, window));
    }

    /// Whether the message at `offset` of the present log waits for its dead letter: it must not be pushed again.
    pub(super) fn awaits_letter(&self, offset: Offset) -> bool {
        self.window_of_letter(offset).is_some()
    }

    /// Returns the window of the job at `offset` of the present log that waits for its dead letter.
    fn window_of_letter(&self, offset: Offset) -> Option<WindowId> {
        let (found, window) = self.letters.range((offset, self.log_since)..).next()?;
        (*found == offset).then_some(*window)
    }

    /// Returns the window of the job that may end the message at `offset` of the present log.
    pub(super) fn job_window(&self, offset: Offset) -> WindowId {
        self.window_of_letter(offset).unwrap_or(self.window_id)
    }

    /// Whether a job of this window at `offset` may still end the message there.
    pub(super) fn is_job_of(&self, window: WindowId, offset: Offset) -> bool {
        window == self.window_id || self.window_of_letter(offset) == Some(window)
    }

    /// Ends a job. If it is done, marks the message done, also if it is of an earlier window of the present log: then
    /// it had to wait for its dead letter across a pause. Returns whether the message was marked, and whether the
    /// commit point moved.
    pub(super) fn end_job(&mut self, ack: &Ack) -> (bool, bool) {
        self.in_flight -= 1;
        let had_letter = self.letters.remove(&(ack.offset, ack.window));
        self.void_letters.remove(&(ack.offset, ack.window));
        let is_of_window = ack.window == self.window_id || had_letter && self.log_since <= ack.window;
        if ack.end != JobEnd::Done || !is_of_window {
            return (false, false);
        }
        (true, self.window.finish(ack.offset).is_some())
    }

    /// Whether messages read for `window` belong to this claim and are to be pushed.
    pub(super) fn is_reading_for(&self, window: WindowId) -> bool {
        self.window_id == window && self.release == ReleaseState::Owned && self.interruption.is_none()
    }

    /// Replaces the window by an empty one that starts at `start`, which the group receives otherwise. Jobs of the
    /// earlier window may still be in flight; they move no commit point. `keeps_log`: messages of that window may still
    /// be in the log and are read again. So they keep their order and their retries.
    pub(super) fn replace_window(&mut self, window_id: WindowId, start: StartPosition, keeps_log: bool) {
        (self.window_id, self.log_since) = (window_id, window_id);
        if !keeps_log {
            self.assignment.begin_log(window_id);
        }
        self.window = Window::starting_at(start.offset);
        self.done_before_epoch = None;
        self.log = LogPosition::starting_at(Some(start));
        self.commit_sent = Some(start.offset);
        self.commit_point.set(start.offset);
        self.held_back.clear();
        self.is_paused = false;
    }

    /// Replaces the window by one that continues at the commit point, without the messages that are done ahead of it.
    /// No job of the earlier window may be in flight, but those that wait for their dead letters. Returns where
    /// reading starts.
    pub(super) fn resume_window(&mut self, window_id: WindowId) -> Option<StartPosition> {
        self.window_id = window_id;
        let start = self.window.commit_point().map(|offset| StartPosition { offset, log: self.log.identity(offset) });
        self.window = match start {
            Some(start) => Window::resuming(start.offset, &self.window.ahead(usize::MAX)),
            None => Window::new(),
        };
        self.done_before_epoch = self.read_epoch();
        self.log = LogPosition::starting_at(start);
        start
    }

    /// Moves the commit point to the position of reading if all messages before it are done. It is behind the last
    /// message where transaction markers or aborted messages follow.
    pub(super) fn skip_read_offsets(&mut self) {
        let has_all_messages = self.log.last_message().is_none_or(|last| self.window.has_passed(last));
        if let Some(next) = self.log.next().filter(|_| has_all_messages) {
            self.window.skip_to(next);
        }
    }

    /// Returns the command that stores the commit point if it has moved since the last call: at once if the group does
    /// not know the log that it belongs to.
    pub(super) fn commit_command(&mut self) -> Option<GroupCommand> {
        let next = self.window.commit_point()?;
        if self.commit_sent.replace(next) == Some(next) {
            return None;
        }
        self.commit_point.set(next);
        Some(self.store_command(next))
    }

    /// Returns the command that stores `next`: at once if the group does not know the log that it belongs to.
    pub(super) fn store_command(&mut self, next: Offset) -> GroupCommand {
        let (partition, generation) = (self.assignment.partition, self.assignment.generation);
        match self.log.new_identity(next) {
            Some(log) => GroupCommand::StoreNow { partition, generation, next, log },
            None => GroupCommand::Commit { partition, generation, next },
        }
    }

    /// Takes the first step of the release: retries end, and until the deadline each job below the highest offset that
    /// was pushed still gets one attempt.
    pub(super) fn begin_drain(&mut self, until: Instant) {
        self.release = ReleaseState::Draining { until };
        self.held_back.clear();
        self.assignment.enter(ClaimPhase::Draining);
    }

    /// Takes the second step of the release: no further attempt begins. The caller cuts the pushes in flight.
    pub(super) fn end_drain(&mut self, until: Instant) {
        self.release = ReleaseState::Cut { until };
        self.assignment.enter(ClaimPhase::Ended);
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
