//! ktransfer while ZooKeeper or a broker is down: it reports the outage, loses no message, and recovers by itself.
//!
//! Each story has a cluster of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::delivery::wait_until_delivered;
use crate::harness::message::{METHODS, Message};
use crate::harness::oracle::MessageId;
use crate::harness::{
    Backend, Cluster, ConfigFile, Daemon, Ktransfer, Program, STOP_DEADLINE, configs, kafka_wire, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(90);
const N_PARTITIONS: i32 = 4;
const N_KEYS: u64 = 8;
const MODULE: &str = "outage_module";

/// A cluster with one topic, one module and one backend.
struct ModuleFixture {
    cluster: Cluster,
    topic: String,
    backend: Backend,
    ids: Vec<MessageId>,
}

impl ModuleFixture {
    fn new() -> ModuleFixture {
        let cluster = Cluster::start(1);
        let topic = cluster.new_topic("outage", N_PARTITIONS);
        ModuleFixture { cluster, topic, backend: Backend::start(), ids: Vec::new() }
    }

    /// Appends `n` more messages of each key to the topic.
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

    fn start_ktransfer(&self) -> Ktransfer {
        let module_file = configs::filtered_module(&self.topic, &[self.backend.address()]);
        Ktransfer::start(configs::ktransfer(&self.cluster), &[(MODULE, module_file)])
    }

    /// Waits until every message is delivered; returns the number of repeats.
    fn wait_until_delivered(&self) -> usize {
        wait_until_delivered(self.backend.journal(), &self.ids, DEADLINE)
    }
}

#[test]
fn a_zookeeper_that_is_down_at_the_start_is_retried_and_one_that_restarts_costs_no_message() {
    let mut fixture = ModuleFixture::new();
    fixture.produce(20);
    fixture.cluster.zookeeper_server.kill9();
    let mut ktransfer = fixture.start_ktransfer();
    wait_until(DEADLINE, "/readyz names ZooKeeper", || {
        let (status, body) = ktransfer.readiness();
        status == 503 && body.contains("ZooKeeper")
    });
    assert_eq!(fixture.backend.n_requests(), 0, "pushed without a claim");

    fixture.cluster.zookeeper_server.restart();
    ktransfer.wait_until_ready();
    assert_eq!(fixture.wait_until_delivered(), 0);

    fixture.cluster.zookeeper_server.kill9();
    fixture.cluster.zookeeper_server.restart();
    fixture.produce(20);
    let n_repeats = fixture.wait_until_delivered();
    assert!(n_repeats <= fixture.ids.len() / 2, "{n_repeats} repeats although the offsets were stored long before");
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn reading_continues_where_it_was_after_a_broker_restarts() {
    let mut fixture = ModuleFixture::new();
    let mut ktransfer = fixture.start_ktransfer();
    ktransfer.wait_until_ready();
    fixture.produce(20);
    assert_eq!(fixture.wait_until_delivered(), 0);

    let broker = &fixture.cluster.kafka_servers[0];
    broker.kill9();
    broker.restart();
    wait_until(DEADLINE, "the broker leads the topic again", || {
        let ends = kafka_wire::log_ends(&fixture.cluster.brokers, &fixture.topic);
        ends.is_ok_and(|ends| ends.len() == N_PARTITIONS as usize)
    });
    fixture.produce(20);
    assert_eq!(fixture.wait_until_delivered(), 0, "the claims were kept, so there are no repeats");
    ktransfer.daemon.stop(STOP_DEADLINE);
    let stored = fixture.cluster.stored_offsets_sum(MODULE, &fixture.topic, N_PARTITIONS);
    assert_eq!(stored, fixture.ids.len() as i64);
}

#[test]
fn a_broker_that_is_down_holds_up_only_its_own_partitions() {
    let cluster = Cluster::start(2);
    let topic = cluster.new_topic("halves", N_PARTITIONS);
    let backends = [Backend::start(), Backend::start()];
    let file = |backend: &Backend| configs::module(&topic, &[backend.address()]);
    let mut before = Ktransfer::start_ready(&cluster, &[("before", file(&backends[0]))]);
    let leaders = cluster.leaders(&topic).expect("the topic exists");
    let dead = leaders[&0];
    let (lost, kept): (Vec<i32>, Vec<i32>) = (0..N_PARTITIONS).partition(|partition| leaders[partition] == dead);
    assert!(!kept.is_empty(), "both brokers lead partitions: {leaders:?}");
    let broker = &cluster.kafka_servers[usize::try_from(dead).expect("an id")];
    broker.kill9();
    before.daemon.wait_for_log("a broker cannot be reached for reading", DEADLINE);
    let produce = |partitions: &[i32]| {
        partitions.iter().for_each(|partition| cluster.produce(&topic, *partition, &[(b"k", b"v")]));
    };
    produce(&kept);
    // A group that begins now places the partitions of the broker that runs, too.
    let mut after = Ktransfer::start(configs::ktransfer(&cluster), &[("after", file(&backends[1]))]);
    for backend in &backends {
        backend.wait_for_requests(kept.len(), DEADLINE);
    }
    assert_eq!(before.readiness().0, 200, "the partitions of the other broker are read");
    let (status, reason) = after.readiness();
    assert_eq!(status, 503, "where the partitions without a leader begin is not known: {reason}");

    broker.restart();
    wait_until(DEADLINE, "all partitions have leaders", || {
        let ends = kafka_wire::log_ends(&cluster.brokers, &topic);
        ends.is_ok_and(|ends| ends.len() == N_PARTITIONS as usize)
    });
    produce(&lost);
    for backend in &backends {
        backend.wait_for_requests(N_PARTITIONS as usize, DEADLINE);
    }
    after.wait_until_ready();
    for ktransfer in [&mut before, &mut after] {
        ktransfer.daemon.stop(STOP_DEADLINE);
    }
}

#[test]
fn missing_and_wrong_module_files_are_named_and_ktransfer_exits_with_1() {
    let main_file = ConfigFile::of("ktransfer").set("module_enabled", ["missing", "wrong"]).text();
    let wrong = ConfigFile::of("module")
        .set("protocol.name", "smtp")
        .set_unknown("worker_nmu", 3)
        .set("backend_servers", [""; 0])
        .text();
    let files = [("conf/ktransfer.yaml", main_file.as_str()), ("conf/modules/wrong.yaml", &wrong)];
    let mut daemon = Daemon::start(Program::Ktransfer, &files);
    assert_eq!(daemon.wait(DEADLINE).code(), Some(1));
    let output = daemon.output();
    for part in ["modules/missing.yaml", "protocol.name", "smtp", "worker_nmu", "backend_servers"] {
        assert!(output.contains(part), "{part:?} in {output}");
    }
}
