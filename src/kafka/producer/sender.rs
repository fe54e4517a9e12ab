//! The thread that sends the messages of one acks level to one broker, over a connection of its own.
//!
//! It has one request in flight. While it waits for the response, further messages gather; they go out together in the
//! next request, with all partitions that the broker leads. A broker processes the requests of a connection one after
//! the other, so a second request in flight would not be processed earlier. Each level has its own connection, so that
//! a request that waits for replicas does not delay those of the other levels.
//!
//! Without a connection nothing is taken out of the queue: what waits there was certainly not sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::client::Shared;
use super::gather::{BatchToSend, PartitionIndex, Sending};
use super::level::{Level, LevelState, ProducerIdState};
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{BatchResult, BrokerId, Outcome};
use super::response::{Judged, judge, reason};
use crate::kafka::backoff::Backoff;
use crate::kafka::compression::Codec;
use crate::kafka::connection::{Connection, ConnectionError, ConnectionErrorKind, Disconnect, SentRequest};
use crate::kafka::error_code;
use crate::kafka::produce::{self, PartitionData, PartitionOutcome, ProduceResponse};
use crate::kafka::protocol::init_producer_id::InitProducerIdRequest;
use crate::kafka::record_batch::{BatchBuilder, ProducerState};

/// Back-off between attempts to connect.
const MIN_RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const MAX_RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// A request whose messages have all reached their deadlines is waited for at least this long after it was sent, so that
/// short deadlines do not make the client reconnect to a slow broker again and again.
const MIN_RESPONSE_TIME: Duration = Duration::from_secs(2);
/// A connection that was idle for this long is checked before it is used: the broker may have closed it.
const CHECKED_AFTER_IDLE: Duration = Duration::from_millis(100);
/// Pause before another producer id is requested after the cluster refused one; it doubles.
const MIN_REFUSAL_PAUSE: Duration = Duration::from_secs(1);
const MAX_REFUSAL_PAUSE: Duration = Duration::from_secs(30);
/// Pause before a request for a producer id is repeated, for instance while the cluster starts.
const PRODUCER_ID_PAUSE: Duration = Duration::from_millis(100);
/// Pause of a sender whose partitions wait for the producer id that another sender has requested.
const PRODUCER_ID_WAIT: Duration = Duration::from_millis(10);
/// Buffers kept for further batches are not larger than this.
const MAX_KEPT_BUFFER_BYTES: usize = 256 << 10;

/// Sends the messages of one level to one broker.
pub(super) struct Sender<M> {
    shared: Arc<Shared<M>>,
    level: Arc<Level<M>>,
    broker: BrokerId,
    connection: Option<Connection>,
    last_used: Instant,
    backoff: Backoff,
    /// No attempt to connect or to send is made earlier.
    not_before: Option<Instant>,
    /// Whether the messages that can be sent have waited for others (`linger.ms`).
    has_lingered: bool,
    /// Builders of earlier batches, whose memory is reused.
    builders: Vec<BatchBuilder>,
    buffers: Vec<Vec<u8>>,
}

/// A batch of the request in flight.
struct SentBatch {
    sending: Sending,
    topic: Arc<str>,
    partition: i32,
    producer: ProducerState,
    /// Records to encode; `None` for an unchanged retry, whose bytes exist.
    builder: Option<BatchBuilder>,
    bytes: Vec<u8>,
    last_deadline: Option<Instant>,
}

/// A message that has ended, with its outcome and the cause.
type Ended<M> = (M, Outcome, Arc<str>);

impl<M: ProducerMessage> Sender<M> {
    pub(super) fn new(shared: Arc<Shared<M>>, level: Arc<Level<M>>, broker: BrokerId) -> Self {
        Sender {
            shared,
            level,
            broker,
            connection: None,
            last_used: Instant::now(),
            backoff: Backoff::new(MIN_RECONNECT_PAUSE, MAX_RECONNECT_PAUSE),
            not_before: None,
            has_lingered: false,
            builders: Vec::new(),
            buffers: Vec::new(),
        }
    }

    /// Sends until the producer is closed, or until the broker has not been used for the idle time.
    pub(super) fn run(mut self) {
        if let Some(handle) = self.level.lock().senders.get_mut(&self.broker) {
            handle.thread = Some(thread::current());
        }
        while !self.shared.is_closed() {
            let now = Instant::now();
            if let Some(due) = self.not_before.filter(|due| *due > now) {
                thread::park_timeout(due - now);
                continue;
            }
            self.not_before = None;
            let due = self.level.lock().gather.next_due(self.broker, now);
            match due {
                // A new message ends the wait.
                Some(due) if due > now => thread::park_timeout(due - now),
                Some(_) if self.shared.config.linger > Duration::ZERO && !self.has_lingered => {
                    self.has_lingered = true;
                    self.not_before = Some(now + self.shared.config.linger);
                }
                Some(_) => {
                    self.has_lingered = false;
                    if self.is_connected() && self.has_producer_id() {
                        self.exchange();
                    }
                }
                // Also if another sender requests an id: that request may fail, and its own messages may have ended.
                None if self.level.lock().gather.awaits_producer() => {
                    self.not_before = Some(now + PRODUCER_ID_WAIT);
                    let _ = self.is_connected() && self.has_producer_id();
                }
                None if self.wait_idle(now) => {}
                None => return,
            }
        }
        self.level.lock().senders.remove(&self.broker);
    }

    /// Waits for a message; returns false once the thread has ended its work because it was idle for too long.
    fn wait_idle(&mut self, now: Instant) -> bool {
        let idle_end = self.last_used + self.shared.connector.config().max_idle;
        if now < idle_end {
            thread::park_timeout(idle_end - now);
            return true;
        }
        let mut level = self.level.lock();
        if level.gather.next_due(self.broker, now).is_some() {
            return true;
        }
        // Removed under the lock: the next message starts another thread.
        level.senders.remove(&self.broker);
        false
    }

    /// Makes a connection if there is none; without one the cause is recorded and metadata is requested.
    fn is_connected(&mut self) -> bool {
        let is_unchecked = self.level.acks == AcksLevel::None || self.last_used.elapsed() >= CHECKED_AFTER_IDLE;
        if self.connection.as_mut().is_some_and(|connection| is_unchecked && connection.is_closed()) {
            self.disconnect();
            // With acks=0 a broker reports an error by closing the connection, for instance as it is no longer leader.
            self.shared.doubt_leader(self.broker);
        }
        if self.connection.is_some() {
            return true;
        }
        let Some(address) = self.shared.address_of(self.broker) else {
            self.failed(format!("broker {} is not in the metadata of the cluster", self.broker));
            return false;
        };
        let deadline = Instant::now() + self.shared.connector.config().connect_timeout;
        let disconnect = Disconnect::new();
        if let Some(sender) = self.level.lock().senders.get_mut(&self.broker) {
            // Before the attempt: `close` ends it.
            sender.disconnect = Some(disconnect.clone());
        }
        if self.shared.is_closed() {
            return false;
        }
        match self.shared.connector.connect_with(&address, deadline, &disconnect) {
            Ok(connection) => {
                if let Some(sender) = self.level.lock().senders.get_mut(&self.broker) {
                    sender.last_failure.clear();
                }
                self.connection = Some(connection);
                self.last_used = Instant::now();
                !self.shared.is_closed()
            }
            Err(error) => {
                self.failed(error.to_string());
                false
            }
        }
    }

    /// Records a failure of the connection, requests metadata and starts the back-off.
    fn failed(&mut self, reason: String) {
        self.disconnect();
        debug!("{}: {reason}", self.level.acks.name());
        if let Some(sender) = self.level.lock().senders.get_mut(&self.broker) {
            sender.last_failure = reason;
        }
        self.shared.doubt_leader(self.broker);
        self.not_before = Some(Instant::now() + self.backoff.next());
    }

    fn disconnect(&mut self) {
        self.connection = None;
        if let Some(sender) = self.level.lock().senders.get_mut(&self.broker) {
            sender.disconnect = None;
        }
    }

    /// Requests a producer id if the level needs one; returns whether batches can be sent.
    fn has_producer_id(&mut self) -> bool {
        if self.level.acks != AcksLevel::All {
            return true;
        }
        {
            let level = self.level.lock();
            if !level.gather.needs_producer() {
                return true;
            }
            match &level.producer_id {
                // Another sender has requested it and wakes this one; its own partitions may need none.
                ProducerIdState::Requested => return true,
                ProducerIdState::Refused { until, .. } if Instant::now() < *until => {
                    self.not_before = Some(*until);
                    return false;
                }
                ProducerIdState::Idle | ProducerIdState::Refused { .. } => {}
            }
        }
        let Some(connection) = &mut self.connection else { return false };
        let pause = match &std::mem::replace(&mut self.level.lock().producer_id, ProducerIdState::Requested) {
            ProducerIdState::Refused { pause, .. } => (*pause * 2).min(MAX_REFUSAL_PAUSE),
            ProducerIdState::Idle | ProducerIdState::Requested => MIN_REFUSAL_PAUSE,
        };
        let deadline = Instant::now() + self.shared.connector.config().request_timeout;
        let response = connection.call(&InitProducerIdRequest::NEW, deadline);
        match response {
            Ok(response) if response.error_code == error_code::NONE => {
                let mut level = self.level.lock();
                level.producer_id = ProducerIdState::Idle;
                let brokers = level.gather.set_producer(response.producer_id, response.producer_epoch);
                drop(level);
                self.shared.wake(&self.level, &brokers);
                true
            }
            Ok(response) if error_code::is_retriable(response.error_code) => {
                self.level.lock().producer_id = ProducerIdState::Idle;
                self.not_before = Some(Instant::now() + PRODUCER_ID_PAUSE);
                false
            }
            Ok(response) => {
                let code = response.error_code;
                let reason =
                    format!("{}: the cluster refuses a producer id, which acks=-1 needs", error_code::name(code));
                self.refuse_all(code, &reason, pause);
                false
            }
            Err(error) if error.kind == ConnectionErrorKind::Unsupported => {
                self.refuse_all(error_code::UNSUPPORTED_VERSION, &error.to_string(), pause);
                false
            }
            Err(error) => {
                self.level.lock().producer_id = ProducerIdState::Idle;
                self.failed(error.to_string());
                false
            }
        }
    }

    /// Refuses all messages of the level for `pause`, those that wait included.
    fn refuse_all(&mut self, code: i16, reason: &str, pause: Duration) {
        warn!("messages with acks=-1 are refused for {} s: {reason}", pause.as_secs());
        let mut ended = Vec::new();
        let mut level = self.level.lock();
        let until = Instant::now() + pause;
        level.producer_id = ProducerIdState::Refused { code, reason: reason.to_owned(), until, pause };
        level
            .gather
            .drain_all(&mut |(message, outcome)| ended.push((message, Outcome::Rejected(code, outcome.stored()))));
        drop(level);
        ended.into_iter().for_each(|(message, outcome)| message.end(outcome, reason));
    }

    /// Sends one request and handles its response.
    fn exchange(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let mut batches = self.take();
        if batches.is_empty() {
            // All partitions wait for a producer id that another sender has requested.
            self.connection = Some(connection);
            self.not_before = Some(Instant::now() + PRODUCER_ID_WAIT);
            return;
        }
        self.last_used = Instant::now();
        self.encode(&mut batches);
        match self.request(&mut connection, &batches) {
            Ok(response) => {
                self.connection = Some(connection);
                self.backoff.reset();
                self.complete(batches, response);
            }
            Err(error) => {
                drop(connection);
                let result = match error.kind {
                    ConnectionErrorKind::NotSent | ConnectionErrorKind::Denied | ConnectionErrorKind::Unsupported => {
                        BatchResult::NotStored
                    }
                    ConnectionErrorKind::Lost | ConnectionErrorKind::TimedOut | ConnectionErrorKind::Malformed => {
                        BatchResult::MaybeStored
                    }
                };
                self.failed(error.to_string());
                self.complete_all(batches, &result, &error.reason);
            }
        }
    }

    /// Takes the batches of one request out of the queue, with their records copied into builders.
    fn take(&mut self) -> Vec<SentBatch> {
        let mut batches = Vec::new();
        let builders = &mut self.builders;
        let mut level = self.level.lock();
        let LevelState { gather, retained, .. } = &mut *level;
        gather.take(self.broker, Instant::now(), |batch| {
            batches.extend(sent_batch(&batch, builders, retained));
        });
        if let Some(sender) = level.senders.get_mut(&self.broker) {
            sender.request_count += 1;
        }
        batches
    }

    /// Encodes the batches; without the lock of the level, since compression takes time.
    fn encode(&mut self, batches: &mut [SentBatch]) {
        for batch in batches {
            let Some(mut builder) = batch.builder.take() else { continue };
            batch.bytes = self.buffers.pop().unwrap_or_default();
            batch.bytes.clear();
            if let Err(cause) = builder.finish(self.shared.config.codec, batch.producer, &mut batch.bytes) {
                // Data that a codec cannot compress is sent as it is.
                warn!("{cause}; the batch is sent without compression");
                let _ = builder.finish(Codec::None, batch.producer, &mut batch.bytes);
            }
            if builder.encoded_bytes() <= MAX_KEPT_BUFFER_BYTES {
                builder.clear();
                self.builders.push(builder);
            }
        }
    }

    fn request(
        &self,
        connection: &mut Connection,
        batches: &[SentBatch],
    ) -> Result<Option<ProduceResponse>, ConnectionError> {
        let version = connection.version_of(produce::API_KEY, produce::VERSIONS)?;
        let (now, request_timeout) = (Instant::now(), self.shared.connector.config().request_timeout);
        let last_deadline = batches.iter().filter_map(|batch| batch.last_deadline).max().unwrap_or(now);
        let deadline = last_deadline.max(now + MIN_RESPONSE_TIME).min(now + request_timeout);
        let ack_timeout = self.shared.config.ack_timeout.min(deadline - now);
        let timeout_ms = i32::try_from(ack_timeout.as_millis()).unwrap_or(i32::MAX);
        let acks = self.level.acks.number();
        let flexible = version >= produce::FIRST_FLEXIBLE;
        let sent = connection.send_with(produce::API_KEY, version, flexible, deadline, |buffer| {
            encode_body(buffer, version, acks, timeout_ms, batches);
        })?;
        if self.level.acks == AcksLevel::None {
            connection.expect_no_response(sent);
            return Ok(None);
        }
        let SentRequest { version, .. } = sent;
        connection.receive_with(sent, deadline, |body| produce::decode_response(body, version)).map(Some)
    }

    /// Applies a response; `None` after acks=0, when the request was handed to the socket.
    fn complete(&mut self, batches: Vec<SentBatch>, response: Option<ProduceResponse>) {
        let Some(response) = response else {
            return self.complete_all(batches, &BatchResult::Stored(None), "");
        };
        if response.throttle_time_ms > 0 {
            // The broker does not read from this connection in the meantime (KIP-219).
            let pause = Duration::from_millis(response.throttle_time_ms.unsigned_abs().into());
            self.not_before = Some(Instant::now() + pause);
        }
        let mut doubted = Vec::new();
        let mut outcomes = Outcomes::new(&response.partitions);
        let judged = batches.iter().map(|batch| match outcomes.of(&batch.topic, batch.partition) {
            None => (BatchResult::MaybeStored, Arc::from("the response does not contain the partition")),
            Some(outcome) => {
                let Judged { result, is_leader_doubtful } = judge(outcome, self.level.acks);
                if is_leader_doubtful {
                    doubted.push((Arc::clone(&batch.topic), outcome.partition, outcome.current_leader));
                }
                let is_stored = matches!(result, BatchResult::Stored(_));
                (result, if is_stored { Arc::from("") } else { Arc::from(reason(outcome)) })
            }
        });
        let judged: Vec<_> = judged.collect();
        self.apply(batches, judged);
        if !doubted.is_empty() {
            self.shared.doubt_partitions(&doubted, &response.nodes);
        }
    }

    fn complete_all(&mut self, batches: Vec<SentBatch>, result: &BatchResult, reason: &str) {
        let reason: Arc<str> = Arc::from(reason);
        let judged = batches.iter().map(|_| (result.clone(), Arc::clone(&reason))).collect();
        self.apply(batches, judged);
    }

    /// Applies the results of all batches under one lock, then ends the messages.
    fn apply(&mut self, batches: Vec<SentBatch>, results: Vec<(BatchResult, Arc<str>)>) {
        let now = Instant::now();
        let (mut ended, mut woken): (Vec<Ended<M>>, Vec<BrokerId>) = (Vec::new(), Vec::new());
        let mut level = self.level.lock();
        for (batch, (result, reason)) in batches.into_iter().zip(results) {
            let end = &mut |(message, outcome)| ended.push((message, outcome, Arc::clone(&reason)));
            let failure = if matches!(result, BatchResult::Stored(_)) { None } else { Some(Arc::clone(&reason)) };
            level.record_failure(batch.sending.partition, failure);
            woken.extend(level.gather.complete(batch.sending, result, now, end));
            if level.gather.has_unchanged_retry(batch.sending.partition) {
                level.retained.insert(batch.sending.partition, batch.bytes);
            } else if batch.bytes.capacity() <= MAX_KEPT_BUFFER_BYTES {
                self.buffers.push(batch.bytes);
            }
        }
        // The next request has another number; between requests there is none to abandon.
        if let Some(sender) = level.senders.get_mut(&self.broker) {
            sender.request_count += 1;
        }
        drop(level);
        woken.retain(|broker| *broker != self.broker);
        self.shared.wake(&self.level, &woken);
        for (message, outcome, reason) in ended {
            message.end(outcome, &reason);
        }
        self.shared.ended();
    }
}

/// Copies the records of a batch into a builder. The caller holds the lock of the level.
fn sent_batch<M: ProducerMessage>(
    batch: &BatchToSend<M>,
    builders: &mut Vec<BatchBuilder>,
    retained: &mut HashMap<PartitionIndex, Vec<u8>>,
) -> Option<SentBatch> {
    let first = batch.messages.iter().flatten().next()?;
    let (topic, partition) = (Arc::clone(first.topic()), first.partition());
    let last_deadline = batch.messages.iter().flatten().map(M::deadline).max();
    let sent = |builder, bytes| SentBatch {
        sending: batch.sending,
        topic,
        partition,
        producer: batch.producer,
        builder,
        bytes,
        last_deadline,
    };
    let kept = if retained.is_empty() { None } else { retained.remove(&batch.sending.partition) };
    if batch.is_unchanged_retry {
        debug_assert!(kept.is_some(), "the bytes of a batch that may be stored are kept until it has ended");
        return Some(sent(None, kept?));
    }
    let mut builder = builders.pop().unwrap_or_default();
    for message in batch.messages.iter().flatten() {
        message.with_record(&mut |record| builder.push(record));
    }
    Some(sent(Some(builder), Vec::new()))
}

fn encode_body(buffer: &mut Vec<u8>, version: i16, acks: i16, timeout_ms: i32, batches: &[SentBatch]) {
    let mut order: Vec<&SentBatch> = batches.iter().collect();
    order.sort_by(|left, right| left.topic.cmp(&right.topic));
    let data: Vec<PartitionData> =
        order.iter().map(|batch| PartitionData { partition: batch.partition, records: &batch.bytes }).collect();
    let mut topics: Vec<(&str, &[PartitionData])> = Vec::new();
    let mut start = 0;
    for group in order.chunk_by(|left, right| left.topic == right.topic) {
        topics.push((&group[0].topic, &data[start..start + group.len()]));
        start += group.len();
    }
    produce::encode_request(buffer, version, acks, timeout_ms, &topics);
}

/// The outcomes of a response, found by topic and partition.
struct Outcomes<'a> {
    outcomes: &'a [PartitionOutcome],
    /// Brokers answer in the order of the request: the next outcome is nearly always the one looked for.
    next: usize,
}

impl<'a> Outcomes<'a> {
    fn new(outcomes: &'a [PartitionOutcome]) -> Self {
        Outcomes { outcomes, next: 0 }
    }

    fn of(&mut self, topic: &str, partition: i32) -> Option<&'a PartitionOutcome> {
        let is_wanted = |outcome: &PartitionOutcome| outcome.partition == partition && *outcome.topic == *topic;
        let found = match self.outcomes.get(self.next) {
            Some(outcome) if is_wanted(outcome) => self.next,
            _ => self.outcomes.iter().position(is_wanted)?,
        };
        self.next = found + 1;
        Some(&self.outcomes[found])
    }
}
