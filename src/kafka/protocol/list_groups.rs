//! ListGroups: the groups that a broker coordinates, versions 1 to 5.
//!
//! Version 3 is the first flexible version; 4 returns states (KIP-518); 5 returns types (KIP-848).

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length};

/// Smallest encoded size of a group: it limits the element count of an array by the bytes that are left.
const MIN_GROUP_BYTES: usize = 3;

/// Requests all groups that the broker coordinates, in every state and of every type.
#[derive(Clone, Copy, Debug)]
pub struct ListGroupsRequest;

/// The response to a [`ListGroupsRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListGroupsResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the protocol; COORDINATOR_LOAD_IN_PROGRESS while the broker loads groups: the list is incomplete.
    pub error_code: i16,
    /// The groups, in the order of the response.
    pub groups: Vec<ListedGroup>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGroup {
    /// The group id.
    pub group: String,
    /// Kind of the members: `consumer`, `connect` or other; empty for a group that had only commits from outside.
    pub protocol_type: String,
    /// State: `Stable`, `Empty` or other; empty below version 4.
    pub state: String,
    /// Group protocol: `classic`, `consumer` or other; empty below version 5.
    pub group_type: String,
}

impl Request for ListGroupsRequest {
    const API_KEY: i16 = 16;
    const VERSIONS: (i16, i16) = (1, 5);
    const FIRST_FLEXIBLE: i16 = 3;
    type Response = ListGroupsResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        if version >= 4 {
            // States: all.
            put_length(buffer, flexible, 0);
        }
        if version >= 5 {
            // Types: all.
            put_length(buffer, flexible, 0);
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<ListGroupsResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let (throttle_time_ms, error_code) = (reader.i32()?, reader.i16()?);
        let mut groups = Vec::new();
        for _ in 0..reader.array(flexible, MIN_GROUP_BYTES)? {
            let group = reader.string(flexible)?.ok_or(Malformed("a group without a name"))?.to_owned();
            let mut text = |is_present| match is_present {
                true => reader.text(flexible),
                false => Ok(String::new()),
            };
            let (protocol_type, state, group_type) = (text(true)?, text(version >= 4)?, text(version >= 5)?);
            if flexible {
                reader.tagged_fields(|_, _| Ok(()))?;
            }
            groups.push(ListedGroup { group, protocol_type, state, group_type });
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(ListGroupsResponse { throttle_time_ms, error_code, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::list_groups_response::ListedGroup as CrateGroup;
    use kafka_protocol::messages::{GroupId, ListGroupsRequest as CrateRequest, ListGroupsResponse as CrateResponse};
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<ListGroupsRequest>() {
            let seen: CrateRequest = decoded_by_crate(&ListGroupsRequest, version);
            assert_eq!(seen, CrateRequest::default(), "{version}");
        }
    }

    fn response(version: i16) -> CrateResponse {
        let text = |text: &'static str, is_present| StrBytes::from_static_str(if is_present { text } else { "" });
        let group = CrateGroup::default().with_group_id(GroupId(text("g", true)));
        let group = group.with_protocol_type(text("consumer", true));
        let group = group.with_group_state(text("Stable", version >= 4)).with_group_type(text("classic", version >= 5));
        CrateResponse::default().with_throttle_time_ms(2).with_error_code(15).with_groups(vec![group.clone(), group])
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<ListGroupsRequest>() {
            let group = ListedGroup {
                group: "g".into(),
                protocol_type: "consumer".into(),
                state: if version >= 4 { "Stable".into() } else { String::new() },
                group_type: if version >= 5 { "classic".into() } else { String::new() },
            };
            let groups = vec![group.clone(), group];
            let expected = ListGroupsResponse { throttle_time_ms: 2, error_code: 15, groups };
            let bytes = encoded_by_crate(&response(version), version);
            assert_eq!(decode_all::<ListGroupsRequest>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<ListGroupsRequest>(),
        ) {
            check_noise::<ListGroupsRequest>(&noise, encoded_by_crate(&response(version), version), at, byte, version);
        }
    }
}
