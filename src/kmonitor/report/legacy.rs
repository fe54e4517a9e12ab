//! The delays of `/delay` as the original has them: by cluster, module and partition number, without the topic.
//!
//! A page is rendered once for each view. `?cluster=` and `?module=` are parts of its bytes: the ranges are kept.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::broker::PartitionId;
use crate::http::{Body, SharedBytes};
use crate::kmonitor::view::{ClusterView, ModuleView, PartitionView, ReasonCode};

/// A page of all delays, and where in it each cluster and module is.
pub(crate) struct DelayPage {
    pub(super) bytes: SharedBytes,
    /// In the order of the page.
    pub(super) clusters: Vec<ClusterText>,
}

/// Where one cluster is in a page.
pub(super) struct ClusterText {
    pub(super) name: Arc<str>,
    /// Whether the modules of the cluster are known now.
    pub(super) known: bool,
    pub(super) range: Range<usize>,
    /// The modules, sorted by name.
    pub(super) modules: Vec<(Arc<str>, Range<usize>)>,
}

/// What `?cluster=` and `?module=` select.
#[derive(Clone, Copy, Default)]
pub(crate) struct Selection<'a> {
    /// Only this cluster.
    pub(crate) cluster: Option<&'a str>,
    /// Only this module.
    pub(crate) module: Option<&'a str>,
}

/// Why a selection has no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No cluster has this name.
    Cluster,
    /// All selected clusters are known, and none has the module.
    Module,
}

impl DelayPage {
    /// Returns whether the selection has a page. A module may exist in a cluster that is not known.
    pub(crate) fn check(&self, selection: Selection<'_>) -> Result<(), Missing> {
        if self.selected(selection).next().is_none() {
            // Without any cluster in the configuration, every module is unknown.
            return selection.cluster.map_or(Ok(()), |_| Err(Missing::Cluster));
        }
        let is_missing =
            |module| self.selected(selection).all(|cluster| cluster.known && cluster.module(module).is_none());
        match selection.module {
            Some(module) if is_missing(module) => Err(Missing::Module),
            _ => Ok(()),
        }
    }

    pub(super) fn selected<'a>(&'a self, selection: Selection<'a>) -> impl Iterator<Item = &'a ClusterText> {
        self.clusters.iter().filter(move |cluster| selection.cluster.is_none_or(|only| *cluster.name == *only))
    }

    /// Returns the whole page, or, if only a cluster is selected, its part of the page between `start` and `end`.
    pub(super) fn shared(&self, cluster: Option<&str>, start: &str, end: &'static [u8]) -> Body {
        let Some(cluster) = cluster else { return self.bytes.clone().into() };
        let range = self.clusters.iter().find(|known| *known.name == *cluster).map(|known| known.range.clone());
        let bytes = self.bytes.slice(range.unwrap_or_default());
        Body::Shared { start: start.as_bytes().to_vec(), bytes, end }
    }
}

impl ClusterText {
    pub(super) fn module(&self, name: &str) -> Option<Range<usize>> {
        let found = self.modules.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(self.modules[found].1.clone())
    }
}

/// Returns the modules of a cluster by name, each with its delays by partition number.
pub(super) fn modules(cluster: &ClusterView) -> Vec<(Arc<str>, BTreeMap<PartitionId, u64>)> {
    if !cluster.known {
        return Vec::new();
    }
    let counted: Vec<&ModuleView> = cluster.modules.iter().filter(|module| module.in_legacy).collect();
    let same_name = |one: &&ModuleView, other: &&ModuleView| one.name == other.name;
    counted
        .chunk_by(same_name)
        .map(|topics| {
            let partitions = topics.iter().flat_map(|module| &module.partitions);
            (Arc::clone(&topics[0].name), by_number(partitions))
        })
        .collect()
}

/// Returns the delays by partition number.
///
/// A module pushes one topic, so each number belongs to one partition. In a module that changed its topic, or a
/// consumer group of several topics, a number may belong to several partitions. Their delays are added up, so that the
/// total of the module is right. If one of these delays is unknown, the number is left out. A partition that is gone is
/// ignored.
fn by_number<'a>(partitions: impl Iterator<Item = &'a PartitionView>) -> BTreeMap<PartitionId, u64> {
    let mut sums: BTreeMap<PartitionId, Option<u64>> = BTreeMap::new();
    for partition in partitions.filter(|partition| partition.reason_code != ReasonCode::Gone) {
        let sum = sums.entry(partition.partition).or_insert(Some(0));
        *sum = sum.zip(partition.delay).map(|(sum, more)| sum.saturating_add(more));
    }
    sums.into_iter().filter_map(|(number, sum)| sum.map(|sum| (number, sum))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition};

    #[test]
    fn partitions_of_several_topics_do_not_overwrite_each_other() {
        let gone = |number| PartitionView { reason_code: ReasonCode::Gone, ..partition(number, None) };
        let first = module("m", "a", vec![partition(0, Some(7)), partition(1, Some(4)), partition(2, None), gone(5)]);
        let second = module("m", "b", vec![partition(0, Some(5)), partition(1, None), gone(0)]);
        let left_behind = ModuleView { in_legacy: false, ..module("m", "old", vec![partition(0, Some(900))]) };
        let other = module("n", "a", vec![partition(0, Some(u64::MAX))]);
        let known = cluster("c", vec![first, second, left_behind, other]);
        // 0: the sum of a and b; 1: b is unknown, so is the sum; 2: unknown; 5: only a partition that is gone.
        let expected = vec![("m".into(), BTreeMap::from([(0, 12)])), ("n".into(), BTreeMap::from([(0, u64::MAX)]))];
        assert_eq!(modules(&known), expected);
        assert_eq!(modules(&ClusterView { known: false, ..known }), vec![], "an unknown delay is left out");
    }
}
