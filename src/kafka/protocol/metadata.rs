//! Metadata: brokers, topics and partition leaders, versions 4 to 12.
//!
//! Version 4 is the first that can request topics without creating them; 7 has leader epochs (KIP-320); 9 is the first
//! flexible version; 10 has topic ids (KIP-516). Version 13 only adds an error code for KIP-1102.

use std::sync::Arc;

use super::Request;
use crate::kafka::config::BrokerAddress;
use crate::kafka::metadata::{BrokerInfo, PartitionMetadata, TopicId, TopicMetadata};
pub use crate::kafka::metadata::{MetadataRequest, MetadataResponse, MetadataTopics};
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_BROKER_BYTES: usize = 10;
const MIN_TOPIC_BYTES: usize = 5;
const MIN_PARTITION_BYTES: usize = 12;
const MIN_REPLICA_BYTES: usize = 4;

// Numbers of operations (Kafka: org.apache.kafka.common.acl.AclOperation).
const OPERATION_WRITE: u32 = 4;
const OPERATION_DESCRIBE: u32 = 8;

impl Request for MetadataRequest {
    const API_KEY: i16 = 3;
    const VERSIONS: (i16, i16) = (4, 12);
    const FIRST_FLEXIBLE: i16 = 9;
    type Response = MetadataResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let names: &[Arc<str>] = match &self.topics {
            // The null array means all topics.
            MetadataTopics::All if flexible => {
                buffer.push(0);
                &[]
            }
            MetadataTopics::All => {
                buffer.extend_from_slice(&(-1_i32).to_be_bytes());
                &[]
            }
            MetadataTopics::None => {
                put_length(buffer, flexible, 0);
                &[]
            }
            MetadataTopics::Names(names) => {
                put_length(buffer, flexible, names.len());
                names
            }
        };
        for name in names {
            if version >= 10 {
                // The zero id: the topic is requested by name.
                buffer.extend_from_slice(&TopicId::default());
            }
            put_string(buffer, flexible, name);
            if flexible {
                buffer.push(0);
            }
        }
        buffer.push(u8::from(self.allow_auto_create));
        if (8..=10).contains(&version) {
            // No authorized operations of the cluster.
            buffer.push(0);
        }
        if version >= 8 {
            buffer.push(u8::from(self.include_rights));
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<MetadataResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let mut response = MetadataResponse { throttle_time_ms: reader.i32()?, ..MetadataResponse::default() };
        for _ in 0..reader.array(flexible, MIN_BROKER_BYTES)? {
            response.brokers.push(broker(reader, flexible)?);
        }
        response.cluster_id = reader.string(flexible)?.map(str::to_owned);
        let controller = reader.i32()?;
        response.controller = (controller >= 0).then_some(controller);
        for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
            response.topics.push(topic(reader, version)?);
        }
        if (8..=10).contains(&version) {
            // Authorized operations of the cluster.
            reader.i32()?;
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(response)
    }
}

fn broker(reader: &mut WireReader, flexible: bool) -> Result<BrokerInfo, Malformed> {
    let id = reader.i32()?;
    let host = reader.string(flexible)?.ok_or(Malformed("a broker without a host"))?.into();
    // One broker with an invalid port must not make the other brokers unknown: connecting to port 0 fails.
    let port = u16::try_from(reader.i32()?).unwrap_or(0);
    let rack = reader.string(flexible)?.map(str::to_owned);
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    Ok(BrokerInfo { id, address: BrokerAddress { host, port }, rack })
}

fn topic(reader: &mut WireReader, version: i16) -> Result<TopicMetadata, Malformed> {
    let flexible = version >= MetadataRequest::FIRST_FLEXIBLE;
    let error_code = reader.i16()?;
    // The name is null only if the topic was requested by an unknown id.
    let name = reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?.into();
    let mut id = None;
    if version >= 10 {
        let mut bytes = TopicId::default();
        bytes.copy_from_slice(reader.take(size_of::<TopicId>())?);
        id = (bytes != TopicId::default()).then_some(bytes);
    }
    // Whether the topic is internal.
    reader.i8()?;
    let count = reader.array(flexible, MIN_PARTITION_BYTES)?;
    let mut partitions = Vec::with_capacity(count);
    for _ in 0..count {
        partitions.push(partition(reader, version)?);
    }
    let may_write = if version >= 8 { may_write(reader.i32()?) } else { None };
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    Ok(TopicMetadata { name, id, error_code, may_write, partitions })
}

/// Returns whether a set of authorized operations (a bit for each) contains Write. A set without Describe is that of a
/// broker that does not fill it in, or received no request for it: then all bits are 0 except the highest.
fn may_write(operations: i32) -> Option<bool> {
    let has = |operation: u32| operations & (1 << operation) != 0;
    has(OPERATION_DESCRIBE).then(|| has(OPERATION_WRITE))
}

fn partition(reader: &mut WireReader, version: i16) -> Result<PartitionMetadata, Malformed> {
    let flexible = version >= MetadataRequest::FIRST_FLEXIBLE;
    let (error_code, partition, leader) = (reader.i16()?, reader.i32()?, reader.i32()?);
    let leader_epoch = if version >= 7 { reader.i32()? } else { -1 };
    let replicas = replicas(reader, flexible)?;
    let in_sync = self::replicas(reader, flexible)?;
    if version >= 5 {
        // Offline replicas.
        self::replicas(reader, flexible)?;
    }
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    let leader = (leader >= 0).then_some(leader);
    Ok(PartitionMetadata { partition, error_code, leader, leader_epoch, replicas, in_sync })
}

fn replicas(reader: &mut WireReader, flexible: bool) -> Result<Vec<i32>, Malformed> {
    (0..reader.array(flexible, MIN_REPLICA_BYTES)?).map(|_| reader.i32()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    use kafka_protocol::messages::{
        BrokerId as CrateBroker, MetadataRequest as CrateRequest, MetadataResponse as CrateResponse, TopicName,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        let names = vec![Arc::from("a"), Arc::from("b")];
        for version in versions::<MetadataRequest>() {
            for topics in [MetadataTopics::All, MetadataTopics::None, MetadataTopics::Names(names.clone())] {
                let (allow_auto_create, include_rights) = (version % 2 == 0, version % 3 == 0);
                let request = MetadataRequest { topics, allow_auto_create, include_rights };
                let seen: CrateRequest = decoded_by_crate(&request, version);
                assert_eq!(seen.allow_auto_topic_creation, request.allow_auto_create, "{version}");
                assert_eq!(seen.include_topic_authorized_operations, include_rights && version >= 8, "{version}");
                assert!(!seen.include_cluster_authorized_operations);
                let seen = seen.topics.map(|topics| {
                    topics
                        .into_iter()
                        .map(|topic| (topic.topic_id.is_nil(), topic.name.unwrap().to_string()))
                        .collect::<Vec<_>>()
                });
                let expected = match request.topics {
                    MetadataTopics::All => None,
                    MetadataTopics::None => Some(Vec::new()),
                    MetadataTopics::Names(_) => Some(vec![(true, "a".into()), (true, "b".into())]),
                };
                assert_eq!(seen, expected, "{version}");
            }
        }
    }

    fn response(version: i16) -> CrateResponse {
        let broker = MetadataResponseBroker::default()
            .with_node_id(CrateBroker(7))
            .with_host(StrBytes::from_static_str("kafka-7"))
            .with_port(9092)
            .with_rack(Some(StrBytes::from_static_str("r1")));
        let invalid = broker.clone().with_node_id(CrateBroker(8)).with_port(1 << 20).with_rack(None);
        let partition = MetadataResponsePartition::default()
            .with_partition_index(5)
            .with_leader_id(CrateBroker(7))
            .with_leader_epoch(if version >= 7 { 3 } else { -1 })
            .with_replica_nodes(vec![CrateBroker(7), CrateBroker(8)])
            .with_isr_nodes(vec![CrateBroker(7)])
            .with_offline_replicas(if version >= 5 { vec![CrateBroker(8)] } else { Vec::new() });
        let leaderless = partition.clone().with_partition_index(6).with_error_code(5).with_leader_id(CrateBroker(-1));
        let id = if version >= 10 { "09".repeat(16) } else { "00".repeat(16) };
        let topic = MetadataResponseTopic::default()
            .with_name(Some(TopicName(StrBytes::from_static_str("t"))))
            .with_topic_id(id.parse().unwrap())
            // Describe without Write.
            .with_topic_authorized_operations(if version >= 8 { 1 << 8 } else { i32::MIN })
            .with_partitions(vec![partition, leaderless]);
        let unknown = MetadataResponseTopic::default()
            .with_name(Some(TopicName(StrBytes::from_static_str("u"))))
            .with_error_code(3);
        CrateResponse::default()
            .with_throttle_time_ms(20)
            .with_brokers(vec![broker, invalid])
            .with_cluster_id(Some(StrBytes::from_static_str("c")))
            .with_controller_id(CrateBroker(-1))
            .with_topics(vec![topic, unknown])
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<MetadataRequest>() {
            let address = |port| BrokerAddress { host: "kafka-7".into(), port };
            let partition = |partition, error_code, leader| PartitionMetadata {
                partition,
                error_code,
                leader,
                leader_epoch: if version >= 7 { 3 } else { -1 },
                replicas: vec![7, 8],
                in_sync: vec![7],
            };
            let topic = TopicMetadata {
                name: "t".into(),
                id: (version >= 10).then_some([9; 16]),
                error_code: 0,
                may_write: (version >= 8).then_some(false),
                partitions: vec![partition(5, 0, Some(7)), partition(6, 5, None)],
            };
            let expected = MetadataResponse {
                throttle_time_ms: 20,
                brokers: vec![
                    BrokerInfo { id: 7, address: address(9092), rack: Some("r1".into()) },
                    BrokerInfo { id: 8, address: address(0), rack: None },
                ],
                cluster_id: Some("c".into()),
                controller: None,
                topics: vec![
                    topic,
                    TopicMetadata {
                        name: "u".into(),
                        id: None,
                        error_code: 3,
                        may_write: None,
                        partitions: Vec::new(),
                    },
                ],
            };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<MetadataRequest>(&bytes, version), Ok(expected), "{version}");
        }
    }

    #[test]
    fn rights_that_a_broker_does_not_state_are_unknown() {
        for (operations, expected) in
            [(i32::MIN, None), (0, None), (1 << 8, Some(false)), (1 << 8 | 1 << 4, Some(true)), (1 << 4, None)]
        {
            assert_eq!(may_write(operations), expected, "{operations:#x}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<MetadataRequest>(),
        ) {
            check_noise::<MetadataRequest>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
