//! ktransfer and its ZooKeeper session: a connection that is lost, a stop without ZooKeeper, members with other topics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::harness::fleet::{Arrival, Fleet, Reply};
use crate::harness::{Cluster, ConfigFile, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

fn produce_to_each(cluster: &Cluster, topic: &str, n_partitions: i32, key: &str, n_of_each: usize) {
    for partition in 0..n_partitions {
        cluster.produce(topic, partition, &vec![(key.as_bytes(), b"x".as_slice()); n_of_each]);
    }
}

#[test]
fn a_lost_zookeeper_connection_costs_seconds_and_not_a_session_timeout() {
    const N_PARTITIONS: i32 = 4;
    let cluster = cluster();
    let topic = cluster.new_topic("reconnect", N_PARTITIONS);
    let module = unique("reconnect");
    let fleet = Fleet::start(1, |_| Reply::ok());
    let file = configs::module(&topic, &fleet.addresses());
    let change = |config: ConfigFile| config.set("zk_timeout_ms", 30_000);
    let mut member = Member::start_with(cluster, &module, "a", file, change);
    produce_to_each(cluster, &topic, N_PARTITIONS, "k", 1);
    fleet.wait_until_delivered(4, DEADLINE);
    for (round, disturb) in [
        (1, (|member| member.zookeeper.reset()) as fn(&Member)),
        (2, |member| {
            member.zookeeper.cut();
            member.zookeeper.restore();
        }),
    ] {
        let lost = Instant::now();
        disturb(&member);
        produce_to_each(cluster, &topic, N_PARTITIONS, "k", 1);
        fleet.wait_until_delivered(4 * (round + 1), 2 * DEADLINE);
        let took = lost.elapsed();
        eprintln!("pushes go on {took:?} after connection {round} was lost");
        assert!(took < Duration::from_secs(8), "{took:?} after connection {round} was lost");
        // The next round must not meet a group that is still recovering, which would deliver by chance.
        wait_until(DEADLINE, "every partition is claimed", || {
            cluster.owners(&module, &topic).len() == N_PARTITIONS as usize
        });
    }
    member.daemon.stop(STOP_DEADLINE);
    assert_eq!(cluster.owners(&module, &topic), BTreeMap::new(), "claims are left");
}

#[test]
fn members_with_another_topic_take_no_partition_of_this_one() {
    const N_PARTITIONS: i32 = 4;
    let cluster = cluster();
    let topics = [cluster.new_topic("one_topic", N_PARTITIONS), cluster.new_topic("other_topic", N_PARTITIONS)];
    let module = unique("two_topics");
    let fleet = Fleet::start(1, |_| Reply::ok());
    // A member of the original whose registration names a third topic.
    let zk = cluster.zk();
    let ids = format!("{}/consumers/{module}/ids", cluster.chroot);
    zk.create(&ids, "");
    for name in ["000", "zzz"] {
        let registration = r#"{"version":1,"subscription":{"A_THIRD":1},"pattern":"static","timestamp":"0"}"#;
        assert!(zk.create_ephemeral(&format!("{ids}/{name}"), registration));
    }
    let start =
        |name: &str, topic: &str| Member::start(cluster, &module, name, configs::module(topic, &fleet.addresses()));
    let mut members = [start("a", &topics[0]), start("b", &topics[1])];
    for topic in &topics {
        produce_to_each(cluster, topic, N_PARTITIONS, "k", 5);
    }
    let n_of = |topic: &str| {
        let of_topic = |arrival: &Arrival| arrival.request.header("X-Kafka-Topic") == Some(topic);
        fleet.count(of_topic)
    };
    wait_until(DEADLINE, "all messages of both topics are delivered", || topics.iter().all(|topic| n_of(topic) == 20));
    members.iter_mut().for_each(|member| member.daemon.stop(STOP_DEADLINE));
}

#[test]
fn a_stop_that_cannot_store_its_offsets_ends_with_4_and_says_so() {
    let cluster = cluster();
    let topic = cluster.new_topic("stop_without_zookeeper", 1);
    let module = unique("stop_without_zookeeper");
    let fleet = Fleet::start(1, |_| Reply::ok());
    // The offsets of these messages are not stored before the connection is lost.
    let file = configs::module(&topic, &fleet.addresses()).set("zk_offset_update_interval_sec", 60);
    let change = |config: ConfigFile| config.set("zk_timeout_ms", 30_000).set("shutdown_grace_ms", 3000);
    let mut member = Member::start_with(cluster, &module, "a", file, change);
    wait_until(DEADLINE, "the partition is owned and its beginning stored", || {
        cluster.stored_offset(&module, &topic, 0) == Some(0)
    });
    member.zookeeper.stall();
    produce_to_each(cluster, &topic, 1, "k", 100);
    fleet.wait_until_delivered(100, DEADLINE);
    member.daemon.terminate();
    let status = member.daemon.wait(STOP_DEADLINE);
    assert_eq!(cluster.stored_offset(&module, &topic, 0), Some(0), "nothing was stored");
    assert_eq!(status.code(), Some(4), "{status}");
    let log = member.daemon.log() + &member.daemon.output();
    assert!(log.contains("offset") && log.contains(&module), "the log names what was not stored: {log}");
}
