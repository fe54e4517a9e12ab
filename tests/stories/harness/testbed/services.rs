//! The servers of a testbed: Kafka 3.9 with ZooKeeper, whose groups are in ZooKeeper, or Kafka 4.x alone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::kraft_cluster::LEADERS_RETURN;
use super::super::{Cluster, ConfigFile, Kafka, KraftCluster, Link, ZkClient, configs, group_wire};
use super::{SESSION, Size, TOPIC};

/// The servers, and the links of the instances to them.
pub(super) enum Services {
    WithZooKeeper {
        cluster: Box<Cluster>,
        /// The link of all instances to the broker.
        broker_link: Link,
        /// The link of each slot to ZooKeeper.
        zookeeper_links: Vec<Link>,
    },
    Kraft(KraftCluster),
}

/// Which servers a testbed has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    InZooKeeper,
    InKafka,
}

/// Reads the stored offsets by partition; `None` if the server does not answer.
pub(super) type OffsetReader = Box<dyn FnMut() -> Option<Vec<(i32, i64)>> + Send>;

impl Services {
    /// Starts the servers and creates the topic; returns the name of the module, too.
    pub(super) fn start(groups: Groups, size: &Size) -> (Services, String) {
        match groups {
            Groups::InZooKeeper => {
                let (cluster, broker_link) = Cluster::start_behind_link();
                cluster.create_topic(TOPIC, size.n_partitions);
                let zookeeper_links = (0..size.n_instances).map(|_| Link::to(&cluster.zookeeper)).collect();
                let services = Services::WithZooKeeper { cluster: Box::new(cluster), broker_link, zookeeper_links };
                (services, "testbed".to_owned())
            }
            Groups::InKafka => {
                let cluster = KraftCluster::start(size.n_instances);
                cluster.create_topic(TOPIC, size.n_partitions);
                let module = cluster.group_at_node_2("testbed");
                (Services::Kraft(cluster), module)
            }
        }
    }

    /// Creates the topic of dead letters, on the broker that coordinates the group; returns its name.
    pub(super) fn create_letters_topic(&self) -> String {
        match self {
            Services::WithZooKeeper { .. } => panic!("this testbed has one broker"),
            Services::Kraft(cluster) => cluster.topic_at_node_2("testbed_letters"),
        }
    }

    /// Returns `host:port` of each broker.
    pub(super) fn brokers(&self) -> Vec<&str> {
        match self {
            Services::WithZooKeeper { cluster, .. } => cluster.broker_list(),
            Services::Kraft(cluster) => cluster.broker_list(),
        }
    }

    /// Returns the main file of the instance in a slot.
    pub(super) fn config(&self, slot: usize) -> ConfigFile {
        let session_ms = SESSION.as_millis() as u64;
        match self {
            Services::WithZooKeeper { cluster, broker_link, zookeeper_links } => configs::ktransfer(cluster)
                .set("zk_hosts", [zookeeper_links[slot].address()])
                .set("zk_timeout_ms", session_ms)
                .set("broker_hosts", [broker_link.address()]),
            Services::Kraft(cluster) => {
                configs::ktransfer_without_zookeeper(&cluster.links_of(slot)).set("session_timeout_ms", session_ms)
            }
        }
    }

    /// Returns a reader of the stored offsets for a thread of its own.
    pub(super) fn offset_reader(&self, module: &str, n_partitions: i32) -> OffsetReader {
        match self {
            Services::WithZooKeeper { cluster, .. } => {
                let parent = format!("{}/consumers/{module}/offsets/{TOPIC}", cluster.chroot);
                let address = cluster.zookeeper.clone();
                let mut client = None;
                Box::new(move || {
                    if client.is_none() {
                        client = ZkClient::connect(&address).ok();
                    }
                    let offsets = read_offsets(client.as_ref()?, &parent, n_partitions);
                    if offsets.is_none() {
                        // ZooKeeper is down or frozen.
                        client = None;
                    }
                    offsets
                })
            }
            Services::Kraft(cluster) => {
                let (brokers, module) = (cluster.brokers.clone(), module.to_owned());
                Box::new(move || {
                    let committed = group_wire::committed(&brokers, &module, TOPIC, n_partitions).ok()?;
                    Some(committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect())
                })
            }
        }
    }

    /// Returns the number of partitions that have an owner, and the number of owners.
    pub(super) fn n_owned(&self, module: &str) -> (usize, usize) {
        match self {
            Services::WithZooKeeper { cluster, .. } => {
                let owners = cluster.owners(module, TOPIC);
                let members: std::collections::HashSet<&String> = owners.values().collect();
                (owners.len(), members.len())
            }
            Services::Kraft(cluster) => {
                let members = cluster.members(module, TOPIC).unwrap_or_default();
                let n_owners = members.values().filter(|partitions| !partitions.is_empty()).count();
                (members.values().map(Vec::len).sum(), n_owners)
            }
        }
    }

    /// Returns the log end and the stored offset of each partition.
    pub(super) fn ends_and_stored(&self, module: &str) -> BTreeMap<i32, (i64, Option<i64>)> {
        match self {
            Services::WithZooKeeper { cluster, .. } => {
                let stored = |partition| cluster.stored_offset(module, TOPIC, partition);
                cluster.log_ends(TOPIC).into_iter().map(|(id, end)| (id, (end, stored(id)))).collect()
            }
            Services::Kraft(cluster) => {
                let committed = cluster.committed(module, TOPIC);
                let stored = |partition| committed.get(&partition).map(|(offset, _)| *offset);
                cluster.log_ends(TOPIC).into_iter().map(|(id, end)| (id, (end, stored(id)))).collect()
            }
        }
    }

    /// Returns the claims and members that exist.
    pub(super) fn claims_and_members(&self, module: &str) -> Vec<String> {
        match self {
            Services::WithZooKeeper { cluster, .. } => {
                let owners = cluster.owners(module, TOPIC).into_iter();
                let claims = owners.map(|(partition, owner)| format!("the claim of {owner} on partition {partition}"));
                let members = cluster.children(&format!("/consumers/{module}/ids"));
                claims.chain(members.iter().map(|member| format!("member {member}"))).collect()
            }
            Services::Kraft(cluster) => match cluster.members(module, TOPIC) {
                Some(members) => members.keys().map(|member| format!("member {member}")).collect(),
                None => vec!["members that rebalance".to_owned()],
            },
        }
    }

    /// Returns how long after its restart a broker may become the coordinator again, which moves the group once more.
    pub(super) fn leaders_return(&self) -> Duration {
        match self {
            Services::WithZooKeeper { .. } => Duration::ZERO,
            Services::Kraft(_) => LEADERS_RETURN,
        }
    }

    /// Returns a broker: the first one, or the one that coordinates the group of the module.
    pub(super) fn broker(&self, is_coordinator: bool) -> &Kafka {
        match self {
            Services::WithZooKeeper { cluster, .. } => &cluster.kafka_servers[0],
            Services::Kraft(cluster) => &cluster.nodes[usize::from(is_coordinator)],
        }
    }

    /// Returns the links between an instance and the service of its group.
    pub(super) fn group_links(&self, slot: usize) -> &[Link] {
        match self {
            Services::WithZooKeeper { zookeeper_links, .. } => std::slice::from_ref(&zookeeper_links[slot]),
            Services::Kraft(cluster) => &cluster.links[slot],
        }
    }
}

fn read_offsets(client: &ZkClient, parent: &str, n_partitions: i32) -> Option<Vec<(i32, i64)>> {
    let mut offsets = Vec::new();
    for partition in 0..n_partitions {
        let text = client.try_read(&format!("{parent}/{partition}")).ok()?;
        let offset = text.and_then(|text| text.parse().ok()).filter(|offset| *offset >= 0);
        offsets.extend(offset.map(|offset| (partition, offset)));
    }
    Some(offsets)
}
