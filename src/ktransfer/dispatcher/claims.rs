//! The claims that the group reports: gained, to be released, and lost.

use std::time::Instant;

use log::{info, warn};

use super::Dispatcher;
use super::hold::Interruption;
use super::partition::ClaimedPartition;
use super::stop_phase::StopPhase;
use crate::broker::PartitionId;
use crate::ktransfer::fetcher::{FetchCommand, StartPosition};
use crate::ktransfer::group::{Claim, Generation, GroupEvent};
use crate::ktransfer::job::WindowId;

impl Dispatcher {
    pub(super) fn on_group(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Gained(claim) => self.gain(&claim),
            GroupEvent::Releasing { partition, generation } => {
                if self.is_current(partition, generation) {
                    self.begin_release(partition);
                }
            }
            GroupEvent::Lost { partition, generation } => {
                if self.is_current(partition, generation) {
                    warn!("module [{}]: lost partition {partition}", self.context.config.name);
                    self.forget(partition);
                }
            }
        }
    }

    fn is_current(&self, partition: PartitionId, generation: Generation) -> bool {
        self.partitions.get(&partition).is_some_and(|state| state.generation() == generation)
    }

    fn gain(&mut self, claim: &Claim) {
        let partition = claim.partition;
        let start = claim.position.as_ref().map(|stored| StartPosition { offset: stored.next, log: stored.log() });
        self.forget(partition);
        let window = self.new_window();
        let commit_point = self.context.metrics.commit_point(partition);
        let mut state = ClaimedPartition::new(claim, window, commit_point);
        state.is_held_by_operator = self.channels.operator.pauses.holds_new_claim(partition);
        // Without a start offset, it is looked up first.
        if state.is_held_by_operator && start.is_some() {
            state.assignment.set_paused(true);
            state.interruption = Some(Interruption::default());
            info!("module [{}]: partition {partition} is paused", self.context.config.name);
        }
        let is_read = state.interruption.is_none();
        self.partitions.insert(partition, state);
        self.count_partitions();
        if self.phase == StopPhase::Working && !is_read {
            info!("module [{}]: gained partition {partition}", self.context.config.name);
        } else if self.phase == StopPhase::Working {
            info!("module [{}]: gained partition {partition}", self.context.config.name);
            self.command_fetch_loop(FetchCommand::Assign { partition, window, generation: claim.generation, start });
        } else {
            self.begin_release(partition);
        }
    }

    pub(super) fn new_window(&mut self) -> WindowId {
        self.last_window += 1;
        WindowId(self.last_window)
    }

    pub(super) fn count_partitions(&mut self) {
        // Operators see at once which partitions are claimed.
        self.next_status = Instant::now();
        self.context.metrics.assigned.set(i64::try_from(self.partitions.len()).unwrap_or(i64::MAX));
    }
}
