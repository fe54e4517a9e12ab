//! A broker, the engine under test as its client, and helpers for appends.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka_http_wrapper::broker::in_memory::MemoryBroker;
use kafka_http_wrapper::broker::{
    self, Acks, AppendResult, BrokerConfig, Completion, Engine, Fetcher, FetcherConfig, HeaderLimits, LogEnds, Message,
    PartitionerKind, Producer, ProducerConfig, Record, TopicPartition,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::{Ended, Supervisor};

use crate::harness::engine::broker_config;
use crate::harness::{cluster, kafka_wire, kraft_cluster, unique};

pub(super) const DEADLINE: Duration = Duration::from_secs(30);
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The engine under test and, if several brokers are tested with it, the broker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Memory,
    Native,
    /// The client of this project with brokers 4.x.
    NativeKraft,
    KafkaRust,
}

/// A broker and the engine that is its client.
pub(super) struct Fixture {
    pub(super) kind: Kind,
    pub(super) memory: MemoryBroker,
    /// `host:port` of the brokers, separated by commas; empty for the in-memory broker.
    pub(super) brokers: String,
    supervisor: Supervisor,
}

/// Sends the outcome of an append to the story.
pub(super) struct Report(Sender<AppendResult>);

impl Completion for Report {
    fn complete(self, outcome: AppendResult) {
        // Sending fails if the story has dropped the receiver, which is allowed.
        let _ = self.0.send(outcome);
    }
}

impl Fixture {
    pub(super) fn new(kind: Kind) -> Fixture {
        let brokers = match kind {
            Kind::Memory => String::new(),
            Kind::Native | Kind::KafkaRust => cluster().brokers.clone(),
            Kind::NativeKraft => kraft_cluster().brokers.clone(),
        };
        Fixture::with_brokers(kind, brokers)
    }

    pub(super) fn with_brokers(kind: Kind, brokers: String) -> Fixture {
        Fixture { kind, memory: MemoryBroker::new(), brokers, supervisor: Supervisor::new("suite", Stop::new()) }
    }

    fn config(&self) -> BrokerConfig {
        let engine = match self.kind {
            Kind::KafkaRust => Engine::KafkaRust,
            Kind::Memory | Kind::Native | Kind::NativeKraft => Engine::Native,
        };
        broker_config(&self.brokers, engine)
    }

    pub(super) fn topic(&self, prefix: &str, partitions: i32) -> Arc<str> {
        let name = unique(prefix);
        self.create_topic(&name, partitions);
        name.into()
    }

    pub(super) fn create_topic(&self, name: &str, partitions: i32) {
        match self.kind {
            Kind::Memory => self.memory.create_topic(name, partitions),
            _ => kafka_wire::create_topic(&self.brokers, name, partitions, 1),
        }
    }

    pub(super) fn producer(&self) -> Arc<dyn Producer<Report>> {
        self.producer_with(PartitionerKind::Fnv1a, DEADLINE)
    }

    pub(super) fn producer_with(&self, partitioner: PartitionerKind, timeout: Duration) -> Arc<dyn Producer<Report>> {
        if self.kind == Kind::Memory {
            return Arc::new(self.memory.producer_with(partitioner));
        }
        let (max_message_bytes, max_in_flight) = (MAX_MESSAGE_BYTES, 10_000);
        let config = ProducerConfig { partitioner, max_message_bytes, max_in_flight, timeout };
        broker::producer(&self.config(), config, &self.supervisor).expect("creating a producer needs no broker")
    }

    pub(super) fn fetcher(&self) -> Box<dyn Fetcher> {
        if self.kind == Kind::Memory {
            return Box::new(self.memory.fetcher());
        }
        let config = FetcherConfig {
            prefetch_bytes: 16 << 20,
            max_message_bytes: MAX_MESSAGE_BYTES,
            headers: HeaderLimits::default(),
        };
        broker::fetcher(&self.config(), config, &self.supervisor).expect("creating a fetcher needs no broker")
    }

    pub(super) fn log_ends(&self) -> Box<dyn LogEnds> {
        match self.kind {
            Kind::Memory => Box::new(self.memory.log_ends()),
            _ => broker::log_ends(&self.config(), &self.supervisor).expect("creating log ends needs no broker"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.supervisor.stop().trigger();
        let ended = self.supervisor.join(DEADLINE);
        if !std::thread::panicking() {
            assert_eq!(ended, Ended::Stopped);
        }
    }
}

pub(super) fn record(topic: &Arc<str>, key: Option<&str>, value: impl Into<Vec<u8>>) -> Record {
    Record {
        topic: Arc::clone(topic),
        partition: None,
        key: key.map(|key| key.as_bytes().to_vec()),
        value: Some(value.into()),
        headers: Vec::new(),
        timestamp_ms: None,
    }
}

pub(super) fn at(topic: &Arc<str>, partition: i32) -> TopicPartition {
    TopicPartition { topic: Arc::clone(topic), partition }
}

/// Starts an append; returns the channel that receives its outcome.
pub(super) fn start(producer: &dyn Producer<Report>, record: Record, acks: Acks) -> Receiver<AppendResult> {
    let (sender, receiver) = unbounded();
    producer.append(record, acks, Report(sender));
    receiver
}

pub(super) fn outcome(answer: &Receiver<AppendResult>) -> AppendResult {
    let outcome = answer.recv_timeout(DEADLINE * 2).expect("every append completes");
    assert!(answer.try_recv().is_err(), "an append completes once");
    outcome
}

pub(super) fn append(producer: &dyn Producer<Report>, record: Record, acks: Acks) -> AppendResult {
    outcome(&start(producer, record, acks))
}

pub(super) fn values(messages: &[Message]) -> Vec<&[u8]> {
    messages.iter().map(|message| message.value.as_deref().unwrap_or_default()).collect()
}
