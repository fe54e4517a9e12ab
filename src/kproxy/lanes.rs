//! Several producers as one (`producer_num`): a key always takes the same lane, so that its order is kept.

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
        let lane = match (&*self.lanes, &record.key) {
            ([only], _) => only,
            (lanes, Some(key)) => &lanes[fnv1a(key) as usize % lanes.len()],
            (lanes, None) => &lanes[self.next.fetch_add(1, Ordering::Relaxed) % lanes.len()],
        };
        lane.append(record, acks, completion);
    }

    /// Whether a broker can be reached; the producers are alike.
    pub(super) fn reachable(&self) -> Result<(), String> {
        self.lanes[0].reachable()
    }

    /// How often brokers were asked about a topic so far.
    pub(super) fn topic_questions(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.topic_questions()).sum()
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
    use crate::broker::memory::MemoryBroker;

    type Ignore = Box<dyn FnOnce(AppendResult) + Send>;

    #[test]
    fn a_key_keeps_its_lane_and_the_rest_is_dealt_in_turn() {
        let brokers: Vec<_> = (0..3).map(|_| MemoryBroker::new()).collect();
        brokers.iter().for_each(|broker| broker.create_topic("t", 1));
        let lanes = Lanes::<Ignore>::new(brokers.iter().map(|broker| Arc::new(broker.producer()) as Arc<_>).collect());
        let append = |key: Option<&[u8]>| {
            let record = Record {
                topic: "t".into(),
                partition: None,
                key: key.map(<[u8]>::to_vec),
                value: b"v".to_vec(),
                headers: Vec::new(),
                timestamp_ms: None,
            };
            lanes.append(record, Acks::Leader, Box::new(|_| ()));
        };
        let counts = || brokers.iter().map(|broker| broker.messages("t", 0).len()).collect::<Vec<_>>();
        (0..9).for_each(|_| append(None));
        assert_eq!(counts(), [3, 3, 3]);
        (0..7).for_each(|_| append(Some(b"k")));
        let mut sorted = counts();
        sorted.sort_unstable();
        assert_eq!(sorted, [3, 3, 10]);
    }
}
