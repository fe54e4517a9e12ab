//! Which topics of a level are in use: only their leaders matter, and the others can be removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{LevelState, LevelTopic};
use crate::kafka::producer::accumulator::PartitionIndex;
use crate::kafka::producer::message::ProducerMessage;
use crate::kafka::producer::outcome::BrokerId;

/// A topic counts as used until this time after the latest deadline of its messages.
const USED_FOR: Duration = Duration::from_secs(300);

impl<M: ProducerMessage> LevelState<M> {
    /// Returns the topics that were used a short while ago, or have messages that have not ended, with a partition that
    /// `broker` leads or that has no leader.
    pub(in crate::kafka::producer) fn topics_of(&self, broker: BrokerId, now: Instant) -> Vec<Arc<str>> {
        let is_led = |index: &PartitionIndex| self.accumulator.leader(*index).is_none_or(|leader| leader == broker);
        let is_concerned = |topic: &LevelTopic| topic.is_used(now) && topic.partitions.iter().any(is_led);
        self.topics.iter().filter(|(_, topic)| is_concerned(topic)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Whether a topic was not used for a while and has no message, so that it can be removed.
    pub(in crate::kafka::producer) fn is_removable(&self, topic: &str, now: Instant) -> bool {
        self.topics.get(topic).is_none_or(|topic| {
            !topic.is_used(now) && topic.partitions.iter().all(|index| self.accumulator.is_removable(*index))
        })
    }

    /// Removes a [removable](Self::is_removable) topic.
    pub(in crate::kafka::producer) fn remove(&mut self, topic: &Arc<str>) {
        let Some(removed) = self.topics.remove(topic) else { return };
        for number in 0..removed.partitions.len() as i32 {
            self.accumulator.remove(&(Arc::clone(topic), number));
        }
    }
}

impl LevelTopic {
    /// Whether the topic has messages, or had some a short while ago: each message ends soon after its deadline.
    fn is_used(&self, now: Instant) -> bool {
        self.latest_deadline.is_some_and(|deadline| now < deadline + USED_FOR)
    }
}
