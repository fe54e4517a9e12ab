//! Computes delays from stored and newest offsets. Pure.
//!
//! delay = newest offset − stored offset, never below 0. An unknown delay is left out: it is neither 0 nor the value of
//! the previous poll.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{Offset, PartitionId, TopicPartition};

/// The stored offsets of one module. `None` stands for a ZooKeeper node whose text is not an offset.
pub(super) type StoredOffsets = BTreeMap<TopicPartition, Option<Offset>>;

/// The stored offsets of all modules of one cluster, by module name.
pub(super) type StoredByModule = BTreeMap<Arc<str>, StoredOffsets>;

/// Where the log of a partition ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogEnd {
    /// The offset that the next appended message will get.
    Newest(Offset),
    /// The topic or partition does not exist, or no longer exists.
    Gone,
    /// No broker returned the log end.
    Unknown,
}

/// One partition for which a module has a stored offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartitionDelay {
    /// Topic and number of the partition.
    pub partition: TopicPartition,
    /// Offset of the next message to be pushed; `None` if the text of the ZooKeeper node is not an offset.
    pub stored: Option<Offset>,
    /// Where the log of the partition ends.
    pub end: LogEnd,
}

/// The delays of one module at one poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModuleDelay {
    /// Every partition, sorted by topic and number.
    pub partitions: Vec<PartitionDelay>,
    /// The delays in `/delay`, by partition number. If several topics have a partition of this number, their sum.
    pub by_number: BTreeMap<PartitionId, u64>,
}

impl PartitionDelay {
    /// Returns the number of messages between the stored and the newest offset; `None` if either is unknown.
    pub(super) fn messages(&self) -> Option<u64> {
        match (self.stored, self.end) {
            // A stored offset beyond the log end means that the topic was deleted and created again: the delay is 0.
            (Some(stored), LogEnd::Newest(newest)) => Some(u64::try_from(newest.saturating_sub(stored)).unwrap_or(0)),
            _ => None,
        }
    }
}

/// Joins the stored offsets with the log ends into the delays of each module.
pub(super) fn join(
    by_module: StoredByModule,
    end_of: impl Fn(&TopicPartition) -> LogEnd,
) -> BTreeMap<Arc<str>, ModuleDelay> {
    let module = |stored: StoredOffsets| {
        let partitions: Vec<_> = stored
            .into_iter()
            .map(|(partition, stored)| PartitionDelay { end: end_of(&partition), partition, stored })
            .collect();
        ModuleDelay { by_number: by_number(&partitions), partitions }
    };
    by_module.into_iter().map(|(name, stored)| (name, module(stored))).collect()
}

/// Returns the delays by partition number, as in `/delay`.
///
/// A module pushes one topic, so each number belongs to one partition. In a module that changed its topic, or a
/// consumer group of several topics, a number may belong to several partitions. Their delays are added up, so that the
/// total of the module is right. If one of these delays is unknown, the number is left out. A partition that is gone is
/// ignored.
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
        fn the_delay_never_falls_while_the_stored_offset_stays(
            stored in 0..1000_i64,
            mut ends in proptest::collection::vec(0..2000_i64, 1..20),
        ) {
            ends.sort_unstable();
            let delays: Vec<_> = ends.iter().map(|end| one(Some(stored), LogEnd::Newest(*end)).messages()).collect();
            prop_assert!(delays.is_sorted());
            let last = u64::try_from((ends[ends.len() - 1] - stored).max(0)).unwrap();
            prop_assert_eq!(delays.last().copied().flatten(), Some(last));
        }
    }
}
