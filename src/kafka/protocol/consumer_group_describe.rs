//! ConsumerGroupDescribe: state and members of groups of the consumer protocol (KIP-848), versions 0 and 1. The broker
//! must coordinate the groups; DescribeGroups does not find them.
//!
//! Version 1 has the type of each member, which is not kept.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_GROUP_BYTES: usize = 21;
const MIN_MEMBER_BYTES: usize = 16;
const MIN_TOPIC_BYTES: usize = 19;
const PARTITION_BYTES: usize = 4;

/// Requests the description of groups.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerGroupDescribeRequest<'a> {
    /// The group ids, each of at most 32,767 bytes.
    pub groups: &'a [Arc<str>],
}

/// The response to a [`ConsumerGroupDescribeRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerGroupDescribeResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The groups, in the order of the response.
    pub groups: Vec<DescribedConsumerGroup>,
}

/// State and members of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedConsumerGroup {
    /// The group id.
    pub group: String,
    /// Error code of the protocol.
    pub error_code: i16,
    /// State: `Stable`, `Assigning`, `Reconciling`, `Empty`, `Dead` or other.
    pub state: String,
    /// The members.
    pub members: Vec<ConsumerGroupMember>,
}

/// Numbers of partitions by topic.
pub type AssignedTopics = Vec<(Arc<str>, Vec<i32>)>;

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupMember {
    /// `client.id` of the member.
    pub client_id: String,
    /// Host of the member, as the broker saw it.
    pub client_host: String,
    /// The partitions that it has, by topic.
    pub assignment: AssignedTopics,
}

impl Request for ConsumerGroupDescribeRequest<'_> {
    const API_KEY: i16 = 69;
    const VERSIONS: (i16, i16) = (0, 1);
    const FIRST_FLEXIBLE: i16 = 0;
    type Response = ConsumerGroupDescribeResponse;

    fn encode(&self, buffer: &mut Vec<u8>, _: i16) {
        put_length(buffer, true, self.groups.len());
        for group in self.groups {
            put_string(buffer, true, group);
        }
        // No authorized operations, no tagged fields.
        buffer.extend_from_slice(&[0, 0]);
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<ConsumerGroupDescribeResponse, Malformed> {
        let mut response = ConsumerGroupDescribeResponse { throttle_time_ms: reader.i32()?, groups: Vec::new() };
        for _ in 0..reader.array(true, MIN_GROUP_BYTES)? {
            response.groups.push(group(reader, version)?);
        }
        reader.skip_tagged_fields(true)?;
        Ok(response)
    }
}

fn group(reader: &mut WireReader, version: i16) -> Result<DescribedConsumerGroup, Malformed> {
    let error_code = reader.i16()?;
    // Error message.
    reader.string(true)?;
    let (group, state) = (reader.text(true)?, reader.text(true)?);
    // Epochs of the group and of its assignment, and the assignor.
    reader.i32()?;
    reader.i32()?;
    reader.string(true)?;
    let mut members = Vec::new();
    for _ in 0..reader.array(true, MIN_MEMBER_BYTES)? {
        members.push(member(reader, version)?);
    }
    // Authorized operations.
    reader.i32()?;
    reader.skip_tagged_fields(true)?;
    Ok(DescribedConsumerGroup { group, error_code, state, members })
}

fn member(reader: &mut WireReader, version: i16) -> Result<ConsumerGroupMember, Malformed> {
    // Ids of the member, of a static member and of a rack; the epoch.
    for _ in 0..3 {
        reader.string(true)?;
    }
    reader.i32()?;
    let (client_id, client_host) = (reader.text(true)?, reader.text(true)?);
    // The subscription.
    for _ in 0..reader.array(true, 1)? {
        reader.string(true)?;
    }
    reader.string(true)?;
    let assignment = assignment(reader)?;
    // What it is to have in the end.
    self::assignment(reader)?;
    if version >= 1 {
        // Whether it speaks the classic protocol.
        reader.i8()?;
    }
    reader.skip_tagged_fields(true)?;
    Ok(ConsumerGroupMember { client_id, client_host, assignment })
}

fn assignment(reader: &mut WireReader) -> Result<AssignedTopics, Malformed> {
    let mut topics = Vec::new();
    for _ in 0..reader.array(true, MIN_TOPIC_BYTES)? {
        // Id of the topic.
        reader.take(16)?;
        let name = reader.string(true)?.unwrap_or_default().into();
        let mut partitions = Vec::new();
        for _ in 0..reader.array(true, PARTITION_BYTES)? {
            partitions.push(reader.i32()?);
        }
        reader.skip_tagged_fields(true)?;
        topics.push((name, partitions));
    }
    reader.skip_tagged_fields(true)?;
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::consumer_group_describe_response::{
        Assignment, DescribedGroup, Member, TopicPartitions,
    };
    use kafka_protocol::messages::{
        ConsumerGroupDescribeRequest as CrateRequest, ConsumerGroupDescribeResponse as CrateResponse, GroupId,
        TopicName,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type Describe = ConsumerGroupDescribeRequest<'static>;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<Describe>() {
            let groups = ["g".into(), "h".into()];
            let seen: CrateRequest = decoded_by_crate(&ConsumerGroupDescribeRequest { groups: &groups }, version);
            let seen: Vec<_> = seen.group_ids.iter().map(|group| group.to_string()).collect();
            assert_eq!(seen, ["g", "h"], "{version}");
        }
    }

    fn response(version: i16) -> CrateResponse {
        let text = StrBytes::from_static_str;
        let assigned = |partitions: &[i32]| {
            let topic = TopicPartitions::default().with_topic_name(TopicName(text("t")));
            Assignment::default().with_topic_partitions(vec![topic.with_partitions(partitions.to_vec())])
        };
        let member = Member::default().with_member_id(text("m")).with_client_id(text("c"));
        let member = member.with_client_host(text("/10.0.0.1")).with_rack_id(Some(text("r")));
        let member = member.with_subscribed_topic_names(vec![TopicName(text("t")), TopicName(text("u"))]);
        let member = member.with_assignment(assigned(&[3, 4])).with_target_assignment(assigned(&[3, 4, 5]));
        let member = member.with_member_type(if version >= 1 { 1 } else { -1 });
        let group = DescribedGroup::default().with_group_id(GroupId(text("g"))).with_error_code(69);
        let group = group.with_error_message(Some(text("not found"))).with_group_state(text("Stable"));
        let group = group.with_assignor_name(text("uniform"));
        let groups = vec![group.clone().with_members(vec![member.clone(), member]), group];
        CrateResponse::default().with_throttle_time_ms(8).with_groups(groups)
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<Describe>() {
            let member = ConsumerGroupMember {
                client_id: "c".into(),
                client_host: "/10.0.0.1".into(),
                assignment: vec![("t".into(), vec![3, 4])],
            };
            let group =
                |members| DescribedConsumerGroup { group: "g".into(), error_code: 69, state: "Stable".into(), members };
            let groups = vec![group(vec![member.clone(), member]), group(Vec::new())];
            let expected = ConsumerGroupDescribeResponse { throttle_time_ms: 8, groups };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<Describe>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<Describe>(),
        ) {
            check_noise::<Describe>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
