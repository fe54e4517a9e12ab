//! What was read, in the forms people and programs ask for. Pure: views in, text out.

pub mod json;
pub mod prometheus;
pub mod zabbix;

use std::sync::Arc;

use super::board::View;
use super::delay::ModuleDelay;

/// The clusters an answer is about, in the order of the configuration; `None` where nothing is known.
pub type Views = Vec<(Arc<str>, Option<Arc<View>>)>;

/// The modules of a view, all or the one asked for, by name.
fn modules<'a>(view: Option<&'a View>, only: Option<&'a str>) -> impl Iterator<Item = (&'a Arc<str>, &'a ModuleDelay)> {
    let modules = view.into_iter().flat_map(|view| &view.modules);
    modules.filter(move |(name, _)| only.is_none_or(|only| only == &***name))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::broker::{Offset, TopicPartition};
    use crate::kmonitor::delay::{LogEnd, StoredByModule, StoredOffsets, join};
    use std::time::{Duration, Instant};

    /// A view with these modules: name, then partitions of one topic by number, with stored and newest offset.
    pub(in crate::kmonitor) fn view(modules: &[(&str, &[(Offset, LogEnd)])]) -> Arc<View> {
        let at = |index: usize| TopicPartition { topic: "t".into(), partition: i32::try_from(index).unwrap() };
        let stored = |offsets: &[(Offset, LogEnd)]| -> StoredOffsets {
            offsets.iter().enumerate().map(|(index, (stored, _))| (at(index), Some(*stored))).collect()
        };
        let mut joined = std::collections::BTreeMap::new();
        for (name, offsets) in modules {
            let by_module = StoredByModule::from([((*name).into(), stored(offsets))]);
            joined.extend(join(by_module, |partition| offsets[usize::try_from(partition.partition).unwrap()].1));
        }
        Arc::new(View::new(joined, Instant::now(), Duration::from_secs(60)))
    }
}
