//! The delays as `/delay` has them: by module and partition number. Pure.
//!
//! A module pushes one topic, so each number belongs to one partition. In a module that changed its topic, or a consumer
//! group of several topics, a number may belong to several partitions. Their delays are added up, so that the total of
//! the module is right; topics and sources that the module has left behind are not part of it. If one of these delays is
//! unknown, the number is left out. A partition that is gone is ignored.

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

/// Whether a cluster is known and does not have the module.
pub(super) fn lacks(cluster: &ClusterView, module: &str) -> bool {
    cluster.known && !cluster.modules.iter().any(|view| *view.name == *module)
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
pub(crate) mod tests {
    use super::*;
    use crate::kmonitor::facts::{Source, Verdict};
    use crate::kmonitor::view::{PartitionView, module_id};
    use std::time::{Instant, SystemTime};

    /// A delay that is known, unknown, or that of a partition that is gone.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::kmonitor) enum Delay {
        Known(u64),
        Unknown,
        Gone,
    }

    fn partition(number: PartitionId, delay: Delay) -> PartitionView {
        let (known, verdict, reason_code) = match delay {
            Delay::Known(known) => (Some(known), Verdict::Ok, ReasonCode::Waiting),
            Delay::Unknown => (None, Verdict::Unknown, ReasonCode::NoLeader),
            Delay::Gone => (None, Verdict::Ok, ReasonCode::Gone),
        };
        PartitionView {
            partition: number,
            verdict,
            since: SystemTime::UNIX_EPOCH,
            reason: "".into(),
            reason_code,
            delay: known,
            stored: Some(0),
            oldest: Some(0),
            newest: known.and_then(|known| i64::try_from(known).ok()),
            lost: 0,
            seconds_behind: None,
            seconds_from: None,
            seconds_at_least: false,
            stored_moved: None,
            owner: None,
            read_at: None,
            unknown: known.is_none().then_some("no_leader"),
            history: [0; 60],
        }
    }

    /// Makes the view of a topic of a module, with these delays of its partitions.
    pub(in crate::kmonitor) fn module(name: &str, topic: &str, delays: &[Delay]) -> ModuleView {
        let partitions: Vec<_> = (0..).zip(delays).map(|(number, delay)| partition(number, *delay)).collect();
        ModuleView {
            id: module_id("c", name, topic, Source::Zookeeper),
            name: name.into(),
            topic: topic.into(),
            source: Source::Zookeeper,
            verdict: Verdict::Ok,
            since: SystemTime::UNIX_EPOCH,
            reason: "".into(),
            reason_code: ReasonCode::Waiting,
            delay: Some(partitions.iter().filter_map(|partition| partition.delay).sum()),
            delay_is_partial: partitions.iter().any(|partition| partition.delay.is_none()),
            seconds_behind: None,
            seconds_at_least: false,
            lost: 0,
            in_per_second: None,
            out_per_second: None,
            owners: None,
            members: None,
            partitions,
            history: [0; 60],
            in_legacy: true,
        }
    }

    /// Makes the view of a cluster that is known.
    pub(in crate::kmonitor) fn cluster(name: &str, modules: Vec<ModuleView>) -> ClusterView {
        ClusterView {
            name: name.into(),
            number: 1,
            sources: vec![Source::Zookeeper],
            published: Instant::now(),
            oldest_read: None,
            cycle: None,
            trouble: None,
            known: true,
            modules,
            counts: [0; 6],
            gone: 0,
            left_behind: 0,
            history_end: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn partitions_of_several_topics_do_not_overwrite_each_other() {
        let modules = vec![
            module("m", "a", &[Delay::Known(7), Delay::Known(4), Delay::Unknown]),
            module("m", "b", &[Delay::Known(5), Delay::Unknown]),
            module("m", "gone", &[Delay::Gone, Delay::Known(1), Delay::Gone, Delay::Gone, Delay::Gone]),
            ModuleView { in_legacy: false, ..module("m", "left", &[Delay::Known(1_000), Delay::Unknown]) },
            module("n", "", &[]),
        ];
        let view = cluster("c", modules);
        // 0: the sum of a and b; 1: b is unknown, so is the sum; 2: unknown; 4: only a partition that is gone.
        let expected = vec![("m".into(), Delays::from([(0, 12)])), ("n".into(), Delays::new())];
        assert_eq!(by_module(&view, None), expected);
        assert_eq!(by_module(&view, Some("n")), expected[1..]);
        assert!(lacks(&view, "x") && !lacks(&view, "n"));
        let away = ClusterView { known: false, ..view };
        assert!(by_module(&away, None).is_empty() && !lacks(&away, "x"));
    }
}
