//! The requests of this client and their responses, one module for each; Produce, the hot path, is in
//! [`super::produce`].
//!
//! Requests are encoded and responses decoded by hand, in the versions that the client uses: a decoder generated from
//! Kafka's message definitions reserves memory for as many elements as an array announces.

pub mod api_versions;
#[cfg(test)]
mod codec_tests;
pub mod consumer_group_describe;
pub mod describe_configs;
pub mod describe_groups;
pub mod fetch;
pub mod find_coordinator;
pub mod heartbeat;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_groups;
pub mod list_offsets;
pub mod metadata;
pub mod offset_commit;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod sasl_authenticate;
pub mod sasl_handshake;
pub mod sync_group;

use super::wire::{Malformed, WireReader};

/// A request of the Kafka protocol.
pub trait Request {
    /// API key: the type of the request.
    const API_KEY: i16;
    /// The lowest and the highest version that [`encode`](Self::encode) and [`decode`](Self::decode) support.
    const VERSIONS: (i16, i16);
    /// The first version whose headers and structures have tagged fields and compact lengths (KIP-482).
    const FIRST_FLEXIBLE: i16;
    /// The response.
    type Response;

    /// Appends the body of the request.
    fn encode(&self, buffer: &mut Vec<u8>, version: i16);

    /// Decodes the body of a response; fails if bytes are missing or invalid. The caller checks that none are left.
    fn decode(reader: &mut WireReader, version: i16) -> Result<Self::Response, Malformed>;
}

/// Whether `version` of a request is flexible.
pub(super) fn is_flexible<R: Request>(version: i16) -> bool {
    version >= R::FIRST_FLEXIBLE
}
