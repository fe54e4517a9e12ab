//! Two brokers 4.x without ZooKeeper, each behind a link for each instance of a daemon.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use kafka_http_wrapper::broker::Record;

use super::group_wire::{self, Committed};
use super::kafka_wire;
use super::{Kafka, Link, free_port, poll, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Properties of the brokers: internal topics survive one broker; a dead broker is noticed after 3 s, and gets its
/// partitions back soon after its restart; short sessions are allowed.
const PROPERTIES: [&str; 6] = [
    "offsets.topic.replication.factor=2",
    "broker.session.timeout.ms=3000",
    "broker.heartbeat.interval.ms=500",
    "leader.imbalance.check.interval.seconds=5",
    "group.min.session.timeout.ms=1000",
    "default.replication.factor=2",
];

/// How long after its start a broker gets its partitions back, as [`PROPERTIES`] say.
pub(crate) const LEADERS_RETURN: Duration = Duration::from_secs(5);

/// Two running brokers; dropping the value kills them. Node 1 is the controller.
pub(crate) struct KraftCluster {
    /// The nodes 1 and 2.
    pub(crate) nodes: Vec<Kafka>,
    /// The links of each instance, one for each node.
    pub(crate) links: Vec<Vec<Link>>,
    /// `host:port` of the brokers, separated by commas, not through a link.
    pub(crate) brokers: String,
}

/// Returns the cluster that the stories share; the first call starts it. No story may kill or freeze its brokers.
pub(crate) fn kraft_cluster() -> &'static KraftCluster {
    static SHARED: OnceLock<KraftCluster> = OnceLock::new();
    SHARED.get_or_init(|| KraftCluster::start(0))
}

impl KraftCluster {
    /// Starts the brokers with links for `n_instances`.
    pub(crate) fn start(n_instances: usize) -> KraftCluster {
        eprintln!("starting Kafka without ZooKeeper ...");
        let controller_port = free_port();
        let mut links: Vec<Vec<Link>> = (0..n_instances).map(|_| Vec::new()).collect();
        let mut nodes = Vec::new();
        let start = |node| Kafka::start_kraft_node(node, controller_port, n_instances, &PROPERTIES);
        let started = std::thread::scope(|scope| {
            [1, 2].map(|node| scope.spawn(move || start(node))).map(|node| node.join().expect("the node starts"))
        });
        for (kafka, of_node) in started {
            nodes.push(kafka);
            of_node.into_iter().zip(&mut links).for_each(|(link, of_instance)| of_instance.push(link));
        }
        let addresses: Vec<String> = nodes.iter().map(Kafka::address).collect();
        let cluster = KraftCluster { nodes, links, brokers: addresses.join(",") };
        wait_until(DEADLINE, "both brokers know each other", || {
            addresses.iter().all(|broker| kafka_wire::metadata(broker, &[]).is_ok_and(|known| known.brokers.len() == 2))
        });
        cluster
    }

    /// Returns `host:port` of each broker.
    pub(crate) fn broker_list(&self) -> Vec<&str> {
        self.brokers.split(',').collect()
    }

    /// Returns the addresses of the links of an instance.
    pub(crate) fn links_of(&self, instance: usize) -> Vec<String> {
        self.links[instance].iter().map(|link| link.address().to_owned()).collect()
    }

    /// Creates a topic with two replicas; returns when every partition has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32) {
        kafka_wire::create_topic(&self.brokers, name, partitions, 2);
    }

    /// Creates a topic with a name that is unique in this process, and returns the name.
    pub(crate) fn new_topic(&self, prefix: &str, partitions: i32) -> String {
        let name = super::unique(prefix);
        self.create_topic(&name, partitions);
        name
    }

    /// Creates a topic whose only partition has one replica, on node 2; returns the name.
    pub(crate) fn topic_at_node_2(&self, prefix: &str) -> String {
        wait_until(DEADLINE, "a topic on node 2", || {
            let name = super::unique(prefix);
            kafka_wire::create_topic(&self.brokers, &name, 1, 1);
            let known = kafka_wire::metadata(&self.brokers, &[&name]).ok()?;
            (known.leaders.get(&name)?.get(&0) == Some(&2)).then_some(name)
        })
    }

    /// Appends a message of each key to its partition: `n` rounds, one after the other.
    #[track_caller]
    pub(crate) fn produce(&self, topic: &str, keys: &[(i32, &str)], n: usize) {
        let record = |(partition, key): &(i32, &str)| Record {
            topic: topic.into(),
            partition: Some(*partition),
            key: Some(key.as_bytes().to_vec()),
            value: Some(b"text".to_vec()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        super::engine::append(&self.brokers, (0..n).flat_map(|_| keys.iter().map(record)).collect());
    }

    /// Returns a name for a group that begins with `prefix` and is coordinated by node 2.
    pub(crate) fn group_at_node_2(&self, prefix: &str) -> String {
        (0..64)
            .map(|number| format!("{prefix}{number}"))
            .find(|group| {
                let node = poll(DEADLINE, || group_wire::coordinator(&self.brokers, group).ok());
                node.expect("a group has a coordinator") == 2
            })
            .expect("node 2 coordinates half of all groups")
    }

    /// Returns the log end offset by partition.
    pub(crate) fn log_ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        poll(DEADLINE, || kafka_wire::log_ends(&self.brokers, topic).ok()).expect("the leaders answer")
    }

    /// Returns the committed offsets of a group, by partition.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, Committed> {
        let n_partitions = self.log_ends(topic).len() as i32;
        let found = poll(DEADLINE, || group_wire::committed(&self.brokers, group, topic, n_partitions).ok());
        found.expect("the coordinator answers")
    }

    /// Returns the assigned partitions by member; `None` during a rebalance.
    pub(crate) fn members(&self, group: &str, topic: &str) -> Option<BTreeMap<String, Vec<i32>>> {
        group_wire::members(&self.brokers, group, topic).ok()
    }
}
