//! How the dispatcher reacts when the fetch loop reports a start offset, the position of reading, or that the log is
//! not the one that was read before. docs/ktransfer.md has the table of these reactions for users.

use std::time::Instant;

use log::warn;

use super::Dispatcher;
use crate::broker::{LogIdentity, Offset, PartitionId, TopicId};
use crate::ktransfer::fetcher::{FetchCommand, FetchedBatch, LogChange, StartPosition};
use crate::ktransfer::group::GroupCommand;
use crate::ktransfer::job::{WindowId, message_size_bytes};
use crate::ktransfer::metrics::OffsetReset;

impl Dispatcher {
    /// Takes messages that were read. If only the position moved, past transaction markers or aborted messages, the
    /// commit point follows it.
    pub(super) fn on_batches(&mut self, batches: Vec<FetchedBatch>) {
        let now = Instant::now();
        self.outbox.on_batch(now);
        for batch in batches {
            let FetchedBatch { window, partition, .. } = batch;
            let memory = self.channels.memory.clone();
            let Some(state) = self.partitions.get_mut(&partition).filter(|state| state.is_reading_for(window)) else {
                // The memory of stale messages returns, too.
                batch.messages.iter().map(message_size_bytes).for_each(|size_bytes| drop(memory.share(size_bytes)));
                continue;
            };
            state.note_epoch_read(batch.leader_epoch);
            state.log.receive(&batch);
            if batch.messages.is_empty() {
                self.note_progress(partition, now);
            }
            for message in batch.messages {
                let share = memory.share(message_size_bytes(&message));
                self.accept(message, share, now);
            }
        }
    }

    /// Begins the window at the start offset, which the group has received already.
    pub(super) fn on_start_offset(&mut self, window: WindowId, partition: PartitionId, offset: Offset) {
        let Some(state) = self.partitions.get_mut(&partition).filter(|state| state.window_id == window) else { return };
        state.replace_window(window, StartPosition { offset, log: LogIdentity::default() }, false);
        self.follow_pause(partition);
    }

    /// Sends the id of the topic to the group, to be stored with the offset.
    pub(super) fn on_topic_id(&mut self, window: WindowId, partition: PartitionId, topic_id: TopicId) {
        let Some(state) = self.partitions.get_mut(&partition).filter(|state| state.window_id == window) else { return };
        state.log.set_topic_id(topic_id);
        if let Some(next) = state.window.commit_point() {
            let command = state.store_command(next);
            self.send_progress(command);
        }
    }

    /// Continues at an offset from which no message of the present log is skipped.
    pub(super) fn on_log_changed(&mut self, window: WindowId, partition: PartitionId, change: LogChange) {
        let Some(state) = self.partitions.get(&partition).filter(|state| state.is_reading_for(window)) else { return };
        let (module, topic) = (&self.context.config.name, &self.context.config.topic);
        let commit_point = state.window.commit_point();
        match change {
            LogChange::OffsetGone { offset, oldest, newest } if offset < oldest => {
                let missed = oldest.saturating_sub(offset);
                warn!(
                    "module [{module}]: offset {offset} of {topic}/{partition} is out of range (Kafka keeps {oldest} \
                     to {newest}), {missed} messages were deleted before they were read; continuing at {oldest}"
                );
                self.context.metrics.offset_gap.inc_by(missed.unsigned_abs());
                self.context.metrics.count_reset(OffsetReset::Deleted);
                self.continue_at(partition, oldest);
            }
            LogChange::OffsetGone { offset, newest, .. } if offset <= newest => self.continue_at(partition, offset),
            LogChange::OffsetGone { offset, oldest, newest } => {
                // Without topic ids and leader epochs a truncated log looks like a new topic, whose messages must not
                // be skipped.
                warn!(
                    "module [{module}]: offset {offset} of {topic}/{partition} is beyond the log end (Kafka keeps \
                     {oldest} to {newest}): the topic was deleted and created again, or the log was truncated; \
                     continuing at {oldest}, messages may be repeated"
                );
                let log = LogIdentity { leader_epoch: None, ..state.log.identity(offset) };
                self.restart(partition, StartPosition { offset: oldest, log }, OffsetReset::BeyondEnd);
            }
            LogChange::Truncated { position, divergence, leader_epoch } => {
                let lost = position.saturating_sub(divergence).max(0);
                // Messages below the divergence that are not done are read again: the new window does not have them.
                let offset = commit_point.map_or(divergence, |point| point.min(divergence));
                warn!(
                    "module [{module}]: Kafka lost {lost} messages of {topic}/{partition} that had been read, from \
                     offset {divergence} to {position}, in an unclean leader election; continuing at {offset}"
                );
                let log = match offset == divergence {
                    true => LogIdentity { leader_epoch, ..state.log.identity(offset) },
                    false => state.log.identity(offset),
                };
                self.context.metrics.truncated.inc_by(lost.unsigned_abs());
                self.restart(partition, StartPosition { offset, log }, OffsetReset::Truncated);
            }
            LogChange::Recreated { topic_id } => {
                let last = super::shown(commit_point);
                warn!(
                    "module [{module}]: topic {topic} was deleted and created again; partition {partition} was done \
                     up to offset {last} of the old topic, continuing at the beginning of the new one"
                );
                let log = LogIdentity { topic_id: Some(topic_id), leader_epoch: None };
                self.restart(partition, StartPosition { offset: 0, log }, OffsetReset::Recreated);
            }
        }
    }

    /// Continues at `offset` of the same log. The window stays: messages read before are pushed, and the commit point
    /// skips the offsets between as it skips any hole.
    fn continue_at(&mut self, partition: PartitionId, offset: Offset) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.log.skip_to(offset);
        let (window, generation, is_paused) = (state.window_id, state.generation(), state.is_paused);
        let log = LogIdentity { leader_epoch: None, ..state.log.identity(offset) };
        let start = Some(StartPosition { offset, log });
        self.command_fetch_loop(FetchCommand::Assign { partition, window, generation, start });
        if is_paused {
            // `Assign` ended the pause in the fetch loop, so the partition is paused again.
            self.command_fetch_loop(FetchCommand::Pause(partition));
        }
        self.note_progress(partition, Instant::now());
    }

    /// Continues at `start` of another log, with a new window. The position is stored at once: the offsets stored
    /// before mean other messages.
    fn restart(&mut self, partition: PartitionId, start: StartPosition, reset: OffsetReset) {
        self.context.metrics.count_reset(reset);
        let window = self.new_window();
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.replace_window(window, start, matches!(reset, OffsetReset::Truncated));
        // What was pushed of the log before, and refused, must not hold up the messages with its key in this one.
        state.in_flight -= self.outbox.drop_over(&state.assignment);
        let generation = state.generation();
        let StartPosition { offset: next, log } = start;
        // With an empty snapshot: messages done ahead in the old log do not exist in this one.
        self.send_progress(GroupCommand::StoreNow { partition, generation, next, log });
        self.command_fetch_loop(FetchCommand::Assign { partition, window, generation, start: Some(start) });
    }
}
