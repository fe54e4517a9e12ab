//! The partition leaders, cached.
//!
//! The metadata of a topic is requested again when it is too old, when a partition has no known leader, and before each
//! retry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{OffsetError, OffsetErrorKind, missing_topic, shown, topic_error};
use super::rounds::{Attempt, Route, Router};
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, BrokerInfo, MetadataTopics, TopicMetadata};
use crate::kafka::metadata_client::MetadataClient;

/// Longest time for which the metadata of a topic is used.
const MAX_METADATA_AGE: Duration = Duration::from_secs(60);

/// A partition: topic and number.
pub(super) type Partition = (Arc<str>, i32);

/// The partition leaders of the topics that were used lately.
#[derive(Default)]
pub(super) struct Leaders {
    topics: HashMap<Arc<str>, CachedTopic>,
}

struct CachedTopic {
    received: Instant,
    error_code: i16,
    /// Leader and leader epoch by partition.
    partitions: HashMap<i32, (Option<BrokerId>, i32)>,
}

impl Leaders {
    /// Keeps what a metadata response said about a topic.
    pub(super) fn insert(&mut self, topic: &TopicMetadata, received: Instant) {
        let partitions = topic.partitions.iter();
        let partitions = partitions.map(|partition| (partition.partition, (partition.leader, partition.leader_epoch)));
        let cached = CachedTopic { received, error_code: topic.error_code, partitions: partitions.collect() };
        self.topics.insert(Arc::clone(&topic.name), cached);
    }

    /// Returns the leader of a partition and its epoch.
    fn leader<'a>(
        &self,
        (topic, partition): &Partition,
        brokers: &'a HashMap<BrokerId, BrokerInfo>,
    ) -> Result<(&'a BrokerInfo, i32), OffsetError> {
        let cached = self.topics.get(topic).ok_or_else(|| missing_topic(topic))?;
        if cached.error_code != error_code::NONE {
            return Err(topic_error(topic, cached.error_code));
        }
        let failed = |kind, text: String| OffsetError::new(kind, format!("{}-{partition} {text}", shown(topic)));
        let (leader, epoch) = cached
            .partitions
            .get(partition)
            .ok_or_else(|| failed(OffsetErrorKind::UnknownPartition, "does not exist".into()))?;
        let leader = leader.ok_or_else(|| failed(OffsetErrorKind::NoLeader, "has no leader".into()))?;
        match brokers.get(&leader) {
            Some(broker) => Ok((broker, *epoch)),
            None => Err(failed(OffsetErrorKind::NoLeader, format!("is led by broker {leader}, which is not up"))),
        }
    }
}

/// Routes partitions to their leaders; the value of a route is the leader epoch.
pub(super) struct LeaderRouter<'a> {
    metadata: &'a mut MetadataClient,
    leaders: &'a mut Leaders,
    items: &'a [Partition],
}

impl<'a> LeaderRouter<'a> {
    /// Routes `items`, by index.
    pub(super) fn new(metadata: &'a mut MetadataClient, leaders: &'a mut Leaders, items: &'a [Partition]) -> Self {
        LeaderRouter { metadata, leaders, items }
    }
}

impl<T> Router<i32, T> for LeaderRouter<'_> {
    fn route(&mut self, items: &[usize], is_retry: bool, until: Instant) -> Vec<(usize, Route<i32, T>)> {
        self.leaders.topics.retain(|_, topic| topic.received.elapsed() < MAX_METADATA_AGE);
        let is_stale = |partition| is_retry || self.leaders.leader(partition, self.metadata.brokers()).is_err();
        let stale = items.iter().map(|index| &self.items[*index]).filter(|partition| is_stale(partition));
        let mut names: Vec<Arc<str>> = stale.map(|(topic, _)| Arc::clone(topic)).collect();
        names.sort_unstable();
        names.dedup();
        let mut failure = None;
        if !names.is_empty() {
            match self.metadata.request(MetadataTopics::Names(names.clone()), until) {
                Ok(response) => {
                    // What the broker does not return must not be taken from an older response.
                    self.leaders.topics.retain(|name, _| names.binary_search(name).is_err());
                    let received = Instant::now();
                    response.topics.iter().for_each(|topic| self.leaders.insert(topic, received));
                }
                Err(cause) => failure = Some(OffsetError::from(cause)),
            }
        }
        let route = |&index: &usize| {
            let route = match self.leaders.leader(&self.items[index], self.metadata.brokers()) {
                Ok((broker, epoch)) => Route::Broker(broker.id, broker.address.clone(), epoch),
                // What an older response says may have changed.
                Err(cause) => Route::Failed(
                    failure.clone().map_or_else(|| Attempt::failed(cause), |failure| Attempt::Retry(Err(failure))),
                ),
            };
            (index, route)
        };
        items.iter().map(route).collect()
    }
}
