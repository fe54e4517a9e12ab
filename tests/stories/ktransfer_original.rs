//! A ktransfer and the original, the Go program, in one group: each takes over from the other, in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::harness::fleet::{Arrival, Fleet, Reply};
use crate::harness::original::Original;
use crate::harness::{Cluster, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
const N_PARTITIONS: i32 = 5;

/// Waits until each of the `n_members` owns its range, and returns how many partitions `id` owns.
#[track_caller]
fn wait_until_shared(cluster: &Cluster, module: &str, topic: &str, n_members: usize, id: &str) -> usize {
    wait_until(DEADLINE, &format!("{n_members} members own ranges"), || {
        let owners = cluster.owners(module, topic);
        let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
        owners.values().for_each(|owner| *counts.entry(owner).or_default() += 1);
        let range = N_PARTITIONS as usize / n_members;
        let is_shared = counts.len() == n_members && counts.values().all(|n| (range..=range + 1).contains(n));
        (owners.len() == N_PARTITIONS as usize && is_shared)
            .then(|| counts.iter().find(|(owner, _)| owner.as_str() == id).map_or(0, |(_, n)| *n))
    })
}

fn produce(cluster: &Cluster, topic: &str, n_of_each: usize) {
    for partition in 0..N_PARTITIONS {
        cluster.produce(topic, partition, &vec![(b"k".as_slice(), b"x".as_slice()); n_of_each]);
    }
}

#[test]
fn the_original_and_a_ktransfer_share_a_group_and_take_over_from_each_other() {
    let cluster = cluster();
    let topic = cluster.new_topic("original", N_PARTITIONS);
    let module = unique("original");
    let fleet = Fleet::start(1, |_| Reply::ok());
    let file = || configs::module(&topic, &fleet.addresses());
    let n_pushed = |originals: &[&Original]| {
        fleet.n_arrivals() + originals.iter().map(|original| original.pushes().len()).sum::<usize>()
    };
    let wait_for = |n: usize, originals: &[&Original], what: &str| {
        wait_until(DEADLINE, what, || n_pushed(originals) >= n * N_PARTITIONS as usize);
    };

    produce(cluster, &topic, 10);
    let first = Original::start(cluster, &module, &topic);
    wait_for(10, &[&first], "the original pushes all partitions");
    // A ktransfer joins, and takes its range at the offsets that the original has stored.
    let mut ktransfer = Member::start(cluster, &module, "a", file());
    let n = wait_until_shared(cluster, &module, &topic, 2, &first.id);
    assert!((2..=3).contains(&n), "the original owns {n} partitions");
    produce(cluster, &topic, 10);
    wait_for(20, &[&first], "both push");
    assert!(fleet.n_arrivals() > 0 && first.pushes().len() > 10 * N_PARTITIONS as usize);
    // The original leaves; the ktransfer takes the rest.
    let mut by_originals = first.leave();
    assert_eq!(wait_until_shared(cluster, &module, &topic, 1, "nobody"), 0);
    produce(cluster, &topic, 10);
    wait_until(DEADLINE, "the ktransfer pushes all partitions", || {
        fleet.n_arrivals() + by_originals.len() >= 30 * N_PARTITIONS as usize
    });
    // An original joins again; the ktransfer stops, and then the original owns everything.
    let second = Original::start(cluster, &module, &topic);
    wait_until_shared(cluster, &module, &topic, 2, &second.id);
    ktransfer.daemon.stop(STOP_DEADLINE);
    let n = wait_until_shared(cluster, &module, &topic, 1, &second.id);
    assert_eq!(n, N_PARTITIONS as usize, "the original owns all partitions");
    produce(cluster, &topic, 10);
    wait_until(DEADLINE, "the original pushes all partitions", || {
        fleet.n_arrivals() + by_originals.len() + second.pushes().len() >= 40 * N_PARTITIONS as usize
    });
    by_originals.extend(second.leave());

    let by_ktransfer: Vec<(i32, i64)> = fleet.arrivals().iter().map(Arrival::position).collect();
    let all: BTreeSet<(i32, i64)> = by_originals.iter().chain(&by_ktransfer).copied().collect();
    assert_eq!(all.len(), 40 * N_PARTITIONS as usize, "lost messages");
    assert_eq!(by_originals.len() + by_ktransfer.len(), all.len(), "repeats at orderly hand-overs");
}

#[test]
fn the_original_takes_over_from_a_killed_ktransfer() {
    let cluster = cluster();
    let topic = cluster.new_topic("original_kill", N_PARTITIONS);
    let module = unique("original_kill");
    let fleet = Fleet::start(1, |_| Reply::ok());
    let mut ktransfer = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    let original = Original::start(cluster, &module, &topic);
    wait_until_shared(cluster, &module, &topic, 2, &original.id);
    produce(cluster, &topic, 10);
    let n_pushed = || fleet.n_arrivals() + original.pushes().len();
    wait_until(DEADLINE, "both push", || n_pushed() >= 10 * N_PARTITIONS as usize);
    ktransfer.daemon.kill9();
    let n = wait_until_shared(cluster, &module, &topic, 1, &original.id);
    assert_eq!(n, N_PARTITIONS as usize, "the original owns all partitions after the session has expired");
    produce(cluster, &topic, 10);
    wait_until(DEADLINE, "the original pushes everything", || {
        (0..N_PARTITIONS).all(|partition| cluster.stored_offset(&module, &topic, partition) == Some(20))
    });
    let pushes: BTreeSet<(i32, i64)> =
        original.leave().into_iter().chain(fleet.arrivals().iter().map(Arrival::position)).collect();
    assert_eq!(pushes.len(), 20 * N_PARTITIONS as usize, "lost messages");
}
