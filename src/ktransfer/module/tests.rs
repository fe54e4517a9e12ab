//! Tests of a whole module with an in-memory broker, a group that is scripted by the test, and a real HTTP backend.

mod backends;
mod changes;
mod claims;
mod dead_letters_and_outcomes;
mod delivery;
mod keys;
mod stops;

use super::*;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, never, select, tick};

use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{Offset, PartitionId, Producer, TopicPartition};
use crate::clock::BootTime;
use crate::ktransfer::dead_letters::{self, LetterCompletion, ModuleLetters};
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
    /// The latest messages done ahead of the commit point.
    done_ahead: Mutex<BTreeMap<PartitionId, Vec<Range<Offset>>>>,
    left: AtomicBool,
}

/// A group that sends the events of the test to the dispatcher and records the dispatcher's commands.
struct ScriptedGroup {
    record: Arc<GroupRecord>,
    script: Receiver<GroupEvent>,
}

impl Group for ScriptedGroup {
    fn keeps_claims_of_failed_loop(&self) -> bool {
        true
    }

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
            let ahead =
                pending.done_ahead.into_iter().map(|(partition, (_, ahead))| (partition, ahead.ranges.to_vec()));
            self.record.done_ahead.lock().unwrap().extend(ahead);
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
    health: Health,
    stop: Stop,
    live: LiveModule,
    thread: Option<JoinHandle<()>>,
    /// The thread that stores dead letters, and its stop.
    letters: Option<(Stop, JoinHandle<()>)>,
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
        let (letter_sender, letters) = dead_letters::channel();
        let dead_letters = config.dead_letter_topic.as_ref().map(|topic| {
            let (topic, component) = (Arc::clone(topic), health.component("dead letters of m"));
            ModuleLetters::new(letter_sender, Arc::clone(&config.name), topic, metrics.clone(), component)
        });
        let (letter_broker, letter_stop) = (broker.clone(), Stop::new());
        let letters_stopped = letter_stop.clone();
        let letter_thread = std::thread::spawn(move || {
            let make = || Ok(Arc::new(letter_broker.producer()) as Arc<dyn Producer<LetterCompletion>>);
            dead_letters::store_letters(&letters, &letters_stopped, make);
        });
        let (name, live) = (Arc::clone(&config.name), LiveModule::new(config));
        let module = Module {
            name,
            live: live.clone(),
            metrics,
            dead_letters,
            health: health.component("module m"),
            broker_health: health.component("broker of m"),
            grace: Duration::from_secs(4),
            max_pause: Duration::from_millis(10),
            report: StopReport::default(),
            operator: OperatorLink::default(),
        };
        let (module_broker, module_record, module_stop) = (broker.clone(), Arc::clone(&record), stop.clone());
        let starts = AtomicU32::new(0);
        let thread = std::thread::spawn(move || {
            let ended = module.run(&module_stop, |_, threads| {
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
            assert_eq!(ended, Ok(()));
        });
        let letters = Some((letter_stop, letter_thread));
        ModuleRig { broker, backend, record, script, registry, health, stop, live, thread: Some(thread), letters }
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

    fn done_ahead(&self, partition: PartitionId) -> Vec<Range<Offset>> {
        self.record.done_ahead.lock().unwrap().get(&partition).cloned().unwrap_or_default()
    }

    /// Returns the value of a gauge or counter of the module.
    fn metric(&self, name: &str) -> i64 {
        let line_start = format!("{name}{{module=\"m\"}} ");
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(&line_start)).unwrap_or_else(|| panic!("{name}"));
        value.parse().unwrap()
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.registry.render()).unwrap()
    }

    fn end(&mut self) {
        self.stop.trigger();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        if let Some((stop, thread)) = self.letters.take() {
            stop.trigger();
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
