//! ktransfer and a topic that was deleted and created again, when the new log is soon as long as the stored offset.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::{Backend, BackendAnswer, Cluster, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Appends `n` messages to partition 0, whose values are `prefix` with a number.
fn produce(cluster: &Cluster, topic: &str, prefix: &str, n: usize) {
    let values: Vec<String> = (0..n).map(|number| format!("{prefix}{number}")).collect();
    let messages: Vec<_> = values.iter().map(|value| (value.as_bytes(), value.as_bytes())).collect();
    cluster.produce(topic, 0, &messages);
}

#[track_caller]
fn wait_until_done(module: &str, topic: &str, fleet: &Fleet, prefix: &str, n: usize) {
    wait_until(DEADLINE, &format!("{n} messages of {prefix} are delivered and stored"), || {
        let values: BTreeSet<String> = fleet.arrivals().iter().map(|arrival| arrival.request.text()).collect();
        values.iter().filter(|value| value.starts_with(prefix)).count() == n
            && cluster().stored_offset(module, topic, 0) == Some(n as i64)
    });
}

#[test]
fn a_topic_that_is_created_again_is_read_from_its_beginning_also_if_ktransfer_did_not_run() {
    let cluster = cluster();
    let topic = cluster.new_topic("recreated", 1);
    let (module, fleet) = (unique("recreated"), Fleet::start(1, |_| Reply::ok()));
    let start = || Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    let recreate = || {
        cluster.delete_topic(&topic);
        cluster.create_topic(&topic, 1);
    };
    let mut member = start();
    produce(cluster, &topic, "first-", 5);
    wait_until_done(&module, &topic, &fleet, "first-", 5);
    recreate();
    produce(cluster, &topic, "second-", 8);
    wait_until_done(&module, &topic, &fleet, "second-", 8);
    member.daemon.stop(STOP_DEADLINE);
    recreate();
    produce(cluster, &topic, "third-", 11);
    let mut member = start();
    wait_until_done(&module, &topic, &fleet, "third-", 11);
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn refused_messages_of_the_old_topic_hold_up_no_message_of_the_new_one() {
    let cluster = cluster();
    let topic = cluster.new_topic("refused_old", 1);
    let module = unique("refused_old");
    let backend = Backend::start_with(|request| match request.text().starts_with("first-") {
        true => BackendAnswer::status(503),
        false => BackendAnswer::ok(),
    });
    let file = configs::module(&topic, &[backend.address()]).set("fail_retry_interval_ms", 100);
    let mut member = Member::start(cluster, &module, "a", file);
    // All of the same key, so that each waits behind the one before it.
    let produce = |prefix: &str, n: usize| {
        let values: Vec<String> = (0..n).map(|number| format!("{prefix}{number}")).collect();
        let messages: Vec<_> = values.iter().map(|value| (b"k".as_slice(), value.as_bytes())).collect();
        cluster.produce(&topic, 0, &messages);
    };
    let pushes = |prefix: &str| -> Vec<String> {
        let texts = backend.records().into_iter().map(|record| record.request.text());
        texts.filter(|text| text.starts_with(prefix)).collect()
    };
    produce("first-", 5);
    wait_until(DEADLINE, "the first message is retried", || pushes("first-0").len() > 1);
    cluster.delete_topic(&topic);
    cluster.create_topic(&topic, 1);
    produce("second-", 8);
    wait_until(DEADLINE, "the messages of the new topic are delivered and stored", || {
        pushes("second-").len() >= 8 && cluster.stored_offset(&module, &topic, 0) == Some(8)
    });
    assert_eq!(pushes("second-"), (0..8).map(|number| format!("second-{number}")).collect::<Vec<_>>());
    let n_later = (1..5).map(|number| pushes(&format!("first-{number}")).len());
    assert!(n_later.max() <= Some(1), "a message that was queued of the old topic gets one attempt");
    member.daemon.stop(STOP_DEADLINE);
}
