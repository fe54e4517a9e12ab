//! JoinGroup: enters a group, or a rebalance of it, by the classic group protocol. The coordinator holds the response
//! back until all members have joined, at most for the longest rebalance timeout of the members.
//!
//! Version 2 has a throttle time; 4 requires a member id before a member enters (KIP-394); 5 has static members
//! (KIP-345); 6 is the first flexible version; 7 has a nullable protocol; 8 a reason (KIP-800); 9 lets a static leader
//! skip the assignment (KIP-814).

use std::sync::Arc;

use super::{Request, is_flexible};
use crate::kafka::wire::{
    Malformed, WireReader, end_structure, put_bytes, put_length, put_nullable_string, put_string,
};

/// The protocol type of consumer groups.
pub const CONSUMER_PROTOCOL_TYPE: &str = "consumer";

/// Joins a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinGroupRequest {
    /// Name of the group (`group.id`).
    pub group_id: Arc<str>,
    /// The coordinator removes the member if it receives no heartbeat for this long.
    pub session_timeout_ms: i32,
    /// The coordinator waits this long for members to join in a rebalance.
    pub rebalance_timeout_ms: i32,
    /// Id of the member that the coordinator assigned; empty if it has none.
    pub member_id: Arc<str>,
    /// Id of a static member (`group.instance.id`). Not sent below version 5: the member is then a dynamic one.
    pub instance_id: Option<Arc<str>>,
    /// Names of the assignors that the member supports, in the order of preference, and its encoded subscription.
    pub protocols: Vec<(&'static str, Vec<u8>)>,
    /// Why the member joins, for the log of the broker.
    pub reason: Option<Arc<str>>,
}

/// The generation that the member is in, or an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinGroupResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the protocol.
    pub error_code: i16,
    /// Generation of the group; -1 after an error.
    pub generation: i32,
    /// Name of the assignor that the coordinator chose.
    pub protocol: Option<String>,
    /// Member id of the leader, the member that assigns the partitions.
    pub leader: String,
    /// Whether the leader must not assign, because the last assignment holds (version 9).
    pub skip_assignment: bool,
    /// Id of this member.
    pub member_id: String,
    /// All members, only in the response to the leader.
    pub members: Vec<JoinedMember>,
}

/// A member of the group, as the leader receives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinedMember {
    /// Id that the coordinator assigned.
    pub member_id: String,
    /// Id of a static member.
    pub instance_id: Option<String>,
    /// The encoded subscription for the chosen assignor.
    pub metadata: Vec<u8>,
}

impl Request for JoinGroupRequest {
    const API_KEY: i16 = 11;
    const VERSIONS: (i16, i16) = (2, 9);
    const FIRST_FLEXIBLE: i16 = 6;
    type Response = JoinGroupResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = is_flexible::<Self>(version);
        put_string(buffer, flexible, &self.group_id);
        buffer.extend_from_slice(&self.session_timeout_ms.to_be_bytes());
        buffer.extend_from_slice(&self.rebalance_timeout_ms.to_be_bytes());
        put_string(buffer, flexible, &self.member_id);
        if version >= 5 {
            put_nullable_string(buffer, flexible, self.instance_id.as_deref());
        }
        put_string(buffer, flexible, CONSUMER_PROTOCOL_TYPE);
        put_length(buffer, flexible, self.protocols.len());
        for (name, metadata) in &self.protocols {
            put_string(buffer, flexible, name);
            put_bytes(buffer, flexible, metadata);
            end_structure(buffer, flexible);
        }
        if version >= 8 {
            put_nullable_string(buffer, flexible, self.reason.as_deref());
        }
        end_structure(buffer, flexible);
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<JoinGroupResponse, Malformed> {
        let flexible = is_flexible::<Self>(version);
        let mut response = JoinGroupResponse {
            throttle_time_ms: reader.i32()?,
            error_code: reader.i16()?,
            generation: reader.i32()?,
            ..JoinGroupResponse::default()
        };
        if version >= 7 {
            // Protocol type.
            reader.string(flexible)?;
        }
        response.protocol = reader.string(flexible)?.map(str::to_owned);
        response.leader = id(reader, flexible)?;
        if version >= 9 {
            response.skip_assignment = reader.i8()? != 0;
        }
        response.member_id = id(reader, flexible)?;
        // The smallest member: two empty strings (with tagged fields in flexible versions).
        for _ in 0..reader.array(flexible, if flexible { 4 } else { 6 })? {
            response.members.push(JoinedMember {
                member_id: id(reader, flexible)?,
                instance_id: if version >= 5 { reader.string(flexible)?.map(str::to_owned) } else { None },
                metadata: reader.bytes(flexible)?.to_vec(),
            });
            reader.skip_tagged_fields(flexible)?;
        }
        reader.skip_tagged_fields(flexible)?;
        Ok(response)
    }
}

/// Reads an id that is later sent back to the broker, so it must have a length that every version can encode.
pub(super) fn id(reader: &mut WireReader, flexible: bool) -> Result<String, Malformed> {
    let text = reader.string(flexible)?.unwrap_or_default();
    if text.len() > i16::MAX as usize {
        return Err(Malformed("an id of more than 32,767 bytes"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
    use kafka_protocol::messages::{JoinGroupRequest as CrateRequest, JoinGroupResponse as CrateResponse};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    fn text(text: &'static str) -> StrBytes {
        StrBytes::from_static_str(text)
    }

    fn response(version: i16) -> CrateResponse {
        let mut member =
            JoinGroupResponseMember::default().with_member_id(text("m-1")).with_metadata(Bytes::from_static(b"data"));
        if version >= 5 {
            member = member.with_group_instance_id(Some(text("i")));
        }
        let response = CrateResponse::default()
            .with_throttle_time_ms(9)
            .with_error_code(27)
            .with_generation_id(1 << 20)
            .with_protocol_name(Some(text("range")))
            .with_leader(text("m-1"))
            .with_member_id(text("m-2"))
            .with_skip_assignment(version >= 9)
            .with_members(vec![member.clone(), member.with_member_id(text("m-2"))]);
        if version >= 7 { response.with_protocol_type(Some(text("consumer"))) } else { response }
    }

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in JoinGroupRequest::VERSIONS.0..=JoinGroupRequest::VERSIONS.1 {
            for instance_id in [None, Some("instance")] {
                let request = JoinGroupRequest {
                    group_id: "g".into(),
                    session_timeout_ms: 10_000,
                    rebalance_timeout_ms: 60_000,
                    member_id: "m".into(),
                    instance_id: instance_id.map(Into::into),
                    protocols: vec![("range", vec![1; 300]), ("cooperative-sticky", Vec::new())],
                    reason: Some("because".into()),
                };
                let mut buffer = Vec::new();
                request.encode(&mut buffer, version);
                let mut rest = &buffer[..];
                let seen = CrateRequest::decode(&mut rest, version).unwrap();
                assert!(rest.is_empty(), "{version}");
                assert_eq!((&*seen.group_id.0, &*seen.member_id, &*seen.protocol_type), ("g", "m", "consumer"));
                assert_eq!((seen.session_timeout_ms, seen.rebalance_timeout_ms), (10_000, 60_000));
                assert_eq!(seen.group_instance_id.as_deref(), instance_id.filter(|_| version >= 5));
                assert_eq!(seen.reason.as_deref(), Some("because").filter(|_| version >= 8));
                let protocols: Vec<_> = seen.protocols.iter().map(|p| (&*p.name, p.metadata.len())).collect();
                assert_eq!(protocols, [("range", 300), ("cooperative-sticky", 0)]);
            }

            let mut buffer = BytesMut::new();
            response(version).encode(&mut buffer, version).unwrap();
            let mut reader = WireReader::new(&buffer);
            let seen = JoinGroupRequest::decode(&mut reader, version).unwrap();
            assert!(reader.is_empty(), "{version}");
            let member = |id: &str| JoinedMember {
                member_id: id.into(),
                instance_id: (version >= 5).then(|| "i".into()),
                metadata: b"data".to_vec(),
            };
            let expected = JoinGroupResponse {
                throttle_time_ms: 9,
                error_code: 27,
                generation: 1 << 20,
                protocol: Some("range".into()),
                leader: "m-1".into(),
                skip_assignment: version >= 9,
                member_id: "m-2".into(),
                members: vec![member("m-1"), member("m-2")],
            };
            assert_eq!(seen, expected, "{version}");
            for length in 0..buffer.len() {
                assert!(JoinGroupRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
            }
        }
    }

    #[test]
    fn an_id_that_cannot_be_sent_back_is_malformed() {
        let long = StrBytes::from_string("x".repeat(40_000));
        let mut buffer = BytesMut::new();
        response(9).with_member_id(long).encode(&mut buffer, 9).unwrap();
        assert!(JoinGroupRequest::decode(&mut WireReader::new(&buffer), 9).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes: Vec<u8>, version in 2_i16..=9) {
            let _ = JoinGroupRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
