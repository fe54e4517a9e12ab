//! Distributes messages to `producer_num` producers without losing their order.
//!
//! Messages with the same `partition=` always take the same producer, and so do messages with the same key and no
//! `partition=`. So if a client sends one key both with and without `partition=`, order holds within each of these two
//! groups of messages, but not between the groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::broker::partitioner::fnv1a;
use crate::broker::{Acks, Completion, ConnectionStatus, Producer, Record};

/// The producers of kproxy, at least one.
pub(super) struct ProducerPool<C> {
    producers: Vec<Arc<dyn Producer<C>>>,
    /// Counts the messages without `partition=` and key, which go round-robin to the producers.
    next: AtomicUsize,
}

impl<C: Completion> ProducerPool<C> {
    /// `producers` must not be empty.
    pub(super) fn new(producers: Vec<Arc<dyn Producer<C>>>) -> Self {
        assert!(!producers.is_empty(), "producer_num is at least 1");
        ProducerPool { producers, next: AtomicUsize::new(0) }
    }

    pub(super) fn append(&self, record: Record, acks: Acks, completion: C) {
        let producer = match (&*self.producers, record.partition, &record.key) {
            ([only], ..) => only,
            // The hash includes the topic, so that partition 0 of every topic does not take the same producer.
            (producers, Some(partition), _) => {
                let hash = fnv1a(record.topic.as_bytes()).wrapping_add(partition.cast_unsigned());
                &producers[hash as usize % producers.len()]
            }
            (producers, None, Some(key)) => &producers[fnv1a(key) as usize % producers.len()],
            (producers, None, None) => &producers[self.next.fetch_add(1, Ordering::Relaxed) % producers.len()],
        };
        producer.append(record, acks, completion);
    }

    /// Fails, with the reason, if no broker is reachable. All producers have the same brokers, so the state of the
    /// first producer stands for all.
    pub(super) fn reachable(&self) -> Result<(), String> {
        self.producers[0].reachable()
    }

    /// Returns the number of metadata requests about topics since the start.
    pub(super) fn topic_lookups(&self) -> u64 {
        self.producers.iter().map(|producer| producer.topic_lookups()).sum()
    }

    /// Returns the connections of all producers to brokers, each with the number of its producer; `None` if the engine
    /// does not report them.
    pub(super) fn connections(&self) -> Option<Vec<(usize, ConnectionStatus)>> {
        let numbered = |(number, producer): (usize, &Arc<dyn Producer<C>>)| {
            let connections = producer.connections()?;
            Some(connections.into_iter().map(|connection| (number, connection)).collect::<Vec<_>>())
        };
        let all: Option<Vec<_>> = self.producers.iter().enumerate().map(numbered).collect();
        all.map(|connections| connections.into_iter().flatten().collect())
    }

    /// Closes one producer after the other within `grace`, of which each gets an equal share of what is left, so that
    /// one whose broker hangs leaves time to the others. Messages still unconfirmed at the end are completed with
    /// `AppendFailure::Closed`.
    pub(super) fn close(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        for (producer, open) in self.producers.iter().zip((1..=self.producers.len()).rev()) {
            let left = deadline.saturating_duration_since(Instant::now());
            producer.close(left / u32::try_from(open).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::AppendResult;
    use crate::broker::in_memory::MemoryBroker;

    type Discard = Box<dyn FnOnce(AppendResult) + Send>;

    #[test]
    fn a_key_or_chosen_partition_keeps_its_producer_and_the_rest_is_round_robin() {
        let brokers: Vec<_> = (0..3).map(|_| MemoryBroker::new()).collect();
        brokers.iter().for_each(|broker| broker.create_topic("t", 3));
        let pool =
            ProducerPool::<Discard>::new(brokers.iter().map(|broker| Arc::new(broker.producer()) as Arc<_>).collect());
        let append = |partition, key: Option<&[u8]>| {
            let record = Record {
                topic: "t".into(),
                partition,
                key: key.map(<[u8]>::to_vec),
                value: Some(b"v".to_vec()),
                headers: Vec::new(),
                timestamp_ms: None,
            };
            pool.append(record, Acks::Leader, Box::new(|_| ()));
        };
        let counts = || {
            let stored = |broker: &MemoryBroker| (0..3).map(|partition| broker.messages("t", partition).len()).sum();
            let mut counts: Vec<usize> = brokers.iter().map(stored).collect();
            counts.sort_unstable();
            counts
        };
        (0..9).for_each(|_| append(None, None));
        assert_eq!(counts(), [3, 3, 3]);
        (0..7).for_each(|_| append(None, Some(b"k")));
        assert_eq!(counts(), [3, 3, 10]);
        (0..20).for_each(|turn| append(Some(1), [None, Some(&b"k"[..]), Some(b"l")][turn % 3]));
        let with_one_partition = counts();
        assert!(matches!(with_one_partition[..], [3, 3, 30] | [3, 10, 23]), "{with_one_partition:?}");
        (0..20).for_each(|turn| append(Some([0, 2][turn % 2]), None));
        assert_eq!(counts().iter().sum::<usize>(), 56);
        assert!(counts()[0] >= 13, "the partitions of one topic are spread: {:?}", counts());
    }
}
