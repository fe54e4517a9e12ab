//! Refusals by brokers: only the refused messages fail, and other messages are not affected.

use super::*;
use crate::kafka::compression::Codec;

/// Holds the response to one message, so that the next ones gather into one batch.
fn gathered(
    cluster: &TestCluster,
    client: &TestClient,
    first: Message,
    send: impl FnOnce() -> Vec<usize>,
) -> Vec<usize> {
    cluster.fault(produce(), Fault::response_held());
    let first = client.send(first);
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() == 1));
    let numbers = send();
    cluster.release_held();
    client.offsets(&[first]);
    numbers
}

#[test]
fn only_the_refused_records_of_a_batch_end_and_the_others_keep_their_order_and_epoch() {
    for release in Release::ALL {
        let cluster = TestCluster::builder(1).release(release).start();
        cluster.create(TopicSpec::new("compacted").partitions(2).compacted());
        cluster.create_topic("other", 1);
        let mut client = TestClient::new(&cluster);
        let expected = if release < Release::V2_4 { code::CORRUPT_MESSAGE } else { code::INVALID_RECORD };
        for level in CONFIRMED {
            let good = Message::new(level, "compacted", 0);
            let bad = Message { key: None, ..good.clone() };
            let mut others = Vec::new();
            let numbers = gathered(&cluster, &client, good.clone(), || {
                (0..20)
                    .map(|index| {
                        others.push(client.send(Message::new(level, "other", 0)));
                        others.push(client.send(Message::new(level, "compacted", 1)));
                        client.send(if index % 7 == 3 { bad.clone() } else { good.clone() })
                    })
                    .collect()
            });
            for (index, number) in numbers.into_iter().enumerate() {
                let end = client.end_of(number);
                match index % 7 == 3 {
                    true => assert_eq!(end.outcome, Outcome::Rejected(expected, Stored::No), "{release:?}"),
                    false => assert!(matches!(end.outcome, Outcome::Appended(Some(_))), "{release:?} {end:?}"),
                }
            }
            client.offsets(&others);
        }
        client.finish(&cluster);
        for (topic, partition) in [("compacted", 0), ("compacted", 1), ("other", 0)] {
            let ids = ids_and_epochs(&cluster, topic, partition);
            let (leader, all) = ids.split_first().unwrap();
            assert_eq!((*leader, all.len(), all[0].1), ((-1, -1), 1, 0), "{release:?} {ids:?}");
        }
        assert_eq!(cluster.requests(ApiKey::InitProducerId), 1);
    }
}

#[test]
fn the_reason_of_a_refusal_is_the_text_of_the_broker() {
    let cluster = TestCluster::start(1);
    cluster.create(TopicSpec::new("t").compacted());
    let client = TestClient::new(&cluster);
    let end = client.end_of(client.send(Message { key: None, ..Message::new(AcksLevel::All, "t", 0) }));
    assert_eq!(end.reason, "broker 1: INVALID_RECORD: compacted topic cannot accept message without key");
}

#[test]
fn records_with_timestamps_out_of_range_are_refused_alone() {
    let cluster = TestCluster::start(1);
    let range = Duration::from_secs(3600);
    cluster.create(TopicSpec::new("t").timestamp_range(range, range));
    let mut client = TestClient::new(&cluster);
    let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    let good = Message { timestamp_ms: now_ms, ..Message::new(AcksLevel::All, "t", 0) };
    let numbers = gathered(&cluster, &client, good.clone(), || {
        [0, -7_200_000, 0, 7_200_000]
            .map(|offset| client.send(Message { timestamp_ms: now_ms + offset, ..good.clone() }))
            .to_vec()
    });
    let is_refused = |number: &usize| client.outcome(*number) == Outcome::Rejected(code::INVALID_TIMESTAMP, Stored::No);
    assert_eq!(numbers.iter().map(is_refused).collect::<Vec<_>>(), [false, true, false, true]);
    client.finish(&cluster);
}

#[test]
fn batches_that_are_too_large_are_split_and_a_record_that_is_too_large_is_refused() {
    for release in [Release::V0_11, Release::V4_0] {
        let cluster = TestCluster::builder(1).release(release).start();
        cluster.create(TopicSpec::new("t").max_message_bytes(2_000));
        cluster.create(TopicSpec::new("segment").segment_bytes(2_000));
        let mut client = TestClient::new(&cluster);
        for (topic, error) in [("t", code::MESSAGE_TOO_LARGE), ("segment", code::RECORD_LIST_TOO_LARGE)] {
            for level in CONFIRMED {
                let small = Message { padding: 300, ..Message::new(level, topic, 0) };
                let numbers = gathered(&cluster, &client, small.clone(), || {
                    let mut numbers = client.send_many(20, &small);
                    numbers.push(client.send(Message { padding: 5_000, ..small.clone() }));
                    numbers.extend(client.send_many(20, &small));
                    numbers
                });
                assert_eq!(client.outcome(numbers[20]), Outcome::Rejected(error, Stored::No));
                client.offsets(&[&numbers[..20], &numbers[21..]].concat());
            }
        }
        client.finish(&cluster);
    }
}

#[test]
fn a_denied_topic_is_refused_until_access_is_granted() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("denied", 1);
    cluster.create_topic("other", 1);
    let mut client = TestClient::new(&cluster);
    for level in CONFIRMED {
        let message = Message::new(level, "denied", 0);
        client.offsets(&[client.send(message.clone())]);
        cluster.deny_topic("denied", true);
        for _ in 0..3 {
            let (denied, other) = (client.send(message.clone()), client.send(Message::new(level, "other", 0)));
            let end = client.end_of(denied);
            assert_eq!(end.outcome, Outcome::Rejected(code::TOPIC_AUTHORIZATION_FAILED, Stored::No));
            assert_eq!(end.reason, "broker 1: TOPIC_AUTHORIZATION_FAILED");
            client.offsets(&[other]);
        }
        cluster.deny_topic("denied", false);
        client.offsets(&[client.send(message)]);
    }
    client.finish(&cluster);
    assert_eq!(ids_and_epochs(&cluster, "denied", 0)[1].1, 0);
}

#[test]
fn too_few_replicas_delay_messages_of_their_partition_only() {
    let cluster = TestCluster::start(3);
    cluster.create(TopicSpec::new("t").partitions(2).min_in_sync(2));
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    // The connection and the producer id are there before the time begins.
    client.offsets(&[client.send(message.clone())]);
    cluster.set_in_sync("t", 0, &[1]);
    let end = client.end_of(client.send(Message { deadline: brief(), ..message.clone() }));
    assert_eq!(end.outcome, Outcome::TimedOut(Stored::No), "refused before the append");
    assert_eq!(end.reason, "broker 1: NOT_ENOUGH_REPLICAS");
    let waiting = client.send(message.clone());
    let others = [
        client.send(Message { partition: 1, ..message.clone() }),
        client.send(Message { level: AcksLevel::Leader, ..message }),
    ];
    client.offsets(&others);
    cluster.set_in_sync("t", 0, &[1, 2]);
    client.offsets(&[waiting]);
    client.finish(&cluster);
}

#[test]
fn a_replication_that_takes_longer_than_the_deadline_leaves_the_outcome_open() {
    let cluster = TestCluster::start(2);
    cluster.create_topic("t", 2);
    let mut client = TestClient::new(&cluster);
    let message = Message::new(AcksLevel::All, "t", 0);
    client.offsets(&[client.send(message.clone()), client.send(Message { partition: 1, ..message.clone() })]);
    cluster.hold_replication("t", 0, true);
    let connections = cluster.connections();
    let number = client.send(Message { deadline: brief(), ..message.clone() });
    assert_eq!(client.outcome(number), Outcome::TimedOut(Stored::Unknown));
    let next = client.send(message);
    cluster.hold_replication("t", 0, false);
    client.offsets(&[next]);
    assert_eq!(cluster.connections(), connections, "the broker answered before the client gave up");
    client.finish(&cluster);
}

#[test]
fn refused_messages_do_not_affect_others() {
    const REFUSALS: usize = 33_000;
    let cluster = TestCluster::start(1);
    cluster.create(TopicSpec::new("refused").partitions(4).compacted());
    cluster.create(TopicSpec::new("large").max_message_bytes(1_000));
    cluster.create_topic("denied", 1);
    cluster.create_topic("other", 4);
    let mut client = TestClient::new(&cluster);
    client.offsets(&[client.send(Message::new(AcksLevel::All, "denied", 0))]);
    cluster.deny_topic("denied", true);
    let connections = cluster.connections();
    let mut refused = Vec::new();
    for step in 0..REFUSALS {
        let partition = (step % 4) as i32;
        refused.push(client.send(match step % 3 {
            0 => Message { key: None, ..Message::new(AcksLevel::All, "refused", partition) },
            1 => Message { padding: 2_000, ..Message::new(AcksLevel::All, "large", 0) },
            _ => Message::new(AcksLevel::All, "denied", 0),
        }));
        if step % 50 == 0 {
            let partition = (step / 50 % 4) as i32;
            client.send(Message::new(AcksLevel::All, "other", partition));
            client.send(Message::new(AcksLevel::All, "refused", partition));
            // A window, so that many batches are refused.
            client.outcome(refused[refused.len().saturating_sub(100)]);
        }
    }
    client.wait();
    assert!(refused.iter().all(|number| matches!(client.outcome(*number), Outcome::Rejected(_, Stored::No))));
    assert_eq!((cluster.connections(), cluster.requests(ApiKey::InitProducerId)), (connections, 1));
    client.finish(&cluster);
    let stored = |topic| (0..4).map(|partition| cluster.log(topic, partition).len()).sum::<usize>();
    assert_eq!((stored("other"), stored("refused")), (REFUSALS.div_ceil(50), REFUSALS.div_ceil(50)));
    for (topic, partition) in ["other", "refused"].into_iter().flat_map(|topic| (0..4).map(move |at| (topic, at))) {
        let ids = ids_and_epochs(&cluster, topic, partition);
        assert_eq!((ids.len(), ids[0].1), (1, 0), "no refusal costs an epoch");
    }
}

#[test]
fn refusals_at_acks_0_close_the_connection_and_others_continue() {
    let cluster = TestCluster::start(1);
    cluster.create(TopicSpec::new("refused").compacted());
    cluster.create_topic("other", 1);
    let mut client = TestClient::new(&cluster);
    for step in 0..20 {
        let refused = client.send(Message { key: None, ..Message::new(AcksLevel::None, "refused", 0) });
        assert_eq!(client.outcome(refused), Outcome::Appended(None));
        let others = CONFIRMED.map(|level| client.send(Message::new(level, "other", 0)));
        client.offsets(&others);
        // The broker may close the connection while this message is on its way: it is sent until it arrives.
        let stored = cluster.log("other", 0).len();
        let started = Instant::now();
        while cluster.log("other", 0).len() == stored {
            client.outcome(client.send(Message::new(AcksLevel::None, "other", 0)));
            assert!(started.elapsed() < LONG, "{step}");
        }
    }
    client.finish(&cluster);
}

/// At acks=0 a broker would answer a batch that is too large by closing the connection.
#[test]
fn what_is_larger_than_a_topic_accepts_is_not_sent_at_acks_0() {
    for codec in [Codec::None, Codec::Gzip] {
        let cluster = TestCluster::start(1);
        cluster.create(TopicSpec::new("t").max_message_bytes(2_000));
        let client = TestClient::with(&cluster, |settings| settings.producer.codec = codec);
        client.producer().set_max_batch_bytes(&"t".into(), 2_000);
        let small = Message { padding: 300, ..Message::new(AcksLevel::None, "t", 0) };
        let mut numbers = client.send_many(30, &small);
        assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 30));
        let connections = cluster.connections();
        let large = client.send(Message { padding: 5_000_000, ..small.clone() });
        numbers.extend(client.send_many(30, &small));
        assert_eq!(client.outcome(large), Outcome::Rejected(code::MESSAGE_TOO_LARGE, Stored::No), "{codec:?}");
        // What is smaller when it is compressed is sent.
        let fits = client.send(Message { padding: 5_000, ..small });
        let is_sent = client.outcome(fits) == Outcome::Appended(None);
        assert_eq!(is_sent, codec == Codec::Gzip, "{codec:?}");
        let stored = numbers.len() + usize::from(is_sent);
        assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == stored), "{codec:?}");
        client.wait();
        assert_eq!(cluster.connections(), connections, "none was closed");
    }
}

/// Sends messages that gather into batches at acks=0.
fn burst(client: &TestClient, count: usize) {
    let message = Message { padding: 200, ..Message::new(AcksLevel::None, "t", 0) };
    client.send_many(count, &message).into_iter().for_each(|number| {
        assert_eq!(client.outcome(number), Outcome::Appended(None));
    });
}

fn with_linger(cluster: &TestCluster) -> TestClient {
    TestClient::with(cluster, |settings| settings.producer.linger = Duration::from_millis(200))
}

#[test]
fn small_messages_are_not_lost_at_acks_0_where_the_limit_of_the_topic_is_unknown() {
    let cluster = TestCluster::start(1);
    cluster.create(TopicSpec::new("t").max_message_bytes(65_536));
    let client = with_linger(&cluster);
    burst(&client, 1_000);
    assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 1_000), "{}", cluster.log("t", 0).len());
}

#[test]
fn at_acks_0_batches_have_a_size_that_the_topic_stored_or_refused_at_other_levels() {
    for (limit, largest) in [(4_000, 1_000), (1_000_000, 200_000)] {
        let cluster = TestCluster::start(1);
        cluster.create(TopicSpec::new("t").max_message_bytes(limit));
        let client = with_linger(&cluster);
        let message = Message { padding: 200, ..Message::new(AcksLevel::Leader, "t", 0) };
        client.offsets(&client.send_many(1_000, &message));
        let requests = cluster.requests(ApiKey::Produce);
        burst(&client, 1_000);
        assert!(cluster.wait_until(LONG, |cluster| cluster.log("t", 0).len() == 2_000), "limit {limit}");
        let requests = cluster.requests(ApiKey::Produce) - requests;
        assert!(requests <= 2_000 * 300 / largest + 5, "limit {limit}: {requests} requests");
    }
}

#[test]
fn batches_become_smaller_after_a_broker_closed_a_connection_with_acks_0() {
    let cluster = TestCluster::start(1);
    cluster.create(TopicSpec::new("t").max_message_bytes(3_000));
    let client = with_linger(&cluster);
    let started = Instant::now();
    loop {
        let before = cluster.log("t", 0).len();
        burst(&client, 100);
        // Whether the last message arrived or not: the broker has handled all earlier ones.
        if cluster.wait_until(Duration::from_secs(1), |cluster| cluster.log("t", 0).len() == before + 100) {
            break;
        }
        assert!(started.elapsed() < LONG, "messages are lost again and again");
    }
}
