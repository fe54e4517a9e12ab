//! ktransfer and a topic that was deleted and created again, when the new log is soon as long as the stored offset.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::{Cluster, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

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
    let fleet = Fleet::start(1, |arrival| match arrival.request.text().starts_with("first-") {
        true => Reply::status(503),
        false => Reply::ok(),
    });
    let file = configs::module(&topic, &fleet.addresses()).set("fail_retry_interval_ms", 100);
    let mut member = Member::start(cluster, &module, "a", file);
    // All of the same key, so that each waits behind the one before it.
    let produce = |prefix: &str, n: usize| {
        let values: Vec<String> = (0..n).map(|number| format!("{prefix}{number}")).collect();
        let messages: Vec<_> = values.iter().map(|value| (b"k".as_slice(), value.as_bytes())).collect();
        cluster.produce(&topic, 0, &messages);
    };
    produce("first-", 5);
    fleet.wait_for("a retry", DEADLINE, |arrival| arrival.attempt() > 1);
    cluster.delete_topic(&topic);
    cluster.create_topic(&topic, 1);
    produce("second-", 8);
    wait_until_done(&module, &topic, &fleet, "second-", 8);
    let retried = fleet.positions_of(|arrival| arrival.attempt() > 1);
    assert_eq!(retried.len(), 1, "what was queued of the old topic gets one attempt");
    member.daemon.stop(STOP_DEADLINE);
}
