//! The producer as its users see it.
//!
//! Threads: a `Sender` for each level and broker in use, `kafka-leaders` (metadata of the topics in use) and
//! `kafka-deadline`, which ends each message at its deadline, whatever the other threads wait for.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::level::Level;
use super::message::{AcksLevel, ProducerMessage};
#[cfg(test)]
use super::outcome::{Outcome, Stored};
use super::refresh::LeaderRefresh;
use super::sender::Sender;
pub use super::shared::ProducerConfig;
use super::shared::Shared;
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::Connector;
use crate::kafka::metadata::MetadataResponse;
use crate::supervise::Supervisor;

/// Sends messages to the leaders of their partitions. Shared by threads.
pub struct KafkaProducer<M: ProducerMessage> {
    shared: Arc<Shared<M>>,
}

impl<M: ProducerMessage> KafkaProducer<M> {
    /// Makes the producer and starts its threads; no broker need be reachable. The threads end after
    /// [`close`](Self::close).
    pub fn new(
        connector: Connector,
        bootstrap: Vec<BrokerAddress>,
        config: ProducerConfig,
        supervisor: &Supervisor,
    ) -> Self {
        let run_sender = |shared, level, broker| Sender::new(shared, level, broker).run();
        let shared = Shared::new(connector.clone(), config, supervisor, run_sender);
        let connector = connector.ended_by(shared.metadata_disconnect());
        let refresh = LeaderRefresh::new(Arc::clone(&shared), connector, bootstrap);
        supervisor.spawn_task("kafka-leaders", move || refresh.run());
        let watching = Arc::clone(&shared);
        supervisor.spawn_task("kafka-deadline", move || {
            watching.become_deadline_thread();
            watching.watch_time();
        });
        KafkaProducer { shared }
    }

    /// Queues a message; never blocks. Messages of one partition and level are stored in the order of these calls.
    /// Returns the message if no metadata with its partition has been passed to [`update`](Self::update), or not since
    /// the topic was forgotten: brokers have reported it as missing for long, and it was not used.
    pub fn append(&self, level: AcksLevel, message: M) -> Result<(), M> {
        self.shared.append(self.shared.level(level), message)
    }

    /// Chooses a partition for a message without a key: for a few milliseconds the same one, then another. `count` is
    /// the number of partitions of the topic.
    pub fn sticky_partition(&self, level: AcksLevel, topic: &str, count: i32, deadline: Instant) -> i32 {
        self.shared.level(level).lock().sticky_partition(topic, count, deadline)
    }

    /// Sets the largest batch that a topic accepts (`max.message.bytes`), as it is sent; `usize::MAX` if unknown. With
    /// acks=0 a larger message is rejected, because a broker would answer it by closing the connection; and while the
    /// limit is unknown, batches are small.
    pub fn set_max_batch_bytes(&self, topic: &Arc<str>, max_bytes: usize) {
        self.shared.change_limit(topic, |limit| limit.configured_bytes = max_bytes);
    }

    /// Calls `handler` with topics that a broker may have refused at acks=0: it closed the connection after a request.
    /// Only the first handler counts.
    pub fn on_possible_refusal(&self, handler: impl Fn(&Arc<str>) + Send + Sync + 'static) {
        self.shared.set_on_possible_refusal(Box::new(handler));
    }

    /// Takes over metadata from a response.
    pub fn update(&self, metadata: &MetadataResponse) {
        self.shared.update(metadata);
    }

    /// Returns what takes over metadata without keeping the producer alive.
    pub fn metadata_sink(&self) -> MetadataSink<M> {
        MetadataSink { shared: Arc::downgrade(&self.shared) }
    }

    pub(super) fn levels(&self) -> &[Arc<Level<M>>] {
        self.shared.levels()
    }

    /// Waits at most `grace` until all messages have ended, then ends each remaining one with
    /// [`Outcome::Closed`](super::outcome::Outcome). All threads then end. If this returns before `grace` is over,
    /// [`ProducerMessage::end`] has returned for each message; so a call from there waits for the whole grace.
    pub fn close(&self, grace: Duration) {
        self.shared.close(grace);
    }
}

/// Takes over metadata for a producer.
pub struct MetadataSink<M> {
    shared: Weak<Shared<M>>,
}

impl<M: ProducerMessage> MetadataSink<M> {
    /// See [`KafkaProducer::update`]. Returns the partition counts of topics with an id, as far as they are higher than
    /// in this response: a topic does not lose partitions, so the broker lags behind the controller.
    pub fn update(&self, metadata: &MetadataResponse) -> HashMap<Arc<str>, usize> {
        let Some(shared) = self.shared.upgrade() else { return HashMap::new() };
        shared.update(metadata);
        shared.higher_counts(metadata)
    }
}

impl<M: ProducerMessage> Drop for KafkaProducer<M> {
    fn drop(&mut self) {
        self.shared.close(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
