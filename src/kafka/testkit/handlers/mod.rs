//! The handlers of a test broker, one module for each kind of request.

mod committed;
mod coordinator;
mod fetch;
mod membership;
mod metadata;
mod offsets;
mod produce;
mod producer_ids;
mod sasl;
pub(super) mod versions;

use bytes::Bytes;
use kafka_protocol::messages as m;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::StrBytes;

use super::call::{Context, Ended, Reply, serve_as};
use super::codes;
use super::state::State;

pub(super) use sasl::serve_raw_token;

/// The host name of all brokers.
const HOST: &str = "127.0.0.1";

/// Serves a request of a type.
pub(super) fn dispatch(context: &mut Context, api: ApiKey, frame: Bytes) -> Result<Reply, Ended> {
    match api {
        ApiKey::ApiVersions => serve_as::<m::ApiVersionsRequest>(context, frame),
        ApiKey::DescribeGroups => serve_as::<m::DescribeGroupsRequest>(context, frame),
        ApiKey::Fetch => serve_as::<m::FetchRequest>(context, frame),
        ApiKey::FindCoordinator => serve_as::<m::FindCoordinatorRequest>(context, frame),
        ApiKey::Heartbeat => serve_as::<m::HeartbeatRequest>(context, frame),
        ApiKey::InitProducerId => serve_as::<m::InitProducerIdRequest>(context, frame),
        ApiKey::JoinGroup => serve_as::<m::JoinGroupRequest>(context, frame),
        ApiKey::LeaveGroup => serve_as::<m::LeaveGroupRequest>(context, frame),
        ApiKey::ListGroups => serve_as::<m::ListGroupsRequest>(context, frame),
        ApiKey::ListOffsets => serve_as::<m::ListOffsetsRequest>(context, frame),
        ApiKey::Metadata => serve_as::<m::MetadataRequest>(context, frame),
        ApiKey::OffsetCommit => serve_as::<m::OffsetCommitRequest>(context, frame),
        ApiKey::OffsetFetch => serve_as::<m::OffsetFetchRequest>(context, frame),
        ApiKey::OffsetForLeaderEpoch => serve_as::<m::OffsetForLeaderEpochRequest>(context, frame),
        ApiKey::Produce => serve_as::<m::ProduceRequest>(context, frame),
        ApiKey::SaslAuthenticate => serve_as::<m::SaslAuthenticateRequest>(context, frame),
        ApiKey::SaslHandshake => serve_as::<m::SaslHandshakeRequest>(context, frame),
        ApiKey::SyncGroup => serve_as::<m::SyncGroupRequest>(context, frame),
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

/// Checks that the client may read a partition of this broker: rights, leader epoch, leadership. The epoch is checked
/// first (`Partition.getLocalLog`). `accepts_followers`: in-sync replicas may be read, too (KIP-392).
fn check_leader(
    context: &Context,
    state: &State,
    topic: &str,
    partition: i32,
    client_epoch: i32,
    accepts_followers: bool,
) -> Result<(), i16> {
    if state.denied_topics.contains(topic) {
        return Err(codes::TOPIC_AUTHORIZATION_FAILED);
    }
    let known = state.partition(topic, partition).ok_or(codes::UNKNOWN_TOPIC_OR_PARTITION)?;
    if client_epoch >= 0 && client_epoch < known.leader_epoch {
        return Err(codes::FENCED_LEADER_EPOCH);
    }
    if client_epoch > known.leader_epoch {
        return Err(codes::UNKNOWN_LEADER_EPOCH);
    }
    let is_readable = accepts_followers && known.isr.contains(&context.broker);
    if known.leader != Some(context.broker) && !is_readable {
        return Err(codes::NOT_LEADER_OR_FOLLOWER);
    }
    Ok(())
}
