//! From stored and newest offsets to delays. Pure.
//!
//! delay = newest offset − stored offset, never below 0. What is not known is left out, never guessed: neither 0 nor
//! the value of the last time.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{Offset, PartitionId, TopicPartition};

/// What was read of a module's stored offsets. `None` is a node whose text is no offset.
pub type StoredOffsets = BTreeMap<TopicPartition, Option<Offset>>;

/// All modules of one cluster by name, as ZooKeeper has them.
pub type StoredByModule = BTreeMap<Arc<str>, StoredOffsets>;

/// Where the log of a partition ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// Offset the next message will get.
    Newest(Offset),
    /// The cluster has no such topic or partition (any more).
    Gone,
    /// No broker told.
    Unknown,
}

/// One partition a module has a stored offset for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDelay {
    /// Which.
    pub partition: TopicPartition,
    /// Offset of the next message to be pushed.
    pub stored: Option<Offset>,
    /// Where its log ends.
    pub end: LogEnd,
}

/// One module at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleDelay {
    /// Every partition, by topic and number.
    pub partitions: Vec<PartitionDelay>,
    /// What `/delay` shows: the delays by the number of the partition alone; several topics are added up.
    pub by_number: BTreeMap<PartitionId, u64>,
}

impl PartitionDelay {
    /// Messages between the stored and the newest offset, where both are known.
    pub fn messages(&self) -> Option<u64> {
        match (self.stored, self.end) {
            // A stored offset beyond the end (a topic made anew) is no delay, and 0 is the truth.
            (Some(stored), LogEnd::Newest(newest)) => Some(u64::try_from(newest.saturating_sub(stored)).unwrap_or(0)),
            _ => None,
        }
    }
}

/// Joins what was read.
pub fn join(by_module: StoredByModule, end_of: impl Fn(&TopicPartition) -> LogEnd) -> BTreeMap<Arc<str>, ModuleDelay> {
    let module = |stored: StoredOffsets| {
        let partitions: Vec<_> = stored
            .into_iter()
            .map(|(partition, stored)| PartitionDelay { end: end_of(&partition), partition, stored })
            .collect();
        ModuleDelay { by_number: by_number(&partitions), partitions }
    };
    by_module.into_iter().map(|(name, stored)| (name, module(stored))).collect()
}

/// The delays by the number of the partition alone, as `/delay` has them.
///
/// A module pushes one topic, so there is one partition of a number. If it changed its topic, or is another consumer
/// of several, the delays of the same number are added up, so that the module's total is right and nothing is hidden.
/// One of them unknown leaves the number out, since the sum is unknown too; a partition that is gone does not count.
fn by_number(partitions: &[PartitionDelay]) -> BTreeMap<PartitionId, u64> {
    let mut sums: BTreeMap<PartitionId, Option<u64>> = BTreeMap::new();
    for delay in partitions.iter().filter(|delay| delay.end != LogEnd::Gone) {
        let sum = sums.entry(delay.partition.partition).or_insert(Some(0));
        *sum = sum.zip(delay.messages()).map(|(sum, more)| sum.saturating_add(more));
    }
    sums.into_iter().filter_map(|(number, sum)| sum.map(|sum| (number, sum))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(topic: &str, partition: PartitionId) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    fn one(stored: Option<Offset>, end: LogEnd) -> PartitionDelay {
        PartitionDelay { partition: at("t", 0), stored, end }
    }

    #[test]
    fn a_delay_is_known_or_left_out() {
        for (stored, end, messages) in [
            (Some(3), LogEnd::Newest(15), Some(12)),
            (Some(15), LogEnd::Newest(15), Some(0)),
            (Some(20), LogEnd::Newest(15), Some(0)),
            (Some(0), LogEnd::Newest(Offset::MAX), Some(Offset::MAX as u64)),
            (None, LogEnd::Newest(15), None),
            (Some(3), LogEnd::Unknown, None),
            (Some(3), LogEnd::Gone, None),
        ] {
            assert_eq!(one(stored, end).messages(), messages, "{stored:?} {end:?}");
        }
    }

    #[test]
    fn partitions_of_several_topics_do_not_overwrite_each_other() {
        let ends = |partition: &TopicPartition| match (&*partition.topic, partition.partition) {
            ("a", 0) => LogEnd::Newest(10),
            ("b", 0) => LogEnd::Newest(105),
            ("a", 1) => LogEnd::Newest(7),
            ("gone", _) => LogEnd::Gone,
            _ => LogEnd::Unknown,
        };
        let stored = [
            (at("a", 0), Some(3)),
            (at("a", 1), Some(3)),
            (at("a", 2), Some(3)),
            (at("b", 0), Some(100)),
            (at("b", 1), Some(100)),
            (at("gone", 0), Some(9)),
            (at("gone", 5), Some(9)),
        ];
        let by_module = StoredByModule::from([("m".into(), stored.into_iter().collect())]);
        let modules = join(by_module, ends);
        // 0: the sum of a and b; 1: b is unknown, so is the sum; 2: unknown; 5: only a partition that is gone.
        assert_eq!(modules["m"].by_number, BTreeMap::from([(0, 12)]));
        assert_eq!(modules["m"].partitions.len(), 7);
    }

    proptest! {
        #[test]
        fn while_nothing_is_stored_the_delay_never_falls(
            stored in 0..1000_i64,
            mut ends in proptest::collection::vec(0..2000_i64, 1..20),
        ) {
            ends.sort_unstable();
            let delays: Vec<_> = ends.iter().map(|end| one(Some(stored), LogEnd::Newest(*end)).messages()).collect();
            prop_assert!(delays.is_sorted());
            prop_assert_eq!(delays.last().copied().flatten(), Some(u64::try_from((ends[ends.len() - 1] - stored).max(0)).unwrap()));
        }
    }
}
