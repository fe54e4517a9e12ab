//! What brokers do with each request.

mod metadata;
mod produce;
mod producer_ids;
pub(super) mod versions;

use bytes::Bytes;
use kafka_protocol::messages as m;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::StrBytes;

use super::call::{Context, Ended, Reply, serve_as};

/// Serves a request of a type.
pub(super) fn dispatch(context: &mut Context, api: ApiKey, frame: Bytes) -> Result<Reply, Ended> {
    match api {
        ApiKey::ApiVersions => serve_as::<m::ApiVersionsRequest>(context, frame),
        ApiKey::InitProducerId => serve_as::<m::InitProducerIdRequest>(context, frame),
        ApiKey::Metadata => serve_as::<m::MetadataRequest>(context, frame),
        ApiKey::Produce => serve_as::<m::ProduceRequest>(context, frame),
        _ => Err(Ended),
    }
}

/// Returns a string of the protocol.
fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// Returns the name of a topic.
fn topic_name(name: &str) -> m::TopicName {
    m::TopicName(text(name))
}

/// The host name of all brokers.
const HOST: &str = "127.0.0.1";
