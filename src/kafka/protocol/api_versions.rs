//! ApiVersions: the versions of each request that a broker supports.

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_string};

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
        }
    }
}
