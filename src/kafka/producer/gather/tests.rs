use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
const BACKOFF: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    id: u32,
    deadline: Instant,
}

impl Gathered for Message {
    fn cost_bytes(&self) -> usize {
        10
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

fn limits(is_idempotent: bool) -> Limits {
    Limits { max_batch_bytes: 30, max_request_bytes: 50, retry_backoff: BACKOFF, is_idempotent }
}

/// A sent batch: partition, producer id, base sequence number, message ids.
type Sent = (PartitionIndex, i64, i32, Vec<u32>);

struct TestQueue {
    gather: Gather<u32, Message>,
    now: Instant,
    ended: Vec<(u32, Outcome)>,
    /// Latest sending of each partition.
    sendings: BTreeMap<usize, Sending>,
}

impl TestQueue {
    fn new(is_idempotent: bool) -> TestQueue {
        TestQueue {
            gather: Gather::new(limits(is_idempotent)),
            now: Instant::now(),
            ended: Vec::new(),
            sendings: BTreeMap::new(),
        }
    }

    fn append(&mut self, partition: PartitionIndex, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            self.gather.append(partition, Message { id, deadline: self.now + DELIVERY_TIMEOUT });
        }
    }

    fn take(&mut self, broker: BrokerId) -> Vec<Sent> {
        let mut sent = Vec::new();
        self.gather.take(broker, self.now, |batch| {
            let ids = batch.messages.iter().flatten().map(|message| message.id).collect();
            self.sendings.insert(batch.sending.partition.0, batch.sending);
            sent.push((batch.sending.partition, batch.producer.producer_id, batch.producer.base_sequence, ids));
        });
        sent
    }

    /// Completes the latest sending of the partition.
    fn complete(&mut self, partition: PartitionIndex, result: BatchResult) {
        self.complete_sending(self.sendings[&partition.0], result);
    }

    fn complete_sending(&mut self, sending: Sending, result: BatchResult) {
        let ended = &mut self.ended;
        self.gather.complete(sending, result, self.now, &mut |(message, outcome)| ended.push((message.id, outcome)));
    }

    fn expire(&mut self) {
        let ended = &mut self.ended;
        self.gather.expire(self.now, &mut |(message, outcome)| ended.push((message.id, outcome)));
    }

    fn ended(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.ended)
    }
}

#[test]
fn a_request_carries_one_batch_of_each_partition_that_the_broker_leads() {
    let mut queue = TestQueue::new(false);
    let partitions: Vec<_> = (0..4).map(|name| queue.gather.partition(name)).collect();
    for (position, &partition) in partitions.iter().enumerate() {
        assert_eq!(queue.gather.set_leader(partition, Some(position as BrokerId % 2)), None);
    }
    assert_eq!(queue.gather.append(partitions[0], Message { id: 1, deadline: queue.now + DELIVERY_TIMEOUT }), Some(0));
    queue.append(partitions[0], [2, 3, 4]);
    queue.append(partitions[2], [20, 21]);
    queue.append(partitions[1], [10]);
    assert_eq!(queue.take(0), [(partitions[0], -1, -1, vec![1, 2, 3]), (partitions[2], -1, -1, vec![20, 21])]);
    assert_eq!(queue.take(0), [], "a partition with a batch in flight sends no other");
    assert_eq!(queue.take(1), [(partitions[1], -1, -1, vec![10])]);
    queue.complete(partitions[0], BatchResult::Stored(Some(100)));
    assert_eq!(queue.ended(), [1, 2, 3].map(|id| (id, Outcome::Appended(Some(99 + i64::from(id))))));
    assert_eq!(queue.take(0), [(partitions[0], -1, -1, vec![4])]);
    // A request has at most 50 bytes; the partition that did not fit is the first of the next request.
    for partition in [partitions[0], partitions[2]] {
        queue.complete(partition, BatchResult::Stored(None));
    }
    queue.append(partitions[2], [22, 23, 24]);
    queue.append(partitions[0], [5, 6, 7]);
    assert_eq!(queue.take(0), [(partitions[2], -1, -1, vec![22, 23, 24])]);
    assert_eq!(queue.take(0), [(partitions[0], -1, -1, vec![5, 6, 7])]);
}

#[test]
fn other_messages_of_a_rejected_batch_are_retried_with_the_same_sequence_number() {
    let mut queue = TestQueue::new(true);
    let partition = queue.gather.partition(0);
    queue.gather.set_leader(partition, Some(1));
    queue.append(partition, 1..=4);
    assert!(queue.gather.needs_producer());
    assert_eq!(queue.take(1), [], "no producer id yet");
    assert_eq!(queue.gather.set_producer(7, 0), [1]);
    assert_eq!(queue.take(1), [(partition, 7, 0, vec![1, 2, 3])]);
    queue.complete(partition, BatchResult::Rejected(vec![1], 87));
    assert_eq!(queue.ended(), [(2, Outcome::Rejected(87, Stored::No))]);
    assert_eq!(
        queue.take(1),
        [(partition, 7, 0, vec![1, 3, 4])],
        "a rejected batch does not use up its sequence number"
    );
    queue.complete(partition, BatchResult::TooLarge(10));
    assert_eq!(queue.take(1), [(partition, 7, 0, vec![1, 3])]);
    queue.complete(partition, BatchResult::Stored(Some(0)));
    assert_eq!(queue.take(1), [(partition, 7, 2, vec![4])]);
    queue.complete(partition, BatchResult::TooLarge(10));
    assert_eq!(queue.ended().last(), Some(&(4, Outcome::Rejected(10, Stored::No))));
    assert!(queue.gather.is_empty() && !queue.gather.needs_producer());
}

#[test]
fn a_batch_that_may_be_stored_is_retried_unchanged_and_its_expiry_needs_a_new_producer_id() {
    let mut queue = TestQueue::new(true);
    let partition = queue.gather.partition(0);
    queue.gather.set_leader(partition, Some(1));
    queue.gather.set_producer(7, 0);
    queue.append(partition, [1, 2]);
    assert_eq!(queue.take(1), [(partition, 7, 0, vec![1, 2])]);
    queue.append(partition, [3]);
    queue.complete(partition, BatchResult::MaybeStored);
    assert_eq!(queue.take(1), [], "no retry before the end of the back-off");
    queue.now += BACKOFF;
    queue.gather.set_leader(partition, Some(2));
    assert_eq!(queue.take(1), []);
    assert_eq!(queue.take(2), [(partition, 7, 0, vec![1, 2])]);
    queue.complete(partition, BatchResult::MaybeStored);
    queue.now += DELIVERY_TIMEOUT;
    queue.expire();
    let unknown = Outcome::TimedOut(Stored::Unknown);
    assert_eq!(queue.ended(), [(3, Outcome::TimedOut(Stored::No)), (1, unknown.clone()), (2, unknown)]);
    assert!(queue.gather.needs_producer(), "the sequence number that the broker expects is unknown");
    queue.append(partition, [4]);
    assert_eq!(queue.take(2), []);
    assert_eq!(queue.gather.set_producer(8, 0), [2]);
    assert_eq!(queue.take(2), [(partition, 8, 0, vec![4])]);
    assert!(!queue.gather.needs_producer());
}

#[test]
fn an_expiry_does_not_rejoin_the_halves_of_a_batch_that_is_too_large() {
    let mut queue = TestQueue::new(true);
    let partition = queue.gather.partition(0);
    queue.gather.set_leader(partition, Some(1));
    queue.gather.set_producer(7, 0);
    queue.append(partition, [1, 2]);
    queue.now += BACKOFF;
    queue.append(partition, [3]);
    assert_eq!(queue.take(1), [(partition, 7, 0, vec![1, 2, 3])]);
    queue.complete(partition, BatchResult::TooLarge(10));
    queue.expire();
    assert_eq!(queue.take(1), [(partition, 7, 0, vec![1, 2])]);
    queue.complete(partition, BatchResult::TooLarge(10));
    queue.now += DELIVERY_TIMEOUT - BACKOFF;
    queue.expire();
    let expired = Outcome::TimedOut(Stored::No);
    assert_eq!(queue.ended(), [(2, expired.clone()), (1, expired)]);
    assert_eq!(queue.take(1), [(partition, 7, 0, vec![3])]);
}

#[test]
fn a_full_request_is_followed_by_another_at_once() {
    let mut queue = TestQueue::new(false);
    for name in 0..2 {
        let partition = queue.gather.partition(name);
        queue.gather.set_leader(partition, Some(1));
        queue.append(partition, [1, 2, 3]);
    }
    assert_eq!(queue.gather.take(1, queue.now, |_| ()), Some(queue.now));
    assert_eq!(queue.gather.take(1, queue.now, |_| ()), None);
}

/// A partition log that recognises duplicates as a broker does: by producer id and sequence number.
#[derive(Default)]
struct Log {
    ids: Vec<u32>,
    /// By producer id: base sequence number, record count and base offset of the last batch.
    last: BTreeMap<i64, (i32, usize, usize)>,
}

impl Log {
    fn append(&mut self, producer: i64, sequence: i32, ids: &[u32]) -> Result<usize, BatchResult> {
        if producer >= 0 {
            match self.last.get(&producer) {
                Some(&(last, count, offset)) if (last, count) == (sequence, ids.len()) => return Ok(offset),
                Some(&(last, count, _)) if last + count as i32 != sequence => return Err(BatchResult::UnknownProducer),
                None if sequence != 0 => return Err(BatchResult::UnknownProducer),
                _ => {}
            }
            self.last.insert(producer, (sequence, ids.len(), self.ids.len()));
        }
        let offset = self.ids.len();
        self.ids.extend(ids);
        Ok(offset)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(usize),
    Take(BrokerId),
    /// The broker handles the oldest batch in flight: the kind of result, and whether the response is lost.
    Broker(u8, bool),
    Leader(usize, Option<BrokerId>),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_usize).prop_map(Step::Append),
        6 => (0..2).prop_map(Step::Take),
        6 => (0..12_u8, prop::bool::weighted(0.2)).prop_map(|(what, lost)| Step::Broker(what, lost)),
        2 => (0..3_usize, prop::option::weighted(0.8, 0..2))
            .prop_map(|(partition, leader)| Step::Leader(partition, leader)),
        1 => (0..20_000_u16).prop_map(Step::Wait),
    ]
}

/// Runs the steps, then lets all batches succeed; checks every outcome against the partition logs.
fn play(is_idempotent: bool, steps: &[Step]) {
    let mut queue = TestQueue::new(is_idempotent);
    let partitions: Vec<PartitionIndex> = (0..3).map(|name| queue.gather.partition(name)).collect();
    let mut logs: Vec<Log> = (0..3).map(|_| Log::default()).collect();
    let mut appended: Vec<Vec<u32>> = vec![Vec::new(); 3];
    let mut in_flight: VecDeque<(Sending, i64, i32, Vec<u32>)> = VecDeque::new();
    let mut completed: Vec<Sending> = Vec::new();
    // Message ids of the latest encoded batch of each partition, which an unchanged retry sends again.
    let mut encoded: Vec<Vec<u32>> = vec![Vec::new(); 3];
    let (mut next_id, mut next_producer) = (0, 0);
    let finish = (0..400).flat_map(|_| [Step::Take(0), Step::Broker(0, false), Step::Take(1), Step::Wait(200)]);
    let leaders = (0..3).map(|partition| Step::Leader(partition, Some(0)));
    for step in steps.iter().copied().chain(leaders).chain(finish) {
        if is_idempotent && queue.gather.needs_producer() {
            queue.gather.set_producer(next_producer, 0);
            next_producer += 1;
        }
        match step {
            Step::Append(partition) => {
                queue.append(partitions[partition], [next_id]);
                appended[partition].push(next_id);
                next_id += 1;
            }
            Step::Take(broker) => {
                let now = queue.now;
                queue.gather.take(broker, now, |batch| {
                    let position = batch.sending.partition.0;
                    if !batch.is_unchanged_retry {
                        encoded[position] = batch.messages.iter().flatten().map(|message| message.id).collect();
                    }
                    let ProducerState { producer_id, base_sequence, .. } = batch.producer;
                    let is_free = in_flight.iter().all(|sent| sent.0.partition.0 != position);
                    assert!(is_free, "one batch in flight for each partition");
                    in_flight.push_back((batch.sending, producer_id, base_sequence, encoded[position].clone()));
                });
            }
            Step::Broker(what, lost) => {
                let Some((sending, producer, sequence, ids)) = in_flight.pop_front() else { continue };
                let position = sending.partition.0;
                // Late responses to earlier sendings of the partition.
                for late in completed.iter().filter(|late| late.partition == sending.partition) {
                    queue.complete_sending(*late, BatchResult::Stored(Some(0)));
                }
                completed.push(sending);
                let result = match what {
                    0..=5 => match logs[position].append(producer, sequence, &ids) {
                        Ok(offset) => BatchResult::Stored(Some(offset as i64)),
                        Err(result) => result,
                    },
                    6 => BatchResult::NotStored,
                    7 => BatchResult::MaybeStored,
                    8 => BatchResult::Rejected(vec![ids.len() / 2], 87),
                    9 => BatchResult::Rejected(Vec::new(), 29),
                    10 => BatchResult::TooLarge(10),
                    _ => BatchResult::UnknownProducer,
                };
                // Without idempotence no broker returns that error.
                let result = if result == BatchResult::UnknownProducer && !is_idempotent {
                    BatchResult::NotStored
                } else {
                    result
                };
                queue.complete_sending(sending, if lost { BatchResult::MaybeStored } else { result });
            }
            Step::Leader(partition, leader) => {
                queue.gather.set_leader(partitions[partition], leader);
            }
            Step::Wait(millis) => {
                queue.now += Duration::from_millis(millis.into());
                queue.expire();
            }
        }
    }
    assert!(queue.gather.is_empty(), "every message ends");
    let ended = queue.ended();
    assert_eq!(ended.len(), next_id as usize, "each message ends once");
    let outcomes: BTreeMap<u32, Outcome> = ended.into_iter().collect();
    assert_eq!(outcomes.len(), next_id as usize);
    for (position, log) in logs.iter().enumerate() {
        for id in &appended[position] {
            let stored = log.ids.iter().filter(|stored| *stored == id).count();
            match &outcomes[id] {
                Outcome::Appended(Some(offset)) => {
                    assert_eq!(log.ids[*offset as usize], *id, "the confirmed offset is the offset in the log")
                }
                Outcome::Appended(None) => panic!("the log returns offsets"),
                Outcome::Rejected(_, Stored::No) | Outcome::TimedOut(Stored::No) => {
                    assert_eq!(stored, 0, "a message with Stored::No is not in the log")
                }
                Outcome::Rejected(_, Stored::Unknown) | Outcome::TimedOut(Stored::Unknown) => {}
            }
            assert!(!is_idempotent || stored <= 1, "stored twice: {id} in {:?}", log.ids);
        }
        let mut first = Vec::new();
        log.ids.iter().for_each(|id| {
            if !first.contains(id) {
                first.push(*id)
            }
        });
        assert!(first.is_sorted(), "out of order: {:?}", log.ids);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn outcomes_agree_with_the_log_and_the_order_is_kept_under_random_faults(
        is_idempotent: bool,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        play(is_idempotent, &steps);
    }
}
