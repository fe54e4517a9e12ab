//! The producer as its users see it.
//!
//! Threads: a `Sender` for each level and broker in use, `kafka-leaders` (metadata of the topics in use) and
//! `kafka-deadline`, which ends each message at its deadline, whatever the other threads wait for.

use std::sync::Arc;
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

    /// Queues a message; never blocks. The metadata of its topic must have been passed to
    /// [`update`](Self::update). Messages of one partition and level are stored in the order of these calls.
    pub fn append(&self, level: AcksLevel, message: M) {
        self.shared.append(self.shared.level(level), message);
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

    /// Calls `handler` with topics that a broker may have refused at acks=0: it closed the connection soon after a
    /// request. Only the first handler counts.
    pub fn on_suspect(&self, handler: impl Fn(&Arc<str>) + Send + Sync + 'static) {
        self.shared.set_on_suspect(Box::new(handler));
    }

    /// Takes over metadata from a response.
    pub fn update(&self, metadata: &MetadataResponse) {
        self.shared.update(metadata);
    }

    /// Returns what takes over metadata without keeping the producer alive.
    pub fn metadata_sink(&self) -> impl Fn(&MetadataResponse) + Send + 'static {
        let shared = Arc::downgrade(&self.shared);
        move |metadata| {
            if let Some(shared) = shared.upgrade() {
                shared.update(metadata);
            }
        }
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

impl<M: ProducerMessage> Drop for KafkaProducer<M> {
    fn drop(&mut self) {
        self.shared.close(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
