//! The read position of one assigned partition, and its messages that were fetched and not polled yet.
//!
//! The old Fetch versions that the `kafka` crate uses report some failures as an empty response without an error code,
//! although the log has messages at the requested offset. One cause is a message larger than the requested number of
//! bytes, another is messages that the crate drops from a compacted or compressed log. After repeated empty responses
//! below the log end the reader takes these measures, in this order: it requests more bytes; it requests the partition
//! alone (a response full of other partitions has no room for this one); it skips the offset and logs a line.

use std::collections::VecDeque;
use std::time::Instant;

use log::warn;

use super::fetch_request::{FetchedMessage, PartitionRequest};
use crate::broker::{FetchEvent, Message, MessageBatch, Offset};

/// Number of responses without messages below the log end after which the reader takes the next measure listed above.
const MAX_EMPTY_RESPONSES: u32 = 3;
/// Bytes requested beyond the largest message, so that the response has room for the message and its framing.
const BESIDE_MESSAGE_BYTES: usize = 1 << 20;

/// The state of reading one assigned partition.
pub(super) struct PartitionReader {
    /// Distinguishes this assignment of the partition from earlier ones.
    pub(super) epoch: u64,
    /// The offset to read next.
    pub(super) next: Offset,
    pub(super) is_paused: bool,
    /// Messages fetched and not polled; the fetcher bounds their bytes.
    pub(super) ready: VecDeque<Message>,
    pub(super) ready_bytes: usize,
    /// Number of the last poll that returned messages of this partition.
    pub(super) last_poll: u64,
    /// `host:port` of its leader; `None` makes the fetcher look it up.
    pub(super) leader: Option<String>,
    pub(super) is_fetching: bool,
    /// The partition is requested alone: a response with several partitions was unreadable or had no messages of this
    /// one.
    pub(super) is_isolated: bool,
    /// The partition is not fetched before this time.
    pub(super) not_before: Instant,
    /// Bytes to request after empty responses; 0 means the default of the fetcher.
    pub(super) max_bytes: usize,
    pub(super) empty_responses: u32,
    /// An error was reported, and no request has succeeded since.
    pub(super) has_failed: bool,
}

impl PartitionReader {
    /// Makes a reader that starts at the offset `next`.
    pub(super) fn new(epoch: u64, next: Offset) -> Self {
        PartitionReader {
            epoch,
            next,
            is_paused: false,
            ready: VecDeque::new(),
            ready_bytes: 0,
            last_poll: 0,
            leader: None,
            is_fetching: false,
            is_isolated: false,
            not_before: Instant::now(),
            max_bytes: 0,
            empty_responses: 0,
            has_failed: false,
        }
    }

    /// Takes the messages in the response to `request`, or the next measure against empty responses. `was_alone` says
    /// that the fetch request had no other partition. A request for `max_message_bytes` and [`BESIDE_MESSAGE_BYTES`]
    /// can return any message.
    pub(super) fn take_messages(
        &mut self,
        request: &PartitionRequest,
        was_alone: bool,
        log_end: Offset,
        messages: Vec<FetchedMessage>,
        max_message_bytes: usize,
    ) {
        let next_before = self.next;
        for message in messages {
            // A compressed message set is returned whole, with the messages before the requested offset.
            if message.offset < self.next {
                continue;
            }
            self.next = message.offset + 1;
            let message = Message {
                from: request.partition.clone(),
                offset: message.offset,
                key: Some(message.key).filter(|key| !key.is_empty()),
                value: Some(message.value),
                headers: Vec::new(),
                timestamp_ms: None,
            };
            self.ready_bytes += size_of_message(&message);
            self.ready.push_back(message);
        }
        if self.next > next_before {
            (self.max_bytes, self.empty_responses, self.is_isolated) = (0, 0, false);
            return;
        }
        if log_end <= self.next {
            self.is_isolated = false;
            return;
        }
        self.empty_responses += 1;
        if self.empty_responses < MAX_EMPTY_RESPONSES {
            return;
        }
        self.empty_responses = 0;
        let max = max_message_bytes.saturating_add(BESIDE_MESSAGE_BYTES).min(i32::MAX as usize);
        if request.max_bytes < max {
            self.max_bytes = request.max_bytes.saturating_mul(4).min(max);
            return;
        }
        if !was_alone {
            self.is_isolated = true;
            return;
        }
        let skipped = self.next;
        self.next += 1;
        warn!(
            "{} offset {skipped}: offset skipped: no message can be read at it, but the log end offset is {log_end}",
            request.partition
        );
    }
}

/// Takes at most `max` ready messages: an equal share of each partition, first of the partition that was polled longest
/// ago. Without shares, one partition that always has messages would starve all others. `poll` is the number of this
/// poll.
pub(super) fn take_in_turn<'a>(
    readers: impl Iterator<Item = &'a mut PartitionReader>,
    poll: u64,
    max: usize,
) -> Vec<Message> {
    let mut ready: Vec<_> = readers.filter(|reader| !reader.is_paused && !reader.ready.is_empty()).collect();
    ready.sort_unstable_by_key(|reader| reader.last_poll);
    let mut messages = Vec::new();
    let mut left = ready.len();
    for reader in ready {
        let share = (max - messages.len()).div_ceil(left);
        left -= 1;
        let count = reader.ready.len().min(share);
        for message in reader.ready.drain(..count) {
            reader.ready_bytes -= size_of_message(&message);
            messages.push(message);
            reader.last_poll = poll;
        }
    }
    messages
}

fn size_of_message(message: &Message) -> usize {
    message.value.as_ref().map_or(0, Vec::len) + message.key.as_ref().map_or(0, Vec::len) + size_of::<Message>()
}

/// Makes one batch of the successive messages of each partition.
pub(super) fn into_batches(messages: Vec<Message>) -> Vec<FetchEvent> {
    let mut batches: Vec<MessageBatch> = Vec::new();
    for message in messages {
        let next = message.offset + 1;
        match batches.last_mut().filter(|batch| batch.partition == message.from) {
            Some(batch) => {
                batch.next = next;
                batch.messages.push(message);
            }
            None => {
                let (partition, messages) = (message.from.clone(), vec![message]);
                batches.push(MessageBatch { partition, messages, next, leader_epoch: None });
            }
        }
    }
    batches.into_iter().map(FetchEvent::Messages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{PartitionId, TopicPartition};
    use std::sync::Arc;

    #[test]
    fn an_offset_without_messages_is_requested_with_more_bytes_then_alone_and_then_skipped() {
        let partition = TopicPartition { topic: Arc::from("t"), partition: 0 };
        let mut reader = PartitionReader::new(1, 7);
        let mut request = PartitionRequest { partition, epoch: 1, offset: 7, max_bytes: 1 << 20 };
        let mut grown = Vec::new();
        let mut responses = 0;
        // A response full of other partitions has no room for this one, so the offset is never skipped.
        for _ in 0..100 {
            reader.take_messages(&request, false, 9, Vec::new(), 4 << 20);
            request.max_bytes = reader.max_bytes.max(1 << 20);
        }
        assert_eq!((reader.next, reader.is_isolated), (7, true));
        (reader.max_bytes, reader.empty_responses, request.max_bytes) = (0, 0, 1 << 20);
        while reader.next == 7 {
            reader.take_messages(&request, true, 9, Vec::new(), 4 << 20);
            request.max_bytes = reader.max_bytes.max(1 << 20);
            grown.push(request.max_bytes);
            responses += 1;
            assert!(responses < 100);
        }
        grown.dedup();
        assert_eq!(grown[..3], [1 << 20, 4 << 20, 5 << 20], "four times as much, up to the largest message");
        assert_eq!(
            (responses, reader.next, reader.is_isolated),
            (3 * MAX_EMPTY_RESPONSES, 8, true),
            "isolated until a message is found"
        );
        // At the log end an empty response is normal.
        reader.next = 9;
        for _ in 0..10 {
            reader.take_messages(&request, true, 9, Vec::new(), 4 << 20);
        }
        assert_eq!((reader.next, reader.is_isolated), (9, false));
        reader.is_isolated = true;
        // Messages before the next offset are not returned again.
        let raw = |offset| FetchedMessage { offset, key: Vec::new(), value: vec![1] };
        reader.take_messages(&request, true, 12, vec![raw(8), raw(9), raw(11)], 4 << 20);
        assert_eq!(reader.ready.iter().map(|message| message.offset).collect::<Vec<_>>(), [9, 11]);
        assert_eq!((reader.next, reader.is_isolated), (12, false));
    }

    #[test]
    fn partitions_that_always_have_messages_do_not_starve_the_others() {
        let full = |partition: PartitionId, count: Offset| {
            let from = TopicPartition { topic: Arc::from("t"), partition };
            let message = |offset| Message {
                from: from.clone(),
                offset,
                key: None,
                value: None,
                headers: Vec::new(),
                timestamp_ms: None,
            };
            PartitionReader {
                ready: (0..count).map(message).collect(),
                ready_bytes: (0..count).map(|offset| size_of_message(&message(offset))).sum(),
                ..PartitionReader::new(1, 0)
            }
        };
        let mut readers: Vec<_> = (0..10).map(|partition| full(partition, 1000)).collect();
        for (max, polls) in [(20, 1), (3, 4), (1, 10)] {
            let before: Vec<_> = readers.iter().map(|reader| reader.ready.len()).collect();
            for _ in 0..polls {
                let poll = readers.iter().map(|reader| reader.last_poll).max().unwrap_or(0) + 1;
                assert_eq!(take_in_turn(readers.iter_mut(), poll, max).len(), max);
            }
            let taken = readers.iter().zip(before).map(|(reader, before)| before - reader.ready.len());
            assert!(taken.clone().all(|count| 0 < count), "max {max}: {:?}", taken.collect::<Vec<_>>());
        }
        let mut short = [full(0, 2), full(1, 100)];
        let taken = take_in_turn(short.iter_mut(), 1, 10);
        assert!((7..=10).contains(&taken.len()), "{}", taken.len());
    }
}
