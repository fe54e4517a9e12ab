//! kmonitor: no alarm, and no number, without proof.
//!
//! `IDLE_SECONDS` is the length of the story of idle topics (default 20), in which ten messages come in: with 600 it is
//! one a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::transactions::start_transactions;
use crate::harness::{
    Cluster, ConfigFile, Kmonitor, Kproxy, Ktransfer, Member, cluster, configs, group_wire, kafka_tools, poll, unique,
    wait_until,
};

const DEADLINE: Duration = Duration::from_secs(90);

/// A configuration for one cluster, named `tc`, which is polled every half second, with limits of a few seconds.
fn config(cluster: &Cluster) -> ConfigFile {
    let config = configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("base.log_level", 8)
        .set("base.poll_interval_ms", 500)
        .set("tc.zk_session_timeout_ms", 3_000);
    ["stopped_after_ms", "unowned_after_ms", "stalled_after_ms"]
        .iter()
        .fold(config, |config, key| config.set(&format!("base.verdicts.{key}"), 4_000))
}

fn produce(cluster: &Cluster, topic: &str, count: usize) {
    cluster.produce(topic, 0, &vec![(&b"k"[..], &b"v"[..]); count]);
}

/// Returns the module in `/v1/delay`, with all partitions; null if it is not listed.
fn module(monitor: &Kmonitor, module: &str) -> Value {
    let answer = monitor.v1(&format!("cluster=tc&module={module}&partitions=all"));
    answer["clusters"][0]["modules"][0].clone()
}

/// Waits until the module has the reason; fails if it gets a verdict that is not in `allowed`.
#[track_caller]
fn wait_for_reason(monitor: &Kmonitor, name: &str, code: &str, allowed: &[&str]) -> Value {
    wait_until(DEADLINE, &format!("the reason {code}"), || {
        let module = module(monitor, name);
        if let Some(verdict) = module["verdict"].as_str() {
            assert!(allowed.contains(&verdict), "{module:#}");
        }
        (module["reason_code"] == code).then_some(module)
    })
}

#[test]
fn idle_topics_are_never_anything_but_ok() {
    let seconds = std::env::var("IDLE_SECONDS").map_or(20, |text| text.parse().expect("IDLE_SECONDS is a number"));
    let (length, cluster) = (Duration::from_secs(seconds), cluster());
    let names = ["pushed", "group", "away"].map(|kind| unique(&format!("idle_{kind}")));
    let topics = ["pushed", "group", "away"].map(|kind| cluster.new_topic(&format!("idle_{kind}"), 1));
    // One is pushed by ktransfer, one consumed by a group in Kafka, and one by nobody: nothing comes in there.
    let fleet = Fleet::start(1, |_| Reply::ok());
    let _member = Member::start(cluster, &names[0], "a", configs::module(&topics[0], &fleet.addresses()));
    let _consumer = kafka_tools::start_consumer(&cluster.brokers, &names[1], &topics[1]);
    assert!(cluster.zk().create(&format!("{}/consumers/{}/offsets/{}/0", cluster.chroot, names[2], topics[2]), "0"));
    topics[..2].iter().for_each(|topic| produce(cluster, topic, 1));
    // With the limits and the interval that kmonitor has by default.
    let file = || {
        configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
            .set("tc.broker_hosts", cluster.broker_list())
            .set("tc.groups", ["idle_*"])
    };
    let is_known =
        |monitor: &Kmonitor| names.iter().all(|name| module(monitor, name)["reason_code"] == "nothing_waits");
    let mut monitor = Kmonitor::start(&file());
    wait_until(DEADLINE, "all modules are known", || is_known(&monitor));
    let (began, mut sent, mut is_restarted, mut answers) = (Instant::now(), 1, false, 0);
    let odd = poll(length, || {
        if length * sent / 10 <= began.elapsed() {
            topics[..2].iter().for_each(|topic| produce(cluster, topic, 1));
            sent += 1;
        }
        if length / 2 <= began.elapsed() && !is_restarted {
            (monitor, is_restarted) = (Kmonitor::start(&file()), true);
        }
        let modules = names.iter().map(|name| module(&monitor, name));
        answers += 1;
        // A kmonitor that has just started lists only what it has read.
        modules.into_iter().find(|module| !module.is_null() && module["verdict"] != "OK")
    });
    assert_eq!(odd, None, "after {:?}", began.elapsed());
    wait_until(DEADLINE, "nothing waits", || is_known(&monitor));
    eprintln!("{answers} answers in {length:?}, {sent} messages in each of two topics, one restart: nothing but OK");
}

#[test]
fn messages_of_a_transaction_that_stays_open_are_not_stalled() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("open_transaction", 1), unique("open_transaction"));
    let fleet = Fleet::start(1, |_| Reply::ok());
    let _member = Member::start(cluster, &name, "a", configs::module(&topic, &fleet.addresses()));
    let monitor = Kmonitor::start(&config(cluster));
    produce(cluster, &topic, 5);
    wait_until(DEADLINE, "all is stored", || cluster.stored_offset(&name, &topic, 0) == Some(5));
    // Its producer dies; the broker aborts the transaction after 14 s.
    let mut producer = start_transactions(cluster, &topic, 1_000, 50, 600_000, 14_000);
    wait_until(DEADLINE, "messages are in the transaction", || 20 < cluster.log_ends(&topic)[&0]);
    producer.kill9();
    let waiting = wait_for_reason(&monitor, &name, "waiting", &["OK"]);
    let reason = waiting["reason"].as_str().unwrap();
    assert!(reason.ends_with("; all of them wait for a transaction to end"), "{reason}");
    wait_until(DEADLINE, "they are a delay", || module(&monitor, &name)["delay"].as_u64() >= Some(15));
    // It lasts three times as long as the time after which it would be STALLED; then nothing can be delivered.
    wait_until(DEADLINE, "nothing waits", || {
        let module = module(&monitor, &name);
        assert_eq!(module["verdict"], "OK", "{module:#}");
        module["delay"] == 0
    });
    assert_eq!(fleet.n_arrivals(), 5);
}

#[test]
fn a_live_group_in_kafka_that_stands_still_is_never_stopped() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("still_group", 1), unique("still_group"));
    let fails = Arc::new(AtomicBool::new(false));
    let fleet = Fleet::start_failing_while(&fails);
    let brokers: Vec<String> = cluster.broker_list().into_iter().map(str::to_owned).collect();
    let file =
        configs::module(&topic, &fleet.addresses()).set("max_retry_times", -1).set("fail_retry_interval_ms", 200);
    let mut ktransfer = Ktransfer::start(configs::ktransfer_without_zookeeper(&brokers), &[(&name, file)]);
    ktransfer.wait_until_ready();
    produce(cluster, &topic, 5);
    wait_until(DEADLINE, "all is committed", || {
        let committed = group_wire::committed(&cluster.brokers, &name, &topic, 1).ok()?;
        (committed.get(&0)?.0 == 5).then_some(())
    });
    let monitor =
        Kmonitor::start(&config(cluster).set("tc.broker_hosts", cluster.broker_list()).set("tc.groups", [&name]));
    wait_for_reason(&monitor, &name, "nothing_waits", &["OK"]);
    fails.store(true, Ordering::Relaxed);
    produce(cluster, &topic, 7);
    let stalled = wait_for_reason(&monitor, &name, "not_moving", &["OK", "STALLED"]);
    assert_eq!((&stalled["verdict"], &stalled["delay"]), (&Value::from("STALLED"), &Value::from(7)), "{stalled:#}");
    fails.store(false, Ordering::Relaxed);
    wait_for_reason(&monitor, &name, "nothing_waits", &["OK", "STALLED"]);
}

#[test]
fn an_offset_beyond_the_end_is_never_a_delay_of_0() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("beyond", 1), unique("beyond"));
    produce(cluster, &topic, 20);
    let path = format!("{}/consumers/{name}/offsets/{topic}/0", cluster.chroot);
    assert!(cluster.zk().create(&path, "20"), "{path}");
    // An engine without ids of topics; so are all brokers before 2.8.
    let monitor = Kmonitor::start(&config(cluster).set("tc.kafka_client", "kafka-rust"));
    wait_until(DEADLINE, "nothing waits", || monitor.delay("tc", &name) == serde_json::json!({"0": 0}));
    cluster.delete_topic(&topic);
    wait_until(DEADLINE, "the deletion is seen", || module(&monitor, &name)["reason_code"] != "nothing_waits");
    cluster.create_topic(&topic, 1);
    produce(cluster, &topic, 3);
    wait_until(DEADLINE, "all of the new topic is a delay", || {
        let delay = monitor.delay("tc", &name);
        assert_ne!(delay["0"], 0, "{delay}");
        delay["0"] == 3
    });
    let rewound = wait_for_reason(&monitor, &name, "recreated", &["OK", "UNKNOWN", "REWOUND"]);
    assert_eq!(rewound["verdict"], "REWOUND", "{rewound:#}");
}

#[test]
fn after_a_start_the_timestamps_of_messages_say_how_far_behind_a_module_is() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("dated", 1), unique("dated"));
    let mut kproxy = Kproxy::start_usual(cluster);
    let mut client = kproxy.connect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // One message a minute for the last half hour.
    for minutes in (0..30).rev() {
        let timestamp = (now - Duration::from_secs(60 * minutes)).as_millis();
        let path = format!("/commit?topic={topic}&key=k&acks=-1&timestamp={timestamp}");
        assert_eq!(client.post(&path, b"x").unwrap().status, 200);
    }
    assert!(cluster.zk().create(&format!("{}/consumers/{name}/offsets/{topic}/0", cluster.chroot), "10"));
    let monitor = Kmonitor::start(&config(cluster));
    let dated = wait_until(DEADLINE, "the age is known by timestamps", || {
        let partition = module(&monitor, &name)["partition"][0].clone();
        (partition["seconds_from"] == "timestamps").then_some(partition)
    });
    // The first waiting message is 19 minutes old.
    let seconds = dated["seconds_behind"].as_f64().unwrap();
    assert!((960.0..1_380.0).contains(&seconds), "{dated:#}");
    assert_eq!((&dated["seconds_at_least"], &dated["verdict"]), (&Value::from(false), &Value::from("OK")), "{dated:#}");
    kproxy.daemon.stop(DEADLINE);
}
