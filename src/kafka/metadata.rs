//! The metadata of a cluster as a broker returned it: brokers, topics, partitions and their leaders. No IO.
//!
//! [`super::protocol::metadata`] encodes and decodes them; [`super::metadata_client`] requests them.

use std::sync::Arc;

use super::config::BrokerAddress;

/// Broker id (`node_id` in the protocol).
pub type BrokerId = i32;

/// Id of a topic (KIP-516): a topic that is deleted and created again has another id.
pub type TopicId = [u8; 16];

/// A request for the brokers of the cluster and for topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    /// The topics that the response describes.
    pub topics: MetadataTopics,
    /// Whether the broker may create the topics that do not exist, if its `auto.create.topics.enable` is set.
    pub allow_auto_create: bool,
    /// Whether the response states the operations that the client may carry out on the topics (brokers from 2.3 on).
    pub include_rights: bool,
}

/// The topics of a metadata request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataTopics {
    /// All topics that the client may describe.
    All,
    /// No topics: the response has only the brokers.
    None,
    /// The topics with these names. Each name has at most 32,767 bytes, the limit of the protocol.
    Names(Vec<Arc<str>>),
}

/// The response to a [`MetadataRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataResponse {
    /// Time in milliseconds for which the client must send no request, because it exceeded a quota.
    pub throttle_time_ms: i32,
    /// The brokers that are up, in the order of the response. A broker that is just starting may return none.
    pub brokers: Vec<BrokerInfo>,
    /// Id of the cluster.
    pub cluster_id: Option<String>,
    /// The controller. With KRaft this is a random broker, which forwards requests to the controller.
    pub controller: Option<BrokerId>,
    /// The topics, in the order of the response.
    pub topics: Vec<TopicMetadata>,
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Id of the broker.
    pub id: BrokerId,
    /// Advertised address of the listener that the client used. A port outside of 1 to 65535 is returned as 0.
    pub address: BrokerAddress,
    /// Rack of the broker (`broker.rack`).
    pub rack: Option<String>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Name of the topic.
    pub name: Arc<str>,
    /// Id of the topic (Kafka 2.8 and later).
    pub id: Option<TopicId>,
    /// Error code of the protocol, see [`super::error_code`]. With an error there are no partitions.
    pub error_code: i16,
    /// Whether the client may write to the topic; `None` unless the request has `include_rights` and the broker knows
    /// it.
    pub may_write: Option<bool>,
    /// The partitions, in the order of the response, which is not that of their numbers.
    pub partitions: Vec<PartitionMetadata>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Number of the partition.
    pub partition: i32,
    /// Error code of the protocol. With REPLICA_NOT_AVAILABLE there can be a leader.
    pub error_code: i16,
    /// The leader; `None` if the partition has none at present.
    pub leader: Option<BrokerId>,
    /// Epoch of the leader, which rises with each election; -1 if unknown (brokers before Kafka 2.1).
    pub leader_epoch: i32,
    /// The replicas; the first is the preferred leader.
    pub replicas: Vec<BrokerId>,
    /// The replicas that are in sync with the leader.
    pub in_sync: Vec<BrokerId>,
}
