//! Oldest and newest offsets through the `kafka` crate (ListOffsets requests).
//!
//! The crate requests whole topics, leaves partitions without a leader out, and fails all topics for the error of one
//! partition. So the response is compared with the request, and after an error each topic is requested alone. While a
//! leader is down and not replaced, no topic with a partition on that leader has offsets: the crate cannot request
//! single partitions.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use kafka::client::FetchOffset;

use super::guarded_client::{CallError, GuardedClient};
use crate::broker::{
    BrokerConfig, LogEnds, LogRange, MetadataError, Offset, PartitionId, PartitionInfo, TopicPartition,
};
use crate::supervise::Supervisor;

/// Reads log end offsets with the `kafka` crate.
pub(in crate::broker) struct KafkaRustLogEnds {
    client: GuardedClient,
    request_timeout: Duration,
}

/// Offsets by topic and partition.
type OffsetsByPartition = HashMap<(String, PartitionId), Offset>;

impl KafkaRustLogEnds {
    /// Makes the reader; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, supervisor: &Supervisor) -> Self {
        let client = GuardedClient::new(broker, "kafka-ends", supervisor.stop().clone());
        KafkaRustLogEnds { client, request_timeout: broker.request_timeout }
    }

    /// Returns the oldest or newest offset of each partition of these topics.
    fn offsets(
        &mut self,
        topics: Vec<String>,
        end: FetchOffset,
        wait: Duration,
    ) -> Result<OffsetsByPartition, CallError> {
        self.client.call(wait, move |client| {
            // Leaders change, so each call looks up the leaders first, at the cost of one small request.
            client.load_metadata(&topics)?;
            let found = client.fetch_offsets(&topics, end)?;
            let each = |(topic, offsets): (String, Vec<kafka::client::PartitionOffset>)| {
                offsets.into_iter().map(move |found| ((topic.clone(), found.partition), found.offset))
            };
            // The crate returns the offset -1 for a partition whose response has no offset.
            Ok(found.into_iter().flat_map(each).filter(|(_, offset)| *offset >= 0).collect())
        })
    }
}

impl LogEnds for KafkaRustLogEnds {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        let name = topic.to_owned();
        let found = self.client.call(self.request_timeout, move |client| {
            client.load_metadata(&[&name])?;
            let info = |partition: kafka::client::metadata::Partition<'_>| PartitionInfo {
                partition: partition.id(),
                leader: partition.leader().map(|leader| leader.id()),
            };
            let topics = client.topics();
            Ok(topics.partitions(&name).map(|found| found.iter().map(info).collect::<Vec<_>>()).unwrap_or_default())
        });
        let mut partitions = found.map_err(|error| MetadataError::Unreachable(error.in_words()))?;
        if partitions.is_empty() {
            return Err(MetadataError::UnknownTopic(topic.to_owned()));
        }
        partitions.sort_unstable_by_key(|info| info.partition);
        Ok(partitions)
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        if partitions.is_empty() {
            return Vec::new();
        }
        let deadline = Instant::now() + self.request_timeout;
        let topics: BTreeSet<&str> = partitions.iter().map(|partition| &*partition.topic).collect();
        let topics: Vec<String> = topics.into_iter().map(str::to_owned).collect();
        let mut failed: HashMap<String, CallError> = HashMap::new();
        let found = match self.offsets(topics.clone(), FetchOffset::Latest, self.request_timeout) {
            Ok(found) => found,
            Err(_) => {
                let mut found = OffsetsByPartition::new();
                for topic in topics {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match self.offsets(vec![topic.clone()], FetchOffset::Latest, left) {
                        Ok(more) => found.extend(more),
                        Err(error) => drop(failed.insert(topic, error)),
                    }
                }
                found
            }
        };
        let result = |partition: &TopicPartition| match found.get(&(partition.topic.to_string(), partition.partition)) {
            Some(offset) => Ok(*offset),
            None => Err(match failed.get(&*partition.topic) {
                Some(CallError::Code(code)) => MetadataError::Partition(format!("{partition}: {code:?}")),
                Some(error) => MetadataError::Unreachable(error.in_words()),
                None => MetadataError::Partition(format!("{partition} does not exist or has no leader")),
            }),
        };
        partitions.iter().map(result).collect()
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        let mut end = |end| {
            let found = self.offsets(vec![partition.topic.to_string()], end, self.request_timeout);
            let found = found.map_err(|error| match error {
                CallError::Code(code) => MetadataError::Partition(format!("{partition}: {code:?}")),
                error => MetadataError::Unreachable(error.in_words()),
            })?;
            found
                .get(&(partition.topic.to_string(), partition.partition))
                .copied()
                .ok_or_else(|| MetadataError::Partition(format!("{partition} does not exist or has no leader")))
        };
        let (oldest, newest) = (end(FetchOffset::Earliest)?, end(FetchOffset::Latest)?);
        Ok(LogRange { oldest, newest, stable: newest })
    }
}
