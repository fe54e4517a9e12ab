//! ktransfer while what it stands on is away: it says so, loses nothing, and goes on by itself.
//!
//! Each story hurts a cluster of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::message::{METHODS, Message};
use crate::harness::oracle::{Id, judge};
use crate::harness::{Backend, Cluster, Daemon, Program, configs, free_port, http, kafka_wire, wait_until};

const DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(12);
const N_PARTITIONS: i32 = 4;
const N_KEYS: u64 = 8;
const MODULE: &str = "outage_module";

/// A cluster of its own with one topic, one module and one backend.
struct Stage {
    cluster: Cluster,
    topic: String,
    backend: Backend,
    ids: Vec<Id>,
}

impl Stage {
    fn new() -> Stage {
        let cluster = Cluster::start(1);
        let topic = cluster.new_topic("outage", N_PARTITIONS);
        Stage { cluster, topic, backend: Backend::start(), ids: Vec::new() }
    }

    /// Puts `n` more messages of each key into the topic.
    fn produce(&mut self, n: u64) {
        let mut by_partition: BTreeMap<i32, Vec<(String, Vec<u8>)>> = BTreeMap::new();
        for key in 0..N_KEYS {
            let name = format!("key-{key}");
            let next = self.ids.iter().filter(|(known, _)| *known == name).count() as u64;
            for number in next..next + n {
                let id = (name.clone(), number);
                let message = Message { method: METHODS[0].to_owned(), id: id.clone() };
                let partition = (key % N_PARTITIONS as u64) as i32;
                by_partition.entry(partition).or_default().push((name.clone(), message.encode()));
                self.ids.push(id);
            }
        }
        for (partition, messages) in by_partition {
            let messages: Vec<_> = messages.iter().map(|(key, value)| (key.as_bytes(), value.as_slice())).collect();
            self.cluster.produce(&self.topic, partition, &messages);
        }
    }

    fn start_ktransfer(&self) -> (Daemon, String) {
        let admin = free_port();
        let main_file = configs::ktransfer(&self.cluster, admin, &[MODULE]);
        let module_file = configs::module(&self.topic, &[self.backend.address()]);
        let path = format!("conf/modules/{MODULE}.yaml");
        let daemon = Daemon::start(Program::Ktransfer, &[("conf/ktransfer.yaml", &main_file), (&path, &module_file)]);
        (daemon, format!("http://127.0.0.1:{admin}/readyz"))
    }

    fn pushed(&self) -> Vec<Id> {
        let records = self.backend.records();
        let bodies = records.iter().filter(|record| record.status == Some(200)).map(|record| &record.request.body);
        bodies.map(|body| Message::decode(body).expect("as it was produced").id).collect()
    }

    /// Waits until every message was pushed; each key's must have come in order. Returns how many came again.
    fn wait_until_all_is_pushed(&self) -> usize {
        wait_until(DEADLINE, "all messages are pushed", || {
            self.backend.n_requests() >= self.ids.len() && judge(&self.ids, &[], &self.pushed()).lost.is_empty()
        });
        let verdict = judge(&self.ids, &[], &self.pushed());
        assert!(verdict.is_good(), "{verdict:?}");
        verdict.n_repeats
    }
}

fn is_ready(url: &str) -> bool {
    http::get(url).is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_zookeeper_that_is_absent_at_the_start_is_waited_for_and_one_that_restarts_costs_nothing() {
    let mut stage = Stage::new();
    stage.produce(20);
    stage.cluster.zookeeper_server.kill9();
    let (mut daemon, readyz) = stage.start_ktransfer();
    wait_until(DEADLINE, "it says what it waits for", || {
        http::get(&readyz).is_ok_and(|answer| answer.status == 503 && answer.text().contains("ZooKeeper"))
    });
    assert_eq!(stage.backend.n_requests(), 0, "pushed without a claim");

    stage.cluster.zookeeper_server.restart();
    wait_until(DEADLINE, "ready by itself", || is_ready(&readyz));
    assert_eq!(stage.wait_until_all_is_pushed(), 0);

    stage.cluster.zookeeper_server.kill9();
    stage.cluster.zookeeper_server.restart();
    stage.produce(20);
    let n_repeats = stage.wait_until_all_is_pushed();
    assert!(n_repeats <= stage.ids.len() / 2, "{n_repeats} repeats after the offsets were stored long before");
    daemon.end_well(STOP_DEADLINE);
}

#[test]
fn a_broker_that_restarts_is_read_on_where_it_was() {
    let mut stage = Stage::new();
    let (mut daemon, readyz) = stage.start_ktransfer();
    wait_until(DEADLINE, "ready", || is_ready(&readyz));
    stage.produce(20);
    assert_eq!(stage.wait_until_all_is_pushed(), 0);

    let broker = &stage.cluster.kafka_servers[0];
    broker.kill9();
    broker.restart();
    wait_until(DEADLINE, "the broker leads the topic again", || {
        kafka_wire::log_ends(&stage.cluster.brokers, &stage.topic).is_ok_and(|ends| ends.len() == N_PARTITIONS as usize)
    });
    stage.produce(20);
    assert_eq!(stage.wait_until_all_is_pushed(), 0, "the claims were kept, so nothing comes twice");
    daemon.end_well(STOP_DEADLINE);
    let stored = (0..N_PARTITIONS).filter_map(|p| stage.cluster.stored_offset(MODULE, &stage.topic, p));
    assert_eq!(stored.sum::<i64>(), stage.ids.len() as i64);
}

#[test]
fn a_module_file_that_is_missing_or_wrong_stops_the_start_with_its_name() {
    let main_file = "log_dir: ./log\nlog_level: 4\nzk_hosts: ['127.0.0.1:1']\nmodule_conf_dir: ./conf/modules\n\
                     module_enabled: [missing, wrong]\n";
    let wrong = "topic: t\nprotocol: {name: smtp, uri: /x}\nworker_nmu: 3\nbackend_servers: []\n";
    let files = [("conf/ktransfer.yaml", main_file), ("conf/modules/wrong.yaml", wrong)];
    let mut daemon = Daemon::start(Program::Ktransfer, &files);
    assert_eq!(daemon.wait(DEADLINE).code(), Some(1));
    let output = daemon.output();
    for part in ["modules/missing.yaml", "protocol.name", "smtp", "worker_nmu", "backend_servers"] {
        assert!(output.contains(part), "{part:?} in {output}");
    }
}
