//! The next actions of the threads of a fetcher.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::event::TopicPartition;
use super::super::session::WantedPartition;
use crate::kafka::config::BrokerAddress;
use crate::kafka::protocol::fetch::FIRST_WITH_DIVERGENCE;

/// The versions that a broker supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct BrokerVersions {
    /// Version of Fetch.
    pub(in super::super) fetch: i16,
    /// Whether the broker supports OffsetForLeaderEpoch.
    pub(in super::super) has_epoch_ends: bool,
}

impl BrokerVersions {
    /// Whether epochs are compared by OffsetForLeaderEpoch, because Fetch does not.
    pub(super) fn validates(self) -> bool {
        self.fetch < FIRST_WITH_DIVERGENCE && self.has_epoch_ends
    }
}

/// The next action of the worker of a broker.
#[derive(Debug)]
pub(in super::super) enum Work {
    /// Connects to the broker, then calls `on_connected` or `on_failed`.
    Connect(BrokerAddress),
    /// Sends a Fetch request, then calls `on_fetched` or `on_failed`.
    Fetch(FetchPlan),
    /// Requests the oldest and newest offsets (ListOffsets), then calls `on_ranges` or `on_failed`.
    Ranges(QueryPlan),
    /// Requests the ends of epochs (OffsetForLeaderEpoch), then calls `on_epoch_ends` or `on_failed`.
    EpochEnds(QueryPlan),
    /// Waits for a change, at most until this time.
    Wait(Option<Instant>),
    /// Ends the worker.
    End,
}

/// A Fetch request.
#[derive(Debug)]
pub(in super::super) struct FetchPlan {
    /// Number of the request.
    pub(in super::super) number: u64,
    /// Version to use; may be lower than the broker's.
    pub(in super::super) version: i16,
    /// The partitions; those without data for long come first.
    pub(in super::super) wanted: Vec<WantedPartition>,
    /// Limit of the record data.
    pub(in super::super) max_bytes: usize,
    /// Longest time that the broker waits for data.
    pub(in super::super) max_wait: Duration,
    /// Limits of the decoded messages: of all partitions, and of each.
    pub(in super::super) max_decoded_bytes: usize,
    pub(in super::super) partition_decoded_bytes: usize,
}

/// A ListOffsets or OffsetForLeaderEpoch request.
#[derive(Debug)]
pub(in super::super) struct QueryPlan {
    /// Number of the request.
    pub(in super::super) number: u64,
    /// The partitions.
    pub(in super::super) partitions: Vec<PartitionQuery>,
}

/// A partition of a [`QueryPlan`].
#[derive(Clone, Debug)]
pub(in super::super) struct PartitionQuery {
    pub(in super::super) name: TopicPartition,
    /// Epoch of the leader; -1 if unknown.
    pub(in super::super) leader_epoch: i32,
    /// The epoch whose end is requested.
    pub(in super::super) epoch: i32,
}

/// The result of a [`QueryPlan`] for each partition: a value, or the error code of the protocol.
pub(in super::super) type QueryResults<T> = Vec<(TopicPartition, Result<T, i16>)>;

/// The next action of the metadata thread.
#[derive(Debug)]
pub(in super::super) enum MetadataWork {
    /// Requests these topics, then calls `on_metadata` or `on_metadata_failed`.
    Request(Vec<Arc<str>>),
    /// Waits for a change, at most until this time.
    Wait(Option<Instant>),
}
