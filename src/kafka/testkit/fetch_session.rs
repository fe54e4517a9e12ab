//! Fetch sessions (KIP-227): the partitions that a consumer fetches, kept by the broker between its requests.

use std::collections::BTreeMap;

/// Topic and partition of a fetch. With topic ids (version 13) the name may be unknown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) name: Option<String>,
    /// All zero before version 13.
    pub(super) id: [u8; 16],
    pub(super) partition: i32,
}

/// What a consumer fetches of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) offset: i64,
    /// Leader epoch that the consumer has from metadata; -1 without.
    pub(super) leader_epoch: i32,
    /// Leader epoch of the last record that it received (version 12); -1 without.
    pub(super) last_epoch: i32,
    pub(super) max_bytes: usize,
}

/// What a response contains of a partition, as far as the session compares it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    /// Whether the response has records, an error, a divergence or a preferred replica.
    pub(super) has_content: bool,
    pub(super) has_error: bool,
    pub(super) high_watermark: i64,
    pub(super) log_start: i64,
}

#[derive(Debug)]
struct Cached {
    position: Position,
    high_watermark: i64,
    log_start: i64,
}

/// A fetch session.
#[derive(Debug)]
pub(super) struct FetchSession {
    /// The epoch that the next request must have.
    pub(super) epoch: i32,
    /// Whether the session was created with topic ids.
    pub(super) has_topic_ids: bool,
    partitions: BTreeMap<Key, Cached>,
}

impl FetchSession {
    pub(super) fn new(has_topic_ids: bool) -> Self {
        FetchSession { epoch: 1, has_topic_ids, partitions: BTreeMap::new() }
    }

    /// Accepts an incremental request: the expected epoch rises.
    pub(super) fn advance(&mut self) {
        self.epoch = if self.epoch == i32::MAX { 1 } else { self.epoch + 1 };
    }

    /// Adds a partition, or changes its position.
    pub(super) fn set(&mut self, key: Key, position: Position) {
        let cached = Cached { position: position.clone(), high_watermark: -1, log_start: -1 };
        self.partitions.entry(key).or_insert(cached).position = position;
    }

    /// Removes a partition.
    pub(super) fn forget(&mut self, key: &Key) {
        self.partitions.remove(key);
    }

    /// Returns all partitions with their positions.
    pub(super) fn wanted(&self) -> Vec<(Key, Position)> {
        self.partitions.iter().map(|(key, cached)| (key.clone(), cached.position.clone())).collect()
    }

    /// Whether the response must contain the partition; keeps what was answered, to compare the next response with it.
    pub(super) fn update(&mut self, key: &Key, answered: Answered) -> bool {
        let Some(cached) = self.partitions.get_mut(key) else { return true };
        let is_changed = (cached.high_watermark, cached.log_start) != (answered.high_watermark, answered.log_start);
        // After an error the partition is sent again once it works.
        cached.high_watermark = if answered.has_error { -1 } else { answered.high_watermark };
        cached.log_start = answered.log_start;
        answered.has_content || is_changed
    }
}
