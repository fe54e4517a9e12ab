//! Helpers for stories that use an engine of the library directly, without a daemon.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kafka_http_wrapper::broker::{
    self, Acks, AppendResult, BrokerConfig, Engine, FetchEvent, Fetcher, FetcherConfig, HeaderLimits, KafkaSettings,
    Message, PartitionerKind, Producer, ProducerConfig, Record, TopicPartition,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::Supervisor;

const READ_DEADLINE: Duration = Duration::from_secs(30);
const APPEND_DEADLINE: Duration = Duration::from_secs(30);

/// Returns a configuration for `engine` with these bootstrap brokers (`host:port`, separated by commas).
pub(crate) fn broker_config(brokers: &str, engine: Engine) -> BrokerConfig {
    BrokerConfig {
        hosts: brokers.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect(),
        engine,
        client_id: "harness".to_owned(),
        request_timeout: Duration::from_secs(5),
        settings: KafkaSettings::default(),
        requests: Default::default(),
    }
}

/// Polls once; returns the messages and the other events.
pub(crate) fn poll(fetcher: &mut dyn Fetcher, wait: Duration, max: usize) -> (Vec<Message>, Vec<FetchEvent>) {
    let (mut messages, mut others) = (Vec::new(), Vec::new());
    for event in fetcher.poll(wait, max) {
        match event {
            FetchEvent::Messages(batch) => messages.extend(batch.messages),
            // The topics of these stories are neither recreated nor transactional.
            FetchEvent::TopicId { .. } | FetchEvent::Position { .. } => {}
            other => others.push(other),
        }
    }
    (messages, others)
}

/// Polls until there are messages, or for `wait`; returns them. Panics after an error.
#[track_caller]
pub(crate) fn poll_messages(fetcher: &mut dyn Fetcher, wait: Duration, max: usize) -> Vec<Message> {
    let deadline = Instant::now() + wait;
    loop {
        let (messages, others) = poll(fetcher, deadline.saturating_duration_since(Instant::now()), max);
        assert_eq!(others, [], "the partition can be read");
        if !messages.is_empty() || deadline <= Instant::now() {
            return messages;
        }
    }
}

/// Polls until `count` messages are read; returns them. Panics after [`READ_DEADLINE`], or if the log is another one.
#[track_caller]
pub(crate) fn read_messages(fetcher: &mut dyn Fetcher, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let deadline = Instant::now() + READ_DEADLINE;
    while messages.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} messages in {READ_DEADLINE:?}", messages.len());
        let (found, others) = poll(fetcher, Duration::from_millis(200), 1_000);
        messages.extend(found);
        for event in others {
            match event {
                // The fetcher itself retries after these errors.
                FetchEvent::PartitionError { .. }
                | FetchEvent::Recovered { .. }
                | FetchEvent::BrokerUnreachable { .. }
                | FetchEvent::Unreachable { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    messages
}

/// Reads the first `count` messages of a partition, with headers and timestamps.
#[track_caller]
pub(crate) fn read_partition(brokers: &str, topic: &str, partition: i32, count: usize) -> Vec<Message> {
    let supervisor = Supervisor::new("read", Stop::new());
    let sizes =
        FetcherConfig { prefetch_bytes: 1 << 20, max_message_bytes: 16 << 20, headers: HeaderLimits::default() };
    let config = broker_config(brokers, Engine::Native);
    let mut fetcher = broker::fetcher(&config, sizes, &supervisor).expect("creating a fetcher needs no broker");
    fetcher.assign(&TopicPartition { topic: topic.into(), partition }, 0);
    let found = read_messages(&mut *fetcher, count);
    assert_eq!(found.len(), count, "{found:?}");
    found
}

/// Appends records with all that they may have: no key, no value, headers. Returns when all are confirmed.
#[track_caller]
pub(crate) fn append(brokers: &str, records: Vec<Record>) {
    let supervisor = Supervisor::new("append", Stop::new());
    let config = ProducerConfig {
        partitioner: PartitionerKind::default(),
        max_message_bytes: 64 << 20,
        max_in_flight: records.len(),
        timeout: APPEND_DEADLINE,
    };
    type Done = Box<dyn FnOnce(AppendResult) + Send>;
    let producer: Arc<dyn Producer<Done>> =
        broker::producer(&broker_config(brokers, Engine::Native), config, &supervisor).expect("a producer");
    let (sender, results) = mpsc::channel();
    for record in records {
        let sender = sender.clone();
        producer.append(record, Acks::All, Box::new(move |result| drop(sender.send(result))));
    }
    drop(sender);
    results.iter().for_each(|result| assert!(result.is_ok(), "{result:?}"));
    producer.close(Duration::ZERO);
}

/// Appends `count` messages of 10 bytes without a key to a topic.
#[track_caller]
pub(crate) fn append_some(brokers: &str, topic: &str, count: usize) {
    let topic: Arc<str> = topic.into();
    let record = || Record {
        topic: Arc::clone(&topic),
        partition: None,
        key: None,
        value: Some(vec![b'x'; 10]),
        headers: Vec::new(),
        timestamp_ms: None,
    };
    append(brokers, (0..count).map(|_| record()).collect());
}
