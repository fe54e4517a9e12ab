//! Fetch: long polls, sessions, isolation levels, divergence.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::fetch_session::{Answered, FetchSession, Key, Position};
use super::super::script::Plan;
use super::super::state::State;
use super::metadata::uuid;
use super::{HOST, check_leader, text, topic_name};

/// Where the partitions of a response come from.
enum Mode {
    /// The request names all partitions, and no session is made.
    Sessionless,
    /// The request names all partitions, and a session is made of them.
    NewSession,
    /// The session has the partitions, and the response only those that changed.
    Session(i32),
}

impl Serve for FetchRequest {
    fn targets(&self, state: &State) -> Vec<(String, i32)> {
        let of_sessions = state.brokers.iter().filter_map(|broker| broker.sessions.get(&self.session_id));
        let mut keys: Vec<_> = named(self, state).into_iter().map(|(key, _)| key).collect();
        keys.extend(of_sessions.flat_map(FetchSession::wanted).map(|(key, _)| key));
        keys.sort();
        keys.dedup();
        keys.into_iter().filter_map(|key| Some((key.name?, key.partition))).collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<FetchResponse>, Ended> {
        let deadline = Instant::now() + Duration::from_millis(self.max_wait_ms.max(0) as u64);
        let response = FetchResponse::default().with_throttle_time_ms(plan.throttle_ms);
        let mut state = context.lock();
        let (mode, wanted) = match open(&self, context, &mut state) {
            Ok(opened) => opened,
            Err(code) => return Ok(Some(response.with_error_code(code))),
        };
        loop {
            if !context.is_alive(&state) {
                return Err(Ended);
            }
            let now = Instant::now();
            let answers = read_all(&self, context, &mut state, plan, &wanted);
            let bytes: usize = answers.iter().map(|data| data.records.as_ref().map_or(0, Bytes::len)).sum();
            let is_due = bytes >= self.min_bytes.max(0) as usize || answers.iter().any(is_urgent) || now >= deadline;
            if is_due || wanted.is_empty() {
                let answered = wanted.into_iter().zip(answers).collect();
                return Ok(Some(finish(response, context, &mut state, &mode, answered)));
            }
            let next = wanted
                .iter()
                .filter_map(|(key, _)| state.partition(key.name.as_deref()?, key.partition)?.next_advance());
            let next = next.fold(deadline, Instant::min);
            state = context.shared.wait(state, next);
        }
    }
}

/// Returns the partitions that a request names.
fn named(request: &FetchRequest, state: &State) -> Vec<(Key, Position)> {
    let topics = request.topics.iter().flat_map(|topic| {
        let (name, id) = identify(state, topic.topic.as_str(), *topic.topic_id.as_bytes());
        topic.partitions.iter().map(move |partition| {
            let position = Position {
                offset: partition.fetch_offset,
                leader_epoch: partition.current_leader_epoch,
                last_epoch: partition.last_fetched_epoch,
                max_bytes: partition.partition_max_bytes.max(0) as usize,
            };
            (Key { name: name.clone(), id, partition: partition.partition }, position)
        })
    });
    topics.collect()
}

fn identify(state: &State, name: &str, id: [u8; 16]) -> (Option<String>, [u8; 16]) {
    match id == [0; 16] {
        true => (Some(name.to_owned()), id),
        false => (state.topic_name(&id).map(str::to_owned), id),
    }
}

/// Finds or changes the session; returns all partitions to read.
fn open(request: &FetchRequest, context: &Context, state: &mut State) -> Result<(Mode, Vec<(Key, Position)>), i16> {
    let named = named(request, state);
    if context.version < 7 || request.session_epoch <= 0 {
        state.broker_mut(context.broker).sessions.remove(&request.session_id);
        let is_new = context.version >= 7 && request.session_epoch == 0;
        return Ok((if is_new { Mode::NewSession } else { Mode::Sessionless }, named));
    }
    let forgotten = request.forgotten_topics_data.iter().flat_map(|topic| {
        let (name, id) = identify(state, topic.topic.as_str(), *topic.topic_id.as_bytes());
        topic.partitions.iter().map(move |partition| Key { name: name.clone(), id, partition: *partition })
    });
    let forgotten: Vec<_> = forgotten.collect();
    let sessions = &mut state.broker_mut(context.broker).sessions;
    let session = sessions.get_mut(&request.session_id).ok_or(codes::FETCH_SESSION_ID_NOT_FOUND)?;
    if session.epoch != request.session_epoch {
        return Err(codes::INVALID_FETCH_SESSION_EPOCH);
    }
    if session.has_topic_ids != (context.version >= 13) {
        return Err(codes::FETCH_SESSION_TOPIC_ID_ERROR);
    }
    session.advance();
    named.into_iter().for_each(|(key, position)| session.set(key, position));
    forgotten.iter().for_each(|key| session.forget(key));
    Ok((Mode::Session(request.session_id), session.wanted()))
}

/// Whether a partition is a reason to answer at once.
fn is_urgent(data: &PartitionData) -> bool {
    data.error_code != codes::NONE || data.diverging_epoch.epoch >= 0 || data.preferred_read_replica.0 >= 0
}

/// Reads the partitions, within the limit of the request.
fn read_all(
    request: &FetchRequest,
    context: &Context,
    state: &mut State,
    plan: &Plan,
    wanted: &[(Key, Position)],
) -> Vec<PartitionData> {
    let mut left = request.max_bytes.max(0) as usize;
    // The first batch of a response comes whole, however large it is, so that consumers always make progress.
    let mut is_first = true;
    let mut answers = Vec::new();
    for (key, position) in wanted {
        let (data, code) = match read(request, context, state, plan, (key, position), (left, is_first)) {
            Ok(data) => (data, codes::NONE),
            Err((code, hint)) => (failed(key).with_current_leader(hint), code),
        };
        let count = data.records.as_ref().map_or(0, Bytes::len);
        is_first &= count == 0;
        left = left.saturating_sub(count);
        answers.push(data.with_error_code(code));
    }
    answers
}

fn failed(key: &Key) -> PartitionData {
    PartitionData::default()
        .with_partition_index(key.partition)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_records(Some(Bytes::new()))
}

/// Reads a partition. `limit`: bytes left in the response, and whether the first batch comes whole.
fn read(
    request: &FetchRequest,
    context: &Context,
    state: &mut State,
    plan: &Plan,
    (key, position): (&Key, &Position),
    limit: (usize, bool),
) -> Result<PartitionData, (i16, LeaderIdAndEpoch)> {
    let error = |code| (code, LeaderIdAndEpoch::default());
    let name = key.name.as_deref().ok_or(error(codes::UNKNOWN_TOPIC_ID))?;
    if let Some(injected) = plan.error_of(name, key.partition) {
        let hint = injected.leader_hint.filter(|_| context.version >= 12).map(leader).unwrap_or_default();
        return Err((injected.code, hint));
    }
    if key.id != [0; 16] {
        let topic = state.topics.get(name).ok_or(error(codes::UNKNOWN_TOPIC_ID))?;
        if topic.id != key.id {
            return Err(error(codes::INCONSISTENT_TOPIC_ID));
        }
    }
    let is_follower_fetch = context.version >= 11 && state.fetches_from_followers;
    if let Err(code) = check_leader(context, state, name, key.partition, position.leader_epoch, is_follower_fetch) {
        let known = state.partition(name, key.partition).filter(|_| context.version >= 12 && state.has_leader_hints);
        let hint = known.filter(|_| matches!(code, codes::NOT_LEADER_OR_FOLLOWER | codes::FENCED_LEADER_EPOCH));
        let hint = hint.and_then(|known| Some(leader((known.leader?, known.leader_epoch))));
        return Err((code, hint.unwrap_or_default()));
    }
    let preferred = if is_follower_fetch { nearest(request, context, state, key, name) } else { None };
    let partition = state.partition_mut(name, key.partition).ok_or(error(codes::UNKNOWN_TOPIC_OR_PARTITION))?;
    partition.advance(Instant::now());
    let log = &partition.log;
    let mut data = failed(key)
        .with_high_watermark(log.high_watermark())
        .with_last_stable_offset(log.last_stable_offset())
        .with_log_start_offset(log.start_offset());
    if let Some(preferred) = preferred {
        return Ok(data.with_preferred_read_replica(BrokerId(preferred)));
    }
    if position.last_epoch >= 0 && context.version >= 12 {
        let (epoch, end) = log.epoch_end(position.last_epoch);
        if epoch < 0 {
            return Err(error(codes::OFFSET_OUT_OF_RANGE));
        }
        if epoch < position.last_epoch || end < position.offset {
            return Ok(data.with_diverging_epoch(EpochEndOffset::default().with_epoch(epoch).with_end_offset(end)));
        }
    }
    if position.offset < log.start_offset() || position.offset > log.end_offset() {
        return Err(error(codes::OFFSET_OUT_OF_RANGE));
    }
    let is_committed_only = request.isolation_level == 1;
    let bound = if is_committed_only { log.last_stable_offset() } else { log.high_watermark() };
    let (left, is_first) = limit;
    let records = log.read(position.offset, bound, position.max_bytes.min(left), is_first);
    if is_committed_only {
        let aborted = log.aborted(position.offset, bound).into_iter().map(|ended| {
            AbortedTransaction::default()
                .with_producer_id(ProducerId(ended.producer_id))
                .with_first_offset(ended.first_offset)
        });
        data.aborted_transactions = Some(aborted.collect());
    } else {
        data.aborted_transactions = None;
    }
    Ok(data.with_records(Some(records)))
}

/// Returns the in-sync replica in the rack of the consumer, if the leader is in another one (KIP-392).
fn nearest(request: &FetchRequest, context: &Context, state: &State, key: &Key, name: &str) -> Option<i32> {
    let partition = state.partition(name, key.partition)?;
    let rack_of =
        |id: i32| state.broker(id).filter(|broker| broker.is_running).and_then(|broker| broker.rack.as_deref());
    let rack = Some(request.rack_id.as_str()).filter(|rack| !rack.is_empty());
    if partition.leader != Some(context.broker) || rack.is_none() || rack_of(context.broker) == rack {
        return None;
    }
    partition.isr.iter().copied().find(|id| rack_of(*id) == rack)
}

fn leader((id, epoch): (i32, i32)) -> LeaderIdAndEpoch {
    LeaderIdAndEpoch::default().with_leader_id(BrokerId(id)).with_leader_epoch(epoch)
}

/// Applies the session to the answers and makes the response of them.
fn finish(
    response: FetchResponse,
    context: &Context,
    state: &mut State,
    mode: &Mode,
    answered: Vec<((Key, Position), PartitionData)>,
) -> FetchResponse {
    let mut session = match mode {
        Mode::Sessionless => None,
        Mode::NewSession => Some(FetchSession::new(context.version >= 13)),
        Mode::Session(id) => state.broker_mut(context.broker).sessions.remove(id),
    };
    let mut response = response;
    let mut named = std::collections::BTreeSet::new();
    for ((key, position), data) in answered {
        let is_sent = match (&mut session, mode) {
            (Some(session), Mode::Session(_)) => session.update(&key, summary(&data)),
            (Some(session), _) => {
                session.set(key.clone(), position);
                session.update(&key, summary(&data));
                true
            }
            (None, _) => true,
        };
        if is_sent {
            named.insert(data.current_leader.leader_id.0);
            add(&mut response, &key, data);
        }
    }
    let broker_count = state.max_fetch_sessions;
    let id = match mode {
        Mode::Session(id) => Some(*id),
        Mode::NewSession if state.broker(context.broker).is_some_and(|known| known.sessions.len() < broker_count) => {
            state.next_session_id += 1;
            Some(state.next_session_id)
        }
        _ => None,
    };
    if let (Some(id), Some(session)) = (id, session) {
        response.session_id = id;
        state.broker_mut(context.broker).sessions.insert(id, session);
    }
    if context.version >= 16 {
        let brokers = named.into_iter().filter_map(|id| state.broker(id));
        response.node_endpoints = brokers.map(endpoint).collect();
    }
    response
}

fn endpoint(broker: &super::super::state::Broker) -> NodeEndpoint {
    NodeEndpoint::default()
        .with_node_id(BrokerId(broker.id))
        .with_host(text(HOST))
        .with_port(i32::from(broker.port))
        .with_rack(broker.rack.as_deref().map(text))
}

fn summary(data: &PartitionData) -> Answered {
    Answered {
        has_content: is_urgent(data) || data.records.as_ref().is_some_and(|records| !records.is_empty()),
        has_error: data.error_code != codes::NONE,
        high_watermark: data.high_watermark,
        log_start: data.log_start_offset,
    }
}

/// Adds a partition to its topic in the response.
fn add(response: &mut FetchResponse, key: &Key, data: PartitionData) {
    let is_of_topic = |topic: &FetchableTopicResponse| {
        *topic.topic_id.as_bytes() == key.id && key.name.as_deref().is_none_or(|name| topic.topic.as_str() == name)
    };
    match response.responses.last_mut().filter(|topic| is_of_topic(topic)) {
        Some(topic) => topic.partitions.push(data),
        None => response.responses.push(
            FetchableTopicResponse::default()
                .with_topic(topic_name(key.name.as_deref().unwrap_or_default()))
                .with_topic_id(uuid(&key.id))
                .with_partitions(vec![data]),
        ),
    }
}
