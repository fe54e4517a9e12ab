//! The Kafka requests of the harness about consumer groups, encoded by hand: coordinator, members, committed offsets.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::kafka_wire::{KafkaRequest, KafkaResponse, call, metadata};

const OFFSET_COMMIT: i16 = 8;
const OFFSET_FETCH: i16 = 9;
const FIND_COORDINATOR: i16 = 10;
const JOIN_GROUP: i16 = 11;
const DESCRIBE_GROUPS: i16 = 15;

/// Returns the id of the broker that coordinates a group, from the first broker of the list that answers.
pub(crate) fn coordinator(brokers: &str, group: &str) -> io::Result<i32> {
    let mut request = KafkaRequest::default();
    request.text(group);
    let mut failure = io::Error::other("no broker given");
    for broker in brokers.split(',') {
        let answer = call(broker, FIND_COORDINATOR, 0, &request.0).and_then(|answer| {
            let mut reader = KafkaResponse(&answer);
            check(reader.short()?)?;
            reader.int()
        });
        match answer {
            Ok(node) => return Ok(node),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Returns the assigned partitions of `topic` by member id. Fails during a rebalance.
pub(crate) fn members(brokers: &str, group: &str, topic: &str) -> io::Result<BTreeMap<String, Vec<i32>>> {
    let mut request = KafkaRequest::default();
    request.int(1);
    request.text(group);
    let answer = at_coordinator(brokers, group, DESCRIBE_GROUPS, 0, &request)?;
    let mut reader = KafkaResponse(&answer);
    reader.int()?;
    check(reader.short()?)?;
    reader.text()?;
    let state = reader.text()?;
    if !["Stable", "Empty", "Dead"].contains(&state.as_str()) {
        return Err(io::Error::other(format!("group {group} is in state {state}")));
    }
    reader.text()?;
    reader.text()?;
    let mut members = BTreeMap::new();
    for _ in 0..reader.int()? {
        let id = reader.text()?;
        reader.text()?;
        reader.text()?;
        let length = reader.int()?.max(0) as usize;
        reader.take(length)?; // The subscription.
        let length = reader.int()?.max(0) as usize;
        members.insert(id, partitions(reader.take(length)?, topic)?);
    }
    Ok(members)
}

fn partitions(assignment: &[u8], topic: &str) -> io::Result<Vec<i32>> {
    let mut reader = KafkaResponse(assignment);
    let mut found = Vec::new();
    if assignment.is_empty() {
        return Ok(found);
    }
    reader.short()?;
    for _ in 0..reader.int()? {
        let name = reader.text()?;
        for _ in 0..reader.int()? {
            let partition = reader.int()?;
            found.extend((name == topic).then_some(partition));
        }
    }
    Ok(found)
}

/// An offset that is committed: the offset, and the text beside it.
pub(crate) type Committed = (i64, String);

/// Returns the committed offsets of the partitions 0 to `n_partitions - 1` that have one.
pub(crate) fn committed(
    brokers: &str,
    group: &str,
    topic: &str,
    n_partitions: i32,
) -> io::Result<BTreeMap<i32, Committed>> {
    let mut request = KafkaRequest::default();
    request.text(group);
    request.int(1);
    request.text(topic);
    request.int(n_partitions);
    (0..n_partitions).for_each(|partition| request.int(partition));
    let answer = at_coordinator(brokers, group, OFFSET_FETCH, 2, &request)?;
    let mut reader = KafkaResponse(&answer);
    let mut offsets = BTreeMap::new();
    for _ in 0..reader.int()? {
        reader.text()?;
        for _ in 0..reader.int()? {
            let (partition, offset, metadata) = (reader.int()?, reader.long()?, reader.text()?);
            check(reader.short()?)?;
            if offset >= 0 {
                offsets.insert(partition, (offset, metadata));
            }
        }
    }
    check(reader.short()?)?;
    Ok(offsets)
}

/// Commits an offset of a group without members.
pub(crate) fn commit(brokers: &str, group: &str, topic: &str, partition: i32, offset: i64) -> io::Result<()> {
    let mut request = KafkaRequest::default();
    request.text(group);
    // Generation, member and retention of a commit without membership.
    request.int(-1);
    request.text("");
    request.long(-1);
    request.int(1);
    request.text(topic);
    request.int(1);
    request.int(partition);
    request.long(offset);
    request.text("");
    let answer = at_coordinator(brokers, group, OFFSET_COMMIT, 2, &request)?;
    let mut reader = KafkaResponse(&answer);
    for _ in 0..reader.int()? {
        reader.text()?;
        for _ in 0..reader.int()? {
            reader.int()?;
            check(reader.short()?)?;
        }
    }
    Ok(())
}

/// Joins a group as a consumer that never says who gets which partition: the group rebalances until the member's
/// session has ended, after `session`.
pub(crate) fn join_and_be_silent(brokers: &str, group: &str, topic: &str, session: Duration) -> io::Result<()> {
    let mut request = KafkaRequest::default();
    request.text(group);
    request.int(i32::try_from(session.as_millis()).expect("a short session"));
    request.text("");
    request.text("consumer");
    request.int(1);
    request.text("range");
    // The subscription: version, topics, no user data.
    let mut subscription = KafkaRequest::default();
    subscription.short(0);
    subscription.int(1);
    subscription.text(topic);
    subscription.int(-1);
    request.int(i32::try_from(subscription.0.len()).expect("it is short"));
    request.0.extend(subscription.0);
    let answer = at_coordinator(brokers, group, JOIN_GROUP, 0, &request)?;
    check(KafkaResponse(&answer).short()?)
}

fn at_coordinator(brokers: &str, group: &str, api: i16, version: i16, request: &KafkaRequest) -> io::Result<Vec<u8>> {
    let node = coordinator(brokers, group)?;
    let known = metadata(brokers, &[])?.brokers;
    let address = known.get(&node).ok_or_else(|| io::Error::other("the coordinator is down"))?;
    call(address, api, version, &request.0)
}

fn check(code: i16) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::other(format!("Kafka error {code}"))),
    }
}
