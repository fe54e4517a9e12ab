//! The Kafka seam: what the daemons need of a broker, in our own words.
//!
//! Three engines stand behind it: `librdkafka` (default), `kafka_rust` (no C) and `memory` (unit tests); one
//! conformance suite runs over all of them. No type of the rdkafka or kafka crate leaves this folder.
//!
//! Invariants: a [`Producer`] completes every append exactly once; a [`Fetcher`] hands out the messages of a
//! partition in rising offset order, each one at most once for an assignment, and never passes one over silently.

pub mod in_memory;
mod kafka_rust;
#[cfg(feature = "librdkafka")]
mod librdkafka;
mod metadata_gate;
pub mod partitioner;
mod settings;
mod topics;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Problems, Section};
use crate::supervise::Supervisor;

pub use settings::{KafkaSettings, Role};

/// Number of a partition within its topic, from 0.
pub type PartitionId = i32;

/// Position of a message within its partition, from 0.
pub type Offset = i64;

/// Longest name of a topic that Kafka takes.
const MAX_TOPIC_NAME: usize = 249;

/// The names that [`is_topic_name`] takes, for messages.
pub const TOPIC_NAME_RULE: &str = "1 to 249 of the characters a-z A-Z 0-9 . _ - and neither . nor ..";

/// Whether Kafka takes `name` as the name of a topic.
pub fn is_topic_name(name: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=MAX_TOPIC_NAME).contains(&name.len()) && !matches!(name, b"." | b"..") && name.iter().all(is_allowed)
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Number of the partition.
    pub partition: PartitionId,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.topic, self.partition)
    }
}

/// How many replicas must have a message before it counts as stored (`acks` of a commit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acks {
    /// `acks=0`: none; sent is enough, no offset is learned.
    None,
    /// `acks=1`: the leader of the partition.
    Leader,
    /// `acks=-1`: all in-sync replicas; appended by the idempotent producer where the engine has one.
    All,
}

/// A header of a record. The value is bytes; `None` is Kafka's null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name, UTF-8.
    pub name: String,
    /// Value.
    pub value: Option<Vec<u8>>,
}

/// A message to be appended.
#[derive(Clone, Debug)]
pub struct Record {
    /// Topic, already checked to be a legal name.
    pub topic: Arc<str>,
    /// The partition to append to; `None` lets the partitioner choose.
    pub partition: Option<PartitionId>,
    /// Key; `None` spreads at random. Never empty.
    pub key: Option<Vec<u8>>,
    /// The message, verbatim.
    pub value: Vec<u8>,
    /// Headers, in order. The `kafka_rust` engine refuses them (its message format has none).
    pub headers: Vec<Header>,
    /// Milliseconds since 1970; `None` is now.
    pub timestamp_ms: Option<i64>,
}

/// Where a message was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Partition.
    pub partition: PartitionId,
    /// Offset; unknown after `acks=0`.
    pub offset: Option<Offset>,
}

/// Whether a message that was not confirmed may be in the topic all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It certainly is not.
    No,
    /// Nobody can tell: it was sent and no answer came, or it was appended and then not replicated.
    Unknown,
}

/// Why an append was not confirmed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct AppendError {
    /// What the caller does differently.
    pub kind: AppendFailure,
    /// Whether the message may be in the topic.
    pub stored: Stored,
    /// In words, lower case, no full stop, names the topic or the limit.
    pub reason: String,
}

/// What a caller may tell apart about a failed append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendFailure {
    /// The topic does not exist and is not auto-created.
    UnknownTopic,
    /// The topic has no such partition.
    UnknownPartition,
    /// Larger than the broker, the topic or the engine takes.
    TooLarge,
    /// The engine cannot carry this record (for instance headers with the pure-Rust engine).
    Unsupported,
    /// The engine's own queue is full.
    Full,
    /// No broker could be reached in time; nothing was sent.
    Unreachable,
    /// No acknowledgement in time.
    TimedOut,
    /// The broker refused it; the reason has its words.
    Refused,
    /// The producer is being closed.
    Closed,
}

impl AppendFailure {
    /// Whether the same append may succeed later without any change.
    pub fn is_retriable(self) -> bool {
        match self {
            Self::Full | Self::Unreachable | Self::TimedOut | Self::Closed => true,
            Self::UnknownTopic | Self::UnknownPartition | Self::TooLarge | Self::Unsupported | Self::Refused => false,
        }
    }
}

/// How an append ended.
pub type AppendResult = Result<Appended, AppendError>;

/// Receives how an append ended. Must be quick and must not call the producer: it may run on the engine's
/// thread, or on the caller's before `append` has returned.
pub trait Completion: Send + 'static {
    /// Called exactly once.
    fn complete(self, outcome: AppendResult);
}

/// Any quick closure will do, where an allocation more does not matter.
impl Completion for Box<dyn FnOnce(AppendResult) + Send> {
    fn complete(self, outcome: AppendResult) {
        self(outcome);
    }
}

/// Appends messages; shared by all threads.
///
/// Appends of one key (or one chosen partition) at one acks level are stored in the order of the `append` calls, also through retries.
pub trait Producer<C: Completion>: Send + Sync {
    /// Hands a message over; never blocks. `completion` learns how it ended, within the timeout the producer was made with.
    fn append(&self, record: Record, acks: Acks, completion: C);

    /// Waits until everything handed over has completed, for `grace` at most, then completes what is left with
    /// [`AppendFailure::Closed`] and its honest [`Stored`]. Appends after it fail at once.
    fn close(&self, grace: Duration);

    /// Whether a broker can be reached now, and if not, why; for `/readyz`.
    fn reachable(&self) -> Result<(), String>;

    /// How often brokers were asked about a topic so far.
    fn topic_lookups(&self) -> u64;
}

/// A message as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it was read from.
    pub from: TopicPartition,
    /// Its offset.
    pub offset: Offset,
    /// Key; `None` for null (the pure-Rust engine cannot tell null from empty and gives `None`).
    pub key: Option<Vec<u8>>,
    /// The message; `None` is a tombstone (the pure-Rust engine gives an empty value).
    pub value: Option<Vec<u8>>,
    /// Headers; always empty with the pure-Rust engine.
    pub headers: Vec<Header>,
    /// Milliseconds since 1970, where the broker has one.
    pub timestamp_ms: Option<i64>,
}

/// Why messages could not be read. The fetcher stays usable: it rebuilds itself with back-off inside.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The broker does not keep this offset any more, or not yet. That partition is no longer read until it is
    /// assigned anew, for instance from its oldest offset.
    #[error("offset {offset} of {partition} is not kept (kept: {oldest} to {newest})")]
    OffsetGone {
        /// The partition.
        partition: TopicPartition,
        /// The offset asked for.
        offset: Offset,
        /// Oldest offset kept now.
        oldest: Offset,
        /// The offset after the newest message.
        newest: Offset,
    },
    /// One partition cannot be read (unknown, no leader, not authorised, undecodable); others go on. It is tried again inside.
    #[error("{partition} cannot be read: {reason}")]
    Partition {
        /// The partition.
        partition: TopicPartition,
        /// In words.
        reason: String,
    },
    /// No broker could be reached; it is tried again inside.
    #[error("no broker can be read from: {0}")]
    Unreachable(String),
}

/// Reads messages from positions its owner chooses. Used by one thread.
pub trait Fetcher: Send {
    /// Starts to read `partition` at `offset`, anew if it is being read already.
    fn assign(&mut self, partition: &TopicPartition, offset: Offset);

    /// Stops reading `partition`; none of its messages is returned afterwards.
    fn revoke(&mut self, partition: &TopicPartition);

    /// Holds `partition` back, or goes on with it, without losing its place or what was prefetched.
    fn set_paused(&mut self, partition: &TopicPartition, paused: bool);

    /// Messages that are there, waiting for `wait` at most for the first one. An empty answer is none in time.
    /// `most` bounds their number.
    fn poll(&mut self, wait: Duration, most: usize) -> Result<Vec<Message>, FetchError>;
}

/// What is known of one partition without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Number of the partition.
    pub partition: PartitionId,
    /// Broker id of its leader; `None` while it has none.
    pub leader: Option<i32>,
}

/// The offsets one partition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRange {
    /// Offset of the oldest message kept.
    pub oldest: Offset,
    /// Offset the next message will get.
    pub newest: Offset,
}

/// Why the state of a topic could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetadataError {
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// No answer in time; the reason in words.
    #[error("no broker answered: {0}")]
    Unreachable(String),
    /// One partition gave no answer (no leader, unknown).
    #[error("{0}")]
    Partition(String),
}

/// Reads where logs begin and end. Used by one thread; each call is bounded by the timeout it was made with.
pub trait LogEnds: Send {
    /// The partitions of a topic, by rising number.
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError>;

    /// The newest offset of each partition asked for, in the same order. One partition's failure is not the others'.
    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>>;

    /// The kept range of one partition.
    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError>;
}

/// How the partition of a keyed message is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartitionerKind {
    /// 32-bit FNV-1a of the key as the original has it (`partitioner: fnv1a`).
    #[default]
    Fnv1a,
    /// What the Java client does (`partitioner: murmur2`).
    Murmur2,
}

/// Which engine is asked for (`kafka_client`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// librdkafka where it is built in, else the pure-Rust engine.
    #[default]
    Auto,
    /// librdkafka; refused at load where it is not built in.
    Librdkafka,
    /// The pure-Rust `kafka` crate: brokers 0.9 to 3.9, plaintext, no headers, no timestamps.
    KafkaRust,
}

/// What every engine needs to find a cluster.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `host:port` of some brokers; at least one.
    pub hosts: Vec<String>,
    /// Engine.
    pub engine: Engine,
    /// Name the broker sees (`client.id`).
    pub client_id: String,
    /// Bound of one metadata or log-end question, and of connecting.
    pub request_timeout: Duration,
    /// What the user sets besides (`kafka`).
    pub settings: KafkaSettings,
}

/// What a producer needs besides.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Partitioner of keyed messages.
    pub partitioner: PartitionerKind,
    /// Largest value in bytes (`max_request_size_bytes`).
    pub max_message_bytes: usize,
    /// Messages handed over and not complete (`req_pool_size`); the engine's own queues are larger than this.
    pub max_in_flight: usize,
    /// From `append` to the completion (`commit_timeout_ms`).
    pub timeout: Duration,
}

/// What a fetcher needs besides.
#[derive(Clone, Debug)]
pub struct FetcherConfig {
    /// Bound in bytes on what is prefetched, over all partitions, before more is asked for.
    pub prefetch_bytes: usize,
    /// Largest message that must be readable, bytes.
    pub max_message_bytes: usize,
}

impl Engine {
    /// Takes `kafka_client` (default `auto`); an engine that is not built in is a problem.
    pub fn from_section(section: &mut Section, problems: &mut Problems) -> Self {
        let choices = [("auto", Self::Auto), ("librdkafka", Self::Librdkafka), ("kafka-rust", Self::KafkaRust)];
        let engine = section.choice("kafka_client", &choices, problems);
        if let Err(wrong) = engine.resolve() {
            section.note("kafka_client", wrong, problems);
        }
        engine
    }

    /// Whether records can have headers and timestamps; where not, such a record is refused as
    /// [`AppendFailure::Unsupported`].
    pub fn has_headers_and_timestamps(self) -> bool {
        self.resolve() == Ok(Self::Librdkafka)
    }

    /// The engine to use: what `auto` means here, or why what was asked for cannot be had.
    pub fn resolve(self) -> Result<Engine, String> {
        match (self, cfg!(feature = "librdkafka")) {
            (Self::Auto | Self::Librdkafka, true) => Ok(Self::Librdkafka),
            (Self::Auto | Self::KafkaRust, _) => Ok(Self::KafkaRust),
            (Self::Librdkafka, false) => {
                Err("is librdkafka, which this build does not have; use auto or kafka-rust".to_owned())
            }
        }
    }
}

/// A producer of the engine asked for. Needs no reachable broker; its threads belong to `supervisor`. Those that run
/// completions outlive the stop until [`Producer::close`] or the drop of the producer, which must come before the
/// group is joined.
pub fn producer<C: Completion>(
    broker: &BrokerConfig,
    config: ProducerConfig,
    supervisor: &Supervisor,
) -> Result<Arc<dyn Producer<C>>, String> {
    match broker.engine.resolve()? {
        #[cfg(feature = "librdkafka")]
        Engine::Librdkafka => Ok(Arc::new(librdkafka::LibrdkafkaProducer::new(broker, config, supervisor)?)),
        _ => Ok(Arc::new(kafka_rust::KafkaRustProducer::new(broker, &config, supervisor))),
    }
}

/// A fetcher of the engine asked for, with nothing assigned. Needs no reachable broker.
pub fn fetcher(
    broker: &BrokerConfig,
    config: FetcherConfig,
    supervisor: &Supervisor,
) -> Result<Box<dyn Fetcher>, String> {
    match broker.engine.resolve()? {
        #[cfg(feature = "librdkafka")]
        Engine::Librdkafka => Ok(Box::new(librdkafka::LibrdkafkaFetcher::new(broker, config)?)),
        _ => Ok(Box::new(kafka_rust::KafkaRustFetcher::new(broker, config, supervisor))),
    }
}

/// A reader of log ends of the engine asked for. Needs no reachable broker.
pub fn log_ends(broker: &BrokerConfig, supervisor: &Supervisor) -> Result<Box<dyn LogEnds>, String> {
    match broker.engine.resolve()? {
        #[cfg(feature = "librdkafka")]
        Engine::Librdkafka => Ok(Box::new(librdkafka::LibrdkafkaLogEnds::new(broker)?)),
        _ => Ok(Box::new(kafka_rust::KafkaRustLogEnds::new(broker, supervisor))),
    }
}
