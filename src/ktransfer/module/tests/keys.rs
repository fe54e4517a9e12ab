//! Keys, workers and the window: which other messages a waiting message delays.

use super::*;

#[test]
fn messages_without_a_key_are_spread_over_all_workers() {
    // Each push waits for a second push. A message that waits behind a push, while other workers are idle, fails it.
    let (sender, receiver) = crossbeam_channel::bounded::<()>(0);
    let rig = ModuleRig::start(
        1,
        |_| {},
        move |_| {
            select! {
                send(sender, ()) -> _ => 200,
                recv(receiver) -> _ => 200,
                default(Duration::from_secs(20)) => 500,
            }
        },
    );
    for number in 0..100 {
        rig.broker.put("t", 0, None, &[number]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(100));
}

#[test]
fn a_message_is_retried_until_delivered_before_the_next_message_of_its_key_is_pushed() {
    let rig = ModuleRig::start(
        1,
        |_| {},
        |request| {
            let is_difficult = request.number("x-kafka-offset") % 10 == 0;
            if is_difficult && request.number("x-kafka-attempt") < 4 { 503 } else { 200 }
        },
    );
    for number in 0..200u8 {
        rig.broker.put("t", 0, Some(&[b'a' + number % 7]), &[number]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(200));
    let received = rig.backend.received();
    assert_eq!(received.len(), 200 + 20 * 3);
    assert_one_at_a_time_in_order(received);
}

#[test]
fn max_commit_gap_pauses_the_partition_of_a_stuck_message_but_no_other_partition() {
    let backend_is_healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = Arc::clone(&backend_is_healthy);
    let adapt = |config: &mut ModuleConfig| {
        config.max_commit_gap = NonZeroUsize::new(10).unwrap();
        config.waiting_queue_size = NonZeroUsize::new(16).unwrap();
    };
    let rig = ModuleRig::start(2, adapt, move |request| {
        let is_stuck = request.number("x-kafka-partition") == 0 && request.number("x-kafka-offset") == 0;
        if is_stuck && !is_healthy.load(Ordering::SeqCst) { 500 } else { 200 }
    });
    // The key of the other messages must not hash to the worker that retries the stuck message.
    let stuck_worker = crate::broker::partitioner::fnv1a(b"stuck") % 8;
    let other = (0u8..).find(|key| crate::broker::partitioner::fnv1a(&[*key]) % 8 != stuck_worker).unwrap();
    rig.broker.put("t", 0, Some(b"stuck"), b"");
    for _ in 0..300 {
        rig.broker.put("t", 0, Some(&[other]), b"");
        rig.broker.put("t", 1, Some(&[other]), b"");
    }
    rig.gain(0, 1, Some(0));
    rig.gain(1, 2, Some(0));
    wait_until("the other partition is done", || rig.commit_point(1) == Some(300));
    let delivered_of_0 =
        || rig.backend.delivered().iter().filter(|request| request.number("x-kafka-partition") == 0).count();
    assert!(delivered_of_0() <= 9, "{} would be repeated", delivered_of_0());
    assert_eq!(rig.commit_point(0), Some(0));
    backend_is_healthy.store(true, Ordering::SeqCst);
    wait_until("partition 0 is done", || rig.commit_point(0) == Some(301));
    assert_eq!(delivered_of_0(), 301);
    assert_one_at_a_time_in_order(
        rig.backend.received().into_iter().filter(|r| r.number("x-kafka-partition") == 0).collect(),
    );
}

/// A backend function that refuses the requests for which `is_stuck` returns true until the switch is on.
fn refuses_until_healed(
    is_stuck: impl Fn(&ReceivedRequest) -> bool + Send + Sync + 'static,
) -> (Arc<AtomicBool>, impl Fn(&ReceivedRequest) -> u16 + Send + Sync + 'static) {
    let is_healed = Arc::new(AtomicBool::new(false));
    let healed = Arc::clone(&is_healed);
    (is_healed, move |request| if is_stuck(request) && !healed.load(Ordering::SeqCst) { 500 } else { 200 })
}

fn has_key(request: &ReceivedRequest, key: &str) -> bool {
    request.header("x-kafka-key") == Some(key)
}

#[test]
fn a_refused_key_holds_up_no_other_key_of_its_worker() {
    let (is_healed, answer) = refuses_until_healed(|request| has_key(request, "key-7"));
    let adapt = |config: &mut ModuleConfig| {
        config.worker_num = one();
        config.window_size = NonZeroUsize::new(2).unwrap();
    };
    let rig = ModuleRig::start(2, adapt, answer);
    for number in 0..1200 {
        rig.broker.put("t", number % 2, Some(format!("key-{}", number / 2 % 40).as_bytes()), b"x");
    }
    rig.gain(0, 1, Some(0));
    rig.gain(1, 2, Some(0));
    wait_until("all messages of the other 39 keys are delivered", || rig.backend.delivered().len() == 1200 / 40 * 39);
    // The answers to the last pushes may be on their way.
    wait_until("what queues behind its key has no slot of the window", || rig.metric("ktransfer_window_in_use") == 1);
    assert_eq!((rig.commit_point(0), rig.commit_point(1)), (Some(7), Some(7)));
    is_healed.store(true, Ordering::SeqCst);
    wait_until("all are committed", || rig.commit_point(0) == Some(600) && rig.commit_point(1) == Some(600));
    assert_eq!(rig.backend.delivered().len(), 1200);
    assert_one_at_a_time_in_order_of_partitions(rig.backend.received());
}

/// As [`assert_one_at_a_time_in_order`], where a key has messages in several partitions.
fn assert_one_at_a_time_in_order_of_partitions(requests: Vec<ReceivedRequest>) {
    for requests in by_key(requests.clone()).values() {
        assert!(requests.windows(2).all(|pair| pair[0].ended <= pair[1].began), "two requests of a key at a time");
    }
    for partition in [0, 1] {
        let is_of = |request: &ReceivedRequest| request.number("x-kafka-partition") == partition;
        assert_one_at_a_time_in_order(requests.iter().filter(|request| is_of(request)).cloned().collect());
    }
}

#[test]
fn a_refused_message_without_a_key_holds_up_nothing() {
    for serialize_by_key in [true, false] {
        let (is_healed, answer) = refuses_until_healed(|request| request.number("x-kafka-offset") % 50 == 0);
        let adapt = |config: &mut ModuleConfig| {
            (config.worker_num, config.serialize_by_key) = (one(), serialize_by_key);
        };
        let rig = ModuleRig::start(1, adapt, answer);
        for _ in 0..500 {
            rig.broker.put("t", 0, if serialize_by_key { None } else { Some(b"k") }, b"x");
        }
        rig.gain(0, 1, Some(0));
        wait_until("all others are delivered", || rig.backend.delivered().len() == 490);
        is_healed.store(true, Ordering::SeqCst);
        wait_until("all are committed", || rig.commit_point(0) == Some(500));
    }
}

#[test]
fn refused_keys_that_hold_the_whole_window_let_no_further_key_begin() {
    let (is_healed, answer) = refuses_until_healed(|request| request.number("x-kafka-offset") < 3);
    let adapt = |config: &mut ModuleConfig| config.window_size = NonZeroUsize::new(3).unwrap();
    let rig = ModuleRig::start(1, adapt, answer);
    for number in 0..50u8 {
        rig.broker.put("t", 0, Some(&[b'a' + number]), b"x");
    }
    rig.gain(0, 1, Some(0));
    // Messages after the third may be pushed before refused ones have all slots, but not afterwards.
    let refused = || rig.backend.received().into_iter().filter(|request| request.status == 500).collect::<Vec<_>>();
    let is_refused = |offset| refused().iter().any(|request| request.number("x-kafka-offset") == offset);
    wait_until("the refused messages have the whole window", || (0..3).all(is_refused));
    let (delivered, attempts) = (rig.backend.delivered().len(), refused().len());
    wait_until("the refused messages are retried", || attempts + 10 < refused().len());
    assert_eq!((rig.backend.delivered().len(), rig.metric("ktransfer_window_in_use")), (delivered, 3));
    is_healed.store(true, Ordering::SeqCst);
    wait_until("all are committed", || rig.commit_point(0) == Some(50));
    assert_eq!(rig.backend.delivered().len(), 50);
}

#[test]
fn a_key_whose_pushes_hang_holds_up_no_key_of_another_worker() {
    let is_over = Arc::new(AtomicBool::new(false));
    let waits_for = Arc::clone(&is_over);
    let rig = ModuleRig::start(
        1,
        |config| config.window_size = NonZeroUsize::new(2).unwrap(),
        move |request| {
            while has_key(request, "slow") && !waits_for.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            200
        },
    );
    let slow_worker = crate::broker::partitioner::fnv1a(b"slow") % 8;
    let other = (0u8..).find(|key| crate::broker::partitioner::fnv1a(&[*key]) % 8 != slow_worker).unwrap();
    // Half of the traffic, and all of it before the other key's: more than the window and all queues to workers.
    for _ in 0..3000 {
        rig.broker.put("t", 0, Some(b"slow"), b"x");
    }
    for _ in 0..200 {
        rig.broker.put("t", 0, Some(&[other]), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("the other key is delivered", || rig.backend.delivered().len() == 200);
    is_over.store(true, Ordering::SeqCst);
    wait_until("all are committed", || rig.commit_point(0) == Some(3200));
}

#[test]
fn messages_larger_than_the_memory_budget_are_pushed_one_after_the_other() {
    let adapt = |config: &mut ModuleConfig| config.max_in_flight_bytes = NonZeroUsize::new(20_000).unwrap();
    let rig = ModuleRig::start(1, adapt, |_| 200);
    for number in 0..100u8 {
        rig.broker.put("t", 0, Some(&[number]), &vec![0; if number % 10 == 0 { 100_000 } else { 5_000 }]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(100));
    assert_eq!(rig.backend.delivered().len(), 100);
    wait_until("all memory is returned", || rig.metric("ktransfer_in_flight_bytes") == 0);
}

#[test]
fn every_refused_message_is_given_up_after_its_attempts_and_holds_up_no_other() {
    let refuse = |request: &ReceivedRequest| if request.number("x-kafka-offset") % 40 == 3 { 500 } else { 200 };
    let rig = ModuleRig::start(1, |config| config.retry.max_retry_times = Some(2), refuse);
    for number in 0..400 {
        rig.broker.put("t", 0, Some(format!("{}", number % 30).as_bytes()), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("the end of the topic is committed", || rig.commit_point(0) == Some(400));
    let received = rig.backend.received();
    for refused in (3..400).step_by(40) {
        assert_eq!(received.iter().filter(|request| request.number("x-kafka-offset") == refused).count(), 3);
    }
    assert_eq!(received.len(), 390 + 10 * 3);
    assert!(rig.metrics().contains("outcome=\"given_up\"} 10"));
    assert_one_at_a_time_in_order(received);
}

#[test]
fn refused_messages_of_a_recreated_topic_hold_up_no_message_of_the_new_one() {
    let answer = |request: &ReceivedRequest| if request.body.starts_with(b"first") { 500 } else { 200 };
    let mut rig = ModuleRig::start(1, |_| {}, answer);
    for body in ["first-0", "first-1", "first-2"] {
        rig.broker.put("t", 0, Some(b"k"), body.as_bytes());
    }
    rig.gain(0, 1, Some(0));
    wait_until("the first message is retried", || 2 < rig.backend.received().len());
    rig.broker.recreate_topic("t", 1);
    for body in ["second-0", "second-1", "second-2", "second-3"] {
        rig.broker.put("t", 0, Some(b"k"), body.as_bytes());
    }
    wait_until("the messages of the new topic are done", || rig.commit_point(0) == Some(4));
    let bodies: Vec<String> =
        rig.backend.received().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    // What had not been attempted of the old topic gets one attempt.
    let n_refused = bodies.iter().take_while(|body| *body == "first-0").count();
    let rest = ["first-1", "first-2", "second-0", "second-1", "second-2", "second-3"];
    assert_eq!(bodies[n_refused..], rest);
    wait_until("all memory is returned", || rig.metric("ktransfer_in_flight_bytes") == 0);
    assert_eq!(rig.metric("ktransfer_window_in_use"), 0);
    rig.end();
    assert_eq!(rig.releases(), [(0, Some(4))]);
}
