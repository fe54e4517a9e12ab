//! Offsets and consumer groups: blocking requests to the brokers that are responsible, all of them at the same time.
//!
//! - [`rounds`]: sends the requests of many items to their brokers in parallel, and retries until the deadline.
//! - [`log_ends`]: first offsets, ends and offsets of times, by partition leader (ListOffsets).
//! - [`groups`]: committed offsets, commits, lists and descriptions of groups, by coordinator.
//!
//! Invariants: each partition and each group fails by itself, with a reason; a broker that hangs delays only its own
//! partitions and groups, and the whole call at most until its deadline; nothing creates a topic.

mod groups;
mod log_ends;
mod rounds;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use super::broker_pool::{BrokerPool, new_backoff, sleep_until};
use super::config::BrokerAddress;
use super::connection::{ConnectionError, ConnectionErrorKind, Connector};
use super::error_code;
use super::metadata::{BrokerId, BrokerInfo, MetadataTopics, TopicMetadata};
use super::metadata_client::{ClientError, MetadataClient};
pub use super::protocol::describe_groups::{DescribedGroup, GroupMember};
pub use super::protocol::list_groups::ListedGroup;
pub use super::protocol::offset_commit::GroupMemberId;
pub use super::protocol::offset_fetch::{FetchedOffset, TopicOffsets};
pub use groups::{GroupList, GroupRequest, OffsetToCommit};
pub use log_ends::OffsetSpec;

/// Why the request for one partition or one group failed. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct OffsetError {
    /// The kind of failure.
    pub kind: OffsetErrorKind,
    /// What happened, as an error text.
    pub reason: Arc<str>,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetErrorKind {
    /// The topic does not exist.
    UnknownTopic,
    /// The topic does not have the partition.
    UnknownPartition,
    /// The partition had no leader until the deadline.
    NoLeader,
    /// The partition has no message at or after the requested time.
    NoMessage,
    /// No broker that could answer was reached, or answered, before the deadline.
    Unreachable,
    /// A broker refused the credentials, or does not support the request: a retry needs another configuration.
    Unusable,
    /// A broker answered with this error code; if the code is retriable, until the deadline.
    Refused(i16),
}

impl OffsetError {
    fn new(kind: OffsetErrorKind, reason: impl Into<Arc<str>>) -> Self {
        OffsetError { kind, reason: reason.into() }
    }

    /// An error code of a broker; `what` names the partition or the group.
    fn refused(what: &str, code: i16) -> Self {
        OffsetError::new(OffsetErrorKind::Refused(code), format!("{what}: {}", error_code::name(code)))
    }

    /// Whether another attempt may succeed without another configuration.
    fn is_transient(&self) -> bool {
        match self.kind {
            OffsetErrorKind::NoLeader | OffsetErrorKind::Unreachable => true,
            OffsetErrorKind::Refused(code) => error_code::is_retriable(code),
            _ => false,
        }
    }
}

impl From<ConnectionError> for OffsetError {
    fn from(failure: ConnectionError) -> Self {
        let kind = match failure.kind {
            ConnectionErrorKind::Denied | ConnectionErrorKind::Unsupported => OffsetErrorKind::Unusable,
            _ => OffsetErrorKind::Unreachable,
        };
        OffsetError::new(kind, failure.to_string())
    }
}

impl From<ClientError> for OffsetError {
    fn from(failure: ClientError) -> Self {
        let kind = match failure.error_code {
            Some(code) => OffsetErrorKind::Refused(code),
            None if failure.is_permanent => OffsetErrorKind::Unusable,
            None => OffsetErrorKind::Unreachable,
        };
        OffsetError::new(kind, failure.reason)
    }
}

/// Requests offsets and groups from the brokers of a cluster. Used by one thread.
pub struct OffsetReader {
    metadata: MetadataClient,
    pool: BrokerPool,
    leaders: log_ends::Leaders,
    coordinators: groups::Coordinators,
}

impl OffsetReader {
    /// Makes a reader without connections. `bootstrap`: the addresses to begin with.
    pub fn new(connector: Connector, bootstrap: Vec<BrokerAddress>) -> Self {
        OffsetReader {
            metadata: MetadataClient::new(connector.clone(), bootstrap),
            pool: BrokerPool::new(connector),
            leaders: log_ends::Leaders::default(),
            coordinators: groups::Coordinators::default(),
        }
    }

    /// Returns the brokers of the last metadata response, by id.
    pub fn brokers(&self) -> &HashMap<BrokerId, BrokerInfo> {
        self.metadata.brokers()
    }

    /// Returns a topic, with its partitions in the order of their numbers. Retries while the topic has a transient
    /// error, at most until `deadline`; an unknown topic fails at once.
    pub fn partitions(&mut self, topic: &Arc<str>, deadline: Instant) -> Result<TopicMetadata, OffsetError> {
        let mut backoff = new_backoff();
        loop {
            let response = self.metadata.request(MetadataTopics::Names(vec![Arc::clone(topic)]), deadline)?;
            let failure = match response.topics.into_iter().next() {
                Some(mut found) if found.error_code == error_code::NONE => {
                    found.partitions.sort_unstable_by_key(|partition| partition.partition);
                    return Ok(found);
                }
                Some(found) => topic_error(topic, found.error_code),
                None => missing_topic(topic),
            };
            let retry_at = Instant::now() + backoff.next();
            if !failure.is_transient() || retry_at >= deadline {
                return Err(failure);
            }
            sleep_until(retry_at, deadline);
        }
    }
}

/// The error of a topic whose metadata has this error code.
fn topic_error(topic: &str, code: i16) -> OffsetError {
    let topic = shown(topic);
    match code {
        error_code::UNKNOWN_TOPIC_OR_PARTITION => {
            OffsetError::new(OffsetErrorKind::UnknownTopic, format!("topic \"{topic}\" does not exist"))
        }
        code => OffsetError::refused(&format!("topic \"{topic}\""), code),
    }
}

/// The error of a topic that is not in the metadata response.
fn missing_topic(topic: &str) -> OffsetError {
    let reason = format!("the metadata response lacks topic \"{}\"", shown(topic));
    OffsetError::new(OffsetErrorKind::Unreachable, reason)
}

/// Returns a name for an error text, which must not grow with a name that is too long.
fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(super::metadata_client::MAX_TOPIC_NAME_BYTES)]
}

/// Returns the different keys, and for each key its position among them.
fn unique<K: Clone + Eq + Hash>(keys: &[K]) -> (Vec<K>, Vec<usize>) {
    let mut positions = HashMap::with_capacity(keys.len());
    let mut different = Vec::with_capacity(keys.len());
    let order = keys.iter().map(|key| {
        *positions.entry(key).or_insert_with(|| {
            different.push(key.clone());
            different.len() - 1
        })
    });
    let order = order.collect();
    (different, order)
}

#[cfg(test)]
mod tests;
