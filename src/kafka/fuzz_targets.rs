//! Decoders of what brokers and other clients send, for the fuzz targets and a property test; no other build contains
//! them. Each public function takes arbitrary bytes and panics if an invariant does not hold.

use super::compression::Codec;
use super::config::ScramHash;
use super::frame::FrameReader;
use super::group::subscription::{Subscription, decode_assignment};
use super::produce;
use super::protocol::Request;
use super::protocol::api_versions::ApiVersionsRequest;
use super::protocol::consumer_group_describe::ConsumerGroupDescribeRequest;
use super::protocol::describe_configs::DescribeConfigsRequest;
use super::protocol::describe_groups::DescribeGroupsRequest;
use super::protocol::fetch::{self, FetchResponse};
use super::protocol::find_coordinator::FindCoordinatorRequest;
use super::protocol::heartbeat::HeartbeatRequest;
use super::protocol::init_producer_id::InitProducerIdRequest;
use super::protocol::join_group::JoinGroupRequest;
use super::protocol::leave_group::LeaveGroupRequest;
use super::protocol::list_groups::ListGroupsRequest;
use super::protocol::list_offsets::ListOffsetsRequest;
use super::protocol::metadata::MetadataRequest;
use super::protocol::offset_commit::OffsetCommitRequest;
use super::protocol::offset_fetch::OffsetFetchRequest;
use super::protocol::offset_for_leader_epoch::OffsetForLeaderEpochRequest;
use super::protocol::sasl_authenticate::SaslAuthenticateRequest;
use super::protocol::sasl_handshake::SaslHandshakeRequest;
use super::protocol::sync_group::SyncGroupRequest;
use super::records::Entries;
use super::sasl::{SaslExchange, Step};
use super::wire::WireReader;

/// Limit of the frames and of decompressed data, in bytes; small, so that fuzz inputs exceed it.
const MAX_BYTES: usize = 4096;

/// Decodes a response; the first byte chooses the request, the second the version.
pub fn response(data: &[u8]) {
    let [api, version, body @ ..] = data else { return };
    let decode: &[fn(&[u8], u8)] = &[
        decode::<ApiVersionsRequest>,
        decode::<ConsumerGroupDescribeRequest>,
        decode::<DescribeConfigsRequest>,
        decode::<DescribeGroupsRequest>,
        decode::<FindCoordinatorRequest>,
        decode::<HeartbeatRequest>,
        decode::<InitProducerIdRequest>,
        decode::<JoinGroupRequest>,
        decode::<LeaveGroupRequest>,
        decode::<ListGroupsRequest>,
        decode::<ListOffsetsRequest>,
        decode::<MetadataRequest>,
        decode::<OffsetCommitRequest>,
        decode::<OffsetFetchRequest>,
        decode::<OffsetForLeaderEpochRequest>,
        decode::<SaslAuthenticateRequest>,
        decode::<SaslHandshakeRequest>,
        decode::<SyncGroupRequest>,
        |body, version| {
            let _ = produce::decode_response(body, chosen(produce::VERSIONS, version));
        },
        |body, version| {
            let _ = FetchResponse::decode(body, chosen(fetch::VERSIONS, version));
        },
        |body, _| {
            let _ = (Subscription::decode(body), decode_assignment(body));
        },
    ];
    decode[usize::from(*api) % decode.len()](body, *version);
}

fn decode<R: Request>(body: &[u8], version: u8) {
    let _ = R::decode(&mut WireReader::new(body), chosen(R::VERSIONS, version));
}

fn chosen((low, high): (i16, i16), byte: u8) -> i16 {
    low + i16::from(byte) % (high - low + 1)
}

/// Decodes the record data of a fetch response: no record is larger than the limit of the decompressed data.
pub fn records(data: &[u8]) {
    for entry in Entries::of(data) {
        let Ok(entry) = entry else { return };
        let mut bytes = 0;
        let _ = entry.read(MAX_BYTES, |record| {
            bytes += record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
            bytes +=
                record.headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum::<usize>();
        });
        // Uncompressed records are part of the input.
        assert!(bytes <= MAX_BYTES.max(data.len()), "{bytes} bytes of {}", data.len());
    }
}

/// Decompresses data; the first byte chooses the codec. No more than the limit is returned.
pub fn compressed(data: &[u8]) {
    let [codec, data @ ..] = data else { return };
    let codecs = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    if let Ok(bytes) = codecs[usize::from(*codec) % codecs.len()].decompress(data, MAX_BYTES) {
        assert!(bytes.len() <= MAX_BYTES, "{} bytes", bytes.len());
    }
}

/// Splits received bytes into responses, in pieces whose size is the first byte; then passes the bytes to a SCRAM
/// exchange as the messages of a server, which must not be accepted.
pub fn frames(data: &[u8]) {
    let [step, data @ ..] = data else { return };
    let mut reader = FrameReader::new(MAX_BYTES);
    'pieces: for piece in data.chunks(usize::from(*step).max(1)) {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => assert!(frame.len() <= MAX_BYTES),
                Ok(None) => break,
                Err(_) => break 'pieces,
            }
        }
    }
    if let Ok(mut exchange) = SaslExchange::scram(ScramHash::Sha256, "user", "password", "nonce") {
        exchange.first_message();
        for message in data.split(|byte| *byte == b'\n') {
            match exchange.next(message) {
                Ok(Step::Done) => panic!("a server without the password is accepted"),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            for target in [response, records, compressed, frames] {
                target(&data);
            }
        }
    }
}
