//! Produce.

use std::time::{Duration, Instant};

use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{BrokerId, ProduceRequest, ProduceResponse};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::log::{AppendError, Appended};
use super::super::script::Plan;
use super::super::state::{State, now_ms};
use super::{HOST, text};

/// An append that waits for its replication.
struct Pending {
    /// Position of topic and partition in the response.
    position: (usize, usize),
    topic: String,
    partition: i32,
    leader_epoch: i32,
    /// The high watermark that completes it.
    end: i64,
}

impl Serve for ProduceRequest {
    fn targets(&self, state: &State) -> Vec<(String, i32)> {
        let topics = self.topic_data.iter().filter_map(|topic| {
            let name = name_of(topic, state)?;
            Some(topic.partition_data.iter().map(move |partition| (name.clone(), partition.index)))
        });
        topics.flatten().collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<ProduceResponse>, Ended> {
        let mut pending = Vec::new();
        let mut response = ProduceResponse::default().with_throttle_time_ms(plan.throttle_ms);
        let mut state = context.lock();
        if !context.is_alive(&state) {
            return Err(Ended);
        }
        for (topic_position, topic) in self.topic_data.iter().enumerate() {
            let name = name_of(topic, &state);
            let mut answered = TopicProduceResponse::default();
            (answered.name, answered.topic_id) = (topic.name.clone(), topic.topic_id);
            for (position, partition) in topic.partition_data.iter().enumerate() {
                let (result, waits) = append(context, &mut state, plan, self.acks, name.as_deref(), partition);
                if let (Some(mut waits), -1) = (waits, self.acks) {
                    waits.position = (topic_position, position);
                    pending.push(waits);
                }
                answered.partition_responses.push(result);
            }
            response.responses.push(answered);
        }
        context.shared.notify(&mut state);
        drop(state);
        await_replication(context, &mut response, pending, self.timeout_ms)?;
        inject_errors_after(&mut response, &self, context, plan);
        add_leader_addresses(context, &mut response);
        let has_error = response
            .responses
            .iter()
            .flat_map(|topic| &topic.partition_responses)
            .any(|partition| partition.error_code != 0);
        match (self.acks, has_error) {
            // Without a response, the end of the connection is what makes the client notice (`KafkaApis`).
            (0, true) => Err(Ended),
            (0, false) => Ok(None),
            _ => Ok(Some(response)),
        }
    }
}

fn name_of(topic: &kafka_protocol::messages::produce_request::TopicProduceData, state: &State) -> Option<String> {
    match topic.topic_id.is_nil() {
        true => Some(topic.name.to_string()),
        false => state.topic_name(topic.topic_id.as_bytes()).map(str::to_owned),
    }
}

/// Appends the data of a partition; returns its response, and what to wait for if it was appended.
fn append(
    context: &Context,
    state: &mut State,
    plan: &Plan,
    acks: i16,
    topic: Option<&str>,
    data: &PartitionProduceData,
) -> (PartitionProduceResponse, Option<Pending>) {
    let failed =
        PartitionProduceResponse::default().with_index(data.index).with_base_offset(-1).with_log_start_offset(-1);
    let injected = topic.and_then(|topic| plan.error_of(topic, data.index));
    if let Some(error) = injected.filter(|error| !error.is_carried_out) {
        let hint = error.leader_hint.map(leader).unwrap_or_default();
        return (failed.with_error_code(error.code).with_current_leader(hint), None);
    }
    let Some(topic) = topic else {
        return (failed.with_error_code(codes::UNKNOWN_TOPIC_ID), None);
    };
    if let Err(code) = check(context, state, acks, topic, data.index) {
        let known = state.partition(topic, data.index).filter(|_| code == codes::NOT_LEADER_OR_FOLLOWER);
        let hint = known.filter(|_| state.has_leader_hints).and_then(|known| Some((known.leader?, known.leader_epoch)));
        return (failed.with_error_code(code).with_current_leader(hint.map(leader).unwrap_or_default()), None);
    }
    let rules = state.topics[topic].rules.clone();
    let delay = state.replication_delay;
    let Some(partition) = state.partition_mut(topic, data.index) else {
        return (failed, None);
    };
    let records = data.records.clone().unwrap_or_default();
    // zstd came with version 7 (KIP-110). The codec is in the low bits of the attributes.
    if context.version < 7 && records.get(22).is_some_and(|attributes| attributes & 7 == 4) {
        return (failed.with_error_code(codes::UNSUPPORTED_COMPRESSION_TYPE), None);
    }
    match partition.log.append(&records, &rules, now_ms()) {
        Ok(Appended { base_offset, end_offset, log_append_time_ms, is_duplicate }) => {
            if !is_duplicate {
                partition.replicate(delay, Instant::now());
            }
            let response = PartitionProduceResponse::default()
                .with_index(data.index)
                .with_base_offset(base_offset)
                .with_log_append_time_ms(log_append_time_ms)
                .with_log_start_offset(partition.log.start_offset());
            let pending = Pending {
                position: (0, 0),
                topic: topic.to_owned(),
                partition: data.index,
                leader_epoch: partition.leader_epoch,
                end: end_offset,
            };
            (response, Some(pending))
        }
        Err(error) => (rejected(context.version, failed, error), None),
    }
}

/// Checks what a broker checks before it appends.
fn check(context: &Context, state: &State, acks: i16, topic: &str, partition: i32) -> Result<(), i16> {
    if !matches!(acks, -1..=1) {
        return Err(codes::INVALID_REQUIRED_ACKS);
    }
    if state.denied_topics.contains(topic) {
        return Err(codes::TOPIC_AUTHORIZATION_FAILED);
    }
    let known = state.partition(topic, partition).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)?;
    if known.leader != Some(context.broker) {
        return Err(codes::NOT_LEADER_OR_FOLLOWER);
    }
    if acks == -1 && known.isr.len() < state.topics[topic].min_in_sync {
        return Err(codes::NOT_ENOUGH_REPLICAS);
    }
    Ok(())
}

fn rejected(version: i16, failed: PartitionProduceResponse, error: AppendError) -> PartitionProduceResponse {
    // INVALID_RECORD and the list of records came with version 8 (KIP-467).
    let code = match error.code {
        codes::INVALID_RECORD if version < 8 => codes::CORRUPT_MESSAGE,
        code => code,
    };
    if version < 8 {
        return failed.with_error_code(code);
    }
    let records = error.record_errors.iter().map(|(index, message)| {
        BatchIndexAndErrorMessage::default()
            .with_batch_index(*index)
            .with_batch_index_error_message(Some(text(message)))
    });
    failed
        .with_error_code(code)
        .with_record_errors(records.collect())
        .with_error_message(error.message.as_deref().map(text))
}

/// Waits until the high watermark has passed the appended records (acks=-1).
fn await_replication(
    context: &Context,
    response: &mut ProduceResponse,
    mut pending: Vec<Pending>,
    timeout_ms: i32,
) -> Result<(), Ended> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.max(0) as u64);
    let mut state = context.lock();
    loop {
        if !context.is_alive(&state) {
            return Err(Ended);
        }
        let now = Instant::now();
        let mut next = deadline;
        pending.retain(|waits| {
            let code = match state.partition_mut(&waits.topic, waits.partition) {
                None => Some(codes::UNKNOWN_TOPIC_OR_PARTITION),
                Some(known) => {
                    known.advance(now);
                    next = next.min(known.next_advance().unwrap_or(deadline));
                    let is_leader = known.leader == Some(context.broker) && known.leader_epoch == waits.leader_epoch;
                    match (is_leader, known.log.high_watermark() >= waits.end) {
                        (true, true) => Some(codes::NONE),
                        (true, false) if now >= deadline => Some(codes::REQUEST_TIMED_OUT),
                        (true, false) => None,
                        (false, _) => Some(codes::NOT_LEADER_OR_FOLLOWER),
                    }
                }
            };
            let Some(code) = code else { return true };
            if code != codes::NONE {
                let (topic, partition) = waits.position;
                let answer = &mut response.responses[topic].partition_responses[partition];
                (answer.error_code, answer.base_offset) = (code, -1);
            }
            false
        });
        if pending.is_empty() {
            return Ok(());
        }
        state = context.shared.wait(state, next);
    }
}

/// Replaces the outcome of partitions whose requests were carried out by an injected error.
fn inject_errors_after(response: &mut ProduceResponse, request: &ProduceRequest, context: &Context, plan: &Plan) {
    let state = context.lock();
    for (topic, answered) in request.topic_data.iter().zip(&mut response.responses) {
        let Some(name) = name_of(topic, &state) else {
            continue;
        };
        for answer in &mut answered.partition_responses {
            if let Some(error) = plan.error_of(&name, answer.index).filter(|error| error.is_carried_out) {
                (answer.error_code, answer.base_offset) = (error.code, -1);
            }
        }
    }
}

fn leader((id, epoch): (i32, i32)) -> LeaderIdAndEpoch {
    LeaderIdAndEpoch::default().with_leader_id(BrokerId(id)).with_leader_epoch(epoch)
}

/// Adds the addresses of the leaders that the response names (version 10).
fn add_leader_addresses(context: &Context, response: &mut ProduceResponse) {
    if context.version < 10 {
        for answer in response.responses.iter_mut().flat_map(|topic| &mut topic.partition_responses) {
            answer.current_leader = LeaderIdAndEpoch::default();
        }
        return;
    }
    let state = context.lock();
    let answers = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    let named: std::collections::BTreeSet<i32> = answers.map(|answer| answer.current_leader.leader_id.0).collect();
    let brokers = named.into_iter().filter_map(|id| state.broker(id));
    response.node_endpoints = brokers
        .map(|broker| {
            NodeEndpoint::default()
                .with_node_id(BrokerId(broker.id))
                .with_host(text(HOST))
                .with_port(i32::from(broker.port))
                .with_rack(broker.rack.as_deref().map(text))
        })
        .collect();
}
