//! A producer for tests, with a record of all messages and their ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::{AcksLevel, Outcome, Stored, code};
use crate::kafka::backoff::Backoff;
use crate::kafka::compression::Codec;
use crate::kafka::config::{BrokerAddress, ConnectionConfig};
use crate::kafka::connection::Connector;
use crate::kafka::metadata::MetadataTopics;
use crate::kafka::metadata_client::MetadataClient;
use crate::kafka::producer::client::{KafkaProducer, ProducerConfig};
use crate::kafka::producer::message::ProducerMessage;
use crate::kafka::producer::outcome::{Limits, QueuedMessage};
use crate::kafka::record_batch::RecordView;
use crate::kafka::testkit::TestCluster;
use crate::locks::{lock, wait_timeout};
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// Longer than anything takes unless the test fails.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// The reason of a message that the producer returns.
pub(super) const NO_METADATA: &str = "no metadata";

/// A deadline that is not reached.
pub(super) fn later() -> Instant {
    Instant::now() + LONG
}

/// A deadline that is reached soon.
pub(super) fn brief() -> Instant {
    Instant::now() + Duration::from_millis(300)
}

/// A message to send.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) level: AcksLevel,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) key: Option<String>,
    /// Padding behind the number of the message, which begins the value.
    pub(super) padding: usize,
    pub(super) headers: Vec<(String, Option<String>)>,
    pub(super) timestamp_ms: i64,
    pub(super) deadline: Instant,
}

impl Message {
    /// A message with a key and a deadline that is not reached.
    pub(super) fn new(level: AcksLevel, topic: &str, partition: i32) -> Message {
        let (key, headers) = (Some("key".to_owned()), Vec::new());
        let (padding, timestamp_ms, deadline) = (0, 1_700_000_000_000, later());
        Message { level, topic: topic.into(), partition, key, padding, headers, timestamp_ms, deadline }
    }
}

/// How a message ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) reason: String,
    pub(super) at: Instant,
}

/// Number of the next client: values differ between clients.
static NEXT_CLIENT: AtomicUsize = AtomicUsize::new(0);

/// The messages with their ends, by number.
struct Record {
    client: usize,
    messages: Mutex<Vec<(Message, Vec<End>)>>,
    changed: Condvar,
}

impl Record {
    fn value(&self, number: usize, message: &Message) -> String {
        format!("{}:{number}{}", self.client, ".".repeat(message.padding))
    }
}

/// A message in the producer.
pub(super) struct InProducer {
    number: usize,
    message: Message,
    record: Arc<Record>,
}

impl QueuedMessage for InProducer {
    fn cost_bytes(&self) -> usize {
        let headers = self.message.headers.iter();
        70 + self.message.padding
            + headers.map(|(name, value)| 20 + name.len() + value.as_ref().map_or(0, String::len)).sum::<usize>()
    }

    fn deadline(&self) -> Instant {
        self.message.deadline
    }
}

impl ProducerMessage for InProducer {
    fn topic(&self) -> &Arc<str> {
        &self.message.topic
    }

    fn partition(&self) -> i32 {
        self.message.partition
    }

    fn with_record(&self, encode: &mut dyn FnMut(&RecordView)) {
        let headers = self.message.headers.iter();
        let headers: Vec<(&str, Option<&[u8]>)> =
            headers.map(|(name, value)| (name.as_str(), value.as_ref().map(String::as_bytes))).collect();
        let value = self.record.value(self.number, &self.message);
        let key = self.message.key.as_ref().map(String::as_bytes);
        let timestamp_ms = self.message.timestamp_ms;
        encode(&RecordView { key, value: Some(value.as_bytes()), headers: &headers, timestamp_ms });
    }

    fn end(self, outcome: Outcome, reason: &str) {
        let end = End { outcome, reason: reason.to_owned(), at: Instant::now() };
        lock(&self.record.messages)[self.number].1.push(end);
        self.record.changed.notify_all();
    }
}

/// Settings of a [`TestClient`].
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) connection: ConnectionConfig,
    pub(super) producer: ProducerConfig,
}

impl Default for Settings {
    fn default() -> Self {
        let connection = ConnectionConfig {
            reconnect_backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(50)),
            max_response_bytes: 1 << 20,
            ..ConnectionConfig::default()
        };
        let limits = Limits {
            max_batch_bytes: 1_000_000,
            max_request_bytes: 4 << 20,
            retry_backoff: Duration::from_millis(5),
            max_retry_backoff: 8 * Duration::from_millis(5),
            is_idempotent: false,
        };
        let producer = ProducerConfig {
            limits,
            codec: Codec::None,
            timeout: Duration::from_secs(10),
            max_messages: 1_000_000,
            linger: Duration::ZERO,
            ack_timeout: Duration::from_secs(30),
        };
        Settings { connection, producer }
    }
}

/// A producer whose messages are recorded. When it is dropped, the producer is closed and all its threads must end.
pub(super) struct TestClient {
    pub(super) producer: Option<KafkaProducer<InProducer>>,
    supervisor: Supervisor,
    record: Arc<Record>,
    /// `None` once the producer is closed.
    metadata: Mutex<Option<MetadataClient>>,
}

impl TestClient {
    /// Makes a producer that has the metadata of all topics.
    pub(super) fn new(cluster: &TestCluster) -> TestClient {
        Self::with(cluster, |_| {})
    }

    /// Like [`new`](Self::new), with other settings.
    pub(super) fn with(cluster: &TestCluster, change: impl FnOnce(&mut Settings)) -> TestClient {
        let mut settings = Settings::default();
        change(&mut settings);
        let bootstrap = cluster.bootstrap().into_iter();
        Self::at(bootstrap.map(|(host, port)| BrokerAddress { host: host.into(), port }).collect(), settings)
    }

    /// Like [`new`](Self::new), with other addresses and settings.
    pub(super) fn at(bootstrap: Vec<BrokerAddress>, settings: Settings) -> TestClient {
        let supervisor = Supervisor::new("test", Stop::new());
        let connector = Connector::new(settings.connection);
        let producer = KafkaProducer::new(connector.clone(), bootstrap.clone(), settings.producer, &supervisor);
        let metadata = Mutex::new(Some(MetadataClient::new(connector, bootstrap)));
        let client = NEXT_CLIENT.fetch_add(1, Ordering::Relaxed);
        let record = Record { client, messages: Mutex::default(), changed: Condvar::new() };
        let client = TestClient { producer: Some(producer), supervisor, record: Arc::new(record), metadata };
        client.learn();
        client
    }

    pub(super) fn producer(&self) -> &KafkaProducer<InProducer> {
        self.producer.as_ref().unwrap()
    }

    /// Makes the next `count` starts of threads fail.
    pub(super) fn fail_starts(&self, count: usize) {
        self.supervisor.fail_starts(count);
    }

    /// Passes the metadata of all topics to the producer.
    pub(super) fn learn(&self) {
        let mut client = lock(&self.metadata);
        let metadata = client.as_mut().unwrap().request(MetadataTopics::All, later()).unwrap();
        self.producer().update(&metadata);
    }

    /// Passes the metadata of these topics to the producer, also of those that do not exist.
    pub(super) fn learn_of(&self, topics: &[String]) {
        let names = topics.iter().map(|name| Arc::from(&**name)).collect();
        let mut client = lock(&self.metadata);
        let metadata = client.as_mut().unwrap().request(MetadataTopics::Names(names), later()).unwrap();
        self.producer().update(&metadata);
    }

    /// Sends a message and returns its number.
    pub(super) fn send(&self, message: Message) -> usize {
        let mut messages = lock(&self.record.messages);
        let number = messages.len();
        messages.push((message.clone(), Vec::new()));
        drop(messages);
        let level = message.level;
        let message = InProducer { number, message, record: Arc::clone(&self.record) };
        if let Err(message) = self.producer().append(level, message) {
            message.end(Outcome::Rejected(code::UNKNOWN_TOPIC_OR_PARTITION, Stored::No), NO_METADATA);
        }
        number
    }

    /// Sends `count` equal messages.
    pub(super) fn send_many(&self, count: usize, message: &Message) -> Vec<usize> {
        (0..count).map(|_| self.send(message.clone())).collect()
    }

    /// Waits until a message has ended.
    pub(super) fn end_of(&self, number: usize) -> End {
        self.end_within(number, LONG).unwrap_or_else(|| panic!("message {number} does not end"))
    }

    /// Waits until a message has ended, at most for `time`.
    pub(super) fn end_within(&self, number: usize, time: Duration) -> Option<End> {
        let until = Instant::now() + time;
        let mut messages = lock(&self.record.messages);
        loop {
            if let Some(end) = messages[number].1.first() {
                return Some(end.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            messages = wait_timeout(&self.record.changed, messages, left);
        }
    }

    /// Returns the value of a message.
    pub(super) fn value(&self, number: usize) -> String {
        self.record.value(number, &lock(&self.record.messages)[number].0)
    }

    pub(super) fn outcome(&self, number: usize) -> Outcome {
        self.end_of(number).outcome
    }

    pub(super) fn has_ended(&self, number: usize) -> bool {
        !lock(&self.record.messages)[number].1.is_empty()
    }

    /// Waits for the messages and asserts that they were stored; returns their offsets.
    pub(super) fn offsets(&self, numbers: &[usize]) -> Vec<i64> {
        let offset = |number: &usize| match self.end_of(*number) {
            End { outcome: Outcome::Appended(Some(offset)), .. } => offset,
            end => panic!("message {number} was not stored: {end:?}"),
        };
        numbers.iter().map(offset).collect()
    }

    /// Whether all messages were confirmed.
    pub(super) fn has_stored_all(&self) -> bool {
        let is_stored = |end: &End| matches!(end.outcome, Outcome::Appended(_));
        lock(&self.record.messages).iter().all(|(_, ends)| ends.iter().all(is_stored))
    }

    /// Waits until all messages have ended.
    pub(super) fn wait(&self) {
        let count = lock(&self.record.messages).len();
        (0..count).for_each(|number| drop(self.end_of(number)));
    }

    /// Closes the producer and waits for the end of its threads.
    pub(super) fn close(&mut self, grace: Duration) {
        if let Some(producer) = self.producer.take() {
            producer.close(grace);
        }
        *lock(&self.metadata) = None;
        self.supervisor.stop().trigger();
        assert_eq!(self.supervisor.join(LONG), Ended::Stopped);
    }

    /// Waits for all messages, closes the producer and compares their ends with the logs. See [`check`](Self::check).
    pub(super) fn finish(&mut self, cluster: &TestCluster) {
        self.wait();
        self.close(Duration::ZERO);
        let started = Instant::now();
        let is_quiet = |cluster: &TestCluster| cluster.held_requests() == 0 && cluster.open_connections() == 0;
        // A response may begin to be held after the others were released.
        while !cluster.wait_until(Duration::from_millis(50), is_quiet) {
            cluster.release_held();
            assert!(started.elapsed() < LONG, "the cluster does not finish its requests");
        }
        self.check(cluster);
    }

    /// Compares the ends of the messages with the logs: each message has ended once; what was confirmed is at its
    /// offset, at acks=-1 once; what was reported as not stored is not there; the offsets of the messages of a
    /// partition and level rise.
    pub(super) fn check(&self, cluster: &TestCluster) {
        let mut logs = Logs { cluster, partitions: HashMap::new() };
        let mut latest: HashMap<(AcksLevel, Arc<str>, i32), i64> = HashMap::new();
        for (number, (message, ends)) in lock(&self.record.messages).iter().enumerate() {
            assert_eq!(ends.len(), 1, "message {number} ends once: {ends:?}");
            let Message { level, topic, partition, .. } = message;
            let offsets = logs.offsets_of(message, &self.record.value(number, message));
            match &ends[0].outcome {
                Outcome::Appended(Some(offset)) => {
                    assert!(offsets.contains(offset), "message {number} {message:?} at {offset}: {offsets:?}");
                    assert!(*level != AcksLevel::All || offsets.len() == 1, "message {number} is stored twice");
                    let latest = latest.insert((*level, Arc::clone(topic), *partition), *offset);
                    assert!(latest.is_none_or(|latest| latest < *offset), "message {number} is out of order");
                }
                Outcome::Appended(None) => assert_eq!(*level, AcksLevel::None),
                outcome if outcome.stored() == Stored::No => {
                    assert_eq!(offsets, [0_i64; 0], "message {number} is stored: {message:?} {:?}", ends[0]);
                }
                _ => assert!(*level != AcksLevel::All || offsets.len() <= 1, "message {number} is stored twice"),
            }
        }
    }
}

/// The offsets of all values, by topic and partition.
struct Logs<'a> {
    cluster: &'a TestCluster,
    partitions: HashMap<(Arc<str>, i32), HashMap<String, Vec<i64>>>,
}

impl Logs<'_> {
    fn offsets_of(&mut self, message: &Message, value: &str) -> Vec<i64> {
        let name = (Arc::clone(&message.topic), message.partition);
        let log = self.partitions.entry(name).or_insert_with_key(|(topic, partition)| {
            let mut offsets: HashMap<String, Vec<i64>> = HashMap::new();
            let has_partition = self.cluster.has_partition(topic, *partition);
            for record in if has_partition { self.cluster.log(topic, *partition) } else { Vec::new() } {
                offsets.entry(record.value_text()).or_default().push(record.offset);
            }
            offsets
        });
        log.get(value).cloned().unwrap_or_default()
    }
}

impl Drop for TestClient {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.producer.take());
        } else {
            self.close(Duration::ZERO);
        }
    }
}
