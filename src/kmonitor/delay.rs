//! The delays of `/delay`: by module and partition number. Pure.
//!
//! A module pushes one topic, so each number belongs to one partition. In a module that changed its topic, or a
//! consumer group of several topics, a number may belong to several partitions. Their delays are added up, so that the
//! total of the module is right; topics and sources that the module has left behind are not part of it. If one of these
//! delays is unknown, the number is left out. A partition that is gone is ignored.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::PartitionId;

use super::view::{ClusterView, ModuleView, ReasonCode};

/// The delays of one module, by partition number.
pub(super) type Delays = BTreeMap<PartitionId, u64>;

/// Returns the modules of a cluster with their delays, sorted by name; all of them, or only the module named `only`. A
/// cluster that is unknown has none.
pub(super) fn by_module(cluster: &ClusterView, only: Option<&str>) -> Vec<(Arc<str>, Delays)> {
    let mut modules: BTreeMap<&Arc<str>, Vec<&ModuleView>> = BTreeMap::new();
    let shown = cluster.modules.iter().filter(|view| cluster.known && only.is_none_or(|only| *view.name == *only));
    shown.for_each(|view| modules.entry(&view.name).or_default().push(view));
    modules.into_iter().map(|(name, views)| (Arc::clone(name), by_number(&views))).collect()
}

fn by_number(views: &[&ModuleView]) -> Delays {
    let mut sums: BTreeMap<PartitionId, Option<u64>> = BTreeMap::new();
    let counted = views.iter().filter(|view| view.in_legacy).flat_map(|view| &view.partitions);
    for partition in counted.filter(|partition| partition.reason_code != ReasonCode::Gone) {
        let sum = sums.entry(partition.partition).or_insert(Some(0));
        *sum = sum.zip(partition.delay).map(|(sum, more)| sum.saturating_add(more));
    }
    sums.into_iter().filter_map(|(number, sum)| sum.map(|sum| (number, sum))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition};
    use crate::kmonitor::view::PartitionView;

    #[test]
    fn partitions_of_several_topics_do_not_overwrite_each_other() {
        let gone = |number| PartitionView { reason_code: ReasonCode::Gone, ..partition(number, None) };
        let first = module("m", "a", vec![partition(0, Some(7)), partition(1, Some(4)), partition(2, None)]);
        let second = module("m", "b", vec![partition(0, Some(5)), partition(1, None), gone(0), gone(5)]);
        let left = vec![partition(0, Some(1_000)), partition(2, None)];
        let left = ModuleView { in_legacy: false, ..module("m", "left", left) };
        let known = cluster("c", vec![first, second, left, module("n", "", vec![])]);
        // 0: the sum of a and b; 1: b is unknown, so is the sum; 2: unknown; 5: only a partition that is gone.
        let expected = vec![("m".into(), Delays::from([(0, 12)])), ("n".into(), Delays::new())];
        assert_eq!(by_module(&known, None), expected);
        assert_eq!(by_module(&known, Some("n")), expected[1..]);
        assert!(by_module(&ClusterView { known: false, ..known }, None).is_empty());
    }
}
