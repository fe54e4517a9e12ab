//! Decodes a Fetch response for the partitions of its request. Pure.

use std::collections::HashMap;
use std::time::Duration;

use super::core::FetchPlan;
use super::event::TopicPartition;
use super::record_set::{UnpackLimits, Unpacked, unpack};
use crate::kafka::metadata::BrokerId;
use crate::kafka::produce::NodeAddress;
use crate::kafka::protocol::fetch::{FetchResponse, PartitionResponse, TopicRef};

/// A Fetch response.
pub(super) struct FetchOutcome {
    /// Time for which the broker must receive no request, because the client exceeded a quota.
    pub(super) throttle: Duration,
    /// Error code of the whole request.
    pub(super) error_code: i16,
    pub(super) session_id: i32,
    pub(super) nodes: Vec<NodeAddress>,
    pub(super) partitions: Vec<PartitionOutcome>,
}

/// The response for one partition.
pub(super) struct PartitionOutcome {
    pub(super) name: TopicPartition,
    pub(super) error_code: i16,
    pub(super) preferred_replica: Option<BrokerId>,
    /// Epoch and end offset, see [`PartitionResponse::diverging`].
    pub(super) diverging: Option<(i32, i64)>,
    /// Broker and epoch.
    pub(super) current_leader: Option<(BrokerId, i32)>,
    /// Size of the record data.
    pub(super) records_bytes: usize,
    /// The decoded messages; `None` if the limit of the request was reached before. They are then fetched again.
    pub(super) unpacked: Option<Unpacked>,
}

/// Longest time that a quota is obeyed; the broker closes no connection before.
const MAX_THROTTLE: Duration = Duration::from_secs(60);

/// Decodes the record data of a response. `max_batch_bytes`: limit of the decompressed bytes of one batch. Partitions
/// that the request does not have are left out.
pub(super) fn outcome(response: FetchResponse, plan: &FetchPlan, max_batch_bytes: usize) -> FetchOutcome {
    let mut received: HashMap<(TopicRef, i32), PartitionResponse> = HashMap::new();
    for topic in response.topics {
        for partition in topic.partitions {
            received.insert((topic.topic, partition.partition), partition);
        }
    }
    let by_id = received.keys().any(|(topic, _)| matches!(topic, TopicRef::Id(_)));
    let mut left = plan.max_decoded_bytes;
    let mut partitions = Vec::new();
    for wanted in &plan.wanted {
        let topic = if by_id { TopicRef::Id(wanted.topic_id) } else { TopicRef::Name(&wanted.topic) };
        let Some(partition) = received.remove(&(topic, wanted.fetch.partition)) else { continue };
        let unpacked = (left > 0 && partition.error_code == 0).then(|| {
            let stop_bytes = left.min(plan.partition_decoded_bytes);
            let limits = UnpackLimits { stop_bytes, max_batch_bytes };
            unpack(partition.records, wanted.fetch.offset, &partition.aborted, limits)
        });
        left = left.saturating_sub(unpacked.as_ref().map_or(0, |unpacked| unpacked.set.total_cost()));
        partitions.push(PartitionOutcome {
            name: TopicPartition { topic: wanted.topic.clone(), partition: partition.partition },
            error_code: partition.error_code,
            preferred_replica: partition.preferred_replica,
            diverging: partition.diverging,
            current_leader: partition.current_leader,
            records_bytes: partition.records.len(),
            unpacked,
        });
    }
    FetchOutcome {
        throttle: throttle(response.throttle_time_ms),
        error_code: response.error_code,
        session_id: response.session_id,
        nodes: response.nodes,
        partitions,
    }
}

/// Returns the time of a quota.
pub(super) fn throttle(milliseconds: i32) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0)).min(MAX_THROTTLE)
}
