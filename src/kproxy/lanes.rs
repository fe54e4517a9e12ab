//! Several producers as one (`producer_num`): what has an order always takes the same lane, so that it is kept.
//!
//! The order is that of a chosen partition where `partition=` is given, else that of the key. So a key that is
//! sometimes sent with a partition and sometimes without one has an order within each of the two only.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::broker::partitioner::fnv1a;
use crate::broker::{Acks, Completion, Producer, Record};

/// The producers.
pub(super) struct Lanes<C> {
    lanes: Vec<Arc<dyn Producer<C>>>,
    next: AtomicUsize,
}

impl<C: Completion> Lanes<C> {
    /// At least one producer.
    pub(super) fn new(lanes: Vec<Arc<dyn Producer<C>>>) -> Self {
        assert!(!lanes.is_empty(), "producer_num is at least one");
        Lanes { lanes, next: AtomicUsize::new(0) }
    }

    pub(super) fn append(&self, record: Record, acks: Acks, completion: C) {
        let lane = match (&*self.lanes, record.partition, &record.key) {
            ([only], ..) => only,
            // The topic enters, so that the first partitions of all topics do not meet in the first lanes.
            (lanes, Some(partition), _) => {
                let turn = fnv1a(record.topic.as_bytes()).wrapping_add(partition.cast_unsigned());
                &lanes[turn as usize % lanes.len()]
            }
            (lanes, None, Some(key)) => &lanes[fnv1a(key) as usize % lanes.len()],
            (lanes, None, None) => &lanes[self.next.fetch_add(1, Ordering::Relaxed) % lanes.len()],
        };
        lane.append(record, acks, completion);
    }

    /// Whether a broker can be reached; the producers are alike.
    pub(super) fn reachable(&self) -> Result<(), String> {
        self.lanes[0].reachable()
    }

    /// How often brokers were asked about a topic so far.
    pub(super) fn topic_lookups(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.topic_lookups()).sum()
    }

    /// Closes one after the other within `grace`; what is left at its end is completed as closed.
    pub(super) fn close(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        for lane in &self.lanes {
            lane.close(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::AppendResult;
    use crate::broker::in_memory::MemoryBroker;

    type Ignore = Box<dyn FnOnce(AppendResult) + Send>;

    #[test]
    fn a_key_and_a_chosen_partition_keep_their_lane_and_the_rest_is_dealt_in_turn() {
        let brokers: Vec<_> = (0..3).map(|_| MemoryBroker::new()).collect();
        brokers.iter().for_each(|broker| broker.create_topic("t", 3));
        let lanes = Lanes::<Ignore>::new(brokers.iter().map(|broker| Arc::new(broker.producer()) as Arc<_>).collect());
        let append = |partition, key: Option<&[u8]>| {
            let record = Record {
                topic: "t".into(),
                partition,
                key: key.map(<[u8]>::to_vec),
                value: b"v".to_vec(),
                headers: Vec::new(),
                timestamp_ms: None,
            };
            lanes.append(record, Acks::Leader, Box::new(|_| ()));
        };
        let counts = || {
            let in_lane = |broker: &MemoryBroker| (0..3).map(|partition| broker.messages("t", partition).len()).sum();
            let mut counts: Vec<usize> = brokers.iter().map(in_lane).collect();
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
        assert!(counts()[0] >= 13, "the partitions of one topic are dealt in turn, too: {:?}", counts());
    }
}
