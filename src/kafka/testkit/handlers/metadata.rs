//! Metadata.

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::script::Plan;
use super::super::state::{Partition, State};
use super::{HOST, text, topic_name};

/// A topic that a request names: by name or by id.
enum Wanted {
    Name(String),
    Id([u8; 16]),
}

impl Serve for MetadataRequest {
    fn targets(&self, state: &State) -> Vec<(String, i32)> {
        wanted(self, state, 1).into_iter().filter_map(|wanted| Some((wanted.name(state)?, 0))).collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<MetadataResponse>, Ended> {
        let state = context.lock();
        let registered = state.brokers.iter().filter(|broker| broker.is_registered);
        let brokers = registered.map(|broker| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(broker.id))
                .with_host(text(HOST))
                .with_port(i32::from(broker.port))
                .with_rack(broker.rack.as_deref().map(text))
        });
        let brokers = brokers.collect();
        let topics = wanted(&self, &state, context.version).iter().map(|wanted| topic(&state, wanted, plan)).collect();
        Ok(Some(
            MetadataResponse::default()
                .with_throttle_time_ms(plan.throttle_ms)
                .with_brokers(brokers)
                .with_cluster_id(Some(text(&state.cluster_id)))
                .with_controller_id(BrokerId(state.controller))
                .with_topics(topics),
        ))
    }
}

impl Wanted {
    fn name(&self, state: &State) -> Option<String> {
        match self {
            Wanted::Name(name) => Some(name.clone()),
            Wanted::Id(id) => state.topic_name(id).map(str::to_owned),
        }
    }
}

/// Returns the topics that a request names.
fn wanted(request: &MetadataRequest, state: &State, version: i16) -> Vec<Wanted> {
    match &request.topics {
        // In version 0 an empty array selects all topics, later null does.
        Some(topics) if version > 0 || !topics.is_empty() => {
            let wanted = |topic: &MetadataRequestTopic| match &topic.name {
                Some(name) => Wanted::Name(name.to_string()),
                None => Wanted::Id(*topic.topic_id.as_bytes()),
            };
            topics.iter().map(wanted).collect()
        }
        _ => state.topics.keys().map(|name| Wanted::Name(name.clone())).collect(),
    }
}

fn topic(state: &State, wanted: &Wanted, plan: &Plan) -> MetadataResponseTopic {
    let mut response = MetadataResponseTopic::default();
    let name = wanted.name(state);
    if let Wanted::Id(id) = wanted {
        response.topic_id = uuid(id);
    }
    let Some(name) = name else {
        return response.with_name(None).with_error_code(codes::UNKNOWN_TOPIC_ID);
    };
    response.name = Some(topic_name(&name));
    if let Some(code) = plan.error_of_topic(&name) {
        return response.with_error_code(code);
    }
    if state.denied_topics.contains(&name) {
        return response.with_error_code(codes::TOPIC_AUTHORIZATION_FAILED);
    }
    if name.is_empty() || name.len() > 249 || name.contains(|character: char| !is_legal(character)) {
        return response.with_error_code(codes::INVALID_TOPIC_EXCEPTION);
    }
    let Some(topic) = state.topics.get(&name) else {
        return response.with_error_code(codes::UNKNOWN_TOPIC_OR_PARTITION);
    };
    let partitions = (0..).zip(&topic.partitions).map(|(index, known)| partition(state, index, known));
    response.with_topic_id(uuid(&topic.id)).with_partitions(partitions.collect())
}

/// Whether a topic name may contain this character.
fn is_legal(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-".contains(character)
}

fn partition(state: &State, index: i32, partition: &Partition) -> MetadataResponsePartition {
    let ids = |ids: &[i32]| ids.iter().copied().map(BrokerId).collect::<Vec<_>>();
    let is_offline = |id: &&i32| !state.broker(**id).is_some_and(|broker| broker.is_registered);
    let offline: Vec<i32> = partition.replicas.iter().filter(is_offline).copied().collect();
    let code = if partition.leader.is_some() { codes::NONE } else { codes::LEADER_NOT_AVAILABLE };
    MetadataResponsePartition::default()
        .with_error_code(code)
        .with_partition_index(index)
        .with_leader_id(BrokerId(partition.leader.unwrap_or(-1)))
        .with_leader_epoch(partition.leader_epoch)
        .with_replica_nodes(ids(&partition.replicas))
        .with_isr_nodes(ids(&partition.isr))
        .with_offline_replicas(ids(&offline))
}

/// Returns a topic id as the type of the crate, whose name is not public there.
pub(super) fn uuid<T: TryFrom<Vec<u8>> + Default>(id: &[u8; 16]) -> T {
    T::try_from(id.to_vec()).unwrap_or_default()
}
