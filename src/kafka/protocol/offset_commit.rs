//! OffsetCommit: commits offsets of a consumer group, versions 3 to 9. The broker must coordinate the group.
//!
//! Version 5 has no retention time any more (KIP-211); 6 has leader epochs (KIP-320); 7 static members (KIP-345); 8 is
//! the first flexible version; 9 is the first for members of the new group protocol (KIP-848), with the same format.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_nullable_string, put_string};

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_TOPIC_BYTES: usize = 3;
const MIN_PARTITION_BYTES: usize = 6;

/// Commits offsets. No string has more than 32,767 bytes, the limit of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct OffsetCommitRequest<'a> {
    /// The group id.
    pub group: &'a str,
    /// The member that commits; `None` commits from outside of the group, which needs a group without members.
    pub member: Option<&'a GroupMemberId>,
    /// Offsets by topic.
    pub topics: &'a [(Arc<str>, Vec<PartitionCommit<'a>>)],
}

/// A member of a group, with its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMemberId {
    /// Id that the coordinator gave to the member.
    pub member_id: Arc<str>,
    /// Generation of the group, or epoch of the member in the new group protocol.
    pub generation: i32,
    /// Id of a static member. Ignored in versions below 7.
    pub instance_id: Option<Arc<str>>,
}

/// An offset to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionCommit<'a> {
    /// Number of the partition.
    pub partition: i32,
    /// The next offset to consume.
    pub offset: i64,
    /// Leader epoch of the last consumed message; -1 if unknown. Ignored in versions below 6.
    pub leader_epoch: i32,
    /// Text that is kept with the offset.
    pub metadata: Option<&'a str>,
}

/// The response to an [`OffsetCommitRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetCommitResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Partitions with their error codes by topic, in the order of the response.
    pub topics: Vec<(String, Vec<(i32, i16)>)>,
}

impl Request for OffsetCommitRequest<'_> {
    const API_KEY: i16 = 8;
    const VERSIONS: (i16, i16) = (3, 9);
    const FIRST_FLEXIBLE: i16 = 8;
    type Response = OffsetCommitResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        put_string(buffer, flexible, self.group);
        buffer.extend_from_slice(&self.member.map_or(-1, |member| member.generation).to_be_bytes());
        put_string(buffer, flexible, self.member.map_or("", |member| &member.member_id));
        if version >= 7 {
            put_nullable_string(buffer, flexible, self.member.and_then(|member| member.instance_id.as_deref()));
        }
        if version < 5 {
            // The retention time of the broker.
            buffer.extend_from_slice(&(-1_i64).to_be_bytes());
        }
        put_length(buffer, flexible, self.topics.len());
        for (name, partitions) in self.topics {
            put_string(buffer, flexible, name);
            put_length(buffer, flexible, partitions.len());
            for partition in partitions {
                buffer.extend_from_slice(&partition.partition.to_be_bytes());
                buffer.extend_from_slice(&partition.offset.to_be_bytes());
                if version >= 6 {
                    buffer.extend_from_slice(&partition.leader_epoch.to_be_bytes());
                }
                put_nullable_string(buffer, flexible, partition.metadata);
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

    fn decode(reader: &mut WireReader, version: i16) -> Result<OffsetCommitResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let mut response = OffsetCommitResponse { throttle_time_ms: reader.i32()?, topics: Vec::new() };
        for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
            let name = reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?.to_owned();
            let count = reader.array(flexible, MIN_PARTITION_BYTES)?;
            let mut partitions = Vec::with_capacity(count);
            for _ in 0..count {
                partitions.push((reader.i32()?, reader.i16()?));
                if flexible {
                    reader.tagged_fields(|_, _| Ok(()))?;
                }
            }
            if flexible {
                reader.tagged_fields(|_, _| Ok(()))?;
            }
            response.topics.push((name, partitions));
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
    use kafka_protocol::messages::{
        OffsetCommitRequest as CrateRequest, OffsetCommitResponse as CrateResponse, TopicName,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type Commit = OffsetCommitRequest<'static>;

    fn commit(partition: i32, leader_epoch: i32, metadata: Option<&str>) -> PartitionCommit<'_> {
        PartitionCommit { partition, offset: 9, leader_epoch, metadata }
    }

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<Commit>() {
            let topics = [
                ("t".into(), vec![commit(0, 5, Some("m")), commit(1, -1, None)]),
                ("u".into(), vec![commit(2, 0, None)]),
            ];
            let member = GroupMemberId { member_id: "id".into(), generation: 4, instance_id: Some("instance".into()) };
            for member in [Some(&member), None] {
                let request = OffsetCommitRequest { group: "g", member, topics: &topics };
                let seen: CrateRequest = decoded_by_crate(&request, version);
                let instance_id = member.filter(|_| version >= 7).map(|_| "instance");
                let expected = if member.is_some() { ("g", "id", 4, instance_id) } else { ("g", "", -1, None) };
                let found = (&**seen.group_id, &*seen.member_id, seen.generation_id_or_member_epoch);
                assert_eq!((found.0, found.1, found.2, seen.group_instance_id.as_deref()), expected, "{version}");
                assert_eq!(seen.retention_time_ms, -1);
                let offsets: Vec<_> = seen
                    .topics
                    .iter()
                    .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.name.to_string(), partition)))
                    .map(|(name, seen)| {
                        let metadata = seen.committed_metadata.as_deref();
                        assert_eq!(seen.committed_offset, 9);
                        (name, commit(seen.partition_index, seen.committed_leader_epoch, metadata))
                    })
                    .collect();
                let epoch = |epoch| if version >= 6 { epoch } else { -1 };
                let expected = [
                    ("t".to_owned(), commit(0, epoch(5), Some("m"))),
                    ("t".to_owned(), commit(1, -1, None)),
                    ("u".to_owned(), commit(2, epoch(0), None)),
                ];
                assert_eq!(offsets, expected, "{version}");
            }
        }
    }

    fn response() -> CrateResponse {
        let partition = OffsetCommitResponsePartition::default().with_partition_index(3);
        let partitions = vec![partition.clone(), partition.with_partition_index(4).with_error_code(25)];
        let topic = OffsetCommitResponseTopic::default().with_name(TopicName(StrBytes::from_static_str("t")));
        let topics = vec![topic.clone().with_partitions(partitions), topic];
        CrateResponse::default().with_throttle_time_ms(6).with_topics(topics)
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<Commit>() {
            let topics = vec![("t".into(), vec![(3, 0), (4, 25)]), ("t".into(), Vec::new())];
            let expected = OffsetCommitResponse { throttle_time_ms: 6, topics };
            let bytes = encoded_by_crate(&response(), version);
            assert_eq!(decode_all::<Commit>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<Commit>(),
        ) {
            check_noise::<Commit>(&noise, encoded_by_crate(&response(), version), at, byte, version);
        }
    }
}
