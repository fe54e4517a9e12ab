//! Tests of the test cluster, with requests that the crate `kafka-protocol` encodes.

mod connection;
mod faults;
mod fetch;
mod groups;
mod log;
mod produce;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages as m;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use super::testkit::{BatchSpec, TestCluster};

/// The longest wait for something that happens.
const LONG: Duration = Duration::from_secs(20);

/// A client that sends requests in given versions.
struct RawClient {
    stream: TcpStream,
    correlation_id: i32,
}

/// Why a request has no response.
#[derive(Debug, PartialEq, Eq)]
enum NoResponse {
    Closed,
    WrongCorrelationId,
    Undecodable,
}

impl RawClient {
    fn connect(cluster: &TestCluster, broker: i32) -> RawClient {
        let stream = TcpStream::connect(cluster.address(broker)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        RawClient { stream, correlation_id: 0 }
    }

    fn send<R: Request>(&mut self, version: i16, request: &R) {
        self.correlation_id += 1;
        let mut body = BytesMut::new();
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("raw")));
        header.encode(&mut body, R::header_version(version)).unwrap();
        request.encode(&mut body, version).unwrap();
        let mut frame = BytesMut::new();
        frame.put_i32(body.len() as i32);
        frame.put_slice(&body);
        self.stream.write_all(&frame).unwrap();
    }

    fn receive<R: Request>(&mut self, version: i16) -> Result<R::Response, NoResponse> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|_| NoResponse::Closed)?;
        let mut frame = vec![0; i32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame).map_err(|_| NoResponse::Closed)?;
        let mut frame = Bytes::from(frame);
        let header = ResponseHeader::decode(&mut frame, <R::Response as HeaderVersion>::header_version(version));
        if header.map_err(|_| NoResponse::Undecodable)?.correlation_id != self.correlation_id {
            return Err(NoResponse::WrongCorrelationId);
        }
        let response = R::Response::decode(&mut frame, version).map_err(|_| NoResponse::Undecodable)?;
        if frame.has_remaining() { Err(NoResponse::Undecodable) } else { Ok(response) }
    }

    fn call<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response, NoResponse> {
        self.send(version, request);
        self.receive::<R>(version)
    }

    /// Sends one batch and returns the outcome of its partition.
    fn produce(&mut self, topic: &str, partition: i32, batch: &BatchSpec) -> PartitionProduceResponse {
        let response = self.call(9, &produce_request(topic, partition, -1, batch)).unwrap();
        response.responses[0].partition_responses[0].clone()
    }
}

fn topic_name(name: &str) -> m::TopicName {
    m::TopicName(text(name))
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn produce_request(topic: &str, partition: i32, acks: i16, batch: &BatchSpec) -> m::ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch.encode().bytes().clone()));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
    m::ProduceRequest::default().with_acks(acks).with_timeout_ms(30_000).with_topic_data(vec![topic])
}

/// A batch with one record.
fn one(value: &str) -> BatchSpec {
    BatchSpec::new().record(Some("k"), Some(value), 1000)
}

fn values(cluster: &TestCluster, topic: &str, partition: i32) -> Vec<String> {
    cluster.log(topic, partition).iter().map(|record| record.value_text()).collect()
}
