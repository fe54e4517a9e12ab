//! A message, key or push that waits or hangs in ktransfer delays only its own key.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::{Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_slow_key_with_half_of_the_messages_leaves_the_others_at_their_rate() {
    const N_OF_EACH: usize = 300;
    const SLOW: Duration = Duration::from_millis(200);
    let cluster = cluster();
    let topic = cluster.new_topic("slow_key", 1);
    let keys: Vec<String> = (0..25).map(|number| format!("fast-{number}")).collect();
    let pair = |number: usize| [(b"slow".as_slice(), b"x".as_slice()), (keys[number % 25].as_bytes(), b"x")];
    let messages: Vec<(&[u8], &[u8])> = (0..N_OF_EACH).flat_map(pair).collect();
    cluster.produce(&topic, 0, &messages);
    // With 64 workers, none of the other keys belongs to the worker of "slow".
    let fleet = Fleet::start(1, |arrival| match arrival.key().as_str() {
        "slow" => Reply::ok().after(SLOW),
        _ => Reply::ok(),
    });
    let file = configs::module(&topic, &fleet.addresses()).set("worker_num", 64).set("window_size", 20);
    let _member = Member::start(cluster, &unique("slow_key"), "a", file);
    let is_fast = |key: String| key.starts_with("fast-");
    let n_slow = wait_until(2 * DEADLINE, "the fast keys are delivered", || {
        let n_fast = fleet.count(|arrival| arrival.is_delivered() && is_fast(arrival.key()));
        let n_slow = fleet.count(|arrival| arrival.is_delivered() && !is_fast(arrival.key()));
        (n_fast == N_OF_EACH).then_some(n_slow)
    });
    // If the slow key held the window, nearly all of its messages would have to be delivered first.
    assert!(n_slow < N_OF_EACH / 3, "{n_slow} slow messages were delivered before the last fast one");
}

#[test]
fn keys_that_every_backend_refuses_hold_up_no_other_key() {
    const N_STUCK: usize = 30;
    let cluster = cluster();
    let topic = cluster.new_topic("stuck_keys", 1);
    let stuck: Vec<String> = (0..N_STUCK).map(|number| format!("stuck-{number}")).collect();
    let good: Vec<String> = (0..100).map(|number| format!("good-{number}")).collect();
    let mut messages: Vec<(&[u8], &[u8])> = Vec::new();
    for round in 0..3 {
        messages.extend(stuck.iter().map(|key| (key.as_bytes(), b"x".as_slice())));
        messages.extend(good[round * 30..][..40].iter().map(|key| (key.as_bytes(), b"x".as_slice())));
    }
    cluster.produce(&topic, 0, &messages);
    let fleet = Fleet::start(1, |arrival| match arrival.key().starts_with("stuck-") {
        true => Reply::status(500),
        false => Reply::ok(),
    });
    // More keys are stuck than there are workers, and their messages are more than the window has slots.
    let file = configs::module(&topic, &fleet.addresses())
        .set("worker_num", 8)
        .set("window_size", 60)
        .set("fail_retry_interval_ms", 200)
        .set("max_retry_interval_ms", 500);
    let _member = Member::start(cluster, &unique("stuck_keys"), "a", file);
    fleet.wait_until_delivered(120, DEADLINE);
}

#[test]
fn a_push_that_hangs_does_not_keep_its_partition_from_another_instance() {
    const N_PARTITIONS: i32 = 4;
    let cluster = cluster();
    let topic = cluster.new_topic("hung_push", N_PARTITIONS);
    let module = unique("hung_push");
    // Keep-alive is answered and no timeout is configured, so only a hand-over can end these pushes.
    let is_hanging = Arc::new(AtomicBool::new(true));
    let hangs = Arc::clone(&is_hanging);
    let fleet = Fleet::start(1, move |arrival| {
        let is_hanging = arrival.key().starts_with("hangs-") && arrival.instance() == "a";
        if is_hanging && hangs.load(Ordering::Relaxed) { Reply::hang() } else { Reply::ok() }
    });
    // With 64 workers, each of these keys has a worker of its own.
    let file = || configs::module(&topic, &fleet.addresses()).set("worker_num", 64);
    for partition in 0..N_PARTITIONS {
        cluster.produce(&topic, partition, &[(format!("hangs-{partition}").as_bytes(), b"1")]);
    }
    let mut first = Member::start(cluster, &module, "a", file());
    wait_until(DEADLINE, "one push of each partition hangs", || fleet.n_arrivals() == N_PARTITIONS as usize);
    let mut second = Member::start(cluster, &module, "b", file());
    wait_until(DEADLINE, "the second instance owns half of the partitions", || {
        let owners = cluster.owners(&module, &topic);
        owners.len() == N_PARTITIONS as usize && owners.values().collect::<HashSet<_>>().len() == 2
    });
    // The messages whose pushes were ended are pushed again by their new owner.
    wait_until(DEADLINE, "the second instance delivers what hung", || {
        fleet.count(|arrival| arrival.instance() == "b" && arrival.is_delivered()) == N_PARTITIONS as usize / 2
    });
    for partition in 0..N_PARTITIONS {
        cluster.produce(&topic, partition, &[(format!("quick-{partition}").as_bytes(), b"2")]);
    }
    fleet.wait_until_delivered(N_PARTITIONS as usize / 2 + N_PARTITIONS as usize, DEADLINE);
    is_hanging.store(false, Ordering::Relaxed);
    first.daemon.stop(STOP_DEADLINE);
    fleet.wait_until_delivered(2 * N_PARTITIONS as usize, DEADLINE);
    second.daemon.stop(STOP_DEADLINE);
    let stored: Vec<_> = (0..N_PARTITIONS).map(|partition| cluster.stored_offset(&module, &topic, partition)).collect();
    assert_eq!(stored, [Some(2); N_PARTITIONS as usize]);
}
