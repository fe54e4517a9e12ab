use super::*;
use crate::kafka::producer::outcome::{Outcome, Stored};
use std::collections::BTreeMap;

/// Deadlines, queues, sizes and the close.
mod bounds;
/// The partition log as a broker keeps it.
mod log;
/// Producer ids and epochs.
mod producer_ids;
/// Random schedules of faults, checked against the logs.
mod schedules;

const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Upper bound of the back-off in these tests, as a multiple of [`BACKOFF`].
const MAX_BACKOFF_FACTOR: u32 = 8;
const BACKOFF: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    id: u32,
    deadline: Instant,
    cost_bytes: usize,
}

impl QueuedMessage for Message {
    fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// A sent batch: partition, epoch, base sequence number, message ids.
type Sent = (PartitionIndex, i16, i32, Vec<u32>);

struct TestQueue {
    accumulator: RecordAccumulator<u32, Message>,
    now: Instant,
    ended: Vec<(u32, Outcome)>,
    /// Latest sending of each partition.
    sendings: BTreeMap<PartitionIndex, Sending>,
}

impl TestQueue {
    /// Returns a queue with batches of at most 30 bytes and requests of at most 50 bytes.
    fn new(is_idempotent: bool) -> TestQueue {
        let limits = Limits {
            max_batch_bytes: 30,
            max_request_bytes: 50,
            retry_backoff: BACKOFF,
            max_retry_backoff: MAX_BACKOFF_FACTOR * BACKOFF,
            is_idempotent,
        };
        TestQueue {
            accumulator: RecordAccumulator::new(limits),
            now: Instant::now(),
            ended: Vec::new(),
            sendings: BTreeMap::new(),
        }
    }

    /// Returns a queue with producer id 7, and a partition that broker 1 leads.
    fn with_partition() -> (TestQueue, PartitionIndex) {
        let mut queue = TestQueue::new(true);
        let partition = queue.accumulator.partition(0);
        queue.accumulator.set_leader(partition, Some(1));
        queue.accumulator.set_producer(7, 0);
        (queue, partition)
    }

    /// Appends messages of 10 bytes.
    fn append(&mut self, partition: PartitionIndex, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            let message = Message { id, deadline: self.now + DELIVERY_TIMEOUT, cost_bytes: 10 };
            self.accumulator.append(partition, message);
        }
    }

    fn take(&mut self, broker: BrokerId) -> Vec<Sent> {
        self.take_until_due(broker).0
    }

    fn take_until_due(&mut self, broker: BrokerId) -> (Vec<Sent>, Option<Instant>) {
        let mut sent = Vec::new();
        let due = self.accumulator.take(broker, self.now, usize::MAX, |batch| {
            let ids = batch.messages.iter().flatten().map(|message| message.id).collect();
            self.sendings.insert(batch.sending.partition, batch.sending);
            sent.push((batch.sending.partition, batch.producer.epoch, batch.producer.base_sequence, ids));
        });
        (sent, due)
    }

    /// Completes the latest sending of the partition.
    fn complete(&mut self, partition: PartitionIndex, result: BatchResult) -> Option<BrokerId> {
        let (ended, sending) = (&mut self.ended, self.sendings[&partition]);
        self.accumulator
            .complete(sending, result, self.now, &mut |(message, outcome)| ended.push((message.id, outcome)))
    }

    fn forget_producer(&mut self) {
        let ended = &mut self.ended;
        self.accumulator.forget_producer(&mut |(message, outcome)| ended.push((message.id, outcome)));
    }

    fn expire(&mut self) {
        let ended = &mut self.ended;
        self.accumulator.expire(self.now, &mut |(message, outcome)| ended.push((message.id, outcome)));
    }

    fn ended(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.ended)
    }

    fn producer_id(&self, partition: PartitionIndex) -> i64 {
        self.accumulator.partitions[partition.0].producer.producer_id
    }
}

const TIMED_OUT_NO: Outcome = Outcome::TimedOut(Stored::No);
const TIMED_OUT_UNKNOWN: Outcome = Outcome::TimedOut(Stored::Unknown);

#[test]
fn a_request_carries_one_batch_of_each_partition_that_the_broker_leads() {
    let mut queue = TestQueue::new(false);
    let partitions: Vec<_> = (0..4).map(|name| queue.accumulator.partition(name)).collect();
    for (position, &partition) in partitions.iter().enumerate() {
        assert_eq!(queue.accumulator.set_leader(partition, Some(position as BrokerId % 2)), None);
    }
    let message = Message { id: 1, deadline: queue.now + DELIVERY_TIMEOUT, cost_bytes: 10 };
    assert_eq!(queue.accumulator.append(partitions[0], message.clone()), Some(0));
    assert_eq!(queue.accumulator.append(partitions[0], Message { id: 2, ..message }), None, "in the queue already");
    queue.append(partitions[0], [3, 4]);
    queue.append(partitions[2], [20, 21]);
    queue.append(partitions[1], [10]);
    assert_eq!(queue.take(0), [(partitions[0], -1, -1, vec![1, 2, 3]), (partitions[2], -1, -1, vec![20, 21])]);
    assert_eq!(queue.take(0), [], "a partition with a batch in flight sends no other");
    assert_eq!(queue.take(1), [(partitions[1], -1, -1, vec![10])]);
    assert_eq!(queue.complete(partitions[0], BatchResult::Stored(Some(100))), Some(0));
    assert_eq!(queue.ended(), [1, 2, 3].map(|id| (id, Outcome::Appended(Some(99 + i64::from(id))))));
    assert_eq!(queue.take(0), [(partitions[0], -1, -1, vec![4])]);
    // A request has at most 50 bytes; the partition that did not fit is the first of the next request.
    for partition in [partitions[0], partitions[2]] {
        assert_eq!(queue.complete(partition, BatchResult::Stored(None)), None);
    }
    queue.append(partitions[2], [22, 23, 24]);
    queue.append(partitions[0], [5, 6, 7]);
    assert_eq!(queue.take_until_due(0), (vec![(partitions[2], -1, -1, vec![22, 23, 24])], Some(queue.now)));
    queue.complete(partitions[2], BatchResult::Stored(None));
    queue.append(partitions[2], [25]);
    let expected = vec![(partitions[0], -1, -1, vec![5, 6, 7]), (partitions[2], -1, -1, vec![25])];
    assert_eq!(queue.take_until_due(0), (expected, None));
}

#[test]
fn other_messages_of_a_rejected_batch_are_retried_with_the_same_sequence_number() {
    let mut queue = TestQueue::new(true);
    let partition = queue.accumulator.partition(0);
    queue.accumulator.set_leader(partition, Some(1));
    queue.append(partition, 1..=4);
    assert!(queue.accumulator.needs_producer());
    assert_eq!(queue.take_until_due(1), (vec![], None), "no producer id yet");
    assert_eq!(queue.accumulator.set_producer(7, 0), [1]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2, 3])]);
    queue.complete(partition, BatchResult::Rejected(vec![1, 99], 87));
    assert_eq!(queue.ended(), [(2, Outcome::Rejected(87, Stored::No))]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 3])], "a rejected batch does not use up its number");
    queue.complete(partition, BatchResult::TooLarge(10));
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1])]);
    queue.complete(partition, BatchResult::Stored(Some(0)));
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![3])]);
    queue.complete(partition, BatchResult::Stored(Some(0)));
    assert_eq!(queue.take(1), [(partition, 0, 2, vec![4])]);
    queue.complete(partition, BatchResult::TooLarge(10));
    assert_eq!(queue.ended().last(), Some(&(4, Outcome::Rejected(10, Stored::No))));
    assert!(queue.accumulator.is_empty() && !queue.accumulator.needs_producer());
}

#[test]
fn refusals_use_up_no_epoch_and_no_producer_id() {
    let (mut queue, partition) = TestQueue::with_partition();
    for round in 0..33_000 {
        queue.append(partition, [1, 2]);
        assert_eq!(queue.take(1), [(partition, 0, round, vec![1, 2])]);
        queue.complete(partition, BatchResult::Rejected(vec![1], 87));
        assert_eq!(queue.take(1), [(partition, 0, round, vec![1])], "the sequence number is used again");
        queue.complete(partition, BatchResult::Rejected(Vec::new(), 29));
        queue.append(partition, [3]);
        assert_eq!(queue.take(1), [(partition, 0, round, vec![3])]);
        queue.complete(partition, BatchResult::TooLarge(10));
        assert_eq!(queue.ended().len(), 3);
        queue.append(partition, [4]);
        assert_eq!(queue.take(1), [(partition, 0, round, vec![4])]);
        queue.complete(partition, BatchResult::Stored(None));
        assert_eq!(queue.ended(), [(4, Outcome::Appended(None))]);
    }
    assert!(queue.accumulator.is_empty() && !queue.accumulator.needs_producer());
    assert_eq!(queue.producer_id(partition), 7);
}

#[test]
fn positions_that_are_not_in_the_batch_reject_all_messages() {
    for positions in [vec![2], vec![usize::MAX, 2], vec![]] {
        let (mut queue, partition) = TestQueue::with_partition();
        queue.append(partition, [1, 2]);
        assert_eq!(queue.take(1).len(), 1);
        assert_eq!(queue.complete(partition, BatchResult::Rejected(positions, 87)), None);
        assert_eq!(queue.ended(), [1, 2].map(|id| (id, Outcome::Rejected(87, Stored::No))));
    }
}

#[test]
fn after_a_batch_that_may_be_stored_the_partition_continues_with_the_next_epoch() {
    let (mut queue, partition) = TestQueue::with_partition();
    let other = queue.accumulator.partition(1);
    queue.accumulator.set_leader(other, Some(1));
    queue.append(partition, [1, 2]);
    queue.append(other, [10]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2]), (other, 0, 0, vec![10])]);
    queue.complete(other, BatchResult::Stored(None));
    queue.append(partition, [3]);
    assert_eq!(queue.complete(partition, BatchResult::MaybeStored), Some(1));
    assert_eq!(queue.take_until_due(1), (vec![], Some(queue.now + BACKOFF)), "no retry before the end of the back-off");
    queue.now += BACKOFF;
    assert_eq!(queue.accumulator.set_leader(partition, Some(2)), Some(2));
    assert_eq!(queue.take_until_due(1), (vec![], None));
    assert_eq!(queue.take(2), [(partition, 0, 0, vec![1, 2])], "unchanged, without the message 3");
    queue.complete(partition, BatchResult::MaybeStored);
    queue.now += DELIVERY_TIMEOUT;
    queue.expire();
    let unknown = TIMED_OUT_UNKNOWN;
    assert_eq!(queue.ended()[1..], [(1, unknown.clone()), (2, unknown), (3, TIMED_OUT_NO)]);
    assert!(!queue.accumulator.needs_producer(), "the next epoch needs no request");
    queue.append(partition, [4]);
    queue.append(other, [11]);
    assert_eq!(queue.take(2), [(partition, 1, 0, vec![4])]);
    assert_eq!(queue.take(1), [(other, 0, 1, vec![11])], "the other partition keeps epoch and sequence");
    // A rejection says nothing about an earlier sending that may be stored.
    queue.complete(partition, BatchResult::MaybeStored);
    queue.now += MAX_BACKOFF_FACTOR * BACKOFF;
    assert_eq!(queue.take(2), [(partition, 1, 0, vec![4])]);
    queue.append(partition, [5]);
    queue.complete(partition, BatchResult::Rejected(vec![0], 87));
    assert_eq!(queue.ended().last(), Some(&(4, Outcome::Rejected(87, Stored::Unknown))));
    assert_eq!(queue.take(2), [(partition, 2, 0, vec![5])]);
}

#[test]
fn a_batch_that_is_confirmed_after_its_messages_expired_costs_no_epoch() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1, 2]);
    assert_eq!(queue.take(1).len(), 1);
    queue.now += DELIVERY_TIMEOUT;
    queue.expire();
    assert_eq!(queue.ended(), [1, 2].map(|id| (id, TIMED_OUT_UNKNOWN)));
    queue.append(partition, [3]);
    assert_eq!(queue.take(1), [], "the batch is still in flight");
    assert!(!queue.accumulator.is_empty());
    assert_eq!(queue.complete(partition, BatchResult::Stored(None)), Some(1));
    assert_eq!(queue.take(1), [(partition, 0, 2, vec![3])]);
    queue.complete(partition, BatchResult::Stored(None));
    assert_eq!(queue.ended(), [(3, Outcome::Appended(None))]);
    assert!(queue.accumulator.is_empty());
}

#[test]
fn the_epochs_of_one_partition_can_be_used_up_without_effect_on_others() {
    let (mut queue, partition) = TestQueue::with_partition();
    let other = queue.accumulator.partition(1);
    queue.accumulator.set_leader(other, Some(1));
    let mut requested_at = None;
    for round in 0..=33_000 {
        if queue.accumulator.needs_producer() && requested_at.is_none() {
            requested_at = Some(round);
        }
        // The new id arrives a little later than it is needed.
        if round == 32_766 {
            queue.append(other, [9]);
            assert_eq!(queue.take(1), [(other, 0, 0, vec![9])]);
            queue.complete(other, BatchResult::Stored(None));
            assert!(queue.accumulator.set_producer(8, 0).is_empty(), "no partition waits for it");
            assert!(!queue.accumulator.needs_producer());
        }
        queue.append(partition, [round]);
        let epoch = if round < 32_768 { round } else { round - 32_768 };
        let expected = [(partition, epoch as i16, 0, vec![round])];
        assert_eq!(queue.take(1), expected);
        queue.complete(partition, BatchResult::MaybeStored);
        queue.now += DELIVERY_TIMEOUT;
        queue.expire();
    }
    assert!(requested_at.is_some_and(|round| (31_000..32_000).contains(&round)), "{requested_at:?}");
    assert_eq!((queue.producer_id(partition), queue.producer_id(other)), (8, 7));
    queue.append(other, [1]);
    queue.now += BACKOFF;
    assert_eq!(queue.take(1), [(other, 0, 1, vec![1])]);
    assert!(!queue.accumulator.needs_producer());
}

#[test]
fn a_partition_without_epochs_waits_for_a_new_producer_id() {
    let (mut queue, partition) = TestQueue::with_partition();
    let other = queue.accumulator.partition(1);
    queue.accumulator.set_leader(other, Some(2));
    queue.accumulator.set_producer(8, i16::MAX);
    queue.append(partition, [1]);
    assert_eq!(queue.take(1), [(partition, i16::MAX, 0, vec![1])]);
    queue.complete(partition, BatchResult::MaybeStored);
    queue.now += DELIVERY_TIMEOUT;
    queue.expire();
    queue.append(partition, [2]);
    assert_eq!(queue.take_until_due(1), (vec![], None));
    assert!(queue.accumulator.needs_producer());
    queue.append(other, [3]);
    assert_eq!(queue.take(2), [(other, i16::MAX, 0, vec![3])], "another partition can use the id");
    queue.accumulator.set_leader(partition, Some(3));
    assert_eq!(queue.accumulator.set_producer(8, 0), [3]);
    assert_eq!(queue.take(3), [], "not the id without epochs");
    assert!(queue.accumulator.needs_producer());
    assert_eq!(queue.accumulator.set_producer(9, 0), [3]);
    assert_eq!(queue.take(3), [(partition, 0, 0, vec![2])]);
}

#[test]
fn an_unknown_producer_gets_the_next_epoch_and_then_another_id() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1]);
    queue.take(1);
    queue.complete(partition, BatchResult::Stored(None));
    queue.append(partition, [2]);
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![2])]);
    queue.complete(partition, BatchResult::UnknownProducer);
    assert!(!queue.accumulator.needs_producer());
    queue.now += BACKOFF;
    assert_eq!(queue.take(1), [(partition, 1, 0, vec![2])]);
    queue.complete(partition, BatchResult::UnknownProducer);
    assert!(queue.accumulator.needs_producer(), "a new epoch with sequence number 0 did not help");
    queue.now += 2 * BACKOFF;
    assert_eq!(queue.take(1), []);
    assert_eq!(queue.accumulator.set_producer(8, 0), [1]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![2])]);
    queue.complete(partition, BatchResult::Stored(None));
    queue.append(partition, [3]);
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![3])]);
    queue.complete(partition, BatchResult::InvalidProducerEpoch);
    assert!(queue.accumulator.needs_producer(), "the next epoch may be in use");
    assert_eq!(queue.ended(), [1, 2].map(|id| (id, Outcome::Appended(None))));
}

#[test]
fn a_producer_error_ends_a_batch_that_may_be_stored() {
    for (result, code) in [(BatchResult::UnknownProducer, 45), (BatchResult::InvalidProducerEpoch, 47)] {
        let (mut queue, partition) = TestQueue::with_partition();
        queue.append(partition, [1]);
        queue.take(1);
        queue.complete(partition, BatchResult::MaybeStored);
        queue.now += BACKOFF;
        assert_eq!(queue.take(1).len(), 1);
        queue.complete(partition, result);
        assert_eq!(queue.ended(), [(1, Outcome::Rejected(code, Stored::Unknown))]);
        assert!(queue.accumulator.is_empty());
    }
}

#[test]
fn the_backoff_doubles_up_to_a_limit_and_ends_with_a_success() {
    // Without idempotence an error about the producer id is a failure as any other.
    for failure in [BatchResult::NotStored, BatchResult::UnknownProducer, BatchResult::InvalidProducerEpoch] {
        let mut queue = TestQueue::new(false);
        let partition = queue.accumulator.partition(0);
        queue.accumulator.set_leader(partition, Some(1));
        queue.append(partition, [1]);
        for factor in [1, 2, 4, 8, 8, 8] {
            assert!(factor <= MAX_BACKOFF_FACTOR);
            assert_eq!(queue.take(1), [(partition, -1, -1, vec![1])]);
            assert_eq!(queue.complete(partition, failure.clone()), Some(1));
            assert_eq!(queue.take_until_due(1), (vec![], Some(queue.now + factor * BACKOFF)));
            queue.now += factor * BACKOFF;
        }
        queue.take(1);
        queue.complete(partition, BatchResult::Stored(None));
        queue.append(partition, [2]);
        assert_eq!(queue.take(1).len(), 1);
        queue.complete(partition, failure);
        assert_eq!(queue.take_until_due(1), (vec![], Some(queue.now + BACKOFF)));
    }
}

#[test]
fn another_leader_shortens_the_backoff_to_that_of_a_first_failure() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1]);
    for factor in [1, 2, 4] {
        queue.take(1);
        queue.complete(partition, BatchResult::MaybeStored);
        queue.now += (factor - 1) * BACKOFF;
        if factor < 4 {
            queue.now += BACKOFF;
        }
    }
    queue.take(1);
    assert_eq!(queue.accumulator.set_leader(partition, Some(2)), Some(2));
    assert_eq!(queue.take(2), [(partition, 0, 0, vec![1])], "3 of 4 back-offs have passed, one is enough");
    queue.complete(partition, BatchResult::MaybeStored);
    queue.accumulator.set_leader(partition, Some(1));
    assert_eq!(queue.take_until_due(1), (vec![], Some(queue.now + BACKOFF)));
}
