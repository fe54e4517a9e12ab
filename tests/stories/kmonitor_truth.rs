//! kmonitor: the numbers are true where topics, offsets and retention do unusual things.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::transactions::commit_messages;
use crate::harness::{
    Cluster, ConfigFile, Kmonitor, Ktransfer, Member, cluster, configs, kafka_wire, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns a configuration for one cluster, named `tc`, which is polled every 200 ms.
fn config(cluster: &Cluster) -> ConfigFile {
    configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("base.log_level", 8)
        .set("base.poll_interval_ms", 200)
        .set("http_server.read_timeout_ms", 1000)
        .set("http_server.write_timeout_ms", 1000)
}

fn wait_for(monitor: &Kmonitor, module: &str, expected: &Value) {
    monitor.wait_for_delay("tc", module, expected, DEADLINE);
}

fn store_offset(cluster: &Cluster, module: &str, node: &str, text: &str) {
    let path = format!("{}/consumers/{module}/offsets/{node}", cluster.chroot);
    let zk = cluster.zk();
    if !zk.create(&path, text) {
        zk.write(&path, text);
    }
}

fn produce(cluster: &Cluster, topic: &str, partition: i32, count: usize) {
    cluster.produce(topic, partition, &vec![(&b"k"[..], &b"v"[..]); count]);
}

/// The value of a metric without labels beside the cluster.
fn metric(monitor: &Kmonitor, name: &str) -> Option<f64> {
    let text = monitor.get("/metrics").text();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{cluster=\"tc\"}}")))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn asking_never_creates_a_topic_with_any_engine() {
    let cluster = Cluster::start_with(1, &["auto.create.topics.enable=true"]);
    let topic = cluster.new_topic("exists", 1);
    produce(&cluster, &topic, 0, 3);
    store_offset(&cluster, "m", &format!("{topic}/0"), "0");
    store_offset(&cluster, "m", "never_was/0", "7");
    // It takes two answers, ten seconds apart, until the topic is known to be gone; both engines wait at once.
    let monitors = ["native", "kafka-rust"]
        .map(|engine| (engine, Kmonitor::start(&config(&cluster).set("tc.kafka_client", engine))));
    for (engine, monitor) in monitors {
        wait_for(&monitor, "m", &json!({"0": 3}));
        let metrics = monitor.get("/metrics").text();
        assert!(!metrics.contains("kmonitor_unknown_partitions{"), "a topic that is gone is not unknown: {metrics}");
        assert_eq!(metric(&monitor, "kmonitor_gone_partitions"), Some(1.0));
        assert_eq!(monitor.get("/readyz").status, 200);
        let topics = cluster.children(&format!("{}/brokers/topics", cluster.chroot));
        assert!(!topics.iter().any(|name| name == "never_was"), "{engine}: {topics:?}");
    }
}

#[test]
fn a_topic_that_is_created_again_while_the_pusher_is_dead_counts_from_its_beginning() {
    let cluster = cluster();
    let topic = cluster.new_topic("again", 2);
    let (module, fleet) = (unique("again"), Fleet::start(1, |_| Reply::ok()));
    let mut member = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    let monitor = Kmonitor::start(&config(cluster));
    (0..2).for_each(|partition| produce(cluster, &topic, partition, 5));
    wait_for(&monitor, &module, &json!({"0": 0, "1": 0}));
    wait_until(DEADLINE, "all is stored", || cluster.stored_offsets_sum(&module, &topic, 2) == 10);
    member.daemon.stop(DEADLINE);
    cluster.delete_topic(&topic);
    cluster.create_topic(&topic, 1);
    produce(cluster, &topic, 0, 5);
    // The stored offset is 5, as is the end of the new log: only the id of the topic shows what happened.
    wait_for(&monitor, &module, &json!({"0": 5}));
    // A kmonitor that starts now reads the id that ktransfer stored beside the offset.
    let late = Kmonitor::start(&config(cluster));
    wait_for(&late, &module, &json!({"0": 5}));
    produce(cluster, &topic, 0, 2);
    wait_for(&monitor, &module, &json!({"0": 7}));
    wait_for(&late, &module, &json!({"0": 7}));
    let _member = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    wait_for(&monitor, &module, &json!({"0": 0}));
}

#[test]
fn what_retention_deleted_is_no_delay() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("retained", 1), unique("retained"));
    produce(cluster, &topic, 0, 1_000);
    store_offset(cluster, &module, &format!("{topic}/0"), "10");
    let monitor = Kmonitor::start(&config(cluster));
    wait_for(&monitor, &module, &json!({"0": 990}));
    kafka_wire::delete_records(&cluster.brokers, &topic, 0, 1_000);
    wait_for(&monitor, &module, &json!({"0": 0}));
    produce(cluster, &topic, 0, 3);
    wait_for(&monitor, &module, &json!({"0": 3}));
}

#[test]
fn a_partition_without_a_stored_offset_is_not_hidden() {
    let cluster = cluster();
    let topic = cluster.new_topic("grown", 1);
    let (module, fleet) = (unique("grown"), Fleet::start(1, |_| Reply::ok()));
    let mut member = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    produce(cluster, &topic, 0, 3);
    let monitor = Kmonitor::start(&config(cluster));
    wait_until(DEADLINE, "all is stored", || cluster.stored_offsets_sum(&module, &topic, 1) == 3);
    wait_for(&monitor, &module, &json!({"0": 0}));
    member.daemon.stop(DEADLINE);
    cluster.grow_topic(&topic, 2);
    produce(cluster, &topic, 1, 100);
    wait_for(&monitor, &module, &json!({"0": 0, "1": 100}));
    store_offset(cluster, &module, &format!("{topic}/1"), "-1");
    produce(cluster, &topic, 1, 1);
    wait_for(&monitor, &module, &json!({"0": 0, "1": 101}));
    let lines = monitor.get(&format!("/delay?format=zabbix&module={module}")).text();
    assert_eq!(lines, format!("- tc.{module}.0.delay 0\n- tc.{module}.1.delay 101\n"));
    assert_eq!(monitor.get("/readyz").status, 200);
    // It is what ktransfer pushes then.
    let _member = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    wait_for(&monitor, &module, &json!({"0": 0, "1": 0}));
    assert_eq!(fleet.arrivals().len(), 104);
}

#[test]
fn nodes_that_are_no_partitions_of_topics_make_nobody_unready() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("odd", 1), unique("odd"));
    produce(cluster, &topic, 0, 4);
    store_offset(cluster, &module, &format!("{topic}/0"), "1");
    store_offset(cluster, &module, &format!("{topic}/007"), "1");
    store_offset(cluster, &module, "a b/0", "1");
    store_offset(cluster, &module, &format!("{}/0", "x".repeat(300)), "1");
    let mut monitor = Kmonitor::start(&config(cluster).set("base.poll_interval_ms", 1_000));
    wait_for(&monitor, &module, &json!({"0": 3}));
    monitor.wait_until_ready();
    let polls = || {
        let text = monitor.get("/metrics").text();
        let counts = text.lines().filter(|line| line.starts_with("kmonitor_polls_total"));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    let (before, began) = (polls(), Instant::now());
    wait_until(DEADLINE, "five polls", || before + 5.0 <= polls());
    assert!(Duration::from_secs(4) <= began.elapsed(), "polls follow each other in {:?}", began.elapsed() / 5);
    // The three lines are in both files of the log.
    assert_eq!(monitor.daemon.log().matches("is skipped").count(), 6, "each is logged once");
}

#[test]
fn a_module_that_changed_its_topic_is_not_late_for_ever() {
    let cluster = cluster();
    let (first, second) = (cluster.new_topic("first", 1), cluster.new_topic("second", 1));
    let (module, fleet) = (unique("changed"), Fleet::start(1, |_| Reply::ok()));
    let of = |topic: &str| configs::module(topic, &fleet.addresses());
    let mut member = Member::start(cluster, &module, "a", of(&first));
    produce(cluster, &first, 0, 3);
    wait_until(DEADLINE, "all is stored", || cluster.stored_offsets_sum(&module, &first, 1) == 3);
    member.daemon.stop(DEADLINE);
    let _member = Member::start(cluster, &module, "a", of(&second));
    let monitor = Kmonitor::start(&config(cluster).set("base.left_behind_after_ms", 3_000));
    produce(cluster, &second, 0, 5);
    wait_until(DEADLINE, "all is stored", || cluster.stored_offsets_sum(&module, &second, 1) == 5);
    produce(cluster, &first, 0, 1_000);
    wait_for(&monitor, &module, &json!({"0": 0}));
}

#[test]
fn markers_at_the_end_of_a_log_are_no_delay() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("markers", 1), unique("markers"));
    commit_messages(cluster, &topic, 5);
    let end = cluster.log_ends(&topic)[&0];
    assert!(5 < end, "a marker follows the messages");
    // A consumer that has read the messages, and never sees the marker.
    store_offset(cluster, &module, &format!("{topic}/0"), "5");
    let monitor = Kmonitor::start(&config(cluster).set("base.poll_interval_ms", 500));
    wait_for(&monitor, &module, &json!({"0": 0}));
    // Messages behind the marker are counted alone.
    produce(cluster, &topic, 0, 2);
    wait_for(&monitor, &module, &json!({"0": 2}));
    store_offset(cluster, &module, &format!("{topic}/0"), &(end + 2).to_string());
    wait_for(&monitor, &module, &json!({"0": 0}));
    // What nobody has read is a delay, whatever follows it.
    commit_messages(cluster, &topic, 3);
    let waiting = cluster.log_ends(&topic)[&0] - end - 2;
    wait_for(&monitor, &module, &json!({"0": waiting}));
}

#[test]
fn a_dead_pusher_is_seen_exactly() {
    let cluster = cluster();
    let topic = cluster.new_topic("dead", 1);
    let (module, fleet) = (unique("dead"), Fleet::start(1, |_| Reply::ok()));
    let config_of = configs::module(&topic, &fleet.addresses());
    let mut transfer = Ktransfer::start_ready(cluster, &[(&module, config_of)]);
    let monitor = Kmonitor::start(&config(cluster));
    produce(cluster, &topic, 0, 10);
    wait_for(&monitor, &module, &json!({"0": 0}));
    transfer.daemon.kill9();
    produce(cluster, &topic, 0, 800);
    wait_for(&monitor, &module, &json!({"0": 800}));
    produce(cluster, &topic, 0, 400);
    wait_for(&monitor, &module, &json!({"0": 1200}));
}

#[test]
fn a_node_that_may_not_be_read_hides_no_other_and_no_module() {
    let cluster = cluster();
    let (topic, module, denied) = (cluster.new_topic("acl", 2), unique("acl"), unique("denied"));
    produce(cluster, &topic, 0, 2);
    produce(cluster, &topic, 1, 3);
    store_offset(cluster, &module, &format!("{topic}/1"), "0");
    let zk = cluster.zk();
    zk.create_denied(&format!("{}/consumers/{module}/offsets/{topic}/0", cluster.chroot), "0");
    assert!(zk.create(&format!("{}/consumers/{denied}/ids", cluster.chroot), ""));
    zk.create_denied(&format!("{}/consumers/{denied}/offsets", cluster.chroot), "");
    let mut monitor = Kmonitor::start(&config(cluster));
    wait_for(&monitor, &module, &json!({"1": 3}));
    wait_for(&monitor, &denied, &json!({}));
    assert_eq!(monitor.get(&format!("/delay?module={denied}")).status, 200);
    monitor.wait_until_ready();
}
