//! A Kafka cluster with its ZooKeeper, and one cluster that the stories share.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kafka::client::{FetchPartition, KafkaClient, ProduceMessage, RequiredAcks};

use super::kafka_wire;
use super::secured::Certificates;
use super::{Kafka, Link, ZkClient, ZooKeeper, poll};

/// The chroot of each cluster in its ZooKeeper.
pub(crate) const CHROOT: &str = "/mq/test_cluster";

/// Deadline for the brokers to elect the leaders of a topic and to propagate the metadata.
const LEADERS_DEADLINE: Duration = Duration::from_secs(30);

/// A ZooKeeper server and the brokers that use it.
pub(crate) struct Cluster {
    /// `host:port` of ZooKeeper.
    pub(crate) zookeeper: String,
    pub(crate) chroot: &'static str,
    /// `host:port` of the brokers, separated by commas.
    pub(crate) brokers: String,
    pub(crate) zookeeper_server: ZooKeeper,
    pub(crate) kafka_servers: Vec<Kafka>,
}

/// A message as it is stored in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredMessage {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Returns the cluster that the stories share; the first call starts it. It has one broker, which no story may kill or
/// freeze.
pub(crate) fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let started = Instant::now();
        let cluster = Cluster::start(1);
        eprintln!("Kafka is ready after {:.1} s", started.elapsed().as_secs_f64());
        cluster
    })
}

/// Returns a name for a topic or a module that is unique in this process.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{prefix}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Cluster {
    /// Starts a cluster of the story's own, whose servers the story may kill and freeze.
    pub(crate) fn start(n_brokers: i32) -> Cluster {
        Cluster::start_with(n_brokers, &[])
    }

    /// As [`Cluster::start`], with further broker properties (lines `key=value`).
    pub(crate) fn start_with(n_brokers: i32, properties: &[&str]) -> Cluster {
        let zookeeper_server = ZooKeeper::start();
        eprintln!("ZooKeeper is ready; starting Kafka ...");
        let start = |id| Kafka::start(&zookeeper_server, CHROOT, id, properties);
        let kafka_servers: Vec<Kafka> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..n_brokers).map(|id| scope.spawn(move || start(id))).collect();
            starting.into_iter().map(|broker| broker.join().expect("the broker starts")).collect()
        });
        let brokers: Vec<String> = kafka_servers.iter().map(Kafka::address).collect();
        Cluster {
            zookeeper: zookeeper_server.address(),
            chroot: CHROOT,
            brokers: brokers.join(","),
            zookeeper_server,
            kafka_servers,
        }
    }

    /// Starts a cluster with one broker that has a second listener behind a link; returns the cluster and the link. The
    /// harness itself uses the first listener.
    pub(crate) fn start_behind_link() -> (Cluster, Link) {
        let zookeeper_server = ZooKeeper::start();
        let (broker, link) = Kafka::start_behind_link(&zookeeper_server, CHROOT);
        let cluster = Cluster {
            zookeeper: zookeeper_server.address(),
            chroot: CHROOT,
            brokers: broker.address(),
            zookeeper_server,
            kafka_servers: vec![broker],
        };
        (cluster, link)
    }

    /// Starts a cluster with one broker that has a second listener for SASL_SSL; returns the cluster and `host:port` of
    /// that listener. The harness itself uses the plaintext listener.
    pub(crate) fn start_secured(certificates: &Certificates) -> (Cluster, String) {
        let zookeeper_server = ZooKeeper::start();
        let (broker, secured) = Kafka::start_secured(&zookeeper_server, CHROOT, certificates);
        let cluster = Cluster {
            zookeeper: zookeeper_server.address(),
            chroot: CHROOT,
            brokers: broker.address(),
            zookeeper_server,
            kafka_servers: vec![broker],
        };
        (cluster, secured)
    }

    /// Returns `host:port` of each broker.
    pub(crate) fn broker_list(&self) -> Vec<&str> {
        self.brokers.split(',').collect()
    }

    /// Creates a topic with one replica; returns when every partition has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32) {
        kafka_wire::create_topic(&self.brokers, name, partitions, 1);
    }

    /// As [`Cluster::create_topic`], with `replication` replicas.
    pub(crate) fn create_replicated_topic(&self, name: &str, partitions: i32, replication: i16) {
        kafka_wire::create_topic(&self.brokers, name, partitions, replication);
    }

    /// As [`Cluster::new_topic`], with `replication` replicas and settings of the topic.
    pub(crate) fn new_topic_with(
        &self,
        prefix: &str,
        partitions: i32,
        replication: i16,
        settings: &[(&str, &str)],
    ) -> String {
        let name = unique(prefix);
        kafka_wire::create_topic_with(&self.brokers, &name, partitions, replication, settings);
        name
    }

    /// Deletes a topic; returns when no broker names the topic any more, and a topic of this name can be created again.
    pub(crate) fn delete_topic(&self, name: &str) {
        kafka_wire::delete_topic(&self.brokers, name);
        // While the controller still works on the deletion, a new topic of this name would be refused, or be deleted.
        let nodes = [format!("/brokers/topics/{name}"), format!("/admin/delete_topics/{name}")];
        let is_done = || nodes.iter().all(|node| self.read(node).is_none()).then_some(());
        assert!(poll(LEADERS_DEADLINE, is_done).is_some(), "the controller does not finish the deletion of {name}");
    }

    /// Increases the number of partitions of a topic; returns when every broker names all leaders.
    pub(crate) fn grow_topic(&self, name: &str, partitions: i32) {
        kafka_wire::grow_topic(&self.brokers, name, partitions);
    }

    /// Returns the leader of each partition; `None` if no broker answers.
    pub(crate) fn leaders(&self, topic: &str) -> Option<BTreeMap<i32, i32>> {
        kafka_wire::metadata(&self.brokers, &[topic]).ok()?.leaders.remove(topic)
    }

    /// Returns the in-sync replicas of each partition; `None` if no broker answers.
    pub(crate) fn in_sync(&self, topic: &str) -> Option<BTreeMap<i32, Vec<i32>>> {
        kafka_wire::metadata(&self.brokers, &[topic]).ok()?.in_sync.remove(topic)
    }

    /// Waits until every partition has `n_replicas` in-sync replicas.
    #[track_caller]
    pub(crate) fn wait_for_in_sync(&self, topic: &str, n_replicas: usize) {
        let mut last = None;
        let met = poll(Duration::from_secs(60), || {
            last = self.in_sync(topic);
            let partitions = last.as_ref()?;
            let is_met = partitions.values().all(|replicas| replicas.len() == n_replicas);
            (is_met && !partitions.is_empty()).then_some(())
        });
        assert!(met.is_some(), "{topic}: expected {n_replicas} replicas in sync, got {last:?}");
    }

    /// Moves the leader of each partition to its next replica, through ZooKeeper as an operator would; returns when all
    /// leaders have moved. All replicas must be in sync.
    pub(crate) fn move_leaders(&self, topic: &str) {
        let zk = self.zk();
        let node = format!("{}/brokers/topics/{topic}", self.chroot);
        let text = zk.read(&node).expect("the topic is in ZooKeeper");
        let document: serde_json::Value = serde_json::from_str(&text).expect("Kafka writes JSON");
        let partitions = document["partitions"].as_object().expect("partitions by number");
        let mut wanted = BTreeMap::new();
        let (mut reassignments, mut elections) = (Vec::new(), Vec::new());
        for (partition, replicas) in partitions {
            let partition: i32 = partition.parse().expect("a number");
            let mut replicas: Vec<i64> =
                replicas.as_array().expect("a list").iter().filter_map(|id| id.as_i64()).collect();
            replicas.rotate_left(1);
            wanted.insert(partition, replicas[0] as i32);
            reassignments.push(serde_json::json!({"topic": topic, "partition": partition, "replicas": replicas}));
            elections.push(serde_json::json!({"topic": topic, "partition": partition}));
        }
        for (name, list) in [("reassign_partitions", reassignments), ("preferred_replica_election", elections)] {
            let path = format!("{}/admin/{name}", self.chroot);
            let order = serde_json::json!({"version": 1, "partitions": list}).to_string();
            assert!(zk.create(&path, &order), "another {name} is in progress");
            // The controller deletes the node when it has carried out the request.
            let done = poll(Duration::from_secs(60), || zk.get(&path).is_none().then_some(()));
            assert!(done.is_some(), "the controller does not finish {name}");
        }
        let mut last = None;
        let met = poll(Duration::from_secs(60), || {
            last = self.leaders(topic);
            (last.as_ref()? == &wanted).then_some(())
        });
        assert!(met.is_some(), "leaders of {topic}: expected {wanted:?}, got {last:?}");
    }

    /// Creates a topic with one replica and a unique name; returns the name.
    pub(crate) fn new_topic(&self, prefix: &str, partitions: i32) -> String {
        let name = unique(prefix);
        self.create_topic(&name, partitions);
        name
    }

    /// Returns the log end offset by partition. Retries for up to [`LEADERS_DEADLINE`], since a broker that has just
    /// started may not know the leaders yet.
    pub(crate) fn log_ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let mut last_error = None;
        let ends = poll(LEADERS_DEADLINE, || match kafka_wire::log_ends(&self.brokers, topic) {
            Ok(ends) => Some(ends),
            Err(error) => {
                last_error = Some(error);
                None
            }
        });
        ends.unwrap_or_else(|| panic!("log ends of {topic}: {last_error:?}"))
    }

    /// Returns the number of messages in a topic: the sum of the log end offsets. The topic must start at offset 0.
    pub(crate) fn message_count(&self, topic: &str) -> i64 {
        self.log_ends(topic).values().sum()
    }

    /// Reads all messages of a topic, sorted by partition and offset. Record headers and timestamps are not included,
    /// since the `kafka` crate does not return them.
    pub(crate) fn messages(&self, topic: &str) -> Vec<StoredMessage> {
        let ends = self.log_ends(topic);
        let started = Instant::now();
        let mut client = self.kafka_client(topic);
        let mut messages = Vec::new();
        for (&partition, &end) in &ends {
            let mut next = 0;
            while next < end {
                let request = FetchPartition::new(topic, partition, next).with_max_bytes(16 << 20);
                let answers = client.fetch_messages([request]).expect("the broker answers a fetch");
                for part in answers.iter().flat_map(|answer| answer.topics()).flat_map(|topic| topic.partitions()) {
                    let Ok(data) = part.data() else {
                        // The leader may have moved since the metadata was read.
                        let error = part.data().err();
                        assert!(started.elapsed() < LEADERS_DEADLINE, "fetch of {topic}: {error:?}");
                        client.load_metadata(&[topic]).expect("the broker answers");
                        continue;
                    };
                    for message in data.messages() {
                        // A response starts with a whole batch, so it may begin before the requested offset.
                        if message.offset < next {
                            continue;
                        }
                        next = message.offset + 1;
                        messages.push(StoredMessage {
                            partition,
                            offset: message.offset,
                            key: message.key.to_vec(),
                            value: message.value.to_vec(),
                        });
                    }
                }
            }
        }
        messages
    }

    /// Appends messages (key and value; an empty key means no key) to a partition, without kproxy.
    pub(crate) fn produce(&self, topic: &str, partition: i32, messages: &[(&[u8], &[u8])]) {
        let mut client = self.kafka_client(topic);
        for chunk in messages.chunks(400) {
            let batch = chunk.iter().map(|(key, value)| {
                let key = (!key.is_empty()).then_some(*key);
                ProduceMessage::new(topic, partition, key, Some(*value))
            });
            let confirms = client
                .produce_messages(RequiredAcks::All, Duration::from_secs(10), batch)
                .expect("the broker stores the messages");
            for confirm in confirms.iter().flat_map(|confirm| &confirm.partition_confirms) {
                confirm.offset.as_ref().unwrap_or_else(|code| panic!("produce to {topic}: {code:?}"));
            }
        }
    }

    /// Returns a client that knows this topic alone: the stories make hundreds of others.
    fn kafka_client(&self, topic: &str) -> KafkaClient {
        let mut client = KafkaClient::new(self.brokers.split(',').map(str::to_owned).collect());
        client.load_metadata(&[topic]).expect("the broker answers");
        client
    }

    /// Opens a session with ZooKeeper; paths of this session include the chroot.
    pub(crate) fn zk(&self) -> ZkClient {
        self.zookeeper_server.client()
    }

    /// Reads a node as text; returns `None` if it does not exist. `path` is relative to the chroot.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        self.zk().read(&format!("{}{path}", self.chroot))
    }

    /// Returns the sorted names of a node's children. `path` is relative to the chroot.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        self.zk().children(&format!("{}{path}", self.chroot))
    }

    /// Returns the owner of each claimed partition of a module's topic, by partition.
    pub(crate) fn owners(&self, module: &str, topic: &str) -> BTreeMap<String, String> {
        let zk = self.zk();
        let parent = format!("{}/consumers/{module}/owners/{topic}", self.chroot);
        let owner = |partition: String| Some((zk.read(&format!("{parent}/{partition}"))?, partition));
        zk.children(&parent).into_iter().filter_map(owner).map(|(owner, partition)| (partition, owner)).collect()
    }

    /// Returns the sum of the offsets stored for a module's topic.
    pub(crate) fn stored_offsets_sum(&self, module: &str, topic: &str, n_partitions: i32) -> i64 {
        let zk = self.zk();
        (0..n_partitions).filter_map(|partition| self.read_offset(&zk, module, topic, partition)).sum()
    }

    /// Returns the offset stored for a partition of a module's topic; `None` if no offset is stored.
    pub(crate) fn stored_offset(&self, module: &str, topic: &str, partition: i32) -> Option<i64> {
        self.read_offset(&self.zk(), module, topic, partition)
    }

    fn read_offset(&self, zk: &ZkClient, module: &str, topic: &str, partition: i32) -> Option<i64> {
        let text = zk.read(&format!("{}/consumers/{module}/offsets/{topic}/{partition}", self.chroot))?;
        Some(text.parse().unwrap_or_else(|_| panic!("the stored offset {text:?} is not a number")))
    }
}
