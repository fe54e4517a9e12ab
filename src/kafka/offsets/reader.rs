//! The offset reader: its connections and caches, and the requests for metadata.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::coordinators::Coordinators;
use super::error::{OffsetError, missing_topic, topic_error};
use super::leaders::Leaders;
use crate::kafka::broker_pool::{BrokerPool, new_backoff, sleep_until};
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::Connector;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, BrokerInfo, MetadataTopics, TopicMetadata};
use crate::kafka::metadata_client::MetadataClient;

/// Requests offsets and groups from the brokers of a cluster. Used by one thread.
pub struct OffsetReader {
    pub(super) metadata: MetadataClient,
    pub(super) pool: BrokerPool,
    pub(super) leaders: Leaders,
    pub(super) coordinators: Coordinators,
}

impl OffsetReader {
    /// Makes a reader without connections. `bootstrap`: the addresses to begin with.
    pub fn new(connector: Connector, bootstrap: Vec<BrokerAddress>) -> Self {
        OffsetReader {
            metadata: MetadataClient::new(connector.clone(), bootstrap),
            pool: BrokerPool::new(connector),
            leaders: Leaders::default(),
            coordinators: Coordinators::default(),
        }
    }

    /// Returns the brokers of the last metadata response, by id.
    pub fn brokers(&self) -> &HashMap<BrokerId, BrokerInfo> {
        self.metadata.brokers()
    }

    /// Returns each topic, with its partitions in the order of their numbers, from one look-up that is not retried. The
    /// leaders found are used from now on.
    pub fn topics(&mut self, topics: &[Arc<str>], deadline: Instant) -> Vec<Result<TopicMetadata, OffsetError>> {
        let response = match self.metadata.request(MetadataTopics::Names(topics.to_vec()), deadline) {
            Ok(response) => response,
            Err(failure) => {
                let failure = OffsetError::from(failure);
                return topics.iter().map(|_| Err(failure.clone())).collect();
            }
        };
        let now = Instant::now();
        let mut found = HashMap::new();
        for mut topic in response.topics {
            topic.partitions.sort_unstable_by_key(|partition| partition.partition);
            self.leaders.insert(&topic, now);
            found.insert(Arc::clone(&topic.name), topic);
        }
        let result = |name: &Arc<str>| match found.get(name) {
            Some(topic) if topic.error_code == error_code::NONE => Ok(topic.clone()),
            Some(topic) => Err(topic_error(name, topic.error_code)),
            None => Err(missing_topic(name)),
        };
        topics.iter().map(result).collect()
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
