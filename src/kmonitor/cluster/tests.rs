//! Tests of the poller with a ZooKeeper and a broker in memory.

use super::*;
use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{LogEnds, LogRange, MetadataError, PartitionInfo, TopicPartition};
use crate::keeper::in_memory::{InMemoryEnsemble, InMemoryKeeper};
use crate::keeper::{Keeper, Lifetime};
use crate::kmonitor::snapshot::SnapshotStore;
use crate::kmonitor::stored_offsets::tests::put;
use crate::metrics::Registry;

struct Rig {
    tree: InMemoryEnsemble,
    keeper: Arc<InMemoryKeeper>,
    broker: MemoryBroker,
    store: SnapshotStore,
    poller: Poller,
}

fn rig() -> Rig {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    let broker = MemoryBroker::new();
    broker.create_topic("t", 2);
    let store = SnapshotStore::new(["c"]);
    let registry = Registry::new();
    let source = broker.clone();
    let poller = Poller {
        name: "c".into(),
        keeper: keeper.clone(),
        find_brokers: Box::new(|| Ok(vec!["b:1".into()])),
        log_ends: BrokerLogEnds::new(Box::new(move |_| Ok(Box::new(source.log_ends()) as Box<dyn LogEnds>))),
        interval: Duration::from_secs(5),
        writer: store.writers().remove(0),
        component: Health::new().component("c"),
        metrics: PollMetrics {
            complete: registry.counter("a_total", "A.", &[]).with_label_values::<&str>(&[]),
            incomplete: registry.counter("b_total", "B.", &[]).with_label_values::<&str>(&[]),
            seconds: registry.histogram("c", "C.", &[], &[1.0]).with_label_values::<&str>(&[]),
        },
    };
    Rig { tree, keeper, broker, store, poller }
}

/// Modules with their delays by partition number.
type Delays = Vec<(String, Vec<(i32, u64)>)>;

impl Rig {
    /// Polls once and returns the delays of the snapshot, `None` if there is no snapshot.
    fn delays(&mut self) -> Option<Delays> {
        let _ = self.poller.poll(&Stop::new());
        let snapshot = self.store.snapshots().remove(0).1?;
        let numbers = |delays: &BTreeMap<_, _>| delays.iter().map(|(number, delay)| (*number, *delay)).collect();
        Some(snapshot.modules.iter().map(|(name, module)| (name.to_string(), numbers(&module.by_number))).collect())
    }
}

#[test]
fn the_delay_grows_while_no_offset_is_stored_and_a_deleted_group_disappears() {
    let mut rig = rig();
    assert_eq!(rig.delays(), Some(vec![]));
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "0");
    put(&*rig.keeper, "/consumers/m/offsets/t/1", "junk");
    for grown in 1..4 {
        rig.broker.put("t", 0, None, b"x");
        rig.broker.put("t", 1, None, b"x");
        assert_eq!(rig.delays(), Some(vec![("m".into(), vec![(0, grown)])]));
    }
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "3");
    put(&*rig.keeper, "/consumers/m/offsets/t/1", "1");
    assert_eq!(rig.delays(), Some(vec![("m".into(), vec![(0, 0), (1, 2)])]));
    for path in ["t/0", "t/1", "t", ""] {
        let path = format!("/consumers/m/offsets/{path}");
        let path = path.trim_end_matches('/');
        let version = rig.keeper.read(path).unwrap().unwrap().version;
        rig.keeper.delete(path, version).unwrap();
    }
    assert_eq!(rig.delays(), Some(vec![]));
}

#[test]
fn delays_are_unknown_while_brokers_or_zookeeper_cannot_be_reached() {
    let mut rig = rig();
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "0");
    let known = Some(vec![("m".to_owned(), vec![(0, 0)])]);
    assert_eq!(rig.delays(), known);
    rig.broker.set_reachable(false);
    assert_eq!(rig.delays(), Some(vec![("m".into(), vec![])]));
    rig.broker.set_reachable(true);
    assert_eq!(rig.delays(), known);
    rig.tree.set_reachable(false);
    assert_eq!(rig.delays(), None);
    rig.tree.set_reachable(true);
    assert_eq!(rig.delays(), known);
    rig.poller.find_brokers = Box::new(|| Err(KeeperError::Unreachable("gone".into())));
    assert_eq!(rig.delays(), Some(vec![("m".into(), vec![])]));
}

/// Moves the stored offset, as ktransfer does, at the moment when the newest offsets are requested.
struct CommitDuringRead(Arc<InMemoryKeeper>, Box<dyn LogEnds>);

impl LogEnds for CommitDuringRead {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        self.1.partitions(topic)
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<i64, MetadataError>> {
        put(&*self.0, "/consumers/m/offsets/t/0", "5");
        self.1.newest(partitions)
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        self.1.range(partition)
    }
}

#[test]
fn the_stored_offset_is_read_before_the_newest() {
    let mut rig = rig();
    let (keeper, broker) = (rig.keeper.clone(), rig.broker.clone());
    for _ in 0..5 {
        broker.put("t", 0, None, b"x");
    }
    put(&*keeper, "/consumers/m/offsets/t/0", "2");
    rig.poller.log_ends = BrokerLogEnds::new(Box::new(move |_| {
        Ok(Box::new(CommitDuringRead(keeper.clone(), Box::new(broker.log_ends()))) as Box<dyn LogEnds>)
    }));
    assert_eq!(rig.delays(), Some(vec![("m".into(), vec![(0, 3)])]));
    assert_eq!(rig.delays(), Some(vec![("m".into(), vec![(0, 0)])]));
}

#[test]
fn many_groups_are_read_in_batches_each_with_its_newest_offsets() {
    let mut rig = rig();
    // Without an interval every group is a batch of its own.
    rig.poller.interval = Duration::ZERO;
    for group in ["a", "b", "c"] {
        put(&*rig.keeper, &format!("/consumers/{group}/offsets/t/0"), "0");
    }
    rig.broker.put("t", 0, None, b"x");
    let known = ["a", "b", "c"].map(|name| (name.to_owned(), vec![(0, 1)]));
    let modules = rig.poller.read(&Stop::new()).unwrap().0;
    let delays = modules.iter().map(|(name, m)| (name.to_string(), m.by_number.clone().into_iter().collect()));
    assert_eq!(delays.collect::<Delays>(), known);
    rig.broker.set_reachable(false);
    let (modules, failure) = rig.poller.read(&Stop::new()).unwrap();
    assert!(modules.len() == 3 && modules.values().all(|module| module.by_number.is_empty()));
    assert!(failure.is_some());
}

#[test]
fn a_poller_recovers_after_a_failure_and_ends_with_the_stop() {
    let mut rig = rig();
    rig.poller.interval = Duration::from_millis(1);
    rig.tree.set_reachable(false);
    let health = Health::new();
    rig.poller.component = health.component("cluster c");
    let stop = Stop::new();
    let stopped = stop.clone();
    let poller = rig.poller;
    let thread = std::thread::spawn(move || poller.run(&stopped));
    let wait = |condition: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    };
    wait(&|| health.troubles().iter().any(|(_, why)| why.contains("cannot be read")));
    rig.tree.set_reachable(true);
    wait(&|| health.troubles().is_empty() && rig.store.snapshots()[0].1.is_some());
    rig.keeper.create("/consumers", b"", Lifetime::Persistent).unwrap();
    stop.trigger();
    thread.join().unwrap();
}
