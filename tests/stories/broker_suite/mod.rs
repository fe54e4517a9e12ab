//! The guarantees of the Kafka seam, checked for every engine: the in-memory broker, native (with Kafka 3.9 and 4.x)
//! and kafka-rust (with Kafka 3.9).

/// A broker, and the engine under test as its client.
mod fixture;
/// Comparison of `murmur2` with the Java client, whose default partitioner uses this hash.
mod murmur2;
/// Brokers that are killed, frozen, or down at the start.
mod outages;

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroI32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_http_wrapper::broker::partitioner::partition_of;
use kafka_http_wrapper::broker::{
    Acks, AppendFailure, FetchEvent, Header, LogRange, Message, MetadataError, PartitionerKind, Record, Stored,
};

use crate::harness::engine::{poll, poll_messages, read_messages as read};
use crate::harness::{kafka_wire, kraft_cluster, unique, wait_until};
use fixture::{DEADLINE, Fixture, Kind, MAX_MESSAGE_BYTES, append, at, outcome, record, start, values};

fn appends_at_every_level_are_read_back(fixture: &Fixture) {
    let topic = fixture.topic("levels", 1);
    let producer = fixture.producer();
    let mut confirmed = Vec::new();
    for (number, acks) in [Acks::Leader, Acks::None, Acks::All, Acks::Leader].into_iter().enumerate() {
        let done =
            append(&*producer, record(&topic, Some("k"), format!("m{number}")), acks).expect("the message is stored");
        assert_eq!(done.partition, 0);
        assert_eq!(done.offset.is_some(), acks != Acks::None, "{acks:?}");
        if let Some(offset) = done.offset {
            confirmed.push((offset, format!("m{number}")));
        }
    }
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let messages = read(&mut *fetcher, 4);
    // Only the message with acks=0 may be stored before or after its turn, so its offset is not checked.
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

fn keys_are_hashed_to_partitions_by_the_partitioner(fixture: &Fixture) {
    const PARTITIONS: i32 = 7;
    let count = NonZeroI32::new(PARTITIONS).expect("seven");
    let topic = fixture.topic("keys", PARTITIONS);
    for kind in [PartitionerKind::Fnv1a, PartitionerKind::Murmur2] {
        let producer = fixture.producer_with(kind, DEADLINE);
        let keys: Vec<String> = (0..60).map(|number| format!("{number}-k\u{e9}y-{}", number * 7919)).collect();
        let answers: Vec<_> =
            keys.iter().map(|key| start(&*producer, record(&topic, Some(key), "v"), Acks::Leader)).collect();
        for (key, answer) in keys.iter().zip(&answers) {
            let done = outcome(answer).expect("the message is stored");
            assert_eq!(done.partition, partition_of(kind, key.as_bytes(), count), "{kind:?} {key}");
        }
        let chosen = Record { partition: Some(5), ..record(&topic, Some("any"), "v") };
        assert_eq!(append(&*producer, chosen, Acks::Leader).expect("the message is stored").partition, 5);
    }
    // Without a key every partition gets messages. An engine may use one partition for some milliseconds, then another.
    let producer = fixture.producer();
    let mut seen = HashSet::new();
    wait_until(DEADLINE, "messages without a key reach every partition", || {
        let done = append(&*producer, record(&topic, None, "v"), Acks::Leader).expect("the message is stored");
        seen.insert(done.partition);
        seen.len() == PARTITIONS as usize
    });
}

fn unknown_topics_and_partitions_are_reported_soon(fixture: &Fixture) {
    let producer = fixture.producer();
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
    append(&*producer, record(&unknown, None, "v"), Acks::All).expect_err("the topic still does not exist");
    assert!(again.elapsed() < Duration::from_millis(500), "{:?}", again.elapsed());

    let topic = fixture.topic("two_partitions", 2);
    for partition in [2, i32::MAX, -1] {
        let beyond = Record { partition: Some(partition), ..record(&topic, None, "v") };
        let error = append(&*producer, beyond, Acks::Leader).expect_err("there is no such partition");
        assert_eq!((error.kind, error.stored), (AppendFailure::UnknownPartition, Stored::No), "{error}");
    }
    // A topic that is created after it was reported as unknown is found.
    fixture.create_topic(&unknown, 1);
    wait_until(DEADLINE, "the topic is found", || {
        append(&*producer, record(&unknown, None, "v"), Acks::Leader).is_ok()
    });
}

fn a_message_too_large_is_refused_and_others_are_stored(fixture: &Fixture) {
    // The Kafka brokers of the stories accept messages of up to about 1 MB (their default).
    fixture.memory.set_max_message_bytes(Some(1_000_000));
    let topic = fixture.topic("large", 1);
    let producer = fixture.producer();
    let small = start(&*producer, record(&topic, None, "small"), Acks::Leader);
    let over_broker_limit = start(&*producer, record(&topic, None, vec![7; 2_000_000]), Acks::Leader);
    let over_client_limit = start(&*producer, record(&topic, None, vec![7; MAX_MESSAGE_BYTES + 1]), Acks::Leader);
    let large = start(&*producer, record(&topic, None, vec![7; 900_000]), Acks::Leader);
    outcome(&small).expect("a small message is stored");
    outcome(&large).expect("a large message is stored");
    for answer in [over_broker_limit, over_client_limit] {
        let error = outcome(&answer).expect_err("the message is too large");
        assert_eq!((error.kind, error.stored), (AppendFailure::TooLarge, Stored::No), "{error}");
    }
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let mut lengths: Vec<_> = values(&read(&mut *fetcher, 2)).into_iter().map(<[u8]>::len).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [5, 900_000]);
}

fn an_offset_out_of_range_is_reported_with_the_range(fixture: &Fixture) {
    let topic = fixture.topic("gone", 2);
    let producer = fixture.producer();
    for number in 0..10 {
        let message = Record { partition: Some(number % 2), ..record(&topic, None, format!("m{number}")) };
        append(&*producer, message, Acks::Leader).expect("the message is stored");
    }
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 1_000);
    fetcher.assign(&at(&topic, 1), 0);
    let mut found = Vec::new();
    let mut gone = None;
    wait_until(DEADLINE, "the offset is reported and the other partition is read", || {
        let (messages, others) = poll(&mut *fetcher, Duration::from_millis(100), 100);
        found.extend(messages);
        others.into_iter().for_each(|event| assert!(gone.replace(event).is_none(), "it is reported once"));
        found.len() == 5 && gone.is_some()
    });
    match gone {
        Some(FetchEvent::OffsetGone { partition, offset, oldest, newest }) => {
            assert_eq!((partition, offset, oldest, newest), (at(&topic, 0), 1_000, 0, 5));
        }
        other => panic!("{other:?}"),
    }
    // After the error, the partition can be assigned again at its oldest offset.
    fetcher.assign(&at(&topic, 0), 0);
    assert_eq!(read(&mut *fetcher, 5).len(), 5);
}

fn log_ends_are_returned_for_each_partition(fixture: &Fixture) {
    let topic = fixture.topic("ends", 3);
    let producer = fixture.producer();
    for (partition, count) in [(0, 3), (2, 1)] {
        for _ in 0..count {
            let message = Record { partition: Some(partition), ..record(&topic, None, "v") };
            append(&*producer, message, Acks::All).expect("the message is stored");
        }
    }
    let mut ends = fixture.log_ends();
    let partitions = ends.partitions(&topic).expect("the topic exists");
    assert_eq!(partitions.iter().map(|info| info.partition).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(partitions.iter().all(|info| info.leader.is_some()));
    let nowhere = unique("nowhere");
    assert!(matches!(ends.partitions(&nowhere), Err(MetadataError::UnknownTopic(topic)) if topic == nowhere));
    let requested = [at(&topic, 2), at(&topic, 9), at(&topic, 0), at(&nowhere.as_str().into(), 0), at(&topic, 1)];
    let newest = ends.newest(&requested);
    assert_eq!(newest.len(), requested.len());
    let newest: Vec<Option<i64>> = newest.into_iter().map(Result::ok).collect();
    assert_eq!(newest, [Some(1), None, Some(3), None, Some(0)]);
    assert_eq!(ends.range(&at(&topic, 0)).expect("it exists"), LogRange { oldest: 0, newest: 3, stable: 3 });
    assert!(ends.range(&at(&topic, 9)).is_err());
    let ranges = ends.range_of_all(&requested, Instant::now() + DEADLINE / 3);
    let newest: Vec<Option<i64>> = ranges.into_iter().map(|range| range.ok().map(|range| range.newest)).collect();
    assert_eq!(newest, [Some(1), None, Some(3), None, Some(0)]);
    assert!(ends.newest(&[]).is_empty());
}

fn a_paused_partition_resumes_and_a_revoked_one_ends(fixture: &Fixture) {
    const EACH: usize = 2_000;
    let topic = fixture.topic("paused", 3);
    let producer = fixture.producer();
    let append = |number: usize| {
        let partition = Some((number % 3) as i32);
        let message = Record { partition, ..record(&topic, None, format!("{}", number / 3)) };
        start(&*producer, message, Acks::Leader)
    };
    let answers: Vec<_> = (0..EACH * 3).map(append).collect();
    for answer in &answers {
        outcome(answer).expect("the message is stored");
    }
    let mut fetcher = fixture.fetcher();
    for partition in 0..3 {
        fetcher.assign(&at(&topic, partition), 0);
    }
    // Some messages are read first, so that fetching has begun when the partition is paused.
    let mut found: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    let mut take = |messages: &[Message]| {
        for message in messages {
            found.entry(message.from.partition).or_default().push(message.offset);
        }
        found.clone()
    };
    let first = poll_messages(&mut *fetcher, DEADLINE, 100);
    assert!((1..=100).contains(&first.len()), "poll returned {} messages, not 1 to 100", first.len());
    take(&first);
    fetcher.set_paused(&at(&topic, 0), true);
    fetcher.revoke(&at(&topic, 1));
    let paused_at = take(&[]).get(&0).map_or(0, Vec::len);
    let revoked_at = take(&[]).get(&1).map_or(0, Vec::len);
    let mut idle = 0;
    wait_until(DEADLINE, "the third partition is read to its log end", || {
        let messages = poll_messages(&mut *fetcher, Duration::from_millis(50), 500);
        idle = if messages.is_empty() { idle + 1 } else { 0 };
        let so_far = take(&messages);
        assert_eq!(so_far.get(&0).map_or(0, Vec::len), paused_at, "a paused partition returns nothing");
        assert_eq!(so_far.get(&1).map_or(0, Vec::len), revoked_at, "a revoked partition returns nothing");
        so_far.get(&2).is_some_and(|offsets| offsets.len() == EACH) && idle > 3
    });
    fetcher.set_paused(&at(&topic, 0), false);
    wait_until(DEADLINE, "the paused partition resumes", || {
        let messages = poll_messages(&mut *fetcher, Duration::from_millis(50), 500);
        take(&messages).get(&0).is_some_and(|offsets| offsets.len() == EACH)
    });
    let whole: Vec<i64> = (0..EACH as i64).collect();
    let found = take(&[]);
    assert_eq!((&found[&0], &found[&2]), (&whole, &whole), "each once, in order");
}

fn headers_and_timestamps_are_stored_or_refused(fixture: &Fixture) {
    let topic = fixture.topic("headers", 1);
    let producer = fixture.producer();
    let header = |name: &str, value: Option<&[u8]>| Header { name: name.into(), value: value.map(<[u8]>::to_vec) };
    let headers = vec![header("a", Some(b"1")), header("a", Some(b"")), header("b", None)];
    let full = Record { headers: headers.clone(), timestamp_ms: Some(1_600_000_000_123), ..record(&topic, None, "v") };
    let plain = append(&*producer, record(&topic, None, "plain"), Acks::Leader);
    assert_eq!(plain.expect("the message is stored").offset, Some(0));
    let done = append(&*producer, full, Acks::Leader);
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    if fixture.kind == Kind::KafkaRust {
        let error = done.expect_err("its message format has no headers");
        assert_eq!((error.kind, error.stored), (AppendFailure::Unsupported, Stored::No), "{error}");
        assert_eq!(read(&mut *fetcher, 1)[0].headers, []);
    } else {
        assert_eq!(done.expect("the message is stored").offset, Some(1));
        let messages = read(&mut *fetcher, 2);
        assert_eq!(messages[1].headers, headers);
        assert_eq!(messages[1].timestamp_ms, Some(1_600_000_000_123));
    }
}

fn a_closed_producer_refuses_appends(fixture: &Fixture) {
    let topic = fixture.topic("closed", 1);
    let producer = fixture.producer();
    let answers: Vec<_> =
        (0..500).map(|number| start(&*producer, record(&topic, Some("k"), format!("{number}")), Acks::All)).collect();
    // When the first message is stored, the metadata is known, so the others have been passed to the client library.
    outcome(&answers[0]).expect("the message is stored");
    producer.close(DEADLINE);
    for answer in &answers[1..] {
        let done = answer.try_recv().expect("a close waits for the appends in flight");
        done.expect("the message is stored");
    }
    let error = append(&*producer, record(&topic, None, "late"), Acks::Leader).expect_err("the producer is closed");
    assert_eq!((error.kind, error.stored), (AppendFailure::Closed, Stored::No), "{error}");
}

/// Defines a module with these stories for one engine.
macro_rules! over {
    ($module:ident, $kind:expr; $($story:ident),+ $(,)?) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $story() {
                super::$story(&Fixture::new($kind));
            })+
        }
    };
}

/// Defines a module with these stories for each engine.
macro_rules! over_every_engine {
    ($($story:ident),+ $(,)?) => {
        over!(memory, Kind::Memory; $($story),+);
        over!(native, Kind::Native; $($story),+);
        over!(native_kraft, Kind::NativeKraft; $($story),+);
        over!(kafka_rust, Kind::KafkaRust; $($story),+);
    };
}

over_every_engine!(
    appends_at_every_level_are_read_back,
    keys_are_hashed_to_partitions_by_the_partitioner,
    unknown_topics_and_partitions_are_reported_soon,
    a_message_too_large_is_refused_and_others_are_stored,
    an_offset_out_of_range_is_reported_with_the_range,
    log_ends_are_returned_for_each_partition,
    a_paused_partition_resumes_and_a_revoked_one_ends,
    headers_and_timestamps_are_stored_or_refused,
    a_closed_producer_refuses_appends,
);

#[test]
fn kafka_rust_uses_partitions_that_are_added_to_a_topic() {
    partitions_that_are_added_are_used(Kind::KafkaRust);
}

#[test]
fn native_uses_partitions_that_are_added_to_a_topic() {
    partitions_that_are_added_are_used(Kind::Native);
}

/// New partitions are used within [`DEADLINE`].
fn partitions_that_are_added_are_used(kind: Kind) {
    let fixture = Fixture::new(kind);
    let topic = fixture.topic("growing", 1);
    let producer = fixture.producer();
    assert_eq!(
        append(&*producer, record(&topic, Some("k"), "v"), Acks::Leader).expect("the message is stored").partition,
        0
    );
    kafka_wire::grow_topic(&fixture.brokers, &topic, 3);
    let count = NonZeroI32::new(3).expect("three");
    let keys: Vec<String> = (0..20).map(|number| format!("key {number}")).collect();
    wait_until(DEADLINE, "keys are hashed over three partitions", || {
        keys.iter().all(|key| {
            let done = append(&*producer, record(&topic, Some(key), "v"), Acks::All).expect("no append is refused");
            done.partition == partition_of(PartitionerKind::Fnv1a, key.as_bytes(), count)
        })
    });
    let chosen = Record { partition: Some(2), ..record(&topic, None, "v") };
    assert_eq!(append(&*producer, chosen, Acks::Leader).expect("the message is stored").partition, 2);
}

#[test]
fn native_loses_and_repeats_no_message_of_a_partition_that_was_paused_for_seconds() {
    a_partition_paused_for_seconds_loses_and_repeats_no_message(Kind::Native);
}

/// The partition is paused for 7 s, longer than a long poll.
fn a_partition_paused_for_seconds_loses_and_repeats_no_message(kind: Kind) {
    const COUNT: usize = 3_000;
    let fixture = Fixture::new(kind);
    let topic = fixture.topic("long_paused", 1);
    let producer = fixture.producer();
    let answers: Vec<_> =
        (0..COUNT).map(|number| start(&*producer, record(&topic, None, format!("{number}")), Acks::Leader)).collect();
    for answer in &answers {
        outcome(answer).expect("the message is stored");
    }
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let mut found = poll_messages(&mut *fetcher, DEADLINE, 100);
    fetcher.set_paused(&at(&topic, 0), true);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(7) {
        assert_eq!(poll_messages(&mut *fetcher, Duration::from_millis(100), 100), []);
    }
    fetcher.set_paused(&at(&topic, 0), false);
    found.extend(read(&mut *fetcher, COUNT - found.len()));
    let offsets: Vec<i64> = found.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, (0..COUNT as i64).collect::<Vec<_>>());
}

#[test]
fn kafka_rust_names_a_broker_that_is_too_new() {
    let fixture = Fixture::with_brokers(Kind::KafkaRust, kraft_cluster().brokers.clone());
    let topic = fixture.topic("too_new", 1);
    let mut fetcher = fixture.fetcher();
    fetcher.assign(&at(&topic, 0), 0);
    let is_named = |text: String| text.contains("4.0") && text.contains("kafka_client");
    wait_until(DEADLINE, "the fetcher names the version", || {
        let events = fetcher.poll(Duration::from_millis(100), 1);
        events.iter().any(|event| is_named(format!("{event:?}")))
    });
    let producer = fixture.producer();
    let error = append(&*producer, record(&topic, None, "v"), Acks::Leader).expect_err("the broker is too new");
    assert!(is_named(error.to_string()), "{error}");
}
