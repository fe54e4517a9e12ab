//! How the dispatcher reacts when the fetch loop reports where reading starts, or that an offset is gone.

use log::warn;

use super::Dispatcher;
use super::partition::ClaimedPartition;
use crate::broker::{Offset, PartitionId};
use crate::ktransfer::fetcher::{FetchCommand, OffsetGap};
use crate::ktransfer::job::WindowId;

impl Dispatcher {
    /// Commits the start offset at once: after a restart before the first message, reading must start at the same
    /// offset.
    pub(super) fn on_start_offset(&mut self, window: WindowId, partition: PartitionId, offset: Offset) {
        if self.partitions.get(&partition).is_some_and(|state| state.window_id == window) {
            self.commit(partition, Some(offset));
        }
    }

    /// Continues reading at the oldest offset that Kafka keeps. If the oldest offset is not below the requested one,
    /// the window stays: messages read before the gap are pushed, and the commit point skips the gap as it skips any
    /// hole. If the oldest offset is lower, the topic was deleted and created again, so the partition gets a new
    /// window.
    pub(super) fn read_from_oldest(&mut self, gap: OffsetGap) {
        let OffsetGap { window, partition, offset, oldest, newest } = gap;
        let fresh = self.new_window();
        let is_reading = |state: &&mut ClaimedPartition| state.is_reading_for(window);
        let Some(state) = self.partitions.get_mut(&partition).filter(is_reading) else { return };
        let missed = oldest.saturating_sub(offset).max(0);
        warn!(
            "module [{}]: offset {offset} of {}/{partition} is out of range (Kafka keeps {oldest} to {newest}), \
             {missed} messages were deleted before they were read; continuing at {oldest}",
            self.context.config.name, self.context.config.topic
        );
        self.context.metrics.offset_gap.inc_by(missed.unsigned_abs());
        if oldest < offset {
            state.replace_window(fresh);
            self.paused.remove(&partition);
        }
        let window = state.window_id;
        self.command_fetch_loop(FetchCommand::Assign { partition, window, position: Some(oldest) });
        if self.paused.contains(&partition) {
            // `Assign` ended the pause in the fetch loop, so the partition is paused again.
            self.command_fetch_loop(FetchCommand::Pause(partition));
        }
    }
}
