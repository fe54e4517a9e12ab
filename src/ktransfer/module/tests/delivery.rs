//! What is delivered, filtered out, given up and committed, and where reading starts.

use super::*;

#[test]
fn every_message_is_delivered_once_in_order_per_key_and_committed() {
    let mut rig = ModuleRig::start(
        4,
        |_| {},
        |request| {
            std::thread::sleep(Duration::from_micros((request.number("x-kafka-offset") as u64 * 7919) % 900));
            200
        },
    );
    for number in 0..2000 {
        let partition = number % 4;
        let key = format!("key-{partition}-{}", number / 4 % 25);
        rig.broker.put("t", partition, Some(key.as_bytes()), number.to_string().as_bytes());
    }
    // The partitions have the same offsets, so the test fails if two partitions share a window.
    for partition in 0..4 {
        rig.gain(partition, 1, if partition == 0 { Some(0) } else { None });
    }
    wait_until("all are committed", || (0..4).all(|partition| rig.commit_point(partition) == Some(500)));
    let delivered = rig.backend.received();
    assert_eq!(delivered.len(), 2000);
    assert_one_at_a_time_in_order(delivered);
    rig.end();
    assert_eq!(rig.releases(), [(0, Some(500)), (1, Some(500)), (2, Some(500)), (3, Some(500))]);
    assert!(rig.record.left.load(Ordering::SeqCst), "the group was not left");
    let metrics = rig.metrics();
    assert!(metrics.contains("ktransfer_messages_total{module=\"m\",outcome=\"delivered\"} 2000"), "{metrics}");
    assert!(metrics.contains("ktransfer_module_restarts_total{module=\"m\"} 1"), "{metrics}");
    assert!(metrics.contains("ktransfer_window_in_use{module=\"m\"} 0"), "{metrics}");
}

#[test]
fn messages_with_an_unconfigured_method_or_without_msgpack_are_not_pushed() {
    let rig = ModuleRig::start(1, |config| config.methods = Some(["mine".into()].into()), |_| 200);
    let contents: [&[u8]; 6] = [
        b"\x81\xa6method\xa4mine",
        b"{\"method\":\"mine\"}",
        b"\xc1",
        b"",
        b"\x81\xa6method\xa5other",
        b"\x81\xa6method",
    ];
    for round in 0..20 {
        for content in contents {
            rig.broker.put("t", 0, Some(&[round]), content);
        }
    }
    rig.gain(0, 1, Some(0));
    wait_until("all messages are committed", || rig.commit_point(0) == Some(120));
    let received = rig.backend.received();
    assert_eq!(received.len(), 20);
    assert!(received.iter().all(|request| request.url.ends_with("method=mine")));
    let metrics = rig.metrics();
    for line in ["outcome=\"filtered\"} 20", "outcome=\"undecodable\"} 80", "outcome=\"delivered\"} 20"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn a_message_whose_retries_are_used_up_is_counted_and_given_up() {
    let rig = ModuleRig::start(
        1,
        |config| config.retry.max_retry_times = Some(2),
        |request| {
            if request.body == b"bad" { 500 } else { 200 }
        },
    );
    for content in [b"good".as_slice(), b"bad", b"good"] {
        rig.broker.put("t", 0, Some(b"k"), content);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(3));
    let attempts: Vec<_> = rig.backend.received().iter().map(|request| request.number("x-kafka-offset")).collect();
    assert_eq!(attempts, [0, 1, 1, 1, 2]);
    assert!(rig.metrics().contains("outcome=\"given_up\"} 1"));
}

#[test]
fn reading_continues_at_the_oldest_offset_when_the_stored_offset_is_out_of_range() {
    let rig = ModuleRig::start(2, |_| {}, |_| 200);
    for number in 0..100 {
        rig.broker.put("t", 0, None, &[number]);
        rig.broker.put("t", 1, None, &[number]);
    }
    rig.broker.trim(&TopicPartition { topic: "t".into(), partition: 0 }, 60);
    rig.gain(0, 1, Some(10));
    // As after the topic was created again: the stored offset is above the newest one.
    rig.gain(1, 1, Some(5000));
    wait_until("both partitions are done", || rig.commit_point(0) == Some(100) && rig.commit_point(1) == Some(100));
    assert_eq!(rig.backend.delivered().len(), 40 + 100);
    assert!(rig.metrics().contains("ktransfer_offset_gap_messages_total{module=\"m\"} 50"), "{}", rig.metrics());
}

#[test]
fn a_new_module_starts_at_start_from_and_commits_that_offset_at_once() {
    let latest = |config: &mut ModuleConfig| config.start_from = crate::ktransfer::config::StartFrom::Latest;
    let rig = ModuleRig::start(1, latest, |_| 200);
    for number in 0..50 {
        rig.broker.put("t", 0, None, &[number]);
    }
    rig.gain(0, 1, None);
    wait_until("its start offset is stored", || rig.commit_point(0) == Some(50));
    assert!(rig.backend.received().is_empty());
    rig.broker.put("t", 0, None, b"new");
    wait_until("the new message is done", || rig.commit_point(0) == Some(51));
}
