//! kmonitor: each verdict on a real Kafka, in `/v1/delay`. Every answer is held against the schema.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::{Cluster, ConfigFile, Kmonitor, Member, cluster, configs, poll, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(90);

/// Returns a configuration for one cluster, named `tc`, with limits of a few seconds, so that stories are short.
fn config(cluster: &Cluster) -> ConfigFile {
    let mut config = configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)])
        .set("base.log_level", 8)
        .set("base.poll_interval_ms", 500)
        .set("base.fresh_for_ms", 2_000)
        .set("http_server.read_timeout_ms", 1000)
        .set("http_server.write_timeout_ms", 1000)
        .set("tc.zk_session_timeout_ms", 3_000);
    for (key, millis) in [
        ("stopped_after_ms", 3_000),
        ("unowned_after_ms", 6_000),
        ("stalled_after_ms", 4_000),
        ("rewound_for_ms", 5_000),
    ] {
        config = config.set(&format!("base.verdicts.{key}"), millis);
    }
    config
}

fn produce(cluster: &Cluster, topic: &str, partition: i32, count: usize) {
    cluster.produce(topic, partition, &vec![(&b"k"[..], &b"v"[..]); count]);
}

/// Returns the module in `/v1/delay`, with all partitions; null if it is not listed.
fn module(monitor: &Kmonitor, module: &str) -> Value {
    let answer = monitor.v1(&format!("cluster=tc&module={module}&partitions=all&history=1"));
    answer["clusters"][0]["modules"][0].clone()
}

/// Waits until the module has the verdict; returns the module.
#[track_caller]
fn wait_for(monitor: &Kmonitor, name: &str, verdict: &str) -> Value {
    let found = poll(DEADLINE, || Some(module(monitor, name)).filter(|module| module["verdict"] == verdict));
    found.unwrap_or_else(|| panic!("not {verdict}, but {:#}", module(monitor, name)))
}

/// The partitions whose verdict is this one.
fn partitions_with(module: &Value, verdict: &str) -> BTreeSet<i64> {
    let partitions = module["partition"].as_array().into_iter().flatten();
    partitions.filter(|one| one["verdict"] == verdict).filter_map(|one| one["partition"].as_i64()).collect()
}

#[test]
fn a_killed_ktransfer_is_stopped_within_a_minute_while_messages_come_in() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("killed", 1), unique("killed"));
    let fleet = Fleet::start(1, |_| Reply::ok());
    let mut member = Member::start(cluster, &name, "a", configs::module(&topic, &fleet.addresses()));
    // With the limits that kmonitor has by default.
    let monitor = Kmonitor::start(&configs::kmonitor_for(cluster.chroot, &[("tc", &cluster.zookeeper)]));
    produce(cluster, &topic, 0, 5);
    wait_for(&monitor, &name, "OK");
    member.daemon.kill9();
    let killed = Instant::now();
    let stopped = poll(DEADLINE, || {
        produce(cluster, &topic, 0, 1);
        let module = module(&monitor, &name);
        assert!(module["verdict"] == "OK" || module["verdict"] == "STOPPED", "{module:#}");
        Some(module).filter(|module| module["verdict"] == "STOPPED")
    });
    let (stopped, took) = (stopped.expect("the module is STOPPED"), killed.elapsed());
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(stopped["reason_code"], "no_member", "{stopped:#}");
    assert!(
        stopped["reason"].as_str().unwrap().starts_with("nobody pushes it: the module has had no live member for ")
    );
    assert!(stopped["delay"].as_u64() > Some(10) && stopped["seconds_behind"].as_f64() > Some(10.0), "{stopped:#}");
    assert_eq!((&stopped["members"], &stopped["partition"][0]["owner"]), (&Value::from(0), &Value::Null));

    let _member = Member::start(cluster, &name, "b", configs::module(&topic, &fleet.addresses()));
    let fine = wait_for(&monitor, &name, "OK");
    assert_ne!(fine["since"], stopped["since"]);
    eprintln!("STOPPED {took:?} after kill -9");
}

#[test]
fn a_frozen_ktransfer_is_stopped_and_recovers() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("frozen", 2), unique("frozen"));
    let fleet = Fleet::start(1, |_| Reply::ok());
    let mut member = Member::start(cluster, &name, "a", configs::module(&topic, &fleet.addresses()));
    let monitor = Kmonitor::start(&config(cluster));
    (0..2).for_each(|partition| produce(cluster, &topic, partition, 5));
    wait_until(DEADLINE, "all is stored", || cluster.stored_offsets_sum(&name, &topic, 2) == 10);
    wait_for(&monitor, &name, "OK");
    member.daemon.signal(libc::SIGSTOP);
    produce(cluster, &topic, 1, 7);
    let stopped = wait_for(&monitor, &name, "STOPPED");
    assert_eq!((partitions_with(&stopped, "STOPPED"), partitions_with(&stopped, "OK")), ([1].into(), [0].into()));
    assert!(stopped["reason"].as_str().unwrap().starts_with("partition 1: nobody pushes it: "), "{stopped:#}");
    assert_eq!((&stopped["delay"], &stopped["bad_partitions"]), (&Value::from(7), &Value::from(1)));
    member.daemon.signal(libc::SIGCONT);
    wait_for(&monitor, &name, "OK");
}

#[test]
fn a_backend_that_fails_is_stalled_and_one_that_recovers_is_not() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("failing", 1), unique("failing"));
    let fails = Arc::new(AtomicBool::new(true));
    let fleet = Fleet::start_failing_while(&fails);
    let file =
        configs::module(&topic, &fleet.addresses()).set("max_retry_times", -1).set("fail_retry_interval_ms", 200);
    let _member = Member::start(cluster, &name, "a", file);
    let monitor = Kmonitor::start(&config(cluster));
    produce(cluster, &topic, 0, 30);
    let stalled = wait_for(&monitor, &name, "STALLED");
    let (owner, reason) = (stalled["partition"][0]["owner"].as_str().unwrap(), stalled["reason"].as_str().unwrap());
    assert!(["not_moving", "never_stored"].contains(&stalled["reason_code"].as_str().unwrap()), "{stalled:#}");
    assert!(reason.contains("30 messages wait, the first for "), "{reason}");
    let owners = cluster.owners(&name, &topic);
    assert!(!owner.is_empty() && owners["0"].contains(owner), "{owner} {owners:?}");
    fails.store(false, Ordering::Relaxed);
    let fine = wait_for(&monitor, &name, "OK");
    assert!(fine["delay"].as_u64() < Some(30), "{fine:#}");
    wait_until(DEADLINE, "nothing waits", || module(&monitor, &name)["reason_code"] == "nothing_waits");
}

#[test]
fn a_slow_backend_is_lagging_until_it_has_caught_up() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("slow", 1), unique("slow"));
    // Messages of one key are pushed one after the other.
    let fleet = Fleet::start(1, |_| Reply::ok().after(Duration::from_millis(200)));
    let _member = Member::start(cluster, &name, "a", configs::module(&topic, &fleet.addresses()));
    let monitor = Kmonitor::start(&config(cluster).set("base.verdicts.lagging_seconds", 3));
    wait_until(DEADLINE, "the module is known", || module(&monitor, &name)["verdict"] == "OK");
    produce(cluster, &topic, 0, 60);
    let late = wait_for(&monitor, &name, "LAGGING");
    assert_eq!(late["reason_code"], "seconds_behind", "{late:#}");
    assert!(late["seconds_behind"].as_f64() >= Some(3.0) && late["delay"].as_u64() > Some(0), "{late:#}");
    let fine = wait_for(&monitor, &name, "OK");
    assert_eq!(fine["delay"], 0, "{fine:#}");
}

#[test]
fn a_topic_that_is_created_again_is_rewound_until_it_is_pushed() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("rewound", 1), unique("rewound"));
    let fleet = Fleet::start(1, |_| Reply::ok());
    let file = || configs::module(&topic, &fleet.addresses());
    let mut member = Member::start(cluster, &name, "a", file());
    let monitor = Kmonitor::start(&config(cluster).set("base.verdicts.stopped_after_ms", 600_000));
    produce(cluster, &topic, 0, 20);
    wait_until(DEADLINE, "all is stored", || cluster.stored_offset(&name, &topic, 0) == Some(20));
    wait_until(DEADLINE, "kmonitor knows it", || module(&monitor, &name)["partition"][0]["stored"] == 20);
    member.daemon.stop(DEADLINE);
    cluster.delete_topic(&topic);
    cluster.create_topic(&topic, 1);
    produce(cluster, &topic, 0, 3);
    let rewound = wait_for(&monitor, &name, "REWOUND");
    assert_eq!(
        (&rewound["reason_code"], &rewound["delay"]),
        (&Value::from("recreated"), &Value::from(3)),
        "{rewound:#}"
    );
    let _member = Member::start(cluster, &name, "b", file());
    let fine = wait_for(&monitor, &name, "OK");
    assert_eq!(fine["partition"][0]["newest"], 3, "{fine:#}");
    wait_until(DEADLINE, "nothing waits", || module(&monitor, &name)["reason_code"] == "nothing_waits");
}

#[test]
fn an_offset_that_is_set_back_is_rewound_for_a_while() {
    let cluster = cluster();
    let (topic, name) = (cluster.new_topic("set_back", 1), unique("set_back"));
    produce(cluster, &topic, 0, 20);
    let path = format!("{}/consumers/{name}/offsets/{topic}/0", cluster.chroot);
    assert!(cluster.zk().create(&path, "20"), "{path}");
    let monitor = Kmonitor::start(&config(cluster));
    wait_for(&monitor, &name, "OK");
    cluster.zk().write(&path, "5");
    let rewound = wait_for(&monitor, &name, "REWOUND");
    assert_eq!(
        (&rewound["reason_code"], &rewound["delay"]),
        (&Value::from("went_back"), &Value::from(15)),
        "{rewound:#}"
    );
    let reason = rewound["reason"].as_str().unwrap();
    assert!(reason.starts_with("the stored offset went back "), "{reason}");
    assert!(reason.ends_with(" ago, from 20 to 5: 15 messages pushed again"), "{reason}");
    let fine = wait_for(&monitor, &name, "OK");
    assert_eq!((&fine["reason_code"], &fine["delay"]), (&Value::from("waiting"), &Value::from(15)), "{fine:#}");
}

#[test]
fn a_dead_broker_makes_its_partitions_unknown_and_no_others() {
    let cluster = Cluster::start(2);
    let (topic, name) = (cluster.new_topic("halves", 6), unique("halves"));
    for partition in 0..6 {
        produce(&cluster, &topic, partition, 2);
        let path = format!("{}/consumers/{name}/offsets/{topic}/{partition}", cluster.chroot);
        assert!(cluster.zk().create(&path, "2"), "{path}");
    }
    let monitor = Kmonitor::start(&config(&cluster).set("tc.broker_hosts", cluster.broker_list()));
    let known = wait_for(&monitor, &name, "OK");
    assert_eq!((&known["delay"], known["delay_is_partial"].as_bool()), (&Value::from(0), Some(false)), "{known:#}");
    let leaders = cluster.leaders(&topic).expect("the topic exists");
    let its: BTreeSet<i64> = leaders.iter().filter(|(_, id)| **id == 1).map(|(number, _)| i64::from(*number)).collect();
    assert!(!its.is_empty() && its.len() < 6, "{leaders:?}");
    cluster.kafka_servers[1].kill9();
    let unknown = poll(DEADLINE, || {
        let module = module(&monitor, &name);
        let unknown = partitions_with(&module, "UNKNOWN");
        assert!(unknown.is_subset(&its), "{module:#}");
        Some(module).filter(|_| unknown == its)
    });
    let unknown = unknown.expect("the partitions of the dead broker are UNKNOWN");
    assert_eq!((&unknown["verdict"], &unknown["delay_is_partial"]), (&Value::from("UNKNOWN"), &Value::from(true)));
    for partition in unknown["partition"].as_array().unwrap() {
        let is_known = partition["verdict"] == "OK";
        assert_eq!(partition["delay"], if is_known { Value::from(0) } else { Value::Null }, "{partition:#}");
        assert_eq!(partition["unknown"].is_null(), is_known, "{partition:#}");
    }
    cluster.kafka_servers[1].restart();
    wait_for(&monitor, &name, "OK");
}

#[test]
fn an_answer_has_a_version_and_its_pages_follow_each_other() {
    let cluster = cluster();
    let name = unique("pages");
    for number in 0..5 {
        let topic = cluster.new_topic("pages", 1);
        let path = format!("{}/consumers/{name}_{number}/offsets/{topic}/0", cluster.chroot);
        assert!(cluster.zk().create(&path, "0"), "{path}");
    }
    // The view stays as it is for an hour after the first poll.
    let monitor = Kmonitor::start(&config(cluster).set("base.poll_interval_ms", 3_600_000));
    let query = format!("module={name}_*&order=name");
    let modules = |answer: &Value| -> Vec<String> {
        let modules = answer["clusters"][0]["modules"].as_array().unwrap().iter();
        modules.map(|module| module["module"].as_str().unwrap().to_owned()).collect()
    };
    wait_until(DEADLINE, "all modules are known", || modules(&monitor.v1(&query)).len() == 5);
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let answer = monitor.v1(&format!("{query}&limit=2&after={after}"));
        found.extend(modules(&answer));
        match answer["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(found, (0..5).map(|number| format!("{name}_{number}")).collect::<Vec<_>>());
    let answer = || monitor.get(&format!("/v1/delay?{query}"));
    wait_until(DEADLINE, "an answer stays while the view does", || {
        let (first, second) = (answer(), answer());
        let tags = (first.header("ETag"), second.header("ETag"));
        assert!(tags.0.is_some() && first.header("Age").is_some(), "{first:?}");
        tags.0 == tags.1 && first.text() == second.text()
    });
    assert_eq!(monitor.get("/v1/delay?modul=x").status, 400);
}
