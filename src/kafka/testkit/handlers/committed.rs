//! OffsetCommit and OffsetFetch.

use std::time::Instant;

use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::group::{Committed, GroupState};
use super::super::script::Plan;
use super::super::state::State;
use super::coordinator::check_group;
use super::{text, topic_name};

impl Serve for OffsetCommitRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        vec![(self.group_id.to_string(), -1)]
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<OffsetCommitResponse>, Ended> {
        let mut state = context.lock();
        let checked = check_commit(&self, context, &mut state, plan);
        let mut topics = Vec::new();
        for topic in &self.topics {
            let mut answered = OffsetCommitResponseTopic::default().with_name(topic.name.clone());
            for partition in &topic.partitions {
                let code = match checked {
                    Err(code) => code,
                    Ok(()) if state.denied_topics.contains(topic.name.as_str()) => codes::TOPIC_AUTHORIZATION_FAILED,
                    Ok(()) if state.partition(&topic.name, partition.partition_index).is_none() => {
                        codes::UNKNOWN_TOPIC_OR_PARTITION
                    }
                    Ok(()) => {
                        let committed = Committed {
                            offset: partition.committed_offset,
                            leader_epoch: partition.committed_leader_epoch,
                            metadata: partition.committed_metadata.as_deref().unwrap_or_default().to_owned(),
                        };
                        let group = state.groups.entry(self.group_id.to_string()).or_default();
                        group.offsets.insert((topic.name.to_string(), partition.partition_index), committed);
                        codes::NONE
                    }
                };
                let index = partition.partition_index;
                answered
                    .partitions
                    .push(OffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(code));
            }
            topics.push(answered);
        }
        context.shared.notify(&mut state);
        Ok(Some(OffsetCommitResponse::default().with_throttle_time_ms(plan.throttle_ms).with_topics(topics)))
    }
}

/// Checks group, member and generation. A commit without generation is for groups without members.
fn check_commit(request: &OffsetCommitRequest, context: &Context, state: &mut State, plan: &Plan) -> Result<(), i16> {
    check_group(context, state, plan, &request.group_id)?;
    let generation = request.generation_id_or_member_epoch;
    let Some(group) = state.groups.get_mut(request.group_id.as_str()) else {
        return if generation < 0 { Ok(()) } else { Err(codes::ILLEGAL_GENERATION) };
    };
    let now = Instant::now();
    group.tick(now);
    if generation < 0 && group.state == GroupState::Empty {
        return Ok(());
    }
    group.check_member(&request.member_id, request.group_instance_id.as_deref())?;
    if generation != group.generation {
        return Err(codes::ILLEGAL_GENERATION);
    }
    // A commit counts as a heartbeat. During a rebalance members may still commit, but not before the assignment.
    let _ = group.heartbeat(&request.member_id, None, generation, now);
    match group.state {
        GroupState::CompletingRebalance => Err(codes::REBALANCE_IN_PROGRESS),
        _ => Ok(()),
    }
}

impl Serve for OffsetFetchRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        match self.groups.is_empty() {
            true => vec![(self.group_id.to_string(), -1)],
            false => self.groups.iter().map(|group| (group.group_id.to_string(), -1)).collect(),
        }
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<OffsetFetchResponse>, Ended> {
        let state = context.lock();
        let response = OffsetFetchResponse::default().with_throttle_time_ms(plan.throttle_ms);
        if context.version >= 8 {
            let groups = self.groups.iter().map(|group| {
                let answered = OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
                if let Err(code) = check_group(context, &state, plan, &group.group_id) {
                    return answered.with_error_code(code);
                }
                let topics = group.topics.as_ref();
                let named = topics.map(|topics| {
                    topics.iter().map(|topic| (topic.name.clone(), topic.partition_indexes.clone())).collect()
                });
                answered.with_topics(fetch(&state, &group.group_id, named))
            });
            return Ok(Some(response.with_groups(groups.collect())));
        }
        let checked = check_group(context, &state, plan, &self.group_id);
        let topics = self.topics.as_ref();
        let named = topics
            .map(|topics| topics.iter().map(|topic| (topic.name.clone(), topic.partition_indexes.clone())).collect());
        let mut topics = fetch(&state, &self.group_id, named);
        let code = checked.err().unwrap_or(codes::NONE);
        if code != codes::NONE {
            // Version 1 has no error code of the group: each partition has it.
            for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
                (partition.error_code, partition.committed_offset) = (code, -1);
            }
        }
        let response = response.with_topics(topics.into_iter().map(without_groups).collect());
        Ok(Some(if context.version >= 2 { response.with_error_code(code) } else { response }))
    }
}

/// Returns the committed offsets of topics with partitions; of all if `named` is `None`.
fn fetch(state: &State, group: &str, named: Option<Vec<(TopicName, Vec<i32>)>>) -> Vec<OffsetFetchResponseTopics> {
    let offsets = state.groups.get(group).map(|group| &group.offsets);
    let named = named.unwrap_or_else(|| {
        let mut all: Vec<(TopicName, Vec<i32>)> = Vec::new();
        for (topic, partition) in offsets.into_iter().flat_map(|offsets| offsets.keys()) {
            match all.last_mut().filter(|(name, _)| name.as_str() == topic) {
                Some((_, partitions)) => partitions.push(*partition),
                None => all.push((topic_name(topic), vec![*partition])),
            }
        }
        all
    });
    let topics = named.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|index| {
            let response = OffsetFetchResponsePartitions::default().with_partition_index(index);
            if state.denied_topics.contains(name.as_str()) {
                return response.with_committed_offset(-1).with_error_code(codes::TOPIC_AUTHORIZATION_FAILED);
            }
            match offsets.and_then(|offsets| offsets.get(&(name.to_string(), index))) {
                Some(committed) => response
                    .with_committed_offset(committed.offset)
                    .with_committed_leader_epoch(committed.leader_epoch)
                    .with_metadata(Some(text(&committed.metadata))),
                None => {
                    response.with_committed_offset(-1).with_committed_leader_epoch(-1).with_metadata(Some(text("")))
                }
            }
        });
        let partitions = partitions.collect();
        OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions)
    });
    topics.collect()
}

/// Converts a topic to its type in versions before 8.
fn without_groups(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|partition| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_committed_offset(partition.committed_offset)
            .with_committed_leader_epoch(partition.committed_leader_epoch)
            .with_metadata(partition.metadata)
            .with_error_code(partition.error_code)
    });
    OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
}
