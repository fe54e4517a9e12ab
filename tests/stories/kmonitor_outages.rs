//! kmonitor: what is known stays known, with its age, while servers restart, stall or die.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::metrics::Metrics;
use crate::harness::{
    Cluster, ConfigFile, Kmonitor, Link, SetOnDrop, cluster, configs, kafka_wire, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns a configuration for a cluster, named `tc`, with this ZooKeeper.
fn config(cluster: &Cluster, zookeeper: &str) -> ConfigFile {
    configs::kmonitor_for(cluster.chroot, &[("tc", zookeeper)])
        .set("base.log_level", 8)
        .set("base.poll_interval_ms", 1_000)
        .set("http_server.read_timeout_ms", 1000)
        .set("http_server.write_timeout_ms", 1000)
        .set("tc.zk_session_timeout_ms", 3_000)
}

fn store_offset(cluster: &Cluster, module: &str, topic: &str, partition: i32, offset: i64) {
    let path = format!("{}/consumers/{module}/offsets/{topic}/{partition}", cluster.chroot);
    assert!(cluster.zk().create(&path, &offset.to_string()), "{path}");
}

fn produce(cluster: &Cluster, topic: &str, partition: i32, count: usize) {
    cluster.produce(topic, partition, &vec![(&b"k"[..], &b"v"[..]); count]);
}

/// Polls the delays of a module every 100 ms while `work` runs; `check` sees each answer.
fn while_polled<T>(monitor: &Kmonitor, module: &str, check: impl Fn(&Value) + Sync, work: impl FnOnce() -> T) -> T {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                check(&monitor.delay("tc", module));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let done = SetOnDrop(&is_done);
        let result = work();
        drop(done);
        poller.join().expect("every answer is right");
        result
    })
}

#[test]
fn delays_stay_known_through_restarts_of_the_broker_and_of_zookeeper() {
    let cluster = Cluster::start(1);
    let (topic, module) = (cluster.new_topic("restarts", 1), unique("restarts"));
    produce(&cluster, &topic, 0, 10);
    store_offset(&cluster, &module, &topic, 0, 10);
    let settings = config(&cluster, &cluster.zookeeper).set("base.fresh_for_ms", 120_000);
    let monitor = Kmonitor::start(&settings);
    monitor.wait_for_delay("tc", &module, &json!({"0": 0}), DEADLINE);
    produce(&cluster, &topic, 0, 800);
    monitor.wait_for_delay("tc", &module, &json!({"0": 800}), DEADLINE);
    let is_known = |delays: &Value| {
        let delay = delays["0"].as_u64();
        assert!(delay == Some(800) || delay == Some(1_200), "{delays}");
    };
    while_polled(&monitor, &module, is_known, || {
        cluster.zookeeper_server.restart();
        cluster.kafka_servers[0].restart();
        wait_until(DEADLINE, "the partition has a leader again", || {
            kafka_wire::log_ends(&cluster.brokers, &topic).is_ok_and(|ends| ends == BTreeMap::from([(0, 810)]))
        });
        produce(&cluster, &topic, 0, 400);
        monitor.wait_for_delay("tc", &module, &json!({"0": 1200}), DEADLINE);
    });
}

#[test]
fn a_zookeeper_that_stalls_again_and_again_empties_no_answer() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("stalls", 1), unique("stalls"));
    produce(cluster, &topic, 0, 7);
    store_offset(cluster, &module, &topic, 0, 0);
    let link = Link::to(&cluster.zookeeper);
    let monitor = Kmonitor::start(&config(cluster, &link.address()));
    monitor.wait_for_delay("tc", &module, &json!({"0": 7}), DEADLINE);
    let is_known = |delays: &Value| assert_eq!(*delays, json!({"0": 7}));
    let polls = "kmonitor_polls_total{cluster=\"tc\",outcome=\"complete\"}";
    let n_complete = || Metrics::scrape(&monitor.address).value(polls).unwrap_or_default();
    while_polled(&monitor, &module, is_known, || {
        for _ in 0..3 {
            // The length of the stall: nearly the session timeout.
            link.stall();
            std::thread::sleep(Duration::from_millis(2_500));
            link.restore();
            let before = n_complete();
            wait_until(DEADLINE, "two more polls are complete", || n_complete() >= before + 2);
        }
    });
    assert_eq!(monitor.get("/readyz").status, 200);
}

#[test]
fn a_broker_of_three_that_dies_costs_its_partitions_only_and_not_for_long() {
    let cluster = Cluster::start(3);
    let (topic, module) = (unique("failover"), unique("failover"));
    cluster.create_replicated_topic(&topic, 12, 3);
    cluster.wait_for_in_sync(&topic, 3);
    for partition in 0..12 {
        produce(&cluster, &topic, partition, 5);
        store_offset(&cluster, &module, &topic, partition, 0);
    }
    let settings = config(&cluster, &cluster.zookeeper)
        .set("tc.broker_hosts", cluster.broker_list())
        .set("base.fresh_for_ms", 3_000);
    let monitor = Kmonitor::start(&settings);
    let all: Value =
        (0..12).map(|partition| (partition.to_string(), json!(5))).collect::<serde_json::Map<_, _>>().into();
    monitor.wait_for_delay("tc", &module, &all, DEADLINE);
    let leaders = cluster.leaders(&topic).unwrap();
    let dead = 2;
    let is_right = |delays: &Value| {
        for partition in 0..12 {
            let delay = &delays[partition.to_string()];
            let may_be_unknown = leaders[&partition] == dead;
            assert!(*delay == json!(5) || (delay.is_null() && may_be_unknown), "{partition}: {delays}");
        }
    };
    let died = Instant::now();
    while_polled(&monitor, &module, is_right, || {
        cluster.kafka_servers[2].kill9();
        wait_until(DEADLINE, "the broker has no partition any more", || {
            cluster.leaders(&topic).is_some_and(|leaders| leaders.values().all(|leader| *leader != dead))
        });
        monitor.wait_for_delay("tc", &module, &all, DEADLINE);
    });
    assert!(died.elapsed() < Duration::from_secs(40), "all is known again after {:?}", died.elapsed());
}

#[test]
fn a_silent_broker_costs_its_own_partitions_only() {
    let cluster = Cluster::start(2);
    let (topic, module) = (cluster.new_topic("silent", 20), unique("silent"));
    for partition in 0..20 {
        store_offset(&cluster, &module, &topic, partition, 0);
    }
    let settings = config(&cluster, &cluster.zookeeper)
        .set("tc.broker_hosts", cluster.broker_list())
        .set("base.fresh_for_ms", 4_000);
    let monitor = Kmonitor::start(&settings);
    wait_until(DEADLINE, "all delays are known", || {
        monitor.delay("tc", &module).as_object().is_some_and(|delays| delays.len() == 20)
    });
    let leaders = cluster.leaders(&topic).unwrap();
    let healthy = |partition: &i32| leaders[partition] == 0;
    cluster.kafka_servers[1].freeze();
    for partition in (0..20).filter(healthy) {
        produce(&cluster, &topic, partition, 3);
    }
    let expected: serde_json::Map<String, Value> =
        (0..20).filter(healthy).map(|partition| (partition.to_string(), json!(3))).collect();
    monitor.wait_for_delay("tc", &module, &Value::from(expected), DEADLINE);
    assert_eq!(monitor.get("/readyz").status, 200, "brokers respond");
    cluster.kafka_servers[1].unfreeze();
    wait_until(DEADLINE, "all delays are known again", || {
        monitor.delay("tc", &module).as_object().is_some_and(|delays| delays.len() == 20)
    });
}

#[test]
fn a_broker_that_does_not_know_its_topics_yet_makes_no_topic_gone() {
    let cluster = Cluster::start(1);
    let (first, second, module) = (cluster.new_topic("first", 1), cluster.new_topic("second", 1), unique("module"));
    produce(&cluster, &first, 0, 100);
    produce(&cluster, &second, 0, 5);
    store_offset(&cluster, &module, &first, 0, 0);
    store_offset(&cluster, &module, &second, 0, 0);
    let monitor = Kmonitor::start(&config(&cluster, &cluster.zookeeper).set("base.poll_interval_ms", 100));
    monitor.wait_for_delay("tc", &module, &json!({"0": 105}), DEADLINE);
    // One topic without the other would be a number that is too low.
    let is_right = |delays: &Value| assert!(*delays == json!({"0": 105}) || *delays == json!({}), "{delays}");
    while_polled(&monitor, &module, is_right, || {
        for _ in 0..3 {
            cluster.kafka_servers[0].restart();
            monitor.wait_for_delay("tc", &module, &json!({"0": 105}), DEADLINE);
        }
    });
}
