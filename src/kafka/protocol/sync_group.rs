//! SyncGroup: the leader sends the assignment of all members, and every member receives its own.
//!
//! Version 3 has static members (KIP-345); 4 is the first flexible version; 5 names the protocol again (KIP-559).

use std::sync::Arc;

use super::join_group::CONSUMER_PROTOCOL_TYPE;
use super::{Request, is_flexible};
use crate::kafka::wire::{
    Malformed, WireReader, end_structure, put_bytes, put_length, put_nullable_string, put_string,
};

/// Requests the assignment of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncGroupRequest {
    /// Name of the group.
    pub group_id: Arc<str>,
    /// Generation that the member joined.
    pub generation: i32,
    /// Id of the member.
    pub member_id: Arc<str>,
    /// Id of a static member (version 3 and later).
    pub instance_id: Option<Arc<str>>,
    /// The assignor that the coordinator chose.
    pub protocol: Arc<str>,
    /// Member ids with their encoded assignments; empty unless the member is the leader.
    pub assignments: Vec<(String, Vec<u8>)>,
}

/// The assignment of the member, or an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncGroupResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the protocol.
    pub error_code: i16,
    /// The encoded assignment; empty if the leader assigned nothing to this member.
    pub assignment: Vec<u8>,
}

impl Request for SyncGroupRequest {
    const API_KEY: i16 = 14;
    const VERSIONS: (i16, i16) = (1, 5);
    const FIRST_FLEXIBLE: i16 = 4;
    type Response = SyncGroupResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = is_flexible::<Self>(version);
        put_string(buffer, flexible, &self.group_id);
        buffer.extend_from_slice(&self.generation.to_be_bytes());
        put_string(buffer, flexible, &self.member_id);
        if version >= 3 {
            put_nullable_string(buffer, flexible, self.instance_id.as_deref());
        }
        if version >= 5 {
            put_nullable_string(buffer, flexible, Some(CONSUMER_PROTOCOL_TYPE));
            put_nullable_string(buffer, flexible, Some(&self.protocol));
        }
        put_length(buffer, flexible, self.assignments.len());
        for (member_id, assignment) in &self.assignments {
            put_string(buffer, flexible, member_id);
            put_bytes(buffer, flexible, assignment);
            end_structure(buffer, flexible);
        }
        end_structure(buffer, flexible);
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<SyncGroupResponse, Malformed> {
        let flexible = is_flexible::<Self>(version);
        let (throttle_time_ms, error_code) = (reader.i32()?, reader.i16()?);
        if version >= 5 {
            // Protocol type and name.
            reader.string(flexible)?;
            reader.string(flexible)?;
        }
        let assignment = reader.bytes(flexible)?.to_vec();
        reader.skip_tagged_fields(flexible)?;
        Ok(SyncGroupResponse { throttle_time_ms, error_code, assignment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::messages::{SyncGroupRequest as CrateRequest, SyncGroupResponse as CrateResponse};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in SyncGroupRequest::VERSIONS.0..=SyncGroupRequest::VERSIONS.1 {
            let request = SyncGroupRequest {
                group_id: "g".into(),
                generation: 7,
                member_id: "m".into(),
                instance_id: (version % 2 == 0).then(|| "i".into()),
                protocol: "range".into(),
                assignments: vec![("m".into(), vec![1, 2]), ("n".into(), Vec::new())],
            };
            let mut buffer = Vec::new();
            request.encode(&mut buffer, version);
            let mut rest = &buffer[..];
            let seen = CrateRequest::decode(&mut rest, version).unwrap();
            assert!(rest.is_empty(), "{version}");
            assert_eq!((&*seen.group_id.0, seen.generation_id, &*seen.member_id), ("g", 7, "m"));
            assert_eq!(seen.group_instance_id.as_deref(), request.instance_id.as_deref().filter(|_| version >= 3));
            assert_eq!(seen.protocol_type.as_deref(), Some("consumer").filter(|_| version >= 5));
            assert_eq!(seen.protocol_name.as_deref(), Some("range").filter(|_| version >= 5));
            let assignments: Vec<_> = seen.assignments.iter().map(|a| (&*a.member_id, &a.assignment[..])).collect();
            assert_eq!(assignments, [("m", &[1, 2][..]), ("n", &[])]);

            let mut response = CrateResponse::default()
                .with_throttle_time_ms(3)
                .with_error_code(22)
                .with_assignment(Bytes::from_static(b"assignment"));
            if version >= 5 {
                response = response.with_protocol_name(Some(StrBytes::from_static_str("range")));
            }
            let mut buffer = BytesMut::new();
            response.encode(&mut buffer, version).unwrap();
            let mut reader = WireReader::new(&buffer);
            let seen = SyncGroupRequest::decode(&mut reader, version).unwrap();
            assert!(reader.is_empty(), "{version}");
            let assignment = b"assignment".to_vec();
            assert_eq!(seen, SyncGroupResponse { throttle_time_ms: 3, error_code: 22, assignment }, "{version}");
            for length in 0..buffer.len() {
                assert!(SyncGroupRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes: Vec<u8>, version in 1_i16..=5) {
            let _ = SyncGroupRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
