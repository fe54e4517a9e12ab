//! ktransfer: a module whose stored offsets move from ZooKeeper to Kafka and back, while messages flow.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::{
    Cluster, ConfigFile, Ktransfer, Program, STOP_DEADLINE, binary, cluster, configs, group_wire, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(40);
const N_PARTITIONS: i32 = 3;

/// Runs `--move-offsets` in the folder of a stopped instance.
fn move_offsets(stopped: &Ktransfer, module: &str, arguments: &[&str]) -> Output {
    Command::new(binary(Program::Ktransfer))
        .args(["-f", "conf/ktransfer.yaml", "--move-offsets", module, "--to"])
        .args(arguments)
        .current_dir(stopped.daemon.folder())
        .output()
        .expect("the program runs")
}

#[track_caller]
fn assert_moved(output: &Output, expected: &str) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(expected), "{}: {out}\n{err}", output.status);
}

#[track_caller]
fn assert_refused(output: &Output, expected: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains(expected), "{}: {err}", output.status);
}

fn produce(cluster: &Cluster, topic: &str, n_of_each: usize) {
    for partition in 0..N_PARTITIONS {
        let key = format!("k{partition}");
        cluster.produce(topic, partition, &vec![(key.as_bytes(), b"text".as_slice()); n_of_each]);
    }
}

#[test]
fn a_module_moves_to_kafka_and_back_and_no_message_is_lost_or_repeated() {
    let cluster = cluster();
    let topic = cluster.new_topic("moved", N_PARTITIONS);
    let module = unique("moved");
    let fleet = Fleet::start(1, |_| Reply::ok());
    // With `latest`, offsets that did not move would cost messages.
    let file = || configs::module(&topic, &fleet.addresses()).set("start_from", "latest");
    let with_zookeeper = || configs::ktransfer(cluster).set("broker_hosts", cluster.broker_list());
    let brokers: Vec<String> = cluster.broker_list().into_iter().map(str::to_owned).collect();
    let without = || configs::ktransfer_without_zookeeper(&brokers);
    let start = |config: ConfigFile| {
        let mut ktransfer = Ktransfer::start(config, &[(&module, file())]);
        ktransfer.wait_until_ready();
        ktransfer
    };
    let mut n_sent = 0;
    let mut send = |n_of_each: usize| {
        produce(cluster, &topic, n_of_each);
        n_sent += n_of_each * N_PARTITIONS as usize;
        n_sent
    };

    let mut first = start(with_zookeeper());
    fleet.wait_until_delivered(send(50), DEADLINE);
    assert_refused(&move_offsets(&first, &module, &["kafka"]), "the group in ZooKeeper has live members");
    first.daemon.stop(STOP_DEADLINE);
    let stored = |partition| cluster.stored_offset(&module, &topic, partition);
    assert_eq!((0..N_PARTITIONS).map(stored).collect::<Vec<_>>(), [Some(50); 3]);

    // Messages flow on while the instance is stopped.
    send(10);
    assert_moved(&move_offsets(&first, &module, &["kafka", "--dry-run"]), "dry run: nothing was written");
    let committed =
        || group_wire::committed(&cluster.brokers, &module, &topic, N_PARTITIONS).expect("the broker answers");
    assert_eq!(committed(), BTreeMap::new());
    assert_moved(&move_offsets(&first, &module, &["kafka"]), "moved 3 partitions from ZooKeeper to Kafka");
    assert!(committed().values().all(|(offset, _)| *offset == 50), "{:?}", committed());

    let mut second = start(without());
    fleet.wait_until_delivered(send(50), DEADLINE);
    assert_refused(&move_offsets(&first, &module, &["zookeeper"]), "the group in Kafka has live members");
    assert_refused(&move_offsets(&second, &module, &["zookeeper"]), "zk_hosts is missing");
    second.daemon.stop(STOP_DEADLINE);
    assert!(committed().values().all(|(offset, _)| *offset == 110), "{:?}", committed());

    // What was stored in ZooKeeper is older: moving it to Kafka again would repeat messages.
    assert_refused(&move_offsets(&first, &module, &["kafka"]), "has 110 at the target, which is more than 50");
    send(10);
    assert_moved(&move_offsets(&first, &module, &["zookeeper"]), "moved 3 partitions from Kafka to ZooKeeper");
    let mut third = start(with_zookeeper());
    let n_sent = send(20);
    fleet.wait_until_delivered(n_sent, DEADLINE);
    third.daemon.stop(STOP_DEADLINE);
    wait_until(DEADLINE, "every message is delivered", || fleet.delivered().len() == n_sent);
    let positions: Vec<_> = fleet.arrivals().iter().map(|arrival| arrival.position()).collect();
    let distinct: BTreeSet<_> = positions.iter().collect();
    assert_eq!((positions.len(), distinct.len()), (n_sent, n_sent), "requests and messages");
}
