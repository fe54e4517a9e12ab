//! Oldest and newest offsets through the `kafka` crate (ListOffsets requests).
//!
//! The crate requests whole topics, leaves partitions without a leader out, and fails all topics for the error of one
//! partition. So the response is compared with the request, and after an error each topic is requested alone. While a
//! leader is down and not replaced, no topic with a partition on that leader has offsets: the crate cannot request
//! single partitions.
//!
//! Invariant: no topic is created. The crate's metadata request has a version without the flag that forbids it, so a
//! request that names a topic that does not exist creates it on a broker with `auto.create.topics.enable`. Therefore
//! all topics are requested, by no name.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::client::{FetchOffset, KafkaClient};

use super::guarded_client::{CallError, GuardedClient};
use crate::broker::{
    BrokerConfig, LogEnds, LogRange, MetadataError, Offset, PartitionId, PartitionInfo, RangeSink, TopicInfo,
    TopicPartition,
};
use crate::supervise::Supervisor;

/// Reads log end offsets with the `kafka` crate.
pub(in crate::broker) struct KafkaRustLogEnds {
    client: GuardedClient,
    request_timeout: Duration,
}

/// The result of a request for the offsets of topics.
#[derive(Default)]
struct TopicOffsets {
    /// Offsets by topic and partition.
    offsets: HashMap<(String, PartitionId), Offset>,
    /// The topics that do not exist.
    absent: Vec<String>,
}

impl TopicOffsets {
    fn extend(&mut self, more: TopicOffsets) {
        self.offsets.extend(more.offsets);
        self.absent.extend(more.absent);
    }

    fn of(&self, partition: &TopicPartition) -> Result<Offset, MetadataError> {
        let topic = partition.topic.to_string();
        if self.absent.contains(&topic) {
            return Err(MetadataError::UnknownTopic(topic));
        }
        let missing = || MetadataError::Partition(format!("{partition} does not exist or has no leader"));
        self.offsets.get(&(topic, partition.partition)).copied().ok_or_else(missing)
    }
}

impl KafkaRustLogEnds {
    /// Makes the reader; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, supervisor: &Supervisor) -> Self {
        let client = GuardedClient::new(broker, "kafka-ends", supervisor.stop().clone());
        KafkaRustLogEnds { client, request_timeout: broker.request_timeout }
    }

    /// Returns the oldest or newest offset of each partition of these topics.
    fn offsets(&mut self, topics: Vec<String>, end: FetchOffset, wait: Duration) -> Result<TopicOffsets, CallError> {
        self.client.call(wait, move |client| {
            // Leaders change, so each call looks up the leaders first.
            client.load_metadata_all()?;
            let (known, absent): (Vec<_>, Vec<_>) =
                topics.into_iter().partition(|topic| client.topics().contains(topic));
            let found = if known.is_empty() { HashMap::new() } else { client.fetch_offsets(&known, end)? };
            let each = |(topic, offsets): (String, Vec<kafka::client::PartitionOffset>)| {
                offsets.into_iter().map(move |found| ((topic.clone(), found.partition), found.offset))
            };
            // The crate returns the offset -1 for a partition whose response has no offset.
            let offsets = found.into_iter().flat_map(each).filter(|(_, offset)| *offset >= 0).collect();
            Ok(TopicOffsets { offsets, absent })
        })
    }

    /// Returns the oldest or newest offset of each of `partitions`.
    fn ends(
        &mut self,
        partitions: &[TopicPartition],
        end: FetchOffset,
        deadline: Instant,
    ) -> Vec<Result<Offset, MetadataError>> {
        let topics: BTreeSet<&str> = partitions.iter().map(|partition| &*partition.topic).collect();
        let topics: Vec<String> = topics.into_iter().map(str::to_owned).collect();
        if topics.is_empty() {
            return Vec::new();
        }
        let mut failed: HashMap<String, CallError> = HashMap::new();
        let left = || deadline.saturating_duration_since(Instant::now());
        let found = match self.offsets(topics.clone(), end, left()) {
            Ok(found) => found,
            Err(_) => {
                let mut found = TopicOffsets::default();
                for topic in topics {
                    match self.offsets(vec![topic.clone()], end, left()) {
                        Ok(more) => found.extend(more),
                        Err(error) => drop(failed.insert(topic, error)),
                    }
                }
                found
            }
        };
        let result = |partition: &TopicPartition| match failed.get(&*partition.topic) {
            Some(CallError::Code(code)) => Err(MetadataError::Partition(format!("{partition}: {code:?}"))),
            Some(error) => Err(MetadataError::Unreachable(error.in_words())),
            None => found.of(partition),
        };
        partitions.iter().map(result).collect()
    }
}

impl LogEnds for KafkaRustLogEnds {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        let found = self.topics(&[topic.into()], Instant::now() + self.request_timeout).pop();
        found.unwrap_or_else(|| Err(MetadataError::UnknownTopic(topic.to_owned()))).map(|found| found.partitions)
    }

    fn topics(&mut self, topics: &[Arc<str>], deadline: Instant) -> Vec<Result<TopicInfo, MetadataError>> {
        let names: Vec<Arc<str>> = topics.to_vec();
        let wait = deadline.saturating_duration_since(Instant::now());
        let found = self.client.call(wait, move |client| {
            client.load_metadata_all()?;
            Ok(names.iter().map(|name| partition_infos(client, name)).collect::<Vec<_>>())
        });
        match found {
            Ok(found) => found.into_iter().zip(topics).map(|(found, name)| topic_info(name, found)).collect(),
            Err(error) => topics.iter().map(|_| Err(MetadataError::Unreachable(error.in_words()))).collect(),
        }
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        self.ends(partitions, FetchOffset::Latest, Instant::now() + self.request_timeout)
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        let deadline = Instant::now() + self.request_timeout;
        let missing = || Err(MetadataError::Partition(format!("{partition} is not in the response")));
        self.range_of_all(std::slice::from_ref(partition), deadline).pop().unwrap_or_else(missing)
    }

    fn ranges(&mut self, partitions: &[TopicPartition], deadline: Instant, found: &mut RangeSink<'_>) {
        // The oldest first: if retention moves it meanwhile, the range is too long rather than too short.
        let oldest = self.ends(partitions, FetchOffset::Earliest, deadline);
        let newest = self.ends(partitions, FetchOffset::Latest, deadline);
        for (index, (oldest, newest)) in oldest.into_iter().zip(newest).enumerate() {
            let range = oldest.and_then(|oldest| Ok((oldest, newest?)));
            found(index, range.map(|(oldest, newest)| LogRange { oldest, newest, stable: newest }));
        }
    }
}

fn partition_infos(client: &KafkaClient, topic: &str) -> Vec<PartitionInfo> {
    let info = |partition: kafka::client::metadata::Partition<'_>| PartitionInfo {
        partition: partition.id(),
        leader: partition.leader().map(|leader| leader.id()),
    };
    let mut partitions: Vec<_> =
        client.topics().partitions(topic).map(|found| found.iter().map(info).collect()).unwrap_or_default();
    partitions.sort_unstable_by_key(|info: &PartitionInfo| info.partition);
    partitions
}

fn topic_info(topic: &str, partitions: Vec<PartitionInfo>) -> Result<TopicInfo, MetadataError> {
    match partitions.is_empty() {
        true => Err(MetadataError::UnknownTopic(topic.to_owned())),
        false => Ok(TopicInfo { id: None, partitions }),
    }
}
