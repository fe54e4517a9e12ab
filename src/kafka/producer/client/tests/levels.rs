//! The requests that are sent if there are no faults.

use super::*;
use crate::kafka::compression::Codec;

#[test]
fn each_level_stores_the_messages_of_each_partition_in_order() {
    let cluster = TestCluster::start(3);
    cluster.create_topic("a", 5);
    cluster.create_topic("b", 3);
    let mut client = TestClient::new(&cluster);
    let mut expected = std::collections::HashMap::<(&str, i32, AcksLevel), Vec<String>>::new();
    for round in 0..200 {
        for level in AcksLevel::EACH {
            let (topic, partition) = if round % 2 == 0 { ("a", round / 2 % 5) } else { ("b", round / 2 % 3) };
            let number = client.send(Message::new(level, topic, partition));
            expected.entry((topic, partition, level)).or_default().push(client.value(number));
        }
    }
    client.wait();
    // Messages with acks=0 have ended before they are stored.
    let count = |cluster: &TestCluster| {
        let partitions =
            [("a", 5), ("b", 3)].into_iter().flat_map(|(topic, count)| (0..count).map(move |at| (topic, at)));
        partitions.map(|(topic, partition)| cluster.log(topic, partition).len()).sum::<usize>()
    };
    assert!(cluster.wait_until(LONG, |cluster| count(cluster) == 600));
    for ((topic, partition, level), expected) in expected {
        let stored = values(&cluster, topic, partition);
        let of_level: Vec<_> = stored.into_iter().filter(|value| expected.contains(value)).collect();
        assert_eq!(of_level, expected, "{topic}-{partition} {level:?}");
    }
    client.finish(&cluster);
}

#[test]
fn one_request_carries_all_partitions_of_a_broker() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 48);
    cluster.create_topic("other", 16);
    for level in CONFIRMED {
        let client = TestClient::new(&cluster);
        cluster.fault(produce(), Fault::response_held());
        client.send(Message::new(level, "t", 0));
        assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
        let before = cluster.partitions_per_request(ApiKey::Produce);
        // Alternating, so that the topics must be grouped.
        for partition in 0..48 {
            client.send_many(2, &Message::new(level, "t", partition));
            client.send(Message::new(level, "other", partition % 16));
        }
        cluster.release_held();
        client.wait();
        let after = cluster.partitions_per_request(ApiKey::Produce);
        assert_eq!(after.get(&64), Some(&(before.get(&64).unwrap_or(&0) + 1)), "{before:?} {after:?}");
        assert_eq!(after.values().sum::<u64>(), before.values().sum::<u64>() + 1);
        client.check(&cluster);
    }
}

#[test]
fn every_release_stores_messages_at_every_level() {
    for release in Release::ALL {
        let cluster = TestCluster::builder(2).release(release).start();
        cluster.create_topic("t", 2);
        let mut client = TestClient::new(&cluster);
        for level in AcksLevel::EACH {
            client.send_many(3, &Message::new(level, "t", 0));
            client.send_many(3, &Message::new(level, "t", 1));
        }
        client.wait();
        let is_stored = |cluster: &TestCluster| (0..2).all(|partition| cluster.log("t", partition).len() == 9);
        assert!(cluster.wait_until(LONG, is_stored), "{release:?}");
        client.finish(&cluster);
        assert_eq!(cluster.malformed_requests(), 0, "{release:?}");
    }
}

#[test]
fn key_value_headers_and_timestamp_arrive_with_every_codec() {
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let cluster = TestCluster::start(1);
        cluster.create_topic("t", 1);
        let mut client = TestClient::with(&cluster, |settings| settings.producer.codec = codec);
        let plain = Message::new(AcksLevel::All, "t", 0);
        let headers = vec![("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), None)];
        let with_headers = Message { headers, padding: 3000, timestamp_ms: 17, ..plain.clone() };
        let numbers = [client.send(with_headers), client.send(Message { key: None, ..plain })];
        assert_eq!(client.offsets(&numbers), [0, 1], "{codec:?}");
        let stored = cluster.log("t", 0);
        assert_eq!((stored[0].key_text(), stored[0].timestamp_ms), ("key".to_owned(), 17));
        assert_eq!(stored[0].headers, [("a".to_owned(), Some("1".into())), ("b".to_owned(), None)]);
        assert_eq!((&stored[1].key, stored[1].timestamp_ms), (&None, 1_700_000_000_000));
        client.finish(&cluster);
    }
}

#[test]
fn messages_wait_for_others_for_the_linger_time() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 10);
    let mut client = TestClient::with(&cluster, |settings| settings.producer.linger = Duration::from_millis(500));
    (0..10).for_each(|partition| _ = client.send(Message::new(AcksLevel::Leader, "t", partition)));
    client.wait();
    assert_eq!(cluster.partitions_per_request(ApiKey::Produce), [(10, 1)].into());
    client.finish(&cluster);
}

#[test]
fn a_message_without_room_or_without_metadata_is_not_queued() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 1);
    let mut client = TestClient::with(&cluster, |settings| settings.producer.max_messages = 2);
    cluster.fault(produce(), Fault::response_held());
    let message = Message::new(AcksLevel::Leader, "t", 0);
    let numbers = client.send_many(3, &message);
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    assert_eq!(client.outcome(numbers[2]), Outcome::QueueFull);
    // Each level has its own limit.
    let other = client.send(Message { level: AcksLevel::All, ..message.clone() });
    for (topic, partition) in [("t", 1), ("t", -1), ("other", 0)] {
        let end = client.end_of(client.send(Message { topic: topic.into(), partition, ..message.clone() }));
        assert_eq!(end.reason, NO_METADATA);
    }
    cluster.release_held();
    client.offsets(&[numbers[0], numbers[1], other]);
    client.finish(&cluster);
}

#[test]
fn messages_without_a_key_share_a_partition_with_a_leader_for_a_while() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 4);
    cluster.move_leader("t", 2, None);
    let client = TestClient::new(&cluster);
    // The level takes over the leaders with the first message.
    client.offsets(&[client.send(Message::new(AcksLevel::Leader, "t", 0))]);
    let choose = |deadline| client.producer().sticky_partition(AcksLevel::Leader, "t", 4, deadline);
    let start = Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..200 {
        let deadline = start + step * Duration::from_millis(10);
        let chosen = choose(deadline);
        assert_eq!(choose(deadline + Duration::from_millis(1)), chosen);
        seen.insert(chosen);
    }
    assert_eq!(seen, [0, 1, 3].into());
}
