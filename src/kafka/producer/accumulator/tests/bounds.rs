use super::*;
use std::cell::Cell;

#[test]
fn an_expiry_does_not_enlarge_the_batches_of_a_topic_with_a_lower_limit() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1, 2]);
    queue.now += BACKOFF;
    queue.append(partition, [3]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2, 3])]);
    assert_eq!(queue.complete(partition, BatchResult::TooLarge(10)), Some(1));
    queue.expire();
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2])]);
    queue.complete(partition, BatchResult::TooLarge(10));
    queue.now += DELIVERY_TIMEOUT - BACKOFF;
    queue.expire();
    assert_eq!(queue.ended(), [1, 2].map(|id| (id, TIMED_OUT_NO)));
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![3])]);
}

/// Else a steady stream of messages that are refused would hold up the others of the partition for ever.
#[test]
fn the_rest_of_a_batch_with_refused_records_is_sent_without_further_messages() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1, 2, 3]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2, 3])]);
    queue.append(partition, [4, 5]);
    queue.complete(partition, BatchResult::Rejected(vec![0, 2], 87));
    assert_eq!(queue.ended(), [1, 3].map(|id| (id, Outcome::Rejected(87, Stored::No))));
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![2])]);
    // A sending that stored nothing does not change this, nor does a message that ends.
    queue.complete(partition, BatchResult::NotStored);
    queue.now += BACKOFF;
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![2])]);
    queue.complete(partition, BatchResult::Stored(Some(7)));
    assert_eq!(queue.ended(), [(2, Outcome::Appended(Some(7)))]);
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![4, 5])]);
    queue.complete(partition, BatchResult::Rejected(vec![0], 87));
    queue.append(partition, [6]);
    queue.now += DELIVERY_TIMEOUT;
    queue.append(partition, [7]);
    queue.expire();
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![7])]);
}

#[test]
fn a_retry_of_a_batch_that_may_be_stored_contains_the_messages_that_have_ended() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1]);
    queue.now += BACKOFF;
    queue.append(partition, [2]);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2])]);
    queue.complete(partition, BatchResult::MaybeStored);
    queue.now += DELIVERY_TIMEOUT - BACKOFF;
    queue.expire();
    assert_eq!(queue.ended(), [(1, TIMED_OUT_UNKNOWN)]);
    let mut retried = None;
    queue.accumulator.take(1, queue.now, usize::MAX, |batch| {
        let ids: Vec<_> = batch.messages.iter().map(|message| message.as_ref().map(|message| message.id)).collect();
        retried = Some((batch.sending, ids, batch.is_unchanged_retry));
    });
    let (sending, ids, is_unchanged_retry) = retried.unwrap();
    assert_eq!((ids, is_unchanged_retry), (vec![None, Some(2)], true));
    queue.sendings.insert(partition, sending);
    queue.complete(partition, BatchResult::Stored(Some(40)));
    assert_eq!(queue.ended(), [(2, Outcome::Appended(Some(41)))]);
    queue.append(partition, [3]);
    assert_eq!(queue.take(1), [(partition, 0, 2, vec![3])], "the ended message has a sequence number, too");
}

#[test]
fn sequence_numbers_continue_at_zero_after_the_largest() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1]);
    queue.take(1);
    queue.complete(partition, BatchResult::Stored(None));
    queue.accumulator.partitions[partition.0].producer.base_sequence = i32::MAX - 1;
    queue.append(partition, [2, 3, 4]);
    assert_eq!(queue.take(1), [(partition, 0, i32::MAX - 1, vec![2, 3, 4])]);
    queue.complete(partition, BatchResult::Stored(None));
    queue.append(partition, [5]);
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![5])]);
}

#[test]
fn deadlines_may_differ_between_partitions() {
    let mut queue = TestQueue::new(false);
    let start = queue.now;
    assert_eq!(queue.accumulator.next_deadline(), None);
    for (name, seconds) in [(0, [5, 6, 30]), (1, [1, 7, 8]), (2, [3, 3, 3])] {
        let partition = queue.accumulator.partition(name);
        for (position, seconds) in seconds.into_iter().enumerate() {
            let id = name * 10 + position as u32;
            let message = Message { id, deadline: start + Duration::from_secs(seconds), cost_bytes: 10 };
            queue.accumulator.append(partition, message);
        }
    }
    let mut expired = Vec::new();
    while let Some(deadline) = queue.accumulator.next_deadline() {
        assert!(deadline > queue.now, "the time does not stand still");
        queue.now = deadline;
        queue.expire();
        assert!(queue.ended.iter().all(|(_, outcome)| *outcome == TIMED_OUT_NO));
        let ids: Vec<u32> = queue.ended().into_iter().map(|(id, _)| id).collect();
        expired.push(((deadline - start).as_secs(), ids));
    }
    let expected = [(1, vec![10]), (3, vec![20, 21, 22]), (5, vec![0]), (6, vec![1]), (7, vec![11]), (8, vec![12])];
    assert_eq!(expired[..6], expected);
    assert_eq!(expired[6..], [(30, vec![2])]);
}

/// A message that counts the look-ups of its deadline.
struct Counted<'a> {
    deadline: Instant,
    lookups: &'a Cell<usize>,
}

impl QueuedMessage for Counted<'_> {
    fn cost_bytes(&self) -> usize {
        10
    }

    fn deadline(&self) -> Instant {
        self.lookups.set(self.lookups.get() + 1);
        self.deadline
    }
}

#[test]
fn an_expiry_visits_only_the_partitions_with_messages_that_are_due() {
    let (lookups, now) = (Cell::new(0), Instant::now());
    let limits = Limits {
        max_batch_bytes: 30,
        max_request_bytes: 50,
        retry_backoff: BACKOFF,
        max_retry_backoff: 8 * BACKOFF,
        is_idempotent: false,
    };
    let mut accumulator = RecordAccumulator::new(limits);
    for name in 0..10_000_u64 {
        let partition = accumulator.partition(name);
        for position in 0..5 {
            let deadline = now + Duration::from_secs(name + position);
            accumulator.append(partition, Counted { deadline, lookups: &lookups });
        }
    }
    assert!(lookups.replace(0) <= 50_000, "append looks the deadline up once");
    let mut ended = 0;
    assert_eq!(accumulator.next_deadline(), Some(now));
    accumulator.expire(now, &mut |_| ended += 1);
    assert_eq!((ended, accumulator.next_deadline()), (1, Some(now + Duration::from_secs(1))));
    for _ in 0..1000 {
        accumulator.expire(now, &mut |_| ended += 1);
        accumulator.next_deadline();
    }
    assert_eq!(ended, 1);
    assert!(lookups.get() < 10, "{} look-ups", lookups.get());
}

#[test]
fn deadlines_of_confirmed_messages_leave_at_most_one_entry_for_each_partition() {
    let (mut queue, partition) = TestQueue::with_partition();
    let start = queue.now;
    for id in 0..10_000 {
        queue.append(partition, [id]);
        assert_eq!(queue.take(1).len(), 1);
        queue.complete(partition, BatchResult::Stored(None));
        queue.now += Duration::from_millis(1);
    }
    assert_eq!((queue.accumulator.deadlines.len(), queue.accumulator.next_deadline()), (1, None));
    queue.append(partition, [0]);
    assert_eq!(queue.accumulator.next_deadline(), Some(start + DELIVERY_TIMEOUT), "earlier than necessary, once");
    queue.now = start + DELIVERY_TIMEOUT;
    queue.ended();
    queue.expire();
    assert_eq!(queue.ended(), []);
    assert_eq!(queue.accumulator.next_deadline(), Some(start + Duration::from_secs(10) + DELIVERY_TIMEOUT));
}

#[test]
fn partitions_in_backoff_do_not_slow_down_the_requests_of_others() {
    const PARTITIONS: u32 = 20_000;
    let mut queue = TestQueue::new(false);
    let started = Instant::now();
    let partitions: Vec<_> = (0..PARTITIONS).map(|name| queue.accumulator.partition(name)).collect();
    for &partition in &partitions {
        queue.accumulator.set_leader(partition, Some(1));
        queue.append(partition, [1]);
    }
    let mut requests = 0;
    loop {
        let (sent, due) = queue.take_until_due(1);
        requests += 1;
        assert_eq!(sent.len(), 5, "a full request");
        if due.is_none() {
            break;
        }
    }
    assert_eq!(requests, PARTITIONS / 5);
    for &partition in &partitions[1..] {
        queue.complete(partition, BatchResult::NotStored);
    }
    for _ in 0..PARTITIONS {
        queue.complete(partitions[0], BatchResult::Stored(None));
        queue.append(partitions[0], [2]);
        assert_eq!(queue.take_until_due(1), (vec![(partitions[0], -1, -1, vec![2])], Some(queue.now + BACKOFF)));
    }
    // A visit of each partition at each request takes minutes.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_change_of_the_leader_moves_the_partition_to_the_queue_of_the_new_leader() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.append(partition, [1]);
    for round in 0..1000 {
        assert_eq!(queue.accumulator.set_leader(partition, None), None);
        assert_eq!(queue.accumulator.set_leader(partition, Some(1 + round % 2)), Some(1 + round % 2));
    }
    assert_eq!(queue.accumulator.set_leader(partition, Some(2)), None, "no change");
    assert_eq!(queue.take(1), []);
    assert_eq!(queue.take(2), [(partition, 0, 0, vec![1])]);
    assert_eq!(queue.accumulator.set_leader(partition, Some(1)), None, "in flight");
    assert_eq!(queue.take(1), []);
    assert_eq!(queue.complete(partition, BatchResult::NotStored), Some(1));
}

#[test]
fn at_the_close_all_messages_end_and_state_whether_they_may_be_stored() {
    let mut queue = TestQueue::new(true);
    queue.accumulator.set_producer(7, 0);
    let partitions: Vec<_> = (0..4).map(|name| queue.accumulator.partition(name)).collect();
    for (position, &partition) in partitions.iter().enumerate() {
        queue.accumulator.set_leader(partition, Some(position as BrokerId));
        queue.append(partition, [position as u32 * 10]);
    }
    // 0: in flight; 1: may be stored and waits for a retry; 2: not stored and waits; 3: never sent.
    for broker in 0..3 {
        assert_eq!(queue.take(broker).len(), 1);
    }
    queue.append(partitions[0], [1]);
    queue.complete(partitions[1], BatchResult::MaybeStored);
    queue.complete(partitions[2], BatchResult::NotStored);
    assert_eq!(queue.accumulator.message_count(), 5);
    let ended = &mut queue.ended;
    queue.accumulator.drain_all(&mut |(message, outcome)| ended.push((message.id, outcome)));
    let (no, unknown) = (TIMED_OUT_NO, TIMED_OUT_UNKNOWN);
    let expected = [(0, unknown.clone()), (1, no.clone()), (10, unknown), (20, no.clone()), (30, no)];
    assert_eq!(queue.ended(), expected);
    assert_eq!((queue.accumulator.message_count(), queue.accumulator.next_deadline()), (0, None));
    assert!(!queue.accumulator.is_empty(), "a batch is in flight");
    assert_eq!(queue.complete(partitions[0], BatchResult::MaybeStored), None);
    assert!(queue.accumulator.is_empty());
    queue.now += DELIVERY_TIMEOUT / 2;
    (0..4).for_each(|broker| assert_eq!(queue.take_until_due(broker), (vec![], None)));
    queue.append(partitions[0], [50]);
    queue.now += DELIVERY_TIMEOUT;
    queue.expire();
    assert_eq!(queue.ended(), [(50, TIMED_OUT_NO)], "a later message has a deadline");
}

#[test]
fn a_topic_and_a_quota_bound_the_batches_and_no_message_is_too_large_alone() {
    let (mut queue, partition) = TestQueue::with_partition();
    queue.accumulator.set_max_batch_bytes(partition, HEADER_BYTES + 20);
    queue.append(partition, 1..=6);
    assert_eq!(queue.take(1), [(partition, 0, 0, vec![1, 2])], "the topic accepts 20 bytes of records");
    queue.complete(partition, BatchResult::Stored(Some(0)));
    let mut sent = Vec::new();
    queue.accumulator.take(1, queue.now, 5, |batch| {
        sent.extend(batch.messages.iter().flatten().map(|message| message.id));
        queue.sendings.insert(partition, batch.sending);
    });
    assert_eq!(sent, [3], "a quota suggests 5 bytes");
    queue.complete(partition, BatchResult::Stored(Some(2)));
    queue.accumulator.set_max_batch_bytes(partition, usize::MAX);
    assert_eq!(queue.take(1), [(partition, 0, 3, vec![4, 5, 6])]);
}

#[test]
fn messages_that_wait_can_end_before_their_deadlines_and_those_in_flight_cannot() {
    let (mut queue, partition) = TestQueue::with_partition();
    let other = queue.accumulator.partition(1);
    queue.accumulator.set_leader(other, Some(2));
    queue.append(partition, [1]);
    queue.take(1);
    queue.append(partition, [2]);
    queue.append(other, [10]);
    let deadline = queue.now + DELIVERY_TIMEOUT;
    queue.now += BACKOFF;
    queue.append(partition, [3]);
    assert_eq!((queue.accumulator.waiting_bytes(1), queue.accumulator.waiting_bytes(2)), (20, 10));
    let ended = &mut queue.ended;
    let mut end = |(message, outcome): EndedMessage<Message>| ended.push((message.id, outcome));
    queue.accumulator.expire_waiting(1, deadline, &mut end);
    queue.accumulator.expire_waiting(1, deadline + BACKOFF / 2, &mut end);
    assert_eq!(queue.ended(), [(2, TIMED_OUT_NO)]);
    assert_eq!(queue.accumulator.message_count(), 3);
    queue.complete(partition, BatchResult::Stored(Some(0)));
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![3])]);
    queue.complete(partition, BatchResult::Stored(Some(1)));
    queue.now = deadline;
    queue.expire();
    assert_eq!(queue.ended().len(), 3, "1 and 3 are stored, 10 has expired");
    assert!(queue.accumulator.is_empty());
}
