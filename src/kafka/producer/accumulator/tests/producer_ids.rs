use super::*;

/// Returns a queue with producer id 7 and two partitions, 0 and 1, that broker 1 leads and that have stored a message.
fn with_two_partitions() -> (TestQueue, PartitionIndex, PartitionIndex) {
    let (mut queue, first) = TestQueue::with_partition();
    let second = queue.accumulator.partition(1);
    queue.accumulator.set_leader(second, Some(1));
    for partition in [first, second] {
        queue.append(partition, [1]);
        assert_eq!(queue.take(1), [(partition, 0, 0, vec![1])]);
        assert!(!queue.accumulator.is_removable(partition), "a batch is in flight");
        queue.accumulator.remove(&(partition.0 as u32));
        queue.complete(partition, BatchResult::Stored(Some(0)));
    }
    queue.ended();
    (queue, first, second)
}

#[test]
fn a_partition_that_is_removed_and_added_again_begins_with_a_later_epoch_and_others_keep_theirs() {
    let (mut queue, removed, other) = with_two_partitions();
    assert!(queue.accumulator.is_removable(removed));
    queue.accumulator.remove(&0);
    queue.accumulator.remove(&0);
    queue.accumulator.remove(&9);
    // A late response to an earlier batch concerns nothing any more.
    queue.complete(removed, BatchResult::MaybeStored);
    let again = queue.accumulator.partition(2);
    assert_eq!((again, queue.accumulator.partition(0).0), (removed, 2), "the place is used once");
    queue.accumulator.set_leader(again, Some(1));
    queue.append(again, [3]);
    queue.append(other, [2]);
    assert_eq!(queue.take(1), [(again, 1, 0, vec![3]), (other, 0, 1, vec![2])]);
    assert!(!queue.accumulator.needs_producer(), "no request for another producer id");
    assert_eq!((queue.producer_id(other), queue.producer_id(again)), (7, 7));
}

#[test]
fn a_removed_partition_near_the_last_epoch_makes_the_next_ones_wait_for_another_producer_id() {
    for (epoch, needs_id) in [(i16::MAX - 1001, false), (i16::MAX - 1000, true), (i16::MAX, true)] {
        let mut queue = TestQueue::new(true);
        let partition = queue.accumulator.partition(0);
        queue.accumulator.set_leader(partition, Some(1));
        queue.accumulator.set_producer(7, epoch);
        queue.append(partition, [1]);
        queue.take(1);
        queue.complete(partition, BatchResult::Stored(Some(0)));
        queue.accumulator.remove(&0);
        assert_eq!(queue.accumulator.needs_producer(), needs_id, "{epoch}");
        let again = queue.accumulator.partition(0);
        queue.accumulator.set_leader(again, Some(1));
        queue.append(again, [2]);
        if needs_id {
            assert_eq!(queue.take(1), []);
            assert_eq!(queue.accumulator.set_producer(8, 0), [1]);
        }
        let expected = if needs_id { 0 } else { epoch + 1 };
        assert_eq!(queue.take(1), [(again, expected, 0, vec![2])]);
    }
}

#[test]
fn in_another_cluster_nothing_is_sent_under_the_former_producer_id() {
    let (mut queue, retried, idle) = with_two_partitions();
    let flying = queue.accumulator.partition(2);
    queue.accumulator.set_leader(flying, Some(1));
    queue.append(retried, [2, 3, 4, 5]);
    queue.take(1);
    queue.complete(retried, BatchResult::MaybeStored);
    queue.append(flying, [6]);
    assert_eq!(queue.take(1), [(flying, 0, 0, vec![6])]);
    queue.forget_producer();
    // Three messages of 10 bytes are a batch.
    let unknown = Outcome::Rejected(59, Stored::Unknown);
    assert_eq!(queue.ended(), [2, 3, 4].map(|id| (id, unknown.clone())));
    assert_eq!(queue.accumulator.message_count(), 2);
    queue.now += BACKOFF * MAX_BACKOFF_FACTOR;
    queue.append(idle, [7]);
    assert_eq!(queue.take(1), []);
    assert!(queue.accumulator.needs_producer());
    queue.complete(flying, BatchResult::MaybeStored);
    assert_eq!(queue.ended(), [(6, unknown)]);
    // The other cluster may assign the same id.
    assert_eq!(queue.accumulator.set_producer(7, 0), [1]);
    let mut sent = queue.take(1);
    sent.sort();
    assert_eq!(sent, [(retried, 0, 0, vec![5]), (idle, 0, 0, vec![7])]);
    assert!(!queue.accumulator.needs_producer());
}

#[test]
fn results_of_requests_to_the_former_cluster_count() {
    for (result, ends) in [
        (BatchResult::Stored(Some(4)), vec![(2, Outcome::Appended(Some(4)))]),
        (BatchResult::Rejected(vec![], 87), vec![(2, Outcome::Rejected(87, Stored::No))]),
        (BatchResult::NotStored, vec![]),
        (BatchResult::UnknownProducer, vec![]),
        (BatchResult::InvalidProducerEpoch, vec![]),
    ] {
        let (mut queue, partition, _) = with_two_partitions();
        queue.append(partition, [2]);
        queue.take(1);
        queue.forget_producer();
        queue.complete(partition, result);
        assert_eq!(queue.ended(), ends);
        queue.append(partition, [3]);
        queue.now += BACKOFF;
        queue.accumulator.set_producer(9, 4);
        let ids = if ends.is_empty() { vec![2] } else { vec![3] };
        assert_eq!(queue.take(1), [(partition, 4, 0, ids)]);
    }
}

#[test]
fn a_duplicate_that_was_never_sent_before_is_sent_under_another_epoch() {
    let (mut queue, partition, _) = with_two_partitions();
    queue.append(partition, [2]);
    assert_eq!(queue.take(1), [(partition, 0, 1, vec![2])]);
    queue.complete(partition, BatchResult::Duplicate);
    queue.now += BACKOFF;
    assert_eq!(queue.take(1), [(partition, 1, 0, vec![2])]);
    queue.complete(partition, BatchResult::MaybeStored);
    queue.now += BACKOFF * 2;
    assert_eq!(queue.take(1), [(partition, 1, 0, vec![2])]);
    queue.complete(partition, BatchResult::Duplicate);
    assert_eq!(queue.ended(), [(2, Outcome::Appended(None))]);
}
