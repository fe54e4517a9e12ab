//! Responses that no Kafka broker returns.

use std::net::TcpListener;

use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    BrokerId, InitProducerIdResponse, MetadataResponse, ProduceRequest, ProduceResponse, ProducerId, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::*;
use crate::kafka::produce;
use crate::kafka::protocol::init_producer_id::InitProducerIdRequest;
use crate::kafka::scripted_broker::{Received, Reply, ScriptedBroker, api};

const PRODUCE: (i16, i16, i16) = (produce::API_KEY, produce::VERSIONS.0, produce::VERSIONS.1);

/// A broker that leads partition 0 of topic "t", and a client of it. `script` answers other requests than Metadata.
fn start(
    apis: &[(i16, i16, i16)],
    script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
) -> (ScriptedBroker, TestClient) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let metadata_api = api::<crate::kafka::metadata::MetadataRequest>();
    let apis = [apis, &[metadata_api]].concat();
    let broker = ScriptedBroker::start_on(listener, &apis, move |received| match received.api_key {
        key if key == metadata_api.0 => received.reply(&metadata(port)),
        _ => script(received),
    });
    let client = TestClient::at(vec![broker.address.clone()], Settings::default());
    (broker, client)
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str("t"))
}

fn metadata(port: u16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(1))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(i32::from(port));
    let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(1)).with_leader_epoch(3);
    let topic = MetadataResponseTopic::default().with_name(Some(name())).with_partitions(vec![partition]);
    MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic])
}

/// A response in which these partitions have this base offset.
fn stored(partitions: &[i32], base_offset: i64) -> ProduceResponse {
    let partition = |index: &i32| PartitionProduceResponse::default().with_index(*index).with_base_offset(base_offset);
    let partitions = partitions.iter().map(partition).collect();
    let topic = TopicProduceResponse::default().with_name(name()).with_partition_responses(partitions);
    ProduceResponse::default().with_responses(vec![topic])
}

#[test]
fn a_batch_that_the_response_does_not_mention_is_sent_again() {
    let (_broker, client) = start(&[PRODUCE], |received| match received.index {
        0 => received.reply(&ProduceResponse::default()),
        // Only a partition that was not in the request.
        1 => received.reply(&stored(&[7], 1)),
        _ => received.reply(&stored(&[7, 0], 5)),
    });
    let message = Message::new(AcksLevel::Leader, "t", 0);
    assert_eq!(client.offsets(&client.send_many(1, &message)), [5]);
}

#[test]
fn a_batch_that_is_never_mentioned_ends_as_unknown() {
    let (_broker, client) = start(&[PRODUCE], |received| received.reply(&ProduceResponse::default()));
    let end = client.end_of(client.send(Message { deadline: brief(), ..Message::new(AcksLevel::Leader, "t", 0) }));
    assert_eq!(end.outcome, Outcome::TimedOut(Stored::Unknown));
    assert_eq!(end.reason, "broker 1: the response does not contain the partition");
}

#[test]
fn an_impossible_producer_id_is_not_used_and_another_is_requested_after_a_pause() {
    let id = |received: &Received| match received.index {
        0 => (-1, 0),
        1 => (4, -1),
        _ => (4, 0),
    };
    let (broker, client) = start(&[PRODUCE, api::<InitProducerIdRequest>()], move |received| {
        if received.api_key != produce::API_KEY {
            let (id, epoch) = id(received);
            let response = InitProducerIdResponse::default();
            return received.reply(&response.with_producer_id(ProducerId(id)).with_producer_epoch(epoch));
        }
        let request = received.decode::<ProduceRequest>();
        let records = request.topic_data[0].partition_data[0].records.clone().unwrap();
        // Producer id, epoch and first sequence number of the batch.
        assert_eq!(records[43..57], [&4_i64.to_be_bytes()[..], &[0; 2], &[0; 4]].concat());
        received.reply(&stored(&[0], 9))
    });
    let started = Instant::now();
    assert_eq!(client.offsets(&client.send_many(1, &Message::new(AcksLevel::All, "t", 0))), [9]);
    assert_eq!(broker.count::<InitProducerIdRequest>(), 3);
    assert!(started.elapsed() >= Duration::from_millis(150), "{:?}", started.elapsed());
}

#[test]
fn a_broker_without_a_common_version_is_named() {
    let (_broker, client) = start(&[(produce::API_KEY, 0, 2)], |_| Reply::Silence);
    let end = client.end_of(client.send(Message { deadline: brief(), ..Message::new(AcksLevel::Leader, "t", 0) }));
    assert_eq!(end.outcome, Outcome::TimedOut(Stored::No));
    assert!(end.reason.contains("does not support versions (3, 12) of request type 0"), "{}", end.reason);
    // Idempotence needs a producer id.
    let end = client.end_of(client.send(Message::new(AcksLevel::All, "t", 0)));
    assert_eq!(end.outcome, Outcome::Rejected(code::UNSUPPORTED_VERSION, Stored::No));
    assert!(end.reason.contains("of request type 22"), "{}", end.reason);
}
