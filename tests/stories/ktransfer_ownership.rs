//! Which instance of ktransfer pushes a partition, and until when: a claim that ends during a push or a pause.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::fleet::{Arrival, Fleet, Reply};
use crate::harness::{Cluster, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

#[track_caller]
fn wait_until_owned(cluster: &Cluster, module: &str, topic: &str, n_partitions: usize, n_members: usize) {
    wait_until(DEADLINE, &format!("{n_partitions} partitions have {n_members} owners"), || {
        let owners = cluster.owners(module, topic);
        owners.len() == n_partitions && owners.values().collect::<HashSet<_>>().len() == n_members
    });
}

#[test]
fn a_push_in_progress_ends_with_the_claim_of_its_instance() {
    let cluster = cluster();
    let topic = cluster.new_topic("cut_push", 1);
    let module = unique("cut_push");
    let fleet = Fleet::start(1, |arrival| match (arrival.instance(), arrival.position().1) {
        // Longer than the takeover, and without a read timeout.
        ("a", 0) => Reply::ok().after(Duration::from_secs(20)),
        _ => Reply::ok(),
    });
    cluster.produce(&topic, 0, &[(b"k", b"0"), (b"k", b"1"), (b"k", b"2")]);
    let first = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    let slow = fleet.wait_for("the slow push", DEADLINE, |arrival| arrival.instance() == "a");
    first.zookeeper.stall();
    let mut second = Member::start(cluster, &module, "b", configs::module(&topic, &fleet.addresses()));
    fleet.wait_until_delivered(3, DEADLINE);
    let arrivals = fleet.arrivals();
    let takeover = arrivals.iter().find(|arrival| arrival.instance() == "b").expect("it has delivered").began;
    let ended = arrivals.iter().find(|arrival| arrival.began == slow.began).and_then(|arrival| arrival.ended);
    let ended = ended.expect("the push of the first instance has ended");
    assert!(ended <= takeover, "the push was open for {:?} after the takeover", ended - takeover);
    assert_eq!(arrivals.iter().filter(|arrival| arrival.instance() == "a").count(), 1);
    second.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_paused_instance_sends_nothing_after_its_partitions_were_taken_over() {
    const N_PARTITIONS: i32 = 4;
    let cluster = cluster();
    let topic = cluster.new_topic("paused", N_PARTITIONS);
    let module = unique("paused");
    let is_busy = Arc::new(AtomicBool::new(true));
    let fleet = Fleet::start(1, |_| Reply::ok().after(Duration::from_millis(2)));
    let file = || configs::module(&topic, &fleet.addresses()).set("worker_num", 16);
    let mut first = Member::start(cluster, &module, "a", file());
    let busy = Arc::clone(&is_busy);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while busy.load(Ordering::Relaxed) {
                for partition in 0..N_PARTITIONS {
                    let keys: Vec<String> = (0..40).map(|number| format!("{partition}-{}", number % 20)).collect();
                    let messages: Vec<_> = keys.iter().map(|key| (key.as_bytes(), b"x".as_slice())).collect();
                    cluster.produce(&topic, partition, &messages);
                }
                round += 1;
                // The producer stays a few hundred messages ahead, so that the workers are always busy.
                wait_until(2 * DEADLINE, "pushes go on", || {
                    fleet.n_arrivals() + 600 > round * 40 * N_PARTITIONS as usize || !busy.load(Ordering::Relaxed)
                });
            }
        });
        wait_until(DEADLINE, "the first instance pushes", || fleet.n_arrivals() > 300);
        let mut second = Member::start(cluster, &module, "b", file());
        wait_until_owned(cluster, &module, &topic, N_PARTITIONS as usize, 2);
        for _ in 0..2 {
            first.daemon.signal(libc::SIGSTOP);
            wait_until_owned(cluster, &module, &topic, N_PARTITIONS as usize, 1);
            let n_before = fleet.n_arrivals();
            wait_until(DEADLINE, "the second instance pushes all partitions", || fleet.n_arrivals() > n_before + 200);
            first.daemon.signal(libc::SIGCONT);
            wait_until_owned(cluster, &module, &topic, N_PARTITIONS as usize, 2);
        }
        is_busy.store(false, Ordering::Relaxed);
        first.daemon.stop(STOP_DEADLINE);
        second.daemon.stop(STOP_DEADLINE);
    });
    let mut newest: BTreeMap<i32, u64> = BTreeMap::new();
    let mut n_stale = 0;
    for arrival in fleet.arrivals() {
        let claim = arrival.claim().expect("each push has X-Kafka-Claim");
        let newest = newest.entry(arrival.position().0).or_insert(claim);
        n_stale += usize::from(claim < *newest);
        *newest = claim.max(*newest);
    }
    eprintln!("{} pushes, {n_stale} of them under a claim that had ended", fleet.n_arrivals());
    // A process may be stopped between its last look at the clock and the system call; of 16 workers that are busy, few
    // are in that place. Only the fencing token protects against their requests.
    assert!(n_stale <= 2, "{n_stale} pushes under claims that had ended");
}

#[test]
fn the_fencing_token_grows_also_when_an_operator_deletes_the_stored_offset() {
    let cluster = cluster();
    let topic = cluster.new_topic("deleted_offset", 1);
    let module = unique("deleted_offset");
    let fleet = Fleet::start(1, |_| Reply::ok());
    fleet.refuse_stale_claims();
    let start = || Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    let produce = |n: usize| {
        for _ in 0..n {
            cluster.produce(&topic, 0, &[(b"k", b"x")]);
        }
    };
    let wait_until_stored = |next: i64| {
        wait_until(DEADLINE, "the offset is stored", || cluster.stored_offset(&module, &topic, 0) == Some(next));
    };
    produce(3);
    let mut member = start();
    wait_until_stored(3);
    member.daemon.stop(STOP_DEADLINE);
    let mut member = start();
    produce(2);
    wait_until_stored(5);
    let newest = || fleet.arrivals().iter().filter_map(Arrival::claim).max();
    // The second time as if all of the group had been deleted.
    for deleted in [&["offsets"][..], &["tokens", "offsets"]] {
        let before = newest();
        for folder in deleted {
            let path = format!("{}/consumers/{module}/{folder}/{topic}/0", cluster.chroot);
            assert!(cluster.zk().delete(&path), "{path}");
        }
        produce(1);
        fleet.wait_for("a push with a larger token", DEADLINE, |arrival| {
            arrival.is_delivered() && arrival.claim() > before
        });
    }
    member.daemon.stop(STOP_DEADLINE);
    assert_eq!(fleet.count(|arrival| arrival.status == Some(412)), 0, "no claim was taken for an older one");
}
