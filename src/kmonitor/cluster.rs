//! One cluster's poller: reads the stored offsets, then the newest ones, and puts the outcome on the board.
//!
//! The order matters. Both grow, so a stored offset that was read first can only make the delay larger than it was
//! at any moment in between, never smaller; a message is never hidden.
//!
//! A cluster that is away keeps only its own poller busy: nothing is shared between clusters but the board.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use prometheus::{Histogram, IntCounter};

use crate::admin::Component;
use crate::keeper::{KeeperError, SharedKeeper};
use crate::shutdown::Stop;

use super::board::{Place, View};
use super::delay::{LogEnd, ModuleDelay, StoredByModule, join};
use super::log_ends::{BrokerLogEnds, NewestOffsets};
use super::stored_offsets::{GroupReader, ReadError};

/// The pause after a reading that took longer than the interval, so that ZooKeeper has one too.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The pause after a reading that failed, where the interval is longer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A trouble that lasts is told again after so long.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// Stored offsets are read for so long at most, or half the interval, before their newest ones are.
const LONGEST_BATCH: Duration = Duration::from_secs(1);

/// Finds brokers of the cluster, as `host:port`.
pub type FindBrokers = Box<dyn FnMut() -> Result<Vec<String>, KeeperError> + Send>;

type Modules = BTreeMap<Arc<str>, ModuleDelay>;

/// Everything the poller of one cluster needs.
pub struct Poller {
    /// Name of the cluster, for the log.
    pub name: String,
    /// Its ZooKeeper.
    pub keeper: SharedKeeper,
    /// Where its brokers are; asked at each reading, for they may move.
    pub find_brokers: FindBrokers,
    /// Its brokers.
    pub log_ends: BrokerLogEnds,
    /// From the beginning of one reading to that of the next.
    pub interval: Duration,
    /// Where the outcome goes.
    pub place: Place,
    /// Its state in `/readyz`.
    pub component: Component,
    /// What is counted.
    pub metrics: PollMetrics,
}

/// What is counted of one cluster.
pub struct PollMetrics {
    /// Readings in which everything was told.
    pub complete: IntCounter,
    /// Readings in which something stayed unknown.
    pub incomplete: IntCounter,
    /// How long they took.
    pub seconds: Histogram,
}

impl Poller {
    /// Polls until the stop.
    pub fn run(mut self, stop: &Stop) {
        let mut trouble = Trouble::default();
        loop {
            let began = Instant::now();
            let outcome = self.poll(stop);
            if stop.is_triggered() {
                return;
            }
            self.metrics.seconds.observe(began.elapsed().as_secs_f64());
            let counter = if outcome.is_ok() { &self.metrics.complete } else { &self.metrics.incomplete };
            counter.inc();
            trouble.tell(&self.name, &outcome);
            let interval = if outcome.is_ok() { self.interval } else { self.interval.min(RETRY_PAUSE) };
            self.component.set(outcome);
            if !stop.sleep(interval.saturating_sub(began.elapsed()).max(SHORTEST_PAUSE)) {
                return;
            }
        }
    }

    /// Reads once. The error is in words; the board then shows as much as is known.
    fn poll(&mut self, stop: &Stop) -> Result<(), String> {
        let began = Instant::now();
        match self.read(stop) {
            Ok((modules, trouble)) => {
                self.place.put(Some(View::new(modules, began, self.interval)));
                trouble.map_or(Ok(()), |cause| Err(format!("newest offsets cannot be read: {cause}")))
            }
            Err(ReadError::Stopped) => Ok(()),
            Err(ReadError::Keeper(cause)) => {
                self.place.put(None);
                Err(format!("the stored offsets cannot be read: {cause}"))
            }
        }
    }

    /// All modules, and why some of their newest offsets are unknown, if so.
    ///
    /// Many groups are read in batches, each followed by its newest offsets, so that both are of nearly the same time
    /// however many there are.
    fn read(&mut self, stop: &Stop) -> Result<(Modules, Option<String>), ReadError> {
        let keeper = self.keeper.clone();
        let mut reader = GroupReader::new(&*keeper, stop);
        let mut groups = reader.names()?.into_iter().peekable();
        let (mut askable, mut trouble) = match (self.find_brokers)() {
            Ok(hosts) => (Some(hosts), None),
            Err(cause) => (None, Some(cause.to_string())),
        };
        let mut modules = Modules::new();
        while groups.peek().is_some() {
            let batch_ends = Instant::now() + LONGEST_BATCH.min(self.interval / 2);
            let mut by_module = StoredByModule::new();
            for group in groups.by_ref() {
                by_module.extend(reader.stored(&group)?.map(|stored| (group.into(), stored)));
                if batch_ends <= Instant::now() {
                    break;
                }
            }
            let newest =
                askable.as_ref().map_or_else(NewestOffsets::default, |hosts| self.log_ends.newest(hosts, &by_module));
            if newest.is_silence {
                // Each further question of this reading would wait in vain as well.
                askable = None;
            }
            let end_of = |partition: &_| newest.ends.get(partition).copied().unwrap_or(LogEnd::Unknown);
            modules.extend(join(by_module, end_of));
            trouble = trouble.or(newest.trouble);
        }
        Ok((modules, trouble))
    }
}

/// Tells the log when a trouble begins, lasts and ends, without a line a reading.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Trouble {
    fn tell(&mut self, cluster: &str, outcome: &Result<(), String>) {
        let now = Instant::now();
        match outcome {
            Ok(()) => {
                if let Some(since) = self.since.take()
                    && self.told.is_some()
                {
                    info!("cluster {cluster}: all is read again after {} s", (now - since).as_secs());
                }
                self.told = None;
            }
            Err(cause) => {
                // The first time may be a session that is just beginning; one that lasts is told with the next.
                let Some(_) = self.since else {
                    self.since = Some(now);
                    return debug!("cluster {cluster}: {cause}");
                };
                if self.told.is_none_or(|told| REMIND_AFTER <= now - told) {
                    self.told = Some(now);
                    warn!("cluster {cluster}: {cause}; its unknown delays are left out, and it is tried again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Health;
    use crate::broker::LogEnds;
    use crate::broker::in_memory::MemoryBroker;
    use crate::keeper::memory::{MemoryKeeper, MemorySession};
    use crate::keeper::{Keeper, Lifetime};
    use crate::kmonitor::board::Board;
    use crate::kmonitor::stored_offsets::tests::put;
    use crate::metrics::Registry;

    struct Rig {
        tree: MemoryKeeper,
        keeper: Arc<MemorySession>,
        broker: MemoryBroker,
        board: Board,
        poller: Poller,
    }

    fn rig() -> Rig {
        let tree = MemoryKeeper::new();
        let keeper = tree.session(Duration::from_secs(6));
        let broker = MemoryBroker::new();
        broker.create_topic("t", 2);
        let board = Board::new(["c"]);
        let registry = Registry::new();
        let asked = broker.clone();
        let poller = Poller {
            name: "c".into(),
            keeper: keeper.clone(),
            find_brokers: Box::new(|| Ok(vec!["b:1".into()])),
            log_ends: BrokerLogEnds::new(Box::new(move |_| Ok(Box::new(asked.log_ends()) as Box<dyn LogEnds>))),
            interval: Duration::from_secs(5),
            place: board.places().remove(0),
            component: Health::new().component("c"),
            metrics: PollMetrics {
                complete: registry.counter("a_total", "A.", &[]).with_label_values::<&str>(&[]),
                incomplete: registry.counter("b_total", "B.", &[]).with_label_values::<&str>(&[]),
                seconds: registry.histogram("c", "C.", &[], &[1.0]).with_label_values::<&str>(&[]),
            },
        };
        Rig { tree, keeper, broker, board, poller }
    }

    /// Modules with their delays by number.
    type Delays = Vec<(String, Vec<(i32, u64)>)>;

    impl Rig {
        /// What `/delay` would show after one more reading.
        fn delays(&mut self) -> Option<Delays> {
            let _ = self.poller.poll(&Stop::new());
            let view = self.board.views().remove(0).1?;
            let numbers = |delays: &BTreeMap<_, _>| delays.iter().map(|(number, delay)| (*number, *delay)).collect();
            Some(view.modules.iter().map(|(name, module)| (name.to_string(), numbers(&module.by_number))).collect())
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
    fn what_is_away_is_unknown_and_comes_back() {
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

    /// Moves the stored offset, as a pusher does, at the moment the newest offsets are asked for.
    struct Meddling(Arc<MemorySession>, Box<dyn LogEnds>);

    impl LogEnds for Meddling {
        fn partitions(
            &mut self,
            topic: &str,
        ) -> Result<Vec<crate::broker::PartitionInfo>, crate::broker::MetadataError> {
            self.1.partitions(topic)
        }

        fn newest(
            &mut self,
            partitions: &[crate::broker::TopicPartition],
        ) -> Vec<Result<i64, crate::broker::MetadataError>> {
            put(&*self.0, "/consumers/m/offsets/t/0", "5");
            self.1.newest(partitions)
        }

        fn range(
            &mut self,
            partition: &crate::broker::TopicPartition,
        ) -> Result<crate::broker::LogRange, crate::broker::MetadataError> {
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
            Ok(Box::new(Meddling(keeper.clone(), Box::new(broker.log_ends()))) as Box<dyn LogEnds>)
        }));
        assert_eq!(rig.delays(), Some(vec![("m".into(), vec![(0, 3)])]));
        assert_eq!(rig.delays(), Some(vec![("m".into(), vec![(0, 0)])]));
    }

    #[test]
    fn many_groups_are_read_in_batches_each_with_its_newest_offsets() {
        let mut rig = rig();
        // No time for a batch: every group is one.
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
        let (modules, trouble) = rig.poller.read(&Stop::new()).unwrap();
        assert!(modules.len() == 3 && modules.values().all(|module| module.by_number.is_empty()));
        assert!(trouble.is_some());
    }

    #[test]
    fn a_poller_recovers_by_itself_and_obeys_the_stop() {
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
        wait(&|| health.troubles().is_empty() && rig.board.views()[0].1.is_some());
        rig.keeper.create("/consumers", b"", Lifetime::Persistent).unwrap();
        stop.trigger();
        thread.join().unwrap();
    }
}
