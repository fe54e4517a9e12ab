//! Appends through the Kafka client of this project ([`crate::kafka`]).
//!
//! The [`MetadataGate`] looks topics up and holds the messages of those that are not known yet. This module chooses the
//! partition, passes all metadata on to the client, and converts messages and outcomes.

use std::collections::HashMap;
use std::num::NonZeroI32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use super::config;
use super::connections::connection;
use super::producer_settings::ProducerSettings;
use crate::broker::metadata_gate::{
    self, GateState, MetadataClient, MetadataGate, NotSubmitted, PendingAppend, ProducerEngine, TopicAnswer, not_stored,
};
use crate::broker::partitioner::partition_of;
use crate::broker::topic_rules::{CONFIG_NAMES, TopicRules};
use crate::broker::topics::LookupAnswer;
use crate::broker::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, BrokerConfig, Completion, ConnectionStatus,
    PartitionerKind, Producer, ProducerConfig, Record, Stored,
};
use crate::clock::unix_ms;
use crate::kafka::compression::Codec;
use crate::kafka::connection::Disconnect;
use crate::kafka::error_code as code;
use crate::kafka::metadata::{MetadataResponse, MetadataTopics, TopicMetadata};
use crate::kafka::metadata_client::{ClientError, MetadataClient as KafkaMetadata};
use crate::kafka::producer::client::{KafkaProducer, MetadataSink, ProducerConfig as ClientConfig};
use crate::kafka::producer::message::{AcksLevel, ProducerMessage};
use crate::kafka::producer::outcome::{self, EndedWithReason, Limits, Outcome, QueuedMessage};
use crate::kafka::record_batch::{BatchBuilder, HEADER_BYTES, RecordView};
use crate::supervise::Supervisor;

/// Batches are not larger than this, unless a single message is: the default of `message.max.bytes` is 1,048,588 bytes.
const MAX_BATCH_BYTES: usize = 1_000_000;
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Largest response accepted: metadata of many partitions, or the outcomes of a request.
const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// Upper bound of the bytes that a record adds to a batch beside key, value and headers.
const RECORD_OVERHEAD_BYTES: usize = 40;
/// Upper bound of the bytes that a header adds beside its name and value.
const HEADER_OVERHEAD_BYTES: usize = 10;

/// The producer of this engine.
pub(in crate::broker) struct NativeProducer<C: Completion> {
    gate: Arc<MetadataGate<C, Engine<C>>>,
    /// Ends the look-up that the metadata thread is doing.
    end_of_lookups: Disconnect,
}

struct Engine<C: Completion> {
    producer: KafkaProducer<NativeMessage<C>>,
    codec: Codec,
    partitioner: PartitionerKind,
    state: Arc<GateState<C>>,
}

/// An append on its way through the client.
struct NativeMessage<C: Completion> {
    /// In a box, since the message is moved several times: into a queue, a batch, and out of it.
    record: Box<Record>,
    partition: i32,
    timestamp_ms: i64,
    cost_bytes: usize,
    completion: C,
    deadline: Instant,
    state: Arc<GateState<C>>,
}

impl<C: Completion> NativeProducer<C> {
    /// Makes the producer and starts its threads; no broker need be reachable.
    pub(in crate::broker) fn new(
        broker: &BrokerConfig,
        config: &ProducerConfig,
        supervisor: &Supervisor,
    ) -> Result<Self, String> {
        let connector = config::connector(broker, MAX_RESPONSE_BYTES)?;
        let bootstrap = config::bootstrap(&broker.hosts)?;
        let settings = ProducerSettings::new(&broker.settings);
        let limits = Limits {
            max_batch_bytes: MAX_BATCH_BYTES,
            max_request_bytes: MAX_REQUEST_BYTES,
            retry_backoff: settings.retry_backoff.min(),
            max_retry_backoff: settings.retry_backoff.max(),
            is_idempotent: false,
        };
        let client = ClientConfig {
            limits,
            codec: settings.codec,
            timeout: config.timeout,
            max_messages: config.max_in_flight.max(1),
            linger: settings.linger,
            ack_timeout: settings.ack_timeout,
        };
        let producer = KafkaProducer::new(connector.clone(), bootstrap.clone(), client, supervisor);
        let end_of_lookups = Disconnect::new();
        let metadata = NativeMetadata::<C> {
            client: KafkaMetadata::new(connector.ended_by(end_of_lookups.clone()), bootstrap),
            sink: producer.metadata_sink(),
            auto_create_topics: settings.auto_create_topics,
        };
        let wait = connector.config().request_timeout;
        let state = GateState::new(config);
        let gate_state = Arc::clone(&state);
        producer.on_possible_refusal(move |topic| gate_state.refresh_soon(topic));
        let engine =
            Engine { producer, codec: settings.codec, partitioner: config.partitioner, state: Arc::clone(&state) };
        let gate = metadata_gate::start(engine, state, config, metadata, wait, supervisor);
        Ok(NativeProducer { gate, end_of_lookups })
    }
}

impl<C: Completion> Producer<C> for NativeProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        self.gate.append(record, acks, completion);
    }

    fn close(&self, grace: Duration) {
        self.gate.close();
        // A look-up that waits for a broker, or for a name server, must not delay the end of the daemon.
        self.end_of_lookups.disconnect();
        self.gate.engine.producer.close(grace);
    }

    fn reachable(&self) -> Result<(), String> {
        self.gate.reachable()
    }

    fn topic_lookups(&self) -> u64 {
        self.gate.topic_lookups()
    }

    fn connections(&self) -> Option<Vec<ConnectionStatus>> {
        Some(self.gate.engine.producer.links().into_iter().map(connection).collect())
    }
}

impl<C: Completion> Drop for NativeProducer<C> {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl<C: Completion> ProducerEngine<C> for Engine<C> {
    fn submit(&self, append: PendingAppend<C>, partition_count: i32) -> Result<(), NotSubmitted<C>> {
        let PendingAppend { record, acks, completion, deadline } = append;
        let Some(count) = NonZeroI32::new(partition_count) else {
            let reason = format!("topic {} has no partitions", record.topic);
            return Err(NotSubmitted::Failed((completion, not_stored(AppendFailure::UnknownTopic, reason))));
        };
        let level = match acks {
            Acks::None => AcksLevel::None,
            Acks::Leader => AcksLevel::Leader,
            Acks::All => AcksLevel::All,
        };
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(self.partitioner, key, count),
            (None, None) => self.producer.sticky_partition(level, &record.topic, partition_count, deadline),
        };
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(unix_ms);
        let cost_bytes = cost_bytes(&record);
        let (record, state) = (Box::new(record), Arc::clone(&self.state));
        let message = NativeMessage { record, partition, timestamp_ms, cost_bytes, completion, deadline, state };
        self.producer.append(level, message).map_err(|message| {
            let NativeMessage { record, completion, .. } = message;
            NotSubmitted::NeedsLookup(Box::new(PendingAppend { record: *record, acks, completion, deadline }))
        })
    }

    fn batch_bytes(&self, record: &Record) -> usize {
        // The compressed size is known only after compression.
        if self.codec != Codec::None {
            return 0;
        }
        let mut bytes = 0;
        let timestamp_ms = record.timestamp_ms.unwrap_or_default();
        with_view(record, timestamp_ms, &mut |view| bytes = HEADER_BYTES + BatchBuilder::default().cost_of(view));
        bytes
    }

    fn set_rules(&self, topic: &Arc<str>, rules: TopicRules) {
        self.producer.set_max_batch_bytes(topic, rules.max_batch_bytes);
    }
}

impl<C: Completion> QueuedMessage for NativeMessage<C> {
    fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl<C: Completion> ProducerMessage for NativeMessage<C> {
    fn topic(&self) -> &Arc<str> {
        &self.record.topic
    }

    fn partition(&self) -> i32 {
        self.partition
    }

    fn with_record(&self, encode: &mut dyn FnMut(&RecordView)) {
        with_view(&self.record, self.timestamp_ms, encode);
    }

    fn end(self, outcome: Outcome, reason: &str) {
        let (completion, result, _) = self.ended(outcome, reason);
        completion.complete(result);
    }

    fn end_all(ended: impl Iterator<Item = EndedWithReason<Self>>) {
        let ended =
            ended.map(|(message, outcome, reason)| message.ended(outcome, reason.as_deref().unwrap_or_default()));
        C::complete_all(ended);
    }
}

impl<C: Completion> NativeMessage<C> {
    fn ended(self, outcome: Outcome, reason: &str) -> (C, AppendResult, Box<Record>) {
        let result = self.result(outcome, reason);
        (self.completion, result, self.record)
    }

    /// Converts the outcome of this message.
    fn result(&self, outcome: Outcome, reason: &str) -> AppendResult {
        let topic = &self.record.topic;
        let error = match outcome {
            Outcome::Appended(offset) => {
                if offset.is_some() {
                    self.state.confirmed();
                }
                return Ok(Appended { partition: self.partition, offset });
            }
            Outcome::Rejected(error, stored) => {
                self.state.refresh_soon(topic);
                let has_own_time = self.record.timestamp_ms.is_some();
                rejected(error, stored_of(stored), topic, reason, has_own_time)
            }
            Outcome::TimedOut(outcome::Stored::No) => {
                let partition = self.partition;
                let reason = format!("not stored in partition {partition} of topic {topic} in time: {reason}");
                not_stored(AppendFailure::Unreachable, reason)
            }
            Outcome::TimedOut(outcome::Stored::Unknown) => AppendError {
                kind: AppendFailure::TimedOut,
                stored: Stored::Unknown,
                reason: format!("no acknowledgement for topic {topic}: {reason}"),
            },
            Outcome::Throttled(wait) => {
                let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
                not_stored(AppendFailure::Throttled { seconds }, format!("not stored in topic {topic}: {reason}"))
            }
            Outcome::QueueFull => not_stored(AppendFailure::Full, "the producer's queue is full".to_owned()),
            Outcome::Closed(stored) => AppendError {
                kind: AppendFailure::Closed,
                stored: stored_of(stored),
                reason: "the producer was closed before the broker confirmed the message".to_owned(),
            },
        };
        Err(self.state.reconsider(topic, error))
    }
}

fn with_view(record: &Record, timestamp_ms: i64, encode: &mut dyn FnMut(&RecordView)) {
    let headers = record.headers.iter().map(|header| (&*header.name, header.value.as_deref()));
    let headers: Vec<_> = headers.collect();
    let (key, value) = (record.key.as_deref(), record.value.as_deref());
    encode(&RecordView { key, value, headers: &headers, timestamp_ms });
}

/// Returns the error for a message that the broker, or the client in its name, rejected with this code.
/// `has_own_time`: the timestamp is that of the caller.
fn rejected(error: i16, stored: Stored, topic: &str, reason: &str, has_own_time: bool) -> AppendError {
    let kind = match (error, stored) {
        // The topic, or the partition, was deleted while the message waited for its leader.
        (code::UNKNOWN_TOPIC_OR_PARTITION, _) => AppendFailure::UnknownTopic,
        (_, Stored::Unknown) => AppendFailure::TimedOut,
        (code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE, Stored::No) => AppendFailure::TooLarge,
        (code::OUT_OF_ORDER_SEQUENCE_NUMBER | code::UNKNOWN_PRODUCER_ID | code::INVALID_PRODUCER_EPOCH, Stored::No) => {
            AppendFailure::Unreachable
        }
        // The clocks of this machine and of the broker differ, or the message waited for long.
        (code::INVALID_TIMESTAMP, Stored::No) if !has_own_time => AppendFailure::Refused,
        (error, Stored::No) => refusal(error),
    };
    let reason = match kind {
        AppendFailure::TooLarge => {
            format!("larger than the limit of the broker (message.max.bytes) or of topic {topic} (max.message.bytes)")
        }
        AppendFailure::TimedOut => format!("no acknowledgement for topic {topic}: {reason}"),
        _ => format!("refused for topic {topic}: {reason}"),
    };
    AppendError { kind, stored, reason }
}

/// Returns the failure for a refusal with this error code: the message, a missing right, or the settings.
fn refusal(error: i16) -> AppendFailure {
    match error {
        code::INVALID_RECORD | code::INVALID_TIMESTAMP | code::CORRUPT_MESSAGE | code::POLICY_VIOLATION => {
            AppendFailure::Invalid
        }
        // INVALID_TOPIC_EXCEPTION: an internal topic of the brokers. The gate has checked the name.
        code::TOPIC_AUTHORIZATION_FAILED | code::CLUSTER_AUTHORIZATION_FAILED | code::INVALID_TOPIC_EXCEPTION => {
            AppendFailure::NotAuthorized
        }
        _ => AppendFailure::Refused,
    }
}

fn stored_of(stored: outcome::Stored) -> Stored {
    match stored {
        outcome::Stored::No => Stored::No,
        outcome::Stored::Unknown => Stored::Unknown,
    }
}

fn cost_bytes(record: &Record) -> usize {
    let headers = record.headers.iter();
    let header_bytes = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len) + HEADER_OVERHEAD_BYTES;
    RECORD_OVERHEAD_BYTES
        + record.key.as_ref().map_or(0, Vec::len)
        + record.value_bytes()
        + headers.map(|header| header.name.len() + header_bytes(&header.value)).sum::<usize>()
}

/// Looks topics up for the gate, and passes all metadata to the producer.
struct NativeMetadata<C: Completion> {
    client: KafkaMetadata,
    sink: MetadataSink<NativeMessage<C>>,
    /// Whether a lookup may create a topic (`allow.auto.create.topics`).
    auto_create_topics: bool,
}

impl<C: Completion> MetadataClient for NativeMetadata<C> {
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String> {
        match self.client.request(MetadataTopics::None, Instant::now() + wait) {
            Ok(response) => drop(self.sink.update(&response)),
            // A quota on requests delays the check.
            Err(_) if self.client.is_throttled() => {}
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    fn look_up(&mut self, topics: &[Arc<str>], wait: Duration) -> Result<Vec<TopicAnswer>, String> {
        if !self.auto_create_topics {
            return self.refresh(topics, wait);
        }
        let response = self.client.request_or_create(topics.to_vec(), Instant::now() + wait);
        self.answers(topics, response)
    }

    fn refresh(&mut self, topics: &[Arc<str>], wait: Duration) -> Result<Vec<TopicAnswer>, String> {
        let response = self.client.request(MetadataTopics::Names(topics.to_vec()), Instant::now() + wait);
        self.answers(topics, response)
    }

    fn rules(&mut self, topics: &[Arc<str>], wait: Duration) -> HashMap<Arc<str>, TopicRules> {
        let deadline = Instant::now() + wait;
        let configs = self.client.topic_configs(topics, &CONFIG_NAMES, deadline);
        let mut rules: HashMap<_, _> = configs.map_or_else(
            |error| {
                debug!("{error}");
                HashMap::new()
            },
            |configs| {
                configs.iter().map(|(topic, found)| (Arc::clone(topic), TopicRules::from_configs(found))).collect()
            },
        );
        match self.client.write_rights(topics, deadline) {
            Ok(rights) => rights.into_iter().for_each(|(topic, may_write)| {
                rules.entry(topic).or_insert(TopicRules::UNKNOWN).may_write = may_write;
            }),
            Err(error) => debug!("{error}"),
        }
        rules
    }
}

impl<C: Completion> NativeMetadata<C> {
    /// Passes a response on to the producer; returns the answers for these topics.
    fn answers(
        &self,
        topics: &[Arc<str>],
        response: Result<MetadataResponse, ClientError>,
    ) -> Result<Vec<TopicAnswer>, String> {
        let response = response.map_err(|error| error.to_string())?;
        let higher = self.sink.update(&response);
        let found: HashMap<&str, &TopicMetadata> = response.topics.iter().map(|found| (&*found.name, found)).collect();
        let answer_of = |topic: &Arc<str>| answer(found.get(&**topic).copied(), &higher);
        Ok(topics.iter().map(|topic| (Arc::clone(topic), answer_of(topic))).collect())
    }
}

/// Returns the answer that the metadata of a topic gives; `None` is a topic that the response lacks. `higher`: see
/// [`MetadataSink::update`].
fn answer(found: Option<&TopicMetadata>, higher: &HashMap<Arc<str>, usize>) -> LookupAnswer {
    let Some(found) = found else { return LookupAnswer::DoesNotExist };
    match found.error_code {
        code::NONE if found.partitions.is_empty() => LookupAnswer::NotYet,
        code::NONE => {
            let count = higher.get(&found.name).copied().unwrap_or(found.partitions.len());
            LookupAnswer::Exists(i32::try_from(count).unwrap_or(i32::MAX))
        }
        code::UNKNOWN_TOPIC_OR_PARTITION => LookupAnswer::DoesNotExist,
        code::LEADER_NOT_AVAILABLE => LookupAnswer::NotYet,
        error if code::is_retriable(error) => LookupAnswer::NotYet,
        error => LookupAnswer::Refused(refusal(error), code::name(error).into_owned()),
    }
}

#[cfg(test)]
mod tests;
