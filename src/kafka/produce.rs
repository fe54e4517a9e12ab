//! Encodes Produce requests and decodes their responses, versions 3 to 12. The code is not generated, because it is
//! the hot path.
//!
//! Version 3 is the first with message format 2 (Kafka 0.11); 8 lists the rejected records (KIP-467); 9 is the first
//! flexible version; 10 returns the new leader of a partition (KIP-951). Headers are encoded and decoded in
//! [`super::frame`].

use super::frame::RequestBuffer;
use super::wire::{Malformed, WireReader, end_structure, put_length, put_nullable_string, put_string};

/// API key of Produce.
pub const API_KEY: i16 = 0;
/// The lowest and the highest supported version.
pub const VERSIONS: (i16, i16) = (3, 12);
/// The first version whose headers and structures have tagged fields and compact lengths.
pub const FIRST_FLEXIBLE: i16 = 9;

/// The record data for one partition.
#[derive(Clone, Copy, Debug)]
pub struct PartitionData<'a> {
    /// Number of the partition.
    pub partition: i32,
    /// One encoded batch.
    pub records: &'a [u8],
}

/// Appends the body of a request. `topics` are topic names with the data of their partitions; `timeout_ms` is the
/// longest time that the broker waits for replicas.
pub fn encode_request<'a>(
    request: &mut RequestBuffer<'a>,
    version: i16,
    acks: i16,
    timeout_ms: i32,
    topics: &[(&str, &[PartitionData<'a>])],
) {
    let flexible = version >= FIRST_FLEXIBLE;
    // The transactional id is null.
    put_nullable_string(&mut request.bytes, flexible, None);
    request.bytes.extend_from_slice(&acks.to_be_bytes());
    request.bytes.extend_from_slice(&timeout_ms.to_be_bytes());
    put_length(&mut request.bytes, flexible, topics.len());
    for (name, partitions) in topics {
        put_string(&mut request.bytes, flexible, name);
        put_length(&mut request.bytes, flexible, partitions.len());
        for PartitionData { partition, records } in *partitions {
            request.bytes.extend_from_slice(&partition.to_be_bytes());
            put_length(&mut request.bytes, flexible, records.len());
            request.put(records);
            end_structure(&mut request.bytes, flexible);
        }
        end_structure(&mut request.bytes, flexible);
    }
    end_structure(&mut request.bytes, flexible);
}

/// The body of a Produce response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceResponse {
    /// Outcome of each partition, in the order of the response.
    pub partitions: Vec<PartitionOutcome>,
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Addresses of the brokers in `current_leader` of the partitions (version 10 and later).
    pub nodes: Vec<NodeAddress>,
}

/// Outcome of the batch of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionOutcome {
    /// Name of the topic.
    pub topic: String,
    /// Number of the partition.
    pub partition: i32,
    /// Error code of the protocol; 0 means success.
    pub error_code: i16,
    /// Offset of the first record; -1 if unknown.
    pub base_offset: i64,
    /// Append time in milliseconds since 1970 if the topic has `message.timestamp.type=LogAppendTime`, else -1.
    pub log_append_time_ms: i64,
    /// Rejected records: position in the batch and error message of the broker (version 8 and later).
    pub record_errors: Vec<(i32, Option<String>)>,
    /// Error message of the broker about the whole batch (version 8 and later).
    pub error_message: Option<String>,
    /// Broker id and epoch of the new leader, if the broker is no longer the leader (version 10 and later).
    pub current_leader: Option<(i32, i32)>,
}

/// Address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// Broker id.
    pub id: i32,
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: i32,
}

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_TOPIC_BYTES: usize = 2;
const MIN_PARTITION_BYTES: usize = 22;
const MIN_RECORD_ERROR_BYTES: usize = 5;
const MIN_NODE_BYTES: usize = 10;

/// Decodes the body of a response; fails if bytes are missing, left over or invalid.
pub fn decode_response(body: &[u8], version: i16) -> Result<ProduceResponse, Malformed> {
    let flexible = version >= FIRST_FLEXIBLE;
    let mut reader = WireReader::new(body);
    let mut response = ProduceResponse::default();
    for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
        let topic = reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?;
        for _ in 0..reader.array(flexible, MIN_PARTITION_BYTES)? {
            response.partitions.push(partition_outcome(&mut reader, version, topic)?);
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
    }
    response.throttle_time_ms = reader.i32()?;
    if flexible {
        let nodes = &mut response.nodes;
        reader.tagged_fields(|tag, data| if tag == 0 { node_endpoints(data, nodes) } else { Ok(()) })?;
    }
    if !reader.is_empty() {
        return Err(Malformed("bytes after the response"));
    }
    Ok(response)
}

fn partition_outcome(reader: &mut WireReader, version: i16, topic: &str) -> Result<PartitionOutcome, Malformed> {
    let flexible = version >= FIRST_FLEXIBLE;
    let (partition, error_code) = (reader.i32()?, reader.i16()?);
    let (base_offset, log_append_time_ms) = (reader.i64()?, reader.i64()?);
    if version >= 5 {
        // Log start offset.
        reader.i64()?;
    }
    let (mut record_errors, mut error_message) = (Vec::new(), None);
    if version >= 8 {
        for _ in 0..reader.array(flexible, MIN_RECORD_ERROR_BYTES)? {
            record_errors.push((reader.i32()?, reader.string(flexible)?.map(str::to_owned)));
            if flexible {
                reader.tagged_fields(|_, _| Ok(()))?;
            }
        }
        error_message = reader.string(flexible)?.map(str::to_owned);
    }
    let mut current_leader = None;
    if flexible {
        reader.tagged_fields(|tag, data| {
            if tag == 0 {
                let leader = (data.i32()?, data.i32()?);
                current_leader = (leader.0 >= 0).then_some(leader);
                data.tagged_fields(|_, _| Ok(()))?;
            }
            Ok(())
        })?;
    }
    Ok(PartitionOutcome {
        topic: topic.to_owned(),
        partition,
        error_code,
        base_offset,
        log_append_time_ms,
        record_errors,
        error_message,
        current_leader,
    })
}

/// Decodes the addresses of new leaders, a tagged field of Produce and Fetch responses.
pub(super) fn node_endpoints(data: &mut WireReader, nodes: &mut Vec<NodeAddress>) -> Result<(), Malformed> {
    for _ in 0..data.array(true, MIN_NODE_BYTES)? {
        let id = data.i32()?;
        let host = data.string(true)?.ok_or(Malformed("a node without a host"))?.to_owned();
        let port = data.i32()?;
        // Rack.
        data.string(true)?;
        data.tagged_fields(|_, _| Ok(()))?;
        nodes.push(NodeAddress { id, host, port });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::produce_response::{
        BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
    };
    use kafka_protocol::messages::{BrokerId, ProduceRequest, ProduceResponse as CrateResponse, TopicName};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in VERSIONS.0..=VERSIONS.1 {
            let partitions = [
                PartitionData { partition: 0, records: &[1; 300] },
                PartitionData { partition: 63, records: b"batch" },
            ];
            let mut request = RequestBuffer::new(Vec::new(), usize::MAX);
            encode_request(&mut request, version, -1, 1500, &[("t", &partitions), ("other", &partitions[..1])]);
            let mut rest = &request.bytes[..];
            let request = ProduceRequest::decode(&mut rest, version).unwrap();
            assert_eq!((rest.len(), request.acks, request.timeout_ms), (0, -1, 1500), "{version}");
            assert!(request.transactional_id.is_none());
            let seen: Vec<_> = request
                .topic_data
                .iter()
                .flat_map(|topic| {
                    let partitions = topic.partition_data.iter();
                    partitions.map(|data| (topic.name.0.to_string(), data.index, data.records.clone().unwrap()))
                })
                .collect();
            let expected = [("t", 0, &[1; 300][..]), ("t", 63, b"batch"), ("other", 0, &[1; 300])];
            assert_eq!(seen.len(), expected.len());
            for ((topic, index, records), (name, partition, bytes)) in seen.iter().zip(expected) {
                assert_eq!((&topic[..], *index, &records[..]), (name, partition, bytes), "{version}");
            }
        }
    }

    fn response(version: i16) -> CrateResponse {
        let mut partition = PartitionProduceResponse::default()
            .with_index(7)
            .with_error_code(87)
            .with_base_offset(1 << 40)
            .with_log_append_time_ms(5);
        if version >= 8 {
            let refused = BatchIndexAndErrorMessage::default()
                .with_batch_index(2)
                .with_batch_index_error_message(Some(StrBytes::from_static_str("no key")));
            let silent = BatchIndexAndErrorMessage::default().with_batch_index(4).with_batch_index_error_message(None);
            partition = partition
                .with_record_errors(vec![refused, silent])
                .with_error_message(Some(StrBytes::from_static_str("one record is bad")));
        }
        let mut response = CrateResponse::default().with_throttle_time_ms(250);
        if version >= 10 {
            let leader = LeaderIdAndEpoch::default().with_leader_id(BrokerId(3)).with_leader_epoch(9);
            partition = partition.with_current_leader(leader);
            let node = NodeEndpoint::default()
                .with_node_id(BrokerId(3))
                .with_host(StrBytes::from_static_str("kafka-3"))
                .with_port(9092);
            response = response.with_node_endpoints(vec![node]);
        }
        let name = TopicName(StrBytes::from_static_str("topic"));
        response.with_responses(vec![
            TopicProduceResponse::default()
                .with_name(name)
                .with_partition_responses(vec![partition.clone(), partition]),
        ])
    }

    fn encoded(version: i16) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        response(version).encode(&mut buffer, version).unwrap();
        buffer.to_vec()
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in VERSIONS.0..=VERSIONS.1 {
            let response = decode_response(&encoded(version), version).unwrap();
            let has_record_errors = version >= 8;
            let partition = PartitionOutcome {
                topic: "topic".into(),
                partition: 7,
                error_code: 87,
                base_offset: 1 << 40,
                log_append_time_ms: 5,
                record_errors: if has_record_errors { vec![(2, Some("no key".into())), (4, None)] } else { Vec::new() },
                error_message: has_record_errors.then(|| "one record is bad".into()),
                current_leader: (version >= 10).then_some((3, 9)),
            };
            let node = NodeAddress { id: 3, host: "kafka-3".into(), port: 9092 };
            let nodes = if version >= 10 { vec![node] } else { Vec::new() };
            let expected =
                ProduceResponse { partitions: vec![partition.clone(), partition], throttle_time_ms: 250, nodes };
            assert_eq!(response, expected, "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in VERSIONS.0..=VERSIONS.1,
        ) {
            let _ = decode_response(&noise, version);
            let mut good = encoded(version);
            let at = at.index(good.len());
            let cut = decode_response(&good[..at], version);
            prop_assert!(cut.is_err(), "a truncated response is malformed");
            good[at] = byte;
            let _ = decode_response(&good, version);
        }
    }
}
