//! First offsets, ends and offsets of times: ListOffsets to the leader of each partition.
//!
//! Leaders are cached. The metadata of a topic is requested again when it is too old, when a partition has no known
//! leader, and before each retry.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rounds::{Attempt, Route, Router, run};
use super::{OffsetError, OffsetErrorKind, OffsetReader, missing_topic, shown, topic_error, unique};
use crate::kafka::broker_pool::PooledBroker;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, BrokerInfo, MetadataTopics, TopicMetadata};
use crate::kafka::metadata_client::MetadataClient;
use crate::kafka::protocol::list_offsets::{EARLIEST, LATEST, ListOffsetsPartition, ListOffsetsRequest, ListedOffset};

/// Longest time for which the metadata of a topic is used.
const MAX_METADATA_AGE: Duration = Duration::from_secs(60);
/// Upper bound of the partitions of a request, which bounds its size and that of the response.
const MAX_PARTITIONS: usize = 2_000;

/// The offset to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first offset of the partition.
    Earliest,
    /// The end of the partition (high watermark): the offset after the last message that all in-sync replicas have.
    Latest,
    /// The last stable offset: the end of what a consumer with `isolation.level=read_committed` reads.
    LatestCommitted,
    /// The first message with this timestamp or a later one, in milliseconds since 1970.
    Timestamp(i64),
}

/// A partition: topic and number.
type Partition = (Arc<str>, i32);

impl OffsetReader {
    /// Returns the requested offset of each partition, in the order of `partitions`. Partitions without a leader, or
    /// whose leader does not answer, are retried until `deadline`; the call returns when each partition has a result.
    pub fn log_ends(
        &mut self,
        partitions: &[Partition],
        at: OffsetSpec,
        deadline: Instant,
    ) -> Vec<Result<i64, OffsetError>> {
        let (partitions, order) = unique(partitions);
        let mut router = LeaderRouter { metadata: &mut self.metadata, leaders: &mut self.leaders, items: &partitions };
        let results = run(&mut self.pool, partitions.len(), deadline, &mut router, |broker, items, until| {
            items.chunks(MAX_PARTITIONS).flat_map(|items| list_offsets(broker, &partitions, items, at, until)).collect()
        });
        order.into_iter().map(|index| results[index].clone()).collect()
    }
}

/// Sends one request; returns a result for each item: index in `partitions` and leader epoch.
fn list_offsets(
    broker: &mut PooledBroker,
    partitions: &[Partition],
    items: &[(usize, i32)],
    at: OffsetSpec,
    until: Instant,
) -> Vec<(usize, Attempt<i64>)> {
    let timestamp = match at {
        OffsetSpec::Earliest => EARLIEST,
        OffsetSpec::Latest | OffsetSpec::LatestCommitted => LATEST,
        // Negative timestamps have other meanings.
        OffsetSpec::Timestamp(timestamp) => timestamp.max(0),
    };
    let mut topics: BTreeMap<&Arc<str>, Vec<ListOffsetsPartition>> = BTreeMap::new();
    for &(index, leader_epoch) in items {
        let (topic, partition) = &partitions[index];
        let partition = ListOffsetsPartition { partition: *partition, leader_epoch, timestamp };
        topics.entry(topic).or_default().push(partition);
    }
    let topics: Vec<_> = topics.into_iter().map(|(topic, partitions)| (Arc::clone(topic), partitions)).collect();
    let request = ListOffsetsRequest { topics: &topics, read_committed: at == OffsetSpec::LatestCommitted };
    let response = match broker.call(&request, until) {
        Ok(response) => response,
        Err(failure) => {
            let failure = OffsetError::from(failure);
            return items.iter().map(|(index, _)| (*index, Attempt::failed(failure.clone()))).collect();
        }
    };
    broker.throttle(response.throttle_time_ms);
    let offsets = response.topics.iter().flat_map(|(topic, offsets)| offsets.iter().map(move |offset| (topic, offset)));
    let offsets: HashMap<(&str, i32), &ListedOffset> =
        offsets.map(|(topic, offset)| ((&**topic, offset.partition), offset)).collect();
    let result = |&(index, _): &(usize, i32)| {
        let (topic, partition) = &partitions[index];
        let attempt = match offsets.get(&(&**topic, *partition)) {
            Some(offset) => listed_offset(topic, offset, at),
            None => {
                let reason = format!("broker {}: the response lacks {topic}-{partition}", broker.address());
                Attempt::Retry(Err(OffsetError::new(OffsetErrorKind::Unreachable, reason)))
            }
        };
        (index, attempt)
    };
    items.iter().map(result).collect()
}

fn listed_offset(topic: &str, listed: &ListedOffset, at: OffsetSpec) -> Attempt<i64> {
    let partition = listed.partition;
    match (listed.error_code, at) {
        (error_code::NONE, _) if listed.offset >= 0 => Attempt::Final(Ok(listed.offset)),
        (error_code::NONE, OffsetSpec::Timestamp(timestamp)) => {
            let reason = format!("{topic}-{partition} has no message at or after timestamp {timestamp}");
            Attempt::failed(OffsetError::new(OffsetErrorKind::NoMessage, reason))
        }
        (error_code::NONE, _) => {
            let reason = format!("the leader of {topic}-{partition} returned offset {}", listed.offset);
            Attempt::Retry(Err(OffsetError::new(OffsetErrorKind::NoLeader, reason)))
        }
        (code, _) => Attempt::failed(OffsetError::refused(&format!("{topic}-{partition}"), code)),
    }
}

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
    fn insert(&mut self, topic: TopicMetadata, received: Instant) {
        let partitions = topic.partitions.into_iter();
        let partitions = partitions.map(|partition| (partition.partition, (partition.leader, partition.leader_epoch)));
        let cached = CachedTopic { received, error_code: topic.error_code, partitions: partitions.collect() };
        self.topics.insert(topic.name, cached);
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
struct LeaderRouter<'a> {
    metadata: &'a mut MetadataClient,
    leaders: &'a mut Leaders,
    items: &'a [Partition],
}

impl<T> Router<i32, T> for LeaderRouter<'_> {
    fn route(&mut self, items: &[usize], is_retry: bool, until: Instant) -> Vec<(usize, Route<i32, T>)> {
        self.leaders.topics.retain(|_, topic| topic.received.elapsed() < MAX_METADATA_AGE);
        let is_doubtful = |partition| is_retry || self.leaders.leader(partition, self.metadata.brokers()).is_err();
        let doubtful = items.iter().map(|index| &self.items[*index]).filter(|partition| is_doubtful(partition));
        let mut names: Vec<Arc<str>> = doubtful.map(|(topic, _)| Arc::clone(topic)).collect();
        names.sort_unstable();
        names.dedup();
        let mut failure = None;
        if !names.is_empty() {
            match self.metadata.request(MetadataTopics::Names(names.clone()), until) {
                Ok(response) => {
                    // What the broker does not return must not be taken from an older response.
                    self.leaders.topics.retain(|name, _| names.binary_search(name).is_err());
                    let received = Instant::now();
                    response.topics.into_iter().for_each(|topic| self.leaders.insert(topic, received));
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
