//! ktransfer: a module with a message that is stuck, with messages that are done ahead of it, and with pauses of
//! operators moves from ZooKeeper to Kafka and back: nothing is pushed twice, and what is paused stays paused.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::engine::append;
use crate::harness::fleet::{Fleet, Reply};
use crate::harness::group_wire::{self, Committed};
use crate::harness::operator::{Operator, Operators};
use crate::harness::{
    ConfigFile, Ktransfer, Program, STOP_DEADLINE, ZkClient, ZooKeeper, binary, cluster, configs, kraft_cluster,
    unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
const CHROOT: &str = "/mq/test_cluster";
/// The offset in partition 0 of the message that no backend accepts at first.
const STUCK: i64 = 3;

/// The ZooKeeper and the brokers of a module, which may have belonged to each other.
struct Servers {
    zookeeper: String,
    brokers: String,
    topic: String,
}

struct Rig {
    servers: Servers,
    module: String,
    fleet: Fleet,
    operators: Operators,
}

impl Rig {
    #[track_caller]
    fn start(&self, has_zookeeper: bool) -> (Ktransfer, Operator) {
        let brokers: Vec<String> = self.servers.brokers.split(',').map(str::to_owned).collect();
        let mut config: ConfigFile = configs::ktransfer_without_zookeeper(&brokers);
        if has_zookeeper {
            config = config.set("zk_hosts", [&self.servers.zookeeper]).set("zk_chroot", CHROOT);
        }
        let file = configs::module(&self.servers.topic, &self.fleet.addresses())
            .set("max_retry_interval_ms", 200)
            .set("start_from", "latest");
        let mut ktransfer = Ktransfer::start(self.operators.operate(config), &[(&self.module, file)]);
        ktransfer.wait_until_ready();
        let operator = Operator::of(&ktransfer, &self.module);
        (ktransfer, operator)
    }

    /// Appends messages to both partitions, each with a key of its own.
    fn produce(&self, n_of_each: usize) {
        let record = |number: usize| kafka_http_wrapper::broker::Record {
            topic: self.servers.topic.as_str().into(),
            partition: Some((number % 2) as i32),
            key: Some(unique("key").into_bytes()),
            value: Some(b"text".to_vec()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        append(&self.servers.brokers, (0..2 * n_of_each).map(record).collect());
    }

    fn committed(&self) -> Vec<Committed> {
        let committed = group_wire::committed(&self.servers.brokers, &self.module, &self.servers.topic, 2);
        committed.expect("the coordinator answers").into_values().collect()
    }

    fn node(&self, path: &str) -> Option<String> {
        let client = ZkClient::connect(&self.servers.zookeeper).expect("ZooKeeper answers");
        client.read(&format!("{CHROOT}/consumers/{}/{path}", self.module))
    }

    /// Runs `--move-offsets` in the folder of `instance`, whose file has both services; returns exit code and output.
    fn move_offsets(&self, instance: &Ktransfer, arguments: &[&str]) -> (Option<i32>, String) {
        let output: Output = Command::new(binary(Program::Ktransfer))
            .args(["-f", "conf/ktransfer.yaml", "--move-offsets", &self.module, "--to"])
            .args(arguments)
            .current_dir(instance.daemon.folder())
            .output()
            .expect("the program runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    fn assert_moves(&self, instance: &Ktransfer, arguments: &[&str], expected: &[&str]) {
        let (code, text) = self.move_offsets(instance, arguments);
        assert!(code == Some(0) && expected.iter().all(|part| text.contains(part)), "{code:?}: {text}");
    }

    #[track_caller]
    fn assert_refuses(&self, instance: &Ktransfer, arguments: &[&str], expected: &str) {
        let (code, text) = self.move_offsets(instance, arguments);
        assert!(code == Some(1) && text.contains(expected), "{code:?}: {text}");
    }
}

#[track_caller]
fn wait_for_state(operator: &Operator, state: &str, partitions: &[i64]) {
    wait_until(DEADLINE, &format!("{partitions:?} are {state}"), || operator.partitions_that_are(state) == partitions);
}

#[track_caller]
fn assert_done(answer: &(u16, serde_json::Value)) {
    assert_eq!((answer.0, &answer.1["result"]), (200, &"done".into()), "{answer:?}");
}

fn moves_to_kafka_and_back(servers: Servers) {
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    let fleet = Fleet::start(1, move |arrival| match arrival.position() {
        (0, STUCK) if !opened.load(Ordering::Relaxed) => Reply::status(503),
        _ => Reply::ok(),
    });
    let rig = Rig { servers, module: unique("moved_paused"), fleet, operators: Operators::new() };
    let paused_node = format!("paused/{}", rig.servers.topic);

    let (mut first, operator) = rig.start(true);
    rig.produce(50);
    rig.fleet.wait_until_delivered(99, DEADLINE);
    assert_done(&operator.post("pause", "{}"));
    wait_for_state(&operator, "paused", &[0, 1]);
    rig.assert_refuses(&first, &["kafka"], "the group in ZooKeeper has live members");
    first.daemon.stop(STOP_DEADLINE);
    assert_eq!(rig.node(&format!("offsets/{}/0", rig.servers.topic)), Some(STUCK.to_string()));
    rig.produce(10);
    let n_before = rig.fleet.n_arrivals();
    let table = ["3 (+46 done ahead)", "in ZooKeeper the module is paused by ann"];
    rig.assert_moves(&first, &["kafka", "--dry-run"], &[table[0], table[1], "dry run: nothing was written"]);
    assert_eq!(rig.committed(), []);
    rig.assert_moves(&first, &["kafka"], &["moved 2 partitions from ZooKeeper to Kafka"]);
    let committed = rig.committed();
    assert!(committed[0].0 == STUCK && committed[0].1.contains(";d="), "{committed:?}");
    assert!(committed.iter().all(|(_, text)| text.contains(";m=") && text.contains(",ann")), "{committed:?}");

    let (mut second, operator) = rig.start(false);
    wait_for_state(&operator, "paused", &[0, 1]);
    assert_eq!(rig.fleet.n_arrivals(), n_before, "nothing is pushed");
    rig.assert_refuses(&first, &["zookeeper"], "the group in Kafka has live members");
    assert_done(&operator.post("resume", "{}"));
    rig.fleet.wait_until_delivered(119, DEADLINE);
    assert_done(&operator.post("pause", r#"{"partition": 1}"#));
    second.daemon.stop(STOP_DEADLINE);
    rig.produce(10);
    // ZooKeeper still has the pause of the module, which is over.
    let table = ["3 (+56 done ahead)", "60 paused"];
    rig.assert_moves(&first, &["zookeeper", "--dry-run"], &table);
    assert!(rig.node(&paused_node).is_some_and(|node| node.contains("\"module\"")));
    rig.assert_moves(&first, &["zookeeper"], &["moved 2 partitions from Kafka to ZooKeeper"]);
    let node = rig.node(&paused_node).expect("the pause is stored");
    assert!(node.contains("\"partitions\":{\"1\":{\"by\":\"ann\"") && !node.contains("\"module\""), "{node}");

    let (mut third, operator) = rig.start(true);
    wait_for_state(&operator, "paused", &[1]);
    is_open.store(true, Ordering::Relaxed);
    rig.fleet.wait_until_delivered(130, DEADLINE);
    assert_eq!(rig.fleet.count(|arrival| arrival.position().0 == 1), 60, "partition 1 is paused");
    assert_done(&operator.post("resume", r#"{"partition": 1}"#));
    rig.fleet.wait_until_delivered(140, DEADLINE);
    third.daemon.stop(STOP_DEADLINE);
    let n_others = rig.fleet.count(|arrival| arrival.position() != (0, STUCK));
    assert_eq!(n_others, 139, "no message is pushed twice but the one that was stuck");
}

#[test]
fn a_stuck_and_paused_module_moves_on_kafka_3_9() {
    let cluster = cluster();
    let topic = cluster.new_topic("moved_paused", 2);
    assert_eq!(cluster.chroot, CHROOT);
    moves_to_kafka_and_back(Servers { zookeeper: cluster.zookeeper.clone(), brokers: cluster.brokers.clone(), topic });
}

#[test]
fn a_stuck_and_paused_module_moves_from_the_old_zookeeper_to_kafka_4_x() {
    let cluster = kraft_cluster();
    let topic = cluster.new_topic("moved_paused", 2);
    // What is left of the time before the brokers were upgraded: the nodes of the topic.
    let zookeeper = ZooKeeper::start();
    let client = zookeeper.client();
    let parents = ["/mq", CHROOT, &format!("{CHROOT}/brokers"), &format!("{CHROOT}/brokers/topics")].map(str::to_owned);
    parents.iter().for_each(|path| assert!(client.create(path, "")));
    let partitions = r#"{"version":1,"partitions":{"0":[1,2],"1":[2,1]}}"#;
    assert!(client.create(&format!("{CHROOT}/brokers/topics/{topic}"), partitions));
    moves_to_kafka_and_back(Servers { zookeeper: zookeeper.address(), brokers: cluster.brokers.clone(), topic });
}
