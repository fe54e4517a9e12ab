//! One Produce request of a sender: takes the batches, encodes them, sends them and applies the response.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::accumulator::{BatchToSend, Sending};
use super::buffers::Buffers;
use super::leaders::LeaderHint;
use super::message::{AcksLevel, ProducerMessage};
use super::outcome::{BatchResult, BrokerId, EndedWithReason};
use super::response::{FIRST_THROTTLED_PRODUCE, batch_result, reason, throttle_time};
use super::sender::Sender;
use super::sender_handle::Activity;
use super::topic_limit::UNKNOWN_LIMIT_BYTES;
use crate::kafka::compression::Codec;
use crate::kafka::connection::{Connection, ConnectionError, ConnectionErrorKind};
use crate::kafka::error_code;
use crate::kafka::frame::RequestBuffer;
use crate::kafka::produce::{self, PartitionData, PartitionOutcome, ProduceResponse};
use crate::kafka::record_batch::{BatchBuilder, ProducerState};

/// A request whose messages have all reached their deadlines is waited for at least this long after it was sent, so
/// that short deadlines do not make the client reconnect to a slow broker again and again.
const MIN_RESPONSE_TIME: Duration = Duration::from_secs(2);

/// A batch of the request in flight.
struct SentBatch {
    sending: Sending,
    topic: Arc<str>,
    partition: i32,
    producer: ProducerState,
    /// Records to encode; `None` for an unchanged retry, whose bytes exist.
    builder: Option<BatchBuilder>,
    bytes: Vec<u8>,
    /// Size before compression; 0 for an unchanged retry.
    raw_bytes: usize,
    /// A larger batch is not sent: with acks=0 a broker would answer it by closing the connection.
    max_bytes: usize,
    message_count: usize,
    last_deadline: Option<Instant>,
}

/// The result of a batch, and the cause of a failure as an error text.
type ResultWithReason = (BatchResult, Option<Arc<str>>);

/// The response to a request with its version; `None` after acks=0, when the request was handed to the socket.
type Response = Option<(ProduceResponse, i16)>;

/// Why a request has no response.
struct RequestFailure {
    error: ConnectionError,
    /// The result of all batches in the request.
    result: BatchResult,
}

impl<M: ProducerMessage> Sender<M> {
    /// Sends one request and handles its response; does nothing if all partitions wait for a producer id.
    pub(super) fn exchange(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let mut batches = self.take();
        if batches.is_empty() {
            self.connection = Some(connection);
            return;
        }
        self.last_used = Instant::now();
        self.encode(&mut batches);
        let too_large: Vec<_> = batches.extract_if(.., |batch| batch.bytes.len() > batch.max_bytes).collect();
        if batches.is_empty() {
            self.connection = Some(connection);
        } else {
            self.send_batches(connection, batches);
        }
        if !too_large.is_empty() {
            self.refuse_too_large(too_large);
        }
    }

    fn send_batches(&mut self, mut connection: Connection, batches: Vec<SentBatch>) {
        match self.request(&mut connection, &batches) {
            Ok(response) => {
                self.connection = Some(connection);
                self.backoff.reset();
                self.complete(batches, response);
            }
            Err(RequestFailure { error, result }) => {
                drop(connection);
                let reason: Arc<str> = Arc::from(error.to_string());
                let results = batches.iter().map(|_| (result.clone(), Some(Arc::clone(&reason)))).collect();
                self.failed(reason.to_string());
                self.apply(batches, results);
            }
        }
    }

    /// Handles batches that are larger than their topics accept, as a response MESSAGE_TOO_LARGE.
    fn refuse_too_large(&mut self, batches: Vec<SentBatch>) {
        let reason = error_code::name(error_code::MESSAGE_TOO_LARGE);
        let result = || (BatchResult::TooLarge(error_code::MESSAGE_TOO_LARGE), Some(Arc::from(&*reason)));
        let results = batches.iter().map(|_| result()).collect();
        self.apply(batches, results);
    }

    /// Takes the batches of one request out of the queue, with their records copied into builders; sorted by topic.
    fn take(&mut self) -> Vec<SentBatch> {
        let Sender { shared, level, buffers, broker, .. } = self;
        let ending = shared.ending();
        let mut throttled = Vec::new();
        let mut batches = shared.change(level, |level| {
            let (now, mut batches) = (Instant::now(), Vec::new());
            throttled = level.end_throttled(*broker, now);
            level.take(*broker, now, |batch, topic, partition, bytes| {
                batches.push(sent_batch(&batch, topic, partition, bytes, buffers));
            });
            if !batches.is_empty() {
                level.begin(*broker, Activity::Producing, now);
            }
            if level.acks == AcksLevel::None {
                batches.iter_mut().for_each(|batch| batch.max_bytes = level.max_batch_bytes(&batch.topic));
            }
            batches
        });
        ending.end_all(throttled);
        batches.sort_by(|left, right| left.topic.cmp(&right.topic));
        if self.level.acks == AcksLevel::None {
            self.latest_topics = [largest_by_topic(&batches), std::mem::take(&mut self.latest_topics[0])];
        }
        batches
    }

    /// Encodes the batches; without the lock of the level, since compression takes time.
    fn encode(&mut self, batches: &mut [SentBatch]) {
        for batch in batches {
            let Some(mut builder) = batch.builder.take() else { continue };
            let codec = self.shared.config.codec;
            if codec != Codec::None {
                let mut compressed = self.buffers.take();
                match builder.finish(codec, batch.producer, &mut compressed) {
                    Ok(_) => {
                        batch.bytes = compressed;
                        self.buffers.keep(builder.into_buffer());
                        continue;
                    }
                    // Data that a codec cannot compress is sent as it is.
                    Err(cause) => warn!("{cause}; the batch is sent without compression"),
                }
                self.buffers.keep(compressed);
            }
            batch.bytes = builder.take_uncompressed(batch.producer);
        }
    }

    fn request(&self, connection: &mut Connection, batches: &[SentBatch]) -> Result<Response, RequestFailure> {
        let version = connection.version_of(produce::API_KEY, produce::VERSIONS).map_err(not_received)?;
        let (now, request_timeout) = (Instant::now(), self.shared.connector.config().request_timeout);
        let last_deadline = batches.iter().filter_map(|batch| batch.last_deadline).max().unwrap_or(now);
        let deadline = last_deadline.max(now + MIN_RESPONSE_TIME).min(now + request_timeout);
        // The broker gives up a bit before this client, so that its answer keeps the connection.
        let ack_timeout = self.shared.config.ack_timeout.min((deadline - now) * 9 / 10);
        let timeout_ms = i32::try_from(ack_timeout.as_millis()).unwrap_or(i32::MAX);
        let acks = self.level.acks.number();
        let flexible = version >= produce::FIRST_FLEXIBLE;
        let sent = connection
            .send_with(produce::API_KEY, version, flexible, deadline, |request| {
                encode_body(request, version, acks, timeout_ms, batches);
            })
            .map_err(not_received)?;
        if self.level.acks == AcksLevel::None {
            connection.expect_no_response(sent);
            return Ok(None);
        }
        let response = connection.receive_with(sent, deadline, |body| produce::decode_response(body, version));
        match response {
            Ok(response) => Ok(Some((response, version))),
            // The broker may have carried out the request, whatever the kind of the failure.
            Err(error) => Err(RequestFailure { error, result: BatchResult::MaybeStored }),
        }
    }

    fn complete(&mut self, batches: Vec<SentBatch>, response: Response) {
        let Some((response, version)) = response else {
            let results = batches.iter().map(|_| (BatchResult::Stored(None), None)).collect();
            return self.apply(batches, results);
        };
        let sent_bytes = batches.iter().map(|batch| batch.bytes.len()).sum();
        let mut hints = Vec::new();
        let mut outcomes = Outcomes::new(&response.partitions);
        let results: Vec<_> = batches.iter().map(|batch| self.result_of(batch, &mut outcomes, &mut hints)).collect();
        self.learn_limits(&batches, &results);
        // Before the messages end, so that what is appended from then on waits, or is refused.
        self.throttle(throttle_time(response.throttle_time_ms, version, FIRST_THROTTLED_PRODUCE), sent_bytes);
        self.apply(batches, results);
        self.is_refused_as_leader = !hints.is_empty();
        if !hints.is_empty() {
            self.shared.mark_partitions(&hints, &response.nodes);
        }
    }

    fn result_of(&self, batch: &SentBatch, outcomes: &mut Outcomes, hints: &mut Vec<LeaderHint>) -> ResultWithReason {
        let broker = self.broker;
        let Some(outcome) = outcomes.of(&batch.topic, batch.partition) else {
            let reason = format!("broker {broker}: the response does not contain the partition");
            return (BatchResult::MaybeStored, Some(Arc::from(reason)));
        };
        if error_code::needs_metadata(outcome.error_code) {
            hints.push((Arc::clone(&batch.topic), outcome.partition, outcome.current_leader));
        }
        let result = batch_result(outcome, self.level.acks);
        if is_too_large(outcome.error_code) && batch.message_count > 1 {
            let (topic, partition) = (&batch.topic, batch.partition);
            info!(
                "a batch exceeded max.message.bytes of topic {topic}: the next ones of partition {partition} are smaller"
            );
        }
        let is_stored = matches!(result, BatchResult::Stored(_));
        let reason = (!is_stored).then(|| Arc::from(format!("broker {broker}: {}", reason(outcome))));
        (result, reason)
    }

    /// Notes which batch sizes the topics accept, for acks=0.
    fn learn_limits(&self, batches: &[SentBatch], results: &[ResultWithReason]) {
        let is_compressed = self.shared.config.codec != Codec::None;
        for (SentBatch { topic, raw_bytes, message_count, .. }, (result, _)) in batches.iter().zip(results) {
            match result {
                // Of a batch that was compressed well nothing follows for others.
                BatchResult::Stored(_) if *raw_bytes > UNKNOWN_LIMIT_BYTES && !is_compressed => {
                    self.shared.change_limit(topic, |limit| limit.record_stored(*raw_bytes));
                }
                BatchResult::TooLarge(code) if is_too_large(*code) && *message_count > 1 && *raw_bytes > 0 => {
                    self.shared.change_limit(topic, |limit| limit.record_refused(*raw_bytes, Instant::now()));
                }
                _ => {}
            }
        }
    }

    /// Applies the results of all batches under one lock, then ends the messages.
    fn apply(&mut self, batches: Vec<SentBatch>, results: Vec<ResultWithReason>) {
        let now = Instant::now();
        let ending = self.shared.ending();
        let message_count = batches.iter().map(|batch| batch.message_count).sum();
        let mut ended: Vec<EndedWithReason<M>> = Vec::with_capacity(message_count);
        let mut woken: Vec<BrokerId> = Vec::new();
        let mut level = self.level.lock();
        for (batch, (result, reason)) in batches.into_iter().zip(results) {
            let index = batch.sending.partition;
            let end = &mut |(message, outcome)| ended.push((message, outcome, reason.clone()));
            woken.extend(level.accumulator.complete(batch.sending, result, now, end));
            level.record_failure(index, reason);
            if let Some(bytes) = level.retain(index, batch.bytes) {
                self.buffers.keep(bytes);
            }
        }
        level.end(self.broker, Activity::Idle);
        drop(level);
        woken.retain(|broker| *broker != self.broker);
        self.shared.wake(&self.level, &woken);
        ending.end_all(ended);
    }
}

/// Whether this error code refuses a batch because of its size.
fn is_too_large(error: i16) -> bool {
    matches!(error, error_code::MESSAGE_TOO_LARGE | error_code::RECORD_LIST_TOO_LARGE)
}

/// Copies the records of a batch into a builder; `bytes` are those of an unchanged retry. The caller holds the lock of
/// the level.
fn sent_batch<M: ProducerMessage>(
    batch: &BatchToSend<M>,
    topic: &Arc<str>,
    partition: i32,
    bytes: Option<Vec<u8>>,
    buffers: &mut Buffers,
) -> SentBatch {
    let (topic, sending, producer) = (Arc::clone(topic), batch.sending, batch.producer);
    let message_count = batch.messages.iter().flatten().count();
    let last_deadline = batch.messages.iter().flatten().map(M::deadline).max();
    debug_assert_eq!(bytes.is_some(), batch.is_unchanged_retry, "the bytes of a batch that may be stored are kept");
    let builder = (!batch.is_unchanged_retry).then(|| {
        let mut builder = BatchBuilder::with_buffer(buffers.take());
        for message in batch.messages.iter().flatten() {
            message.with_record(&mut |record| builder.push(record));
        }
        builder
    });
    let (bytes, raw_bytes) = (bytes.unwrap_or_default(), builder.as_ref().map_or(0, BatchBuilder::encoded_bytes));
    SentBatch {
        sending,
        topic,
        partition,
        producer,
        builder,
        bytes,
        raw_bytes,
        max_bytes: usize::MAX,
        message_count,
        last_deadline,
    }
}

/// Returns the topics of a request, sorted, with their largest batch of several messages.
fn largest_by_topic(batches: &[SentBatch]) -> Vec<(Arc<str>, usize)> {
    let size = |batch: &SentBatch| if batch.message_count > 1 { batch.raw_bytes } else { 0 };
    let of_topic = batches.chunk_by(|left, right| left.topic == right.topic);
    of_topic.map(|group| (Arc::clone(&group[0].topic), group.iter().map(size).max().unwrap_or(0))).collect()
}

/// Returns the failure of a request that could not be sent, or only in part.
fn not_received(error: ConnectionError) -> RequestFailure {
    let result = match error.kind {
        ConnectionErrorKind::NotSent | ConnectionErrorKind::Denied | ConnectionErrorKind::Unsupported => {
            BatchResult::NotStored
        }
        ConnectionErrorKind::Lost
        | ConnectionErrorKind::TimedOut
        | ConnectionErrorKind::Malformed
        | ConnectionErrorKind::TooLarge => BatchResult::MaybeStored,
    };
    RequestFailure { error, result }
}

fn encode_body<'a>(
    request: &mut RequestBuffer<'a>,
    version: i16,
    acks: i16,
    timeout_ms: i32,
    batches: &'a [SentBatch],
) {
    let data: Vec<PartitionData> =
        batches.iter().map(|batch| PartitionData { partition: batch.partition, records: &batch.bytes }).collect();
    let mut topics: Vec<(&str, &[PartitionData])> = Vec::new();
    let mut start = 0;
    for group in batches.chunk_by(|left, right| left.topic == right.topic) {
        topics.push((&group[0].topic, &data[start..start + group.len()]));
        start += group.len();
    }
    produce::encode_request(request, version, acks, timeout_ms, &topics);
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
