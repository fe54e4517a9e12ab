//! Reads properties of topics other than their partitions: their configuration, and whether the client may write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::error_code;
use super::metadata::MetadataTopics;
use super::metadata_client::{ClientError, MAX_TOPIC_NAME_BYTES, MetadataClient, MetadataOptions, NO_CREATION};
use super::protocol::describe_configs::DescribeConfigsRequest;

/// Names and values of configs, by topic.
pub type ConfigsByTopic = HashMap<Arc<str>, HashMap<String, String>>;

impl MetadataClient {
    /// Returns these configs of the topics that a broker describes. Without the right DescribeConfigs on a topic the
    /// result lacks the topic.
    pub fn topic_configs(
        &mut self,
        topics: &[Arc<str>],
        names: &[&str],
        deadline: Instant,
    ) -> Result<ConfigsByTopic, ClientError> {
        let topics = with_legal_length(topics);
        let request = DescribeConfigsRequest { topics: &topics, names };
        let response = self.on_any_broker("request of topic configs", deadline, |broker, until| {
            let response = broker.call(&request, until)?;
            broker.throttle(response.throttle_time_ms);
            Ok(Ok(response))
        })?;
        let described = response.topics.into_iter().filter(|topic| topic.error_code == error_code::NONE);
        Ok(described.map(|topic| (Arc::from(topic.topic), topic.configs.into_iter().collect())).collect())
    }

    /// Returns whether the client may write to each of the topics, as far as a broker states it. The request creates no
    /// topic.
    pub fn write_rights(
        &mut self,
        topics: &[Arc<str>],
        deadline: Instant,
    ) -> Result<HashMap<Arc<str>, bool>, ClientError> {
        let names = MetadataTopics::Names(with_legal_length(topics));
        let options = MetadataOptions { include_rights: true, ..NO_CREATION };
        let response = self.request_topics(names, options, deadline)?;
        Ok(response.topics.into_iter().filter_map(|topic| Some((topic.name, topic.may_write?))).collect())
    }
}

/// Returns the names that the protocol has room for; a broker knows no other topic.
fn with_legal_length(topics: &[Arc<str>]) -> Vec<Arc<str>> {
    topics.iter().filter(|topic| topic.len() <= MAX_TOPIC_NAME_BYTES).cloned().collect()
}
