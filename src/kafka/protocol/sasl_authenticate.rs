//! SaslAuthenticate: one message of a SASL mechanism and the broker's answer to it (KIP-152).

use std::fmt;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_length};

/// A message of the SASL mechanism that a SaslHandshake has selected.
#[derive(Clone)]
pub struct SaslAuthenticateRequest<'a> {
    /// The message; it may contain a password.
    pub message: &'a [u8],
}

impl fmt::Debug for SaslAuthenticateRequest<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SaslAuthenticateRequest").finish_non_exhaustive()
    }
}

/// The broker's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaslAuthenticateResponse {
    /// Error code of the protocol, for instance 58 (SASL_AUTHENTICATION_FAILED).
    pub error_code: i16,
    /// The broker's text for the error.
    pub error_message: Option<String>,
    /// The broker's SASL message.
    pub message: Vec<u8>,
    /// Time after which the broker closes the connection unless the client authenticates again, in milliseconds; 0: no
    /// limit (KIP-368). Version 0 has no limit.
    pub session_lifetime_ms: i64,
}

impl Request for SaslAuthenticateRequest<'_> {
    const API_KEY: i16 = 36;
    const VERSIONS: (i16, i16) = (0, 2);
    const FIRST_FLEXIBLE: i16 = 2;
    type Response = SaslAuthenticateResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        put_length(buffer, flexible, self.message.len());
        buffer.extend_from_slice(self.message);
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<SaslAuthenticateResponse, Malformed> {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        let error_code = reader.i16()?;
        let error_message = reader.string(flexible)?.map(str::to_owned);
        // The length of bytes has the same form as that of an array.
        let size = reader.array(flexible, 1)?;
        let message = reader.take(size)?.to_vec();
        let session_lifetime_ms = if version >= 1 { reader.i64()? } else { 0 };
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(SaslAuthenticateResponse { error_code, error_message, message, session_lifetime_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::messages::{
        SaslAuthenticateRequest as CrateRequest, SaslAuthenticateResponse as CrateResponse,
    };
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    use proptest::prelude::*;

    #[test]
    fn every_version_agrees_with_kafka_protocol() {
        for version in SaslAuthenticateRequest::VERSIONS.0..=SaslAuthenticateRequest::VERSIONS.1 {
            let mut buffer = Vec::new();
            SaslAuthenticateRequest { message: b"\0user\0secret" }.encode(&mut buffer, version);
            let mut rest = &buffer[..];
            assert_eq!(&*CrateRequest::decode(&mut rest, version).unwrap().auth_bytes, b"\0user\0secret");
            assert!(rest.is_empty(), "{version}");

            let mut response = CrateResponse::default()
                .with_error_code(58)
                .with_error_message(Some(StrBytes::from_static_str("wrong")))
                .with_auth_bytes(Bytes::from_static(b"v=1"));
            if version >= 1 {
                response = response.with_session_lifetime_ms(3600);
            }
            let mut buffer = BytesMut::new();
            response.encode(&mut buffer, version).unwrap();
            let mut reader = WireReader::new(&buffer);
            let decoded = SaslAuthenticateRequest::decode(&mut reader, version).unwrap();
            assert!(reader.is_empty(), "{version}");
            let expected = SaslAuthenticateResponse {
                error_code: 58,
                error_message: Some("wrong".into()),
                message: b"v=1".to_vec(),
                session_lifetime_ms: if version >= 1 { 3600 } else { 0 },
            };
            assert_eq!(decoded, expected, "{version}");
            for length in 0..buffer.len() {
                assert!(SaslAuthenticateRequest::decode(&mut WireReader::new(&buffer[..length]), version).is_err());
            }
        }
        assert!(!format!("{:?}", SaslAuthenticateRequest { message: b"secret" }).contains("115"));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, version in 0..=2_i16) {
            let _ = SaslAuthenticateRequest::decode(&mut WireReader::new(&bytes), version);
        }
    }
}
