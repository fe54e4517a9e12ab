//! SaslHandshake: selects the SASL mechanism of a connection.

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_string};

/// Selects a mechanism. After version 0 the SASL messages follow without Kafka's headers; after version 1 they follow
/// as SaslAuthenticate requests (KIP-152).
#[derive(Clone, Debug)]
pub struct SaslHandshakeRequest {
    /// Name of the mechanism.
    pub mechanism: &'static str,
}

/// Whether the broker supports the mechanism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaslHandshakeResponse {
    /// Error code of the protocol: 33 (UNSUPPORTED_SASL_MECHANISM), 34 (ILLEGAL_SASL_STATE: the listener has no SASL).
    pub error_code: i16,
    /// The mechanisms of the listener.
    pub mechanisms: Vec<String>,
}

impl Request for SaslHandshakeRequest {
    const API_KEY: i16 = 17;
    const VERSIONS: (i16, i16) = (0, 1);
    const FIRST_FLEXIBLE: i16 = i16::MAX;
    type Response = SaslHandshakeResponse;

    fn encode(&self, buffer: &mut Vec<u8>, _: i16) {
        put_string(buffer, false, self.mechanism);
    }

    fn decode(reader: &mut WireReader, _: i16) -> Result<SaslHandshakeResponse, Malformed> {
        let mut response = SaslHandshakeResponse { error_code: reader.i16()?, mechanisms: Vec::new() };
        for _ in 0..reader.array(false, 2)? {
            response.mechanisms.extend(reader.string(false)?.map(str::to_owned));
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::{SaslHandshakeRequest as CrateRequest, SaslHandshakeResponse as CrateResponse};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in SaslHandshakeRequest::VERSIONS.0..=SaslHandshakeRequest::VERSIONS.1 {
            let mut buffer = Vec::new();
            SaslHandshakeRequest { mechanism: "PLAIN" }.encode(&mut buffer, version);
            let mut rest = &buffer[..];
            assert_eq!(CrateRequest::decode(&mut rest, version).unwrap().mechanism.as_str(), "PLAIN");
            assert!(rest.is_empty(), "{version}");

            let mechanisms = ["PLAIN", "SCRAM-SHA-256"].map(StrBytes::from_static_str).to_vec();
            let mut buffer = BytesMut::new();
            let response = CrateResponse::default().with_error_code(33).with_mechanisms(mechanisms);
            response.encode(&mut buffer, version).unwrap();
            let mut reader = WireReader::new(&buffer);
            let response = SaslHandshakeRequest::decode(&mut reader, version).unwrap();
            assert!(reader.is_empty(), "{version}");
            assert_eq!((response.error_code, &*response.mechanisms.join(" ")), (33, "PLAIN SCRAM-SHA-256"));
            for length in 0..buffer.len() {
                assert!(SaslHandshakeRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, version in 0..=1_i16) {
            let _ = SaslHandshakeRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
