//! ListOffsets, versions 2 to 8: the first offset, the end, or the offset of a time, of partitions that a broker leads.
//!
//! Version 2 is the first with the isolation level (KIP-98); 4 has leader epochs (KIP-320); 6 is the first flexible
//! version; 7 and 8 add special timestamps only (KIP-734, KIP-405). Versions 9 to 11 add nothing that this client uses.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

/// The timestamp that stands for the end of the partition: the offset that the next message gets.
pub const LATEST: i64 = -1;
/// The timestamp that stands for the first offset of the partition.
pub const EARLIEST: i64 = -2;

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_TOPIC_BYTES: usize = 3;
const MIN_PARTITION_BYTES: usize = 22;

/// Requests an offset of each of some partitions.
#[derive(Clone, Copy, Debug)]
pub struct ListOffsetsRequest<'a> {
    /// The partitions by topic. A partition must not be there twice: the broker refuses the request.
    pub topics: &'a [(Arc<str>, Vec<ListOffsetsPartition>)],
    /// Whether [`LATEST`] is the last stable offset, below which no transaction is open, instead of the high watermark.
    pub read_committed: bool,
}

/// A partition of a [`ListOffsetsRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOffsetsPartition {
    /// Number of the partition.
    pub partition: i32,
    /// The leader epoch that the client knows; -1 if unknown. A broker with another epoch returns FENCED_LEADER_EPOCH
    /// or UNKNOWN_LEADER_EPOCH.
    pub leader_epoch: i32,
    /// Milliseconds since 1970, [`LATEST`] or [`EARLIEST`].
    pub timestamp: i64,
}

/// The response to a [`ListOffsetsRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOffsetsResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The partitions by topic, in the order of the response.
    pub topics: Vec<(String, Vec<ListedOffset>)>,
}

/// The offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// Number of the partition.
    pub partition: i32,
    /// Error code of the protocol.
    pub error_code: i16,
    /// Timestamp of the message at the offset; -1 if no message is concerned.
    pub timestamp: i64,
    /// The offset; -1 with an error, or if the partition has no message at or after the time.
    pub offset: i64,
    /// Leader epoch of the message at the offset; -1 if unknown.
    pub leader_epoch: i32,
}

impl Request for ListOffsetsRequest<'_> {
    const API_KEY: i16 = 2;
    const VERSIONS: (i16, i16) = (2, 8);
    const FIRST_FLEXIBLE: i16 = 6;
    type Response = ListOffsetsResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        // The replica id of a client.
        buffer.extend_from_slice(&(-1_i32).to_be_bytes());
        buffer.push(u8::from(self.read_committed));
        put_length(buffer, flexible, self.topics.len());
        for (name, partitions) in self.topics {
            put_string(buffer, flexible, name);
            put_length(buffer, flexible, partitions.len());
            for partition in partitions {
                buffer.extend_from_slice(&partition.partition.to_be_bytes());
                if version >= 4 {
                    buffer.extend_from_slice(&partition.leader_epoch.to_be_bytes());
                }
                buffer.extend_from_slice(&partition.timestamp.to_be_bytes());
                if flexible {
                    buffer.push(0);
                }
            }
            if flexible {
                buffer.push(0);
            }
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<ListOffsetsResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let throttle_time_ms = reader.i32()?;
        let mut topics = Vec::new();
        for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
            let name = reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?.to_owned();
            let count = reader.array(flexible, MIN_PARTITION_BYTES)?;
            let mut partitions = Vec::with_capacity(count);
            for _ in 0..count {
                partitions.push(ListedOffset {
                    partition: reader.i32()?,
                    error_code: reader.i16()?,
                    timestamp: reader.i64()?,
                    offset: reader.i64()?,
                    leader_epoch: if version >= 4 { reader.i32()? } else { -1 },
                });
                if flexible {
                    reader.tagged_fields(|_, _| Ok(()))?;
                }
            }
            if flexible {
                reader.tagged_fields(|_, _| Ok(()))?;
            }
            topics.push((name, partitions));
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(ListOffsetsResponse { throttle_time_ms, topics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
    use kafka_protocol::messages::{
        ListOffsetsRequest as CrateRequest, ListOffsetsResponse as CrateResponse, TopicName,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type List = ListOffsetsRequest<'static>;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<List>() {
            let partition =
                |partition, leader_epoch, timestamp| ListOffsetsPartition { partition, leader_epoch, timestamp };
            let topics = [
                ("t".into(), vec![partition(0, 5, LATEST), partition(9, -1, 1 << 41)]),
                ("u".into(), vec![partition(1, 0, EARLIEST)]),
            ];
            let seen: CrateRequest =
                decoded_by_crate(&ListOffsetsRequest { topics: &topics, read_committed: true }, version);
            assert_eq!((seen.replica_id.0, seen.isolation_level), (-1, 1), "{version}");
            let seen: Vec<_> = seen
                .topics
                .iter()
                .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.name.to_string(), partition)))
                .map(|(name, seen)| (name, partition(seen.partition_index, seen.current_leader_epoch, seen.timestamp)))
                .collect();
            let epoch = |epoch| if version >= 4 { epoch } else { -1 };
            let expected = [
                ("t".to_owned(), partition(0, epoch(5), LATEST)),
                ("t".to_owned(), partition(9, -1, 1 << 41)),
                ("u".to_owned(), partition(1, epoch(0), EARLIEST)),
            ];
            assert_eq!(seen, expected, "{version}");
        }
    }

    fn response(version: i16) -> CrateResponse {
        let partition = ListOffsetsPartitionResponse::default().with_partition_index(3).with_error_code(6);
        let partition = partition.with_timestamp(77).with_offset(1 << 40);
        let partition = partition.with_leader_epoch(if version >= 4 { 8 } else { -1 });
        let topic = ListOffsetsTopicResponse::default().with_name(TopicName(StrBytes::from_static_str("t")));
        let topic = topic.with_partitions(vec![partition.clone(), partition]);
        CrateResponse::default()
            .with_throttle_time_ms(11)
            .with_topics(vec![topic.clone(), topic.with_partitions(Vec::new())])
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<List>() {
            let leader_epoch = if version >= 4 { 8 } else { -1 };
            let offset = ListedOffset { partition: 3, error_code: 6, timestamp: 77, offset: 1 << 40, leader_epoch };
            let expected = ListOffsetsResponse {
                throttle_time_ms: 11,
                topics: vec![("t".into(), vec![offset, offset]), ("t".into(), Vec::new())],
            };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<List>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<List>(),
        ) {
            check_noise::<List>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
