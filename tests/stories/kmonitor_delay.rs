//! kmonitor with a real ZooKeeper and a real Kafka: delays are correct, also while servers are down.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Cluster, ConfigFile, Kmonitor, ServerProcess, ZooKeeper, cluster, configs, free_port, http, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Returns a configuration for these clusters (name and `host:port` of ZooKeeper), which are polled every 200 ms.
fn config(chroot: &str, clusters: &[(&str, &str)]) -> ConfigFile {
    let file = configs::kmonitor_for(chroot, clusters)
        .set("base.log_level", 8)
        .set("base.poll_interval_ms", 200)
        .set("http_server.admin_port", free_port())
        .set("http_server.read_timeout_ms", 1000)
        .set("http_server.write_timeout_ms", 1000);
    clusters.iter().fold(file, |file, (name, _)| file.set(&format!("{name}.zk_session_timeout_ms"), 3000))
}

fn wait_for(monitor: &Kmonitor, cluster: &str, module: &str, expected: &Value) {
    monitor.wait_for_delay(cluster, module, expected, DEADLINE);
}

fn wait_for_readiness(monitor: &Kmonitor, status: u16) {
    wait_until(DEADLINE, &format!("/readyz answers {status}"), || monitor.get("/readyz").status == status);
}

fn store_offset(cluster: &Cluster, module: &str, topic: &str, partition: i32, text: &str) {
    let path = format!("{}/consumers/{module}/offsets/{topic}/{partition}", cluster.chroot);
    let zk = cluster.zk();
    if !zk.create(&path, text) {
        zk.write(&path, text);
    }
}

fn delete_group(cluster: &Cluster, module: &str, topic: &str, partitions: i32) {
    let (zk, group) = (cluster.zk(), format!("{}/consumers/{module}", cluster.chroot));
    for partition in 0..partitions {
        zk.delete(&format!("{group}/offsets/{topic}/{partition}"));
    }
    for path in [format!("{group}/offsets/{topic}"), format!("{group}/offsets"), group] {
        assert!(zk.delete(&path), "{path}");
    }
}

fn produce(cluster: &Cluster, topic: &str, partition: i32, count: usize) {
    let messages = vec![(&b"k"[..], &b"v"[..]); count];
    cluster.produce(topic, partition, &messages);
}

#[test]
fn a_delay_is_the_log_end_minus_the_stored_offset_and_never_negative() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("delays", 3), unique("module"));
    produce(cluster, &topic, 0, 12);
    produce(cluster, &topic, 1, 5);
    store_offset(cluster, &module, &topic, 0, "0");
    store_offset(cluster, &module, &topic, 1, "5");
    store_offset(cluster, &module, &topic, 2, "no number");
    let config = config(cluster.chroot, &[("tc", &cluster.zookeeper)]);
    let admin = config.address("http_server.admin_port").expect("it is set");
    let mut monitor = Kmonitor::start(&config);
    wait_for(&monitor, "tc", &module, &json!({"0": 12, "1": 0}));

    // While no further offset is stored, as after a crash of ktransfer, the delay grows with each message.
    for more in 1..=3_u64 {
        produce(cluster, &topic, 0, 10);
        wait_for(&monitor, "tc", &module, &json!({"0": 12 + 10 * more, "1": 0}));
    }
    store_offset(cluster, &module, &topic, 0, "40");
    store_offset(cluster, &module, &topic, 2, "0");
    wait_for(&monitor, "tc", &module, &json!({"0": 2, "1": 0, "2": 0}));
    // The stored offset 500 is beyond the log end, as after a topic was deleted and created again: all messages of the
    // topic wait.
    store_offset(cluster, &module, &topic, 1, "500");
    store_offset(cluster, &module, &topic, 0, "42");
    wait_for(&monitor, "tc", &module, &json!({"0": 0, "1": 5, "2": 0}));
    store_offset(cluster, &module, &topic, 1, "5");
    wait_for(&monitor, "tc", &module, &json!({"0": 0, "1": 0, "2": 0}));

    let zabbix = monitor.get(&format!("/delay?format=zabbix&cluster=tc&module={module}"));
    assert_eq!(zabbix.status, 200);
    let expected: String = (0..3).map(|partition| format!("- tc.{module}.{partition}.delay 0\n")).collect();
    assert_eq!(zabbix.text(), expected);
    assert_eq!(monitor.get("/delay?cluster=nobody").status, 404);
    assert_eq!(monitor.get("/delay?module=nobody").status, 404);

    let line = format!(r#"kmonitor_delay_messages{{cluster="tc",module="{module}",partition="0",topic="{topic}"}} 0"#);
    let metrics = monitor.get("/metrics").text();
    assert!(metrics.contains(&line), "{metrics}");
    let admin = http::get(&format!("http://{admin}/metrics")).expect("kmonitor answers");
    assert!(admin.text().contains(&line), "{}", admin.text());
    assert_eq!(monitor.get("/healthz").status, 200);

    // A deleted consumer group disappears from every answer.
    delete_group(cluster, &module, &topic, 3);
    wait_for(&monitor, "tc", &module, &Value::Null);
    assert!(!monitor.get("/metrics").text().contains(&module));
    assert_eq!(monitor.get(&format!("/delay?module={module}")).status, 404);

    monitor.daemon.stop(DEADLINE);
}

#[test]
fn delays_of_several_topics_are_added_and_a_deleted_topic_does_not_count() {
    let cluster = cluster();
    let (first, second) = (cluster.new_topic("first", 2), cluster.new_topic("second", 1));
    let module = unique("module");
    produce(cluster, &first, 0, 3);
    produce(cluster, &first, 1, 4);
    produce(cluster, &second, 0, 20);
    store_offset(cluster, &module, &first, 0, "0");
    store_offset(cluster, &module, &first, 1, "0");
    store_offset(cluster, &module, &second, 0, "0");
    store_offset(cluster, &module, "never_existed", 0, "7");
    store_offset(cluster, &module, &first, 9, "7");
    // It takes two answers, ten seconds apart, until a topic is known to be gone; both engines wait at once.
    let monitors = ["auto", "kafka-rust"].map(|engine| {
        let config = config(cluster.chroot, &[("tc", &cluster.zookeeper)]);
        Kmonitor::start(&config.set("tc.kafka_client", engine))
    });
    for monitor in monitors {
        wait_for(&monitor, "tc", &module, &json!({"0": 23, "1": 4}));
    }
}

#[test]
fn a_cluster_that_is_down_has_no_delays_and_does_not_affect_another() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("isolated", 1), unique("module"));
    produce(cluster, &topic, 0, 7);
    store_offset(cluster, &module, &topic, 0, "0");
    let other = ZooKeeper::start();
    other.client().create(&format!("{}/consumers/away/offsets", cluster.chroot), "");
    let clusters = [("here", &*cluster.zookeeper), ("there", &other.address())];
    let monitor = Kmonitor::start(&config(cluster.chroot, &clusters).set("base.fresh_for_ms", 2_000));
    wait_for(&monitor, "here", &module, &json!({"0": 7}));
    wait_for(&monitor, "there", "away", &json!({}));
    wait_for_readiness(&monitor, 200);

    for take_down in [ServerProcess::kill9, ServerProcess::freeze] {
        take_down(&other);
        wait_for_readiness(&monitor, 503);
        let readyz = monitor.get("/readyz").json();
        assert!(readyz["reasons"]["cluster there"].is_string(), "{readyz}");
        assert!(readyz["reasons"]["cluster here"].is_null(), "{readyz}");
        // The delays of the cluster `here` are still updated.
        produce(cluster, &topic, 0, 1);
        let grown = cluster.log_ends(&topic)[&0];
        wait_for(&monitor, "here", &module, &json!({"0": grown}));
        assert_eq!(monitor.get("/delay?cluster=there").json(), json!({"there": {}}));
        other.unfreeze();
        other.restart();
        wait_for(&monitor, "there", "away", &json!({}));
        wait_for_readiness(&monitor, 200);
    }
}

#[test]
fn a_zookeeper_that_is_down_at_the_start_is_retried() {
    let server = ZooKeeper::start();
    server.kill9();
    let monitor = Kmonitor::start(&config("", &[("late", &server.address())]));
    monitor.daemon.wait_for_log("WARNING [poll@late] cluster late: ", DEADLINE);
    let readyz = monitor.get("/readyz");
    assert_eq!(readyz.status, 503, "{}", readyz.text());
    assert_eq!(monitor.get("/healthz").status, 200);
    assert_eq!(monitor.get("/delay").json(), json!({"late": {}}));
    server.restart();
    server.client().create("/consumers/m/offsets", "");
    wait_for(&monitor, "late", "m", &json!({}));
    wait_for_readiness(&monitor, 200);
    monitor.daemon.wait_for_log("cluster late: all offsets can be read again", DEADLINE);
}

#[test]
fn without_a_broker_there_is_no_delay_instead_of_zero_or_an_old_one() {
    let cluster = Cluster::start(1);
    let (topic, module) = (cluster.new_topic("brokers", 1), unique("module"));
    produce(&cluster, &topic, 0, 9);
    store_offset(&cluster, &module, &topic, 0, "0");
    let settings = config(cluster.chroot, &[("tc", &cluster.zookeeper)]).set("base.fresh_for_ms", 2_000);
    let monitor = Kmonitor::start(&settings);
    wait_for(&monitor, "tc", &module, &json!({"0": 9}));
    cluster.kafka_servers[0].kill9();
    // kmonitor still lists the module, but without delays.
    wait_for(&monitor, "tc", &module, &json!({}));
    assert_eq!(monitor.get("/delay?format=zabbix").text(), "");
    assert_eq!(monitor.get("/readyz").status, 503);
    cluster.kafka_servers[0].restart();
    wait_for(&monitor, "tc", &module, &json!({"0": 9}));
}
