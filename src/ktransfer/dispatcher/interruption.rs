//! Stops and resumes the pushes of a partition whose claim is kept: for a pause, and for a seek to another offset.
//!
//! An interrupted partition is not read. Its jobs that are not on the wire are abandoned, so a pause takes no memory
//! and no slot of the window; a push on the wire may end. When no worker has a job of it any more, the partition is
//! paused, or continues with a new window: at the commit point, without the messages that are done ahead of it, or at
//! the offset of a seek. A seek continues only when the group has stored its offset. So if this process ends at any
//! time, the next owner of the partition begins either before the seek or after it.
//!
//! A message that waits for its dead letter was given up already: it still waits during a pause, and is not pushed
//! again after the resume. A seek abandons it, as the end of the claim does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;

use super::Dispatcher;
use super::hold::{DRAIN, Interruption, Seek};
use super::partition::{ClaimedPartition, ReleaseState, shown};
use crate::broker::{LogIdentity, Offset, PartitionId};
use crate::ktransfer::fetcher::{FetchCommand, StartPosition};
use crate::ktransfer::group::GroupCommand;
use crate::ktransfer::job::{Assignment, ClaimPhase};

/// Interval at which interruptions and requests of operators are checked while there are any.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

impl ClaimedPartition {
    /// Returns the number of jobs for which an interruption waits. After a seek has begun, the workers abandon the dead
    /// letters as well.
    pub(super) fn n_awaited(&self) -> usize {
        match self.assignment.phase() {
            ClaimPhase::Held => self.n_pushing(),
            ClaimPhase::Draining | ClaimPhase::Ended => self.in_flight,
        }
    }

    /// Whether an interruption of the partition waits for no job.
    fn has_drained(&self) -> bool {
        self.n_awaited() == 0 && self.release == ReleaseState::Owned
    }

    /// Whether an operator's seek is in progress.
    pub(super) fn is_seeking(&self) -> bool {
        self.interruption.is_some_and(|interruption| interruption.seek.is_some())
    }
}

impl Dispatcher {
    /// Stops reading and pushing a partition, unless it is interrupted already.
    pub(super) fn interrupt(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.interruption.is_some() || state.release != ReleaseState::Owned {
            return;
        }
        state.interruption = Some(Interruption::default());
        state.held_back.clear();
        state.is_paused = false;
        state.assignment.set_paused(true);
        state.in_flight -= self.outbox.drop_over(&state.assignment);
        self.command_fetch_loop(FetchCommand::Revoke(partition));
    }

    /// Interrupts the partitions that are paused now; those that are no longer paused continue soon.
    pub(super) fn follow_pauses(&mut self) {
        let changes = self.channels.operator.pauses.changes();
        if std::mem::replace(&mut self.seen_pauses, changes) != changes {
            for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
                self.follow_pause(partition);
            }
        }
    }

    /// Interrupts a partition that is paused now.
    pub(super) fn follow_pause(&mut self, partition: PartitionId) {
        let pauses = &self.channels.operator.pauses;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        // A claim that is held because the pauses are not known is held until they are.
        let is_paused =
            if state.is_held_by_operator { pauses.holds_new_claim(partition) } else { pauses.is_paused(partition) };
        if std::mem::replace(&mut state.is_held_by_operator, is_paused) != is_paused {
            let (module, point) = (&self.context.config.name, shown(state.window.commit_point()));
            let what = if is_paused { "is paused" } else { "is resumed" };
            info!("module [{module}]: partition {partition} {what} at offset {point}");
        }
        // Without a start offset the partition first waits for it: otherwise it would begin at the offset that
        // `start_from: latest` has at the time of the resume.
        if is_paused && state.window.commit_point().is_some() {
            self.interrupt(partition);
        } else if let Some(interruption) = state.interruption.as_mut().filter(|_| !is_paused) {
            // A push that hangs delays only its key; after a resume it must not delay the whole partition.
            interruption.cut_at.get_or_insert(Instant::now() + DRAIN);
        }
    }

    /// Begins to continue at another offset.
    pub(super) fn begin_seek(&mut self, partition: PartitionId, to: Offset, cut_at: Instant) {
        self.interrupt(partition);
        let Some(state) = self.partitions.get_mut(&partition).filter(|state| state.interruption.is_some()) else {
            return;
        };
        state.interruption = Some(Interruption { seek: Some(Seek { to, is_sent: false }), cut_at: Some(cut_at) });
        // Also the dead letters: at the new offset their messages may be read again.
        state.assignment.end();
        state.in_flight -= self.outbox.drop_over(&state.assignment);
    }

    /// Takes the next step of each interruption.
    pub(super) fn continue_interruptions(&mut self, now: Instant) {
        let is_interrupted = |state: &ClaimedPartition| state.interruption.is_some();
        let interrupted: Vec<PartitionId> = self
            .partitions
            .iter()
            .filter(|(_, state)| is_interrupted(state))
            .map(|(partition, _)| *partition)
            .collect();
        for partition in interrupted {
            self.continue_interruption(partition, now);
        }
    }

    fn continue_interruption(&mut self, partition: PartitionId, now: Instant) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let n_awaited = state.n_awaited();
        let Some(interruption) = state.interruption.as_mut().filter(|_| state.release == ReleaseState::Owned) else {
            return;
        };
        if n_awaited > 0 {
            if interruption.cut_at.take_if(|at| *at <= now).is_some() {
                self.cut(partition);
            }
            return;
        }
        match interruption.seek {
            Some(Seek { to, is_sent: false }) => self.send_seek(partition, to),
            Some(Seek { to, is_sent: true }) => {
                let generation = state.generation();
                if self.channels.operator.receipts.has(partition, generation, to) {
                    state.interruption = Some(Interruption::default());
                    info!("module [{}]: partition {partition} continues at offset {to}", self.context.config.name);
                }
            }
            None => {}
        }
        let is_over =
            |state: &&mut ClaimedPartition| state.has_drained() && !state.is_seeking() && !state.is_held_by_operator;
        if self.partitions.get_mut(&partition).filter(is_over).is_some() {
            self.resume(partition);
        }
    }

    /// Sends the offset of a seek to the group, which stores it at once, without messages done ahead of it.
    fn send_seek(&mut self, partition: PartitionId, to: Offset) {
        let window = self.new_window();
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let log = LogIdentity { leader_epoch: None, ..state.log.identity(to) };
        state.replace_window(window, StartPosition { offset: to, log }, false);
        if let Some(interruption) = &mut state.interruption {
            interruption.seek = Some(Seek { to, is_sent: true });
        }
        let generation = state.generation();
        self.channels.operator.receipts.forget(partition);
        self.send_progress(GroupCommand::StoreNow { partition, generation, next: to, log });
    }

    /// Continues at the commit point, with a new window and new jobs.
    fn resume(&mut self, partition: PartitionId) {
        let window = self.new_window();
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.interruption = None;
        match state.assignment.phase() {
            // The jobs that wait for their dead letters go on with it.
            ClaimPhase::Held => state.assignment.set_paused(false),
            // After a seek no job has it.
            _ => state.assignment = Arc::new(Assignment::new(&state.claim)),
        }
        let start = state.resume_window(window);
        let generation = state.generation();
        self.command_fetch_loop(FetchCommand::Assign { partition, window, generation, start });
    }

    /// Returns when the interruptions and the requests of operators must be checked next.
    pub(super) fn next_operator_check(&self, now: Instant) -> Instant {
        let is_waiting = |state: &ClaimedPartition| {
            state.interruption.is_some() && !(state.has_drained() && !state.is_seeking() && state.is_held_by_operator)
        };
        if self.pending_requests.is_empty() && !self.partitions.values().any(is_waiting) {
            return self.next_status;
        }
        self.next_status.min(now + CHECK_INTERVAL)
    }
}
