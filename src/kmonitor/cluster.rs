//! Polls one cluster: reads the stored offsets, then the newest ones, and writes the snapshot.
//!
//! The order matters, since both offsets only grow. A stored offset that was read first can make the delay larger than
//! it was at any moment in between, never smaller; a delay is never hidden.
//!
//! Clusters share nothing but the snapshot store, so a cluster that cannot be reached delays no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use prometheus::{Histogram, IntCounter};

use crate::admin::Component;
use crate::keeper::{KeeperError, SharedKeeper};
use crate::shutdown::Stop;

use super::delay::{LogEnd, ModuleDelay, StoredByModule, join};
use super::log_ends::{BrokerLogEnds, NewestOffsets};
use super::snapshot::{ClusterSnapshot, SnapshotWriter};
use super::stored_offsets::{GroupReader, ReadError};

/// The pause after a poll that took longer than the interval, so that ZooKeeper is not under constant load.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// The pause after a failed poll, where the interval is longer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A failure that lasts is logged again after this time.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// Stored offsets are read for at most this time, or half the interval, before their newest offsets are requested.
const MAX_BATCH_TIME: Duration = Duration::from_secs(1);

/// Finds brokers of the cluster, as `host:port`.
pub(super) type FindBrokers = Box<dyn FnMut() -> Result<Vec<String>, KeeperError> + Send>;

type Modules = BTreeMap<Arc<str>, ModuleDelay>;

/// Everything the poller of one cluster needs.
pub(super) struct Poller {
    /// Name of the cluster, for the log.
    pub name: String,
    /// The ZooKeeper of the cluster.
    pub keeper: SharedKeeper,
    /// Finds the brokers; called at each poll, since they may move.
    pub find_brokers: FindBrokers,
    /// The newest offsets, from these brokers.
    pub log_ends: BrokerLogEnds,
    /// From the beginning of one poll to that of the next.
    pub interval: Duration,
    /// Where the snapshots go.
    pub writer: SnapshotWriter,
    /// The state of the cluster in `/readyz`.
    pub component: Component,
    /// Counts and times the polls.
    pub metrics: PollMetrics,
}

/// The metrics of one cluster's polls.
pub(super) struct PollMetrics {
    /// Polls that found every delay.
    pub complete: IntCounter,
    /// Polls that left a delay unknown.
    pub incomplete: IntCounter,
    /// How long a poll took.
    pub seconds: Histogram,
}

impl Poller {
    /// Polls until the stop.
    pub(super) fn run(mut self, stop: &Stop) {
        let mut failures = FailureLog::default();
        loop {
            let began = Instant::now();
            let outcome = self.poll(stop);
            // A poll that the stop cut short is neither counted nor logged.
            if stop.is_triggered() {
                return;
            }
            self.metrics.seconds.observe(began.elapsed().as_secs_f64());
            let counter = if outcome.is_ok() { &self.metrics.complete } else { &self.metrics.incomplete };
            counter.inc();
            failures.record(&self.name, &outcome);
            let interval = if outcome.is_ok() { self.interval } else { self.interval.min(RETRY_PAUSE) };
            self.component.set(outcome);
            if !stop.sleep(interval.saturating_sub(began.elapsed()).max(MIN_PAUSE)) {
                return;
            }
        }
    }

    /// Polls once. After an error the snapshot has the delays that are known, or is withdrawn.
    fn poll(&mut self, stop: &Stop) -> Result<(), String> {
        let began = Instant::now();
        match self.read(stop) {
            Ok((modules, failure)) => {
                self.writer.put(Some(ClusterSnapshot::new(modules, began, self.interval)));
                failure.map_or(Ok(()), |cause| Err(format!("newest offsets cannot be read: {cause}")))
            }
            Err(ReadError::Stopped) => Ok(()),
            Err(ReadError::Keeper(cause)) => {
                self.writer.put(None);
                Err(format!("stored offsets cannot be read: {cause}"))
            }
        }
    }

    /// All modules, and why some of their newest offsets are unknown, if so.
    ///
    /// Groups are read in batches, each followed by its newest offsets: however many groups a cluster has, the stored
    /// and the newest offset of a partition are read at nearly the same time.
    fn read(&mut self, stop: &Stop) -> Result<(Modules, Option<String>), ReadError> {
        let keeper = self.keeper.clone();
        let mut reader = GroupReader::new(&*keeper, stop);
        let mut groups = reader.group_names()?.into_iter().peekable();
        let (mut hosts, mut failure) = match (self.find_brokers)() {
            Ok(hosts) => (Some(hosts), None),
            Err(cause) => (None, Some(cause.to_string())),
        };
        let mut modules = Modules::new();
        while groups.peek().is_some() {
            let batch_ends = Instant::now() + MAX_BATCH_TIME.min(self.interval / 2);
            let mut by_module = StoredByModule::new();
            for group in groups.by_ref() {
                by_module.extend(reader.stored_offsets(&group)?.map(|stored| (group.into(), stored)));
                if batch_ends <= Instant::now() {
                    break;
                }
            }
            let newest =
                hosts.as_ref().map_or_else(NewestOffsets::default, |hosts| self.log_ends.newest(hosts, &by_module));
            if newest.is_unreachable {
                // Each further request of this poll would time out as well.
                hosts = None;
            }
            let end_of = |partition: &_| newest.ends.get(partition).copied().unwrap_or(LogEnd::Unknown);
            modules.extend(join(by_module, end_of));
            failure = failure.or(newest.failure);
        }
        Ok((modules, failure))
    }
}

/// Logs when the failures of a cluster begin, last and end, instead of a line for each poll.
#[derive(Default)]
struct FailureLog {
    failing_since: Option<Instant>,
    last_logged: Option<Instant>,
}

impl FailureLog {
    fn record(&mut self, cluster: &str, outcome: &Result<(), String>) {
        let now = Instant::now();
        match outcome {
            Ok(()) => {
                if let Some(since) = self.failing_since.take()
                    && self.last_logged.is_some()
                {
                    info!("cluster {cluster}: all offsets can be read again, after {} s", (now - since).as_secs());
                }
                self.last_logged = None;
            }
            Err(cause) => {
                // The first failure may be a ZooKeeper session that is not established yet; only the next one is a
                // warning.
                let Some(_) = self.failing_since else {
                    self.failing_since = Some(now);
                    return debug!("cluster {cluster}: {cause}");
                };
                if self.last_logged.is_none_or(|last| REMIND_AFTER <= now - last) {
                    self.last_logged = Some(now);
                    warn!("cluster {cluster}: {cause}; unknown delays are left out, retrying");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Health;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{LogEnds, LogRange, MetadataError, PartitionInfo, TopicPartition};
    use crate::keeper::memory::{MemoryKeeper, MemorySession};
    use crate::keeper::{Keeper, Lifetime};
    use crate::kmonitor::snapshot::SnapshotStore;
    use crate::kmonitor::stored_offsets::tests::put;
    use crate::metrics::Registry;

    struct Rig {
        tree: MemoryKeeper,
        keeper: Arc<MemorySession>,
        broker: MemoryBroker,
        store: SnapshotStore,
        poller: Poller,
    }

    fn rig() -> Rig {
        let tree = MemoryKeeper::new();
        let keeper = tree.session(Duration::from_secs(6));
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
        /// The delays of the snapshot after one more poll.
        fn delays(&mut self) -> Option<Delays> {
            let _ = self.poller.poll(&Stop::new());
            let snapshot = self.store.snapshots().remove(0).1?;
            let numbers = |delays: &BTreeMap<_, _>| delays.iter().map(|(number, delay)| (*number, *delay)).collect();
            Some(snapshot.modules.iter().map(|(name, module)| (name.to_string(), numbers(&module.by_number))).collect())
        }
    }

    #[test]
    fn the_delay_grows_while_the_pusher_is_dead_and_a_deleted_group_disappears() {
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

    /// Moves the stored offset, as a pusher does, at the moment the newest offsets are requested.
    struct CommitDuringRead(Arc<MemorySession>, Box<dyn LogEnds>);

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
    fn a_poller_recovers_by_itself_and_ends_with_the_stop() {
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
}
