//! The Kafka seam: the few traits through which the daemons use Kafka, and the types in them.
//!
//! Three engines implement the traits: `native` (the client in `src/kafka`), `kafka_rust` (old brokers) and `in_memory`
//! (unit tests). One conformance suite tests all three engines. No type of the clients is visible outside this folder.
//!
//! Invariants: a [`Producer`] completes every append exactly once. A [`Fetcher`] returns the messages of a partition in
//! rising offset order, each at most once per assignment, and logs a line for each offset that it skips as unreadable.
//! It never reads silently from another log than before: a recreated topic and a truncated log are events.
//!
//! To add an engine:
//!
//! 1. A folder `broker/NAME/` with a [`Producer`], a [`Fetcher`] and a [`LogEnds`]. `metadata_gate.rs` gives a producer
//!    the topic lookups, the size limit and the deadline of an append: supply its `ProducerEngine` and
//!    `MetadataClient`.
//! 2. `validate(settings, role)` in that folder: returns the settings of the `kafka` map that the engine refuses, and
//!    why.
//! 3. A variant in `BuiltInEngine` (`engines.rs`); the compiler then names every `match` to extend: the three
//!    factories, the check of the settings, and whether records can have headers and timestamps.
//! 4. The value of `kafka_client` that selects the engine, in [`Engine`] and [`Engine::from_section`]; a Cargo feature
//!    if the engine needs C code.
//! 5. In the conformance suite (`tests/stories/broker_suite/`): a variant of `Kind` with its matches in `fixture.rs`,
//!    and an `over!` line in `mod.rs`.

mod cluster_reading;
mod connections;
mod engines;
mod fetching;
pub mod in_memory;
mod kafka_rust;
pub mod membership;
mod metadata_gate;
mod native;
pub mod partitioner;
mod settings;
mod topic_rules;
mod topics;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::kafka::config::RequestCounter;
pub use cluster_reading::{
    CommittedOffset, GroupDescription, GroupListing, GroupReader, GroupState, ListedGroup, TopicInfo,
};
pub use connections::{ConnectionState, ConnectionStatus};
pub use engines::{fetcher, group_offsets, group_reader, log_ends, membership, producer};
pub use fetching::{FetchEvent, Fetcher, HeaderLimits, LogIdentity, Message, MessageBatch};
pub use settings::{KafkaSettings, Role};

/// Number of a partition within its topic, from 0.
pub type PartitionId = i32;

/// Position of a message within its partition, from 0.
pub type Offset = i64;

/// Id of a topic (a UUID): a topic that is deleted and created again has another id.
pub type TopicId = [u8; 16];

/// Longest legal name of a topic in Kafka.
const MAX_TOPIC_NAME_BYTES: usize = 249;

/// The rule of [`is_topic_name`] in words, for error texts.
pub const TOPIC_NAME_RULE: &str = "1 to 249 of the characters a-z A-Z 0-9 . _ - and neither . nor ..";

/// Whether `name` is a legal name of a topic in Kafka.
pub fn is_topic_name(name: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=MAX_TOPIC_NAME_BYTES).contains(&name.len()) && !matches!(name, b"." | b"..") && name.iter().all(is_allowed)
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

/// The acks level of an append: how many replicas must have a message before it is confirmed (`acks` of a commit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acks {
    /// `acks=0`: no replica. The append is confirmed once the message is sent, and its offset stays unknown.
    None,
    /// `acks=1`: the leader of the partition.
    Leader,
    /// `acks=-1`: all in-sync replicas. Uses the idempotent producer if the engine has one.
    All,
}

/// A header of a [`Record`] or a [`Message`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name, UTF-8.
    pub name: String,
    /// Value; `None` is Kafka's null.
    pub value: Option<Vec<u8>>,
}

/// A message to append.
#[derive(Clone, Debug)]
pub struct Record {
    /// Topic; the caller has checked that its name is legal.
    pub topic: Arc<str>,
    /// The partition to append to; `None` lets the partitioner choose.
    pub partition: Option<PartitionId>,
    /// Key, never empty. Without a key and without a chosen partition, the partition is random.
    pub key: Option<Vec<u8>>,
    /// Value of the message, sent unchanged; `None` is Kafka's null, which deletes the key from a compacted topic.
    pub value: Option<Vec<u8>>,
    /// Headers, in order. The `kafka_rust` engine refuses a record with headers (its message format has none).
    pub headers: Vec<Header>,
    /// Milliseconds since 1970; `None` is the time of the append. The `kafka_rust` engine refuses a record with a
    /// timestamp (its message format has none).
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// Returns the size of the value in bytes; 0 for null.
    pub fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Where a message was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The partition that was chosen.
    pub partition: PartitionId,
    /// The offset in that partition; `None` after `acks=0`.
    pub offset: Option<Offset>,
}

/// Whether a message may be in the topic although its append failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The message is certainly not in the topic.
    No,
    /// The message was sent and no response came, or it was appended by the leader and then not replicated.
    Unknown,
}

/// Why an append was not confirmed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct AppendError {
    /// The kind of failure, by which a caller decides what to do.
    pub kind: AppendFailure,
    /// Whether the message may be in the topic.
    pub stored: Stored,
    /// The error text: lower case, no full stop, with the topic or the limit in it.
    pub reason: String,
}

/// The kinds of failed appends, as far as callers treat them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendFailure {
    /// The topic does not exist and is not auto-created.
    UnknownTopic,
    /// The topic has no such partition.
    UnknownPartition,
    /// The message is larger than the limit of the broker, the topic or the engine.
    TooLarge,
    /// The engine cannot carry this record (for instance headers with the `kafka_rust` engine).
    Unsupported,
    /// The engine's own queue is full.
    Full,
    /// No broker could be reached before the deadline; nothing was sent.
    Unreachable,
    /// No acknowledgement came before the deadline.
    TimedOut,
    /// The message breaks a rule of its topic: no key in a compacted topic, a timestamp outside the range of the topic,
    /// or a policy of the brokers. The reason quotes the error of Kafka.
    Invalid,
    /// The daemon may not write to the topic; the reason quotes the error of Kafka.
    NotAuthorized,
    /// The broker refused the request because of a setting of the daemon or of the brokers, not because of the message
    /// or a missing right. The reason quotes the error of Kafka.
    Refused,
    /// A quota of the brokers leaves no time to send the message before its deadline. `seconds`: the time after which
    /// the quota allows the next request, at least 1.
    Throttled {
        /// See above.
        seconds: u32,
    },
    /// The producer is being closed.
    Closed,
}

impl AppendFailure {
    /// Returns whether the same append may succeed when it is retried without any change.
    pub fn is_retriable(self) -> bool {
        match self {
            Self::Full | Self::Unreachable | Self::TimedOut | Self::Closed | Self::Throttled { .. } => true,
            Self::UnknownTopic | Self::UnknownPartition | Self::TooLarge | Self::Unsupported => false,
            Self::Invalid | Self::NotAuthorized | Self::Refused => false,
        }
    }
}

/// How an append ended.
pub type AppendResult = Result<Appended, AppendError>;

/// Receives the result of an append. It must return quickly and must not call the producer: it may run on the engine's
/// thread, or on the caller's thread before `append` has returned.
pub trait Completion: Sized + Send + 'static {
    /// Receives the result; called exactly once, unless the completion is passed to
    /// [`complete_all`](Self::complete_all).
    fn complete(self, outcome: AppendResult);

    /// Receives the results of many appends that an engine has at the same time, with their records: memory costs least
    /// where it is freed by the thread that allocated it.
    fn complete_all(results: impl Iterator<Item = (Self, AppendResult, Box<Record>)>) {
        results.for_each(|(completion, outcome, _record)| completion.complete(outcome));
    }
}

/// A boxed closure is a completion, at the cost of one allocation for each append.
impl Completion for Box<dyn FnOnce(AppendResult) + Send> {
    fn complete(self, outcome: AppendResult) {
        self(outcome);
    }
}

/// Appends messages; shared by all threads.
///
/// Appends of one key (or one chosen partition) at one acks level are stored in the order of the `append` calls, also
/// through retries.
pub trait Producer<C: Completion>: Send + Sync {
    /// Starts an append; never blocks. `completion` runs within [`ProducerConfig::timeout`].
    fn append(&self, record: Record, acks: Acks, completion: C);

    /// Waits at most `grace` until every append has completed, then completes each remaining one with
    /// [`AppendFailure::Closed`]; its [`Stored`] says whether the message may have been sent. Later appends fail
    /// without waiting.
    fn close(&self, grace: Duration);

    /// Returns `Ok` if a broker can be reached now, otherwise the reason as an error text; for `/readyz`.
    fn reachable(&self) -> Result<(), String>;

    /// Returns the number of topic lookups sent to brokers so far.
    fn topic_lookups(&self) -> u64;

    /// Returns the connections to brokers at present; `None` if the engine does not report them.
    fn connections(&self) -> Option<Vec<ConnectionStatus>> {
        None
    }
}

/// A partition in the metadata of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Number of the partition.
    pub partition: PartitionId,
    /// Broker id of its leader; `None` while it has none.
    pub leader: Option<i32>,
}

/// The range of offsets that a partition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRange {
    /// Offset of the oldest message kept.
    pub oldest: Offset,
    /// Log end offset: the offset of the next message.
    pub newest: Offset,
    /// The offset up to which messages are returned to a reader of committed messages only: at most `newest`, lower
    /// while a transaction is open. An engine that knows no transactions has the value of `newest`.
    pub stable: Offset,
}

/// Why metadata or log end offsets could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetadataError {
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// No broker responded before the deadline, for this reason.
    #[error("no broker responded: {0}")]
    Unreachable(String),
    /// The partition has no leader at present.
    #[error("{0}")]
    NoLeader(String),
    /// The client may not describe the topic or the group.
    #[error("{0}")]
    NotAuthorized(String),
    /// No broker accepts this name of a topic.
    #[error("{0}")]
    InvalidTopic(String),
    /// The request failed for one partition or group (unknown, another error); the text names it.
    #[error("{0}")]
    Partition(String),
}

/// Receives the range of each partition, with its index in the request.
pub type RangeSink<'a> = dyn FnMut(usize, Result<LogRange, MetadataError>) + Send + 'a;

/// Reads the oldest and newest offsets of partitions. Used by one thread; a call without a deadline returns within
/// [`BrokerConfig::request_timeout`].
pub trait LogEnds: Send {
    /// Returns the partitions of a topic, sorted by number.
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError>;

    /// Returns each topic with its id, in the same order; each can fail by itself. Never creates a topic. Returns at
    /// `deadline`, or one request later with an engine that looks the topics up one after the other.
    fn topics(&mut self, topics: &[Arc<str>], deadline: Instant) -> Vec<Result<TopicInfo, MetadataError>> {
        let late = || Err(MetadataError::Unreachable("no attempt was made before the deadline".to_owned()));
        let find = |(index, topic): (usize, &Arc<str>)| match index > 0 && deadline <= Instant::now() {
            true => late(),
            false => self.partitions(topic).map(|partitions| TopicInfo { id: None, partitions }),
        };
        topics.iter().enumerate().map(find).collect()
    }

    /// Returns the log end offset of each of `partitions`, in the same order; each can fail by itself.
    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>>;

    /// Returns the range of offsets that one partition keeps.
    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError>;

    /// Looks up the ranges of many partitions. `found` is called once for each partition, as the responses come: with
    /// the native engine a broker that does not respond delays its own partitions only. Returns at `deadline`, or one
    /// request later with an engine that looks the partitions up one after the other.
    fn ranges(&mut self, partitions: &[TopicPartition], deadline: Instant, found: &mut RangeSink<'_>) {
        for (index, partition) in partitions.iter().enumerate() {
            let is_late = index > 0 && deadline <= Instant::now();
            let late = || Err(MetadataError::Unreachable("no attempt was made before the deadline".to_owned()));
            found(index, if is_late { late() } else { self.range(partition) });
        }
    }

    /// Returns for each partition the offset of its first message with the timestamp `time_ms` (milliseconds since
    /// 1970) or a later one, in the same order; `None` if it has none. Fails with an engine that cannot look it up.
    fn at_time(
        &mut self,
        partitions: &[TopicPartition],
        _time_ms: i64,
        _deadline: Instant,
    ) -> Vec<Result<Option<Offset>, MetadataError>> {
        let unsupported = "this Kafka engine cannot look up the offset of a time: use kafka_client: native";
        partitions.iter().map(|_| Err(MetadataError::Partition(unsupported.to_owned()))).collect()
    }

    /// Returns the ranges of many partitions, in the same order; each can fail by itself. See
    /// [`ranges`](Self::ranges).
    fn range_of_all(
        &mut self,
        partitions: &[TopicPartition],
        deadline: Instant,
    ) -> Vec<Result<LogRange, MetadataError>> {
        let mut ranges: Vec<_> = partitions.iter().map(|_| None).collect();
        self.ranges(partitions, deadline, &mut |index, range| ranges[index] = Some(range));
        let unanswered = || Err(MetadataError::Unreachable("no response".to_owned()));
        ranges.into_iter().map(|range| range.unwrap_or_else(unanswered)).collect()
    }
}

/// How the partition of a keyed message is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartitionerKind {
    /// 32-bit FNV-1a of the key, as in the original (`partitioner: fnv1a`).
    #[default]
    Fnv1a,
    /// MurmurHash2 of the key, as in the Java client (`partitioner: murmur2`).
    Murmur2,
}

/// The engine that the configuration names (`kafka_client`); `engines.rs` resolves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// `native`.
    #[default]
    Auto,
    /// The client of this project (`src/kafka`): brokers 0.11 to 4.x.
    Native,
    /// The former engine librdkafka: an error at load that names the alternative.
    Librdkafka,
    /// The pure-Rust `kafka` crate: brokers 0.9 to 3.9, plaintext, no headers, no timestamps.
    KafkaRust,
}

/// How to connect to a cluster.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `host:port` of at least one broker of the cluster.
    pub hosts: Vec<String>,
    /// The engine to use (`kafka_client`).
    pub engine: Engine,
    /// Name under which the broker logs and limits this client (`client.id`).
    pub client_id: String,
    /// Timeout of a metadata or ListOffsets request, and of connecting.
    pub request_timeout: Duration,
    /// Settings from the user's `kafka` map.
    pub settings: KafkaSettings,
    /// Counts the requests that the engine `native` sends; the other engine counts none.
    pub requests: RequestCounter,
}

/// The settings of a producer in addition to a [`BrokerConfig`].
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Partitioner of keyed messages.
    pub partitioner: PartitionerKind,
    /// Largest value in bytes (`max_request_size_bytes`).
    pub max_message_bytes: usize,
    /// Largest number of appends that have not completed (`req_pool_size`); an engine's queues have room for as many.
    pub max_in_flight: usize,
    /// Longest time from `append` to the completion (`commit_timeout_ms`).
    pub timeout: Duration,
}

/// The settings of a fetcher in addition to a [`BrokerConfig`].
#[derive(Clone, Debug)]
pub struct FetcherConfig {
    /// Prefetched bytes, over all partitions, from which no further fetch request is sent.
    pub prefetch_bytes: usize,
    /// Size in bytes of the largest message that must be readable.
    pub max_message_bytes: usize,
    /// The headers of a message that are kept.
    pub headers: HeaderLimits,
}
