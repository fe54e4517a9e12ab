//! kmonitor: stored offsets in Kafka, in clusters with and without ZooKeeper, and a module that moves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::engine::append_some;
use crate::harness::{
    ConfigFile, Kafka, Kmonitor, SetOnDrop, cluster, configs, kafka_tools, kafka_wire, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

fn settings(file: ConfigFile) -> ConfigFile {
    file.set("base.log_level", 8)
        .set("base.poll_interval_ms", 500)
        .set("http_server.read_timeout_ms", 1000)
        .set("http_server.write_timeout_ms", 1000)
}

#[test]
fn one_kmonitor_has_a_cluster_with_zookeeper_and_one_without() {
    let old = cluster();
    let (topic, module) = (old.new_topic("sources", 1), unique("sources"));
    old.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 5]);
    assert!(old.zk().create(&format!("{}/consumers/{module}/offsets/{topic}/0", old.chroot), "2"));
    let new = Kafka::start_kraft();
    kafka_wire::create_topic(&new.address(), "t", 1, 1);
    append_some(&new.address(), "t", 100);
    let mut consumer = kafka_tools::start_consumer(&new.address(), "push-t", "t");
    let file = configs::kmonitor_for(old.chroot, &[("old", &old.zookeeper), ("new", "127.0.0.1:1")])
        .remove("new.zk_hosts")
        .set("new.broker_hosts", [new.address()])
        .set("new.groups", ["push-*"]);
    let mut monitor = Kmonitor::start(&settings(file).set("base.fresh_for_ms", 2_000));
    monitor.wait_for_delay("old", &module, &json!({"0": 3}), DEADLINE);
    monitor.wait_for_delay("new", "push-t", &json!({"0": 0}), DEADLINE);
    monitor.wait_until_ready();
    // The consumer dies: the delay grows, exactly.
    consumer.kill9();
    append_some(&new.address(), "t", 40);
    monitor.wait_for_delay("new", "push-t", &json!({"0": 40}), DEADLINE);
    append_some(&new.address(), "t", 2);
    monitor.wait_for_delay("new", "push-t", &json!({"0": 42}), DEADLINE);
    // A broker that is away makes its own cluster unready.
    new.kill9();
    wait_until(DEADLINE, "the cluster without ZooKeeper is not ready", || {
        let readyz = monitor.get("/readyz").json();
        readyz["reasons"]["cluster new"].is_string() && readyz["reasons"]["cluster old"].is_null()
    });
    monitor.wait_for_delay("old", &module, &json!({"0": 3}), DEADLINE);
    new.restart();
    monitor.wait_for_delay("new", "push-t", &json!({"0": 42}), DEADLINE);
    monitor.wait_until_ready();
}

#[test]
fn a_module_that_moves_from_zookeeper_to_kafka_shows_one_delay_throughout() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("moves", 1), unique("moves"));
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 10]);
    let group = format!("{}/consumers/{module}", cluster.chroot);
    assert!(cluster.zk().create(&format!("{group}/offsets/{topic}/0"), "0"));
    assert!(cluster.zk().create(&format!("{group}/ids"), ""));
    assert!(cluster.zk().create(&format!("{group}/owners/{topic}"), ""));
    // A pusher with its offsets in ZooKeeper.
    let pusher = cluster.zk();
    assert!(pusher.create_ephemeral(&format!("{group}/ids/one"), "{}"));
    assert!(pusher.create_ephemeral(&format!("{group}/owners/{topic}/0"), "one"));
    let file = configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("tc.broker_hosts", cluster.broker_list())
        .set("tc.groups", [&module]);
    let monitor = Kmonitor::start(&settings(file));
    monitor.wait_for_delay("tc", &module, &json!({"0": 10}), DEADLINE);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let delays: Value = monitor.delay("tc", &module);
                let delay = delays["0"].as_u64();
                // With both counted it would be 20, or stay at 10 in the end.
                assert!(delay.is_some_and(|delay| delay <= 10), "{delays}");
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let done = SetOnDrop(&is_done);
        drop(pusher);
        let _consumer = kafka_tools::start_consumer(&cluster.brokers, &module, &topic);
        monitor.wait_for_delay("tc", &module, &json!({"0": 0}), DEADLINE);
        drop(done);
        poller.join().expect("every answer is right");
    });
    assert_eq!(cluster.stored_offset(&module, &topic, 0), Some(0), "ZooKeeper has what it had");
    // A kmonitor that starts now chooses as well.
    let file = configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("tc.broker_hosts", cluster.broker_list())
        .set("tc.groups", [&module]);
    let late = Kmonitor::start(&settings(file));
    late.wait_for_delay("tc", &module, &json!({"0": 0}), DEADLINE);
}

#[test]
fn a_kafka_group_that_never_committed_is_shown_and_judged() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("never", 2), unique("never"));
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 7]);
    let mut consumer = kafka_tools::start_consumer_without_commits(&cluster.brokers, &module, &topic);
    let file = configs::kmonitor_for("", &[("tc", "127.0.0.1:1")])
        .remove("tc.zk_hosts")
        .set("tc.broker_hosts", cluster.broker_list())
        .set("tc.groups", [&module])
        .set("base.verdicts.stalled_after_ms", 1000)
        .set("base.verdicts.stopped_after_ms", 1000);
    let monitor = Kmonitor::start(&settings(file));
    // It counts from where it would begin: nothing says that anything was consumed.
    monitor.wait_for_delay("tc", &module, &json!({"0": 7, "1": 0}), DEADLINE);
    let wait_for_verdict = |verdict: &str| {
        wait_until(DEADLINE, &format!("the module is {verdict}"), || {
            let found = monitor.v1(&format!("module={module}"))["clusters"][0]["modules"][0].clone();
            (found["verdict"] == verdict).then_some(found)
        })
    };
    let found = wait_for_verdict("STALLED");
    assert_eq!((&found["topic"], &found["reason_code"]), (&json!(topic), &json!("never_stored")), "{found}");
    assert_eq!(found["members"], 1, "{found}");
    consumer.kill9();
    wait_for_verdict("STOPPED");
    monitor.wait_for_delay("tc", &module, &json!({"0": 7, "1": 0}), DEADLINE);
}
