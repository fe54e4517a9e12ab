//! The leader of each partition, according to the latest metadata.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::topic_limit::TopicLimit;
use crate::kafka::config::BrokerAddress;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataResponse, PartitionMetadata, TopicId, TopicMetadata};
use crate::kafka::produce::NodeAddress;

/// A leader with an older epoch is accepted if all responses have named it for this long. Brokers without topic ids
/// (before 2.8) do not show that a topic was recreated, and its epochs begin again.
const DISBELIEF_TIME: Duration = Duration::from_secs(5);

/// A topic that is not used is forgotten after brokers have reported it as missing for this long.
const MISSING_FOR: Duration = Duration::from_secs(60);

/// A partition whose leader a Produce response names: topic, partition, and the leader with its epoch.
pub(super) type LeaderHint = (Arc<str>, i32, Option<(BrokerId, i32)>);

/// The brokers, and the leaders of the partitions.
#[derive(Default)]
pub(super) struct ClusterView {
    /// Id of the cluster, once a response had it.
    cluster_id: Option<String>,
    brokers: HashMap<BrokerId, BrokerAddress>,
    topics: HashMap<Arc<str>, TopicLeaders>,
    /// Known topics that brokers report as missing, and since when.
    missing: HashMap<Arc<str>, Instant>,
}

struct TopicLeaders {
    id: Option<TopicId>,
    limit: TopicLimit,
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

    /// Returns what is known of the largest batch of a topic.
    pub(super) fn limit(&self, topic: &str) -> TopicLimit {
        self.topics.get(topic).map_or(TopicLimit::UNKNOWN, |topic| topic.limit)
    }

    /// Changes what is known of the largest batch of a topic; returns whether that is something else than before.
    pub(super) fn change_limit(&mut self, topic: &str, change: impl FnOnce(&mut TopicLimit)) -> bool {
        self.topics.get_mut(topic).is_some_and(|topic| topic.change_limit(change))
    }

    /// Whether a response with this cluster id changes the known one.
    pub(super) fn is_other_cluster(&self, id: Option<&str>) -> bool {
        id.is_some() && self.cluster_id.as_deref() != id
    }

    /// Takes over the cluster id of a response, before the rest of it; returns whether it is another cluster than
    /// before.
    pub(super) fn enter_cluster(&mut self, id: Option<&str>) -> bool {
        let Some(id) = id.filter(|id| self.is_other_cluster(Some(id))) else { return false };
        if self.cluster_id.replace(id.to_owned()).is_none() {
            return false;
        }
        // The epochs of its leaders begin again, and its topics are others.
        for topic in self.topics.values_mut() {
            topic.id = None;
            topic.partitions.iter_mut().for_each(|partition| (partition.epoch, partition.older_since) = (-1, None));
        }
        true
    }

    /// Takes over a response; returns the topics of which it changed something.
    pub(super) fn update(&mut self, metadata: &MetadataResponse, now: Instant) -> Vec<Arc<str>> {
        // A broker that has just started may know no other broker; the addresses known so far stay valid.
        for broker in &metadata.brokers {
            self.brokers.insert(broker.id, broker.address.clone());
        }
        let mut changed = Vec::new();
        for topic in &metadata.topics {
            match topic.error_code {
                error_code::NONE => {
                    self.missing.remove(&topic.name);
                    let known = self.topics.entry(Arc::clone(&topic.name)).or_default();
                    let has_new_limit = known.change_limit(|limit| limit.grow(now));
                    if known.update(topic, now) || has_new_limit {
                        changed.push(Arc::clone(&topic.name));
                    }
                }
                error_code::UNKNOWN_TOPIC_OR_PARTITION if self.topics.contains_key(&topic.name) => {
                    self.missing.entry(Arc::clone(&topic.name)).or_insert(now);
                }
                _ => {}
            }
        }
        changed
    }

    /// Returns the partition counts of topics that are known to have more partitions than a response says: the broker
    /// lags behind the controller. Without topic ids the topic may have been recreated with fewer.
    pub(super) fn higher_counts(&self, metadata: &MetadataResponse) -> HashMap<Arc<str>, usize> {
        let with_id = metadata.topics.iter().filter(|topic| topic.error_code == error_code::NONE && topic.id.is_some());
        let higher = with_id.filter_map(|topic| {
            let count = self.topics.get(&topic.name)?.partitions.len();
            (count > topic.partitions.len()).then(|| (Arc::clone(&topic.name), count))
        });
        higher.collect()
    }

    /// Returns the topics that brokers have reported as missing for long.
    pub(super) fn long_missing(&self, now: Instant) -> Vec<Arc<str>> {
        let missing = self.missing.iter().filter(|(_, since)| is_long_missing(**since, now));
        missing.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Forgets a topic; returns false if it is not missing for long, since a response may have named it meanwhile.
    pub(super) fn remove_missing(&mut self, topic: &str, now: Instant) -> bool {
        let is_missing = self.missing.get(topic).is_some_and(|since| is_long_missing(*since, now));
        if is_missing {
            self.topics.remove(topic);
            self.missing.remove(topic);
        }
        is_missing
    }

    /// Takes over the leaders that a Produce response names (KIP-951), with their addresses; returns the topics of
    /// which something changed.
    pub(super) fn apply_hints(&mut self, hints: &[LeaderHint], nodes: &[NodeAddress]) -> Vec<Arc<str>> {
        for node in nodes {
            if let Ok(port) = u16::try_from(node.port) {
                self.brokers.insert(node.id, BrokerAddress { host: Arc::from(&*node.host), port });
            }
        }
        // A response names each partition by itself: all of a topic, if its broker is not the leader any more.
        let mut changed = HashSet::new();
        for (topic, partition, hint) in hints {
            let (Some((leader, epoch)), Some(known)) = (hint, self.topics.get_mut(topic)) else { continue };
            if let Some(known) = known.partition_mut(*partition)
                && *epoch > known.epoch
                && self.brokers.contains_key(leader)
            {
                *known = PartitionLeader { broker: Some(*leader), epoch: *epoch, older_since: None };
                changed.insert(Arc::clone(topic));
            }
        }
        changed.into_iter().collect()
    }
}

fn is_long_missing(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= MISSING_FOR
}

impl Default for TopicLeaders {
    fn default() -> Self {
        TopicLeaders { id: None, limit: TopicLimit::UNKNOWN, partitions: Vec::new() }
    }
}

impl TopicLeaders {
    fn leaders(&self) -> Vec<Option<BrokerId>> {
        self.partitions.iter().map(|leader| leader.broker).collect()
    }

    fn partition_mut(&mut self, partition: i32) -> Option<&mut PartitionLeader> {
        self.partitions.get_mut(usize::try_from(partition).ok()?)
    }

    /// Changes what is known of the largest batch; returns whether that is something else than before.
    fn change_limit(&mut self, change: impl FnOnce(&mut TopicLimit)) -> bool {
        let before = self.limit;
        change(&mut self.limit);
        self.limit != before
    }

    /// Takes over metadata; returns whether the partitions or their leaders changed.
    fn update(&mut self, topic: &TopicMetadata, now: Instant) -> bool {
        let before = self.leaders();
        let is_other = topic.id.is_some() && self.id.is_some() && topic.id != self.id;
        // A first id says nothing, but a topic does not lose partitions.
        let is_smaller = topic.id.is_some() && self.id.is_none() && topic.partitions.len() < self.partitions.len();
        if is_other || is_smaller {
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
        self.leaders() != before
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
