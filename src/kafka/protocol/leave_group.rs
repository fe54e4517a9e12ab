//! LeaveGroup: removes one member from its group, so that its partitions need not wait for its session to expire.
//!
//! Version 3 removes several members (KIP-345); 4 is the first flexible version; 5 has a reason (KIP-800).

use std::sync::Arc;

use super::join_group::id;
use super::{Request, is_flexible};
use crate::kafka::wire::{Malformed, WireReader, end_structure, put_length, put_nullable_string, put_string};

/// Removes a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaveGroupRequest {
    /// Name of the group.
    pub group_id: Arc<str>,
    /// Id of the member.
    pub member_id: Arc<str>,
    /// Id of a static member (version 3 and later).
    pub instance_id: Option<Arc<str>>,
    /// Why the member leaves, for the log of the broker (version 5).
    pub reason: Option<Arc<str>>,
}

/// Whether the member was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaveGroupResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the request or, if that is 0, of the member.
    pub error_code: i16,
}

impl Request for LeaveGroupRequest {
    const API_KEY: i16 = 13;
    const VERSIONS: (i16, i16) = (1, 5);
    const FIRST_FLEXIBLE: i16 = 4;
    type Response = LeaveGroupResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = is_flexible::<Self>(version);
        put_string(buffer, flexible, &self.group_id);
        if version >= 3 {
            put_length(buffer, flexible, 1);
        }
        put_string(buffer, flexible, &self.member_id);
        if version >= 3 {
            put_nullable_string(buffer, flexible, self.instance_id.as_deref());
            if version >= 5 {
                put_nullable_string(buffer, flexible, self.reason.as_deref());
            }
            end_structure(buffer, flexible);
        }
        end_structure(buffer, flexible);
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<LeaveGroupResponse, Malformed> {
        let flexible = is_flexible::<Self>(version);
        let mut response = LeaveGroupResponse { throttle_time_ms: reader.i32()?, error_code: reader.i16()? };
        if version >= 3 {
            // The smallest member: an empty string, null and an error code (with tagged fields in flexible versions).
            for _ in 0..reader.array(flexible, if flexible { 5 } else { 6 })? {
                id(reader, flexible)?;
                reader.string(flexible)?;
                let error_code = reader.i16()?;
                if response.error_code == 0 {
                    response.error_code = error_code;
                }
                reader.skip_tagged_fields(flexible)?;
            }
        }
        reader.skip_tagged_fields(flexible)?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::leave_group_response::MemberResponse;
    use kafka_protocol::messages::{LeaveGroupRequest as CrateRequest, LeaveGroupResponse as CrateResponse};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in LeaveGroupRequest::VERSIONS.0..=LeaveGroupRequest::VERSIONS.1 {
            for instance_id in [None, Some("i")] {
                let request = LeaveGroupRequest {
                    group_id: "g".into(),
                    member_id: "m".into(),
                    instance_id: instance_id.map(Into::into),
                    reason: Some("closed".into()),
                };
                let mut buffer = Vec::new();
                request.encode(&mut buffer, version);
                let mut rest = &buffer[..];
                let seen = CrateRequest::decode(&mut rest, version).unwrap();
                assert!(rest.is_empty(), "{version}");
                assert_eq!(&*seen.group_id.0, "g");
                if version < 3 {
                    assert_eq!(&*seen.member_id, "m");
                    continue;
                }
                let [member] = &seen.members[..] else { panic!("one member") };
                assert_eq!((&*member.member_id, member.group_instance_id.as_deref()), ("m", instance_id));
                assert_eq!(member.reason.as_deref(), Some("closed").filter(|_| version >= 5));
            }
            for (code, member_code) in [(16, 0), (0, 25), (16, 25)] {
                let mut response = CrateResponse::default().with_throttle_time_ms(3).with_error_code(code);
                if version >= 3 {
                    let member = MemberResponse::default()
                        .with_member_id(StrBytes::from_static_str("m"))
                        .with_error_code(member_code);
                    response = response.with_members(vec![member]);
                }
                let mut buffer = BytesMut::new();
                response.encode(&mut buffer, version).unwrap();
                let mut reader = WireReader::new(&buffer);
                let seen = LeaveGroupRequest::decode(&mut reader, version).unwrap();
                assert!(reader.is_empty(), "{version}");
                let error_code = if code == 0 && version >= 3 { member_code } else { code };
                assert_eq!(seen, LeaveGroupResponse { throttle_time_ms: 3, error_code });
                for length in 0..buffer.len() {
                    assert!(LeaveGroupRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes: Vec<u8>, version in 1_i16..=5) {
            let _ = LeaveGroupRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
