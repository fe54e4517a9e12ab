//! InitProducerId: a producer id for an idempotent producer without transactions, versions 0 to 4.
//!
//! Version 2 is the first flexible version; 3 can raise the epoch of an id (KIP-360). The transactional id is null.

use super::Request;
use crate::kafka::wire::{Malformed, WireReader, put_unsigned_varint};

/// Requests a producer id. `producer_id` and `producer_epoch` are -1 for a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitProducerIdRequest {
    /// The present id, whose epoch the broker raises, or -1. Ignored in versions below 3.
    pub producer_id: i64,
    /// The present epoch, or -1. Ignored in versions below 3.
    pub producer_epoch: i16,
}

impl InitProducerIdRequest {
    /// The request for a new producer id.
    pub const NEW: Self = InitProducerIdRequest { producer_id: -1, producer_epoch: -1 };
}

/// The response to an [`InitProducerIdRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitProducerIdResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// Error code of the protocol. A new cluster returns COORDINATOR_LOAD_IN_PROGRESS for some seconds.
    pub error_code: i16,
    /// The producer id; -1 with an error.
    pub producer_id: i64,
    /// The epoch of the producer id.
    pub producer_epoch: i16,
}

impl Request for InitProducerIdRequest {
    const API_KEY: i16 = 22;
    const VERSIONS: (i16, i16) = (0, 4);
    const FIRST_FLEXIBLE: i16 = 2;
    type Response = InitProducerIdResponse;

    fn encode(&self, buffer: &mut Vec<u8>, version: i16) {
        let flexible = version >= Self::FIRST_FLEXIBLE;
        if flexible {
            put_unsigned_varint(buffer, 0);
        } else {
            buffer.extend_from_slice(&(-1_i16).to_be_bytes());
        }
        // The timeout of transactions, which are not used.
        buffer.extend_from_slice(&i32::MAX.to_be_bytes());
        if version >= 3 {
            buffer.extend_from_slice(&self.producer_id.to_be_bytes());
            buffer.extend_from_slice(&self.producer_epoch.to_be_bytes());
        }
        if flexible {
            buffer.push(0);
        }
    }

    fn decode(reader: &mut WireReader, version: i16) -> Result<InitProducerIdResponse, Malformed> {
        let response = InitProducerIdResponse {
            throttle_time_ms: reader.i32()?,
            error_code: reader.i16()?,
            producer_id: reader.i64()?,
            producer_epoch: reader.i16()?,
        };
        if version >= Self::FIRST_FLEXIBLE {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::codec_tests::{check_noise, decode_all, decoded_by_crate, encoded_by_crate, versions};
    use kafka_protocol::messages::{InitProducerIdRequest as CrateRequest, InitProducerIdResponse as CrateResponse};
    use proptest::prelude::*;

    #[test]
    fn kafka_protocol_decodes_the_request_of_every_version() {
        for version in versions::<InitProducerIdRequest>() {
            let request = InitProducerIdRequest { producer_id: 1 << 40, producer_epoch: 7 };
            let seen: CrateRequest = decoded_by_crate(&request, version);
            assert!(seen.transactional_id.is_none(), "{version}");
            let expected = if version >= 3 { (1 << 40, 7) } else { (-1, -1) };
            assert_eq!((seen.producer_id.0, seen.producer_epoch), expected, "{version}");
        }
    }

    fn response() -> CrateResponse {
        let response = CrateResponse::default().with_throttle_time_ms(9).with_error_code(14);
        response.with_producer_id((1 << 40).into()).with_producer_epoch(3)
    }

    #[test]
    fn responses_of_every_version_are_decoded() {
        for version in versions::<InitProducerIdRequest>() {
            let expected =
                InitProducerIdResponse { throttle_time_ms: 9, error_code: 14, producer_id: 1 << 40, producer_epoch: 3 };
            let bytes = encoded_by_crate(&response(), version);
            assert_eq!(decode_all::<InitProducerIdRequest>(&bytes, version), Ok(expected), "{version}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_truncated_response_is_malformed(
            noise in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            byte: u8,
            version in versions::<InitProducerIdRequest>(),
        ) {
            check_noise::<InitProducerIdRequest>(&noise, encoded_by_crate(&response(), version), at, byte, version);
        }
    }
}
