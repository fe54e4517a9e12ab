//! The end of a claim: a drain with a deadline, then a cut of the pushes in flight, then the release.
//!
//! The pushes of a lost claim are cut at once. So a push that hangs delays a hand-over by at most the drain, not by the
//! time that the backend takes.

use std::time::Instant;

use log::{info, warn};

use super::Dispatcher;
use super::partition::{ClaimedPartition, ReleaseState, shown};
use super::stop_phase::StopPhase;
use crate::broker::PartitionId;
use crate::ktransfer::fetcher::FetchCommand;
use crate::ktransfer::group::GroupCommand;

impl Dispatcher {
    /// Stops reading a partition, and releases it as soon as no worker has a job of it. Another member waits for a
    /// hand-over, so its pushes have less time than those of a stop, which lasts as long in any case.
    pub(super) fn begin_release(&mut self, partition: PartitionId) {
        let until = self.phase.deadline().unwrap_or_else(|| Instant::now() + self.grace / 2);
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        match state.release {
            ReleaseState::Owned => {
                state.begin_drain(until);
                state.in_flight -= self.outbox.drop_over(&state.assignment);
                self.note_release_due(until);
                self.command_fetch_loop(FetchCommand::Revoke(partition));
            }
            // A stop has begun during a hand-over.
            ReleaseState::Draining { until: earlier } if self.phase != StopPhase::Working => {
                state.release = ReleaseState::Draining { until: until.max(earlier) };
            }
            ReleaseState::Draining { .. } | ReleaseState::Cut { .. } => {}
        }
        self.release_if_drained(partition);
    }

    fn note_release_due(&mut self, due: Instant) {
        self.next_release_due = Some(self.next_release_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Takes the next step of each release whose deadline has passed.
    pub(super) fn continue_releases(&mut self, now: Instant) {
        if self.next_release_due.is_none_or(|due| now < due) {
            return;
        }
        let is_due = |state: &ClaimedPartition| state.release.deadline().is_some_and(|until| until <= now);
        let due: Vec<PartitionId> =
            self.partitions.iter().filter(|(_, state)| is_due(state)).map(|(partition, _)| *partition).collect();
        for partition in due {
            self.continue_release(partition, now);
        }
        self.next_release_due = self.partitions.values().filter_map(|state| state.release.deadline()).min();
    }

    fn continue_release(&mut self, partition: PartitionId, now: Instant) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let module = &self.context.config.name;
        if let ReleaseState::Draining { .. } = state.release {
            warn!(
                "module [{module}]: partition {partition} still has pushes in flight at the end of its release, their \
                 connections are closed and the messages are pushed again by the next owner",
            );
            state.end_drain(now + self.grace / 8);
            state.in_flight -= self.outbox.drop_over(&state.assignment);
            self.cut(partition);
            self.release_if_drained(partition);
        } else {
            warn!("module [{module}]: partition {partition} is released although a push of it has not ended");
            self.release_now(partition);
        }
    }

    pub(super) fn release_if_drained(&mut self, partition: PartitionId) {
        if self.partitions.get(&partition).is_some_and(ClaimedPartition::is_drained) {
            self.release_now(partition);
        }
    }

    fn release_now(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.skip_read_offsets();
        // With the leader epoch of the offset, which a release does not have.
        if let Some(command) = state.commit_command() {
            self.send_progress(command);
        }
        self.send_snapshot(partition);
        let Some(state) = self.partitions.get(&partition) else { return };
        let (generation, next) = (state.generation(), state.window.commit_point());
        info!("module [{}]: releases partition {partition} at offset {}", self.context.config.name, shown(next));
        self.channels.group_commands.send(GroupCommand::Release { partition, generation, next });
        self.forget(partition);
    }

    pub(super) fn release_all_now(&mut self) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.release_now(partition);
        }
    }

    /// Drops a claim and cuts its pushes. The workers abandon its jobs, and acknowledgements of these are ignored.
    pub(super) fn forget(&mut self, partition: PartitionId) {
        let Some(state) = self.partitions.get(&partition) else { return };
        state.assignment.end();
        self.outbox.drop_over(&state.assignment);
        self.cut(partition);
        let Some(state) = self.partitions.remove(&partition) else { return };
        self.context.metrics.forget_commit_point(partition);
        self.count_partitions();
        // A partition that is being released was revoked when its release began.
        if state.release == ReleaseState::Owned {
            self.command_fetch_loop(FetchCommand::Revoke(partition));
        }
    }

    /// Closes the connections of the pushes in flight of a claim whose assignment has ended.
    pub(super) fn cut(&self, partition: PartitionId) {
        if let Some(state) = self.partitions.get(&partition) {
            self.context.http_client.cut(partition, state.generation());
        }
    }
}
