//! A Kafka cluster in memory that speaks the wire protocol on loopback sockets, for tests of the client.
//!
//! ```ignore
//! let cluster = TestCluster::start(3);
//! cluster.create_topic("t", 4);
//! cluster.fault(Scope::api(ApiKey::Produce).partition("t", 0), Fault::error(codes::NOT_LEADER_OR_FOLLOWER));
//! let client = connect(cluster.bootstrap());
//! assert_eq!(cluster.log("t", 0), []);
//! ```
//!
//! - [`log`], [`batch`], [`batch_spec`], [`producer_state`]: a partition as its leader keeps it; no sockets, no clock.
//! - [`builder`], [`topic_spec`], [`cluster`], `controls`: the handle of a test: topics, leaders, stopped brokers,
//!   faults, counters.
//! - [`group`]: a consumer group as its coordinator keeps it.
//! - [`fault`], [`random`], `script`: the faults of the brokers.
//! - [`hostile`]: peers that are no Kafka brokers.
//! - [`release`]: the request versions of Kafka releases.
//! - `state`, `server`, `requests`, `call`, `handlers`: the brokers.
//!
//! The codecs are those of the crate `kafka-protocol`, so that an error in the client's own is found. This module uses
//! nothing of the client, and no path from the crate's root, so that other test binaries can include it by its path.
//!
//! Invariants: all threads end when the cluster is dropped, also after a panic of the test; a panic of a broker's
//! thread fails the test.

pub mod batch;
pub mod batch_spec;
pub mod builder;
mod call;
pub mod cluster;
pub mod codes;
mod controls;
mod decompress;
pub mod fault;
mod fetch_session;
pub mod group;
mod handlers;
pub mod hostile;
pub mod log;
pub mod producer_state;
pub mod random;
pub mod release;
mod requests;
mod script;
mod server;
mod state;
pub mod topic_spec;

pub use batch::StoredRecord;
pub use batch_spec::BatchSpec;
pub use builder::ClusterBuilder;
pub use cluster::TestCluster;
pub use fault::{Fault, ResponseFault, Scope};
pub use hostile::{HostilePeer, Hostility};
pub use kafka_protocol::messages::ApiKey;
pub use random::Rates;
pub use release::Release;
pub use topic_spec::TopicSpec;
