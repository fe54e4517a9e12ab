//! The producer against the cluster in memory, over sockets.

mod client;
mod closing;
mod deadlines;
mod faults;
mod forgotten;
mod leaders;
mod levels;
mod producer_ids;
mod refusals;
mod scripted;
mod soak;

use std::time::{Duration, Instant};

use client::{LONG, Message, NO_METADATA, Settings, TestClient, brief, later};

use super::{AcksLevel, Outcome, Stored};
use crate::kafka::config::SaslConfig;
use crate::kafka::error_code as code;
use crate::kafka::testkit::{ApiKey, Fault, Release, ResponseFault, Scope, TestCluster, TopicSpec};

/// The levels with a response.
const CONFIRMED: [AcksLevel; 2] = [AcksLevel::Leader, AcksLevel::All];

fn produce() -> Scope {
    Scope::api(ApiKey::Produce)
}

fn values(cluster: &TestCluster, topic: &str, partition: i32) -> Vec<String> {
    cluster.log(topic, partition).iter().map(|record| record.value_text()).collect()
}

/// Producer ids and epochs in a log.
fn ids_and_epochs(cluster: &TestCluster, topic: &str, partition: i32) -> Vec<(i64, i16)> {
    let mut ids: Vec<_> =
        cluster.log(topic, partition).iter().map(|record| (record.producer_id, record.producer_epoch)).collect();
    ids.dedup();
    ids
}
