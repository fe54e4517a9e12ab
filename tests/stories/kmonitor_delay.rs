//! kmonitor against a real ZooKeeper and a real Kafka: the delays are true, and stay true when parts are away.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, Daemon, Program, Victim, ZooKeeper, cluster, free_port, http, unique, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A kmonitor over clusters given by name, `host:port` of ZooKeeper and more lines of their sections.
struct Monitor {
    daemon: Daemon,
    port: u16,
    admin_port: u16,
}

impl Monitor {
    fn start(chroot: &str, clusters: &[(&str, &str, &str)]) -> Monitor {
        let (port, admin_port) = (free_port(), free_port());
        let names: Vec<&str> = clusters.iter().map(|(name, ..)| *name).collect();
        let mut text = format!(
            "base:\n log_dir: ./log\n log_level: 8\n clusters: [{}]\n poll_interval_ms: 200\n\
             http_server:\n port: {port}\n admin_port: {admin_port}\n read_timeout_ms: 1000\n write_timeout_ms: 1000\n",
            names.join(", ")
        );
        for (name, zookeeper, more) in clusters {
            text += &format!(
                "{name}:\n chroot: {chroot}\n zk_connect_timeout_ms: 1000\n zk_session_timeout_ms: 3000\n\
                 \x20zk_hosts: ['{zookeeper}']\n{more}"
            );
        }
        let daemon = Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &text)]);
        daemon.wait_for_log("http listens on", SOON);
        Monitor { daemon, port, admin_port }
    }

    fn get(&self, target: &str) -> http::Response {
        http::get(&format!("http://127.0.0.1:{}{target}", self.port)).expect("kmonitor answers")
    }

    /// The delays of one module, `{"0":12}`; null where the module is not known.
    fn module(&self, cluster: &str, module: &str) -> Value {
        self.get("/delay").json()[cluster][module].clone()
    }

    #[track_caller]
    fn wait_for(&self, cluster: &str, module: &str, expected: &Value) {
        let mut seen = Value::Null;
        let what = format!("{module} of {cluster} at {expected}");
        wait_until(SOON, &what, || {
            seen = self.module(cluster, module);
            seen == *expected
        });
    }
}

fn store(cluster: &Cluster, module: &str, topic: &str, partition: i32, text: &str) {
    let path = format!("{}/consumers/{module}/offsets/{topic}/{partition}", cluster.chroot);
    let zk = cluster.zk();
    if !zk.create(&path, text) {
        zk.write(&path, text);
    }
}

fn forget(cluster: &Cluster, module: &str, topic: &str, partitions: i32) {
    let (zk, group) = (cluster.zk(), format!("{}/consumers/{module}", cluster.chroot));
    for partition in 0..partitions {
        zk.delete(&format!("{group}/offsets/{topic}/{partition}"));
    }
    for path in [format!("{group}/offsets/{topic}"), format!("{group}/offsets"), group] {
        assert!(zk.delete(&path), "{path}");
    }
}

fn put(cluster: &Cluster, topic: &str, partition: i32, count: usize) {
    let messages = vec![(&b"k"[..], &b"v"[..]); count];
    cluster.produce(topic, partition, &messages);
}

#[test]
fn delays_are_newest_minus_stored_and_grow_while_nobody_pushes() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("delays", 3), unique("module"));
    put(cluster, &topic, 0, 12);
    put(cluster, &topic, 1, 5);
    store(cluster, &module, &topic, 0, "0");
    store(cluster, &module, &topic, 1, "5");
    store(cluster, &module, &topic, 2, "no number");
    let monitor = Monitor::start(cluster.chroot, &[("tc", &cluster.zookeeper, "")]);
    monitor.wait_for("tc", &module, &json!({"0": 12, "1": 0}));

    // Nothing is stored any more, as with a pusher that died: the delay grows with each message.
    for more in 1..=3_u64 {
        put(cluster, &topic, 0, 10);
        monitor.wait_for("tc", &module, &json!({"0": 12 + 10 * more, "1": 0}));
    }
    store(cluster, &module, &topic, 0, "40");
    store(cluster, &module, &topic, 2, "0");
    monitor.wait_for("tc", &module, &json!({"0": 2, "1": 0, "2": 0}));
    // Beyond the end, as after a topic was made anew: not negative.
    store(cluster, &module, &topic, 1, "500");
    store(cluster, &module, &topic, 0, "42");
    monitor.wait_for("tc", &module, &json!({"0": 0, "1": 0, "2": 0}));

    let zabbix = monitor.get(&format!("/delay?format=zabbix&cluster=tc&module={module}"));
    assert_eq!(zabbix.status, 200);
    let expected: String = (0..3).map(|partition| format!("- tc.{module}.{partition}.delay 0\n")).collect();
    assert_eq!(zabbix.text(), expected);
    assert_eq!(monitor.get("/delay?cluster=nobody").status, 404);
    assert_eq!(monitor.get("/delay?module=nobody").status, 404);

    let line = format!(r#"kmonitor_delay_messages{{cluster="tc",module="{module}",partition="0",topic="{topic}"}} 0"#);
    let metrics = monitor.get("/metrics").text();
    assert!(metrics.contains(&line), "{metrics}");
    let admin = http::get(&format!("http://127.0.0.1:{}/metrics", monitor.admin_port)).expect("it answers");
    assert!(admin.text().contains(&line), "{}", admin.text());
    assert_eq!(monitor.get("/healthz").status, 200);

    // The group is deleted: no ghost stays.
    forget(cluster, &module, &topic, 3);
    monitor.wait_for("tc", &module, &Value::Null);
    assert!(!monitor.get("/metrics").text().contains(&module));
    assert_eq!(monitor.get(&format!("/delay?module={module}")).status, 404);

    let mut daemon = monitor.daemon;
    daemon.end_well(SOON);
}

#[test]
fn topics_of_one_group_do_not_overwrite_each_other_and_a_deleted_topic_does_not_count() {
    let cluster = cluster();
    let (first, second) = (cluster.new_topic("first", 2), cluster.new_topic("second", 1));
    let module = unique("module");
    put(cluster, &first, 0, 3);
    put(cluster, &first, 1, 4);
    put(cluster, &second, 0, 20);
    store(cluster, &module, &first, 0, "0");
    store(cluster, &module, &first, 1, "0");
    store(cluster, &module, &second, 0, "0");
    store(cluster, &module, "never_existed", 0, "7");
    store(cluster, &module, &first, 9, "7");
    for engine in ["", " kafka_client: kafka-rust\n"] {
        let monitor = Monitor::start(cluster.chroot, &[("tc", &cluster.zookeeper, engine)]);
        monitor.wait_for("tc", &module, &json!({"0": 23, "1": 4}));
    }
}

#[test]
fn a_cluster_that_is_away_is_unknown_and_disturbs_nobody() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("isolated", 1), unique("module"));
    put(cluster, &topic, 0, 7);
    store(cluster, &module, &topic, 0, "0");
    let other = ZooKeeper::start();
    other.client().create(&format!("{}/consumers/away/offsets", cluster.chroot), "");
    let monitor = Monitor::start(cluster.chroot, &[("here", &cluster.zookeeper, ""), ("there", &other.address(), "")]);
    monitor.wait_for("here", &module, &json!({"0": 7}));
    monitor.wait_for("there", "away", &json!({}));
    wait_until(SOON, "all is ready", || monitor.get("/readyz").status == 200);

    for hurt in [Victim::kill9, Victim::stop_process] {
        hurt(&other);
        wait_until(SOON, "there is not ready", || monitor.get("/readyz").status == 503);
        let readyz = monitor.get("/readyz").json();
        assert!(readyz["reasons"]["cluster there"].is_string(), "{readyz}");
        assert!(readyz["reasons"]["cluster here"].is_null(), "{readyz}");
        // The other one goes on, and its numbers move.
        put(cluster, &topic, 0, 1);
        let grown = cluster.log_ends(&topic)[&0];
        monitor.wait_for("here", &module, &json!({"0": grown}));
        assert_eq!(monitor.get("/delay?cluster=there").json(), json!({"there": {}}));
        other.continue_process();
        other.restart();
        monitor.wait_for("there", "away", &json!({}));
        wait_until(SOON, "there is ready again", || monitor.get("/readyz").status == 200);
    }
}

#[test]
fn a_zookeeper_that_is_absent_at_the_start_is_waited_for() {
    let server = ZooKeeper::start();
    server.kill9();
    let monitor = Monitor::start("''", &[("late", &server.address(), "")]);
    monitor.daemon.wait_for_log("WARNING [poll@late] cluster late: ", SOON);
    let readyz = monitor.get("/readyz");
    assert_eq!(readyz.status, 503, "{}", readyz.text());
    assert_eq!(monitor.get("/healthz").status, 200);
    assert_eq!(monitor.get("/delay").json(), json!({"late": {}}));
    server.restart();
    server.client().create("/consumers/m/offsets", "");
    monitor.wait_for("late", "m", &json!({}));
    wait_until(SOON, "it is ready", || monitor.get("/readyz").status == 200);
    monitor.daemon.wait_for_log("cluster late: all is read again", SOON);
}

#[test]
fn a_broker_that_is_away_makes_delays_unknown_not_zero_and_not_frozen() {
    let cluster = Cluster::start(1);
    let (topic, module) = (cluster.new_topic("brokers", 1), unique("module"));
    put(&cluster, &topic, 0, 9);
    store(&cluster, &module, &topic, 0, "0");
    let monitor = Monitor::start(cluster.chroot, &[("tc", &cluster.zookeeper, "")]);
    monitor.wait_for("tc", &module, &json!({"0": 9}));
    cluster.kafka_servers[0].kill9();
    // The module is still known, its delay is not.
    monitor.wait_for("tc", &module, &json!({}));
    assert_eq!(monitor.get("/delay?format=zabbix").text(), "");
    assert_eq!(monitor.get("/readyz").status, 503);
    cluster.kafka_servers[0].restart();
    monitor.wait_for("tc", &module, &json!({"0": 9}));
}
