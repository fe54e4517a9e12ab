//! ApiVersions: the versions of each request that a broker supports.

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_string};

/// Error code of a response to a version that the broker does not support.
pub const UNSUPPORTED_VERSION: i16 = 35;

/// Requests the supported versions; the first request on each connection.
#[derive(Clone, Copy, Debug)]
pub struct ApiVersionsRequest;

/// The versions that a broker supports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiVersionsResponse {
    /// Error code of the protocol; 35 (UNSUPPORTED_VERSION) if the broker does not support the version of this request.
    pub error_code: i16,
    /// API key, lowest and highest version.
    pub apis: Vec<(i16, i16, i16)>,
}

impl Request for ApiVersionsRequest {
    const API_KEY: i16 = 18;
    const VERSIONS: (i16, i16) = (0, 3);
    const FIRST_FLEXIBLE: i16 = 3;
    type Response = ApiVersionsResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        if version >= Self::FIRST_FLEXIBLE {
            // Name and version of the client software: brokers count connections by them (KIP-511).
            put_string(buffer, true, env!("CARGO_PKG_NAME"));
            put_string(buffer, true, env!("CARGO_PKG_VERSION"));
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<ApiVersionsResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let mut response = ApiVersionsResponse { error_code: reader.i16()?, apis: Vec::new() };
        if response.error_code == UNSUPPORTED_VERSION {
            // The rest has the format of version 0, whatever the version of the request was (KIP-511). It is not
            // needed: every broker supports version 0.
            *reader = WireReader::new(&[]);
            return Ok(response);
        }
        for _ in 0..reader.array(flexible, 6)? {
            response.apis.push((reader.i16()?, reader.i16()?, reader.i16()?));
            if flexible {
                reader.tagged_fields(|_, _| Ok(()))?;
            }
        }
        if version >= 1 {
            // Throttle time.
            reader.i32()?;
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
    use bytes::BytesMut;
    use kafka_protocol::messages::api_versions_response::ApiVersion;
    use kafka_protocol::messages::{ApiVersionsRequest as CrateRequest, ApiVersionsResponse as CrateResponse};
    use kafka_protocol::protocol::{Decodable, Encodable};
    use proptest::prelude::*;

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in ApiVersionsRequest::VERSIONS.0..=ApiVersionsRequest::VERSIONS.1 {
            let mut buffer = Vec::new();
            ApiVersionsRequest.encode(&mut buffer, version);
            let mut rest = &buffer[..];
            CrateRequest::decode(&mut rest, version).unwrap();
            assert!(rest.is_empty(), "{version}");

            let api = ApiVersion::default().with_api_key(18).with_min_version(0).with_max_version(4);
            let mut buffer = BytesMut::new();
            CrateResponse::default().with_api_keys(vec![api]).encode(&mut buffer, version).unwrap();
            let mut reader = WireReader::new(&buffer);
            let response = ApiVersionsRequest::decode(&mut reader, version).unwrap();
            assert!(reader.is_empty(), "{version}");
            assert_eq!(response, ApiVersionsResponse { error_code: 0, apis: vec![(18, 0, 4)] }, "{version}");
            for length in 0..buffer.len() {
                assert!(ApiVersionsRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
            }
        }
    }

    #[test]
    fn the_refusal_of_a_version_has_the_format_of_version_0() {
        for apis in [vec![], vec![ApiVersion::default().with_api_key(18).with_max_version(2)]] {
            let mut buffer = BytesMut::new();
            let refusal = CrateResponse::default().with_error_code(UNSUPPORTED_VERSION).with_api_keys(apis);
            refusal.encode(&mut buffer, 0).unwrap();
            let mut reader = WireReader::new(&buffer);
            let response = ApiVersionsRequest::decode(&mut reader, 3).unwrap();
            assert!(reader.is_empty());
            assert_eq!(response, ApiVersionsResponse { error_code: UNSUPPORTED_VERSION, apis: Vec::new() });
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, version in 0..=3_i16) {
            let _ = ApiVersionsRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
