//! Produce, InitProducerId, Metadata and ApiVersions.

use std::time::Duration;

use super::*;
use crate::kafka::testkit::{ApiKey, Release, TopicSpec, codes};

#[test]
fn records_are_stored_and_answered_in_every_version() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    for version in 3..=12 {
        let response = client.call(version, &produce_request("t", 0, 1, &one(&version.to_string()))).unwrap();
        let answer = &response.responses[0].partition_responses[0];
        assert_eq!((answer.error_code, answer.base_offset), (0, i64::from(version) - 3), "{version}");
    }
    let expected: Vec<_> = (3..=12).map(|version| version.to_string()).collect();
    assert_eq!(values(&cluster, "t", 0), expected);
    assert_eq!(cluster.requests(ApiKey::Produce), 10);
    assert_eq!(cluster.partitions_per_request(ApiKey::Produce), [(1, 10)].into());
}

#[test]
fn metadata_names_brokers_leaders_and_unknown_topics_in_every_version() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 2);
    let mut client = RawClient::connect(&cluster, 2);
    for version in 0..=13 {
        let wanted = ["t", "other"]
            .map(|name| m::metadata_request::MetadataRequestTopic::default().with_name(Some(topic_name(name))));
        let request = m::MetadataRequest::default().with_topics(Some(wanted.into()));
        let response = client.call(version, &request).unwrap();
        let ports: Vec<_> = response.brokers.iter().map(|broker| broker.port as u16).collect();
        let expected: Vec<_> = cluster.bootstrap().into_iter().map(|(_, port)| port).collect();
        assert_eq!(ports, expected, "{version}");
        let leaders: Vec<_> = response.topics[0].partitions.iter().map(|partition| partition.leader_id.0).collect();
        assert_eq!(leaders, [1, 2], "{version}");
        assert_eq!(response.topics[1].error_code, codes::UNKNOWN_TOPIC_OR_PARTITION, "{version}");
        if version >= 10 {
            assert_eq!(Some(*response.topics[0].topic_id.as_bytes()), cluster.topic_id("t"), "{version}");
        }
    }
}

#[test]
fn each_release_announces_its_versions_and_rejects_others() {
    for release in Release::ALL {
        let cluster = TestCluster::builder(1).release(release).start();
        let mut client = RawClient::connect(&cluster, 1);
        let response = client.call(0, &m::ApiVersionsRequest::default()).unwrap();
        for api in &response.api_keys {
            let key = ApiKey::try_from(api.api_key).unwrap();
            assert_eq!(release.versions(key), Some((api.min_version, api.max_version)));
        }
        client.send(4, &m::ApiVersionsRequest::default());
        let is_supported = release >= Release::V3_9;
        let version = if is_supported { 4 } else { 0 };
        let response = client.receive::<m::ApiVersionsRequest>(version).unwrap();
        assert_eq!(response.error_code, if is_supported { 0 } else { codes::UNSUPPORTED_VERSION }, "{release:?}");
        // Another request in an unknown version ends the connection.
        let version = release.versions(ApiKey::Metadata).unwrap().1 + 1;
        let unknown = m::RequestHeader::default().with_request_api_key(3).with_request_api_version(version);
        let mut frame = BytesMut::new();
        unknown.encode(&mut frame, 2).unwrap();
        client.stream.write_all(&(frame.len() as i32).to_be_bytes()).unwrap();
        client.stream.write_all(&frame).unwrap();
        let outcome = client.receive::<m::MetadataRequest>(12);
        assert_eq!(outcome, Err(NoResponse::Closed));
    }
}

#[test]
fn rejected_records_are_listed_and_cost_no_sequence_number() {
    let cluster = TestCluster::start(1);
    cluster.create(TopicSpec::new("t").compacted());
    let mut client = RawClient::connect(&cluster, 1);
    let bad = BatchSpec::new().producer(7, 0, 0).record(Some("k"), None, 1).record(None, Some("no key"), 2);
    let answer = client.produce("t", 0, &bad);
    assert_eq!(answer.error_code, codes::INVALID_RECORD);
    let indices: Vec<_> = answer.record_errors.iter().map(|error| error.batch_index).collect();
    assert_eq!(indices, [1]);
    let old = client.call(7, &produce_request("t", 0, 1, &bad)).unwrap();
    assert_eq!(old.responses[0].partition_responses[0].error_code, codes::CORRUPT_MESSAGE);
    assert_eq!(client.produce("t", 0, &one("x").producer(7, 0, 0)).error_code, codes::NONE);
}

#[test]
fn acks_0_has_no_response_and_an_error_closes_the_connection() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    client.send(9, &produce_request("t", 0, 0, &one("a")));
    assert_eq!(client.produce("t", 0, &one("b")).base_offset, 1);
    client.send(9, &produce_request("t", 1, 0, &one("c")));
    assert!(matches!(client.receive::<m::ProduceRequest>(9), Err(NoResponse::Closed)));
}

#[test]
fn acks_all_waits_for_the_replication() {
    let cluster = TestCluster::start(2);
    cluster.create(TopicSpec::new("t").min_in_sync(2));
    let mut client = RawClient::connect(&cluster, 1);
    cluster.hold_replication("t", 0, true);
    client.send(9, &produce_request("t", 0, -1, &one("a")));
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 1));
    assert_eq!(cluster.read_log("t", 0, |log| log.high_watermark()), 0);
    cluster.hold_replication("t", 0, false);
    let answer = client.receive::<m::ProduceRequest>(9).unwrap();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, codes::NONE);
    // A replication that does not end in time leaves the record in the log.
    cluster.hold_replication("t", 0, true);
    let mut late = produce_request("t", 0, -1, &one("b"));
    late.timeout_ms = 10;
    let answer = client.call(9, &late).unwrap();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, codes::REQUEST_TIMED_OUT);
    cluster.hold_replication("t", 0, false);
    cluster.set_in_sync("t", 0, &[1]);
    assert_eq!(client.produce("t", 0, &one("c")).error_code, codes::NOT_ENOUGH_REPLICAS);
    assert_eq!(values(&cluster, "t", 0), ["a", "b"]);
}

#[test]
fn a_broker_that_is_not_the_leader_names_the_leader() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    cluster.move_leader("t", 0, Some(2));
    let response = client.call(10, &produce_request("t", 0, 1, &one("a"))).unwrap();
    let answer = &response.responses[0].partition_responses[0];
    assert_eq!(answer.error_code, codes::NOT_LEADER_OR_FOLLOWER);
    assert_eq!((answer.current_leader.leader_id.0, answer.current_leader.leader_epoch), (2, 1));
    assert_eq!(response.node_endpoints[0].port as u16, cluster.address(2).1);
}

#[test]
fn a_stopped_broker_loses_its_leaderships_and_comes_back_on_its_port() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    assert_eq!(client.produce("t", 0, &one("a")).error_code, codes::NONE);
    cluster.stop_broker(1);
    assert!(matches!(client.receive::<m::ProduceRequest>(9), Err(NoResponse::Closed)));
    assert!(TcpStream::connect(cluster.address(1)).is_err());
    assert_eq!(cluster.leader("t", 0), (Some(2), 1));
    cluster.start_broker(1);
    let mut client = RawClient::connect(&cluster, 1);
    assert_eq!(client.produce("t", 0, &one("b")).error_code, codes::NOT_LEADER_OR_FOLLOWER);
    let mut client = RawClient::connect(&cluster, 2);
    assert_eq!(client.produce("t", 0, &one("c")).base_offset, 1);
}

#[test]
fn producer_ids_are_new_each_time() {
    let cluster = TestCluster::start(1);
    let mut client = RawClient::connect(&cluster, 1);
    let request = m::InitProducerIdRequest::default().with_transactional_id(None);
    let ids: Vec<_> = (0..=5).map(|version| client.call(version, &request).unwrap().producer_id.0).collect();
    assert_eq!(ids, [1000, 1001, 1002, 1003, 1004, 1005]);
}

#[test]
fn records_above_the_high_watermark_are_lost_with_their_leader() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    let batch = |sequence: i32, value| one(value).producer(7, 0, sequence);
    assert_eq!(client.produce("t", 0, &batch(0, "a")).error_code, 0);
    cluster.hold_replication("t", 0, true);
    let early = client.call(9, &produce_request("t", 0, 1, &batch(1, "b"))).unwrap();
    assert_eq!(early.responses[0].partition_responses[0].base_offset, 1);
    // A duplicate of a replicated batch is answered although the replication is held.
    assert_eq!(client.produce("t", 0, &batch(0, "a")).base_offset, 0);
    // A request that waits for the replication learns that the leader has changed.
    client.send(9, &produce_request("t", 0, -1, &batch(2, "c")));
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 3));
    cluster.move_leader_losing_unreplicated("t", 0, 2);
    let answer = client.receive::<m::ProduceRequest>(9).unwrap();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, codes::NOT_LEADER_OR_FOLLOWER);
    assert_eq!(values(&cluster, "t", 0), ["a"]);
    let mut client = RawClient::connect(&cluster, 2);
    cluster.hold_replication("t", 0, false);
    assert_eq!(client.produce("t", 0, &batch(2, "c")).error_code, codes::OUT_OF_ORDER_SEQUENCE_NUMBER);
    assert_eq!(client.produce("t", 0, &batch(1, "b")).base_offset, 1);
}

#[test]
fn topics_are_denied_deleted_and_extended() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    cluster.deny_topic("t", true);
    assert_eq!(client.produce("t", 0, &one("a")).error_code, codes::TOPIC_AUTHORIZATION_FAILED);
    cluster.deny_topic("t", false);
    assert_eq!(client.produce("t", 1, &one("a")).error_code, codes::UNKNOWN_TOPIC_OR_PARTITION);
    cluster.add_partitions("t", 1);
    assert_eq!(client.produce("t", 1, &one("a")).error_code, codes::NONE);
    let old = cluster.topic_id("t");
    cluster.delete_topic("t");
    assert_eq!(client.produce("t", 0, &one("a")).error_code, codes::UNKNOWN_TOPIC_OR_PARTITION);
    cluster.create_topic("t", 1);
    assert_ne!(cluster.topic_id("t"), old);
    assert_eq!(client.produce("t", 0, &one("a")).base_offset, 0);
}

#[test]
fn kafka_4_1_takes_topics_by_their_ids() {
    let cluster = TestCluster::builder(1).release(Release::V4_1).start();
    cluster.create_topic("t", 1);
    let mut client = RawClient::connect(&cluster, 1);
    let mut request = produce_request("t", 0, -1, &one("a"));
    request.topic_data[0].topic_id = cluster.topic_id("t").unwrap().to_vec().try_into().unwrap();
    let response = client.call(13, &request).unwrap();
    assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    cluster.delete_topic("t");
    let response = client.call(13, &request).unwrap();
    assert_eq!(response.responses[0].partition_responses[0].error_code, codes::UNKNOWN_TOPIC_ID);
}

#[test]
fn a_dropped_cluster_ends_requests_that_wait() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    cluster.hold_replication("t", 0, true);
    let mut client = RawClient::connect(&cluster, 1);
    client.send(9, &produce_request("t", 0, -1, &one("a")));
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 1));
    let started = std::time::Instant::now();
    drop(cluster);
    // The request would wait for 30 s.
    assert!(started.elapsed() < Duration::from_secs(15));
}
