//! A broker in memory, for unit tests of what stands on the seam.
//!
//! It keeps topics, appends, offsets and trimmed logs as a real one does, and can be told to be unreachable, to
//! hold confirmations back, to refuse the next appends and to forget old messages. It keeps no threads, no
//! limits and no time: what was appended stays until [`MemoryBroker::trim`], so its user bounds the memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::marker::PhantomData;
use std::num::NonZeroI32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::partitioner::{Spread, partition_of};
use super::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, Completion, FetchError, Fetcher, LogEnds, LogRange,
    Message, MetadataError, Offset, PartitionId, PartitionInfo, PartitionerKind, Producer, Record, Stored,
    TopicPartition,
};
use crate::locks::{lock, wait_timeout};

/// A handle on the broker; clones share it.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    spread: Spread,
}

#[derive(Default)]
struct State {
    topics: HashMap<Arc<str>, Vec<Log>>,
    /// Partitions that answer with an error, and their words.
    broken: HashMap<TopicPartition, String>,
    unreachable: bool,
    holds_completions: bool,
    /// Partitions of a topic made by an append to it; 0 makes none.
    auto_create_partitions: i32,
    max_message_bytes: Option<usize>,
    /// Outcomes of the next appends, made up by the test; nothing is stored for them.
    failures: VecDeque<AppendError>,
    /// Completions held back; bounded by the test that holds them.
    held: Vec<HeldCompletion>,
    producers_made: u64,
}

struct HeldCompletion {
    producer: u64,
    /// Tells the outcome of the append, or that the producer was closed before it was known.
    finish: Box<dyn FnOnce(Release) + Send>,
}

enum Release {
    Confirmed,
    Closed,
}

#[derive(Default)]
struct Log {
    oldest: Offset,
    messages: VecDeque<Message>,
}

impl Log {
    fn newest(&self) -> Offset {
        self.oldest + self.messages.len() as Offset
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl MemoryBroker {
    /// A broker without topics that can be reached.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a topic, or gives an existing one more partitions.
    pub fn create_topic(&self, name: &str, partitions: i32) {
        let mut state = self.shared.lock();
        let logs = state.topics.entry(Arc::from(name)).or_default();
        while (logs.len() as i32) < partitions {
            logs.push(Log::default());
        }
    }

    /// Appends to a topic that does not exist make it with so many partitions; 0, as at first, refuses them.
    pub fn set_auto_create(&self, partitions: i32) {
        self.change(|state| state.auto_create_partitions = partitions);
    }

    /// Values larger than this are refused as too large; `None`, as at first, takes all.
    pub fn set_max_message_bytes(&self, limit: Option<usize>) {
        self.change(|state| state.max_message_bytes = limit);
    }

    /// Whether anything gets through.
    pub fn set_reachable(&self, reachable: bool) {
        self.change(|state| state.unreachable = !reachable);
    }

    /// While held, appends are stored but their completions wait for [`MemoryBroker::release_completions`].
    pub fn hold_completions(&self) {
        self.change(|state| state.holds_completions = true);
    }

    /// Runs the completions held so far and ends the holding; returns how many ran.
    pub fn release_completions(&self) -> usize {
        let mut state = self.shared.lock();
        state.holds_completions = false;
        let ready = std::mem::take(&mut state.held);
        drop(state);
        let ready_count = ready.len();
        for held in ready {
            (held.finish)(Release::Confirmed);
        }
        self.shared.changed.notify_all();
        ready_count
    }

    /// How many completions are being held.
    pub fn held_count(&self) -> usize {
        self.shared.lock().held.len()
    }

    /// The next append fails like this and stores nothing; several are kept in order.
    pub fn fail_next(&self, kind: AppendFailure, stored: Stored) {
        let reason = format!("the test wanted {kind:?}");
        self.change(|state| state.failures.push_back(AppendError { kind, stored, reason }));
    }

    /// Makes reading a partition fail with these words, or succeed again.
    pub fn set_broken(&self, partition: &TopicPartition, reason: Option<&str>) {
        self.change(|state| match reason {
            Some(reason) => drop(state.broken.insert(partition.clone(), reason.to_owned())),
            None => drop(state.broken.remove(partition)),
        });
    }

    /// Forgets the messages of a partition below `oldest`.
    pub fn trim(&self, partition: &TopicPartition, oldest: Offset) {
        self.change(|state| {
            if let Some(log) = state.log(partition) {
                while log.oldest < oldest && log.messages.pop_front().is_some() {
                    log.oldest += 1;
                }
                log.oldest = log.oldest.max(oldest);
            }
        });
    }

    /// Appends without a producer and gives the offset.
    ///
    /// # Panics
    /// When the partition does not exist.
    pub fn put(&self, topic: &str, partition: PartitionId, key: Option<&[u8]>, value: &[u8]) -> Offset {
        let from = TopicPartition { topic: Arc::from(topic), partition };
        let mut state = self.shared.lock();
        let log = state.log(&from).expect("a test puts into a partition it has made");
        let offset = log.newest();
        let (key, value) = (key.map(<[u8]>::to_vec), Some(value.to_vec()));
        log.messages.push_back(Message { from, offset, key, value, headers: Vec::new(), timestamp_ms: Some(0) });
        drop(state);
        self.shared.changed.notify_all();
        offset
    }

    /// Everything a partition keeps now; empty when it does not exist.
    pub fn messages(&self, topic: &str, partition: PartitionId) -> Vec<Message> {
        let wanted = TopicPartition { topic: Arc::from(topic), partition };
        self.shared.lock().log(&wanted).map_or_else(Vec::new, |log| log.messages.iter().cloned().collect())
    }

    /// A producer with the default partitioner.
    pub fn producer<C: Completion>(&self) -> MemoryProducer<C> {
        self.producer_with(PartitionerKind::default())
    }

    /// A producer with this partitioner.
    pub fn producer_with<C: Completion>(&self, partitioner: PartitionerKind) -> MemoryProducer<C> {
        let mut state = self.shared.lock();
        state.producers_made += 1;
        let number = state.producers_made;
        MemoryProducer {
            shared: Arc::clone(&self.shared),
            partitioner,
            number,
            closed: AtomicBool::new(false),
            completion: PhantomData,
        }
    }

    /// A fetcher with nothing assigned.
    pub fn fetcher(&self) -> MemoryFetcher {
        MemoryFetcher { shared: Arc::clone(&self.shared), assigned: BTreeMap::new(), turn: 0 }
    }

    /// A reader of log ends.
    pub fn log_ends(&self) -> MemoryLogEnds {
        MemoryLogEnds { shared: Arc::clone(&self.shared) }
    }

    fn change(&self, apply: impl FnOnce(&mut State)) {
        apply(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl State {
    fn log(&mut self, partition: &TopicPartition) -> Option<&mut Log> {
        let place = usize::try_from(partition.partition).ok()?;
        self.topics.get_mut(&partition.topic)?.get_mut(place)
    }

    fn append(&mut self, record: Record, acks: Acks, partitioner: PartitionerKind, spread: &Spread) -> AppendResult {
        let refuse = |kind, reason| Err(AppendError { kind, stored: Stored::No, reason });
        if let Some(failure) = self.failures.pop_front() {
            return Err(failure);
        }
        if self.unreachable {
            return refuse(AppendFailure::Unreachable, "no broker can be reached".to_owned());
        }
        if let Some(limit) = self.max_message_bytes.filter(|&limit| record.value.len() > limit) {
            return refuse(AppendFailure::TooLarge, format!("topic {} takes at most {limit} bytes", record.topic));
        }
        let made_at_once = self.auto_create_partitions;
        if !self.topics.contains_key(&record.topic) && made_at_once > 0 {
            let logs = std::iter::repeat_with(Log::default).take(made_at_once as usize).collect();
            self.topics.insert(Arc::clone(&record.topic), logs);
        }
        let known = self.topics.get_mut(&record.topic).map(|logs| (NonZeroI32::new(logs.len() as i32), logs));
        let Some((Some(count), logs)) = known else {
            return refuse(AppendFailure::UnknownTopic, format!("topic {} does not exist", record.topic));
        };
        let partition = record.partition.unwrap_or_else(|| match &record.key {
            Some(key) => partition_of(partitioner, key, count),
            None => spread.next(count),
        });
        let Some(log) = usize::try_from(partition).ok().and_then(|place| logs.get_mut(place)) else {
            let reason = format!("topic {} has no partition {partition}, it has {count}", record.topic);
            return refuse(AppendFailure::UnknownPartition, reason);
        };
        let offset = log.newest();
        log.messages.push_back(Message {
            from: TopicPartition { topic: record.topic, partition },
            offset,
            key: record.key,
            value: Some(record.value),
            headers: record.headers,
            timestamp_ms: Some(record.timestamp_ms.unwrap_or(0)),
        });
        Ok(Appended { partition, offset: (acks != Acks::None).then_some(offset) })
    }
}

/// Appends to a [`MemoryBroker`]; completions run before `append` returns unless they are held.
pub struct MemoryProducer<C> {
    shared: Arc<Shared>,
    partitioner: PartitionerKind,
    number: u64,
    closed: AtomicBool,
    completion: PhantomData<fn(C)>,
}

impl<C: Completion> Producer<C> for MemoryProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        if self.closed.load(Ordering::Acquire) {
            let reason = "the producer is being closed".to_owned();
            return completion.complete(Err(AppendError { kind: AppendFailure::Closed, stored: Stored::No, reason }));
        }
        let mut state = self.shared.lock();
        let outcome = state.append(record, acks, self.partitioner, &self.shared.spread);
        if state.holds_completions {
            let finish = Box::new(|release| match release {
                Release::Confirmed => completion.complete(outcome),
                Release::Closed => {
                    let reason = "the producer was closed before the broker confirmed".to_owned();
                    let (kind, stored) = (AppendFailure::Closed, Stored::Unknown);
                    completion.complete(Err(AppendError { kind, stored, reason }));
                }
            });
            state.held.push(HeldCompletion { producer: self.number, finish });
            drop(state);
        } else {
            drop(state);
            completion.complete(outcome);
        }
        self.shared.changed.notify_all();
    }

    fn close(&self, grace: Duration) {
        self.closed.store(true, Ordering::Release);
        let deadline = Instant::now() + grace;
        let mut state = self.shared.lock();
        while state.held.iter().any(|held| held.producer == self.number) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = wait_timeout(&self.shared.changed, state, left);
        }
        let abandoned: Vec<_> = state.held.extract_if(.., |held| held.producer == self.number).collect();
        drop(state);
        for held in abandoned {
            (held.finish)(Release::Closed);
        }
    }

    fn reachable(&self) -> Result<(), String> {
        match self.shared.lock().unreachable {
            true => Err("no broker can be reached".to_owned()),
            false => Ok(()),
        }
    }

    fn topic_lookups(&self) -> u64 {
        0
    }
}

/// Reads from a [`MemoryBroker`].
pub struct MemoryFetcher {
    shared: Arc<Shared>,
    assigned: BTreeMap<TopicPartition, Reading>,
    /// Which partition is read first, so that each gets its turn.
    turn: usize,
}

struct Reading {
    next: Offset,
    is_paused: bool,
}

impl Fetcher for MemoryFetcher {
    fn assign(&mut self, partition: &TopicPartition, offset: Offset) {
        self.assigned.insert(partition.clone(), Reading { next: offset, is_paused: false });
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.assigned.remove(partition);
    }

    fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(reading) = self.assigned.get_mut(partition) {
            reading.is_paused = paused;
        }
    }

    fn poll(&mut self, wait: Duration, most: usize) -> Result<Vec<Message>, FetchError> {
        let deadline = Instant::now() + wait;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            let found = if state.unreachable { Vec::new() } else { self.read(&mut state, most)? };
            let left = deadline.saturating_duration_since(Instant::now());
            if !found.is_empty() || left.is_zero() {
                return match state.unreachable {
                    true => Err(FetchError::Unreachable("the test wanted it".to_owned())),
                    false => Ok(found),
                };
            }
            state = wait_timeout(&shared.changed, state, left);
        }
    }
}

impl MemoryFetcher {
    fn read(&mut self, state: &mut State, most: usize) -> Result<Vec<Message>, FetchError> {
        let mut found = Vec::new();
        self.turn += 1;
        let first = self.turn % self.assigned.len().max(1);
        let order: Vec<TopicPartition> =
            self.assigned.keys().skip(first).chain(self.assigned.keys().take(first)).cloned().collect();
        for partition in order {
            let Some(reading) = self.assigned.get_mut(&partition).filter(|reading| !reading.is_paused) else {
                continue;
            };
            let broken = state.broken.get(&partition).cloned();
            let reason = match (broken, state.log(&partition)) {
                (Some(reason), _) => reason,
                (None, None) => "it does not exist".to_owned(),
                (None, Some(log)) if (log.oldest..=log.newest()).contains(&reading.next) => {
                    let skipped = (reading.next - log.oldest) as usize;
                    found.extend(log.messages.iter().skip(skipped).take(most - found.len()).cloned());
                    if let Some(last) = found.last().filter(|last| last.from == partition) {
                        reading.next = last.offset + 1;
                    }
                    continue;
                }
                (None, Some(log)) if found.is_empty() => {
                    let (offset, oldest, newest) = (reading.next, log.oldest, log.newest());
                    self.assigned.remove(&partition);
                    return Err(FetchError::OffsetGone { partition, offset, oldest, newest });
                }
                (None, Some(_)) => continue,
            };
            if found.is_empty() {
                return Err(FetchError::Partition { partition, reason });
            }
        }
        Ok(found)
    }
}

/// Reads the ends of a [`MemoryBroker`]'s logs.
pub struct MemoryLogEnds {
    shared: Arc<Shared>,
}

impl LogEnds for MemoryLogEnds {
    fn partitions(&mut self, topic: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        let state = self.shared.lock();
        if state.unreachable {
            return Err(MetadataError::Unreachable("the test wanted it".to_owned()));
        }
        let logs = state.topics.get(topic).ok_or_else(|| MetadataError::UnknownTopic(topic.to_owned()))?;
        Ok((0..logs.len() as i32).map(|partition| PartitionInfo { partition, leader: Some(1) }).collect())
    }

    fn newest(&mut self, partitions: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        partitions.iter().map(|partition| self.range(partition).map(|range| range.newest)).collect()
    }

    fn range(&mut self, partition: &TopicPartition) -> Result<LogRange, MetadataError> {
        let mut state = self.shared.lock();
        if state.unreachable {
            return Err(MetadataError::Unreachable("the test wanted it".to_owned()));
        }
        if let Some(reason) = state.broken.get(partition) {
            return Err(MetadataError::Partition(format!("{partition}: {reason}")));
        }
        match state.log(partition) {
            Some(log) => Ok(LogRange { oldest: log.oldest, newest: log.newest() }),
            None => Err(MetadataError::Partition(format!("{partition} does not exist"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, unbounded};

    type Boxed = Box<dyn FnOnce(AppendResult) + Send>;

    fn append(producer: &MemoryProducer<Boxed>, topic: &str) -> Receiver<AppendResult> {
        let (sender, receiver) = unbounded();
        let (topic, value) = (Arc::from(topic), b"v".to_vec());
        let record = Record { topic, partition: None, key: None, value, headers: Vec::new(), timestamp_ms: None };
        producer.append(record, Acks::Leader, Box::new(move |outcome| drop(sender.send(outcome))));
        receiver
    }

    fn failure(outcome: &Receiver<AppendResult>) -> (AppendFailure, Stored) {
        let error = outcome.try_recv().expect("it has completed").expect_err("it fails");
        (error.kind, error.stored)
    }

    #[test]
    fn held_completions_run_at_the_release_and_are_closed_otherwise() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let producer = broker.producer();
        broker.hold_completions();
        let first = append(&producer, "t");
        assert!(first.try_recv().is_err());
        assert_eq!((broker.held_count(), broker.messages("t", 0).len()), (1, 1));
        assert_eq!(broker.release_completions(), 1);
        assert_eq!(first.try_recv().expect("it has completed").expect("it is stored").offset, Some(0));
        broker.hold_completions();
        let second = append(&producer, "t");
        producer.close(Duration::ZERO);
        assert_eq!(failure(&second), (AppendFailure::Closed, Stored::Unknown));
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::Closed, Stored::No));
    }

    #[test]
    fn failures_come_in_the_order_they_were_wanted() {
        let broker = MemoryBroker::new();
        let producer = broker.producer();
        broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::TimedOut, Stored::Unknown));
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::UnknownTopic, Stored::No));
        broker.set_auto_create(2);
        broker.set_reachable(false);
        assert_eq!(failure(&append(&producer, "t")), (AppendFailure::Unreachable, Stored::No));
        assert!(producer.reachable().is_err());
        broker.set_reachable(true);
        assert!(append(&producer, "t").try_recv().expect("it has completed").is_ok());
    }

    #[test]
    fn trimmed_offsets_are_gone_and_the_range_moves() {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        let partition = TopicPartition { topic: Arc::from("t"), partition: 0 };
        for _ in 0..5 {
            broker.put("t", 0, None, b"v");
        }
        broker.trim(&partition, 3);
        let mut fetcher = broker.fetcher();
        fetcher.assign(&partition, 1);
        let gone = fetcher.poll(Duration::ZERO, 10);
        assert!(matches!(gone, Err(FetchError::OffsetGone { offset: 1, oldest: 3, newest: 5, .. })), "{gone:?}");
        assert_eq!(fetcher.poll(Duration::ZERO, 10).expect("nothing is assigned"), []);
        assert_eq!(broker.log_ends().range(&partition).expect("it exists"), LogRange { oldest: 3, newest: 5 });
    }
}
