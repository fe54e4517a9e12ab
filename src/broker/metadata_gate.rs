//! What stands before the engine of a producer: topics are looked up, appends wait for them in order, and what
//! cannot work is answered at once.
//!
//! An append goes straight to the engine when its topic is known. Else it waits for the asking thread, which also
//! finds out whether any broker can be reached. Invariants: appends reach the engine in the order of the calls, for
//! each topic (the lock of the table is held while one is handed over); the time an append waits here is part of its
//! timeout, and at its deadline it is answered, whatever the asking thread waits for.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use log::{info, warn};

use super::topics::{HasDeadline, Known, LookupAnswer, LookupResult, TopicTable};
use super::{Acks, AppendError, AppendFailure, AppendResult, Completion, ProducerConfig, Record, Stored};
use crate::locks::{lock, read, write};
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// How long one question to the brokers may take.
const MAX_LOOKUP_TIME: Duration = Duration::from_secs(2);
/// The same once the daemon is being stopped.
const MAX_LOOKUP_TIME_AT_CLOSE: Duration = Duration::from_millis(500);
/// A question is cut short for who cannot wait longer, but not below this: so much later may the answer come.
const MIN_LOOKUP_TIME: Duration = Duration::from_millis(50);
/// A shorter wait in vain does not show that no broker can be reached.
const MIN_PROOF: Duration = Duration::from_millis(500);
/// How often it is found out whether a broker can be reached.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// From the end of one such question to the next at least.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// After so many questions in a row without an answer, appends are refused at once.
const FAILURES_TO_REFUSE: u32 = 2;
/// How often a known topic is looked at for new partitions, where the engine does not do it, and how many each time.
const COUNT_EVERY: Duration = Duration::from_secs(10);
const COUNTED_AT_ONCE: usize = 16;

/// An engine that appends.
pub(super) trait ProducerEngine<C: Completion>: Send + Sync + 'static {
    /// Takes an append for a topic that has so many partitions; never blocks. A chosen partition exists.
    fn submit(&self, waiting: PendingAppend<C>, partition_count: i32) -> Result<(), FailedAppend<C>>;

    /// Whether the engine chooses partitions itself, by the count it is given, so that it must hear of new ones.
    const CHOOSES_PARTITIONS: bool = false;

    /// A topic that was known has been looked up again, perhaps it has grown.
    /// Called by the asking thread, which it may hold for `wait`.
    fn refresh_topic(&self, _topic: &str, _wait: Duration) {}
}

/// An engine that asks for metadata. It is used by one thread and rebuilds itself.
pub(super) trait MetadataClient: Send + 'static {
    /// Whether any broker answers within `wait`.
    fn check_reachable(&mut self, wait: Duration) -> Result<(), String>;

    /// Looks a topic up.
    fn look_up(&mut self, topic: &str, wait: Duration) -> LookupAnswer;
}

/// An append on its way.
pub(super) struct PendingAppend<C> {
    pub(super) record: Record,
    pub(super) acks: Acks,
    pub(super) completion: SharedCompletion<C>,
    /// When it has to be answered.
    pub(super) deadline: Instant,
    /// Some of its time has passed already.
    pub(super) has_waited: bool,
}

impl<C> HasDeadline for PendingAppend<C> {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// An append that failed on the spot, with who has to be told.
pub(super) type FailedAppend<C> = (SharedCompletion<C>, AppendError);

/// The topics and who waits for them.
pub(super) type Table<C> = RwLock<TopicTable<PendingAppend<C>>>;

/// A completion that can lie in a shared table.
pub(super) struct SharedCompletion<C>(Whom<C>);

/// Who is told how an append ended.
enum Whom<C> {
    Caller(C),
    /// Shared with a [`DeadlineCompletion`]; whoever is first takes it out and tells.
    #[cfg_attr(not(feature = "librdkafka"), allow(dead_code, reason = "the pure-Rust engine has a deadline for each"))]
    Shared(Arc<Mutex<Option<C>>>),
}

/// Tells at a deadline what no engine has told by then.
pub(super) struct DeadlineCompletion<C>(Arc<Mutex<Option<C>>>);

// SAFETY: nothing ever reads a completion through a shared completion; it only moves from the appending thread to the
// one that takes it out.
unsafe impl<C: Send> Sync for SharedCompletion<C> {}

impl<C: Completion> SharedCompletion<C> {
    /// Tells how the append ended.
    pub(super) fn complete(self, outcome: AppendResult) {
        match self.0 {
            Whom::Caller(completion) => completion.complete(outcome),
            Whom::Shared(shared) => DeadlineCompletion(shared).complete(outcome),
        }
    }

    /// The same completion, and what can tell in its place.
    #[cfg_attr(not(feature = "librdkafka"), allow(dead_code, reason = "the pure-Rust engine has a deadline for each"))]
    pub(super) fn with_deadline_completion(self) -> (Self, DeadlineCompletion<C>) {
        let shared = match self.0 {
            Whom::Caller(completion) => Arc::new(Mutex::new(Some(completion))),
            Whom::Shared(shared) => shared,
        };
        (SharedCompletion(Whom::Shared(Arc::clone(&shared))), DeadlineCompletion(shared))
    }
}

impl<C: Completion> DeadlineCompletion<C> {
    /// Tells how the append ended, unless that was told before.
    pub(super) fn complete(self, outcome: AppendResult) {
        let completion = lock(&self.0).take();
        if let Some(completion) = completion {
            completion.complete(outcome);
        }
    }

    /// Whether it has been told already.
    #[cfg_attr(not(feature = "librdkafka"), allow(dead_code, reason = "the pure-Rust engine has a deadline for each"))]
    pub(super) fn is_done(&self) -> bool {
        lock(&self.0).is_none()
    }
}

/// The gate of a producer whose engine is `B`.
pub(super) struct MetadataGate<C: Completion, B> {
    pub(super) engine: B,
    state: Arc<GateState<C>>,
    max_message_bytes: usize,
    timeout: Duration,
    reach: Reachability,
}

/// What the gate and the engine share.
pub(super) struct GateState<C> {
    topics: Table<C>,
    closed: AtomicBool,
    /// Topics that an engine did not know although they existed; no more than there are known ones.
    doubted: Mutex<HashSet<String>>,
    /// Wakes the asking thread; one token is enough, so a full channel loses nothing.
    wake: Sender<()>,
    woken: Receiver<()>,
    /// Questions about a topic so far.
    questions: AtomicU64,
}

/// Whether a broker can be reached, as the asking thread last saw it.
struct Reachability {
    refusing: AtomicBool,
    state: Mutex<Result<(), String>>,
}

impl<C: Completion> GateState<C> {
    /// Nothing known yet.
    pub(super) fn new(config: &ProducerConfig) -> Arc<Self> {
        let ask_for = (MAX_LOOKUP_TIME * 2).min(config.timeout);
        let topics = RwLock::new(TopicTable::new(config.max_in_flight.max(1), ask_for));
        let (wake, woken) = bounded(1);
        let questions = AtomicU64::new(0);
        Arc::new(GateState {
            topics,
            closed: AtomicBool::new(false),
            doubted: Mutex::default(),
            wake,
            woken,
            questions,
        })
    }

    /// Whether the producer is being closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Looks through an error that an engine gave for an append to a topic which was known to exist. A broker that has
    /// just started does not know its topics yet, so an engine's "unknown topic" is taken for trouble that passes, and
    /// the topic is asked for again: only that answer makes it unknown.
    pub(super) fn reconsider(&self, topic: &str, error: AppendError) -> AppendError {
        let kind = match (error.kind, error.stored) {
            (AppendFailure::UnknownTopic | AppendFailure::UnknownPartition, Stored::No) => AppendFailure::Unreachable,
            (AppendFailure::UnknownTopic | AppendFailure::UnknownPartition, Stored::Unknown) => AppendFailure::TimedOut,
            _ => return error,
        };
        self.invalidate(topic);
        AppendError { kind, reason: format!("the brokers currently report topic {topic} as unknown"), ..error }
    }

    /// Lets a known topic be asked for again; what arrives meanwhile waits.
    pub(super) fn invalidate(&self, topic: &str) {
        // The asking thread takes the name from here, since the lock of the topics may be held.
        self.doubted().insert(topic.to_owned());
        let _ = self.wake.try_send(());
    }

    /// Doubts what is known of the topics that engines did not know.
    fn doubt(&self) {
        let doubted = std::mem::take(&mut *self.doubted());
        if !doubted.is_empty() {
            let mut topics = self.topics_to_change();
            doubted.iter().for_each(|topic| topics.doubt(topic, Instant::now()));
        }
    }

    fn doubted(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.doubted)
    }

    fn topics(&self) -> RwLockReadGuard<'_, TopicTable<PendingAppend<C>>> {
        read(&self.topics)
    }

    fn topics_to_change(&self) -> RwLockWriteGuard<'_, TopicTable<PendingAppend<C>>> {
        write(&self.topics)
    }
}

impl<C: Completion, B: ProducerEngine<C>> MetadataGate<C, B> {
    /// Puts a gate before `engine` and starts the asking thread.
    pub(super) fn new(
        engine: B,
        state: Arc<GateState<C>>,
        config: &ProducerConfig,
        client: impl MetadataClient,
        wait: Duration,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let reach = Reachability {
            refusing: AtomicBool::new(false),
            state: Mutex::new(Err("no broker has responded yet".to_owned())),
        };
        let (max_message_bytes, timeout) = (config.max_message_bytes, config.timeout);
        let gate = Arc::new(MetadataGate { engine, state, max_message_bytes, timeout, reach });
        let metadata_loop =
            MetadataLoop { gate: Arc::clone(&gate), client, wait: wait.min(MAX_LOOKUP_TIME), failures: 0 };
        let stop = supervisor.stop().clone();
        // It ends at the close; until then what was taken is looked up, after the stop as well.
        supervisor.spawn_task("kafka-metadata", move || metadata_loop.run(&stop));
        gate
    }

    /// [`super::Producer::append`].
    pub(super) fn append(&self, record: Record, acks: Acks, completion: C) {
        let now = Instant::now();
        let (completion, deadline) = (SharedCompletion(Whom::Caller(completion)), now + self.timeout);
        if let Err((completion, error)) =
            self.take(PendingAppend { record, acks, completion, deadline, has_waited: false }, now)
        {
            completion.complete(Err(error));
        }
    }

    /// Takes no more, and answers what waits for its topic. What the engine has is the engine's to complete.
    pub(super) fn close(&self) {
        self.state.closed.store(true, Ordering::Release);
        // Every append looks at `closed` under this lock: after it, nothing more reaches the engine.
        let waiting = self.state.topics_to_change().drain();
        for waiting in waiting {
            waiting.completion.complete(Err(closed_error()));
        }
        let _ = self.state.wake.try_send(());
    }

    /// [`super::Producer::reachable`].
    pub(super) fn reachable(&self) -> Result<(), String> {
        lock(&self.reach.state).clone()
    }

    /// [`super::Producer::topic_lookups`].
    pub(super) fn topic_lookups(&self) -> u64 {
        self.state.questions.load(Ordering::Relaxed)
    }

    fn take(&self, mut waiting: PendingAppend<C>, now: Instant) -> Result<(), FailedAppend<C>> {
        let limit = self.max_message_bytes;
        if waiting.record.value.len() > limit {
            let reason = format!("larger than {limit} bytes (max_request_size_bytes)");
            return Err(refused(waiting, AppendFailure::TooLarge, reason));
        }
        let known = |topics: &TopicTable<PendingAppend<C>>, waiting: &PendingAppend<C>| {
            topics.known(&waiting.record.topic, waiting.record.partition, now)
        };
        {
            let topics = self.state.topics();
            if self.state.is_closed() {
                return Err((waiting.completion, closed_error()));
            }
            if self.reach.refusing.load(Ordering::Relaxed) {
                return Err(refused(waiting, AppendFailure::Unreachable, self.reach.reason()));
            }
            match known(&topics, &waiting) {
                Known::Yes(partition_count) => return self.submit(waiting, partition_count),
                Known::No => return Err(unknown_topic(waiting)),
                Known::NeedsLookup => {}
            }
        }
        let mut topics = self.state.topics_to_change();
        if self.state.is_closed() {
            return Err((waiting.completion, closed_error()));
        }
        // It may have become known between the locks.
        match known(&topics, &waiting) {
            Known::Yes(partition_count) => return self.submit(waiting, partition_count),
            Known::No => return Err(unknown_topic(waiting)),
            Known::NeedsLookup => {}
        }
        waiting.has_waited = true;
        let topic = Arc::clone(&waiting.record.topic);
        topics.wait(&topic, waiting, now).map_err(|waiting| {
            let reason = "too many messages wait for a topic lookup".to_owned();
            refused(waiting, AppendFailure::Full, reason)
        })?;
        drop(topics);
        let _ = self.state.wake.try_send(());
        Ok(())
    }

    /// Gives an append to the engine; the lock of the topics is held by the caller, which keeps the order.
    fn submit(&self, waiting: PendingAppend<C>, partition_count: i32) -> Result<(), FailedAppend<C>> {
        if let Some(partition) = waiting.record.partition.filter(|partition| !(0..partition_count).contains(partition))
        {
            let topic = &waiting.record.topic;
            let reason =
                format!("topic {topic} has no partition {partition}: it has {partition_count} partitions, from 0 on");
            return Err(refused(waiting, AppendFailure::UnknownPartition, reason));
        }
        self.engine.submit(waiting, partition_count)
    }

    /// Answers those whose time ends while they wait for their topic.
    fn expire(&self, now: Instant) {
        if self.state.topics().next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let expired = self.state.topics_to_change().expire(now);
        for waiting in expired {
            let reason = format!("the lookup of topic {} timed out", waiting.record.topic);
            waiting.completion.complete(Err(not_stored(AppendFailure::Unreachable, reason)));
        }
    }

    fn settle(&self, topic: &str, answer: LookupAnswer) {
        let mut failed = Vec::new();
        let mut topics = self.state.topics_to_change();
        let Some((verdict, waiting)) = topics.answer(topic, answer, Instant::now()) else { return };
        for waiting in waiting {
            let handed_over = match &verdict {
                LookupResult::Exists(partition_count) => self.submit(waiting, *partition_count),
                LookupResult::Unknown => Err(unknown_topic(waiting)),
                LookupResult::Unreachable(reason) => {
                    let reason = format!("the lookup of topic {topic} failed: {reason}");
                    Err(refused(waiting, AppendFailure::Unreachable, reason))
                }
                LookupResult::Refused(reason) => {
                    let reason = format!("the brokers refused topic {topic}: {reason}");
                    Err(refused(waiting, AppendFailure::Refused, reason))
                }
            };
            failed.extend(handed_over.err());
        }
        drop(topics);
        for (completion, error) in failed {
            completion.complete(Err(error));
        }
    }
}

impl Reachability {
    fn reason(&self) -> String {
        let state = lock(&self.state);
        state.clone().err().unwrap_or_else(|| "no broker can be reached".to_owned())
    }

    fn set(&self, outcome: Result<(), String>, refuse: bool) {
        let refused_before = self.refusing.swap(refuse, Ordering::Relaxed);
        match (&outcome, refused_before, refuse) {
            (Err(reason), false, true) => warn!("no broker can be reached, commits fail until one can: {reason}"),
            (Ok(()), true, _) => info!("a broker can be reached again"),
            _ => {}
        }
        *lock(&self.state) = outcome;
    }
}

/// An append that is certainly not stored.
pub(super) fn not_stored(kind: AppendFailure, reason: String) -> AppendError {
    AppendError { kind, stored: Stored::No, reason }
}

fn refused<C>(waiting: PendingAppend<C>, kind: AppendFailure, reason: String) -> FailedAppend<C> {
    (waiting.completion, not_stored(kind, reason))
}

fn unknown_topic<C>(waiting: PendingAppend<C>) -> FailedAppend<C> {
    let reason = format!("topic {} does not exist", waiting.record.topic);
    refused(waiting, AppendFailure::UnknownTopic, reason)
}

fn closed_error() -> AppendError {
    not_stored(AppendFailure::Closed, "the producer is being closed".to_owned())
}

/// The thread that asks for topics and for any broker at all.
struct MetadataLoop<C: Completion, B, A> {
    gate: Arc<MetadataGate<C, B>>,
    client: A,
    wait: Duration,
    failures: u32,
}

impl<C: Completion, B: ProducerEngine<C>, A: MetadataClient> MetadataLoop<C, B, A> {
    fn run(mut self, stop: &Stop) {
        let mut next_probe = Instant::now();
        let mut stopped = stop.closed().clone();
        while !self.gate.state.is_closed() {
            if stop.is_triggered() {
                // Nobody asks any more whether a broker can be reached, and the end is not held up for long.
                (stopped, self.wait) = (never(), self.wait.min(MAX_LOOKUP_TIME_AT_CLOSE));
                next_probe = Instant::now() + PROBE_EVERY;
            } else if Instant::now() >= next_probe {
                let (wait, asked) = (self.patience(), Instant::now());
                let outcome = self.client.check_reachable(wait);
                if outcome.is_ok() {
                    self.failures = 0;
                } else if wait >= self.wait.min(MIN_PROOF) {
                    self.failures = self.failures.saturating_add(1);
                }
                self.gate.reach.set(outcome, self.failures >= FAILURES_TO_REFUSE);
                // While none answers there is nearly always a question out, so that the first sign of life is heard.
                next_probe = (asked + PROBE_EVERY).max(Instant::now() + MIN_PAUSE);
            }
            self.ask_for_topics();
            if B::CHOOSES_PARTITIONS && !stop.is_triggered() {
                self.count_partitions();
            }
            let next = {
                let topics = self.gate.state.topics();
                [topics.next_due(), topics.next_deadline()].into_iter().flatten().min()
            };
            let next = next.map_or(next_probe, |next| next.min(next_probe));
            select! {
                recv(self.gate.state.woken) -> _ => {},
                recv(stopped) -> _ => {},
                default(next.saturating_duration_since(Instant::now())) => {},
            }
        }
    }

    /// Looks at some known topics whose count of partitions is old. Their messages go on meanwhile.
    fn count_partitions(&mut self) {
        let old = self.gate.state.topics().not_seen_for(COUNT_EVERY, COUNTED_AT_ONCE, Instant::now());
        for topic in old {
            // Whoever waits for a topic comes first.
            if self.failures > 0 || self.gate.state.topics().next_due().is_some_and(|due| due <= Instant::now()) {
                return;
            }
            let count = match self.client.look_up(&topic, self.patience()) {
                LookupAnswer::Exists(count) => Some(count),
                // The others would be asked for in vain, too, one after the other.
                LookupAnswer::Unreachable(_) => return,
                LookupAnswer::DoesNotExist | LookupAnswer::NotYet | LookupAnswer::Refused(_) => None,
            };
            self.gate.state.topics_to_change().seen(&topic, count, Instant::now());
        }
    }

    /// How long a question may take now: less when somebody has to be answered sooner.
    fn patience(&self) -> Duration {
        let until = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let most = self.gate.state.topics().next_deadline().map_or(self.wait, until);
        most.max(MIN_LOOKUP_TIME).min(self.wait)
    }

    fn ask_for_topics(&mut self) {
        self.gate.state.doubt();
        let due = self.gate.state.topics().due(Instant::now());
        let mut unreachable = None;
        for (topic, known_before) in due {
            if self.gate.state.is_closed() {
                return;
            }
            self.gate.expire(Instant::now());
            if self.gate.state.topics().is_overdue(&topic, Instant::now()) {
                let reason = "the brokers respond slowly to the lookups of other topics".to_owned();
                self.gate.settle(&topic, LookupAnswer::Unreachable(reason));
                continue;
            }
            // One question without an answer is enough for all that are due.
            let answer = match unreachable.clone() {
                Some(answer) => answer,
                None => {
                    let (wait, asked) = (self.patience(), Instant::now());
                    self.gate.state.questions.fetch_add(1, Ordering::Relaxed);
                    let answer = self.client.look_up(&topic, wait);
                    let was_cut_short = wait < self.wait && asked.elapsed() >= wait;
                    if was_cut_short && matches!(answer, LookupAnswer::Unreachable(_)) {
                        // It says nothing to those who have more time.
                        continue;
                    }
                    answer
                }
            };
            if matches!(answer, LookupAnswer::Unreachable(_)) {
                unreachable = Some(answer.clone());
            }
            if known_before && matches!(answer, LookupAnswer::Exists(_)) {
                self.gate.engine.refresh_topic(&topic, self.patience());
            }
            self.gate.settle(&topic, answer);
        }
        self.gate.expire(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PartitionerKind;
    use crate::supervise::Ended;

    type Report = Box<dyn FnOnce(AppendResult) + Send>;

    /// An engine that gets nothing to append.
    struct NoEngine;

    impl ProducerEngine<Report> for NoEngine {
        fn submit(&self, _: PendingAppend<Report>, _: i32) -> Result<(), FailedAppend<Report>> {
            panic!("no topic exists");
        }
    }

    /// Brokers that take their time.
    struct Slow(Duration);

    impl MetadataClient for Slow {
        fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
            Ok(())
        }

        fn look_up(&mut self, _: &str, _: Duration) -> LookupAnswer {
            std::thread::sleep(self.0);
            LookupAnswer::DoesNotExist
        }
    }

    #[test]
    fn who_waits_for_one_of_many_topics_is_answered_in_time_by_slow_brokers() {
        let config = ProducerConfig {
            partitioner: PartitionerKind::Fnv1a,
            max_message_bytes: 10,
            max_in_flight: 1_000,
            timeout: Duration::from_millis(500),
        };
        let group = Supervisor::new("t", Stop::new());
        let slow = Slow(Duration::from_millis(100));
        let gate = MetadataGate::new(NoEngine, GateState::new(&config), &config, slow, Duration::from_secs(1), &group);
        let (sender, outcomes) = crossbeam_channel::unbounded();
        let started = Instant::now();
        for number in 0..100 {
            let topic = Arc::from(format!("t{number}"));
            let value = b"v".to_vec();
            let record = Record { topic, partition: None, key: None, value, headers: Vec::new(), timestamp_ms: None };
            let sender = sender.clone();
            let report: Report = Box::new(move |outcome| sender.send(outcome).expect("the test listens"));
            gate.append(record, Acks::Leader, report);
        }
        for _ in 0..100 {
            let error = outcomes.recv().expect("each completes").expect_err("nothing exists");
            assert_eq!(error.stored, Stored::No, "{error}");
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        assert!(gate.topic_lookups() < 20, "nobody is asked about what nobody waits for");
        gate.close();
        group.stop().trigger();
        assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
    }
}
