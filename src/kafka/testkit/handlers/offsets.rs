//! ListOffsets and OffsetForLeaderEpoch.

use std::time::Instant;

use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::script::Plan;
use super::super::state::{Partition, State};
use super::check_leader;

/// The timestamps that stand for other positions (`ListOffsetsRequest`).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;

impl Serve for ListOffsetsRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        let topics = self.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|partition| (topic.name.to_string(), partition.partition_index))
        });
        topics.collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<ListOffsetsResponse>, Ended> {
        let mut state = context.lock();
        let topics = self.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| {
                let response = ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
                let found =
                    find(context, &mut state, plan, &topic.name, wanted.partition_index, wanted.current_leader_epoch)
                        .map(|partition| offset_of(partition, wanted.timestamp, self.isolation_level == 1));
                match found {
                    Ok((offset, timestamp, epoch)) => {
                        // Version 4 is the first with the leader epoch.
                        let epoch = if context.version >= 4 { epoch } else { -1 };
                        response.with_offset(offset).with_timestamp(timestamp).with_leader_epoch(epoch)
                    }
                    Err(code) => response.with_error_code(code),
                }
            });
            let partitions = partitions.collect();
            ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions)
        });
        let topics = topics.collect();
        Ok(Some(ListOffsetsResponse::default().with_throttle_time_ms(plan.throttle_ms).with_topics(topics)))
    }
}

/// Returns a partition that this broker leads, with its replication up to date.
fn find<'a>(
    context: &Context,
    state: &'a mut State,
    plan: &Plan,
    topic: &str,
    partition: i32,
    epoch: i32,
) -> Result<&'a Partition, i16> {
    if let Some(error) = plan.error_of(topic, partition) {
        return Err(error.code);
    }
    check_leader(context, state, topic, partition, epoch, false)?;
    let known = state.partition_mut(topic, partition).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)?;
    known.advance(Instant::now());
    Ok(known)
}

/// Returns offset, timestamp and leader epoch; -1 each if there is no such record.
fn offset_of(partition: &Partition, timestamp: i64, is_committed_only: bool) -> (i64, i64, i32) {
    let log = &partition.log;
    match timestamp {
        LATEST if is_committed_only => (log.last_stable_offset(), -1, partition.leader_epoch),
        LATEST => (log.high_watermark(), -1, partition.leader_epoch),
        EARLIEST | EARLIEST_LOCAL => {
            let first = log.batches().first().map_or(partition.leader_epoch, |batch| batch.leader_epoch);
            (log.start_offset(), -1, first)
        }
        MAX_TIMESTAMP => log.max_timestamp().unwrap_or((-1, -1, -1)),
        time => log.offset_for_time(time).unwrap_or((-1, -1, -1)),
    }
}

impl Serve for OffsetForLeaderEpochRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        let topics = self
            .topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic.to_string(), partition.partition)));
        topics.collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<OffsetForLeaderEpochResponse>, Ended> {
        let mut state = context.lock();
        let topics = self.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| {
                let response = EpochEndOffset::default().with_partition(wanted.partition);
                let found =
                    find(context, &mut state, plan, &topic.topic, wanted.partition, wanted.current_leader_epoch);
                match found.map(|partition| partition.log.epoch_end(wanted.leader_epoch)) {
                    Ok((epoch, end)) => response.with_leader_epoch(epoch).with_end_offset(end),
                    Err(code) => response.with_error_code(code),
                }
            });
            let partitions = partitions.collect();
            OffsetForLeaderTopicResult::default().with_topic(topic.topic.clone()).with_partitions(partitions)
        });
        let topics = topics.collect();
        Ok(Some(OffsetForLeaderEpochResponse::default().with_throttle_time_ms(plan.throttle_ms).with_topics(topics)))
    }
}
