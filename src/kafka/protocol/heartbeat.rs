//! Heartbeat: extends the session of a group member and returns whether a rebalance is in progress.
//!
//! Version 3 has static members (KIP-345); 4 is the first flexible version.

use std::sync::Arc;

use super::{Request, is_flexible};
use crate::kafka::wire::{Malformed, WireReader, end_structure, put_nullable_string, put_string};

/// Extends the session of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// Name of the group.
    pub group_id: Arc<str>,
    /// Generation of the member.
    pub generation: i32,
    /// Id of the member.
    pub member_id: Arc<str>,
    /// Id of a static member (version 3 and later).
    pub instance_id: Option<Arc<str>>,
}

/// Whether the session was extended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the protocol.
    pub error_code: i16,
}

impl Request for HeartbeatRequest {
    const API_KEY: i16 = 12;
    const VERSIONS: (i16, i16) = (1, 4);
    const FIRST_FLEXIBLE: i16 = 4;
    type Response = HeartbeatResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = is_flexible::<Self>(version);
        put_string(buffer, flexible, &self.group_id);
        buffer.extend_from_slice(&self.generation.to_be_bytes());
        put_string(buffer, flexible, &self.member_id);
        if version >= 3 {
            put_nullable_string(buffer, flexible, self.instance_id.as_deref());
        }
        end_structure(buffer, flexible);
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<HeartbeatResponse, Malformed> {
        let response = HeartbeatResponse { throttle_time_ms: reader.i32()?, error_code: reader.i16()? };
        reader.skip_tagged_fields(is_flexible::<Self>(version))?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::{HeartbeatRequest as CrateRequest, HeartbeatResponse as CrateResponse};
    use kafka_protocol::protocol::{Decodable, Encodable};
    use proptest::prelude::*;

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in HeartbeatRequest::VERSIONS.0..=HeartbeatRequest::VERSIONS.1 {
            for instance_id in [None, Some("i")] {
                let request = HeartbeatRequest {
                    group_id: "g".into(),
                    generation: 7,
                    member_id: "m".into(),
                    instance_id: instance_id.map(Into::into),
                };
                let mut buffer = Vec::new();
                request.encode(&mut buffer, version);
                let mut rest = &buffer[..];
                let seen = CrateRequest::decode(&mut rest, version).unwrap();
                assert!(rest.is_empty(), "{version}");
                assert_eq!((&*seen.group_id.0, seen.generation_id, &*seen.member_id), ("g", 7, "m"));
                assert_eq!(seen.group_instance_id.as_deref(), instance_id.filter(|_| version >= 3));
            }
            let mut buffer = BytesMut::new();
            let response = CrateResponse::default().with_throttle_time_ms(3).with_error_code(27);
            response.encode(&mut buffer, version).unwrap();
            let mut reader = WireReader::new(&buffer);
            let seen = HeartbeatRequest::decode(&mut reader, version).unwrap();
            assert!(reader.is_empty(), "{version}");
            assert_eq!(seen, HeartbeatResponse { throttle_time_ms: 3, error_code: 27 });
            for length in 0..buffer.len() {
                assert!(HeartbeatRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes: Vec<u8>, version in 1_i16..=4) {
            let _ = HeartbeatRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
