//! kmonitor: what it costs ZooKeeper, also one before 3.6.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::harness::fake_zookeeper::{FakeZooKeeper, Nodes, ONE_OF};
use crate::harness::keeper::KeeperSession;
use crate::harness::{Kmonitor, cluster, configs, kafka_wire, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const N_MODULES: usize = 6;
const N_PARTITIONS: usize = 20;

/// Starts a ZooKeeper of modules whose topics are on the shared cluster, and a kmonitor.
fn start(has_multi_read: bool) -> (FakeZooKeeper, Kmonitor) {
    let cluster = cluster();
    let (host, port) = cluster.broker_list()[0].rsplit_once(':').expect("host:port");
    let brokers = vec![(host.to_owned(), port.parse().expect("a port"))];
    let nodes = Nodes { modules: N_MODULES, partitions: N_PARTITIONS, brokers, has_multi_read };
    let zookeeper = FakeZooKeeper::start(nodes);
    let config = configs::kmonitor_for("", &[("many", &zookeeper.address)]).set("base.poll_interval_ms", 500);
    let mut kmonitor = Kmonitor::start(&config);
    kmonitor.wait_until_ready();
    (zookeeper, kmonitor)
}

/// Each log has one message.
fn wait_for_all(kmonitor: &Kmonitor) {
    let delays = |index: usize| -> Map<String, Value> {
        let delay = u8::from(index.is_multiple_of(ONE_OF));
        (0..N_PARTITIONS).map(|partition| (partition.to_string(), json!(delay))).collect()
    };
    let all: Map<String, Value> =
        (0..N_MODULES).map(|index| (format!("module_{index}"), Value::Object(delays(index)))).collect();
    wait_until(DEADLINE, "all delays are known", || kmonitor.get("/delay").json() == json!({"many": all}));
}

#[test]
fn a_zookeeper_without_multi_read_loses_no_answer_when_that_is_found_out() {
    let nodes = Nodes { modules: 5, partitions: 100, brokers: Vec::new(), has_multi_read: false };
    let zookeeper = FakeZooKeeper::start(nodes);
    let session = KeeperSession::connect(std::slice::from_ref(&zookeeper.address), "");
    let path = |number: usize| format!("/consumers/module_{0}/offsets/topic_{0}/{1}", number % 5, number / 5);
    let paths: Vec<String> = (0..500).map(path).collect();
    wait_until(DEADLINE, "there is a session", || session.keeper.reachable().is_ok());
    for attempt in ["the first", "the second"] {
        let found = session.keeper.read_many(&paths);
        let failed = found.nodes.iter().find(|node| !matches!(node, Ok(Some(_))));
        assert_eq!((failed, found.nodes.len(), found.cost), (None, 500, 500), "{attempt}");
    }
    session.close();
}

#[test]
fn a_zookeeper_with_multi_read_gets_few_requests_and_an_older_one_one_for_each_node() {
    const { assert!(N_MODULES > ONE_OF, "modules of both kinds") };
    for index in 0..N_MODULES {
        let partitions = i32::try_from(N_PARTITIONS).unwrap();
        let topic = format!("topic_{index}");
        kafka_wire::create_topic(&cluster().brokers, &topic, partitions, 1);
        (0..partitions).for_each(|partition| cluster().produce(&topic, partition, &[(&b"k"[..], &b"v"[..])]));
    }
    for (has_multi_read, is_cheap) in [(true, true), (false, false)] {
        let (zookeeper, kmonitor) = start(has_multi_read);
        wait_for_all(&kmonitor);
        let cycles = || {
            let metrics = kmonitor.get("/metrics").text();
            let polls = metrics.lines().filter(|line| line.starts_with("kmonitor_polls_total"));
            polls.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        let ((requests, nodes), before) = (zookeeper.requests(), cycles());
        wait_until(DEADLINE, "five more cycles", || before + 5 <= cycles());
        let ((requests_after, nodes_after), after) = (zookeeper.requests(), cycles());
        // A cycle in progress is counted by neither.
        let n_cycles = after - before + 1;
        let (requests, nodes) = ((requests_after - requests) / n_cycles, (nodes_after - nodes) / n_cycles);
        eprintln!("multi-read {has_multi_read}: {requests} requests a cycle, for {nodes} nodes");
        // Three nodes of each module, two of its topic, and its offsets: not the owners, which have not changed.
        let expected = (N_MODULES * (5 + N_PARTITIONS) + 5) as u64;
        assert!(nodes <= expected, "{nodes} nodes a cycle, expected {expected}");
        assert_eq!(requests * 5 < nodes, is_cheap, "{requests} requests a cycle, for {nodes} nodes");
        let log = kmonitor.daemon.log();
        assert_eq!(log.contains("has no MultiRead"), !has_multi_read, "{log}");
    }
}
