//! The few calls into librdkafka that the rdkafka crate does not wrap: all unsafe code of this engine is here.
//!
//! Invariant: nothing here outlives the client it was made of (who makes a [`Queue`] keeps it in a field before the
//! client's), and what librdkafka lends (strings, messages) is copied before the event is given back.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use rdkafka::bindings as raw;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::{RDKafka, RDKafkaRespErr, RDKafkaTopic};

use crate::broker::{Header, Offset, PartitionId, TopicPartition};

/// What librdkafka knows about the fate of a produced message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persisted {
    /// It was never sent.
    No,
    /// It was sent and not answered.
    Possibly,
    /// The broker has confirmed it.
    Yes,
}

/// The fate of a message in its delivery report.
pub(super) fn persisted(message: &BorrowedMessage<'_>) -> Persisted {
    use raw::rd_kafka_msg_status_t as Status;
    // SAFETY: the pointer is that of a message which lives as long as the borrow.
    match unsafe { raw::rd_kafka_message_status(message.ptr()) } {
        Status::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Persisted::No,
        Status::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Persisted::Possibly,
        Status::RD_KAFKA_MSG_STATUS_PERSISTED => Persisted::Yes,
    }
}

fn milliseconds(wait: Duration) -> c_int {
    // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
    c_int::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(c_int::MAX)
}

/// Asks any broker for the list of brokers, and for the topics that the client uses; gives the numbers of the brokers. The
/// client must be alive during the call.
pub(super) fn ask_any_broker(client: *mut RDKafka, wait: Duration) -> Result<Vec<i32>, RDKafkaErrorCode> {
    let mut metadata = ptr::null();
    let mut brokers = Vec::new();
    // SAFETY: `client` is alive; a null topic with 0 asks for the topics known to the client only; what is returned is read
    // and given back here.
    let code = unsafe {
        let code = raw::rd_kafka_metadata(client, 0, ptr::null_mut(), &mut metadata, milliseconds(wait));
        if let Some(known) = metadata.as_ref() {
            let count = usize::try_from(known.broker_cnt).unwrap_or_default();
            brokers.extend((0..count).map(|place| (*known.brokers.add(place)).id));
            raw::rd_kafka_metadata_destroy(metadata);
        }
        code
    };
    match RDKafkaErrorCode::from(code) {
        RDKafkaErrorCode::NoError => Ok(brokers),
        code => Err(code),
    }
}

/// A question that librdkafka itself gives up costs the connection with what is under way there, so it is left to wait for
/// longer than who asks; those of half a minute gather at most.
const UNTIL_DISCONNECTED: Duration = Duration::from_secs(30);

/// What a broker said of a topic.
pub(super) enum Described {
    /// So many partitions.
    Partitions(usize),
    /// An error instead.
    Error(RDKafkaErrorCode),
}

/// Looks a topic up without making it, and without the client keeping its name.
pub(super) fn describe_topic(
    client: *mut RDKafka,
    topic: &str,
    broker: i32,
    wait: Duration,
) -> Result<Described, String> {
    let name = CString::new(topic).map_err(|_| "the topic name contains a zero byte".to_owned())?;
    // SAFETY: the client is alive during the call; each thing made here is given back here, in `ask_administration` or with
    // the event; the answer is copied before that. The name lives during the call, which copies it.
    unsafe {
        let topics = raw::rd_kafka_TopicCollection_of_topic_names(&mut name.as_ptr(), 1);
        let op = raw::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let ask = |options: *const _, queue: *mut _| raw::rd_kafka_DescribeTopics(client, topics, options, queue);
        let event = ask_administration(client, op, To::Broker(broker), wait, ask);
        raw::rd_kafka_TopicCollection_destroy(topics);
        let event = event?;
        let result = raw::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        let mut count = 0;
        let found = raw::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if count == 0 {
            return Err("empty response".to_owned());
        }
        let code = raw::rd_kafka_error_code(raw::rd_kafka_TopicDescription_error(*found));
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(Described::Error(code.into()));
        }
        raw::rd_kafka_TopicDescription_partitions(*found, &mut count);
        Ok(Described::Partitions(count))
    }
}

/// Whom a question of administration is for.
#[derive(Clone, Copy)]
enum To {
    /// This broker; else it would be the controller, which may be away.
    Broker(i32),
    /// Whom librdkafka asks such things.
    Its,
}

/// Asks a question of administration and waits for the answer.
///
/// # Safety
/// `client` is alive, and `ask` only starts the question `op` on it.
unsafe fn ask_administration(
    client: *mut RDKafka,
    op: raw::rd_kafka_admin_op_t,
    to: To,
    wait: Duration,
    ask: impl FnOnce(*const raw::rd_kafka_AdminOptions_t, *mut raw::rd_kafka_queue_t),
) -> Result<Event, String> {
    // SAFETY: the client is alive; options and queue are given back here, the event by `Event`.
    unsafe {
        let queue = Queue::wrap(raw::rd_kafka_queue_new(client)).ok_or("cannot create a queue")?;
        let options = raw::rd_kafka_AdminOptions_new(client, op);
        let mut words = [0 as c_char; 256];
        let (given_up_after, waited) = match to {
            To::Broker(_) => (wait.max(UNTIL_DISCONNECTED), wait),
            // It ends by its own time limit; the second more is for its answer to be passed on.
            To::Its => (wait, wait + Duration::from_secs(1)),
        };
        let given_up_after = milliseconds(given_up_after);
        raw::rd_kafka_AdminOptions_set_request_timeout(options, given_up_after, words.as_mut_ptr(), words.len());
        if let To::Broker(broker) = to {
            raw::rd_kafka_AdminOptions_set_broker(options, broker, words.as_mut_ptr(), words.len());
        }
        ask(options, queue.0.as_ptr());
        raw::rd_kafka_AdminOptions_destroy(options);
        // An answer that comes later finds the queue gone and is dropped.
        let event = queue.poll(waited).ok_or("no response before the deadline")?;
        match RDKafkaErrorCode::from(raw::rd_kafka_event_error(event.0.as_ptr())) {
            RDKafkaErrorCode::NoError => Ok(event),
            _ => Err(text(raw::rd_kafka_event_error_string(event.0.as_ptr())).into_owned()),
        }
    }
}

/// A queue of events of a client.
pub(super) struct Queue(NonNull<raw::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are thread-safe; the handle is only a counted reference.
unsafe impl Send for Queue {}

impl Queue {
    /// The queue that the consumer's messages and events arrive on.
    ///
    /// # Safety
    /// `client` is alive, and stays so until the queue is dropped.
    pub(super) unsafe fn of_consumer(client: *mut RDKafka) -> Option<Self> {
        // SAFETY: the client is alive.
        Self::wrap(unsafe { raw::rd_kafka_queue_get_consumer(client) })
    }

    /// The queue that one partition's messages pass.
    ///
    /// # Safety
    /// `client` is alive, and stays so until the queue is dropped.
    pub(super) unsafe fn of_partition(client: *mut RDKafka, partition: &TopicPartition) -> Option<Self> {
        let topic = CString::new(partition.topic.as_bytes()).ok()?;
        // SAFETY: the client is alive and the name ends with a zero.
        Self::wrap(unsafe { raw::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition.partition) })
    }

    fn wrap(queue: *mut raw::rd_kafka_queue_t) -> Option<Self> {
        NonNull::new(queue).map(Queue)
    }

    /// Lets what arrives here, and what is here already, pass on to `to`; or keeps it here.
    pub(super) fn forward(&self, to: Option<&Queue>) {
        let to = to.map_or(ptr::null_mut(), |to| to.0.as_ptr());
        // SAFETY: both are counted references on queues of one client.
        unsafe { raw::rd_kafka_queue_forward(self.0.as_ptr(), to) };
    }

    /// The next event, waiting for `wait` at most.
    pub(super) fn poll(&self, wait: Duration) -> Option<Event> {
        // SAFETY: a counted reference on a queue; the event is given back by `Event`.
        NonNull::new(unsafe { raw::rd_kafka_queue_poll(self.0.as_ptr(), milliseconds(wait)) }).map(Event)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: our own counted reference, given back once.
        unsafe { raw::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

/// One event; given back when dropped.
pub(super) struct Event(NonNull<raw::rd_kafka_event_t>);

/// What an event says.
pub(super) enum Said<'event> {
    /// One or more messages.
    Messages,
    /// An error, of one partition or of the client.
    Error {
        code: RDKafkaErrorCode,
        is_fatal: bool,
        reason: Cow<'event, str>,
        /// The partition and the offset it failed at.
        at: Option<(TopicPartition, Offset)>,
    },
    /// A line for the log.
    Log { level: RDKafkaLogLevel, facility: Cow<'event, str>, line: Cow<'event, str> },
    /// Nothing of ours.
    Other,
}

impl Event {
    /// Reads the event.
    pub(super) fn said(&self) -> Said<'_> {
        let event = self.0.as_ptr();
        // SAFETY: the event is alive as long as `self`; the texts are lent for that long.
        unsafe {
            match raw::rd_kafka_event_type(event) {
                raw::RD_KAFKA_EVENT_FETCH => Said::Messages,
                raw::RD_KAFKA_EVENT_ERROR => Said::Error {
                    code: raw::rd_kafka_event_error(event).into(),
                    is_fatal: raw::rd_kafka_event_error_is_fatal(event) != 0,
                    reason: text(raw::rd_kafka_event_error_string(event)),
                    at: place_of(event),
                },
                raw::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut line, mut level) = (ptr::null(), ptr::null(), 0);
                    if raw::rd_kafka_event_log(event, &mut facility, &mut line, &mut level) != 0 {
                        return Said::Other;
                    }
                    Said::Log { level: log_level(level), facility: text(facility), line: text(line) }
                }
                _ => Said::Other,
            }
        }
    }

    /// The next message of an event that has messages.
    pub(super) fn next_message(&self) -> Option<RawMessage<'_>> {
        // SAFETY: the event is alive; the message belongs to it and is lent as long.
        unsafe { raw::rd_kafka_event_message_next(self.0.as_ptr()).as_ref() }.map(RawMessage)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: taken from the queue by us, given back once.
        unsafe { raw::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

/// A message inside an event.
#[derive(Clone, Copy)]
pub(super) struct RawMessage<'event>(&'event raw::rd_kafka_message_t);

impl RawMessage<'_> {
    /// The error, where the message is one.
    pub(super) fn code(&self) -> RDKafkaErrorCode {
        self.0.err.into()
    }

    /// An address that stands for the topic as long as the client lives.
    pub(super) fn topic_identity(&self) -> *const RDKafkaTopic {
        self.0.rkt
    }

    /// Name of the topic.
    pub(super) fn topic(&self) -> Cow<'_, str> {
        if self.0.rkt.is_null() {
            return Cow::Borrowed("");
        }
        // SAFETY: the topic is alive as long as its message, and so is its name.
        unsafe { text(raw::rd_kafka_topic_name(self.0.rkt)) }
    }

    pub(super) fn partition(&self) -> PartitionId {
        self.0.partition
    }

    pub(super) fn offset(&self) -> Offset {
        self.0.offset
    }

    pub(super) fn key(&self) -> Option<Vec<u8>> {
        // SAFETY: the pointer and length are those of the message, which is alive.
        unsafe { bytes(self.0.key.cast(), self.0.key_len) }
    }

    pub(super) fn value(&self) -> Option<Vec<u8>> {
        // SAFETY: as for the key.
        unsafe { bytes(self.0.payload.cast(), self.0.len) }
    }

    pub(super) fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = raw::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive.
        let timestamp = unsafe { raw::rd_kafka_message_timestamp(self.0, &mut kind) };
        (timestamp >= 0).then_some(timestamp)
    }

    pub(super) fn headers(&self) -> Vec<Header> {
        let mut all = ptr::null_mut();
        // SAFETY: the message is alive and keeps the headers; each name and value is copied before it is given back.
        unsafe {
            let code = raw::rd_kafka_message_headers(self.0, &mut all);
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || all.is_null() {
                return Vec::new();
            }
            let count = raw::rd_kafka_header_cnt(all);
            let mut headers = Vec::with_capacity(count);
            for place in 0..count {
                let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
                let code = raw::rd_kafka_header_get_all(all, place, &mut name, &mut value, &mut length);
                if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    break;
                }
                headers.push(Header { name: text(name).into_owned(), value: bytes(value.cast(), length) });
            }
            headers
        }
    }
}

/// One partition's answer about its newest offset.
pub(super) type NewestAnswer = (TopicPartition, Result<Offset, RDKafkaErrorCode>);

/// Asks for the newest offset of many partitions at once, one request a leader. The answer has the place each
/// partition was asked at. No partition may be in the list twice.
pub(super) fn list_newest(
    client: *mut RDKafka,
    partitions: &[&TopicPartition],
    wait: Duration,
) -> Result<Vec<NewestAnswer>, String> {
    let mut list = rdkafka::TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    // SAFETY: the client is alive during the call; each thing made here is given back here; the answer is copied
    // before its event is given back.
    unsafe {
        let asked = list.ptr();
        for place in 0..partitions.len() {
            (*(*asked).elems.add(place)).offset = raw::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST as i64;
        }
        let op = raw::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        let ask = |options: *const _, queue: *mut _| raw::rd_kafka_ListOffsets(client, asked, options, queue);
        let event = ask_administration(client, op, To::Its, wait, ask)?;
        let result = raw::rd_kafka_event_ListOffsets_result(event.0.as_ptr());
        if result.is_null() {
            return Err("empty response".to_owned());
        }
        let mut count = 0;
        let infos = raw::rd_kafka_ListOffsets_result_infos(result, &mut count);
        let mut answers = Vec::with_capacity(count);
        for place in 0..count {
            let answer = &*raw::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(place));
            let partition = TopicPartition { topic: text(answer.topic).into(), partition: answer.partition };
            let outcome = match RDKafkaErrorCode::from(answer.err) {
                RDKafkaErrorCode::NoError if answer.offset >= 0 => Ok(answer.offset),
                // The request to its leader failed as a whole.
                RDKafkaErrorCode::NoError => Err(RDKafkaErrorCode::BrokerTransportFailure),
                code => Err(code),
            };
            answers.push((partition, outcome));
        }
        Ok(answers)
    }
}

/// Asks how large a batch of `topic` may be (`max.message.bytes`, which is the broker's where the topic has none).
pub(super) fn most_batch_bytes(client: *mut RDKafka, topic: &str, wait: Duration) -> Result<usize, String> {
    let topic = CString::new(topic).map_err(|_| "the topic name contains a zero byte".to_owned())?;
    // SAFETY: the client is alive during the call; each thing made here is given back here; the answer is read before
    // its event is given back.
    unsafe {
        let mut asked =
            raw::rd_kafka_ConfigResource_new(raw::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, topic.as_ptr());
        let op = raw::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
        let ask =
            |options: *const _, queue: *mut _| raw::rd_kafka_DescribeConfigs(client, &mut asked, 1, options, queue);
        let event = ask_administration(client, op, To::Its, wait, ask);
        raw::rd_kafka_ConfigResource_destroy(asked);
        let event = event?;
        let result = raw::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr());
        if result.is_null() {
            return Err("empty response".to_owned());
        }
        let mut count = 0;
        let resources = raw::rd_kafka_DescribeConfigs_result_resources(result, &mut count);
        if count == 0 {
            return Err("empty response".to_owned());
        }
        if raw::rd_kafka_ConfigResource_error(*resources) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(raw::rd_kafka_ConfigResource_error_string(*resources)).into_owned());
        }
        let entries = raw::rd_kafka_ConfigResource_configs(*resources, &mut count);
        // A batch has to fit into a segment of the log, too.
        (0..count)
            .map(|place| *entries.add(place))
            .filter(|&entry| {
                matches!(&*text(raw::rd_kafka_ConfigEntry_name(entry)), "max.message.bytes" | "segment.bytes")
            })
            .filter_map(|entry| text(raw::rd_kafka_ConfigEntry_value(entry)).parse().ok())
            .min()
            .ok_or_else(|| "the brokers do not return max.message.bytes".to_owned())
    }
}

unsafe fn place_of(event: *mut raw::rd_kafka_event_t) -> Option<(TopicPartition, Offset)> {
    // SAFETY: the caller's event is alive; what is made here is copied and given back.
    unsafe {
        let place = NonNull::new(raw::rd_kafka_event_topic_partition(event))?;
        let partition =
            TopicPartition { topic: text(place.as_ref().topic).into(), partition: place.as_ref().partition };
        let offset = place.as_ref().offset;
        raw::rd_kafka_topic_partition_destroy(place.as_ptr());
        Some((partition, offset))
    }
}

unsafe fn text<'lent>(text: *const c_char) -> Cow<'lent, str> {
    if text.is_null() {
        return Cow::Borrowed("");
    }
    // SAFETY: librdkafka's strings end with a zero; the caller knows how long it is lent.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

unsafe fn bytes(start: *const u8, length: usize) -> Option<Vec<u8>> {
    // SAFETY: the caller passes a pointer that is null or has `length` bytes.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, length) }.to_vec())
}

fn log_level(syslog: c_int) -> RDKafkaLogLevel {
    match syslog {
        ..=3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        7.. => RDKafkaLogLevel::Debug,
    }
}
