//! Fetch, ListOffsets and OffsetForLeaderEpoch.

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};

use super::*;
use crate::kafka::testkit::batch::Batch;
use crate::kafka::testkit::{ApiKey, Release, codes};

/// A request that names the partitions of topic `t` with their offsets.
fn request(cluster: &TestCluster, version: i16, offsets: &[(i32, i64)]) -> m::FetchRequest {
    let partitions = offsets.iter().map(|(partition, offset)| {
        FetchPartition::default()
            .with_partition(*partition)
            .with_fetch_offset(*offset)
            .with_current_leader_epoch(-1)
            .with_last_fetched_epoch(-1)
            .with_partition_max_bytes(1 << 20)
    });
    let mut topic = FetchTopic::default().with_topic(topic_name("t")).with_partitions(partitions.collect());
    if version >= 13 {
        topic.topic_id = cluster.topic_id("t").unwrap().to_vec().try_into().unwrap();
    }
    m::FetchRequest::default().with_max_bytes(1 << 20).with_min_bytes(1).with_session_epoch(-1).with_topics(vec![topic])
}

fn offsets_in(data: &PartitionData) -> Vec<i64> {
    let bytes = data.records.clone().unwrap_or_default();
    let mut rest = &bytes[..];
    let mut offsets = Vec::new();
    while !rest.is_empty() {
        let (batch, after) = Batch::parse(rest).unwrap();
        offsets.extend(batch.records().unwrap().iter().map(|record| record.offset));
        rest = after;
    }
    offsets
}

fn fetch(client: &mut RawClient, version: i16, request: &m::FetchRequest) -> PartitionData {
    let response = client.call(version, request).unwrap();
    assert_eq!(response.error_code, 0);
    response.responses[0].partitions[0].clone()
}

fn cluster() -> (TestCluster, RawClient) {
    let cluster = TestCluster::builder(1).release(Release::V4_1).start();
    cluster.create_topic("t", 2);
    let client = RawClient::connect(&cluster, 1);
    (cluster, client)
}

#[test]
fn records_are_fetched_in_every_version() {
    let (cluster, mut client) = cluster();
    (0..3).for_each(|number| {
        cluster.append_record("t", 0, "k", &number.to_string());
    });
    for version in 4..=18 {
        let data = fetch(&mut client, version, &request(&cluster, version, &[(0, 1)]));
        assert_eq!((offsets_in(&data), data.high_watermark), (vec![1, 2], 3), "{version}");
    }
}

#[test]
fn a_fetch_waits_for_records_or_its_timeout() {
    let (cluster, mut client) = cluster();
    let mut waiting = request(&cluster, 12, &[(0, 0)]).with_max_wait_ms(60_000);
    client.send(12, &waiting);
    assert!(cluster.wait_until(LONG, |cluster| cluster.requests(ApiKey::Fetch) == 1));
    cluster.append_record("t", 0, "k", "v");
    let response = client.receive::<m::FetchRequest>(12).unwrap();
    assert_eq!(offsets_in(&response.responses[0].partitions[0]), [0]);
    waiting.topics[0].partitions[0].fetch_offset = 1;
    waiting.max_wait_ms = 20;
    assert_eq!(offsets_in(&fetch(&mut client, 12, &waiting)), Vec::<i64>::new());
}

#[test]
fn a_session_answers_only_what_changed() {
    for version in [7, 12, 13, 17] {
        let (cluster, mut client) = cluster();
        cluster.append_record("t", 0, "k", "v");
        let full = request(&cluster, version, &[(0, 0), (1, 0)]).with_session_epoch(0);
        let first = client.call(version, &full).unwrap();
        assert_eq!(first.responses[0].partitions.len(), 2);
        let next = |epoch| request(&cluster, version, &[]).with_session_id(first.session_id).with_session_epoch(epoch);
        cluster.append_record("t", 1, "k", "v");
        let response = client.call(version, &next(1)).unwrap();
        assert_eq!((response.error_code, response.session_id), (0, first.session_id));
        // Partition 0 has the same record as before, since its position did not change; partition 1 has a new one.
        let of = |response: &m::FetchResponse| -> Vec<(i32, Vec<i64>)> {
            let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
            partitions.map(|data| (data.partition_index, offsets_in(data))).collect()
        };
        assert_eq!(of(&response), [(0, vec![0]), (1, vec![0])], "{version}");
        let mut moved = next(2);
        moved.topics = request(&cluster, version, &[(0, 1), (1, 1)]).topics;
        assert_eq!(of(&client.call(version, &moved).unwrap()), [], "{version}");
        assert_eq!(client.call(version, &next(2)).unwrap().error_code, codes::INVALID_FETCH_SESSION_EPOCH);
        cluster.drop_fetch_sessions();
        assert_eq!(client.call(version, &next(3)).unwrap().error_code, codes::FETCH_SESSION_ID_NOT_FOUND);
    }
}

#[test]
fn read_committed_ends_before_open_transactions_and_names_aborted_ones() {
    let (cluster, mut client) = cluster();
    cluster.append("t", 0, &one("a").producer(5, 0, 0).transactional());
    cluster.append_record("t", 0, "k", "b");
    let committed = request(&cluster, 12, &[(0, 0)]).with_isolation_level(1);
    let data = fetch(&mut client, 12, &committed);
    assert_eq!((offsets_in(&data), data.last_stable_offset, data.high_watermark), (vec![], 0, 2));
    let all = fetch(&mut client, 12, &request(&cluster, 12, &[(0, 0)]));
    assert_eq!((offsets_in(&all), all.aborted_transactions), (vec![0, 1], None));
    cluster.change_log("t", 0, |log| log.end_transaction(5, 0, false, 1000));
    let data = fetch(&mut client, 12, &committed);
    assert_eq!(offsets_in(&data), [0, 1, 2]);
    let aborted: Vec<_> =
        data.aborted_transactions.unwrap().iter().map(|t| (t.producer_id.0, t.first_offset)).collect();
    assert_eq!(aborted, [(5, 0)]);
}

#[test]
fn truncation_is_answered_as_divergence_and_old_epochs_are_fenced() {
    let (cluster, mut client) = cluster();
    (0..3).for_each(|number| {
        cluster.append_record("t", 0, "k", &number.to_string());
    });
    cluster.truncate("t", 0, 1);
    cluster.append_record("t", 0, "k", "new");
    let mut after = request(&cluster, 12, &[(0, 3)]);
    after.topics[0].partitions[0].last_fetched_epoch = 0;
    let data = fetch(&mut client, 12, &after);
    assert_eq!((data.diverging_epoch.epoch, data.diverging_epoch.end_offset), (0, 1));
    after.topics[0].partitions[0].current_leader_epoch = 0;
    assert_eq!(fetch(&mut client, 12, &after).error_code, codes::FENCED_LEADER_EPOCH);
    after.topics[0].partitions[0].current_leader_epoch = 2;
    assert_eq!(fetch(&mut client, 12, &after).error_code, codes::UNKNOWN_LEADER_EPOCH);
    let out_of_range = fetch(&mut client, 4, &request(&cluster, 4, &[(0, 3)]));
    assert_eq!(out_of_range.error_code, codes::OFFSET_OUT_OF_RANGE);
    for version in 2..=4 {
        let wanted = OffsetForLeaderPartition::default().with_current_leader_epoch(1).with_leader_epoch(0);
        let topic = OffsetForLeaderTopic::default().with_topic(topic_name("t")).with_partitions(vec![wanted]);
        let request = m::OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let response = client.call(version, &request).unwrap();
        let end = &response.topics[0].partitions[0];
        assert_eq!((end.error_code, end.leader_epoch, end.end_offset), (0, 0, 1), "{version}");
    }
}

#[test]
fn a_topic_recreated_has_another_id() {
    let (cluster, mut client) = cluster();
    let old = request(&cluster, 13, &[(0, 0)]);
    let full = client.call(13, &old.clone().with_session_epoch(0)).unwrap();
    cluster.delete_topic("t");
    assert_eq!(fetch(&mut client, 13, &old).error_code, codes::UNKNOWN_TOPIC_ID);
    cluster.create_topic("t", 1);
    assert_eq!(fetch(&mut client, 13, &old).error_code, codes::UNKNOWN_TOPIC_ID);
    let next = request(&cluster, 13, &[]).with_topics(vec![]).with_session_id(full.session_id).with_session_epoch(1);
    assert_eq!(fetch(&mut client, 13, &next).error_code, codes::INCONSISTENT_TOPIC_ID);
}

#[test]
fn a_follower_in_the_rack_of_the_consumer_is_preferred() {
    let cluster = TestCluster::builder(2).racks(&["a", "b"]).start();
    cluster.create_topic("t", 1);
    cluster.append_record("t", 0, "k", "v");
    cluster.set_fetch_from_followers(true);
    let mut request = request(&cluster, 12, &[(0, 0)]);
    request.rack_id = text("b");
    let mut leader = RawClient::connect(&cluster, 1);
    let data = fetch(&mut leader, 12, &request);
    assert_eq!((data.preferred_read_replica.0, offsets_in(&data)), (2, vec![]));
    let mut follower = RawClient::connect(&cluster, 2);
    assert_eq!(offsets_in(&fetch(&mut follower, 12, &request)), [0]);
    cluster.set_fetch_from_followers(false);
    assert_eq!(fetch(&mut follower, 12, &request).error_code, codes::NOT_LEADER_OR_FOLLOWER);
}

#[test]
fn list_offsets_in_every_version() {
    let (cluster, mut client) = cluster();
    for time in [100, 300, 200] {
        cluster.append("t", 0, &BatchSpec::new().record(None, Some("v"), time));
    }
    cluster.append("t", 0, &one("x").producer(5, 0, 0).transactional());
    cluster.change_log("t", 0, |log| log.delete_before(1));
    let mut list = |version, timestamp, isolation| {
        let wanted = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default().with_name(topic_name("t")).with_partitions(vec![wanted]);
        let request = m::ListOffsetsRequest::default().with_isolation_level(isolation).with_topics(vec![topic]);
        let response = client.call(version, &request).unwrap();
        let found = &response.topics[0].partitions[0];
        assert_eq!(found.error_code, 0);
        (found.offset, found.timestamp)
    };
    for version in 1..=10 {
        assert_eq!((list(version, -1, 0), list(version, -2, 0)), ((4, -1), (1, -1)), "{version}");
        assert_eq!((list(version, 150, 0), list(version, 5000, 0)), ((1, 300), (-1, -1)), "{version}");
        if version >= 2 {
            assert_eq!(list(version, -1, 1), (3, -1), "{version}");
        }
        if version >= 7 {
            assert_eq!(list(version, -3, 0), (3, 1000), "{version}");
        }
    }
}
