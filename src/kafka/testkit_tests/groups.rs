//! Coordinators, committed offsets and group membership.

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;

use super::*;
use crate::kafka::testkit::group::GroupState;
use crate::kafka::testkit::{ApiKey, Fault, Scope, codes};

fn group(name: &str) -> m::GroupId {
    m::GroupId(text(name))
}

fn cluster() -> (TestCluster, RawClient) {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    let client = RawClient::connect(&cluster, 1);
    (cluster, client)
}

#[test]
fn coordinators_are_found_in_every_version() {
    let cluster = TestCluster::start(3);
    let mut client = RawClient::connect(&cluster, 1);
    cluster.set_coordinator("g", Some(2));
    cluster.set_coordinator("none", None);
    for version in 0..=6 {
        let mut find = |name: &str| {
            let request = m::FindCoordinatorRequest::default();
            if version < 4 {
                let response = client.call(version, &request.with_key(text(name))).unwrap();
                return (response.error_code, response.node_id.0);
            }
            let response = client.call(version, &request.with_coordinator_keys(vec![text(name)])).unwrap();
            (response.coordinators[0].error_code, response.coordinators[0].node_id.0)
        };
        assert_eq!(find("g"), (0, 2), "{version}");
        assert_eq!(find("none"), (codes::COORDINATOR_NOT_AVAILABLE, -1), "{version}");
    }
}

#[test]
fn offsets_are_committed_and_fetched_in_every_version() {
    let (cluster, mut client) = cluster();
    for version in 2..=9 {
        let partition =
            OffsetCommitRequestPartition::default().with_partition_index(1).with_committed_offset(i64::from(version));
        let topic = OffsetCommitRequestTopic::default().with_name(topic_name("t")).with_partitions(vec![partition]);
        let request = m::OffsetCommitRequest::default()
            .with_group_id(group("g"))
            .with_topics(vec![topic])
            .with_generation_id_or_member_epoch(-1);
        let response = client.call(version, &request).unwrap();
        assert_eq!(response.topics[0].partitions[0].error_code, 0);
        assert_eq!(cluster.committed("g", "t", 1).unwrap().offset, i64::from(version));
    }
    for version in 1..=7 {
        let topic = OffsetFetchRequestTopic::default().with_name(topic_name("t")).with_partition_indexes(vec![0, 1]);
        let request = m::OffsetFetchRequest::default().with_group_id(group("g")).with_topics(Some(vec![topic]));
        let response = client.call(version, &request).unwrap();
        let offsets: Vec<_> =
            response.topics[0].partitions.iter().map(|partition| partition.committed_offset).collect();
        assert_eq!(offsets, [-1, 9], "{version}");
    }
    cluster.fault_always(Scope::api(ApiKey::OffsetFetch).topic("broken"), Fault::error(codes::NOT_COORDINATOR));
    for version in 8..=9 {
        let topic = OffsetFetchRequestTopics::default().with_name(topic_name("t")).with_partition_indexes(vec![1]);
        let groups = [("g", None), ("g", Some(vec![topic])), ("broken", None)];
        let groups = groups.map(|(name, topics)| {
            OffsetFetchRequestGroup::default().with_group_id(group(name)).with_topics(topics).with_member_id(None)
        });
        let response = client.call(version, &m::OffsetFetchRequest::default().with_groups(groups.into())).unwrap();
        for answered in &response.groups[..2] {
            assert_eq!(answered.topics[0].partitions[0].committed_offset, 9, "{version}");
        }
        assert_eq!(response.groups[2].error_code, codes::NOT_COORDINATOR);
    }
}

fn join_request(member: &str, session_ms: i32) -> m::JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::from_static(b"m"));
    m::JoinGroupRequest::default()
        .with_group_id(group("g"))
        .with_session_timeout_ms(session_ms)
        .with_rebalance_timeout_ms(60_000)
        .with_member_id(text(member))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

fn sync_request(member: &str, generation: i32, assignments: &[&str]) -> m::SyncGroupRequest {
    let assignments = assignments.iter().map(|id| {
        SyncGroupRequestAssignment::default().with_member_id(text(id)).with_assignment(Bytes::from(format!("for {id}")))
    });
    m::SyncGroupRequest::default()
        .with_group_id(group("g"))
        .with_generation_id(generation)
        .with_member_id(text(member))
        .with_assignments(assignments.collect())
}

fn heartbeat(client: &mut RawClient, member: &str, generation: i32) -> i16 {
    let request = m::HeartbeatRequest::default()
        .with_group_id(group("g"))
        .with_member_id(text(member))
        .with_generation_id(generation);
    client.call(4, &request).unwrap().error_code
}

#[test]
fn members_join_rebalance_and_leave() {
    let (cluster, mut first) = cluster();
    let id = {
        let response = first.call(5, &join_request("", 60_000)).unwrap();
        assert_eq!(response.error_code, codes::MEMBER_ID_REQUIRED);
        response.member_id.to_string()
    };
    let joined = first.call(5, &join_request(&id, 60_000)).unwrap();
    assert_eq!((joined.error_code, joined.generation_id, joined.leader.as_str()), (0, 1, &*id));
    assert_eq!(joined.members.len(), 1);
    let synced = first.call(5, &sync_request(&id, 1, &[&id])).unwrap();
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, format!("for {id}").as_bytes()));
    assert_eq!(heartbeat(&mut first, &id, 1), 0);
    assert_eq!(heartbeat(&mut first, &id, 0), codes::ILLEGAL_GENERATION);

    // A second member: the first one hears of the rebalance from its heartbeat.
    let mut second = RawClient::connect(&cluster, 1);
    second.send(3, &join_request("", 60_000));
    assert!(cluster.wait_until(LONG, |cluster| cluster.group("g").is_some_and(|(_, _, members)| members == 2)));
    assert_eq!(heartbeat(&mut first, &id, 1), codes::REBALANCE_IN_PROGRESS);
    let joined = first.call(5, &join_request(&id, 60_000)).unwrap();
    let other = second.receive::<m::JoinGroupRequest>(3).unwrap();
    assert_eq!((joined.generation_id, other.generation_id, joined.members.len()), (2, 2, 2));
    assert!(other.members.is_empty());
    let other_id = other.member_id.to_string();
    second.send(3, &sync_request(&other_id, 2, &[]));
    first.call(5, &sync_request(&id, 2, &[&id, &other_id])).unwrap();
    let synced = second.receive::<m::SyncGroupRequest>(3).unwrap();
    assert_eq!(&synced.assignment[..], format!("for {other_id}").as_bytes());
    assert_eq!(cluster.group("g"), Some((GroupState::Stable, 2, 2)));

    let leaving = MemberIdentity::default().with_member_id(text(&id));
    let leave = m::LeaveGroupRequest::default().with_group_id(group("g")).with_members(vec![leaving]);
    assert_eq!(first.call(4, &leave).unwrap().members[0].error_code, 0);
    assert_eq!(heartbeat(&mut second, &other_id, 2), codes::REBALANCE_IN_PROGRESS);
    assert_eq!(heartbeat(&mut first, &id, 2), codes::UNKNOWN_MEMBER_ID);
    let joined = second.call(3, &join_request(&other_id, 60_000)).unwrap();
    assert_eq!((joined.generation_id, joined.leader.as_str()), (3, &*other_id));
}

#[test]
fn a_session_without_heartbeats_expires() {
    let (cluster, mut client) = cluster();
    let joined = client.call(3, &join_request("", 10)).unwrap();
    assert!(cluster.wait_until(LONG, |cluster| {
        cluster.group("g").is_some_and(|(state, _, members)| state == GroupState::Empty && members == 0)
    }));
    assert_eq!(heartbeat(&mut client, &joined.member_id, joined.generation_id), codes::UNKNOWN_MEMBER_ID);
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    let (cluster, mut client) = cluster();
    let instance = || join_request("", 60_000).with_group_instance_id(Some(text("one")));
    let joined = client.call(5, &instance()).unwrap();
    let old = joined.member_id.to_string();
    client.call(5, &sync_request(&old, 1, &[&old])).unwrap();
    let again = client.call(5, &instance()).unwrap();
    assert_eq!((again.error_code, again.generation_id), (0, 1));
    assert_ne!(again.member_id.as_str(), old);
    assert_eq!(cluster.group("g"), Some((GroupState::Stable, 1, 1)));
    let fenced = sync_request(&old, 1, &[]).with_group_instance_id(Some(text("one")));
    assert_eq!(client.call(5, &fenced).unwrap().error_code, codes::FENCED_INSTANCE_ID);
}

#[test]
fn groups_are_listed_and_described_in_every_version() {
    let (cluster, mut client) = cluster();
    cluster.commit_offset("offsets-only", "t", 0, 5);
    let joined = client.call(3, &join_request("", 60_000)).unwrap();
    client.call(3, &sync_request(&joined.member_id, 1, &[&joined.member_id])).unwrap();
    for version in 0..=5 {
        let response = client.call(version, &m::ListGroupsRequest::default()).unwrap();
        let names: Vec<_> = response.groups.iter().map(|listed| listed.group_id.to_string()).collect();
        assert_eq!(names, ["g", "offsets-only"], "{version}");
    }
    let filter = m::ListGroupsRequest::default().with_states_filter(vec![text("Stable")]);
    assert_eq!(client.call(4, &filter).unwrap().groups.len(), 1);
    for version in 0..=6 {
        let request = m::DescribeGroupsRequest::default().with_groups(vec![group("g"), group("absent")]);
        let response = client.call(version, &request).unwrap();
        let described = &response.groups[0];
        assert_eq!((described.group_state.as_str(), described.members.len()), ("Stable", 1), "{version}");
        assert_eq!(described.protocol_data.as_str(), "range", "{version}");
        assert_eq!(response.groups[1].group_state.as_str(), "Dead", "{version}");
    }
}
