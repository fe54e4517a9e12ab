//! Tests of the poller with a ZooKeeper and a broker in memory.

use super::*;
use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{LogEnds, LogRange, MetadataError, PartitionInfo, TopicPartition};
use crate::keeper::in_memory::{InMemoryEnsemble, InMemoryKeeper};
use crate::keeper::{Keeper, Lifetime};
use crate::kmonitor::delay::by_module;
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::places::Times;
use crate::kmonitor::view_store::ViewStore;
use crate::kmonitor::zookeeper_source::tests::put;
use crate::metrics::Registry;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) struct Rig {
    tree: InMemoryEnsemble,
    keeper: Arc<InMemoryKeeper>,
    pub(super) broker: MemoryBroker,
    pub(super) store: ViewStore,
    pub(super) poller: Poller,
}

fn found(addresses: &[&str]) -> BrokerList {
    let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
    BrokerList { addresses, ..BrokerList::default() }
}

pub(super) fn rig() -> Rig {
    let tree = InMemoryEnsemble::new();
    let keeper = tree.connect(Duration::from_secs(6));
    let broker = MemoryBroker::new();
    broker.create_topic("t", 2);
    let store = ViewStore::new(["c"]);
    let registry = Registry::new();
    let source = broker.clone();
    let now = Instant::now();
    let times = Times { forget_after: None, left_behind_after: Duration::from_secs(600) };
    let poller = Poller {
        name: "c".into(),
        keeper: Some(keeper.clone()),
        groups: None,
        prober: None,
        filter: ModuleFilter::default(),
        find_brokers: Box::new(|| Ok(found(&["b:1"]))),
        log_reader: LogReader::new(Box::new(move |_| Ok(Box::new(source.log_ends()) as Box<dyn LogEnds>))),
        interval: Duration::from_secs(5),
        limits: Box::new(|_| Limits::default()),
        fresh_for: Duration::from_secs(15),
        places: Places::new("c".into(), vec![Source::Zookeeper], times),
        zookeeper_rate: RateLimit::new(1_000_000, now),
        kafka_rate: RateLimit::new(1_000_000, now),
        kafka_requests: RequestCounter::default(),
        writer: store.writers().remove(0),
        component: Health::new().component("c"),
        metrics: PollMetrics {
            complete: registry.counter("a_total", "A.", &[]).with_label_values::<&str>(&[]),
            incomplete: registry.counter("b_total", "B.", &[]).with_label_values::<&str>(&[]),
            seconds: registry.histogram("c", "C.", &[], &[1.0]).with_label_values::<&str>(&[]),
        },
        memory: Memory::default(),
    };
    Rig { tree, keeper, broker, store, poller }
}

/// Modules with their delays by partition number.
type Delays = Vec<(String, Vec<(i32, u64)>)>;

impl Rig {
    /// Polls once and returns the delays, `None` if the cluster is unknown.
    fn delays(&mut self) -> Option<Delays> {
        let _ = self.poller.poll(Extent::Whole, &Stop::new());
        let view = self.store.view().clusters.remove(0);
        let modules = by_module(&view, None).into_iter();
        view.known.then(|| modules.map(|(name, delays)| (name.to_string(), delays.into_iter().collect())).collect())
    }
}

fn of_m(delays: &[(i32, u64)]) -> Option<Delays> {
    Some(vec![("m".into(), delays.to_vec())])
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
        assert_eq!(rig.delays(), of_m(&[(0, grown)]));
    }
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "3");
    put(&*rig.keeper, "/consumers/m/offsets/t/1", "1");
    assert_eq!(rig.delays(), of_m(&[(0, 0), (1, 2)]));
    for path in ["t/0", "t/1", "t", ""] {
        let path = format!("/consumers/m/offsets/{path}");
        let path = path.trim_end_matches('/');
        let version = rig.keeper.read(path).unwrap().unwrap().version;
        rig.keeper.delete(path, version).unwrap();
    }
    assert_eq!(rig.delays(), Some(vec![]));
}

#[test]
fn a_partition_without_a_stored_offset_counts_from_its_oldest_message() {
    let mut rig = rig();
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "0");
    put(&*rig.keeper, "/consumers/owning/owners/t/0", "one");
    for _ in 0..5 {
        rig.broker.put("t", 1, None, b"x");
    }
    rig.broker.trim(&TopicPartition { topic: "t".into(), partition: 1 }, 2);
    let both =
        |delays: &[(i32, u64)]| Some(vec![("m".to_owned(), delays.to_vec()), ("owning".to_owned(), delays.to_vec())]);
    assert_eq!(rig.delays(), both(&[(0, 0), (1, 3)]));
    put(&*rig.keeper, "/consumers/m/offsets/t/1", "-1");
    assert_eq!(rig.delays(), both(&[(0, 0), (1, 3)]));
}

#[test]
fn what_retention_deleted_is_lost_and_no_delay() {
    let mut rig = rig();
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "10");
    for _ in 0..1_000 {
        rig.broker.put("t", 0, None, b"x");
    }
    rig.broker.trim(&TopicPartition { topic: "t".into(), partition: 0 }, 1_000);
    assert_eq!(rig.delays(), of_m(&[(0, 0), (1, 0)]));
    assert_eq!(rig.store.view().clusters[0].modules[0].lost, 0, "they may have been pushed before they were deleted");
    assert_eq!(rig.delays(), of_m(&[(0, 0), (1, 0)]));
    assert_eq!(rig.store.view().clusters[0].modules[0].lost, 990);
}

#[test]
fn a_recreated_topic_counts_from_its_beginning_by_its_id_or_by_two_readings() {
    for has_ids in [true, false] {
        let mut rig = rig();
        rig.broker.set_topic_ids(has_ids);
        for _ in 0..5 {
            rig.broker.put("t", 0, None, b"x");
        }
        put(&*rig.keeper, "/consumers/m/offsets/t/0", "5");
        assert_eq!(rig.delays(), of_m(&[(0, 0), (1, 0)]));
        rig.broker.recreate_topic("t", 1);
        for _ in 0..3 {
            rig.broker.put("t", 0, None, b"x");
        }
        put(&*rig.keeper, "/consumers/other/offsets/t/0", "500");
        // The topic is looked up again every few seconds.
        rig.poller.log_reader = LogReader::new({
            let source = rig.broker.clone();
            Box::new(move |_| Ok(Box::new(source.log_ends()) as Box<dyn LogEnds>))
        });
        let _ = rig.delays();
        let expected = |m| Some(vec![("m".to_owned(), vec![(0, m)]), ("other".to_owned(), vec![(0, 3)])]);
        // Without ids the end went back, which may be the moment after an election.
        assert_eq!(rig.delays(), if has_ids { expected(3) } else { None.or(Some(rig.delays().unwrap())) });
        if has_ids {
            put(&*rig.keeper, "/consumers/m/offsets/t/0", "1");
            assert_eq!(rig.delays(), expected(2), "pushed again, the stored offset is that of the new topic");
        }
    }
}

#[test]
fn what_is_known_is_kept_while_brokers_or_zookeeper_cannot_be_reached() {
    let mut rig = rig();
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "0");
    rig.broker.put("t", 0, None, b"x");
    let known = of_m(&[(0, 1), (1, 0)]);
    assert_eq!(rig.delays(), known);
    let is_ready = |rig: &Rig| rig.poller.readiness().is_ok();
    rig.broker.set_reachable(false);
    assert_eq!((rig.delays(), is_ready(&rig)), (known.clone(), true));
    rig.tree.set_reachable(false);
    assert_eq!((rig.delays(), is_ready(&rig)), (known.clone(), true));
    // What is too old is unknown: first the numbers, then the cluster.
    rig.tree.set_reachable(true);
    rig.poller.limits = Box::new(|_| Limits { fresh_for: Duration::ZERO, ..Limits::default() });
    rig.poller.interval = Duration::ZERO;
    // The time of three cycles has to pass, which is short.
    assert!((0..10_000).any(|_| rig.delays() == of_m(&[])), "the numbers are too old");
    rig.tree.set_reachable(false);
    rig.poller.fresh_for = Duration::ZERO;
    rig.poller.memory.last_cycle = None;
    assert!(rig.poller.readiness().unwrap_err().contains("not read for"));
    let _ = rig.poller.poll(Extent::Whole, &Stop::new());
    assert!(rig.poller.readiness().unwrap_err().contains("stored offsets cannot be read"));
    assert!(!rig.store.view().clusters[0].known);
}

/// Moves the stored offset, as ktransfer does, at the moment when the newest offsets are requested.
struct CommitDuringRead(Arc<InMemoryKeeper>, Box<dyn LogEnds>);

impl LogEnds for CommitDuringRead {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        self.1.partitions(topic)
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<i64, MetadataError>> {
        self.1.newest(partitions)
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        put(&*self.0, "/consumers/m/offsets/t/0", "5");
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
    rig.poller.log_reader = LogReader::new(Box::new(move |_| {
        Ok(Box::new(CommitDuringRead(keeper.clone(), Box::new(broker.log_ends()))) as Box<dyn LogEnds>)
    }));
    assert_eq!(rig.delays(), of_m(&[(0, 3), (1, 0)]));
    assert_eq!(rig.delays(), of_m(&[(0, 0), (1, 0)]));
}

#[test]
fn modules_at_rest_are_left_out_of_a_cycle_that_has_no_budget_and_stay_known() {
    let mut rig = rig();
    for group in 0..20 {
        put(&*rig.keeper, &format!("/consumers/g{group}/offsets/t/0"), "0");
    }
    rig.poller.interval = Duration::from_secs(1);
    // The times of the readings, as ages at a time that is the same for all.
    let later = Instant::now() + Duration::from_hours(1);
    let read_times = |rig: &Rig| {
        let candidates = rig.poller.places.candidates(Source::Zookeeper, BTreeSet::new(), later);
        candidates.into_iter().map(|candidate| candidate.age).collect::<Vec<_>>()
    };
    // All are new, so all are read.
    let _ = rig.poller.poll(Extent::Whole, &Stop::new());
    rig.poller.zookeeper_rate = RateLimit::new(20, Instant::now());
    let before = read_times(&rig);
    let delays = rig.delays().unwrap();
    assert!(delays.len() == 20 && delays.iter().all(|(_, delays)| *delays == [(0, 0), (1, 0)]), "{delays:?}");
    let unread = read_times(&rig).iter().zip(&before).filter(|(now, before)| before == now).count();
    assert!((1..20).contains(&unread), "{unread} of 20 were not read");
    // A message makes the module active that waits for it.
    rig.broker.put("t", 0, None, b"x");
    let delays = rig.delays().unwrap();
    assert!(delays.iter().all(|(_, delays)| delays[0] == (0, 1)), "{delays:?}");
}

#[test]
fn a_module_that_cannot_be_read_costs_itself_only() {
    let mut rig = rig();
    for group in ["a", "b"] {
        put(&*rig.keeper, &format!("/consumers/{group}/offsets/t/0"), "0");
    }
    rig.tree.refuse("/consumers/a/offsets/t/0");
    rig.tree.refuse("/consumers/denied/offsets");
    put(&*rig.keeper, "/consumers/denied/ids", "");
    let delays = rig.delays().unwrap();
    let names: Vec<_> = delays.iter().map(|(name, delays)| (name.as_str(), delays.len())).collect();
    // Of `a` the other partition may be read; what may not be read is unknown, not absent.
    assert_eq!(names, [("a", 1), ("b", 2), ("denied", 0)]);
    assert!(rig.poller.readiness().is_ok());
}

#[test]
fn modules_are_chosen_by_their_names() {
    let mut rig = rig();
    for group in ["push-a", "push-b", "console-1"] {
        put(&*rig.keeper, &format!("/consumers/{group}/offsets/t/0"), "0");
    }
    let globs = |text: &str| NameFilter::of(&[text]);
    rig.poller.filter = ModuleFilter { only: Some(globs("push-*")), ignore: Some(globs("*-b")) };
    let names: Vec<_> = rig.delays().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["push-a"]);
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
    wait(&|| health.troubles().is_empty() && rig.store.view().clusters[0].known);
    rig.keeper.create("/consumers", b"", Lifetime::Persistent).unwrap();
    stop.trigger();
    thread.join().unwrap();
}

/// Which modules failed the last time they were read.
fn failing(rig: &Rig) -> Vec<String> {
    let candidates = rig.poller.places.candidates(Source::Zookeeper, BTreeSet::new(), Instant::now());
    let failing = candidates.into_iter().filter(|candidate| 0 < candidate.failures);
    failing.map(|candidate| candidate.key.name.to_string()).collect()
}

#[test]
fn a_module_whose_read_always_ends_the_connection_costs_only_itself() {
    let mut rig = rig();
    for group in 0..40 {
        put(&*rig.keeper, &format!("/consumers/g{group}/offsets/t/0"), "0");
    }
    rig.tree.poison("/consumers/g7/offsets/t/0");
    let _ = rig.poller.poll(Extent::Whole, &Stop::new());
    assert!(failing(&rig).len() < 40, "other slices are read");
    for _ in 0..4 {
        let _ = rig.poller.poll(Extent::Failed, &Stop::new());
    }
    assert_eq!(failing(&rig), ["g7"]);
    for count in 1..3 {
        rig.broker.put("t", 0, None, b"x");
        let delays = rig.delays().unwrap();
        assert_eq!(delays.iter().filter(|(_, delays)| delays[..] == [(0, count), (1, 0)]).count(), 39, "{delays:?}");
        assert_eq!(failing(&rig), ["g7"]);
    }
}

/// Brokers that do not respond; counts the waits for them.
struct Silent(Arc<AtomicUsize>);

impl LogEnds for Silent {
    fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(MetadataError::Unreachable("no response".into()))
    }

    fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<i64, MetadataError>> {
        Vec::new()
    }

    fn range(&mut self, _: &TopicPartition) -> Result<LogRange, MetadataError> {
        Err(MetadataError::Unreachable("no response".into()))
    }
}

#[test]
fn a_module_that_was_never_read_is_shown_while_it_fails_and_the_cycle_counts_for_the_others() {
    let mut rig = rig();
    for group in ["bad", "good"] {
        put(&*rig.keeper, &format!("/consumers/{group}/offsets/t/0"), "0");
    }
    rig.tree.poison("/consumers/bad/offsets/t/0");
    for cycle in 0..8 {
        // After some failures it is left out of most cycles, which have no failure then.
        let extent = if (1..4).contains(&cycle) { Extent::Failed } else { Extent::Whole };
        let _ = rig.poller.poll(extent, &Stop::new());
        let view = rig.store.view().clusters.remove(0);
        let bad = view.modules.iter().find(|module| &*module.name == "bad").expect("the module is shown");
        assert_eq!((bad.verdict, bad.delay), (Verdict::Unknown, None), "cycle {cycle}");
        assert!(bad.reason.contains("the stored offset could not be read"), "{}", bad.reason);
    }
    assert_eq!(rig.delays().unwrap(), [("bad".into(), vec![]), ("good".into(), vec![(0, 0), (1, 0)])]);
    assert!(rig.poller.trouble().is_none() && rig.poller.memory.last_cycle.is_some());
    // In a cycle with a failure, too.
    rig.tree.poison("/consumers/good/offsets/t/0");
    rig.poller.memory.last_cycle = None;
    let _ = rig.poller.poll(Extent::Whole, &Stop::new());
    assert!(rig.poller.trouble().unwrap().contains("stored offsets of good cannot be read"));
    assert!(rig.poller.memory.last_cycle.is_some());
}

#[test]
fn brokers_that_are_silent_are_waited_for_once_a_cycle_which_makes_no_number_fresh_for_longer() {
    let mut rig = rig();
    for group in 0..150 {
        put(&*rig.keeper, &format!("/consumers/g{group}/offsets/t/0"), "0");
    }
    let waits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&waits);
    let silent = move |_: &[String]| Ok(Box::new(Silent(Arc::clone(&counter))) as Box<dyn LogEnds>);
    let reader = std::mem::replace(&mut rig.poller.log_reader, LogReader::new(Box::new(silent)));
    for cycle in 1..4 {
        // The modules are new or active, in several slices.
        let _ = rig.poller.poll(Extent::Whole, &Stop::new());
        assert_eq!(waits.load(Ordering::Relaxed), cycle);
        assert_eq!(rig.poller.memory.last_cycle, None);
    }
    rig.poller.log_reader = reader;
    assert_eq!(rig.delays().map(|delays| delays.len()), Some(150));
    assert!(rig.poller.memory.last_cycle.is_some());
    rig.poller.memory.last_cycle = Some(Duration::from_secs(1_000));
    assert_eq!(rig.poller.fresh(), MAX_FRESH);
    rig.poller.memory.last_cycle = Some(Duration::from_secs(20));
    assert_eq!(rig.poller.fresh(), Duration::from_secs(60));
    // Numbers that are read rarely are fresh until they are read again after a failure.
    for (interval, fresh) in [(5, 60), (30, 90), (200, 400), (3_600, 7_200)] {
        rig.poller.interval = Duration::from_secs(interval);
        assert_eq!(rig.poller.fresh(), Duration::from_secs(fresh));
    }
}

#[test]
fn a_long_cycle_publishes_while_it_waits_for_its_budget_also_within_one_large_group() {
    let mut rig = rig();
    rig.broker.create_topic("large", 500);
    for partition in 0..500 {
        put(&*rig.keeper, &format!("/consumers/m/offsets/large/{partition}"), "0");
    }
    rig.poller.interval = Duration::from_millis(100);
    // 500 offsets and as many notes of topics take two seconds, half of which is after the last of them.
    rig.poller.zookeeper_rate = RateLimit::new(500, Instant::now());
    assert!(rig.store.view().clusters[0].is_partial);
    let delays = rig.delays().unwrap();
    assert_eq!(delays[0].1.len(), 500);
    let view = rig.store.view();
    assert!(3 <= view.number, "{} publications", view.number);
    assert!(!view.clusters[0].is_partial);
}

#[test]
fn every_request_counts_in_the_budget_of_its_source() {
    let mut rig = rig();
    // A request takes a second of this budget, and the poll takes less.
    let budget = || RateLimit::new(1, Instant::now());
    let used = |rate: &RateLimit| rate.wait(Instant::now()).as_secs_f64().ceil();
    rig.poller.find_brokers = Box::new(|| Ok(BrokerList { request_count: 4, ..found(&["b:1"]) }));
    (rig.poller.zookeeper_rate, rig.poller.kafka_rate) = (budget(), budget());
    assert_eq!(rig.delays(), Some(vec![]));
    assert_eq!((used(&rig.poller.zookeeper_rate), used(&rig.poller.kafka_rate)), (5.0, 0.0), "brokers and groups");
    put(&*rig.keeper, "/consumers/m/offsets/t/0", "0");
    let requests = rig.poller.log_reader.request_count;
    (rig.poller.zookeeper_rate, rig.poller.kafka_rate) = (RateLimit::new(1_000_000, Instant::now()), budget());
    assert!(rig.delays().is_some());
    let requests = rig.poller.log_reader.request_count - requests;
    assert_eq!((requests, used(&rig.poller.kafka_rate)), (1 + 3, 4.0), "the topic, and the ends of its logs");
}
