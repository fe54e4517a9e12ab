//! The log that the offsets of a partition belong to, and the position up to which it was read.
//!
//! The group stores the identity of the log with the offset. So the next owner detects a topic that was deleted and
//! created again, even if its end is beyond the offset by then, and can find out up to where a log is the same after an
//! unclean leader election.

use std::collections::VecDeque;

use crate::broker::{LogIdentity, Offset, TopicId};
use crate::ktransfer::fetcher::{FetchedBatch, StartPosition};

/// Upper bound of the leader epochs kept: those of the messages that are read and not done. Without the oldest, the
/// epoch of a commit point is unknown.
const MAX_EPOCHS: usize = 64;

/// The log of one window.
#[derive(Debug, Default)]
pub(super) struct LogPosition {
    topic_id: Option<TopicId>,
    /// Leader epochs with the first offset that has them; both rise.
    epochs: VecDeque<(Offset, i32)>,
    /// Offset of the last message that was received.
    last_message: Option<Offset>,
    /// The offset to read next.
    next: Option<Offset>,
    /// The identity that the group knows.
    known: LogIdentity,
}

impl LogPosition {
    /// A log that is read from the stored position `start`; `None` if nothing is stored.
    pub(super) fn starting_at(start: Option<StartPosition>) -> LogPosition {
        let Some(StartPosition { offset, log }) = start else { return LogPosition::default() };
        let epochs = log.leader_epoch.map(|epoch| (Offset::MIN, epoch)).into_iter().collect();
        LogPosition { topic_id: log.topic_id, epochs, last_message: None, next: Some(offset), known: log }
    }

    /// Returns the id of the topic; `None` if it is unknown.
    pub(super) fn topic_id(&self) -> Option<TopicId> {
        self.topic_id
    }

    pub(super) fn set_topic_id(&mut self, topic_id: TopicId) {
        self.topic_id = Some(topic_id);
    }

    /// Takes messages that were read, or a position.
    pub(super) fn receive(&mut self, batch: &FetchedBatch) {
        let first = batch.messages.first().map(|message| message.offset).or(self.next).unwrap_or(batch.next);
        if let Some(epoch) = batch.leader_epoch
            && self.epochs.back().is_none_or(|(_, last)| *last < epoch)
        {
            self.epochs.push_back((first, epoch));
            if MAX_EPOCHS < self.epochs.len() {
                self.epochs.pop_front();
            }
        }
        self.last_message = batch.messages.last().map(|message| message.offset).or(self.last_message);
        self.next = Some(batch.next);
    }

    /// Continues at `next`, behind offsets that Kafka does not keep.
    pub(super) fn skip_to(&mut self, next: Offset) {
        self.next = Some(next);
    }

    /// Returns the offset of the last message that was received.
    pub(super) fn last_message(&self) -> Option<Offset> {
        self.last_message
    }

    /// Returns the offset to read next; `None` if the start is not known yet.
    pub(super) fn next(&self) -> Option<Offset> {
        self.next
    }

    /// Returns the highest leader epoch of the messages that were read, and of the one before the start; `None` if none
    /// is known.
    pub(super) fn read_epoch(&self) -> Option<i32> {
        self.epochs.back().map(|(_, epoch)| *epoch)
    }

    /// Returns the identity of the log for the commit point `next`.
    pub(super) fn identity(&self, next: Offset) -> LogIdentity {
        let epoch = self.epochs.iter().rev().find(|(first, _)| *first < next).map(|(_, epoch)| *epoch);
        LogIdentity { topic_id: self.topic_id, leader_epoch: epoch }
    }

    /// Returns the identity for the commit point `next` if the group does not know it; the caller sends it.
    pub(super) fn new_identity(&mut self, next: Offset) -> Option<LogIdentity> {
        // Epochs that end below the commit point are not needed any more.
        while self.epochs.get(1).is_some_and(|(first, _)| *first < next) {
            self.epochs.pop_front();
        }
        let identity = self.identity(next);
        if identity == self.known {
            return None;
        }
        self.known = identity;
        Some(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Message, TopicPartition};
    use crate::ktransfer::job::WindowId;

    fn batch(offsets: std::ops::Range<Offset>, next: Offset, epoch: i32) -> FetchedBatch {
        let from = TopicPartition { topic: "t".into(), partition: 0 };
        let message = |offset| Message {
            from: from.clone(),
            offset,
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let messages = offsets.map(message).collect();
        FetchedBatch { window: WindowId(1), partition: 0, messages, next, leader_epoch: Some(epoch) }
    }

    #[test]
    fn a_commit_point_has_the_epoch_of_the_message_before_it() {
        let stored = LogIdentity { topic_id: Some([1; 16]), leader_epoch: Some(3) };
        let mut position = LogPosition::starting_at(Some(StartPosition { offset: 50, log: stored }));
        assert_eq!((position.next(), position.last_message()), (Some(50), None));
        position.receive(&batch(50..60, 61, 3));
        position.receive(&batch(61..70, 70, 5));
        assert_eq!((position.next(), position.last_message()), (Some(70), Some(69)));
        assert_eq!(position.new_identity(61), None, "the group knows this log");
        assert_eq!(position.identity(62).leader_epoch, Some(5));
        let moved = position.new_identity(62).expect("another epoch");
        assert_eq!(moved, LogIdentity { leader_epoch: Some(5), ..stored });
        assert_eq!((position.new_identity(70), position.epochs.len()), (None, 1));
        assert_eq!(position.read_epoch(), Some(5));
        position.receive(&batch(0..0, 72, 6));
        assert_eq!(position.read_epoch(), Some(6));
        assert_eq!((position.next(), position.last_message()), (Some(72), Some(69)), "a position without messages");
        position.set_topic_id([2; 16]);
        assert_eq!(position.new_identity(70), Some(LogIdentity { topic_id: Some([2; 16]), leader_epoch: Some(5) }));
    }

    #[test]
    fn the_epochs_are_bounded() {
        let mut position = LogPosition::starting_at(None);
        for epoch in 0..1_000 {
            position.receive(&batch(epoch.into()..Offset::from(epoch) + 1, Offset::from(epoch) + 1, epoch));
        }
        assert_eq!(position.epochs.len(), MAX_EPOCHS);
        assert_eq!(position.identity(2).leader_epoch, None);
        assert_eq!(position.identity(1_000).leader_epoch, Some(999));
    }
}
