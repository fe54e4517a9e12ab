//! Operators act on modules whose groups are in Kafka 4.x, in the middle of the load, and instances are stopped and
//! killed meanwhile: what was answered with "done" stays done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::fleet::{Arrival, Fleet, INSTANCE_HEADER, Reply};
use crate::harness::group_wire::Committed;
use crate::harness::operator::{Operator, Operators, TOKEN, TOKEN_OF_BOB};
use crate::harness::{
    ConfigFile, KraftCluster, Ktransfer, STOP_DEADLINE, configs, kraft_cluster, poll, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// The load waits while this many messages are not pushed, as during a pause.
const MAX_BACKLOG: usize = 1_000;
/// The load goes on after this time, also with a larger backlog.
const BACKLOG_PAUSE: Duration = Duration::from_millis(100);
/// The most messages of a load.
const MAX_LOAD: usize = 50_000;

/// A topic, and a module that pushes it.
struct Rig {
    cluster: &'static KraftCluster,
    topic: String,
    module: String,
    fleet: Fleet,
    operators: Operators,
    n_partitions: i32,
}

/// An instance of the module.
struct Instance {
    ktransfer: Ktransfer,
    operator: Operator,
}

impl Deref for Instance {
    type Target = Operator;

    fn deref(&self) -> &Operator {
        &self.operator
    }
}

impl Rig {
    fn new(name: &str, n_partitions: i32, script: impl Fn(&Arrival) -> Reply + Send + Sync + 'static) -> Rig {
        let cluster = kraft_cluster();
        let (topic, module) = (cluster.new_topic(name, n_partitions), unique(name));
        Rig { cluster, topic, module, fleet: Fleet::start(1, script), operators: Operators::new(), n_partitions }
    }

    #[track_caller]
    fn start(&self, name: &str) -> Instance {
        self.start_with(name, |file| file)
    }

    #[track_caller]
    fn start_with(&self, name: &str, change: impl FnOnce(ConfigFile) -> ConfigFile) -> Instance {
        let brokers: Vec<String> = self.cluster.broker_list().into_iter().map(str::to_owned).collect();
        let config = configs::ktransfer_without_zookeeper(&brokers).set("session_timeout_ms", 3000);
        let file = configs::module(&self.topic, &self.fleet.addresses())
            .set("worker_num", 8)
            .set("protocol.headers", [BTreeMap::from([(INSTANCE_HEADER, name)])]);
        let mut ktransfer = Ktransfer::start(self.operators.operate(config), &[(&self.module, change(file))]);
        ktransfer.wait_until_ready();
        let operator = Operator::of(&ktransfer, &self.module);
        Instance { ktransfer, operator }
    }

    fn keys(&self) -> Vec<(i32, &'static str)> {
        (0..self.n_partitions).flat_map(|partition| KEYS.map(|key| (partition, key))).collect()
    }

    /// Does `act` while messages flow.
    fn under_load(&self, act: impl FnOnce()) {
        let (keys, is_busy) = (self.keys(), AtomicBool::new(true));
        let before = self.n_messages();
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut n_produced = 0;
                while is_busy.load(Ordering::Relaxed) && n_produced < MAX_LOAD {
                    self.cluster.produce(&self.topic, &keys, 4);
                    n_produced += 4 * keys.len();
                    // What is paused is not pushed, and the rest goes on.
                    let _ = poll(BACKLOG_PAUSE, || {
                        let is_pushed = before + n_produced < self.fleet.n_delivered() + MAX_BACKLOG;
                        (is_pushed || !is_busy.load(Ordering::Relaxed)).then_some(())
                    });
                }
            });
            // Also if an assertion of `act` fails: the scope waits for the load.
            let ends_load = EndLoad(&is_busy);
            act();
            drop(ends_load);
            load.join().expect("the load is appended");
        });
    }

    fn n_messages(&self) -> usize {
        usize::try_from(self.cluster.log_ends(&self.topic).values().sum::<i64>()).expect("a count")
    }

    fn committed(&self) -> BTreeMap<i32, Committed> {
        self.cluster.committed(&self.module, &self.topic)
    }

    /// Returns the number of requests of a partition.
    fn n_of(&self, partition: i32) -> usize {
        self.fleet.count(|arrival| arrival.position().0 == partition)
    }

    /// Returns the number of requests with the message at an offset of partition 0.
    fn n_at(&self, offset: i64) -> usize {
        self.fleet.count(|arrival| arrival.position() == (0, offset))
    }

    /// Waits until all messages are delivered and stored; panics if the first deliveries of a key are out of order.
    #[track_caller]
    fn wait_until_done(&self) {
        self.fleet.wait_until_delivered(self.n_messages(), DEADLINE);
        wait_until(DEADLINE, "all is stored", || {
            let committed = self.committed();
            let ends = self.cluster.log_ends(&self.topic);
            ends.iter().all(|(partition, end)| committed.get(partition).is_some_and(|(offset, _)| offset == end))
        });
        let (mut seen, mut newest) = (BTreeSet::new(), HashMap::new());
        for arrival in self.fleet.arrivals().iter().filter(|arrival| arrival.is_delivered()) {
            let (partition, offset) = arrival.position();
            if seen.insert((partition, offset)) {
                let before = newest.insert((partition, arrival.key()), offset);
                assert!(before.is_none_or(|before| before < offset), "{partition}/{offset} after {before:?}");
            }
        }
    }

    /// Waits until each of two instances has half of the partitions.
    #[track_caller]
    fn wait_until_shared(&self) {
        wait_until(DEADLINE, "both instances have half of the partitions", || {
            let members = self.cluster.members(&self.module, &self.topic)?;
            let is_even = |held: &Vec<i32>| 2 * held.len() == self.n_partitions as usize;
            (members.len() == 2 && members.values().all(is_even)).then_some(())
        });
    }
}

struct EndLoad<'a>(&'a AtomicBool);

impl Drop for EndLoad<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[track_caller]
fn assert_done(answer: &(u16, serde_json::Value)) {
    assert_eq!((answer.0, &answer.1["result"]), (200, &"done".into()), "{answer:?}");
}

#[track_caller]
fn wait_for_paused(instance: &Instance, n: usize) {
    wait_until(DEADLINE, &format!("{n} partitions are paused"), || instance.partitions_that_are("paused").len() == n);
}

#[test]
fn a_pause_of_the_module_reaches_all_instances_and_outlives_stops_and_kills() {
    let rig = Rig::new("kraft_pause", 4, |_| Reply::ok().after(Duration::from_millis(2)));
    let (mut one, mut two) = (rig.start("one"), rig.start("two"));
    rig.wait_until_shared();
    let (mut of_killed, mut last) = (BTreeSet::new(), None);
    rig.under_load(|| {
        wait_until(DEADLINE, "both push", || rig.fleet.n_arrivals() > 400);
        assert_done(&one.post("pause", "{}"));
        wait_for_paused(&one, 2);
        wait_for_paused(&two, 2);
        let n_paused = rig.fleet.n_arrivals();
        of_killed.extend(two.partitions_that_are("paused"));
        two.ktransfer.daemon.kill9();
        wait_for_paused(&one, 4);
        // A hand-over, then the loss of the only instance.
        let mut three = rig.start("three");
        one.ktransfer.daemon.stop(STOP_DEADLINE);
        wait_for_paused(&three, 4);
        three.ktransfer.daemon.kill9();
        let four = rig.start("four");
        wait_for_paused(&four, 4);
        assert_eq!(rig.fleet.n_arrivals(), n_paused, "nothing is pushed while the module is paused");
        assert!(rig.committed().values().any(|(_, text)| text.contains(";m=") && text.contains(",ann;")));
        let resumed = four.command(&["--resume", &rig.module]);
        assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
        assert!(String::from_utf8_lossy(&resumed.stdout).starts_with("done\n"), "{resumed:?}");
        wait_until(DEADLINE, "it goes on", || rig.fleet.n_arrivals() > n_paused + 100);
        let log = four.ktransfer.daemon.log();
        assert!(log.contains("operation resume of module") && log.contains("by ann from"), "{log}");
        last = Some(four);
    });
    rig.wait_until_done();
    drop(last);
    let log = (one.ktransfer.daemon.log(), two.ktransfer.daemon.log());
    assert!(log.0.contains("operation pause of module") && log.0.contains("by ann from"), "{}", log.0);
    assert!(log.1.contains("the module is paused by ann"), "{}", log.1);
    // Only what the killed instance had done and not stored is pushed again.
    let mut counts: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    rig.fleet.arrivals().iter().for_each(|arrival| *counts.entry(arrival.position()).or_default() += 1);
    let repeated: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).map(|(position, _)| *position).collect();
    eprintln!("{} of {} messages were repeated", repeated.len(), counts.len());
    assert!(repeated.iter().all(|(partition, _)| of_killed.contains(&i64::from(*partition))), "{repeated:?}");
}

#[test]
fn a_paused_partition_stays_paused_at_its_next_owner_while_the_others_go_on() {
    let rig = Rig::new("kraft_pause_one", 2, |_| Reply::ok().after(Duration::from_millis(2)));
    let (one, two) = (rig.start("one"), rig.start("two"));
    rig.wait_until_shared();
    wait_until(DEADLINE, "each pushes one", || {
        [&one, &two].iter().all(|of| of.partitions_that_are("pushing").len() == 1)
    });
    let (mut owner, other) = if one.partitions_that_are("pushing") == [0] { (one, two) } else { (two, one) };
    let partition_0 = r#"{"partition": 0}"#;
    rig.under_load(|| {
        wait_until(DEADLINE, "both push", || rig.n_of(0) > 100 && rig.n_of(1) > 100);
        let (status, refused) = other.post("pause", partition_0);
        assert_eq!((status, &refused["code"]), (409, &"not_owned".into()), "{refused}");
        assert_eq!(other.command(&["--pause", &rig.module, "--partition", "0"]).status.code(), Some(1));
        assert!(!rig.committed().values().any(|(_, text)| text.contains(";p=")));
        let paused = owner.command(&["--pause", &rig.module, "--partition", "0"]);
        assert_eq!(paused.status.code(), Some(0), "{paused:?}");
        assert!(rig.committed()[&0].1.contains(";p="), "it is stored before the answer: {:?}", rig.committed());
        let n_paused = rig.n_of(0);
        owner.ktransfer.daemon.kill9();
        wait_until(DEADLINE, "the other instance has it", || other.partitions_that_are("paused") == [0]);
        let n_of_other = rig.n_of(1);
        wait_until(DEADLINE, "the other partition goes on", || rig.n_of(1) > n_of_other + 100);
        assert_eq!(rig.n_of(0), n_paused);
        // Handed over once more, politely.
        let mut three = rig.start("three");
        rig.wait_until_shared();
        let (holder, rest) =
            if three.partitions_that_are("paused") == [0] { (&three, &other) } else { (&other, &three) };
        assert_eq!((holder.partitions_that_are("paused"), rest.partitions_that_are("paused")), (vec![0], vec![]));
        assert_done(&holder.post("resume", partition_0));
        assert!(!rig.committed()[&0].1.contains(";p="), "{:?}", rig.committed());
        wait_until(DEADLINE, "it goes on", || rig.n_of(0) > n_paused + 100);
        three.ktransfer.daemon.stop(STOP_DEADLINE);
    });
    rig.wait_until_done();
}

#[test]
fn a_seek_is_stored_before_its_answer_and_a_kill_right_after_it_does_not_undo_it() {
    let rig = Rig::new("kraft_seek", 1, |_| Reply::ok().after(Duration::from_millis(1)));
    let mut first = rig.start("one");
    rig.cluster.produce(&rig.topic, &rig.keys(), 100);
    rig.wait_until_done();
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let time = now_ms() + 1;
    wait_until(DEADLINE, "the clock has moved", || now_ms() > time);
    let mut second = None;
    rig.under_load(|| {
        wait_until(DEADLINE, "the load runs", || rig.fleet.n_delivered() > 600);
        let sought = first.post("seek", r#"{"partition": 0, "offset": 100}"#);
        assert_done(&sought);
        assert!(sought.1["partitions"][0]["from"].as_i64() > Some(500), "{sought:?}");
        first.ktransfer.daemon.kill9();
        second = Some(rig.start("two"));
        wait_until(DEADLINE, "offset 100 is pushed again", || rig.n_at(100) >= 2);
    });
    rig.wait_until_done();
    assert_eq!(rig.n_at(99), 1);
    let mut second = second.expect("it was started");
    // To a time, by the command line; then a kill.
    let (n_before, n_behind) = (rig.n_at(499), rig.n_at(500));
    let sought = second.command(&["--seek", &rig.module, "--to", &time.to_string()]);
    assert_eq!(sought.status.code(), Some(0), "{sought:?}");
    second.ktransfer.daemon.kill9();
    let mut third = rig.start("three");
    wait_until(DEADLINE, "the first message of the time is pushed again", || rig.n_at(500) > n_behind);
    rig.wait_until_done();
    assert_eq!(rig.n_at(499), n_before, "messages before the time are not repeated");
    // Dry runs change nothing.
    let (committed, n_arrivals) = (rig.committed(), rig.fleet.n_arrivals());
    let (status, answer) = third.post("seek?dry_run=1", r#"{"to": "earliest"}"#);
    assert_eq!((status, &answer["result"], &answer["partitions"][0]["to"]), (200, &"would_be_done".into(), &0.into()));
    let dry = third.command(&["--seek", &rig.module, "--offset", "7", "--dry-run"]);
    assert!(dry.status.success() && String::from_utf8_lossy(&dry.stdout).contains("to=7"), "{dry:?}");
    assert_eq!((rig.committed(), rig.fleet.n_arrivals()), (committed, n_arrivals));
    // To the beginning and, while that is pushed, to the end.
    assert_done(&third.post("seek", r#"{"to": "earliest"}"#));
    wait_until(DEADLINE, "offset 0 is pushed again", || rig.n_at(0) == 2);
    let end = rig.n_messages() as i64;
    let (status, answer) = third.post("seek", r#"{"to": "end"}"#);
    assert_eq!((status, answer["partitions"][0]["to"].as_i64()), (200, Some(end)), "{answer}");
    assert_eq!(rig.committed()[&0].0, end, "it is stored before the answer");
    third.ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_skipped_message_stays_skipped_after_a_kill() {
    let rig = Rig::new("kraft_skip", 1, |arrival| match arrival.position().1 {
        3 | 8 => Reply::status(503),
        _ => Reply::ok(),
    });
    let mut first = rig.start_with("one", |file| file.set("max_retry_interval_ms", 300));
    let mut second = None;
    rig.under_load(|| {
        wait_until(DEADLINE, "the head is known", || {
            let head = first.module()["partitions"][0]["head"].clone();
            head["offset"] == 3 && head["attempts"].as_u64() > Some(1)
        });
        let (status, refused) = first.post("skip", r#"{"partition": 0, "offset": 8}"#);
        assert_eq!((status, &refused["code"]), (409, &"not_at_head".into()), "{refused}");
        let dry = first.command(&["--skip", &rig.module, "--partition", "0", "--offset", "3", "--dry-run"]);
        assert_eq!((dry.status.code(), rig.committed()[&0].0), (Some(0), 3), "{dry:?}");
        assert_done(&first.post("skip", r#"{"partition": 0, "offset": 3}"#));
        wait_until(DEADLINE, "it is stored", || rig.committed()[&0].0 == 8);
        let n_skipped = rig.n_at(3);
        first.ktransfer.daemon.kill9();
        let next = rig.start_with("two", |file| file.set("max_retry_interval_ms", 300));
        wait_until(DEADLINE, "the next head is known", || next.module()["partitions"][0]["head"]["offset"] == 8);
        let skipped = next.command(&["--skip", &rig.module, "--partition", "0", "--offset", "8"]);
        assert_eq!(skipped.status.code(), Some(0), "{skipped:?}");
        wait_until(DEADLINE, "the commit point moves on", || rig.committed()[&0].0 > 100);
        assert_eq!(rig.n_at(3), n_skipped);
        second = Some(next);
    });
    let line = |offset| format!("skipped topic={}, partition=0, transid={offset}, ", rig.topic);
    let logs = [(first, 3), (second.expect("it was started"), 8)];
    for (instance, offset) in logs {
        let log = instance.ktransfer.daemon.log();
        assert!(log.contains(&line(offset)) && log.contains("operation skip of module"), "{log}");
    }
}

#[test]
fn an_instance_without_partitions_refuses_a_pause_and_its_dry_run_alike() {
    let rig = Rig::new("kraft_standby", 1, |_| Reply::ok());
    let one = rig.start("one");
    rig.cluster.produce(&rig.topic, &rig.keys(), 2);
    rig.wait_until_done();
    let two = rig.start("two");
    wait_until(DEADLINE, "one instance owns the partition", || {
        one.partitions_that_are("pushing").len() + two.partitions_that_are("pushing").len() == 1
    });
    let is_first = one.partitions_that_are("pushing").len() == 1;
    let (owner, standby) = if is_first { (&one, &two) } else { (&two, &one) };
    for operation in ["pause?dry_run=1", "pause"] {
        let (status, answer) = standby.post(operation, "");
        assert_eq!((status, &answer["code"]), (503, &"not_stored".into()), "{operation}: {answer}");
    }
    for (operation, result) in [("resume?dry_run=1", "would_be_done"), ("resume", "done")] {
        let (status, answer) = standby.post(operation, "");
        assert_eq!((status, &answer["result"]), (200, &result.into()), "nothing is paused: {answer}");
    }
    let (status, answer) = owner.post("pause?dry_run=1", "");
    assert_eq!((status, &answer["result"]), (200, &"would_be_done".into()), "{answer}");
    assert_done(&owner.post("pause", ""));
    wait_for_paused(owner, 1);
}

#[test]
fn operations_that_are_refused_change_nothing() {
    let rig = Rig::new("kraft_refused", 2, |_| Reply::ok());
    let (one, _two) = (rig.start("one"), rig.start("two"));
    rig.wait_until_shared();
    rig.cluster.produce(&rig.topic, &rig.keys(), 2);
    rig.wait_until_done();
    wait_until(DEADLINE, "it pushes one", || one.partitions_that_are("pushing").len() == 1);
    let own = one.partitions_that_are("pushing")[0];
    let before = (rig.committed(), rig.fleet.n_arrivals());
    let of = |partition: i64, rest: &str| format!("{{\"partition\": {partition}{rest}}}");
    let (own_end, at_end) = (of(own, ", \"to\": \"end\""), of(own, ", \"offset\": 10"));
    let (beyond, negative) = (of(own, ", \"offset\": 11"), of(own, ", \"offset\": -1"));
    let (of_other, missing) = (of(1 - own, ", \"offset\": 1"), of(9, ", \"offset\": 1"));
    for (token, operation, body, status, code) in [
        ("wrong", "pause", "", 401, "unauthorized"),
        ("", "seek", &*own_end, 401, "unauthorized"),
        (TOKEN_OF_BOB, "pause", "", 403, "topic_not_allowed"),
        (TOKEN_OF_BOB, "skip", &*at_end, 403, "topic_not_allowed"),
        (TOKEN, "pause", &*of(1 - own, ""), 409, "not_owned"),
        (TOKEN, "resume", &*of(1 - own, ""), 409, "not_owned"),
        (TOKEN, "pause", &*of(9, ""), 409, "not_owned"),
        (TOKEN, "skip", &*of_other, 409, "not_owned"),
        (TOKEN, "seek", &*of_other, 409, "not_owned"),
        (TOKEN, "seek", &*missing, 409, "not_owned"),
        (TOKEN, "skip", &*at_end, 409, "not_at_head"),
        (TOKEN, "seek", &*beyond, 422, "out_of_range"),
        (TOKEN, "seek?dry_run=1", &*beyond, 422, "out_of_range"),
        (TOKEN, "seek", &*negative, 400, "invalid_request"),
        (TOKEN, "pause", "[]", 400, "invalid_request"),
    ] {
        let (got, answer) = one.post_as(token, operation, body.as_bytes());
        assert_eq!((got, &answer["code"]), (status, &code.into()), "{operation} {body}: {answer}");
        assert!(answer["error"].as_str().is_some_and(|reason| !reason.is_empty()), "{answer}");
    }
    let partition = own.to_string();
    for (token, arguments, expected) in [
        (Some("wrong"), &["--pause", &*rig.module][..], "unknown credentials"),
        (None, &["--pause", &*rig.module], "KTRANSFER_TOKEN"),
        (Some(TOKEN), &["--seek", &*rig.module, "--partition", &*partition, "--offset", "11"], "Kafka keeps 0 to 10"),
        (Some(TOKEN), &["--pause", "no_such_module"], "does not run in this process"),
        (Some(TOKEN), &["--resume", &*rig.module, "--partition", "9"], "not pushed by this process"),
    ] {
        let refused = one.command_as(token, arguments);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && text.contains(expected), "{arguments:?}: {refused:?}");
    }
    for operation in ["pause?dry_run=1", "resume?dry_run=1"] {
        let (status, answer) = one.post(operation, "");
        assert_eq!((status, &answer["result"]), (200, &"would_be_done".into()), "{answer}");
    }
    assert_eq!(one.partitions_that_are("pushing"), [own]);
    assert_eq!((rig.committed(), rig.fleet.n_arrivals()), before);
    let log = one.ktransfer.daemon.log();
    assert!(log.contains("operation seek of module") && log.contains("refused with 422: offset 11"), "{log}");
}
