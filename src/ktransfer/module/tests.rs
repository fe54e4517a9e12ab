//! Tests of a whole module with an in-memory broker, a group that is scripted by the test, and a real HTTP backend.

use super::*;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, never, select, tick};

use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{Offset, PartitionId, TopicPartition};
use crate::clock::BootTime;
use crate::ktransfer::group::{Claim, Generation, GroupEvent, Mailbox, TimedFence};
use crate::ktransfer::metrics::Metrics;
use crate::ktransfer::test_backend::{ReceivedRequest, TestBackend, wait_until};
use crate::ktransfer::test_fixtures::{claim, module_config};
use crate::metrics::Registry;

/// The commands that the group received from the dispatcher.
#[derive(Default)]
struct GroupRecord {
    commits: Mutex<BTreeMap<PartitionId, Offset>>,
    releases: Mutex<Vec<(PartitionId, Option<Offset>)>>,
    left: AtomicBool,
}

/// A group that sends the events of the test to the dispatcher and records the dispatcher's commands.
struct ScriptedGroup {
    record: Arc<GroupRecord>,
    script: Receiver<GroupEvent>,
}

impl Group for ScriptedGroup {
    fn run(self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>) {
        let ticks = tick(Duration::from_millis(5));
        loop {
            select! {
                recv(self.script) -> event => if let Ok(event) = event { let _ = events.send(event); },
                recv(commands.woken()) -> _ => {},
                recv(ticks) -> _ => {},
            }
            let pending = commands.take();
            let starts = pending.starts.into_iter().map(|(partition, (_, next, _))| (partition, next));
            self.record.commits.lock().unwrap().extend(starts);
            let commits = pending.commits.into_iter().map(|(partition, (_, next))| (partition, next));
            self.record.commits.lock().unwrap().extend(commits);
            let releases = pending.releases.into_iter().map(|(partition, (_, next))| (partition, next));
            self.record.releases.lock().unwrap().extend(releases);
            if pending.leave {
                self.record.left.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
}

struct ModuleRig {
    broker: MemoryBroker,
    backend: TestBackend,
    record: Arc<GroupRecord>,
    script: Sender<GroupEvent>,
    registry: Registry,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl ModuleRig {
    fn start(
        partitions: i32,
        adapt: impl FnOnce(&mut ModuleConfig),
        answer: impl Fn(&ReceivedRequest) -> u16 + Send + Sync + 'static,
    ) -> ModuleRig {
        let backend = TestBackend::start(answer);
        let mut config = module_config(&[&backend.server]);
        config.protocol.read_timeout = None;
        adapt(&mut config);
        let broker = MemoryBroker::new();
        broker.create_topic("t", partitions);
        let record = Arc::<GroupRecord>::default();
        let (script, script_receiver) = bounded(100);
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).of_module(&config.name, &config.topic);
        let (health, stop) = (Health::new(), Stop::new());
        let module = Module {
            config,
            metrics,
            health: health.component("module m"),
            broker_health: health.component("broker of m"),
            grace: Duration::from_secs(4),
            max_pause: Duration::from_millis(10),
        };
        let (module_broker, module_record, module_stop) = (broker.clone(), Arc::clone(&record), stop.clone());
        let starts = AtomicU32::new(0);
        let thread = std::thread::spawn(move || {
            module.run(&module_stop, |threads| {
                // The first start returns an error and the second start fails in a thread, so every test also covers
                // the restart of a module.
                match starts.fetch_add(1, Ordering::SeqCst) {
                    0 => return Err("no broker yet".to_owned()),
                    1 => threads.spawn("fails", || panic!("on behalf of the test")),
                    _ => {}
                }
                let script = if starts.load(Ordering::SeqCst) == 2 { never() } else { script_receiver.clone() };
                Ok(Connectors {
                    group: Box::new(ScriptedGroup { record: Arc::clone(&module_record), script }),
                    fetcher: Box::new(module_broker.fetcher()),
                    log_ends: Box::new(module_broker.log_ends()),
                })
            });
        });
        ModuleRig { broker, backend, record, script, registry, stop, thread: Some(thread) }
    }

    fn gain(&self, partition: PartitionId, generation: u64, position: Option<Offset>) {
        let claim = claim(partition, generation, position);
        self.script.send(GroupEvent::Gained(claim)).unwrap();
    }

    fn commit_point(&self, partition: PartitionId) -> Option<Offset> {
        self.record.commits.lock().unwrap().get(&partition).copied()
    }

    fn releases(&self) -> Vec<(PartitionId, Option<Offset>)> {
        let mut releases = self.record.releases.lock().unwrap().clone();
        releases.sort_unstable();
        releases
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.registry.render()).unwrap()
    }

    fn end(&mut self) {
        self.stop.trigger();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for ModuleRig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}\n{:?}", self.metrics(), self.record.commits.lock().unwrap());
            println!(
                "{} requests answered, the last: {:?}",
                self.backend.received().len(),
                self.backend.received().last()
            );
        }
        self.end();
    }
}

/// Groups the requests by key. The requests of one key stay in the order of their arrival.
fn by_key(requests: Vec<ReceivedRequest>) -> HashMap<String, Vec<ReceivedRequest>> {
    let mut keys: HashMap<String, Vec<ReceivedRequest>> = HashMap::new();
    for request in requests {
        keys.entry(request.header("x-kafka-key").unwrap_or_default().to_owned()).or_default().push(request);
    }
    for requests in keys.values_mut() {
        requests.sort_by_key(|request| request.began);
    }
    keys
}

fn assert_one_at_a_time_in_order(requests: Vec<ReceivedRequest>) {
    for (key, requests) in by_key(requests) {
        for pair in requests.windows(2) {
            assert!(pair[0].ended <= pair[1].began, "two requests of key {key} at the same time");
            let (first, second) = (pair[0].number("x-kafka-offset"), pair[1].number("x-kafka-offset"));
            assert!(
                first < second || pair[0].status != 200 && first == second,
                "key {key}: offset {first} was pushed before offset {second}"
            );
        }
    }
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

#[test]
fn every_message_is_delivered_once_in_order_per_key_and_committed() {
    let mut rig = ModuleRig::start(
        4,
        |_| {},
        |request| {
            std::thread::sleep(Duration::from_micros((request.number("x-kafka-offset") as u64 * 7919) % 900));
            200
        },
    );
    for number in 0..2000 {
        let partition = number % 4;
        let key = format!("key-{partition}-{}", number / 4 % 25);
        rig.broker.put("t", partition, Some(key.as_bytes()), number.to_string().as_bytes());
    }
    // The partitions have the same offsets, so the test fails if two partitions share a window.
    for partition in 0..4 {
        rig.gain(partition, 1, if partition == 0 { Some(0) } else { None });
    }
    wait_until("all are committed", || (0..4).all(|partition| rig.commit_point(partition) == Some(500)));
    let delivered = rig.backend.received();
    assert_eq!(delivered.len(), 2000);
    assert_one_at_a_time_in_order(delivered);
    rig.end();
    assert_eq!(rig.releases(), [(0, Some(500)), (1, Some(500)), (2, Some(500)), (3, Some(500))]);
    assert!(rig.record.left.load(Ordering::SeqCst), "the group was not left");
    let metrics = rig.metrics();
    assert!(metrics.contains("ktransfer_messages_total{module=\"m\",outcome=\"delivered\"} 2000"), "{metrics}");
    assert!(metrics.contains("ktransfer_module_restarts_total{module=\"m\"} 1"), "{metrics}");
    assert!(metrics.contains("ktransfer_window_in_use{module=\"m\"} 0"), "{metrics}");
}

#[test]
fn messages_without_a_key_are_spread_over_all_workers() {
    // Each push waits for a second push: if only one worker pushed, the test would never end.
    let barrier = std::sync::Barrier::new(2);
    let rig = ModuleRig::start(
        1,
        |_| {},
        move |_| {
            barrier.wait();
            200
        },
    );
    for number in 0..100 {
        rig.broker.put("t", 0, None, &[number]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(100));
}

#[test]
fn messages_with_an_unconfigured_method_or_without_msgpack_are_not_pushed() {
    let rig = ModuleRig::start(1, |config| config.methods = Some(["mine".into()].into()), |_| 200);
    let contents: [&[u8]; 6] = [
        b"\x81\xa6method\xa4mine",
        b"{\"method\":\"mine\"}",
        b"\xc1",
        b"",
        b"\x81\xa6method\xa5other",
        b"\x81\xa6method",
    ];
    for round in 0..20 {
        for content in contents {
            rig.broker.put("t", 0, Some(&[round]), content);
        }
    }
    rig.gain(0, 1, Some(0));
    wait_until("all messages are committed", || rig.commit_point(0) == Some(120));
    let received = rig.backend.received();
    assert_eq!(received.len(), 20);
    assert!(received.iter().all(|request| request.url.ends_with("method=mine")));
    let metrics = rig.metrics();
    for line in ["outcome=\"filtered\"} 20", "outcome=\"undecodable\"} 80", "outcome=\"delivered\"} 20"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn a_message_is_retried_until_delivered_before_the_next_message_of_its_key_is_pushed() {
    let rig = ModuleRig::start(
        1,
        |_| {},
        |request| {
            let is_difficult = request.number("x-kafka-offset") % 10 == 0;
            if is_difficult && request.number("x-kafka-attempt") < 4 { 503 } else { 200 }
        },
    );
    for number in 0..200u8 {
        rig.broker.put("t", 0, Some(&[b'a' + number % 7]), &[number]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(200));
    let received = rig.backend.received();
    assert_eq!(received.len(), 200 + 20 * 3);
    assert_one_at_a_time_in_order(received);
}

#[test]
fn a_message_whose_retries_are_used_up_is_counted_and_given_up() {
    let rig = ModuleRig::start(
        1,
        |config| config.retry.max_retry_times = Some(2),
        |request| {
            if request.body == b"bad" { 500 } else { 200 }
        },
    );
    for content in [b"good".as_slice(), b"bad", b"good"] {
        rig.broker.put("t", 0, Some(b"k"), content);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(3));
    let attempts: Vec<_> = rig.backend.received().iter().map(|request| request.number("x-kafka-offset")).collect();
    assert_eq!(attempts, [0, 1, 1, 1, 2]);
    assert!(rig.metrics().contains("outcome=\"given_up\"} 1"));
}

#[test]
fn a_partition_is_released_with_the_offset_of_its_first_message_that_is_not_done() {
    let backend_is_healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = Arc::clone(&backend_is_healthy);
    let rig = ModuleRig::start(
        2,
        |_| {},
        move |request| {
            let is_stuck = request.number("x-kafka-partition") == 0 && request.number("x-kafka-offset") == 5;
            if is_stuck && !is_healthy.load(Ordering::SeqCst) { 500 } else { 200 }
        },
    );
    for number in 0..10u8 {
        rig.broker.put("t", 0, Some(&[number]), &[number]);
        rig.broker.put("t", 1, None, &[number]);
    }
    rig.gain(0, 1, Some(0));
    rig.gain(1, 2, Some(0));
    wait_until("all other messages are done", || {
        // The acknowledgements of the two partitions arrive in any order.
        rig.backend.delivered().len() == 19 && rig.commit_point(0) == Some(5) && rig.commit_point(1) == Some(10)
    });
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("partition 0 is released while offset 5 is retried", || rig.releases() == [(0, Some(5))]);
    // After the next `Gained` reading starts at offset 5, which is delivered now; offsets 6 to 9 are repeated.
    backend_is_healthy.store(true, Ordering::SeqCst);
    rig.gain(0, 3, Some(5));
    wait_until("partition 0 is done", || rig.commit_point(0) == Some(10));
    assert_eq!(rig.backend.delivered().len(), 19 + 5);
}

#[test]
fn a_hand_over_repeats_nothing_while_the_backend_is_healthy() {
    let rig = ModuleRig::start(
        1,
        |config| config.worker_num = one(),
        |_| {
            std::thread::sleep(Duration::from_millis(5));
            200
        },
    );
    for number in 0..200u8 {
        rig.broker.put("t", 0, Some(&[number]), &[number]);
    }
    rig.gain(0, 1, Some(0));
    wait_until("more than 10 messages are pushed", || 10 < rig.backend.received().len());
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the partition is released", || !rig.releases().is_empty());
    let delivered = rig.backend.received().len();
    assert!(delivered < 200, "the release came too late to test anything");
    assert_eq!(rig.releases(), [(0, Some(delivered as Offset))]);
}

#[test]
fn after_a_hand_over_abandons_a_message_no_later_message_of_its_key_is_pushed() {
    let rig = ModuleRig::start(1, |_| {}, |request| if request.number("x-kafka-offset") == 3 { 500 } else { 200 });
    for _ in 0..10 {
        rig.broker.put("t", 0, Some(b"k"), b"x");
    }
    rig.gain(0, 1, Some(0));
    wait_until("offset 3 is retried", || 5 < rig.backend.received().len());
    rig.script.send(GroupEvent::Releasing { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the partition is released", || rig.releases() == [(0, Some(3))]);
    assert_eq!(rig.backend.delivered().len(), 3);
}

#[test]
fn no_push_begins_for_a_lost_partition_or_without_a_lease() {
    let rig = ModuleRig::start(1, |_| {}, |_| 500);
    rig.broker.put("t", 0, Some(b"k"), b"x");
    let fence = TimedFence::until(BootTime::now());
    rig.script.send(GroupEvent::Gained(Claim { fence: Arc::clone(&fence), ..claim(0, 1, Some(0)) })).unwrap();
    wait_until("the message is sent to a worker", || rig.metrics().contains("ktransfer_window_in_use{module=\"m\"} 1"));
    assert!(rig.backend.received().is_empty(), "pushed without a lease");
    fence.extend(BootTime::now() + Duration::from_secs(60));
    wait_until("the message is pushed twice", || 1 < rig.backend.received().len());
    rig.script.send(GroupEvent::Lost { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the message is abandoned", || rig.metrics().contains("ktransfer_window_in_use{module=\"m\"} 0"));
    let attempts = rig.backend.received().len();
    assert_eq!((rig.releases(), rig.commit_point(0)), (Vec::new(), Some(0)));
    // The message is pushed again only under a later claim, beginning with attempt 1.
    rig.gain(0, 2, None);
    wait_until("the message is pushed again", || attempts < rig.backend.received().len());
    let first_again = rig.backend.received()[attempts].number("x-kafka-attempt");
    assert_eq!(first_again, 1);
}

#[test]
fn max_commit_gap_pauses_the_partition_of_a_stuck_message_but_no_other_partition() {
    let backend_is_healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = Arc::clone(&backend_is_healthy);
    let adapt = |config: &mut ModuleConfig| {
        config.max_commit_gap = NonZeroUsize::new(10).unwrap();
        config.waiting_queue_size = NonZeroUsize::new(16).unwrap();
    };
    let rig = ModuleRig::start(2, adapt, move |request| {
        let is_stuck = request.number("x-kafka-partition") == 0 && request.number("x-kafka-offset") == 0;
        if is_stuck && !is_healthy.load(Ordering::SeqCst) { 500 } else { 200 }
    });
    // The key of the other messages must not hash to the worker that retries the stuck message.
    let stuck_worker = crate::broker::partitioner::fnv1a(b"stuck") % 8;
    let other = (0u8..).find(|key| crate::broker::partitioner::fnv1a(&[*key]) % 8 != stuck_worker).unwrap();
    rig.broker.put("t", 0, Some(b"stuck"), b"");
    for _ in 0..300 {
        rig.broker.put("t", 0, Some(&[other]), b"");
        rig.broker.put("t", 1, Some(&[other]), b"");
    }
    rig.gain(0, 1, Some(0));
    rig.gain(1, 2, Some(0));
    wait_until("the other partition is done", || rig.commit_point(1) == Some(300));
    let delivered_of_0 =
        || rig.backend.delivered().iter().filter(|request| request.number("x-kafka-partition") == 0).count();
    assert!(delivered_of_0() <= 9, "{} would be repeated", delivered_of_0());
    assert_eq!(rig.commit_point(0), Some(0));
    backend_is_healthy.store(true, Ordering::SeqCst);
    wait_until("partition 0 is done", || rig.commit_point(0) == Some(301));
    assert_eq!(delivered_of_0(), 301);
    assert_one_at_a_time_in_order(
        rig.backend.received().into_iter().filter(|r| r.number("x-kafka-partition") == 0).collect(),
    );
}

#[test]
fn reading_continues_at_the_oldest_offset_when_the_stored_offset_is_out_of_range() {
    let rig = ModuleRig::start(2, |_| {}, |_| 200);
    for number in 0..100 {
        rig.broker.put("t", 0, None, &[number]);
        rig.broker.put("t", 1, None, &[number]);
    }
    rig.broker.trim(&TopicPartition { topic: "t".into(), partition: 0 }, 60);
    rig.gain(0, 1, Some(10));
    // As after the topic was created again: the stored offset is above the newest one.
    rig.gain(1, 1, Some(5000));
    wait_until("both partitions are done", || rig.commit_point(0) == Some(100) && rig.commit_point(1) == Some(100));
    assert_eq!(rig.backend.delivered().len(), 40 + 100);
    assert!(rig.metrics().contains("ktransfer_offset_gap_messages_total{module=\"m\"} 50"), "{}", rig.metrics());
}

#[test]
fn a_new_module_starts_at_start_from_and_commits_that_offset_at_once() {
    let latest = |config: &mut ModuleConfig| config.start_from = crate::ktransfer::config::StartFrom::Latest;
    let rig = ModuleRig::start(1, latest, |_| 200);
    for number in 0..50 {
        rig.broker.put("t", 0, None, &[number]);
    }
    rig.gain(0, 1, None);
    wait_until("its start offset is stored", || rig.commit_point(0) == Some(50));
    assert!(rig.backend.received().is_empty());
    rig.broker.put("t", 0, None, b"new");
    wait_until("the new message is done", || rig.commit_point(0) == Some(51));
}

#[test]
fn a_push_without_an_answer_is_aborted_when_the_module_stops() {
    abort_at_the_stop(None);
}

#[test]
fn a_push_that_the_stop_aborts_does_not_count_as_a_failed_attempt() {
    abort_at_the_stop(Some(0));
}

fn abort_at_the_stop(max_retry_times: Option<u32>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let mut rig = ModuleRig::start(
        1,
        |config| (config.worker_num, config.retry.max_retry_times) = (one(), max_retry_times),
        move |request| {
            if request.body == b"hangs" {
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            200
        },
    );
    rig.broker.put("t", 0, Some(b"k"), b"quick");
    rig.broker.put("t", 0, Some(b"k"), b"hangs");
    rig.gain(0, 1, Some(0));
    wait_until("the first is committed", || rig.commit_point(0) == Some(1));
    let began = Instant::now();
    rig.end();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(rig.releases(), [(0, Some(1))]);
    is_over.store(true, Ordering::SeqCst);
}

#[test]
fn a_module_whose_group_fails_is_not_restarted() {
    struct FailingGroup;
    impl Group for FailingGroup {
        fn run(self: Box<Self>, _: Mailbox, _: Sender<GroupEvent>) {
            panic!("on behalf of the test");
        }
    }
    let (registry, health, broker) = (Registry::new(), Health::new(), MemoryBroker::new());
    let module = Module {
        config: module_config(&["127.0.0.1:1"]),
        metrics: Metrics::new(&registry).of_module("m", "t"),
        health: health.component("module m"),
        broker_health: health.component("broker of m"),
        grace: Duration::from_secs(4),
        max_pause: Duration::from_millis(10),
    };
    let stop = Stop::new();
    // `run` returns before the stop. The supervisor of its thread counts that as a failure.
    module.run(&stop, |_| {
        Ok(Connectors {
            group: Box::new(FailingGroup),
            fetcher: Box::new(broker.fetcher()),
            log_ends: Box::new(broker.log_ends()),
        })
    });
    assert!(!stop.is_triggered());
}
