//! The promises of the Kafka seam, kept by every engine: one suite over the broker in memory, librdkafka (with Kafka
//! 3.9 and 4.x) and the pure-Rust engine (with Kafka 3.9).

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroI32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka_http_wrapper::broker::in_memory::MemoryBroker;
use kafka_http_wrapper::broker::partitioner::partition_of;
use kafka_http_wrapper::broker::{
    self, Acks, AppendFailure, AppendResult, BrokerConfig, Completion, Engine, FetchError, Fetcher, FetcherConfig,
    Header, KafkaSettings, LogEnds, LogRange, Message, MetadataError, PartitionerKind, Producer, ProducerConfig,
    Record, Stored, TopicPartition,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::{Ended, Supervisor};

use crate::harness::jars::{Edition, java};
use crate::harness::{Cluster, Kafka, cluster, kafka_wire, unique, wait_until};

const SOON: Duration = Duration::from_secs(30);
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// What the suite runs over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Librdkafka,
    /// librdkafka with a 4.x broker.
    #[cfg_attr(not(feature = "librdkafka"), allow(dead_code, reason = "the engine is not built in"))]
    LibrdkafkaKraft,
    KafkaRust,
}

/// A broker and the engine that speaks to it.
struct Bench {
    kind: Kind,
    memory: MemoryBroker,
    hosts: Vec<String>,
    supervisor: Supervisor,
}

/// Tells the story how an append ended.
struct Report(Sender<AppendResult>);

impl Completion for Report {
    fn complete(self, outcome: AppendResult) {
        // A story that has seen enough does not listen any more.
        let _ = self.0.send(outcome);
    }
}

impl Bench {
    fn new(kind: Kind) -> Bench {
        let hosts = match kind {
            Kind::Memory => Vec::new(),
            Kind::Librdkafka | Kind::KafkaRust => cluster().brokers.split(',').map(str::to_owned).collect(),
            Kind::LibrdkafkaKraft => vec![kraft().address()],
        };
        Bench::with_hosts(kind, hosts)
    }

    fn with_hosts(kind: Kind, hosts: Vec<String>) -> Bench {
        Bench { kind, memory: MemoryBroker::new(), hosts, supervisor: Supervisor::new("suite", Stop::new()) }
    }

    fn config(&self) -> BrokerConfig {
        BrokerConfig {
            hosts: self.hosts.clone(),
            engine: match self.kind {
                Kind::KafkaRust => Engine::KafkaRust,
                Kind::Memory | Kind::Librdkafka | Kind::LibrdkafkaKraft => Engine::Librdkafka,
            },
            client_id: "suite".to_owned(),
            request_timeout: Duration::from_secs(5),
            settings: KafkaSettings::default(),
        }
    }

    fn topic(&self, prefix: &str, partitions: i32) -> Arc<str> {
        let name = unique(prefix);
        match self.kind {
            Kind::Memory => self.memory.create_topic(&name, partitions),
            _ => kafka_wire::create_topic(&self.hosts.join(","), &name, partitions, 1),
        }
        name.into()
    }

    fn producer(&self) -> Arc<dyn Producer<Report>> {
        self.producer_with(PartitionerKind::Fnv1a, SOON)
    }

    fn producer_with(&self, partitioner: PartitionerKind, timeout: Duration) -> Arc<dyn Producer<Report>> {
        if self.kind == Kind::Memory {
            return Arc::new(self.memory.producer_with(partitioner));
        }
        let (max_message_bytes, max_in_flight) = (MAX_MESSAGE_BYTES, 10_000);
        let config = ProducerConfig { partitioner, max_message_bytes, max_in_flight, timeout };
        broker::producer(&self.config(), config, &self.supervisor).expect("a producer needs no broker")
    }

    fn fetcher(&self) -> Box<dyn Fetcher> {
        if self.kind == Kind::Memory {
            return Box::new(self.memory.fetcher());
        }
        let config = FetcherConfig { prefetch_bytes: 16 << 20, max_message_bytes: MAX_MESSAGE_BYTES };
        broker::fetcher(&self.config(), config, &self.supervisor).expect("a fetcher needs no broker")
    }

    fn log_ends(&self) -> Box<dyn LogEnds> {
        match self.kind {
            Kind::Memory => Box::new(self.memory.log_ends()),
            _ => broker::log_ends(&self.config(), &self.supervisor).expect("log ends need no broker"),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.supervisor.stop().trigger();
        let ended = self.supervisor.join(SOON);
        if !std::thread::panicking() {
            assert_eq!(ended, Ended::Stopped);
        }
    }
}

/// The 4.x broker that the stories share.
fn kraft() -> &'static Kafka {
    static SHARED: OnceLock<Kafka> = OnceLock::new();
    SHARED.get_or_init(Kafka::start_kraft)
}

fn record(topic: &Arc<str>, key: Option<&str>, value: impl Into<Vec<u8>>) -> Record {
    Record {
        topic: Arc::clone(topic),
        partition: None,
        key: key.map(|key| key.as_bytes().to_vec()),
        value: value.into(),
        headers: Vec::new(),
        timestamp_ms: None,
    }
}

fn at(topic: &Arc<str>, partition: i32) -> TopicPartition {
    TopicPartition { topic: Arc::clone(topic), partition }
}

/// Starts an append; the answer comes on the channel.
fn start(producer: &dyn Producer<Report>, record: Record, acks: Acks) -> Receiver<AppendResult> {
    let (sender, receiver) = unbounded();
    producer.append(record, acks, Report(sender));
    receiver
}

fn outcome(answer: &Receiver<AppendResult>) -> AppendResult {
    let outcome = answer.recv_timeout(SOON * 2).expect("every append completes");
    assert!(answer.try_recv().is_err(), "an append completes once");
    outcome
}

fn append(producer: &dyn Producer<Report>, record: Record, acks: Acks) -> AppendResult {
    outcome(&start(producer, record, acks))
}

/// Reads until `count` messages are there.
fn read(fetcher: &mut dyn Fetcher, count: usize) -> Vec<Message> {
    let mut found = Vec::new();
    let deadline = Instant::now() + SOON;
    while found.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} messages in time", found.len());
        match fetcher.poll(Duration::from_millis(200), 1_000) {
            Ok(messages) => found.extend(messages),
            // It is tried again inside.
            Err(error @ FetchError::OffsetGone { .. }) => panic!("{error}"),
            Err(FetchError::Partition { .. } | FetchError::Unreachable(_)) => {}
        }
    }
    found
}

fn values(messages: &[Message]) -> Vec<&[u8]> {
    messages.iter().map(|message| message.value.as_deref().unwrap_or_default()).collect()
}

fn appends_at_every_level_are_read_back(bench: &Bench) {
    let topic = bench.topic("levels", 1);
    let producer = bench.producer();
    let mut confirmed = Vec::new();
    for (number, acks) in [Acks::Leader, Acks::None, Acks::All, Acks::Leader].into_iter().enumerate() {
        let done = append(&*producer, record(&topic, Some("k"), format!("m{number}")), acks).expect("it is stored");
        assert_eq!(done.partition, 0);
        assert_eq!(done.offset.is_some(), acks != Acks::None, "{acks:?}");
        if let Some(offset) = done.offset {
            confirmed.push((offset, format!("m{number}")));
        }
    }
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let messages = read(&mut *fetcher, 4);
    // What needs no acknowledgement may overtake another level, but nothing else.
    assert_eq!(messages.iter().map(|message| message.offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(values(&messages).into_iter().collect::<HashSet<_>>().len(), 4);
    for (offset, value) in confirmed {
        assert_eq!(values(&messages)[offset as usize], value.as_bytes());
    }
    assert!(messages.iter().all(|message| message.key.as_deref() == Some(b"k") && message.from == at(&topic, 0)));
    fetcher.assign(&at(&topic, 0), 2);
    let rest = read(&mut *fetcher, 2);
    assert_eq!(rest, messages[2..]);
    assert_eq!(producer.reachable(), Ok(()));
}

fn keys_choose_the_partition_the_pure_rule_has(bench: &Bench) {
    const PARTITIONS: i32 = 7;
    let count = NonZeroI32::new(PARTITIONS).expect("seven");
    let topic = bench.topic("keys", PARTITIONS);
    for kind in [PartitionerKind::Fnv1a, PartitionerKind::Murmur2] {
        let producer = bench.producer_with(kind, SOON);
        let keys: Vec<String> = (0..60).map(|number| format!("{number}-k\u{e9}y-{}", number * 7919)).collect();
        let answers: Vec<_> =
            keys.iter().map(|key| start(&*producer, record(&topic, Some(key), "v"), Acks::Leader)).collect();
        for (key, answer) in keys.iter().zip(&answers) {
            let done = outcome(answer).expect("it is stored");
            assert_eq!(done.partition, partition_of(kind, key.as_bytes(), count), "{kind:?} {key}");
        }
        let chosen = Record { partition: Some(5), ..record(&topic, Some("any"), "v") };
        assert_eq!(append(&*producer, chosen, Acks::Leader).expect("it is stored").partition, 5);
    }
    // Without a key all partitions get some; the engine may fill one for a few milliseconds before it goes on.
    let producer = bench.producer();
    let mut seen = HashSet::new();
    wait_until(SOON, "messages without a key reach every partition", || {
        let done = append(&*producer, record(&topic, None, "v"), Acks::Leader).expect("it is stored");
        seen.insert(done.partition);
        seen.len() == PARTITIONS as usize
    });
}

fn what_does_not_exist_is_answered_soon(bench: &Bench) {
    let producer = bench.producer();
    let unknown: Arc<str> = unique("nowhere").into();
    let started = Instant::now();
    let answers: Vec<_> = (0..10).map(|_| start(&*producer, record(&unknown, Some("k"), "v"), Acks::Leader)).collect();
    for answer in &answers {
        let error = outcome(answer).expect_err("the topic does not exist");
        assert_eq!((error.kind, error.stored), (AppendFailure::UnknownTopic, Stored::No), "{error}");
        assert!(error.reason.contains(&*unknown), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let again = Instant::now();
    append(&*producer, record(&unknown, None, "v"), Acks::All).expect_err("it still does not exist");
    assert!(again.elapsed() < Duration::from_millis(500), "{:?}", again.elapsed());

    let topic = bench.topic("narrow", 2);
    for partition in [2, i32::MAX, -1] {
        let beyond = Record { partition: Some(partition), ..record(&topic, None, "v") };
        let error = append(&*producer, beyond, Acks::Leader).expect_err("there is no such partition");
        assert_eq!((error.kind, error.stored), (AppendFailure::UnknownPartition, Stored::No), "{error}");
    }
    // A topic that was unknown and is made afterwards is found.
    match bench.kind {
        Kind::Memory => bench.memory.create_topic(&unknown, 1),
        _ => kafka_wire::create_topic(&bench.hosts.join(","), &unknown, 1, 1),
    }
    wait_until(SOON, "the topic is found", || append(&*producer, record(&unknown, None, "v"), Acks::Leader).is_ok());
}

fn a_message_too_large_is_refused_and_harms_no_other(bench: &Bench) {
    // The brokers of the stories take messages up to about 1 MB.
    bench.memory.set_max_message_bytes(Some(1_000_000));
    let topic = bench.topic("large", 1);
    let producer = bench.producer();
    let small = start(&*producer, record(&topic, None, "small"), Acks::Leader);
    let over_broker = start(&*producer, record(&topic, None, vec![7; 2_000_000]), Acks::Leader);
    let over_ours = start(&*producer, record(&topic, None, vec![7; MAX_MESSAGE_BYTES + 1]), Acks::Leader);
    let large = start(&*producer, record(&topic, None, vec![7; 900_000]), Acks::Leader);
    outcome(&small).expect("a small one is stored");
    outcome(&large).expect("a large one is stored");
    for answer in [over_broker, over_ours] {
        let error = outcome(&answer).expect_err("it is too large");
        assert_eq!((error.kind, error.stored), (AppendFailure::TooLarge, Stored::No), "{error}");
    }
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let mut lengths: Vec<_> = values(&read(&mut *fetcher, 2)).into_iter().map(<[u8]>::len).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [5, 900_000]);
}

fn an_offset_that_is_gone_is_told_with_what_is_kept(bench: &Bench) {
    let topic = bench.topic("gone", 2);
    let producer = bench.producer();
    for number in 0..10 {
        let message = Record { partition: Some(number % 2), ..record(&topic, None, format!("m{number}")) };
        append(&*producer, message, Acks::Leader).expect("it is stored");
    }
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 1_000);
    fetcher.assign(&at(&topic, 1), 0);
    let mut found = Vec::new();
    let mut gone = None;
    wait_until(SOON, "the gone offset is told and the other partition is read", || {
        match fetcher.poll(Duration::from_millis(100), 100) {
            Ok(messages) => found.extend(messages),
            Err(error) => assert!(gone.replace(error).is_none(), "it is told once"),
        }
        found.len() == 5 && gone.is_some()
    });
    match gone {
        Some(FetchError::OffsetGone { partition, offset, oldest, newest }) => {
            assert_eq!((partition, offset, oldest, newest), (at(&topic, 0), 1_000, 0, 5));
        }
        other => panic!("{other:?}"),
    }
    // From its oldest offset it can be read again.
    fetcher.assign(&at(&topic, 0), 0);
    assert_eq!(read(&mut *fetcher, 5).len(), 5);
}

fn log_ends_are_told_partition_by_partition(bench: &Bench) {
    let topic = bench.topic("ends", 3);
    let producer = bench.producer();
    for (partition, count) in [(0, 3), (2, 1)] {
        for _ in 0..count {
            let message = Record { partition: Some(partition), ..record(&topic, None, "v") };
            append(&*producer, message, Acks::All).expect("it is stored");
        }
    }
    let mut ends = bench.log_ends();
    let partitions = ends.partitions(&topic).expect("the topic exists");
    assert_eq!(partitions.iter().map(|info| info.partition).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(partitions.iter().all(|info| info.leader.is_some()));
    let nowhere = unique("nowhere");
    assert!(matches!(ends.partitions(&nowhere), Err(MetadataError::UnknownTopic(topic)) if topic == nowhere));
    let asked = [at(&topic, 2), at(&topic, 9), at(&topic, 0), at(&nowhere.as_str().into(), 0), at(&topic, 1)];
    let newest = ends.newest(&asked);
    assert_eq!(newest.len(), asked.len());
    let newest: Vec<Option<i64>> = newest.into_iter().map(Result::ok).collect();
    assert_eq!(newest, [Some(1), None, Some(3), None, Some(0)]);
    assert_eq!(ends.range(&at(&topic, 0)).expect("it exists"), LogRange { oldest: 0, newest: 3 });
    assert!(ends.range(&at(&topic, 9)).is_err());
    assert!(ends.newest(&[]).is_empty());
}

fn a_held_partition_waits_and_a_revoked_one_is_silent(bench: &Bench) {
    const EACH: usize = 2_000;
    let topic = bench.topic("held", 3);
    let producer = bench.producer();
    let answers: Vec<_> = (0..EACH * 3)
        .map(|number| {
            let partition = Some((number % 3) as i32);
            let message = Record { partition, ..record(&topic, None, format!("{}", number / 3)) };
            start(&*producer, message, Acks::Leader)
        })
        .collect();
    for answer in &answers {
        outcome(answer).expect("it is stored");
    }
    let mut fetcher = bench.fetcher();
    for partition in 0..3 {
        fetcher.assign(&at(&topic, partition), 0);
    }
    // Some of each first, so that the hold meets a running fetch.
    let mut found: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    let mut take = |messages: &[Message]| {
        for message in messages {
            found.entry(message.from.partition).or_default().push(message.offset);
        }
        found.clone()
    };
    let first = fetcher.poll(SOON, 100).expect("it can be read");
    assert!((1..=100).contains(&first.len()), "{} are at most 100", first.len());
    take(&first);
    fetcher.set_paused(&at(&topic, 0), true);
    fetcher.revoke(&at(&topic, 1));
    let held_at = take(&[]).get(&0).map_or(0, Vec::len);
    let revoked_at = take(&[]).get(&1).map_or(0, Vec::len);
    let mut idle = 0;
    wait_until(SOON, "the third partition is read to its end", || {
        let messages = fetcher.poll(Duration::from_millis(50), 500).expect("it can be read");
        idle = if messages.is_empty() { idle + 1 } else { 0 };
        let so_far = take(&messages);
        assert_eq!(so_far.get(&0).map_or(0, Vec::len), held_at, "a held partition is silent");
        assert_eq!(so_far.get(&1).map_or(0, Vec::len), revoked_at, "a revoked partition is silent");
        so_far.get(&2).is_some_and(|offsets| offsets.len() == EACH) && idle > 3
    });
    fetcher.set_paused(&at(&topic, 0), false);
    wait_until(SOON, "the held partition goes on", || {
        let messages = fetcher.poll(Duration::from_millis(50), 500).expect("it can be read");
        take(&messages).get(&0).is_some_and(|offsets| offsets.len() == EACH)
    });
    let whole: Vec<i64> = (0..EACH as i64).collect();
    let found = take(&[]);
    assert_eq!((&found[&0], &found[&2]), (&whole, &whole), "each once, in order");
}

fn headers_and_timestamps_travel_or_are_refused(bench: &Bench) {
    let topic = bench.topic("headers", 1);
    let producer = bench.producer();
    let header = |name: &str, value: Option<&[u8]>| Header { name: name.into(), value: value.map(<[u8]>::to_vec) };
    let headers = vec![header("a", Some(b"1")), header("a", Some(b"")), header("b", None)];
    let full = Record { headers: headers.clone(), timestamp_ms: Some(1_600_000_000_123), ..record(&topic, None, "v") };
    let plain = append(&*producer, record(&topic, None, "plain"), Acks::Leader);
    assert_eq!(plain.expect("it is stored").offset, Some(0));
    let done = append(&*producer, full, Acks::Leader);
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    if bench.kind == Kind::KafkaRust {
        let error = done.expect_err("its message format has no headers");
        assert_eq!((error.kind, error.stored), (AppendFailure::Unsupported, Stored::No), "{error}");
        assert_eq!(read(&mut *fetcher, 1)[0].headers, []);
    } else {
        assert_eq!(done.expect("it is stored").offset, Some(1));
        let messages = read(&mut *fetcher, 2);
        assert_eq!(messages[1].headers, headers);
        assert_eq!(messages[1].timestamp_ms, Some(1_600_000_000_123));
    }
}

fn after_the_close_nothing_is_taken(bench: &Bench) {
    let topic = bench.topic("closed", 1);
    let producer = bench.producer();
    let answers: Vec<_> =
        (0..500).map(|number| start(&*producer, record(&topic, Some("k"), format!("{number}")), Acks::All)).collect();
    // Once the first is in, the topic is known and the rest was handed over.
    outcome(&answers[0]).expect("it is stored");
    producer.close(SOON);
    for answer in &answers[1..] {
        let done = answer.try_recv().expect("a close waits for what was handed over");
        done.expect("it is stored");
    }
    let error = append(&*producer, record(&topic, None, "late"), Acks::Leader).expect_err("it is closed");
    assert_eq!((error.kind, error.stored), (AppendFailure::Closed, Stored::No), "{error}");
}

/// A module of stories for each engine.
macro_rules! over {
    ($module:ident, $kind:expr; $($story:ident),+ $(,)?) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $story() {
                super::$story(&Bench::new($kind));
            })+
        }
    };
}

macro_rules! over_every_engine {
    ($($story:ident),+ $(,)?) => {
        over!(memory, Kind::Memory; $($story),+);
        #[cfg(feature = "librdkafka")]
        over!(librdkafka, Kind::Librdkafka; $($story),+);
        #[cfg(feature = "librdkafka")]
        over!(librdkafka_kraft, Kind::LibrdkafkaKraft; $($story),+);
        over!(kafka_rust, Kind::KafkaRust; $($story),+);
    };
}

over_every_engine!(
    appends_at_every_level_are_read_back,
    keys_choose_the_partition_the_pure_rule_has,
    what_does_not_exist_is_answered_soon,
    a_message_too_large_is_refused_and_harms_no_other,
    an_offset_that_is_gone_is_told_with_what_is_kept,
    log_ends_are_told_partition_by_partition,
    a_held_partition_waits_and_a_revoked_one_is_silent,
    headers_and_timestamps_travel_or_are_refused,
    after_the_close_nothing_is_taken,
);

/// Appends numbers one after the other until told to stop; gives each outcome.
fn append_numbers(
    producer: &Arc<dyn Producer<Report>>,
    topic: &Arc<str>,
    acks: Acks,
    stop: &Arc<std::sync::atomic::AtomicBool>,
) -> std::thread::JoinHandle<Vec<Receiver<AppendResult>>> {
    let (producer, topic, stop) = (Arc::clone(producer), Arc::clone(topic), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut answers = Vec::new();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let number = answers.len();
            answers.push(start(&*producer, record(&topic, Some("k"), format!("{number}")), acks));
            std::thread::sleep(Duration::from_micros(500));
        }
        answers
    })
}

/// The end of the only partition, once its leader tells it.
fn end_of(cluster: &Cluster, topic: &str) -> i64 {
    wait_until(SOON, "the log end is told", || cluster.log_ends(topic).get(&0).copied())
}

/// The whole life of a broker that dies, comes back and hangs, under one producer and one fetcher.
fn a_broker_dies_comes_back_and_hangs(kind: Kind) {
    let own = Cluster::start_with(1, &["auto.create.topics.enable=true"]);
    let kafka = &own.kafka_servers[0];
    let bench = Bench::with_hosts(kind, own.brokers.split(',').map(str::to_owned).collect());
    let topic = bench.topic("killed", 1);
    let producer = bench.producer_with(PartitionerKind::Fnv1a, Duration::from_secs(15));

    // A topic that the broker makes itself is not "unknown".
    let made: Arc<str> = unique("made_by_the_broker").into();
    append(&*producer, record(&made, None, "v"), Acks::Leader).expect("the broker makes the topic");

    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let mut found = Vec::new();
    for acks in [Acks::Leader, Acks::All] {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let before = end_of(&own, &topic);
        let appending = append_numbers(&producer, &topic, acks, &stop);
        wait_until(SOON, "some are stored", || end_of(&own, &topic) > before + 100);
        kafka.kill9();
        wait_until(SOON, "the producer notices", || producer.reachable().is_err());
        kafka.restart();
        wait_until(SOON, "the producer recovers", || producer.reachable().is_ok());
        let after = end_of(&own, &topic);
        wait_until(SOON, "appends go on", || end_of(&own, &topic) > after + 100);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let outcomes: Vec<AppendResult> = appending.join().expect("it does not panic").iter().map(outcome).collect();

        let end = end_of(&own, &topic) as usize;
        let missing = end - found.len();
        found.extend(read(&mut *fetcher, missing));
        let offsets: Vec<i64> = found.iter().map(|message| message.offset).collect();
        assert_eq!(offsets, (0..end as i64).collect::<Vec<_>>(), "each once and in order, over the restart");
        let (mut confirmed, mut lost) = (0, 0);
        let mut last = None;
        for (number, outcome) in outcomes.iter().enumerate() {
            let stored = values(&found[before as usize..])
                .iter()
                .filter(|value| **value == format!("{number}").as_bytes())
                .count();
            match outcome {
                Ok(done) => {
                    let offset = done.offset.expect("the offset is known");
                    assert_eq!(found[offset as usize].value.as_deref(), Some(format!("{number}").as_bytes()));
                    assert!(last < Some(offset), "in the order of the appends");
                    (last, confirmed) = (Some(offset), confirmed + 1);
                    if acks == Acks::All && kind == Kind::Librdkafka {
                        assert_eq!(stored, 1, "the idempotent producer repeats nothing");
                    }
                }
                Err(error) => {
                    assert!(error.kind.is_retriable(), "{error:?}");
                    assert!(error.stored == Stored::Unknown || stored == 0, "{number} is there, {error:?}");
                    lost += 1;
                }
            }
        }
        eprintln!("acks {acks:?}: {confirmed} confirmed, {lost} not, over a kill -9 and restart");
        // What was under way at the kill may have lost its confirmation; what was stored after it has not.
        assert!(confirmed > 100);
    }

    // The broker hangs: connections stay open, nothing answers.
    let hasty = bench.producer_with(PartitionerKind::Fnv1a, Duration::from_secs(3));
    append(&*hasty, record(&topic, None, "v"), Acks::Leader).expect("it is stored");
    kafka.stop_process();
    let started = Instant::now();
    let error = append(&*hasty, record(&topic, None, "hung"), Acks::Leader).expect_err("nothing answers");
    assert_eq!((error.kind, error.stored), (AppendFailure::TimedOut, Stored::Unknown), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    wait_until(SOON, "the hanging broker is noticed", || hasty.reachable().is_err());
    let closing = bench.log_ends().partitions(&topic);
    assert!(matches!(closing, Err(MetadataError::Unreachable(_))), "{closing:?}");
    kafka.continue_process();
    wait_until(SOON, "the producer goes on", || append(&*hasty, record(&topic, None, "v"), Acks::Leader).is_ok());

    // Closed while the broker hangs: everything completes, and nothing is said to be certain.
    kafka.stop_process();
    let answer = start(&*producer, record(&topic, None, "last"), Acks::Leader);
    let started = Instant::now();
    producer.close(Duration::from_millis(500));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    let error = answer.try_recv().expect("a close completes all").expect_err("nothing answers");
    assert_eq!(error.kind, AppendFailure::Closed, "{error}");
    kafka.continue_process();
}

fn a_broker_that_is_not_there_yet(kind: Kind) {
    let own = Cluster::start(1);
    let bench = Bench::with_hosts(kind, own.brokers.split(',').map(str::to_owned).collect());
    let topic = bench.topic("absent", 1);
    own.kafka_servers[0].kill9();
    let producer = bench.producer();
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    for round in 0..3 {
        let started = Instant::now();
        let error = append(&*producer, record(&topic, None, "early"), Acks::Leader).expect_err("there is no broker");
        assert_eq!((error.kind, error.stored), (AppendFailure::Unreachable, Stored::No), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{round}: {:?}", started.elapsed());
    }
    wait_until(SOON, "appends are refused at once", || {
        let started = Instant::now();
        append(&*producer, record(&topic, None, "early"), Acks::Leader).expect_err("there is no broker");
        started.elapsed() < Duration::from_millis(50)
    });
    assert!(producer.reachable().is_err());
    assert!(bench.log_ends().newest(&[at(&topic, 0)])[0].is_err());
    let started = Instant::now();
    drop(fetcher.poll(Duration::from_millis(100), 10));
    assert!(started.elapsed() < Duration::from_secs(10));
    own.kafka_servers[0].restart();
    wait_until(SOON, "an append succeeds", || append(&*producer, record(&topic, None, "late"), Acks::Leader).is_ok());
    assert_eq!(read(&mut *fetcher, 1)[0].value.as_deref(), Some(&b"late"[..]), "nothing refused was stored");
}

/// One of two brokers dies: what the other leads is still told.
fn log_ends_of_the_living_are_told(kind: Kind) {
    let own = Cluster::start(2);
    let bench = Bench::with_hosts(kind, own.brokers.split(',').map(str::to_owned).collect());
    let topic = bench.topic("halved", 4);
    let mut ends = bench.log_ends();
    let asked: Vec<_> = (0..4).map(|partition| at(&topic, partition)).collect();
    wait_until(SOON, "all are told", || ends.newest(&asked).iter().all(Result::is_ok));
    let partitions = ends.partitions(&topic).expect("it exists");
    let survivor = partitions[0].leader.expect("it has a leader");
    let leaders: HashSet<_> = partitions.iter().map(|info| info.leader).collect();
    assert_eq!(leaders.len(), 2, "both lead some");
    own.kafka_servers[1 - survivor as usize].kill9();
    wait_until(SOON, "the partitions of the survivor alone are told", || {
        let started = Instant::now();
        let newest = ends.newest(&asked);
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        partitions.iter().zip(&newest).all(|(info, newest)| newest.is_ok() == (info.leader == Some(survivor)))
    });
}

/// The engine chooses partitions by itself and hears of new ones without a restart; librdkafka looks once a minute.
#[test]
fn the_pure_engine_uses_the_partitions_that_a_topic_gains() {
    let bench = Bench::new(Kind::KafkaRust);
    let topic = bench.topic("growing", 1);
    let producer = bench.producer();
    assert_eq!(append(&*producer, record(&topic, Some("k"), "v"), Acks::Leader).expect("it is stored").partition, 0);
    kafka_wire::grow_topic(&bench.hosts.join(","), &topic, 3);
    let count = NonZeroI32::new(3).expect("three");
    let keys: Vec<String> = (0..20).map(|number| format!("key {number}")).collect();
    wait_until(SOON, "messages go where their keys belong among three", || {
        keys.iter().all(|key| {
            let done =
                append(&*producer, record(&topic, Some(key), "v"), Acks::All).expect("none is refused meanwhile");
            done.partition == partition_of(PartitionerKind::Fnv1a, key.as_bytes(), count)
        })
    });
    let chosen = Record { partition: Some(2), ..record(&topic, None, "v") };
    assert_eq!(append(&*producer, chosen, Acks::Leader).expect("it is stored").partition, 2);
}

/// Held for so long that what was prefetched is let go, and read to the end afterwards.
#[cfg(feature = "librdkafka")]
#[test]
fn a_partition_held_for_long_loses_and_repeats_nothing() {
    const COUNT: usize = 3_000;
    let bench = Bench::new(Kind::Librdkafka);
    let topic = bench.topic("long_held", 1);
    let producer = bench.producer();
    let answers: Vec<_> =
        (0..COUNT).map(|number| start(&*producer, record(&topic, None, format!("{number}")), Acks::Leader)).collect();
    for answer in &answers {
        outcome(answer).expect("it is stored");
    }
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let mut found = fetcher.poll(SOON, 100).expect("it can be read");
    fetcher.set_paused(&at(&topic, 0), true);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(7) {
        assert_eq!(fetcher.poll(Duration::from_millis(100), 100).expect("a held one is silent"), []);
    }
    fetcher.set_paused(&at(&topic, 0), false);
    found.extend(read(&mut *fetcher, COUNT - found.len()));
    let offsets: Vec<i64> = found.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, (0..COUNT as i64).collect::<Vec<_>>());
}

mod broken_brokers {
    use super::Kind;

    #[cfg(feature = "librdkafka")]
    #[test]
    fn librdkafka_tells_the_log_ends_of_the_living() {
        super::log_ends_of_the_living_are_told(Kind::Librdkafka);
    }

    #[test]
    fn kafka_rust_tells_the_log_ends_of_the_living() {
        super::log_ends_of_the_living_are_told(Kind::KafkaRust);
    }

    #[cfg(feature = "librdkafka")]
    #[test]
    fn librdkafka_outlives_a_broker() {
        super::a_broker_dies_comes_back_and_hangs(Kind::Librdkafka);
    }

    #[test]
    fn kafka_rust_outlives_a_broker() {
        super::a_broker_dies_comes_back_and_hangs(Kind::KafkaRust);
    }

    #[cfg(feature = "librdkafka")]
    #[test]
    fn librdkafka_waits_for_a_broker() {
        super::a_broker_that_is_not_there_yet(Kind::Librdkafka);
    }

    #[test]
    fn kafka_rust_waits_for_a_broker() {
        super::a_broker_that_is_not_there_yet(Kind::KafkaRust);
    }
}

#[test]
fn the_pure_engine_says_that_a_broker_is_too_new() {
    let bench = Bench::with_hosts(Kind::KafkaRust, vec![kraft().address()]);
    let topic = bench.topic("too_new", 1);
    let mut fetcher = bench.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let told = |text: String| text.contains("4.0") && text.contains("kafka_client");
    wait_until(SOON, "the fetcher says so", || {
        fetcher.poll(Duration::from_millis(100), 1).is_err_and(|error| told(error.to_string()))
    });
    let producer = bench.producer();
    let error = append(&*producer, record(&topic, None, "v"), Acks::Leader).expect_err("the broker is too new");
    assert!(told(error.to_string()), "{error}");
}

/// Writes the hash of each line in hexadecimal digits.
const JAVA_MURMUR2: &str = r"
    import java.io.*;
    import java.util.HexFormat;
    public class Murmur2 {
        public static void main(String[] arguments) throws IOException {
            var lines = new BufferedReader(new InputStreamReader(System.in));
            for (String line; (line = lines.readLine()) != null; ) {
                byte[] key = HexFormat.of().parseHex(line);
                System.out.println(org.apache.kafka.common.utils.Utils.murmur2(key));
            }
        }
    }";

#[test]
fn murmur2_is_what_the_java_client_has() {
    use kafka_http_wrapper::broker::partitioner::murmur2;
    use std::io::Write;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("Murmur2.java");
    std::fs::write(&source, JAVA_MURMUR2).expect("a file in our own folder");
    // Every length up to 300 bytes, so that each tail and the sign of bytes are met.
    let keys: Vec<Vec<u8>> =
        (1..=300_usize).map(|length| (0..length).map(|place| (place * 167 + length * 59) as u8).collect()).collect();
    let hex = |key: &Vec<u8>| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let input: String = keys.iter().map(hex).collect();
    let mut command = java(Edition::WithZooKeeper, &["-Xmx256m"]);
    command.arg(&source).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("java is there");
    let mut stdin = child.stdin.take().expect("it is piped");
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("java ends");
    writing.join().expect("it does not panic").expect("java reads all");
    assert!(output.status.success(), "{}", output.status);
    let hashes: Vec<i32> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("a number a line")).collect();
    let ours: Vec<i32> = keys.iter().map(|key| murmur2(key).cast_signed()).collect();
    assert_eq!(ours, hashes);
}
