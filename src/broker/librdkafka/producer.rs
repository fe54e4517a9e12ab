//! Appends through librdkafka.
//!
//! One librdkafka producer for each level of acks, made when first used, each with a thread that runs the
//! completions as the delivery reports arrive. With one request in flight a broker, what gathers while a request is
//! under way goes together in the next, and a retry cannot reorder; acks=-1 has the idempotent producer besides.
//!
//! `append` goes straight into librdkafka when the topic is known. Else it waits, in order, for the asking thread,
//! which also finds out whether any broker can be reached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use log::{info, warn};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as NativeHeader, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, IntoOpaque};

use super::native::{Persisted, ask_any_broker, persisted};
use super::outcome::append_error;
use super::topics::{Answer, Known, Topics, Verdict};
use super::{Voice, common_settings, in_words};
use crate::broker::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, BrokerConfig, Completion, PartitionerKind, Producer,
    ProducerConfig, Record, Stored,
};
use crate::supervise::Supervisor;

/// How long one question to the brokers may take.
const MOST_ASKING: Duration = Duration::from_secs(2);
/// How often it is found out whether a broker can be reached.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// After so many questions in a row without an answer, appends are refused at once.
const FAILURES_TO_REFUSE: u32 = 2;
/// librdkafka keeps every name it was asked about for ever, so the client that asks is replaced after so many.
const NAMES_PER_CLIENT: u32 = 1_000;
/// How long a poll may block; a stop is noticed that late.
const POLL: Duration = Duration::from_millis(100);
/// Room beside the value in a message: key, headers and framing.
const BESIDE_VALUE: usize = 64 * 1024;

/// The producer of this engine.
pub(in crate::broker) struct RdProducer<C: Completion> {
    shared: Arc<Shared<C>>,
}

struct Shared<C: Completion> {
    broker: BrokerConfig,
    config: ProducerConfig,
    supervisor: Supervisor,
    lanes: [Lane<C>; 3],
    topics: Arc<Table<C>>,
    reach: Reach,
    /// Wakes the asking thread; one token is enough, so a full channel loses nothing.
    wake: Sender<()>,
    closed: Arc<AtomicBool>,
}

type Table<C> = RwLock<Topics<Waiting<C>>>;

type Native<C> = BaseProducer<Context<C>>;

/// One level of acks.
struct Lane<C: Completion> {
    acks: Acks,
    /// Replaced after a fatal error of the idempotent producer.
    native: RwLock<Option<Arc<Native<C>>>>,
}

/// An append that waits for its topic.
struct Waiting<C> {
    record: Record,
    acks: Acks,
    completion: Ticket<C>,
}

/// An append that failed on the spot, with who has to be told.
type Failed<C> = (Ticket<C>, AppendError);

/// Whether a broker can be reached, as the asking thread last saw it.
struct Reach {
    refusing: AtomicBool,
    state: Mutex<Result<(), String>>,
}

impl<C: Completion> RdProducer<C> {
    /// Makes the producer and starts its threads; no broker need be reachable.
    pub(in crate::broker) fn new(
        broker: &BrokerConfig,
        config: ProducerConfig,
        supervisor: &Supervisor,
    ) -> Result<Self, String> {
        let (wake, woken) = bounded(1);
        let ask_for = (MOST_ASKING * 2).min(config.timeout);
        let lane = |acks| Lane { acks, native: RwLock::new(None) };
        let shared = Arc::new(Shared {
            broker: broker.clone(),
            supervisor: supervisor.clone(),
            lanes: [lane(Acks::None), lane(Acks::Leader), lane(Acks::All)],
            topics: Arc::new(RwLock::new(Topics::new(config.max_in_flight.max(1), ask_for))),
            reach: Reach {
                refusing: AtomicBool::new(false),
                state: Mutex::new(Err("no broker has answered yet".to_owned())),
            },
            wake,
            closed: Arc::new(AtomicBool::new(false)),
            config,
        });
        // The default level is made now, so that settings librdkafka does not take are told at the start.
        shared.native(Acks::Leader)?;
        let asking = AskingClient::new(broker)?;
        let asker = Asker { shared: Arc::clone(&shared), client: asking, woken, failures: 0 };
        supervisor.spawn("kafka-ask", move || asker.run());
        Ok(RdProducer { shared })
    }
}

impl<C: Completion> Producer<C> for RdProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        let completion = Ticket(Box::new(completion));
        if let Err((completion, error)) = self.shared.append(Waiting { record, acks, completion }) {
            completion.complete(Err(error));
        }
    }

    fn close(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let shared = &self.shared;
        shared.closed.store(true, Ordering::Release);
        // Every append looks at `closed` under this lock: after it, nothing more is handed to librdkafka.
        let waiting = shared.topics_to_change().drain();
        for waiting in waiting {
            waiting.completion.complete(Err(closed_error()));
        }
        let natives: Vec<_> = shared.lanes.iter().filter_map(Lane::current).collect();
        for native in &natives {
            if native.flush(deadline.saturating_duration_since(Instant::now())).is_err() {
                native.purge(PurgeConfig::default().queue().inflight());
                // Runs the completions of what was purged, which takes no broker.
                if native.flush(Duration::from_secs(5)).is_err() {
                    warn!("{} appends could not be completed", native.in_flight_count());
                }
            }
        }
    }

    fn reachable(&self) -> Result<(), String> {
        self.shared.reach.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<C: Completion> Drop for RdProducer<C> {
    fn drop(&mut self) {
        if !self.shared.closed.load(Ordering::Acquire) {
            self.close(Duration::ZERO);
        }
    }
}

impl<C: Completion> Shared<C> {
    fn append(&self, waiting: Waiting<C>) -> Result<(), Failed<C>> {
        let limit = self.config.max_message_bytes;
        if waiting.record.value.len() > limit {
            let reason = format!("larger than {limit} bytes (max_request_size_bytes)");
            return Err(refused(waiting, AppendFailure::TooLarge, reason));
        }
        let now = Instant::now();
        let partition = waiting.record.partition;
        {
            let topics = self.topics();
            if self.closed.load(Ordering::Acquire) {
                return Err((waiting.completion, closed_error()));
            }
            if self.reach.refusing.load(Ordering::Relaxed) {
                let reason = self.reach.reason();
                return Err(refused(waiting, AppendFailure::Unreachable, reason));
            }
            match topics.known(&waiting.record.topic, partition, now) {
                Known::Yes(partition_count) => return self.hand_over(waiting, partition_count),
                Known::No => return Err(unknown_topic(waiting)),
                Known::Ask => {}
            }
        }
        let mut topics = self.topics_to_change();
        if self.closed.load(Ordering::Acquire) {
            return Err((waiting.completion, closed_error()));
        }
        // It may have become known between the locks.
        match topics.known(&waiting.record.topic, partition, now) {
            Known::Yes(partition_count) => return self.hand_over(waiting, partition_count),
            Known::No => return Err(unknown_topic(waiting)),
            Known::Ask => {}
        }
        let topic = Arc::clone(&waiting.record.topic);
        topics.wait(&topic, waiting, now).map_err(|waiting| {
            let reason = "too many messages wait for topics that are not known yet".to_owned();
            refused(waiting, AppendFailure::Full, reason)
        })?;
        drop(topics);
        let _ = self.wake.try_send(());
        Ok(())
    }

    /// Gives an append to librdkafka. Called with the lock of the topics held, which keeps the order.
    fn hand_over(&self, waiting: Waiting<C>, partition_count: i32) -> Result<(), Failed<C>> {
        let Waiting { record, acks, completion } = waiting;
        if let Some(partition) = record.partition.filter(|partition| !(0..partition_count).contains(partition)) {
            let topic = &record.topic;
            let reason = format!("topic {topic} has no partition {partition}, it has {partition_count} from 0");
            return Err((completion, not_stored(AppendFailure::UnknownPartition, reason)));
        }
        let headers = match native_headers(&record) {
            Ok(headers) => headers,
            Err(error) => return Err((completion, error)),
        };
        let native = match self.native(acks) {
            Ok(native) => native,
            Err(reason) => return Err((completion, not_stored(AppendFailure::Unreachable, reason))),
        };
        let mut message = BaseRecord::with_opaque_to(&record.topic, completion).payload(&record.value[..]);
        message.key = record.key.as_deref();
        message.partition = record.partition;
        message.timestamp = record.timestamp_ms;
        message.headers = headers;
        let Err((error, message)) = native.send(message) else { return Ok(()) };
        let error = match code_of(&error) {
            RDKafkaErrorCode::Fatal => {
                self.lane(acks).retire(&native);
                let reason = "the idempotent producer had to be replaced".to_owned();
                not_stored(AppendFailure::Unreachable, reason)
            }
            code => append_error(code, Persisted::No, &record.topic),
        };
        Err((message.delivery_opaque, error))
    }

    fn topics(&self) -> RwLockReadGuard<'_, Topics<Waiting<C>>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn topics_to_change(&self) -> RwLockWriteGuard<'_, Topics<Waiting<C>>> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }

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
        let mut slot = lane.native.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(native) = &*slot {
            return Ok(Arc::clone(native));
        }
        let retired = Arc::new(AtomicBool::new(false));
        let context = Context {
            voice: Voice::new("producer"),
            topics: Arc::clone(&self.topics),
            closed: Arc::clone(&self.closed),
            retired: Arc::clone(&retired),
        };
        let native: Native<C> = settings(&self.broker, &self.config, acks)
            .create_with_context(context)
            .map_err(|error| format!("the producer cannot be made: {}", in_words(&error)))?;
        let native = Arc::new(native);
        let name = match acks {
            Acks::None => "kafka-acks-0",
            Acks::Leader => "kafka-acks-1",
            Acks::All => "kafka-acks-all",
        };
        let (served, closed, stop) = (Arc::clone(&native), Arc::clone(&self.closed), self.supervisor.stop().clone());
        self.supervisor.spawn_task(name, move || {
            loop {
                served.poll(POLL);
                let asked_to_end = stop.is_triggered() || retired.load(Ordering::Acquire);
                // After the stop, what is in flight is waited for until the producer is closed, which serves it itself.
                if asked_to_end && (served.in_flight_count() == 0 || closed.load(Ordering::Acquire)) {
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
        self.native.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a producer away that cannot go on; the next append makes a new one. What it holds is completed with
    /// what librdkafka knows of each.
    fn retire(&self, broken: &Arc<Native<C>>) {
        let mut slot = self.native.write().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, broken)) {
            *slot = None;
            drop(slot);
            let why = broken.client().fatal_error().map_or_else(String::new, |(_, reason)| reason);
            warn!("the producer for acks {:?} is replaced: {why}", self.acks);
            broken.context().retired.store(true, Ordering::Release);
            broken.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

impl Reach {
    fn reason(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clone().err().unwrap_or_else(|| "no broker can be reached".to_owned())
    }
}

fn settings(broker: &BrokerConfig, config: &ProducerConfig, acks: Acks) -> ClientConfig {
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
        .set("linger.ms", "0")
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
    settings
}

fn native_headers(record: &Record) -> Result<Option<OwnedHeaders>, AppendError> {
    if record.headers.is_empty() {
        return Ok(None);
    }
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for header in &record.headers {
        if header.name.contains('\0') {
            return Err(not_stored(AppendFailure::Unsupported, "a header name holds a zero byte".to_owned()));
        }
        headers = headers.insert(NativeHeader { key: &header.name, value: header.value.as_ref() });
    }
    Ok(Some(headers))
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

fn not_stored(kind: AppendFailure, reason: String) -> AppendError {
    AppendError { kind, stored: Stored::No, reason }
}

fn refused<C>(waiting: Waiting<C>, kind: AppendFailure, reason: String) -> Failed<C> {
    (waiting.completion, not_stored(kind, reason))
}

fn unknown_topic<C>(waiting: Waiting<C>) -> Failed<C> {
    let reason = format!("topic {} does not exist", waiting.record.topic);
    refused(waiting, AppendFailure::UnknownTopic, reason)
}

fn closed_error() -> AppendError {
    not_stored(AppendFailure::Closed, "the producer is being closed".to_owned())
}

/// Carries a completion through librdkafka as its delivery opaque.
struct Ticket<C>(Box<C>);

impl<C: Completion> Ticket<C> {
    fn complete(self, outcome: AppendResult) {
        (*self.0).complete(outcome);
    }
}

// SAFETY: nothing ever reads a completion through a shared ticket; it only moves from the appending thread to the
// one that takes it out.
unsafe impl<C: Send> Sync for Ticket<C> {}

impl<C: Completion> IntoOpaque for Ticket<C> {
    fn into_ptr(self) -> *mut std::ffi::c_void {
        Box::into_raw(self.0).cast()
    }

    unsafe fn from_ptr(opaque: *mut std::ffi::c_void) -> Self {
        // SAFETY: librdkafka gives back, once, what `into_ptr` made.
        Ticket(unsafe { Box::from_raw(opaque.cast()) })
    }
}

/// Receives delivery reports and log lines of one librdkafka producer.
struct Context<C: Completion> {
    voice: Voice,
    topics: Arc<Table<C>>,
    closed: Arc<AtomicBool>,
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

impl<C: Completion> ProducerContext for Context<C> {
    type DeliveryOpaque = Ticket<C>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Ticket<C>) {
        let outcome = match result {
            Ok(message) => {
                // Without acknowledgement librdkafka has a negative number here.
                let offset = Some(message.offset()).filter(|&offset| offset >= 0);
                Ok(Appended { partition: message.partition(), offset })
            }
            Err((error, message)) => {
                let mut error = append_error(code_of(error), persisted(message), message.topic());
                match error.kind {
                    AppendFailure::UnknownTopic => {
                        self.topics.write().unwrap_or_else(PoisonError::into_inner).forget(message.topic());
                    }
                    // Purged because its producer was replaced, not because we close.
                    AppendFailure::Closed if !self.closed.load(Ordering::Acquire) => {
                        error.kind = match error.stored {
                            Stored::No => AppendFailure::Unreachable,
                            Stored::Unknown => AppendFailure::TimedOut,
                        };
                        error.reason = "the idempotent producer had to be replaced".to_owned();
                    }
                    _ => {}
                }
                Err(error)
            }
        };
        ticket.complete(outcome);
    }
}

/// The thread that asks for topics and for any broker at all.
struct Asker<C: Completion> {
    shared: Arc<Shared<C>>,
    client: AskingClient,
    woken: Receiver<()>,
    failures: u32,
}

impl<C: Completion> Asker<C> {
    fn run(mut self) {
        let stop = self.shared.supervisor.stop().clone();
        let mut next_probe = Instant::now();
        while !stop.is_triggered() {
            let now = Instant::now();
            if now >= next_probe {
                self.probe();
                next_probe = Instant::now() + PROBE_EVERY;
            }
            self.ask_for_topics();
            let next = self.shared.topics().next_due().map_or(next_probe, |due| due.min(next_probe));
            let pause = next.saturating_duration_since(Instant::now());
            select! {
                recv(self.woken) -> _ => {},
                recv(stop.closed()) -> _ => break,
                default(pause) => {},
            }
        }
    }

    fn wait(&self) -> Duration {
        MOST_ASKING.min(self.shared.broker.request_timeout)
    }

    fn probe(&mut self) {
        let outcome = self.client.reach(self.wait());
        let reach = &self.shared.reach;
        self.failures = if outcome.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let refuse = self.failures >= FAILURES_TO_REFUSE;
        let refused_before = reach.refusing.swap(refuse, Ordering::Relaxed);
        let mut state = reach.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (&outcome, refused_before, refuse) {
            (Err(reason), false, true) => warn!("no broker can be reached, appends are refused: {reason}"),
            (Ok(()), true, _) => info!("a broker can be reached again"),
            _ => {}
        }
        *state = outcome;
    }

    fn ask_for_topics(&mut self) {
        let due = self.shared.topics().due(Instant::now());
        let mut unreachable = None;
        for (topic, known_before) in due {
            // One question without an answer is enough for all that are due.
            let answer = match unreachable.clone() {
                Some(answer) => answer,
                None => self.client.ask(&topic, self.wait()),
            };
            if matches!(answer, Answer::Unreachable(_)) {
                unreachable = Some(answer.clone());
            }
            if known_before && matches!(answer, Answer::Exists(_)) {
                self.tell_lanes(&topic);
            }
            self.settle(&topic, answer);
        }
    }

    /// Lets the librdkafka producers look at a topic that may have grown; otherwise they do it once a minute.
    fn tell_lanes(&self, topic: &str) {
        for native in self.shared.lanes.iter().filter_map(Lane::current) {
            if let Err(error) = native.client().fetch_metadata(Some(topic), self.wait()) {
                warn!("topic {topic} could not be looked at again: {}", in_words(&error));
            }
        }
    }

    fn settle(&self, topic: &str, answer: Answer) {
        let mut failed = Vec::new();
        let mut topics = self.shared.topics_to_change();
        let Some((verdict, waiting)) = topics.answer(topic, answer, Instant::now()) else { return };
        for waiting in waiting {
            let handed_over = match &verdict {
                Verdict::Exists(partition_count) => self.shared.hand_over(waiting, *partition_count),
                Verdict::Unknown => Err(unknown_topic(waiting)),
                Verdict::Unreachable(reason) => {
                    let reason = format!("topic {topic} could not be looked up: {reason}");
                    Err(refused(waiting, AppendFailure::Unreachable, reason))
                }
                Verdict::Refused(reason) => {
                    let reason = format!("topic {topic} may not be used: {reason}");
                    Err(refused(waiting, AppendFailure::Refused, reason))
                }
            };
            failed.extend(handed_over.err());
        }
        drop(topics);
        for (completion, error) in failed {
            completion.complete(Err(error));
        }
    }
}

/// A client that asks for metadata alone, so that names tried by strangers do not stay in the others.
struct AskingClient {
    broker: BrokerConfig,
    native: BaseProducer<Voice>,
    names: u32,
}

impl AskingClient {
    fn new(broker: &BrokerConfig) -> Result<Self, String> {
        Ok(AskingClient { broker: broker.clone(), native: Self::native(broker)?, names: 0 })
    }

    fn native(broker: &BrokerConfig) -> Result<BaseProducer<Voice>, String> {
        let mut settings = common_settings(broker);
        settings.set("topic.metadata.refresh.interval.ms", "-1");
        settings
            .create_with_context(Voice::new("metadata"))
            .map_err(|error| format!("the metadata client cannot be made: {}", in_words(&error)))
    }

    fn reach(&self, wait: Duration) -> Result<(), String> {
        let outcome = ask_any_broker(self.native.client().native_ptr(), wait);
        self.native.poll(Duration::ZERO);
        outcome.map_err(|code| format!("none of {} answers: {code}", self.broker.hosts.join(", ")))
    }

    fn ask(&mut self, topic: &str, wait: Duration) -> Answer {
        self.names += 1;
        if self.names > NAMES_PER_CLIENT {
            match Self::native(&self.broker) {
                Ok(native) => (self.native, self.names) = (native, 1),
                Err(reason) => return Answer::Unreachable(reason),
            }
        }
        let answer = self.native.client().fetch_metadata(Some(topic), wait);
        self.native.poll(Duration::ZERO);
        let metadata = match answer {
            Ok(metadata) => metadata,
            Err(error) => return Answer::Unreachable(in_words(&error)),
        };
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Answer::NotYet };
        match found.error() {
            None if found.partitions().is_empty() => Answer::NotYet,
            None => Answer::Exists(found.partitions().len() as i32),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Answer::DoesNot,
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => Answer::NotYet,
            Some(code) => Answer::Refused(RDKafkaErrorCode::from(code).to_string()),
        }
    }
}
