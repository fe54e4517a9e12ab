//! The partition of messages without a key: for a few milliseconds the same one, then another. In one batch they cost
//! the client and the broker less than in a batch for each partition. Without a clock.

use std::time::{Duration, Instant};

use super::outcome::BrokerId;
use crate::random::random;

/// Time for which these messages go to the same partition.
const STICKY_TIME: Duration = Duration::from_millis(5);

/// The partition of the messages without a key of one topic.
#[derive(Default)]
pub(super) struct Sticky {
    chosen: Option<Chosen>,
}

struct Chosen {
    partition: i32,
    /// Messages with an earlier deadline go there.
    until_deadline: Instant,
    /// Whether no partition had a leader that works, so that no better one is looked for meanwhile.
    is_last_resort: bool,
}

impl Sticky {
    /// Returns the partition of a message with this deadline, of `count` partitions: one whose leader works, if any
    /// does, else one with a leader. `leader` returns the leader of a partition.
    pub(super) fn choose(
        &mut self,
        count: i32,
        deadline: Instant,
        leader: impl Fn(i32) -> Option<BrokerId>,
        works: impl Fn(BrokerId) -> bool,
    ) -> i32 {
        if let Some(chosen) = &self.chosen
            && deadline < chosen.until_deadline
            && chosen.partition < count
            && (chosen.is_last_resort || leader(chosen.partition).is_some_and(&works))
        {
            return chosen.partition;
        }
        let first = random_below(count);
        let (partition, is_last_resort) = first_working(first, count, leader, works);
        self.chosen = Some(Chosen { partition, until_deadline: deadline + STICKY_TIME, is_last_resort });
        partition
    }
}

/// Returns the first partition from `first` on whose leader works, else the first with a leader, else `first`; and
/// whether no leader works. Each broker is looked at once, so that many partitions take little time.
fn first_working(
    first: i32,
    count: i32,
    leader: impl Fn(i32) -> Option<BrokerId>,
    works: impl Fn(BrokerId) -> bool,
) -> (i32, bool) {
    let mut with_leader = None;
    let mut failing: Vec<BrokerId> = Vec::new();
    for partition in (first..count).chain(0..first) {
        let Some(broker) = leader(partition) else { continue };
        if failing.contains(&broker) {
            continue;
        }
        if works(broker) {
            return (partition, false);
        }
        with_leader.get_or_insert(partition);
        failing.push(broker);
    }
    (with_leader.unwrap_or(first), true)
}

/// Returns a random partition of `count`.
pub(super) fn random_below(count: i32) -> i32 {
    (random() % count.max(1).unsigned_abs() as u64) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_partition_whose_leader_works_is_preferred_and_each_broker_is_looked_at_once() {
        let looks = Cell::new(0);
        // Partitions of brokers 1 and 2 in turn, the last one of broker 3.
        let leader = |partition| Some(if partition == 9_999 { 3 } else { 1 + partition % 2 });
        let works = |only: BrokerId| {
            let looks = &looks;
            move |broker| {
                looks.set(looks.get() + 1);
                broker == only
            }
        };
        assert_eq!(first_working(0, 10_000, leader, works(3)), (9_999, false));
        assert_eq!(looks.take(), 3);
        assert_eq!(first_working(5, 10_000, leader, works(1)), (6, false));
        assert_eq!(first_working(5, 10_000, leader, works(7)), (5, true));
        assert_eq!(first_working(5, 10, |partition| (partition == 3).then_some(1), works(7)), (3, true));
        assert_eq!(first_working(5, 10, |_| None, works(7)), (5, true));
    }
}
