//! Compares the codec of a request with the crate `kafka-protocol`, and feeds it malformed responses; used by the tests
//! of all requests.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use bytes::BytesMut;
use kafka_protocol::protocol::{Decodable, Encodable};
use proptest::sample::Index;

use super::Request;
use crate::kafka::wire::{Malformed, WireReader};

/// Returns the versions of a request.
pub(super) fn versions<R: Request>() -> RangeInclusive<i16> {
    R::VERSIONS.0..=R::VERSIONS.1
}

/// Encodes a request and decodes it with the crate; panics unless the crate reads all of it.
pub(super) fn decoded_by_crate<R: Request, C: Decodable>(request: &R, version: i16) -> C {
    let mut buffer = Vec::new();
    request.encode(&mut buffer, version);
    let mut rest = &buffer[..];
    let decoded = C::decode(&mut rest, version).unwrap_or_else(|cause| panic!("version {version}: {cause}"));
    assert!(rest.is_empty(), "version {version}: {} bytes are left", rest.len());
    decoded
}

/// Encodes a response with the crate.
pub(super) fn encoded_by_crate<C: Encodable>(response: &C, version: i16) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    response.encode(&mut buffer, version).unwrap_or_else(|cause| panic!("version {version}: {cause}"));
    buffer.to_vec()
}

/// Decodes a response; fails if bytes are left, as a connection does.
pub(super) fn decode_all<R: Request>(bytes: &[u8], version: i16) -> Result<R::Response, Malformed> {
    let mut reader = WireReader::new(bytes);
    let response = R::decode(&mut reader, version)?;
    if reader.is_empty() { Ok(response) } else { Err(Malformed("bytes after the response")) }
}

/// Decodes `noise`, a prefix of the valid response `good`, and `good` with another byte at a random place. Panics if
/// the decoder does, or accepts the prefix.
pub(super) fn check_noise<R: Request>(noise: &[u8], mut good: Vec<u8>, at: Index, byte: u8, version: i16)
where
    R::Response: Debug,
{
    let _ = decode_all::<R>(noise, version);
    let at = at.index(good.len());
    let truncated = decode_all::<R>(&good[..at], version);
    assert!(truncated.is_err(), "version {version}: {at} bytes are decoded to {truncated:?}");
    good[at] = byte;
    let _ = decode_all::<R>(&good, version);
}
