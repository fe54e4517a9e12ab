//! A member of a group that behaves like the original, the Go program, towards ZooKeeper: the rules of its group
//! library (kazoo-go and wvanbergen/kafka), written independently of `src/ktransfer/group`.
//!
//! - It registers as an ephemeral node `ids/HOST:UUID`, with the topic in the registration.
//! - At each change of the members it stores its offsets, deletes its owner nodes, divides the partitions again and
//!   claims its range with ephemeral owner nodes. A partition that another member still owns is tried again.
//! - It continues at the stored offset, and stores the next offset without a condition.
//!
//! A message that it "pushes" is only recorded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::process::random;
use super::{Cluster, ZkClient};

const INTERVAL: Duration = Duration::from_millis(50);

/// Partitions and offsets, in the order of the pushes.
type Pushes = Arc<Mutex<Vec<(i32, i64)>>>;

/// A running member; dropping it makes it leave in order.
pub(crate) struct Original {
    pub(crate) id: String,
    pushes: Pushes,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Original {
    /// Starts a member of the group `group` that pushes `topic` of the shared cluster.
    pub(crate) fn start(cluster: &'static Cluster, group: &str, topic: &str) -> Original {
        let id = format!("original:{:016x}", random());
        let (pushes, stop) = (Pushes::default(), Arc::new(AtomicBool::new(false)));
        let mut member = State {
            cluster,
            zk: cluster.zk(),
            id: id.clone(),
            group: format!("{}/consumers/{group}", cluster.chroot),
            topic: topic.to_owned(),
            members: Vec::new(),
            wanted: Vec::new(),
            held: BTreeMap::new(),
            pushes: Arc::clone(&pushes),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            member.register();
            while !stopped.load(Ordering::Relaxed) {
                member.rebalance();
                member.claim();
                member.push();
                std::thread::sleep(INTERVAL);
            }
            member.release_all();
        });
        Original { id, pushes, stop, thread: Some(thread) }
    }

    /// Returns the pushes so far.
    pub(crate) fn pushes(&self) -> Vec<(i32, i64)> {
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Releases the claims and leaves the group; returns all pushes.
    pub(crate) fn leave(mut self) -> Vec<(i32, i64)> {
        self.end();
        self.pushes()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the member does not panic");
            }
        }
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        self.end();
    }
}

struct State {
    cluster: &'static Cluster,
    zk: ZkClient,
    id: String,
    /// The node of the group.
    group: String,
    topic: String,
    members: Vec<String>,
    /// The partitions of this member's range.
    wanted: Vec<i32>,
    /// The claimed partitions with their next offsets.
    held: BTreeMap<i32, i64>,
    pushes: Pushes,
}

impl State {
    fn register(&self) {
        for name in ["ids", "owners", "offsets"] {
            self.zk.create(&format!("{}/{name}", self.group), "");
        }
        let registration = format!(
            r#"{{"pattern":"static","subscription":{{"{}":1}},"timestamp":1400000000,"version":1}}"#,
            self.topic
        );
        assert!(self.zk.create_ephemeral(&format!("{}/ids/{}", self.group, self.id), &registration));
    }

    fn rebalance(&mut self) {
        let members = self.zk.children(&format!("{}/ids", self.group));
        if members == self.members {
            return;
        }
        self.release_all();
        let mut partitions: Vec<(i32, i32)> = self
            .cluster
            .leaders(&self.topic)
            .expect("the broker answers")
            .into_iter()
            .map(|(partition, leader)| (leader, partition))
            .collect();
        partitions.sort_unstable();
        let (size, longer) = (partitions.len() / members.len(), partitions.len() % members.len());
        let mut first = 0;
        for (number, member) in members.iter().enumerate() {
            let last = first + size + usize::from(number < longer);
            if *member == self.id {
                self.wanted = partitions[first..last].iter().map(|(_, partition)| *partition).collect();
            }
            first = last;
        }
        self.members = members;
    }

    fn claim(&mut self) {
        let missing: Vec<i32> =
            self.wanted.iter().copied().filter(|partition| !self.held.contains_key(partition)).collect();
        for partition in missing {
            self.zk.create(&format!("{}/owners/{}", self.group, self.topic), "");
            if self.zk.create_ephemeral(&self.owner(partition), &self.id) {
                let stored = self.zk.read(&self.offset(partition)).and_then(|text| text.parse().ok());
                // The original reads -1 as "nothing stored" and then begins at the oldest message.
                self.held.insert(partition, stored.filter(|offset: &i64| *offset >= 0).unwrap_or(0));
            }
        }
    }

    fn push(&mut self) {
        let messages = self.cluster.messages(&self.topic);
        for (partition, next) in &mut self.held {
            for message in messages.iter().filter(|message| message.partition == *partition) {
                if message.offset == *next {
                    *next += 1;
                    self.pushes.lock().unwrap_or_else(PoisonError::into_inner).push((*partition, message.offset));
                }
            }
        }
        self.store();
    }

    fn store(&self) {
        for (partition, next) in &self.held {
            let node = self.offset(*partition);
            if !self.zk.create(&node, &next.to_string()) {
                self.zk.write(&node, &next.to_string());
            }
        }
    }

    fn release_all(&mut self) {
        self.store();
        for partition in std::mem::take(&mut self.held).into_keys() {
            let owner = self.owner(partition);
            if self.zk.read(&owner).as_deref() == Some(&self.id) {
                self.zk.delete(&owner);
            }
        }
        self.wanted.clear();
    }

    fn owner(&self, partition: i32) -> String {
        format!("{}/owners/{}/{partition}", self.group, self.topic)
    }

    fn offset(&self, partition: i32) -> String {
        format!("{}/offsets/{}/{partition}", self.group, self.topic)
    }
}
