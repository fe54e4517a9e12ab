//! Settings of a topic of a test cluster.

use std::time::Duration;

use super::log::AppendRules;

/// Settings of a topic that is not created yet.
#[derive(Clone, Debug)]
pub struct TopicSpec {
    pub(super) name: String,
    pub(super) partitions: usize,
    pub(super) replication: usize,
    pub(super) min_in_sync: usize,
    pub(super) rules: AppendRules,
}

impl TopicSpec {
    /// Returns a topic with one partition, whose replicas are on all brokers.
    pub fn new(name: &str) -> Self {
        let rules = AppendRules::default();
        TopicSpec { name: name.to_owned(), partitions: 1, replication: usize::MAX, min_in_sync: 1, rules }
    }

    /// Sets the number of partitions.
    pub fn partitions(mut self, count: usize) -> Self {
        self.partitions = count;
        self
    }

    /// Sets the number of replicas.
    pub fn replication(mut self, count: usize) -> Self {
        self.replication = count;
        self
    }

    /// Sets `min.insync.replicas`.
    pub fn min_in_sync(mut self, count: usize) -> Self {
        self.min_in_sync = count;
        self
    }

    /// Sets `cleanup.policy=compact`: records without key are INVALID_RECORD.
    pub fn compacted(mut self) -> Self {
        self.rules.is_compacted = true;
        self
    }

    /// Sets `message.timestamp.type=LogAppendTime`.
    pub fn log_append_time(mut self) -> Self {
        self.rules.has_log_append_time = true;
        self
    }

    /// Sets `max.message.bytes`: a larger batch is MESSAGE_TOO_LARGE.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.rules.max_message_bytes = bytes;
        self
    }

    /// Sets `segment.bytes`: a larger batch is RECORD_LIST_TOO_LARGE.
    pub fn segment_bytes(mut self, bytes: usize) -> Self {
        self.rules.segment_bytes = bytes;
        self
    }

    /// Sets how far timestamps may be from the broker's clock; others are INVALID_TIMESTAMP.
    pub fn timestamp_range(mut self, before: Duration, after: Duration) -> Self {
        self.rules.timestamp_before_max_ms = before.as_millis() as i64;
        self.rules.timestamp_after_max_ms = after.as_millis() as i64;
        self
    }
}
