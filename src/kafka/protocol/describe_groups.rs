//! DescribeGroups: state and members of consumer groups, versions 1 to 6. The broker must coordinate the groups.
//!
//! Version 3 can return authorized operations, which are not requested; 4 has static members (KIP-345); 5 is the first
//! flexible version; 6 returns GROUP_ID_NOT_FOUND for an unknown group, which is in state `Dead` in other versions.

use std::sync::Arc;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length, put_string};

// Smallest encoded sizes of array elements: they limit the element count of an array by the bytes that are left.
const MIN_GROUP_BYTES: usize = 8;
const MIN_MEMBER_BYTES: usize = 7;

/// Requests the description of groups.
#[derive(Clone, Copy, Debug)]
pub struct DescribeGroupsRequest<'a> {
    /// The group ids, each of at most 32,767 bytes.
    pub groups: &'a [Arc<str>],
}

/// The response to a [`DescribeGroupsRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescribeGroupsResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The groups, in the order of the response.
    pub groups: Vec<DescribedGroup>,
}

/// State and members of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedGroup {
    /// The group id.
    pub group: String,
    /// Error code of the protocol.
    pub error_code: i16,
    /// Error message of the broker (version 6).
    pub error_message: Option<String>,
    /// State: `Stable`, `Empty`, `PreparingRebalance`, `CompletingRebalance`, `Dead` or other.
    pub state: String,
    /// Kind of the members: `consumer`, `connect` or other.
    pub protocol_type: String,
    /// The assignment strategy that the members have in common; empty unless the state is `Stable`.
    pub protocol: String,
    /// The members.
    pub members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Id that the coordinator gave to the member.
    pub member_id: String,
    /// Id of a static member (version 4 and later).
    pub instance_id: Option<String>,
    /// `client.id` of the member.
    pub client_id: String,
    /// Host of the member, as the broker saw it.
    pub client_host: String,
    /// The subscription in the format of the assignment strategy; empty unless the state is `Stable`.
    pub metadata: Vec<u8>,
    /// The assignment in the format of the assignment strategy; empty unless the state is `Stable`.
    pub assignment: Vec<u8>,
}

impl Request for DescribeGroupsRequest<'_> {
    const API_KEY: i16 = 15;
    const VERSIONS: (i16, i16) = (1, 6);
    const FIRST_FLEXIBLE: i16 = 5;
    type Response = DescribeGroupsResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        put_length(buffer, flexible, self.groups.len());
        for group in self.groups {
            put_string(buffer, flexible, group);
        }
        if version >= 3 {
            // No authorized operations.
            buffer.push(0);
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<DescribeGroupsResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let mut response = DescribeGroupsResponse { throttle_time_ms: reader.i32()?, groups: Vec::new() };
        for _ in 0..reader.array(flexible, MIN_GROUP_BYTES)? {
            response.groups.push(group(reader, version)?);
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(response)
    }
}

fn group(reader: &mut WireReader, version: i16) -> Result<DescribedGroup, Malformed> {
    let flexible = version >= DescribeGroupsRequest::FIRST_FLEXIBLE;
    let error_code = reader.i16()?;
    let error_message = if version >= 6 { reader.string(flexible)?.map(str::to_owned) } else { None };
    let group = reader.text(flexible)?;
    let (state, protocol_type, protocol) = (reader.text(flexible)?, reader.text(flexible)?, reader.text(flexible)?);
    let mut members = Vec::new();
    for _ in 0..reader.array(flexible, MIN_MEMBER_BYTES)? {
        members.push(member(reader, version)?);
    }
    if version >= 3 {
        // Authorized operations.
        reader.i32()?;
    }
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    Ok(DescribedGroup { group, error_code, error_message, state, protocol_type, protocol, members })
}

fn member(reader: &mut WireReader, version: i16) -> Result<GroupMember, Malformed> {
    let flexible = version >= DescribeGroupsRequest::FIRST_FLEXIBLE;
    let member = GroupMember {
        member_id: reader.text(flexible)?,
        instance_id: if version >= 4 { reader.string(flexible)?.map(str::to_owned) } else { None },
        client_id: reader.text(flexible)?,
        client_host: reader.text(flexible)?,
        metadata: reader.bytes(flexible)?.to_vec(),
        assignment: reader.bytes(flexible)?.to_vec(),
    };
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    Ok(member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use bytes::Bytes;
    use kafka_protocol::messages::describe_groups_response::{DescribedGroup as CrateGroup, DescribedGroupMember};
    use kafka_protocol::messages::{
        DescribeGroupsRequest as CrateRequest, DescribeGroupsResponse as CrateResponse, GroupId,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    type Describe = DescribeGroupsRequest<'static>;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<Describe>() {
            let groups = ["g".into(), "h".into()];
            let seen: CrateRequest = decoded_by_crate(&DescribeGroupsRequest { groups: &groups }, version);
            let seen: Vec<_> = seen.groups.iter().map(|group| group.to_string()).collect();
            assert_eq!(seen, ["g", "h"], "{version}");
        }
    }

    fn response(version: i16) -> CrateResponse {
        let text = StrBytes::from_static_str;
        let member = DescribedGroupMember::default().with_member_id(text("m")).with_client_id(text("c"));
        let member = member.with_client_host(text("/10.0.0.1")).with_member_metadata(Bytes::from_static(b"abc"));
        let member = member.with_member_assignment(Bytes::from_static(&[0xff; 300]));
        let member = member.with_group_instance_id((version >= 4).then(|| text("i")));
        let group = CrateGroup::default().with_group_id(GroupId(text("g"))).with_error_code(69);
        let group = group.with_error_message((version >= 6).then(|| text("not found")));
        let group = group.with_group_state(text("Stable")).with_protocol_type(text("consumer"));
        let group = group.with_protocol_data(text("range"));
        let groups = vec![group.clone().with_members(vec![member.clone(), member]), group];
        CrateResponse::default().with_throttle_time_ms(8).with_groups(groups)
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<Describe>() {
            let member = GroupMember {
                member_id: "m".into(),
                instance_id: (version >= 4).then(|| "i".into()),
                client_id: "c".into(),
                client_host: "/10.0.0.1".into(),
                metadata: b"abc".to_vec(),
                assignment: vec![0xff; 300],
            };
            let group = |members| DescribedGroup {
                group: "g".into(),
                error_code: 69,
                error_message: (version >= 6).then(|| "not found".into()),
                state: "Stable".into(),
                protocol_type: "consumer".into(),
                protocol: "range".into(),
                members,
            };
            let groups = vec![group(vec![member.clone(), member]), group(Vec::new())];
            let expected = DescribeGroupsResponse { throttle_time_ms: 8, groups };
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
