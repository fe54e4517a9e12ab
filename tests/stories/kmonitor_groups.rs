//! kmonitor: every group is shown as what is known of it, and neither a rebalance nor a pause is an alarm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::fake_zookeeper::{FakeZooKeeper, Nodes};
use crate::harness::fleet::Fleet;
use crate::harness::operator::{Operator, Operators};
use crate::harness::{
    Cluster, ConfigFile, Kmonitor, Ktransfer, cluster, configs, group_wire, kafka_tools, kraft_cluster, unique,
    wait_until,
};

const DEADLINE: Duration = Duration::from_secs(90);
/// How long a member is in its group that does not finish a rebalance.
const REBALANCE: Duration = Duration::from_secs(12);

/// A configuration for the cluster, named `tc`, which is polled every half second, with limits of a few seconds.
fn config(cluster: &Cluster) -> ConfigFile {
    let config = configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("base.log_level", 8)
        .set("base.poll_interval_ms", 500)
        .set("tc.zk_session_timeout_ms", 3_000)
        .set("tc.broker_hosts", cluster.broker_list());
    ["stopped_after_ms", "unowned_after_ms", "stalled_after_ms"]
        .iter()
        .fold(config, |config, key| config.set(&format!("base.verdicts.{key}"), 4_000))
}

/// Returns the topics of a module in `/v1/delay`, with all partitions.
fn topics(monitor: &Kmonitor, module: &str) -> Vec<Value> {
    let answer = monitor.v1(&format!("module={module}&partitions=all&order=name"));
    answer["clusters"][0]["modules"].as_array().expect("a list").clone()
}

#[test]
fn a_module_that_always_fails_is_shown_with_its_reason_from_the_begin() {
    const POISONED: usize = 2;
    let nodes = Nodes { modules: 5, partitions: 3, brokers: Vec::new(), has_multi_read: true };
    let zookeeper = FakeZooKeeper::start_poisoned(nodes, Some(POISONED));
    let file = configs::kmonitor_for("", &[("tc", &zookeeper.address)])
        .set("base.poll_interval_ms", 200)
        .set("tc.broker_hosts", [cluster().broker_list()[0]]);
    let monitor = Kmonitor::start(&file);
    let modules = || {
        let answer = monitor.v1("order=name&partitions=all");
        answer["clusters"][0]["modules"].as_array().expect("a list").clone()
    };
    wait_until(DEADLINE, "all modules are listed, and all others are read", || {
        let modules = modules();
        let n_read = modules.iter().filter(|module| module["partitions"] == 3).count();
        (modules.len() == 5 && n_read == 4).then_some(())
    });
    // In the cycles in which nothing fails because it is left out, too.
    let is_shown = || {
        let modules = modules();
        let failing = modules.iter().find(|module| module["module"] == "module_2").expect("it is listed");
        assert_eq!((&failing["verdict"], &failing["reason_code"]), (&json!("UNKNOWN"), &json!("source_silent")));
        assert_eq!((&failing["delay"], &failing["delay_is_partial"]), (&json!(null), &json!(true)), "{failing:#}");
        failing["reason"].as_str().is_some_and(|reason| reason.contains("could not be read for"))
    };
    wait_until(DEADLINE, "the cluster has no trouble", || {
        assert!(is_shown());
        monitor.v1("")["clusters"][0]["trouble"].is_null()
    });
    assert!(is_shown());
    assert_eq!(monitor.get("/delay?module=module_2").status, 200, "it is no unknown module");
    assert!(monitor.get("/metrics").text().lines().any(|line| {
        line.starts_with("kmonitor_module_verdict{") && line.contains("module=\"module_2\"") && line.ends_with(" 2")
    }));
}

#[test]
fn a_group_that_rebalances_and_never_committed_is_unknown_and_not_ok() {
    let cluster = cluster();
    let (topic, group) = (cluster.new_topic("rebalance", 1), unique("rebalance"));
    cluster.produce(&topic, 0, &[(&b"k"[..], &b"v"[..]); 7]);
    // A broker that has just started coordinates no group yet.
    wait_until(DEADLINE, "a member joins", || {
        group_wire::join_and_be_silent(&cluster.brokers, &group, &topic, REBALANCE).is_ok()
    });
    let monitor = Kmonitor::start(&config(cluster).set("tc.groups", [&group]));
    let is_never_ok = || {
        let topics = topics(&monitor, &group);
        topics.iter().for_each(|topic| assert_eq!(topic["verdict"], "UNKNOWN", "{topic:#}"));
        topics
    };
    wait_until(DEADLINE, "its members are read during the rebalance", || {
        let topics = is_never_ok();
        topics.first().is_some_and(|topic| topic["members"] == 1)
    });
    assert!(group_wire::members(&cluster.brokers, &group, &topic).is_err(), "the group still rebalances");
    // A consumer ends the rebalance, when the session of the silent member has ended.
    let _consumer = kafka_tools::start_consumer_without_commits(&cluster.brokers, &group, &topic);
    let found = wait_until(DEADLINE, "its topic is known", || {
        let found = topics(&monitor, &group).pop()?;
        (found["topic"] == topic.as_str() && found["delay"].is_u64()).then_some(found)
    });
    assert_eq!((&found["delay"], &found["partitions"]), (&json!(7), &json!(1)), "{found:#}");
}

#[test]
fn a_topic_that_was_never_committed_is_shown_beside_one_that_was() {
    let cluster = cluster();
    let (committed, owned, group) =
        (cluster.new_topic("beside_a", 1), cluster.new_topic("beside_b", 1), unique("beside"));
    cluster.produce(&committed, 0, &[(&b"k"[..], &b"v"[..]); 3]);
    cluster.produce(&owned, 0, &[(&b"k"[..], &b"v"[..]); 5]);
    wait_until(DEADLINE, "the offset is committed", || {
        group_wire::commit(&cluster.brokers, &group, &committed, 0, 3).is_ok()
    });
    let _consumer = kafka_tools::start_consumer_without_commits(&cluster.brokers, &group, &owned);
    let monitor = Kmonitor::start(&config(cluster).set("tc.groups", [&group]));
    wait_until(DEADLINE, "both topics are known", || {
        let topics = topics(&monitor, &group);
        let delay = |name: &str| topics.iter().find(|topic| topic["topic"] == name).map(|topic| topic["delay"].clone());
        assert_ne!(delay(&owned), Some(json!(null)), "it is known in the first view that has it");
        delay(&committed) == Some(json!(0)) && delay(&owned) == Some(json!(5))
    });
    monitor.wait_for_delay("tc", &group, &json!({"0": 5}), DEADLINE);
}

#[test]
fn the_members_of_a_group_of_the_new_protocol_are_known() {
    let cluster = kraft_cluster();
    let (topic, group) = (cluster.new_topic("new_protocol", 2), unique("new_protocol"));
    cluster.produce(&topic, &[(0, "k")], 5);
    let _consumer = kafka_tools::start_new_consumer_without_commits(&cluster.brokers, &group, &topic);
    let file = configs::kmonitor_for("", &[("tc", "127.0.0.1:1")])
        .remove("tc.zk_hosts")
        .set("base.poll_interval_ms", 500)
        .set("tc.broker_hosts", cluster.broker_list())
        .set("tc.groups", [&group]);
    let monitor = Kmonitor::start(&file);
    let found = wait_until(DEADLINE, "its topic is known", || {
        let found = topics(&monitor, &group).pop()?;
        assert_ne!(found["verdict"], "STOPPED", "{found:#}");
        (found["topic"] == topic.as_str() && found["delay"].is_u64()).then_some(found)
    });
    assert_eq!((&found["delay"], &found["members"], &found["owners"]), (&json!(5), &json!(1), &json!(1)), "{found:#}");
    assert!(found["partition"][1]["owner"].as_str().unwrap().contains("console-consumer"), "{found:#}");
}

#[test]
fn what_an_operator_has_paused_is_not_stalled() {
    assert_paused_is_not_stalled(false);
}

#[test]
fn what_an_operator_has_paused_is_not_stalled_with_groups_in_kafka() {
    assert_paused_is_not_stalled(true);
}

fn assert_paused_is_not_stalled(in_kafka: bool) {
    let (cluster, operators) = (cluster(), Operators::new());
    let (topic, name) = (cluster.new_topic("paused", 1), unique("paused"));
    let fails = Arc::new(AtomicBool::new(false));
    let fleet = Fleet::start_failing_while(&fails);
    let brokers: Vec<String> = cluster.broker_list().into_iter().map(str::to_owned).collect();
    let file =
        configs::module(&topic, &fleet.addresses()).set("max_retry_times", -1).set("fail_retry_interval_ms", 200);
    let main = if in_kafka { configs::ktransfer_without_zookeeper(&brokers) } else { configs::ktransfer(cluster) };
    let mut ktransfer = Ktransfer::start(operators.operate(main), &[(&name, file)]);
    ktransfer.wait_until_ready();
    let produce = |count| cluster.produce(&topic, 0, &vec![(&b"k"[..], &b"v"[..]); count]);
    produce(5);
    fleet.wait_until_delivered(5, DEADLINE);
    let file = if in_kafka { config(cluster).set("tc.groups", [&name]) } else { config(cluster) };
    let monitor = Kmonitor::start(&file);
    let wait_for = |code: &str, allowed: &[&str]| {
        wait_until(DEADLINE, &format!("the reason {code}"), || {
            let module = topics(&monitor, &name).pop()?;
            let verdict = module["verdict"].as_str().expect("a verdict");
            assert!(allowed.contains(&verdict), "in Kafka {in_kafka}: {module:#}");
            (module["reason_code"] == code).then_some(module)
        })
    };
    wait_for("nothing_waits", &["OK", "UNKNOWN"]);
    let operator = Operator::of(&ktransfer, &name);
    assert_eq!(operator.post("pause", "{}").0, 200);
    produce(7);
    let paused = wait_for("paused", &["OK"]);
    assert!(paused["reason"].as_str().unwrap().starts_with("paused by ann "), "{paused:#}");
    assert_eq!((&paused["delay"], fleet.n_delivered()), (&json!(7), 5), "{paused:#}");
    // For longer than it takes to become STALLED.
    wait_until(DEADLINE, "it stands still for six seconds", || {
        let module = topics(&monitor, &name).pop().expect("the module");
        assert_eq!((&module["verdict"], &module["reason_code"]), (&json!("OK"), &json!("paused")), "{module:#}");
        module["partition"][0]["seconds_behind"].as_f64() > Some(6.0)
    });
    // Without the pause, and with a backend that fails, it is.
    fails.store(true, Ordering::Relaxed);
    assert_eq!(operator.post("resume", "{}").0, 200);
    wait_for("not_moving", &["OK", "STALLED"]);
    fails.store(false, Ordering::Relaxed);
    wait_for("nothing_waits", &["OK", "STALLED"]);
}
