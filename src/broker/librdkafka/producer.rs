//! Appends through librdkafka.
//!
//! One librdkafka producer for each level of acks, made when first used, each with a thread that runs the
//! completions as the delivery reports arrive. With one request in flight a broker, what gathers while a request is
//! under way goes together in the next, and a retry cannot reorder; acks=-1 has the idempotent producer besides.
//! Which topics exist is found out by the [`MetadataGate`]; what failed for the size of its batch alone is sent again by
//! [`super::batches`].
//!
//! What is promised of the order: what was answered before another append of its key was called stands before it, and so
//! do two of one key that were called one after the other and both confirmed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant};

use log::{info, warn};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header as NativeHeader, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::{ClientContext, IntoOpaque};

use super::asking::Asking;
use super::batches::{BATCH_BYTES, Book, Desk, Entered, Sent};
use super::native::{Persisted, most_batch_bytes, persisted};
use super::outcome::append_error;
use super::{HasVoice, Voice, common_settings, in_words, set_the_users};
use crate::broker::metadata_gate::{
    FailedAppend, GateState, MetadataGate, PendingAppend, ProducerEngine, SharedCompletion, not_stored,
};
use crate::broker::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, BrokerConfig, Completion, Header, PartitionerKind,
    Producer, ProducerConfig, Record, Stored,
};
use crate::locks::{read, write};
use crate::supervise::Supervisor;

const REPLACED: &str = "the idempotent producer was replaced after a fatal error";
/// How long a poll may block; a stop is noticed that late.
const POLL: Duration = Duration::from_millis(100);
/// With messages of a partition under way librdkafka's idempotent producer holds the next ones back and, where they need
/// not wait, asks for them in a busy loop. So short a wait costs less than that did: 2.6 times the messages a second with
/// half the CPU time for each at 64 connections, and a lower latency as well.
const IDEMPOTENT_LINGER_MS: &str = "0.5";
/// Room beside the value in a message: key, headers and framing.
const BESIDE_VALUE: usize = 64 * 1024;

/// The producer of this engine.
pub(in crate::broker) struct LibrdkafkaProducer<C: Completion> {
    gate: Arc<MetadataGate<C, Lanes<C>>>,
}

/// The librdkafka producers.
struct Lanes<C: Completion> {
    broker: BrokerConfig,
    config: ProducerConfig,
    supervisor: Supervisor,
    state: Arc<GateState<C>>,
    lanes: [Lane<C>; 3],
}

type Native<C> = BaseProducer<Context<C>>;

/// One level of acks.
struct Lane<C: Completion> {
    acks: Acks,
    /// Replaced after a fatal error of the idempotent producer.
    native: RwLock<Option<Arc<Native<C>>>>,
    desk: Arc<Desk<C>>,
}

/// A message that librdkafka has.
struct InFlight<C> {
    completion: SharedCompletion<C>,
    book: Arc<Book<C>>,
    deadline: Instant,
    sent: Sent,
}

/// The same as librdkafka carries it.
struct Carried<C>(Box<InFlight<C>>);

impl<C: Completion> LibrdkafkaProducer<C> {
    /// Makes the producer and starts its threads; no broker need be reachable.
    pub(in crate::broker) fn new(
        broker: &BrokerConfig,
        config: ProducerConfig,
        supervisor: &Supervisor,
    ) -> Result<Self, String> {
        let state = GateState::new(&config);
        let lane = |acks| Lane { acks, native: RwLock::new(None), desk: Desk::new(config.max_in_flight.max(1)) };
        let lanes = Lanes {
            broker: broker.clone(),
            config: config.clone(),
            supervisor: supervisor.clone(),
            state: Arc::clone(&state),
            lanes: [lane(Acks::None), lane(Acks::Leader), lane(Acks::All)],
        };
        // The default level is made now, so that settings librdkafka does not take are told at the start. Questions go by the
        // one whose messages are not confirmed: there they never wait behind messages that a broker is slow to confirm.
        lanes.native(Acks::Leader)?;
        let asking = Asking::new(lanes.native(Acks::None)?, &broker.hosts);
        let gate = MetadataGate::new(lanes, state, &config, asking, broker.request_timeout, supervisor);
        Ok(LibrdkafkaProducer { gate })
    }
}

impl<C: Completion> Producer<C> for LibrdkafkaProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        self.gate.append(record, acks, completion);
    }

    fn close(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.gate.close();
        for lane in &self.gate.engine.lanes {
            let Some(native) = lane.current() else {
                // Its producer was put away; what that left is told here.
                lane.desk.end();
                continue;
            };
            // What waits in a narrow topic is sent on by the delivery reports that this serves.
            let flushed = native.flush(deadline.saturating_duration_since(Instant::now()));
            lane.desk.end();
            if flushed.is_err() {
                native.purge(PurgeConfig::default().queue().inflight());
                // Runs the completions of what was purged, which takes no broker.
                if native.flush(Duration::from_secs(5)).is_err() {
                    warn!("{} messages have no delivery report at the close", native.in_flight_count());
                }
            }
            lane.desk.tell();
        }
    }

    fn reachable(&self) -> Result<(), String> {
        self.gate.reachable()
    }

    fn topic_lookups(&self) -> u64 {
        self.gate.topic_lookups()
    }
}

impl<C: Completion> Drop for LibrdkafkaProducer<C> {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl<C: Completion> ProducerEngine<C> for Lanes<C> {
    fn submit(&self, waiting: PendingAppend<C>, _partition_count: i32) -> Result<(), FailedAppend<C>> {
        let native = match self.native(waiting.acks) {
            Ok(native) => native,
            Err(reason) => return Err((waiting.completion, not_stored(AppendFailure::Unreachable, reason))),
        };
        let desk = &self.lane(waiting.acks).desk;
        let book = desk.book(&waiting.record.topic);
        match desk.enter(&book, waiting) {
            Entered::Send(waiting, sent) => {
                let acks = waiting.acks;
                send(&native, Arc::clone(&book), waiting, sent).inspect_err(|_| {
                    book.leave(None);
                    if native.client().fatal_error().is_some() {
                        self.lane(acks).retire(&native);
                    }
                })
            }
            Entered::Parked => {
                desk.pump(&book, |waiting, sent| send(&native, Arc::clone(&book), waiting, sent));
                if native.client().fatal_error().is_some() {
                    self.lane(native.context().acks).retire(&native);
                }
                Ok(())
            }
            Entered::Full(failed) => Err(failed),
        }
    }

    /// Lets the librdkafka producers look too; otherwise they do it once a minute. Also asks how much a narrow topic takes.
    fn refresh_topic(&self, topic: &str, wait: Duration) {
        let deadline = Instant::now() + wait;
        for lane in &self.lanes {
            let Some(native) = lane.current() else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(book) = lane.desk.narrow_book(topic) {
                match most_batch_bytes(native.client().native_ptr(), topic, left) {
                    Ok(limit) => book.learn(limit),
                    Err(reason) => {
                        warn!(
                            "max.message.bytes of topic {topic} is unknown, sending its messages one by one: {reason}"
                        )
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(error) = native.client().fetch_metadata(Some(topic), left) {
                warn!("cannot refresh the metadata of topic {topic}: {}", in_words(&error));
            }
        }
    }
}

impl<C: Completion> Lanes<C> {
    fn lane(&self, acks: Acks) -> &Lane<C> {
        match acks {
            Acks::None => &self.lanes[0],
            Acks::Leader => &self.lanes[1],
            Acks::All => &self.lanes[2],
        }
    }

    /// The librdkafka producer of a level of acks, made if there is none.
    fn native(&self, acks: Acks) -> Result<Arc<Native<C>>, String> {
        let lane = self.lane(acks);
        if let Some(native) = lane.current() {
            return Ok(native);
        }
        let mut slot = write(&lane.native);
        if let Some(native) = &*slot {
            return Ok(Arc::clone(native));
        }
        let retired = Arc::new(AtomicBool::new(false));
        let context = Context {
            acks,
            voice: Voice::new("producer", &self.broker),
            state: Arc::clone(&self.state),
            desk: Arc::clone(&lane.desk),
            native: OnceLock::new(),
            retired: Arc::clone(&retired),
        };
        let native: Native<C> = settings(&self.broker, &self.config, acks)
            .create_with_context(context)
            .map_err(|error| format!("cannot create the producer: {}", in_words(&error)))?;
        let native = Arc::new(native);
        let _ = native.context().native.set(Arc::downgrade(&native));
        let name = match acks {
            Acks::None => "kafka-acks-0",
            Acks::Leader => "kafka-acks-1",
            Acks::All => "kafka-acks-all",
        };
        let (served, state, desk) = (Arc::clone(&native), Arc::clone(&self.state), Arc::clone(&lane.desk));
        self.supervisor.spawn_task(name, move || {
            loop {
                served.poll(POLL);
                // A close serves what is left itself.
                if state.is_closed() {
                    break;
                }
                // Looked at before the last round, which then tells all that is left.
                let is_over = retired.load(Ordering::Acquire) && served.in_flight_count() == 0;
                let old = desk.tend(|book, waiting, sent| send(&served, Arc::clone(book), waiting, sent));
                old.iter().for_each(|topic| state.invalidate(topic));
                if is_over {
                    break;
                }
            }
        });
        *slot = Some(Arc::clone(&native));
        Ok(native)
    }
}

impl<C: Completion> Lane<C> {
    fn current(&self) -> Option<Arc<Native<C>>> {
        read(&self.native).clone()
    }

    /// Puts a producer away that cannot go on; the next append makes a new one. What it holds is completed with
    /// what librdkafka knows of each.
    fn retire(&self, broken: &Arc<Native<C>>) {
        let mut slot = write(&self.native);
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, broken)) {
            *slot = None;
            drop(slot);
            let why = broken.client().fatal_error().map_or_else(String::new, |(_, reason)| reason);
            warn!("replacing the producer for acks {:?}: {why}", self.acks);
            self.desk.give_up(&not_stored(AppendFailure::Unreachable, REPLACED.to_owned()));
            broken.context().retired.store(true, Ordering::Release);
            // Not to wait for its threads, one of which may be looking a name up: appends wait for us.
            broken.purge(PurgeConfig::default().queue().inflight().non_blocking());
        }
    }
}

pub(super) fn settings(broker: &BrokerConfig, config: &ProducerConfig, acks: Acks) -> ClientConfig {
    let message_bytes = config.max_message_bytes.saturating_add(BESIDE_VALUE);
    let queue_kilobytes = message_bytes.saturating_mul(config.max_in_flight.max(1)) / 1024 + 1;
    let mut settings = common_settings(broker);
    settings
        .set(
            "acks",
            match acks {
                Acks::None => "0",
                Acks::Leader => "1",
                Acks::All => "all",
            },
        )
        .set("enable.idempotence", if acks == Acks::All { "true" } else { "false" })
        .set("max.in.flight.requests.per.connection", "1")
        .set("linger.ms", if acks == Acks::All { IDEMPOTENT_LINGER_MS } else { "0" })
        .set("batch.size", BATCH_BYTES.to_string())
        .set("sticky.partitioning.linger.ms", "5")
        .set(
            "partitioner",
            match config.partitioner {
                PartitionerKind::Fnv1a => "fnv1a_random",
                PartitionerKind::Murmur2 => "murmur2_random",
            },
        )
        .set("message.timeout.ms", config.timeout.as_millis().clamp(1, i32::MAX as u128).to_string())
        .set("message.max.bytes", message_bytes.clamp(1_000, 1_000_000_000).to_string())
        .set(
            "queue.buffering.max.messages",
            config.max_in_flight.saturating_mul(2).clamp(1_000, 10_000_000).to_string(),
        )
        .set("queue.buffering.max.kbytes", queue_kilobytes.clamp(1, i32::MAX as usize).to_string())
        .set("retry.backoff.ms", "50")
        .set("topic.metadata.refresh.interval.ms", "60000")
        // A known topic that vanishes is reported within the time that an unknown one is.
        .set("topic.metadata.propagation.max.ms", "4000");
    set_the_users(&mut settings, broker);
    settings
}

/// Gives a message to a librdkafka producer.
fn send<C: Completion>(
    native: &Native<C>,
    book: Arc<Book<C>>,
    waiting: PendingAppend<C>,
    sent: Sent,
) -> Result<(), FailedAppend<C>> {
    let PendingAppend { record, acks: _, mut completion, deadline, has_waited } = waiting;
    let headers = match native_headers(&record) {
        Ok(headers) => headers,
        Err(error) => return Err((completion, error)),
    };
    let context = native.context();
    if has_waited {
        // librdkafka gives every message the whole timeout, from now on.
        let (same, reminder) = completion.with_deadline_completion();
        context.desk.remind(deadline, reminder);
        completion = same;
    }
    let carried = Carried(Box::new(InFlight { completion, book, deadline, sent }));
    let mut message = BaseRecord::with_opaque_to(&record.topic, carried).payload(&record.value[..]);
    message.key = record.key.as_deref();
    message.partition = record.partition;
    message.timestamp = record.timestamp_ms;
    message.headers = headers;
    let Err((error, message)) = native.send(message) else { return Ok(()) };
    let error = match code_of(&error) {
        RDKafkaErrorCode::Fatal => not_stored(AppendFailure::Unreachable, REPLACED.to_owned()),
        code => context.state.reconsider(&record.topic, append_error(code, Persisted::No, &record.topic)),
    };
    Err((message.delivery_opaque.0.completion, error))
}

fn native_headers(record: &Record) -> Result<Option<OwnedHeaders>, AppendError> {
    if record.headers.is_empty() {
        return Ok(None);
    }
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for header in &record.headers {
        if header.name.contains('\0') {
            return Err(not_stored(AppendFailure::Unsupported, "a header name contains a zero byte".to_owned()));
        }
        headers = headers.insert(NativeHeader { key: &header.name, value: header.value.as_ref() });
    }
    Ok(Some(headers))
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

/// The record of a message that librdkafka had, to be sent again to the same partition where that matters.
fn record_of(message: &BorrowedMessage<'_>, topic: &Arc<str>, is_chosen: bool) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let owned = |header: NativeHeader<'_, &[u8]>| Header {
            name: header.key.to_owned(),
            value: header.value.map(<[u8]>::to_vec),
        };
        headers.iter().map(owned).collect()
    });
    let key = message.key().map(<[u8]>::to_vec);
    Record {
        topic: Arc::clone(topic),
        partition: (is_chosen || key.is_some()).then(|| message.partition()),
        key,
        value: message.payload().map_or_else(Vec::new, <[u8]>::to_vec),
        headers,
        timestamp_ms: message.timestamp().to_millis(),
    }
}

impl<C: Completion> IntoOpaque for Carried<C> {
    fn into_ptr(self) -> *mut std::ffi::c_void {
        Box::into_raw(self.0).cast()
    }

    unsafe fn from_ptr(opaque: *mut std::ffi::c_void) -> Self {
        // SAFETY: librdkafka gives back, once, what `into_ptr` made.
        Carried(unsafe { Box::from_raw(opaque.cast()) })
    }
}

/// Receives delivery reports and log lines of one librdkafka producer.
struct Context<C: Completion> {
    acks: Acks,
    voice: Voice,
    state: Arc<GateState<C>>,
    desk: Arc<Desk<C>>,
    /// The producer whose reports these are; set once it is made.
    native: OnceLock<Weak<Native<C>>>,
    retired: Arc<AtomicBool>,
}

impl<C: Completion> ClientContext for Context<C> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.voice.say(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(error, reason);
    }
}

impl<C: Completion> HasVoice for Context<C> {
    fn voice(&self) -> &Voice {
        &self.voice
    }
}

impl<C: Completion> ProducerContext for Context<C> {
    type DeliveryOpaque = Carried<C>;

    fn delivery(&self, result: &DeliveryResult<'_>, carried: Carried<C>) {
        let InFlight { completion, book, deadline, sent } = *carried.0;
        match self.outcome(result, &sent) {
            Some(outcome) => {
                if let (Ok(message), true) = (result, book.is_narrow()) {
                    book.overtake(message.partition(), message.key());
                }
                completion.complete(outcome);
            }
            None => {
                let (Ok(message) | Err((_, message))) = result;
                let record = record_of(message, &book.topic, sent.is_chosen);
                let waiting = PendingAppend { record, acks: self.acks, completion, deadline, has_waited: true };
                if self.desk.send_again(&book, waiting, &sent) {
                    info!("a batch exceeded max.message.bytes of topic {}, retrying in smaller batches", book.topic);
                }
                self.state.invalidate(&book.topic);
            }
        }
        book.leave(sent.bytes);
        if book.is_narrow()
            && let Some(native) = self.native.get().and_then(Weak::upgrade)
        {
            self.desk.pump(&book, |waiting, sent| send(&native, Arc::clone(&book), waiting, sent));
            self.desk.tell();
        }
    }
}

impl<C: Completion> Context<C> {
    /// How an append ended; `None` when its message only went in a batch that was too large.
    fn outcome(&self, result: &DeliveryResult<'_>, sent: &Sent) -> Option<AppendResult> {
        let (error, message) = match result {
            Ok(message) => {
                // Without acknowledgement librdkafka counts a batch up from a negative number, past zero where it is large.
                let offset = Some(message.offset()).filter(|&offset| self.acks != Acks::None && offset >= 0);
                return Some(Ok(Appended { partition: message.partition(), offset }));
            }
            Err((error, message)) => (error, message),
        };
        let code = code_of(error);
        let error = append_error(code, persisted(message), message.topic());
        let mut error = self.state.reconsider(message.topic(), error);
        let may_be_sent_again = !self.desk.has_ended() && !self.retired.load(Ordering::Acquire);
        let failed_for_others = match code {
            RDKafkaErrorCode::InvalidDifferentRecord => error.stored == Stored::No,
            _ => error.kind == AppendFailure::TooLarge && !sent.is_alone,
        };
        if failed_for_others && may_be_sent_again {
            return None;
        }
        if failed_for_others {
            // Nobody knows whether it would have been taken by itself.
            error.kind = if self.state.is_closed() { AppendFailure::Closed } else { AppendFailure::Unreachable };
            error.reason =
                "the producer was closed before the retry of the message (its batch was too large)".to_owned();
        }
        // Purged because its producer was replaced, not because we close.
        if error.kind == AppendFailure::Closed && !self.state.is_closed() {
            error.kind = match error.stored {
                Stored::No => AppendFailure::Unreachable,
                Stored::Unknown => AppendFailure::TimedOut,
            };
            error.reason = REPLACED.to_owned();
        }
        Some(Err(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Engine;
    use crate::shutdown::Stop;
    use crossbeam_channel::bounded;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    struct Report(crossbeam_channel::Sender<AppendResult>);

    impl Completion for Report {
        fn complete(self, outcome: AppendResult) {
            self.0.send(outcome).expect("the test listens");
        }
    }

    fn start(producer: &LibrdkafkaProducer<Report>, acks: Acks) -> crossbeam_channel::Receiver<AppendResult> {
        let (sender, outcome) = bounded(1);
        let (topic, value) = (Arc::from("t"), b"v".to_vec());
        let record = Record { topic, partition: Some(0), key: None, value, headers: Vec::new(), timestamp_ms: None };
        producer.append(record, acks, Report(sender));
        outcome
    }

    fn append(producer: &LibrdkafkaProducer<Report>, acks: Acks) -> AppendResult {
        start(producer, acks).recv_timeout(Duration::from_secs(60)).expect("an append completes")
    }

    /// Lets `use_it` use a producer of a cluster that has the topic `t`, and ends both.
    fn with_producer(
        use_it: impl FnOnce(&LibrdkafkaProducer<Report>, &Stop, &MockCluster<'static, DefaultProducerContext>),
    ) {
        with_producer_of(Duration::from_secs(30), use_it);
    }

    /// The same with another timeout of an append.
    fn with_producer_of(
        timeout: Duration,
        use_it: impl FnOnce(&LibrdkafkaProducer<Report>, &Stop, &MockCluster<'static, DefaultProducerContext>),
    ) {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let broker = BrokerConfig {
            hosts: vec![cluster.bootstrap_servers()],
            engine: Engine::Librdkafka,
            client_id: "t".into(),
            request_timeout: Duration::from_secs(5),
            settings: Default::default(),
        };
        let config = ProducerConfig {
            partitioner: PartitionerKind::Fnv1a,
            max_message_bytes: 1_000,
            max_in_flight: 5_000,
            timeout,
        };
        let group = Supervisor::new("t", Stop::new());
        let producer = LibrdkafkaProducer::new(&broker, config, &group).expect("it can be made");
        use_it(&producer, group.stop(), &cluster);
        drop(producer);
        group.stop().trigger();
        assert_eq!(group.join(Duration::from_secs(30)), crate::supervise::Ended::Stopped);
    }

    #[test]
    fn without_acknowledgement_no_offset_is_made_up() {
        with_producer(|producer, _, _| {
            // They wait for the topic and then go in one request, whose messages librdkafka counts from -1001.
            let outcomes: Vec<_> = (0..3_000).map(|_| start(producer, Acks::None)).collect();
            for outcome in outcomes {
                let outcome = outcome.recv_timeout(Duration::from_secs(60)).expect("an append completes");
                assert_eq!(outcome.expect("it is sent"), Appended { partition: 0, offset: None });
            }
        });
    }

    #[test]
    fn a_topic_is_still_looked_up_after_the_stop_until_the_close() {
        with_producer(|producer, stop, _| {
            stop.trigger();
            let outcome = start(producer, Acks::Leader).recv_timeout(Duration::from_secs(20));
            outcome.expect("it does not wait for the close").expect("it is stored");
        });
    }

    #[test]
    fn the_time_that_a_topic_is_looked_up_counts() {
        let (timeout, round_trip) = (Duration::from_secs(4), Duration::from_millis(1_800));
        with_producer_of(timeout, |producer, _, cluster| {
            append(producer, Acks::None).expect("the brokers are known");
            cluster.create_topic("u", 1, 1).expect("a topic");
            cluster.broker_round_trip_time(1, round_trip).expect("a broker");
            let (sender, outcome) = bounded(1);
            let (topic, value, headers) = (Arc::from("u"), b"v".to_vec(), Vec::new());
            let record = Record { topic, partition: Some(0), key: None, value, headers, timestamp_ms: None };
            let started = Instant::now();
            producer.append(record, Acks::Leader, Report(sender));
            // The look-up takes one round trip; what librdkafka does after it takes longer than what is left.
            let error =
                outcome.recv_timeout(Duration::from_secs(60)).expect("it completes").expect_err("it took too long");
            let took = started.elapsed();
            assert_eq!((error.kind, error.stored), (AppendFailure::TimedOut, Stored::Unknown), "{error}");
            // Had the look-up not counted, it would have come after it.
            assert!(took >= timeout && took < timeout + round_trip, "{took:?}");
        });
    }

    #[test]
    fn a_message_is_blamed_for_its_size_only_when_it_was_alone() {
        with_producer(|producer, _, cluster| {
            for acks in [Acks::Leader, Acks::All] {
                append(producer, acks).expect("it is stored");
                let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
                cluster.request_errors(RDKafkaApiKey::Produce, &[too_large]);
                append(producer, acks).expect("it is sent again and stored");
                cluster.request_errors(RDKafkaApiKey::Produce, &[too_large]);
                let error = append(producer, acks).expect_err("it goes alone now and is refused");
                assert_eq!((error.kind, error.stored), (AppendFailure::TooLarge, Stored::No), "{error}");
                append(producer, acks).expect("others go on");
            }
        });
    }

    #[test]
    fn a_fatal_error_costs_one_append_and_leaves_the_other_levels_alone() {
        with_producer(|producer, _, _| {
            append(producer, Acks::All).expect("it is stored");
            append(producer, Acks::Leader).expect("it is stored");
            let native = producer.gate.engine.lane(Acks::All).current().expect("it was used");
            // SAFETY: the client lives as long as `native`, and the text ends with a zero.
            unsafe {
                let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
                rdkafka::bindings::rd_kafka_test_fatal_error(native.client().native_ptr(), code, c"a test".as_ptr());
            }
            append(producer, Acks::Leader).expect("it is stored");
            let error = append(producer, Acks::All).expect_err("its producer cannot go on");
            assert_eq!((error.kind, error.stored), (AppendFailure::Unreachable, Stored::No), "{error}");
            append(producer, Acks::All).expect("a new producer stores it");
        });
    }
}
