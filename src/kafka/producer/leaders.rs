//! The leader of each partition, according to the latest metadata.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kafka::config::BrokerAddress;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataResponse, PartitionMetadata, TopicId, TopicMetadata};
use crate::kafka::produce::NodeAddress;

/// A leader with an older epoch is accepted if all responses have named it for this long. Brokers without topic ids
/// (before 2.8) do not show that a topic was recreated, and its epochs begin again.
const DISBELIEF_TIME: Duration = Duration::from_secs(5);

/// A partition whose leader a Produce response names: topic, partition, and the leader with its epoch.
pub(super) type LeaderHint = (Arc<str>, i32, Option<(BrokerId, i32)>);

/// The brokers, and the leaders of the partitions.
#[derive(Default)]
pub(super) struct ClusterView {
    brokers: HashMap<BrokerId, BrokerAddress>,
    topics: HashMap<Arc<str>, TopicLeaders>,
}

struct TopicLeaders {
    id: Option<TopicId>,
    /// Largest batch that the topic accepts, as it is sent; `usize::MAX` if unknown.
    max_batch_bytes: usize,
    /// Whether a message was sent to the topic: only then its leaders matter.
    is_used: bool,
    /// By the number of the partition.
    partitions: Vec<PartitionLeader>,
}

struct PartitionLeader {
    broker: Option<BrokerId>,
    /// Leader epoch; -1 if unknown.
    epoch: i32,
    /// Since when responses have named a leader with an older epoch.
    older_since: Option<Instant>,
}

impl ClusterView {
    pub(super) fn address_of(&self, broker: BrokerId) -> Option<BrokerAddress> {
        self.brokers.get(&broker).cloned()
    }

    /// Returns the leaders of the partitions of a topic, from 0; `None` for a topic without metadata.
    pub(super) fn leaders(&self, topic: &str) -> Option<Vec<Option<BrokerId>>> {
        self.topics.get(topic).map(TopicLeaders::leaders)
    }

    /// Returns the leaders of the partitions of a topic that is going to be sent messages, and its largest batch.
    pub(super) fn use_topic(&mut self, topic: &str) -> Option<(Vec<Option<BrokerId>>, usize)> {
        let topic = self.topics.get_mut(topic)?;
        topic.is_used = true;
        Some((topic.leaders(), topic.max_batch_bytes))
    }

    /// Sets the largest batch that a topic accepts; returns whether it changed.
    pub(super) fn set_max_batch_bytes(&mut self, topic: &str, max_bytes: usize) -> bool {
        let Some(topic) = self.topics.get_mut(topic) else { return false };
        std::mem::replace(&mut topic.max_batch_bytes, max_bytes) != max_bytes
    }

    /// Returns the topics in use with a partition that `broker` leads, or that has no leader.
    pub(super) fn topics_of(&self, broker: BrokerId) -> Vec<Arc<str>> {
        let is_concerned = |topic: &TopicLeaders| {
            topic.is_used && topic.partitions.iter().any(|leader| leader.broker.is_none_or(|id| id == broker))
        };
        self.topics.iter().filter(|(_, topic)| is_concerned(topic)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Takes over a response; returns the topics in it.
    pub(super) fn update(&mut self, metadata: &MetadataResponse, now: Instant) -> Vec<Arc<str>> {
        // A broker that has just started may know no other broker; the addresses known so far stay valid.
        for broker in &metadata.brokers {
            self.brokers.insert(broker.id, broker.address.clone());
        }
        let mut updated = Vec::new();
        for topic in metadata.topics.iter().filter(|topic| topic.error_code == error_code::NONE) {
            self.topics.entry(Arc::clone(&topic.name)).or_default().update(topic, now);
            updated.push(Arc::clone(&topic.name));
        }
        updated
    }

    /// Takes over the leaders that a Produce response names (KIP-951), with their addresses; returns their topics.
    pub(super) fn apply_hints(&mut self, hints: &[LeaderHint], nodes: &[NodeAddress]) -> Vec<Arc<str>> {
        for node in nodes {
            if let Ok(port) = u16::try_from(node.port) {
                self.brokers.insert(node.id, BrokerAddress { host: Arc::from(&*node.host), port });
            }
        }
        let mut updated = Vec::new();
        for (topic, partition, hint) in hints {
            let (Some((leader, epoch)), Some(known)) = (hint, self.topics.get_mut(topic)) else { continue };
            if let Some(known) = known.partition_mut(*partition)
                && *epoch > known.epoch
                && self.brokers.contains_key(leader)
            {
                *known = PartitionLeader { broker: Some(*leader), epoch: *epoch, older_since: None };
                updated.push(Arc::clone(topic));
            }
        }
        updated
    }
}

impl Default for TopicLeaders {
    fn default() -> Self {
        TopicLeaders { id: None, max_batch_bytes: usize::MAX, is_used: false, partitions: Vec::new() }
    }
}

impl TopicLeaders {
    fn leaders(&self) -> Vec<Option<BrokerId>> {
        self.partitions.iter().map(|leader| leader.broker).collect()
    }

    fn partition_mut(&mut self, partition: i32) -> Option<&mut PartitionLeader> {
        self.partitions.get_mut(usize::try_from(partition).ok()?)
    }

    fn update(&mut self, topic: &TopicMetadata, now: Instant) {
        if topic.id.is_some() && self.id.is_some() && topic.id != self.id {
            // Recreated: its epochs begin again.
            self.partitions.clear();
        }
        self.id = topic.id.or(self.id);
        // The numbers of the partitions of a topic have no gap, so a number beyond their count is ignored. A topic does
        // not lose partitions: a response with fewer is from a broker that lags behind the controller.
        let count = self.partitions.len().max(topic.partitions.len());
        self.partitions.resize_with(count, PartitionLeader::unknown);
        for partition in &topic.partitions {
            if let Some(known) = self.partition_mut(partition.partition) {
                known.update(partition, now);
            }
        }
    }
}

impl PartitionLeader {
    fn unknown() -> Self {
        PartitionLeader { broker: None, epoch: -1, older_since: None }
    }

    /// Takes over metadata, except a leader that is older than the known one: a broker that lags behind the controller
    /// still names it.
    fn update(&mut self, metadata: &PartitionMetadata, now: Instant) {
        let (leader, epoch) = (metadata.leader, metadata.leader_epoch);
        let is_older = epoch >= 0 && epoch < self.epoch;
        let older_since = is_older.then(|| self.older_since.unwrap_or(now));
        match older_since {
            Some(since) if now.saturating_duration_since(since) < DISBELIEF_TIME => self.older_since = older_since,
            _ => *self = PartitionLeader { broker: leader, epoch, older_since: None },
        }
    }
}

#[cfg(test)]
mod tests;
