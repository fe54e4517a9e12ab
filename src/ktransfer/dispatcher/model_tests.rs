//! Random schedules of a dispatcher and its workers against a simulated fetch loop, group, backend and topic of dead
//! letters.
//!
//! All parts run on the test's thread, one step at a time, so that a failing schedule is found again and shrunk.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use proptest::prelude::*;

use crate::broker::{Offset, TopicPartition};
use crate::ktransfer::dead_letters::Letter;
use crate::ktransfer::fetcher::FetchedBatch;
use crate::ktransfer::group::{Generation, Mailbox, StoredPosition, TimedFence, mailbox};
use crate::ktransfer::job::{ClaimPhase, SkipOrder, WindowId};
use crate::ktransfer::memory_budget::MemoryBudget;
use crate::ktransfer::operations::OperatorLink;
use crate::ktransfer::outcomes::OutcomeTable;
use crate::ktransfer::pauses::{PauseChange, PauseMark, PauseTable};
use crate::ktransfer::policy::AttemptOutcome;
use crate::ktransfer::test_fixtures::{claim, complete, context_with_letters, module_config};
use crate::ktransfer::worker::{PushAttempt, Worker, WorkerChannels};
use crate::metrics::Registry;

const PARTITIONS: PartitionId = 2;
const MESSAGES: Offset = 60;
const WORKERS: usize = 3;
const WINDOW: usize = 3;
/// About six messages.
const MAX_BYTES: usize = 2_500;

/// Returns the key of a message; some have none.
fn key_of(partition: PartitionId, offset: Offset) -> Option<Vec<u8>> {
    let number = (offset * 7 + Offset::from(partition)) % 5;
    (number > 0).then(|| vec![b'a' + u8::try_from(number).unwrap()])
}

/// What the backend has seen, and how it answers.
#[derive(Default)]
struct Backend {
    is_healthy: bool,
    random: u64,
    delivered: BTreeSet<(PartitionId, Offset)>,
    /// Deliveries with their claims; a repeat is an error only within a claim.
    by_claim: BTreeSet<(Generation, PartitionId, Offset)>,
    worker_of_key: BTreeMap<Vec<u8>, usize>,
    /// Whether messages that are refused with 410, and skipped ones, end with a dead letter.
    has_letters: bool,
    /// Messages that were given up, with their claims: they are not pushed again within the claim.
    given_up: BTreeSet<(Generation, PartitionId, Offset)>,
    /// Messages whose dead letter is stored.
    lettered: BTreeSet<(PartitionId, Offset)>,
    skips: Vec<Arc<SkipOrder>>,
}

impl Backend {
    /// Whether a message was delivered, its dead letter is stored, or an operator has skipped it without one.
    fn is_done(&self, partition: PartitionId, offset: Offset) -> bool {
        let has_no_letter = |order: &SkipOrder| !(order.stores_letter && self.has_letters);
        self.delivered.contains(&(partition, offset))
            || self.lettered.contains(&(partition, offset))
            || self.skipped(partition, offset).any(has_no_letter)
    }

    /// Returns the orders by which a message was skipped.
    fn skipped(&self, partition: PartitionId, offset: Offset) -> impl Iterator<Item = &SkipOrder> {
        let is_of = move |order: &&SkipOrder| (order.partition, order.offset) == (partition, offset);
        self.skips.iter().map(|order| &**order).filter(is_of).filter(|order| order.turn.is_taken())
    }
}

struct Attempts {
    worker: usize,
    backend: Arc<Mutex<Backend>>,
}

impl PushAttempt for Attempts {
    fn url(&self, _: &Job, _: &str) -> String {
        String::new()
    }

    fn push(&mut self, job: &Job, _: &str, _: u32) -> Option<AttemptOutcome> {
        let mut backend = self.backend.lock().unwrap();
        let (partition, offset) = (job.assignment.partition, job.message.offset);
        assert_ne!(job.assignment.phase(), ClaimPhase::Ended, "a push of a claim that has ended");
        assert!(job.assignment.fence.is_valid(), "a push without a lease");
        let generation = job.assignment.generation;
        let is_given_up = backend.given_up.contains(&(generation, partition, offset));
        assert!(!is_given_up, "{offset} is pushed although it was given up");
        let is_skipped = backend.skipped(partition, offset).any(|order| order.generation == generation);
        assert!(!is_skipped, "{offset} is pushed although it was skipped");
        if let Some(key) = &job.message.key {
            assert_eq!(*backend.worker_of_key.entry(key.clone()).or_insert(self.worker), self.worker);
            let earlier = (0..offset).filter(|earlier| key_of(partition, *earlier).as_ref() == Some(key));
            for earlier in earlier {
                assert!(backend.is_done(partition, earlier), "{offset} before {earlier}");
            }
        }
        backend.random = backend.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        match backend.random >> 61 {
            0..=2 if !backend.is_healthy => Some(AttemptOutcome::Answered { status: 503, retry_after: None }),
            3 if !backend.is_healthy => Some(AttemptOutcome::Failed { error: None, reason: "reset".to_owned() }),
            4 if !backend.is_healthy => None,
            5 if !backend.is_healthy && backend.has_letters => {
                backend.given_up.insert((generation, partition, offset));
                Some(AttemptOutcome::Answered { status: 410, retry_after: None })
            }
            _ => {
                assert!(backend.by_claim.insert((job.assignment.generation, partition, offset)), "twice in a claim");
                backend.delivered.insert((partition, offset));
                Some(AttemptOutcome::Answered { status: 200, retry_after: None })
            }
        }
    }
}

/// The position of the simulated fetch loop in a partition.
struct Reader {
    window: WindowId,
    next: Offset,
    is_paused: bool,
}

struct Simulation {
    dispatcher: Dispatcher,
    workers: Vec<Worker>,
    context: Arc<WorkerContext>,
    backend: Arc<Mutex<Backend>>,
    pauses: PauseTable,
    memory: MemoryBudget,
    letters: Receiver<Letter>,
    fetch_commands: Receiver<FetchCommand>,
    fetched: Sender<Fetched>,
    readers: BTreeMap<PartitionId, Reader>,
    group_events: Sender<GroupEvent>,
    group_commands: Mailbox,
    /// The claims that the group has handed out and not ended.
    owned: BTreeMap<PartitionId, (Generation, Arc<TimedFence>)>,
    stored: BTreeMap<PartitionId, StoredPosition>,
    last_generation: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Fetch(usize),
    Dispatch,
    Work(usize),
    Group,
    Gain(PartitionId),
    Release(PartitionId),
    Lose(PartitionId),
    Pause(Option<PartitionId>),
    Resume(Option<PartitionId>),
    Skip {
        partition: PartitionId,
        stores_letter: bool,
    },
    /// The dead letter that was sent first is stored, or not.
    Letter {
        is_stored: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..6).prop_map(Step::Fetch),
        8 => Just(Step::Dispatch),
        12 => (0..WORKERS).prop_map(Step::Work),
        2 => Just(Step::Group),
        2 => (0..PARTITIONS).prop_map(Step::Gain),
        1 => (0..PARTITIONS).prop_map(Step::Release),
        1 => (0..PARTITIONS).prop_map(Step::Lose),
        1 => (0..=PARTITIONS).prop_map(|number| Step::Pause((number < PARTITIONS).then_some(number))),
        2 => (0..=PARTITIONS).prop_map(|number| Step::Resume((number < PARTITIONS).then_some(number))),
        1 => (0..PARTITIONS, any::<bool>())
            .prop_map(|(partition, stores_letter)| Step::Skip { partition, stores_letter }),
        3 => any::<bool>().prop_map(|is_stored| Step::Letter { is_stored }),
    ]
}

impl Simulation {
    fn new(random: u64, has_letters: bool) -> Simulation {
        let mut config = module_config(&["127.0.0.1:1", "127.0.0.1:2"]);
        config.worker_num = WORKERS.try_into().unwrap();
        config.window_size = WINDOW.try_into().unwrap();
        config.max_commit_gap = 12.try_into().unwrap();
        config.retry.first_pause = Duration::from_micros(1);
        config.retry.max_pause = Duration::from_micros(1);
        let table = serde_yaml::from_str("{200-299: ok, 410: dead_letter, default: retry}").unwrap();
        config.outcomes = OutcomeTable::from_yaml(&table).unwrap();
        let (mut context, letters) = context_with_letters(config, &Registry::new());
        context.dead_letters = context.dead_letters.filter(|_| has_letters);
        let context = Arc::new(context);
        let backend = Arc::new(Mutex::new(Backend { random, has_letters, ..Backend::default() }));
        let (inboxes, receivers): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| unbounded()).unzip();
        let (report_sender, reports) = unbounded();
        let all: Arc<[_]> = inboxes.into();
        let worker = |(number, inbox)| {
            let channels = WorkerChannels { inbox, reports: report_sender.clone(), workers: Arc::clone(&all) };
            let attempts = Attempts { worker: number, backend: Arc::clone(&backend) };
            Worker::new(number, Arc::clone(&context), channels, Box::new(attempts))
        };
        let workers = receivers.into_iter().enumerate().map(worker).collect();
        let (group_sender, group_events) = unbounded();
        let (group_commands, commands_of_group) = mailbox();
        let (fetch_command_sender, fetch_commands) = unbounded();
        let (fetched_sender, fetched) = bounded(4);
        let memory = MemoryBudget::new(MAX_BYTES);
        let operator = OperatorLink::default();
        let pauses = operator.pauses.clone();
        let channels = Channels {
            group_events,
            group_commands,
            fetch_commands: fetch_command_sender,
            fetched,
            memory: memory.clone(),
            workers: Arc::clone(&all),
            operator,
            reports,
        };
        let dispatcher = Dispatcher::new(channels, Arc::clone(&context), Stop::new(), Duration::from_secs(60));
        Simulation {
            dispatcher,
            workers,
            context,
            backend,
            pauses,
            memory,
            letters,
            fetch_commands,
            fetched: fetched_sender,
            readers: BTreeMap::new(),
            group_events: group_sender,
            group_commands: commands_of_group,
            owned: BTreeMap::new(),
            stored: (0..PARTITIONS).map(|partition| (partition, StoredPosition::at(0))).collect(),
            last_generation: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Fetch(max) => self.fetch(max),
            Step::Dispatch => self.dispatcher.turn(false),
            Step::Work(worker) => {
                let has_worked = self.workers[worker].step();
                assert!(has_worked || self.workers[worker].may_block(), "the worker would block although it has work");
            }
            Step::Group => self.take_group_commands(),
            Step::Gain(partition) => self.gain(partition),
            Step::Release(partition) => {
                if let Some((generation, _)) = self.owned.get(&partition) {
                    let generation = *generation;
                    self.group_events.send(GroupEvent::Releasing { partition, generation }).unwrap();
                }
            }
            Step::Lose(partition) => {
                if let Some((generation, fence)) = self.owned.remove(&partition) {
                    fence.end();
                    self.group_events.send(GroupEvent::Lost { partition, generation }).unwrap();
                }
            }
            Step::Pause(partition) => {
                let mark = PauseMark { by: "ann".to_owned(), at_ms: 0 };
                self.pauses.change(&PauseChange::Pause(partition, mark)).unwrap();
            }
            // Refused for a partition while the module is paused.
            Step::Resume(partition) => drop(self.pauses.change(&PauseChange::Resume(partition))),
            Step::Skip { partition, stores_letter } => self.skip(partition, stores_letter),
            Step::Letter { is_stored } => self.end_letter(is_stored),
        }
        assert!(self.context.slots.in_use() <= WINDOW);
        assert!(self.memory.used_bytes() <= MAX_BYTES);
    }

    fn end_letter(&mut self, is_stored: bool) {
        let Ok(letter) = self.letters.try_recv() else { return };
        let number = |name: &str| {
            let header = letter.record.headers.iter().find(|header| header.name == name).expect("the field");
            String::from_utf8(header.value.clone().unwrap()).unwrap().parse::<i64>().unwrap()
        };
        let partition = PartitionId::try_from(number("X-Dead-Letter-Partition")).unwrap();
        if is_stored {
            self.backend.lock().unwrap().lettered.insert((partition, number("X-Dead-Letter-Offset")));
        }
        complete(letter, is_stored);
    }

    fn skip(&mut self, partition: PartitionId, stores_letter: bool) {
        let head = self.dispatcher.partitions.get(&partition).and_then(|state| state.window.first());
        let may_skip = |head: &Offset| self.dispatcher.check_skip(partition, *head, stores_letter).is_ok();
        let Some(head) = head.filter(may_skip) else { return };
        let state = &self.dispatcher.partitions[&partition];
        if state.release == partition::ReleaseState::Owned {
            let order = self.dispatcher.begin_skip(partition, head, stores_letter, &"ann".into());
            let order = order.expect("it is claimed");
            self.backend.lock().unwrap().skips.push(order);
        }
    }

    fn gain(&mut self, partition: PartitionId) {
        if self.owned.contains_key(&partition) {
            return;
        }
        self.last_generation += 1;
        let mut claim = claim(partition, self.last_generation, None);
        claim.position = Some(self.stored[&partition].clone());
        self.owned.insert(partition, (claim.generation, Arc::clone(&claim.fence)));
        self.group_events.send(GroupEvent::Gained(claim)).unwrap();
    }

    /// Stores what the dispatcher has sent. Nothing is stored as done that was not delivered.
    fn take_group_commands(&mut self) {
        let pending = self.group_commands.take();
        let of_owner = |owned: &BTreeMap<PartitionId, (Generation, Arc<TimedFence>)>, partition, generation| {
            owned.get(&partition).is_some_and(|(owner, _)| *owner == generation)
        };
        let starts =
            pending.starts.into_iter().map(|(partition, (generation, next, _))| (partition, (generation, next)));
        for (partition, (generation, next)) in starts.chain(pending.commits) {
            if of_owner(&self.owned, partition, generation) {
                self.store(partition, next);
            }
        }
        for (partition, (generation, ahead)) in pending.done_ahead {
            for offset in ahead.ranges.iter().cloned().flat_map(|range: Range<Offset>| range) {
                assert!(self.backend.lock().unwrap().is_done(partition, offset), "{offset} is not done");
            }
            if of_owner(&self.owned, partition, generation) {
                self.stored.get_mut(&partition).unwrap().done_ahead = ahead.ranges;
            }
        }
        for (partition, (generation, next)) in pending.releases {
            if of_owner(&self.owned, partition, generation) {
                self.store(partition, next.unwrap());
                self.owned.remove(&partition);
            }
        }
    }

    fn store(&mut self, partition: PartitionId, next: Offset) {
        let backend = self.backend.lock().unwrap();
        for offset in 0..next {
            assert!(backend.is_done(partition, offset), "{next} was committed before {offset}");
        }
        let stored = self.stored.get_mut(&partition).unwrap();
        assert!(stored.next <= next);
        stored.next = next;
    }

    fn fetch(&mut self, max: usize) {
        for command in self.fetch_commands.try_iter() {
            match command {
                FetchCommand::Assign { partition, window, start, .. } => {
                    let reader = Reader { window, next: start.unwrap().offset, is_paused: false };
                    self.readers.insert(partition, reader);
                }
                FetchCommand::Revoke(partition) => drop(self.readers.remove(&partition)),
                FetchCommand::Pause(partition) => self.readers.get_mut(&partition).unwrap().is_paused = true,
                FetchCommand::Resume(partition) => self.readers.get_mut(&partition).unwrap().is_paused = false,
            }
        }
        for (partition, reader) in self.readers.iter_mut().filter(|(_, reader)| !reader.is_paused) {
            let message = |offset| {
                let from = TopicPartition { topic: "t".into(), partition: *partition };
                let (key, value) = (key_of(*partition, offset), Some(Vec::new()));
                Message { from, offset, key, value, headers: Vec::new(), timestamp_ms: None }
            };
            let messages: Vec<Message> = (reader.next..MESSAGES).take(max).map(message).collect();
            let Some(last) = messages.last() else { continue };
            let (partition, window, next) = (*partition, reader.window, last.offset + 1);
            let batch = FetchedBatch { window, partition, messages, next, leader_epoch: None };
            let fetched = Fetched::Messages(vec![batch]);
            let (size_bytes, largest_bytes) = fetched.size_bytes();
            if !self.fetched.is_full() && self.memory.try_take(size_bytes, largest_bytes) {
                reader.next = next;
                self.fetched.send(fetched).unwrap();
            }
        }
    }

    /// Runs everything until all messages are delivered and stored.
    fn finish(&mut self) {
        self.backend.lock().unwrap().is_healthy = true;
        self.step(&Step::Resume(None));
        let deadline = Instant::now() + Duration::from_secs(30);
        while (0..PARTITIONS).any(|partition| self.stored[&partition].next < MESSAGES) {
            assert!(Instant::now() < deadline, "stuck at {:?}", self.stored);
            for partition in 0..PARTITIONS {
                self.step(&Step::Gain(partition));
            }
            self.step(&Step::Fetch(2));
            for worker in 0..WORKERS {
                self.step(&Step::Dispatch);
                self.step(&Step::Work(worker));
            }
            self.step(&Step::Letter { is_stored: true });
            self.step(&Step::Group);
        }
        assert_eq!((self.memory.used_bytes(), self.context.slots.in_use()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is refused, lost and handed over: no message is stored as done that was not delivered or given up, each
    /// key keeps its order, slots and bytes are bounded, and in the end everything is done and everything is returned.
    #[test]
    fn no_schedule_loses_or_reorders_messages(
        steps in prop::collection::vec(step(), 0..400), random in any::<u64>(), has_letters in any::<bool>()
    ) {
        let mut simulation = Simulation::new(random, has_letters);
        for step in &steps {
            simulation.step(step);
        }
        simulation.finish();
    }
}
