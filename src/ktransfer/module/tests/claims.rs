//! Claims that are released or lost: what is still pushed, and where the next owner continues.

use super::*;
use crate::ktransfer::group::StoredPosition;

#[test]
fn a_partition_is_released_with_the_offset_of_its_first_message_that_is_not_done() {
    let backend_is_healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = Arc::clone(&backend_is_healthy);
    let rig = ModuleRig::start(
        2,
        |_| {},
        move |request| {
            let is_stuck = request.number("x-kafka-partition") == 0 && request.number("x-kafka-offset") == 5;
            if is_stuck && !is_healthy.load(Ordering::SeqCst) { 500 } else { 200 }
        },
    );
    for number in 0..10u8 {
        rig.broker.put("t", 0, Some(&[number]), &[number]);
        rig.broker.put("t", 1, None, &[number]);
    }
    rig.gain(0, 1, Some(0));
    rig.gain(1, 2, Some(0));
    wait_until("all other messages are done", || {
        // The acknowledgements of the two partitions arrive in any order.
        rig.backend.delivered().len() == 19 && rig.commit_point(0) == Some(5) && rig.commit_point(1) == Some(10)
    });
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("partition 0 is released while offset 5 is retried", || rig.releases() == [(0, Some(5))]);
    // After the next `Gained` reading starts at offset 5, which is delivered now; offsets 6 to 9 are repeated.
    backend_is_healthy.store(true, Ordering::SeqCst);
    rig.gain(0, 3, Some(5));
    wait_until("partition 0 is done", || rig.commit_point(0) == Some(10));
    assert_eq!(rig.backend.delivered().len(), 19 + 5);
}

#[test]
fn a_hand_over_repeats_nothing_while_the_backend_is_healthy() {
    let rig = ModuleRig::start(
        1,
        |config| config.worker_num = one(),
        |_| {
            std::thread::sleep(Duration::from_millis(5));
            200
        },
    );
    for number in 0..200u8 {
        rig.broker.put("t", 0, Some(&[number]), &[number]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("more than 10 messages are pushed", || 10 < rig.backend.received().len());
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the partition is released", || !rig.releases().is_empty());
    let delivered = rig.backend.received().len();
    assert!(delivered < 200, "the release came too late to test anything");
    assert_eq!(rig.releases(), [(0, Some(delivered as Offset))]);
}

#[test]
fn after_a_hand_over_abandons_a_message_no_later_message_of_its_key_is_pushed() {
    let rig = ModuleRig::start(1, |_| {}, |request| if request.number("x-kafka-offset") == 3 { 500 } else { 200 });
    for _ in 0..10 {
        rig.broker.put("t", 0, Some(b"k"), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("offset 3 is retried", || 5 < rig.backend.received().len());
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the partition is released", || rig.releases() == [(0, Some(3))]);
    assert_eq!(rig.backend.delivered().len(), 3);
}

#[test]
fn no_push_begins_for_a_lost_partition_or_without_a_lease() {
    let rig = ModuleRig::start(1, |_| {}, |_| 500);
    rig.broker.put("t", 0, Some(b"k"), b"x");
    let fence = TimedFence::until(BootTime::now());
    rig.script.send(GroupEvent::Gained(Claim { fence: Arc::clone(&fence), ..claim(0, 1, Some(0)) })).unwrap();
    wait_until("the message is read", || rig.metric("ktransfer_in_flight_bytes") > 0);
    // A worker looks at the lease several times in this time.
    std::thread::sleep(Duration::from_millis(200));
    assert!(rig.backend.received().is_empty(), "pushed without a lease");
    fence.extend(BootTime::now() + Duration::from_secs(60));
    wait_until("the message is pushed twice", || 1 < rig.backend.received().len());
    rig.script.send(GroupEvent::Lost { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the message is abandoned", || rig.metric("ktransfer_in_flight_bytes") == 0);
    assert_eq!(rig.metric("ktransfer_window_in_use"), 0);
    let attempts = rig.backend.received().len();
    assert_eq!((rig.releases(), rig.commit_point(0)), (Vec::new(), Some(0)));
    // The message is pushed again only under a later claim, beginning with attempt 1.
    rig.gain(0, 2, None);
    wait_until("the message is pushed again", || attempts < rig.backend.received().len());
    let first_again = rig.backend.received()[attempts].number("x-kafka-attempt");
    assert_eq!(first_again, 1);
}

#[test]
fn a_new_owner_repeats_only_what_was_not_done() {
    let is_healthy = Arc::new(AtomicBool::new(false));
    let healthy = Arc::clone(&is_healthy);
    let rig = ModuleRig::start(
        1,
        |_| {},
        move |request| {
            let is_stuck = request.number("x-kafka-offset") == 0;
            if is_stuck && !healthy.load(Ordering::SeqCst) { 500 } else { 200 }
        },
    );
    for number in 0..300u16 {
        rig.broker.put("t", 0, Some(&number.to_be_bytes()), b"x");
    }
    rig.gain(0, 1, Some(0));
    // The commit point does not move at all, and still the group learns what is done.
    wait_until("all messages behind the stuck one are reported as done", || rig.done_ahead(0) == vec![1..300; 1]);
    rig.script.send(GroupEvent::Lost { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the stuck message is abandoned", || rig.metric("ktransfer_in_flight_bytes") == 0);
    is_healthy.store(true, Ordering::SeqCst);
    let position = StoredPosition { done_ahead: rig.done_ahead(0).into(), ..StoredPosition::at(0) };
    rig.script.send(GroupEvent::Gained(Claim { position: Some(position), ..claim(0, 2, None) })).unwrap();
    wait_until("everything is committed", || rig.commit_point(0) == Some(300));
    assert_eq!(rig.backend.delivered().len(), 300, "only the stuck message was pushed again");
}

#[test]
fn a_release_reports_what_is_done_ahead_of_the_commit_point() {
    let rig = ModuleRig::start(1, |_| {}, |request| if request.number("x-kafka-offset") == 2 { 500 } else { 200 });
    for number in 0..6u8 {
        rig.broker.put("t", 0, Some(&[number]), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("all others are delivered", || rig.backend.delivered().len() == 5);
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the partition is released", || rig.releases() == [(0, Some(2))]);
    assert_eq!(rig.done_ahead(0), std::iter::once(3..6).collect::<Vec<_>>());
}

/// A backend function that hangs on the messages of partition 0 until the switch is on.
fn hangs_on_partition_0(is_over: &Arc<AtomicBool>) -> impl Fn(&ReceivedRequest) -> u16 + Send + Sync + 'static {
    let is_over = Arc::clone(is_over);
    move |request| {
        while request.number("x-kafka-partition") == 0 && !is_over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        200
    }
}

#[test]
fn a_push_that_hangs_delays_a_hand_over_by_the_drain_only() {
    let is_over = Arc::new(AtomicBool::new(false));
    let mut rig = ModuleRig::start(2, |config| config.worker_num = one(), hangs_on_partition_0(&is_over));
    rig.broker.put("t", 0, Some(b"k"), b"x");
    rig.gain(0, 1, Some(0));
    wait_until("the push hangs", || rig.metric("ktransfer_window_in_use") == 1);
    rig.broker.put("t", 1, Some(b"k"), b"x");
    rig.gain(1, 2, Some(0));
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the partition is released", || rig.releases() == [(0, Some(0))]);
    wait_until("the worker goes on with its other partition", || rig.commit_point(1) == Some(1));
    assert!(!rig.metrics().contains("outcome=\"failed\"} 1"), "the cut is no failure of the backend");
    is_over.store(true, Ordering::SeqCst);
    rig.end();
}

#[test]
fn the_pushes_of_a_lost_claim_are_cut_at_once() {
    let is_over = Arc::new(AtomicBool::new(false));
    let adapt = |config: &mut ModuleConfig| {
        (config.worker_num, config.retry.max_retry_times) = (one(), Some(0));
    };
    let mut rig = ModuleRig::start(2, adapt, hangs_on_partition_0(&is_over));
    rig.broker.put("t", 0, Some(b"k"), b"x");
    rig.broker.put("t", 1, Some(b"k"), b"x");
    rig.gain(0, 1, Some(0));
    wait_until("the push hangs", || rig.metric("ktransfer_window_in_use") == 1);
    rig.gain(1, 2, Some(0));
    rig.script.send(GroupEvent::Lost { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the worker goes on with its other partition", || rig.commit_point(1) == Some(1));
    assert_eq!((rig.commit_point(0), rig.releases().len()), (Some(0), 0), "the cut message is not done");
    is_over.store(true, Ordering::SeqCst);
    rig.end();
}
