//! OffsetFetch: the committed offsets of consumer groups, versions 3 to 8. The broker must coordinate the groups.
//!
//! Version 5 has leader epochs (KIP-320); 6 is the first flexible version; 7 can wait for open transactions (KIP-447);
//! 8 has several groups in one request (KIP-709). Version 9 adds only what a member of the new group protocol needs.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_GROUP_BYTES: usize = 5;
const MIN_TOPIC_BYTES: usize = 3;
const MIN_PARTITION_BYTES: usize = 16;

/// Requests committed offsets.
#[derive(Clone, Copy, Debug)]
pub struct OffsetFetchRequest<'a> {
    /// The groups, each at most once. Versions below [`OffsetFetchRequest::FIRST_BATCH`] have only the first.
    pub groups: &'a [GroupOffsets<'a>],
    /// Whether the broker returns UNSTABLE_OFFSET_COMMIT for a partition with an offset in an open transaction, instead
    /// of the last stable offset. Ignored in versions below 7.
    pub require_stable: bool,
}

/// A group of an [`OffsetFetchRequest`].
#[derive(Clone, Copy, Debug)]
pub struct GroupOffsets<'a> {
    /// The group id.
    pub group: &'a str,
    /// Partitions by topic; `None` requests all partitions with a committed offset.
    pub topics: Option<&'a [(Arc<str>, Vec<i32>)]>,
}

impl OffsetFetchRequest<'_> {
    /// The first version with more than one group.
    pub const FIRST_BATCH: i16 = 8;
}

/// The response to an [`OffsetFetchRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetFetchResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The groups, in the order of the response.
    pub groups: Vec<FetchedGroup>,
}

/// The committed offsets of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedGroup {
    /// The group id; `None` below version 8.
    pub group: Option<String>,
    /// Error code of the protocol for the whole group.
    pub error_code: i16,
    /// Partitions by topic, in the order of the response.
    pub topics: Vec<TopicOffsets>,
}

/// A topic with the committed offsets of its partitions.
pub type TopicOffsets = (Arc<str>, Vec<FetchedOffset>);

/// The committed offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedOffset {
    /// Number of the partition.
    pub partition: i32,
    /// The committed offset; -1 if the group has none for the partition.
    pub offset: i64,
    /// Leader epoch of the last consumed message; -1 if unknown.
    pub leader_epoch: i32,
    /// Text that was committed with the offset.
    pub metadata: Option<String>,
    /// Error code of the protocol.
    pub error_code: i16,
}

impl Request for OffsetFetchRequest<'_> {
    const API_KEY: i16 = 9;
    const VERSIONS: (i16, i16) = (3, 8);
    const FIRST_FLEXIBLE: i16 = 6;
    type Response = OffsetFetchResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        if version >= Self::FIRST_BATCH {
            put_length(buffer, flexible, self.groups.len());
            for group in self.groups {
                put_group(buffer, flexible, group);
                buffer.push(0);
            }
        } else {
            put_group(buffer, flexible, self.groups.first().unwrap_or(&GroupOffsets { group: "", topics: None }));
        }
        if version >= 7 {
            buffer.push(u8::from(self.require_stable));
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<OffsetFetchResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let throttle_time_ms = reader.i32()?;
        let mut groups = Vec::new();
        if version >= Self::FIRST_BATCH {
            for _ in 0..reader.array(flexible, MIN_GROUP_BYTES)? {
                let group = reader.string(flexible)?.ok_or(Malformed("a group without a name"))?.to_owned();
                let topics = topics(reader, version)?;
                let error_code = reader.i16()?;
                reader.tagged_fields(|_, _| Ok(()))?;
                groups.push(FetchedGroup { group: Some(group), error_code, topics });
            }
        } else {
            let topics = topics(reader, version)?;
            groups.push(FetchedGroup { group: None, error_code: reader.i16()?, topics });
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(OffsetFetchResponse { throttle_time_ms, groups })
    }
}

fn put_group(buffer: &mut Vec<u8>, flexible: bool, group: &GroupOffsets) {
    put_string(buffer, flexible, group.group);
    let Some(topics) = group.topics else {
        // The null array means all partitions.
        let null: &[u8] = if flexible { &[0] } else { &[0xff; 4] };
        return buffer.extend_from_slice(null);
    };
    put_length(buffer, flexible, topics.len());
    for (name, partitions) in topics {
        put_string(buffer, flexible, name);
        put_length(buffer, flexible, partitions.len());
        for partition in partitions {
            buffer.extend_from_slice(&partition.to_be_bytes());
        }
        if flexible {
            buffer.push(0);
        }
    }
}

fn topics(reader: &mut WireReader, version: i16) -> Result<Vec<TopicOffsets>, Malformed> {
    let flexible = version >= OffsetFetchRequest::FIRST_FLEXIBLE;
    let mut topics = Vec::new();
    for _ in 0..reader.array(flexible, MIN_TOPIC_BYTES)? {
        let name = reader.string(flexible)?.ok_or(Malformed("a topic without a name"))?.into();
        let count = reader.array(flexible, MIN_PARTITION_BYTES)?;
        let mut partitions = Vec::with_capacity(count);
        for _ in 0..count {
            partitions.push(FetchedOffset {
                partition: reader.i32()?,
                offset: reader.i64()?,
                leader_epoch: if version >= 5 { reader.i32()? } else { -1 },
                metadata: reader.string(flexible)?.map(str::to_owned),
                error_code: reader.i16()?,
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
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    };
    use kafka_protocol::messages::{
        GroupId, OffsetFetchRequest as CrateRequest, OffsetFetchResponse as CrateResponse, TopicName,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type Fetch = OffsetFetchRequest<'static>;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<Fetch>() {
            let topics = [("t".into(), vec![0, 7]), ("u".into(), Vec::new())];
            let some = GroupOffsets { group: "g", topics: Some(&topics) };
            let all = GroupOffsets { group: "h", topics: None };
            let expected = vec![("t".to_owned(), vec![0, 7]), ("u".to_owned(), Vec::new())];
            for groups in [[some, all], [all, some]] {
                let request = OffsetFetchRequest { groups: &groups, require_stable: true };
                let seen: CrateRequest = decoded_by_crate(&request, version);
                assert_eq!(seen.require_stable, version >= 7, "{version}");
                let seen: Vec<_> = if version >= 8 {
                    let groups = seen.groups.into_iter();
                    let groups = groups.map(|group| {
                        let topics = group.topics.map(|topics| {
                            topics.into_iter().map(|topic| (topic.name.to_string(), topic.partition_indexes)).collect()
                        });
                        (group.group_id.to_string(), topics)
                    });
                    groups.collect()
                } else {
                    let topics = seen.topics.map(|topics| {
                        topics.into_iter().map(|topic| (topic.name.to_string(), topic.partition_indexes)).collect()
                    });
                    vec![(seen.group_id.to_string(), topics)]
                };
                let count = if version >= 8 { 2 } else { 1 };
                let wanted: Vec<_> = groups[..count]
                    .iter()
                    .map(|group| (group.group.to_owned(), group.topics.map(|_| expected.clone())))
                    .collect();
                assert_eq!(seen, wanted, "{version}");
            }
        }
    }

    fn response(version: i16) -> CrateResponse {
        let response = CrateResponse::default().with_throttle_time_ms(3);
        let metadata = Some(StrBytes::from_static_str("m"));
        let name = TopicName(StrBytes::from_static_str("t"));
        if version >= 8 {
            let partition = OffsetFetchResponsePartitions::default().with_partition_index(6).with_error_code(88);
            let partition = partition.with_committed_offset(1 << 40).with_committed_leader_epoch(5);
            let partitions = vec![partition.clone().with_metadata(metadata), partition.with_metadata(None)];
            let topic = OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions);
            let group = OffsetFetchResponseGroup::default().with_group_id(GroupId(StrBytes::from_static_str("g")));
            return response.with_groups(vec![group.clone().with_topics(vec![topic]), group.with_error_code(16)]);
        }
        let partition = OffsetFetchResponsePartition::default().with_partition_index(6).with_error_code(88);
        let partition = partition.with_committed_offset(1 << 40);
        let partition = partition.with_committed_leader_epoch(if version >= 5 { 5 } else { -1 });
        let partitions = vec![partition.clone().with_metadata(metadata), partition.with_metadata(None)];
        let topic = OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions);
        response.with_topics(vec![topic]).with_error_code(16)
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<Fetch>() {
            let offset = |metadata: Option<&str>| FetchedOffset {
                partition: 6,
                offset: 1 << 40,
                leader_epoch: if version >= 5 { 5 } else { -1 },
                metadata: metadata.map(str::to_owned),
                error_code: 88,
            };
            let topics = vec![("t".into(), vec![offset(Some("m")), offset(None)])];
            let groups = if version >= 8 {
                let group = |error_code, topics| FetchedGroup { group: Some("g".into()), error_code, topics };
                vec![group(0, topics), group(16, Vec::new())]
            } else {
                vec![FetchedGroup { group: None, error_code: 16, topics }]
            };
            let expected = OffsetFetchResponse { throttle_time_ms: 3, groups };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<Fetch>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<Fetch>(),
        ) {
            check_noise::<Fetch>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
