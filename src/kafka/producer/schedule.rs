//! The partitions that have a batch to send, by broker: ready now, ready after a back-off, or waiting for a producer
//! id.
//!
//! Each partition has at most one place. A change of its place takes constant time, logarithmic for a back-off, so no
//! entry becomes stale, and [`Schedule::pop_ready`] visits no partition that is in back-off.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::outcome::BrokerId;
use super::partition_index::PartitionIndex;

/// Position of a broker's queue in [`Schedule::queues`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueIndex(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing to send, a batch in flight, or no leader.
    Unscheduled,
    Ready(QueueIndex),
    Delayed(QueueIndex, Instant),
    /// In [`Schedule::awaiting_producer`].
    AwaitingProducer,
}

/// Place of a partition, and its neighbours in the list of ready partitions.
#[derive(Debug)]
struct Entry {
    place: Place,
    previous: Option<PartitionIndex>,
    next: Option<PartitionIndex>,
}

/// The partitions of one broker. Those that are ready form a doubly linked list through [`Schedule::entries`].
#[derive(Debug, Default)]
struct Queue {
    first: Option<PartitionIndex>,
    last: Option<PartitionIndex>,
    /// By the end of the back-off.
    delayed: BTreeSet<(Instant, PartitionIndex)>,
}

/// See the head of this module.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// By partition.
    entries: Vec<Entry>,
    /// One for each broker that was ever the leader of a partition with a message.
    queues: Vec<Queue>,
    by_broker: HashMap<BrokerId, QueueIndex>,
    awaiting_producer: Vec<PartitionIndex>,
}

impl Schedule {
    /// Adds the next partition, unscheduled.
    pub(super) fn add_partition(&mut self) {
        self.entries.push(Entry { place: Place::Unscheduled, previous: None, next: None });
    }

    /// Returns the queue of a broker, `None` if it never had a partition.
    pub(super) fn queue(&self, broker: BrokerId) -> Option<QueueIndex> {
        self.by_broker.get(&broker).copied()
    }

    fn queue_or_new(&mut self, broker: BrokerId) -> QueueIndex {
        let next = QueueIndex(self.queues.len());
        let queue = *self.by_broker.entry(broker).or_insert(next);
        if queue == next {
            self.queues.push(Queue::default());
        }
        queue
    }

    pub(super) fn is_scheduled(&self, index: PartitionIndex) -> bool {
        self.entries[index.0].place != Place::Unscheduled
    }

    /// Whether a partition waits for a producer id.
    pub(super) fn is_awaiting_producer(&self, index: PartitionIndex) -> bool {
        self.entries[index.0].place == Place::AwaitingProducer
    }

    /// Schedules an unscheduled partition: behind those that are ready, or at the time `not_before`.
    pub(super) fn add(&mut self, index: PartitionIndex, broker: BrokerId, not_before: Option<Instant>) {
        let queue = self.queue_or_new(broker);
        match not_before {
            Some(due) => {
                self.queues[queue.0].delayed.insert((due, index));
                self.entries[index.0].place = Place::Delayed(queue, due);
            }
            None => self.push_last(index, queue),
        }
    }

    fn push_last(&mut self, index: PartitionIndex, queue: QueueIndex) {
        let last = self.queues[queue.0].last.replace(index);
        self.entries[index.0] = Entry { place: Place::Ready(queue), previous: last, next: None };
        match last {
            Some(last) => self.entries[last.0].next = Some(index),
            None => self.queues[queue.0].first = Some(index),
        }
    }

    /// Makes an unscheduled partition the first of those that are ready.
    pub(super) fn push_first(&mut self, index: PartitionIndex, queue: QueueIndex) {
        let first = self.queues[queue.0].first.replace(index);
        self.entries[index.0] = Entry { place: Place::Ready(queue), previous: None, next: first };
        match first {
            Some(first) => self.entries[first.0].previous = Some(index),
            None => self.queues[queue.0].last = Some(index),
        }
    }

    /// Makes the partitions ready whose back-off has ended.
    pub(super) fn end_backoffs(&mut self, queue: QueueIndex, now: Instant) {
        while self.next_due(queue).is_some_and(|due| due <= now) {
            let Some((_, index)) = self.queues[queue.0].delayed.pop_first() else { break };
            self.push_last(index, queue);
        }
    }

    /// Removes the first partition that is ready and returns it.
    pub(super) fn pop_ready(&mut self, queue: QueueIndex) -> Option<PartitionIndex> {
        let first = self.queues[queue.0].first?;
        self.remove(first);
        Some(first)
    }

    /// Whether a partition is ready.
    pub(super) fn has_ready(&self, queue: QueueIndex) -> bool {
        self.queues[queue.0].first.is_some()
    }

    /// Returns the partitions that wait for a producer id.
    pub(super) fn awaiting_producer(&self) -> &[PartitionIndex] {
        &self.awaiting_producer
    }

    /// Returns the earliest end of a back-off.
    pub(super) fn next_due(&self, queue: QueueIndex) -> Option<Instant> {
        self.queues[queue.0].delayed.first().map(|(due, _)| *due)
    }

    /// Unschedules a partition that does not await a producer id.
    pub(super) fn remove(&mut self, index: PartitionIndex) {
        let entry = &mut self.entries[index.0];
        match std::mem::replace(&mut entry.place, Place::Unscheduled) {
            Place::Unscheduled => {}
            Place::AwaitingProducer => entry.place = Place::AwaitingProducer,
            Place::Delayed(queue, due) => {
                self.queues[queue.0].delayed.remove(&(due, index));
            }
            Place::Ready(queue) => {
                let (previous, next) = (entry.previous.take(), entry.next.take());
                match previous {
                    Some(previous) => self.entries[previous.0].next = next,
                    None => self.queues[queue.0].first = next,
                }
                match next {
                    Some(next) => self.entries[next.0].previous = previous,
                    None => self.queues[queue.0].last = previous,
                }
            }
        }
    }

    /// Keeps an unscheduled partition until [`Schedule::take_awaiting_producer`] is called.
    pub(super) fn await_producer(&mut self, index: PartitionIndex) {
        self.entries[index.0].place = Place::AwaitingProducer;
        self.awaiting_producer.push(index);
    }

    /// Unschedules the partitions that await a producer id and returns them.
    pub(super) fn take_awaiting_producer(&mut self) -> Vec<PartitionIndex> {
        for index in &self.awaiting_producer {
            self.entries[index.0].place = Place::Unscheduled;
        }
        std::mem::take(&mut self.awaiting_producer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ready(schedule: &Schedule, broker: BrokerId) -> Vec<usize> {
        let Some(queue) = schedule.queue(broker) else { return Vec::new() };
        let next = |index: &PartitionIndex| schedule.entries[index.0].next;
        std::iter::successors(schedule.queues[queue.0].first, next).map(|index| index.0).collect()
    }

    #[test]
    fn a_partition_that_changes_its_leader_often_leaves_no_entries_behind() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        (0..3).for_each(|_| schedule.add_partition());
        schedule.add(PartitionIndex(0), 1, None);
        schedule.add(PartitionIndex(1), 1, None);
        schedule.add(PartitionIndex(2), 1, None);
        for round in 0..10_000 {
            schedule.remove(PartitionIndex(1));
            let not_before = (round % 3 == 0).then(|| now + Duration::from_millis(round));
            schedule.add(PartitionIndex(1), 1 + (round % 2) as BrokerId, not_before);
        }
        assert_eq!((ready(&schedule, 1), ready(&schedule, 2)), (vec![0, 2], vec![]));
        let delayed: Vec<usize> = schedule.queues.iter().map(|queue| queue.delayed.len()).collect();
        assert_eq!(delayed, [0, 1], "the last round has a back-off at broker 2");
        schedule.remove(PartitionIndex(1));
        assert_eq!(schedule.next_due(QueueIndex(1)), None);
    }

    #[test]
    fn partitions_become_ready_in_the_order_of_their_times() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        (0..6).for_each(|_| schedule.add_partition());
        for (position, millis) in [30, 10, 20, 40].into_iter().enumerate() {
            schedule.add(PartitionIndex(position), 1, Some(now + Duration::from_millis(millis)));
        }
        schedule.add(PartitionIndex(4), 1, None);
        let queue = schedule.queue(1).unwrap();
        schedule.push_first(PartitionIndex(5), queue);
        assert_eq!(schedule.next_due(queue), Some(now + Duration::from_millis(10)));
        schedule.end_backoffs(queue, now + Duration::from_millis(30));
        assert_eq!(ready(&schedule, 1), [5, 4, 1, 2, 0]);
        schedule.remove(PartitionIndex(2));
        schedule.remove(PartitionIndex(0));
        let popped: Vec<_> = std::iter::from_fn(|| schedule.pop_ready(queue)).map(|index| index.0).collect();
        assert_eq!((popped, schedule.is_scheduled(PartitionIndex(3))), (vec![5, 4, 1], true));
        schedule.end_backoffs(queue, now + Duration::from_millis(40));
        assert_eq!((ready(&schedule, 1), schedule.next_due(queue)), (vec![3], None));
    }

    #[test]
    fn a_partition_awaits_a_producer_id_at_most_once() {
        let mut schedule = Schedule::default();
        schedule.add_partition();
        schedule.await_producer(PartitionIndex(0));
        schedule.remove(PartitionIndex(0));
        assert!(schedule.is_awaiting_producer(PartitionIndex(0)), "a change of the leader does not unschedule it");
        assert_eq!(schedule.take_awaiting_producer(), [PartitionIndex(0)]);
        assert!(!schedule.is_scheduled(PartitionIndex(0)));
        assert!(schedule.take_awaiting_producer().is_empty());
    }
}
