//! ktransfer and its offsets: no message is skipped and nothing is read silently from another log, when a topic grows,
//! is created again, loses messages in an unclean leader election, or has transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::fleet::{Arrival, Fleet, Reply};
use crate::harness::transactions::{commit_messages, start_transactions};
use crate::harness::{
    Backend, BackendAnswer, Cluster, ConfigFile, Ktransfer, STOP_DEADLINE, cluster, configs, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Appends messages with the values `PREFIX-0`, `PREFIX-1`, … to a partition.
fn produce(cluster: &Cluster, topic: &str, partition: i32, prefix: &str, count: usize) {
    let values: Vec<String> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    let messages: Vec<(&[u8], &[u8])> = values.iter().map(|value| (&b"k"[..], value.as_bytes())).collect();
    cluster.produce(topic, partition, &messages);
}

/// Number of different messages with a value `PREFIX-…` that were delivered.
fn delivered(backend: &Backend, prefix: &str) -> usize {
    let mut values: Vec<String> = backend
        .records()
        .iter()
        .filter(|record| record.status == Some(200))
        .map(|record| String::from_utf8_lossy(&record.request.body).into_owned())
        .filter(|value| value.rsplit_once('-').is_some_and(|(found, _)| found == prefix))
        .collect();
    values.sort_unstable();
    values.dedup();
    values.len()
}

fn wait_for_delivered(backend: &Backend, prefix: &str, count: usize) {
    wait_until(DEADLINE, &format!("{count} messages {prefix} are delivered"), || delivered(backend, prefix) == count);
}

fn wait_for_stored(cluster: &Cluster, module: &str, topic: &str, partition: i32, offset: i64) {
    wait_until(DEADLINE, &format!("offset {offset} of partition {partition} is stored"), || {
        cluster.stored_offset(module, topic, partition) == Some(offset)
    });
}

fn latest(topic: &str, backend: &Backend) -> ConfigFile {
    configs::module(topic, &[backend.address()]).set("start_from", "latest")
}

fn resets(ktransfer: &Ktransfer, module: &str, reason: &str) -> Option<u64> {
    let line = format!("ktransfer_offset_resets_total{{module=\"{module}\",reason=\"{reason}\"}}");
    ktransfer.metrics().value(&line)
}

#[test]
fn partitions_added_to_a_topic_are_pushed_from_their_beginning_also_with_start_from_latest() {
    let cluster = cluster();
    let (topic, module, backend) = (cluster.new_topic("growing", 1), unique("module"), Backend::start());
    produce(cluster, &topic, 0, "history", 5);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, latest(&topic, &backend))]);
    produce(cluster, &topic, 0, "new", 3);
    wait_for_delivered(&backend, "new", 3);
    ktransfer.daemon.stop(STOP_DEADLINE);

    // While it is stopped.
    cluster.grow_topic(&topic, 2);
    produce(cluster, &topic, 1, "added", 10);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, latest(&topic, &backend))]);
    wait_for_delivered(&backend, "added", 10);
    // While it runs.
    cluster.grow_topic(&topic, 3);
    produce(cluster, &topic, 2, "live", 10);
    wait_for_delivered(&backend, "live", 10);
    wait_for_stored(cluster, &module, &topic, 2, 10);
    assert_eq!(delivered(&backend, "history"), 0, "older than the group");
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn with_start_from_latest_no_message_after_readiness_is_missed_although_the_backend_is_dead() {
    let cluster = cluster();
    let (topic, module, backend) = (cluster.new_topic("latest", 2), unique("module"), Backend::start());
    produce(cluster, &topic, 0, "history", 7);
    backend.stop_listening();
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, latest(&topic, &backend))]);
    // Stored by the time that /readyz answers 200.
    assert_eq!(cluster.stored_offset(&module, &topic, 0), Some(7));
    assert_eq!(cluster.stored_offset(&module, &topic, 1), Some(0));
    produce(cluster, &topic, 0, "new", 3);
    produce(cluster, &topic, 1, "other", 3);
    ktransfer.daemon.kill9();
    backend.listen_again();
    let mut ktransfer = Ktransfer::start(configs::ktransfer(cluster), &[(&module, latest(&topic, &backend))]);
    wait_for_delivered(&backend, "new", 3);
    wait_for_delivered(&backend, "other", 3);
    assert_eq!(delivered(&backend, "history"), 0);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_topic_younger_than_its_module_is_pushed_from_its_beginning_also_with_start_from_latest() {
    let cluster = cluster();
    let (topic, module, backend) = (unique("younger"), unique("module"), Backend::start());
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, latest(&topic, &backend))]);
    cluster.create_topic(&topic, 1);
    produce(cluster, &topic, 0, "first", 10);
    wait_for_delivered(&backend, "first", 10);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_topic_that_is_created_again_is_pushed_from_its_beginning_also_after_a_crash() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("again", 1), unique("module"));
    let refuses = Arc::new(AtomicBool::new(false));
    let is_refusing = Arc::clone(&refuses);
    let backend = Backend::start_with(move |request| match request.text().starts_with("second") {
        true if is_refusing.load(Ordering::SeqCst) => BackendAnswer::status(503),
        _ => BackendAnswer::ok(),
    });
    let file = || configs::module(&topic, &[backend.address()]).set("fail_retry_interval_ms", 50);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, file())]);
    produce(cluster, &topic, 0, "first", 20);
    wait_for_stored(cluster, &module, &topic, 0, 20);

    refuses.store(true, Ordering::SeqCst);
    cluster.delete_topic(&topic);
    cluster.create_topic(&topic, 1);
    // The new log is longer than the old offset at once.
    produce(cluster, &topic, 0, "second", 30);
    wait_for_stored(cluster, &module, &topic, 0, 0);
    assert_eq!(resets(&ktransfer, &module, "recreated"), Some(1));
    ktransfer.daemon.wait_for_log("was deleted and created again", DEADLINE);
    ktransfer.daemon.kill9();

    refuses.store(false, Ordering::SeqCst);
    let mut ktransfer = Ktransfer::start(configs::ktransfer(cluster), &[(&module, file())]);
    wait_for_delivered(&backend, "second", 30);
    wait_for_stored(cluster, &module, &topic, 0, 30);
    ktransfer.daemon.stop(STOP_DEADLINE);

    // While it is stopped: only the id of the topic tells the two logs apart.
    cluster.delete_topic(&topic);
    cluster.create_topic(&topic, 1);
    produce(cluster, &topic, 0, "third", 40);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, file())]);
    wait_for_delivered(&backend, "third", 40);
    assert_eq!(resets(&ktransfer, &module, "recreated"), Some(1));
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn the_commit_point_passes_transaction_markers_and_aborted_messages_which_are_not_pushed() {
    let cluster = cluster();
    let (topic, module, backend) = (cluster.new_topic("transactions", 1), unique("module"), Backend::start());
    let file = configs::module(&topic, &[backend.address()]);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, file)]);
    commit_messages(cluster, &topic, 5);
    let end = cluster.log_ends(&topic)[&0];
    assert!(end > 5, "a marker takes an offset: {end}");
    wait_for_stored(cluster, &module, &topic, 0, end);
    backend.wait_for_requests(5, DEADLINE);

    // A producer that dies within a transaction; the broker aborts it.
    let mut producer = start_transactions(cluster, &topic, 100_000, 200, 600_000, 2_000);
    wait_until(DEADLINE, "the transaction has messages", || cluster.log_ends(&topic)[&0] > end + 10);
    producer.kill9();
    let mut last = 0;
    wait_until(DEADLINE, "the transaction is aborted, and the offset behind its marker is stored", || {
        last = cluster.log_ends(&topic)[&0];
        cluster.stored_offset(&module, &topic, 0) == Some(last)
    });
    assert!(last > end + 10);
    assert_eq!(backend.n_requests(), 5, "aborted messages are not pushed");
    let gap = format!("ktransfer_offset_gap_messages_total{{module=\"{module}\"}}");
    assert_eq!(ktransfer.metrics().value(&gap), Some(0));
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn after_an_unclean_leader_election_every_message_of_the_new_leader_is_pushed() {
    let properties = ["unclean.leader.election.enable=true", "replica.lag.time.max.ms=2000"];
    let cluster = Cluster::start_with(2, &properties);
    let (topic, module, backend) = (unique("unclean"), unique("module"), Backend::start());
    cluster.create_replicated_topic(&topic, 1, 2);
    cluster.wait_for_in_sync(&topic, 2);
    let file = configs::module(&topic, &[backend.address()]);
    let mut ktransfer = Ktransfer::start_ready(&cluster, &[(&module, file)]);
    produce(&cluster, &topic, 0, "common", 10);
    wait_for_delivered(&backend, "common", 10);

    let leader = cluster.leaders(&topic).expect("the topic exists")[&0];
    let follower = 1 - leader;
    cluster.kafka_servers[follower as usize].kill9();
    cluster.wait_for_in_sync(&topic, 1);
    produce(&cluster, &topic, 0, "lost", 100);
    wait_for_delivered(&backend, "lost", 100);
    cluster.kafka_servers[leader as usize].kill9();
    cluster.kafka_servers[follower as usize].restart();
    wait_until(DEADLINE, "the follower leads the partition", || {
        cluster.leaders(&topic).is_some_and(|leaders| leaders.get(&0) == Some(&follower))
    });
    // Longer than what was lost: the offset is in the range of the new log.
    produce(&cluster, &topic, 0, "after", 150);
    wait_for_delivered(&backend, "after", 150);
    wait_for_stored(&cluster, &module, &topic, 0, 160);
    assert_eq!(resets(&ktransfer, &module, "truncated"), Some(1));
    let lost = format!("ktransfer_truncated_messages_total{{module=\"{module}\"}}");
    assert_eq!(ktransfer.metrics().value(&lost), Some(100));
    let repeats = backend.records().iter().filter(|record| record.request.text().starts_with("common")).count();
    assert_eq!(repeats, 10, "what both logs have is not pushed again");
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_leader_that_moved_behind_a_stuck_message_makes_a_restart_repeat_nothing() {
    const N_BEHIND: usize = 500;
    let cluster = Cluster::start(2);
    let brokers: Vec<String> = cluster.broker_list().into_iter().map(str::to_owned).collect();
    for (service, config) in [
        ("zookeeper", configs::ktransfer(&cluster)),
        ("kafka", configs::ktransfer_without_zookeeper(&brokers).set("session_timeout_ms", 6_000)),
    ] {
        let (topic, module) = (unique("moved_leader"), unique("module"));
        cluster.create_replicated_topic(&topic, 1, 2);
        cluster.wait_for_in_sync(&topic, 2);
        let fleet = Fleet::start(1, |arrival| match arrival.key().as_str() {
            "stuck" => Reply::status(503),
            _ => Reply::ok(),
        });
        let file = configs::module(&topic, &fleet.addresses()).set("fail_retry_interval_ms", 100);
        let start = |file: ConfigFile| {
            let mut ktransfer = Ktransfer::start(config.clone(), &[(&module, file)]);
            ktransfer.wait_until_ready();
            ktransfer
        };
        let mut ktransfer = start(file.clone());
        cluster.produce(&topic, 0, &[(b"first", b"1"), (b"stuck", b"2")]);
        fleet.wait_for("the refused push", DEADLINE, |arrival| arrival.key() == "stuck");
        cluster.move_leaders(&topic);
        let keys: Vec<String> = (0..N_BEHIND).map(|number| format!("key-{number}")).collect();
        let behind: Vec<_> = keys.iter().map(|key| (key.as_bytes(), b"3".as_slice())).collect();
        cluster.produce(&topic, 0, &behind);
        fleet.wait_until_delivered(1 + N_BEHIND, DEADLINE);
        ktransfer.daemon.stop(STOP_DEADLINE);

        // One worker: when it delivers the last key, every key before it has had its turn.
        let n_before = fleet.n_arrivals();
        let mut ktransfer = start(file.set("worker_num", 1));
        cluster.produce(&topic, 0, &[(b"last", b"4")]);
        fleet.wait_for("the last message", DEADLINE, |arrival| arrival.key() == "last" && arrival.is_delivered());
        let arrivals = fleet.arrivals();
        let is_repeat = |key: &String| key != "stuck" && key != "last";
        let repeats: Vec<String> = arrivals[n_before..].iter().map(Arrival::key).filter(is_repeat).collect();
        assert_eq!(repeats.len(), 0, "{service}: {} of {N_BEHIND} were pushed again", repeats.len());
        ktransfer.daemon.stop(STOP_DEADLINE);
    }
}
