use super::*;
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use kafka_protocol::messages::{BrokerId as CrateBroker, FetchRequest as CrateRequest, FetchResponse as CrateResponse};
use kafka_protocol::messages::{ProducerId, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable};
use proptest::prelude::*;

const ID: TopicId = [7; 16];

fn request() -> FetchRequest {
    let partition = |partition, offset| FetchPartition {
        partition,
        leader_epoch: 5,
        offset,
        last_fetched_epoch: 4,
        max_bytes: 1 << 20,
    };
    FetchRequest {
        max_wait_ms: 250,
        max_bytes: 10 << 20,
        read_committed: true,
        session_id: 99,
        session_epoch: 3,
        topics: vec![FetchTopic {
            name: "t".into(),
            id: ID,
            partitions: vec![partition(0, 10), partition(1, 1 << 40)],
        }],
        forgotten: vec![ForgottenTopic { name: "u".into(), id: [8; 16], partitions: vec![2, 3] }],
        rack: "r1".into(),
    }
}

#[test]
fn kafka_protocol_decodes_the_request_in_every_version() {
    for version in VERSIONS.0..=VERSIONS.1 {
        let mut buffer = Vec::new();
        request().encode(&mut buffer, version);
        let mut rest = &buffer[..];
        let seen = CrateRequest::decode(&mut rest, version).unwrap();
        assert!(rest.is_empty(), "version {version}");
        assert_eq!((seen.replica_id.0, seen.max_wait_ms, seen.min_bytes), (-1, 250, 1), "version {version}");
        assert_eq!((seen.max_bytes, seen.isolation_level), (10 << 20, 1));
        if version >= FIRST_WITH_SESSIONS {
            assert_eq!((seen.session_id, seen.session_epoch), (99, 3));
            let forgotten = &seen.forgotten_topics_data[0];
            assert_eq!(forgotten.partitions, [2, 3]);
            match version >= FIRST_WITH_TOPIC_IDS {
                true => assert_eq!(forgotten.topic_id.as_bytes(), &[8; 16]),
                false => assert_eq!(&*forgotten.topic.0, "u"),
            }
        }
        match version >= FIRST_WITH_TOPIC_IDS {
            true => assert_eq!(seen.topics[0].topic_id.as_bytes(), &ID),
            false => assert_eq!(&*seen.topics[0].topic.0, "t"),
        }
        assert_eq!(&*seen.rack_id, if version >= 11 { "r1" } else { "" });
        for (index, partition) in seen.topics[0].partitions.iter().enumerate() {
            let sent = request().topics[0].partitions[index];
            assert_eq!((partition.partition, partition.fetch_offset), (sent.partition, sent.offset));
            assert_eq!((partition.partition_max_bytes, partition.log_start_offset), (sent.max_bytes, -1));
            assert_eq!(partition.current_leader_epoch, if version >= 9 { 5 } else { -1 });
            assert_eq!(partition.last_fetched_epoch, if version >= FIRST_WITH_DIVERGENCE { 4 } else { -1 });
        }
    }
}

fn crate_response(version: i16) -> Vec<u8> {
    let mut data = PartitionData::default()
        .with_partition_index(3)
        .with_error_code(6)
        .with_high_watermark(100)
        .with_last_stable_offset(90)
        .with_aborted_transactions(Some(vec![
            AbortedTransaction::default().with_producer_id(ProducerId(11)).with_first_offset(50),
        ]))
        .with_records(Some(Bytes::from_static(b"records")));
    if version >= 5 {
        data = data.with_log_start_offset(2);
    }
    if version >= 11 {
        data = data.with_preferred_read_replica(CrateBroker(4));
    }
    if version >= 12 {
        data = data
            .with_diverging_epoch(EpochEndOffset::default().with_epoch(2).with_end_offset(80))
            .with_current_leader(LeaderIdAndEpoch::default().with_leader_id(CrateBroker(9)).with_leader_epoch(6));
    }
    let without = PartitionData::default().with_partition_index(4).with_aborted_transactions(None).with_records(None);
    let mut topic = FetchableTopicResponse::default().with_partitions(vec![data, without]);
    topic = match version >= FIRST_WITH_TOPIC_IDS {
        true => topic.with_topic_id("07070707-0707-0707-0707-070707070707".parse().unwrap()),
        false => topic.with_topic(TopicName("t".into())),
    };
    let mut response = CrateResponse::default().with_throttle_time_ms(5).with_responses(vec![topic]);
    if version >= FIRST_WITH_SESSIONS {
        response = response.with_error_code(70).with_session_id(12);
    }
    if version >= 16 {
        let node = NodeEndpoint::default().with_node_id(CrateBroker(9)).with_host("h".into()).with_port(9092);
        response = response.with_node_endpoints(vec![node]);
    }
    let mut buffer = BytesMut::new();
    response.encode(&mut buffer, version).unwrap();
    buffer.to_vec()
}

#[test]
fn a_response_of_kafka_protocol_is_decoded_in_every_version() {
    for version in VERSIONS.0..=VERSIONS.1 {
        let body = crate_response(version);
        let response = FetchResponse::decode(&body, version).unwrap();
        let since = |first: i16| version >= first;
        assert_eq!(response.throttle_time_ms, 5, "version {version}");
        assert_eq!((response.error_code, response.session_id), if since(7) { (70, 12) } else { (0, 0) });
        let topic = &response.topics[0];
        assert_eq!(topic.topic, if since(13) { TopicRef::Id(ID) } else { TopicRef::Name("t") });
        let expected = PartitionResponse {
            partition: 3,
            error_code: 6,
            high_watermark: 100,
            aborted: vec![(11, 50)],
            preferred_replica: since(11).then_some(4),
            diverging: since(12).then_some((2, 80)),
            current_leader: since(12).then_some((9, 6)),
            records: b"records",
        };
        let without = PartitionResponse {
            partition: 4,
            error_code: 0,
            high_watermark: 0,
            aborted: Vec::new(),
            preferred_replica: None,
            diverging: None,
            current_leader: None,
            records: b"",
        };
        assert_eq!(topic.partitions, [expected, without], "version {version}");
        let nodes = [NodeAddress { id: 9, host: "h".into(), port: 9092 }];
        assert_eq!(response.nodes, if since(16) { &nodes[..] } else { &[] });
    }
}

proptest! {
    #[test]
    fn malformed_responses_never_panic(
        noise: Vec<u8>, at: prop::sample::Index, byte: u8, version in VERSIONS.0..=VERSIONS.1,
    ) {
        let _ = FetchResponse::decode(&noise, version);
        let mut body = crate_response(version);
        let at = at.index(body.len());
        prop_assert!(FetchResponse::decode(&body[..at], version).is_err());
        body[at] = byte;
        let _ = FetchResponse::decode(&body, version);
    }
}
