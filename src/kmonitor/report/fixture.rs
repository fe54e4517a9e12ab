//! Views for tests.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::broker::PartitionId;
use crate::kmonitor::facts::{Source, Verdict};
use crate::kmonitor::view::{ClusterView, ModuleView, PartitionView, ReasonCode, View, module_id};

pub(in crate::kmonitor) fn view(clusters: Vec<ClusterView>) -> View {
    View { number: 1, made_at: SystemTime::UNIX_EPOCH, clusters: clusters.into_iter().map(Arc::new).collect() }
}

/// A cluster that was read now.
pub(in crate::kmonitor) fn cluster(name: &str, mut modules: Vec<ModuleView>) -> ClusterView {
    let now = Instant::now();
    let mut counts = [0; 6];
    for module in &mut modules {
        module.id = module_id(name, &module.name, &module.topic, module.source);
        module.partitions.iter().for_each(|partition| counts[usize::from(partition.verdict.severity())] += 1);
    }
    ClusterView {
        name: name.into(),
        number: 1,
        sources: vec![Source::Zookeeper],
        published: now,
        oldest_read: Some(now),
        cycle: Some(Duration::from_millis(2500)),
        trouble: None,
        known: true,
        is_partial: false,
        late_after: Duration::from_secs(15),
        valid_for: Duration::MAX,
        modules,
        counts,
        gone: 0,
        left_behind: 0,
        history_end: SystemTime::UNIX_EPOCH,
    }
}

/// A cluster that was never read.
pub(in crate::kmonitor) fn unknown(name: &str) -> ClusterView {
    ClusterView { known: false, oldest_read: None, cycle: None, ..cluster(name, Vec::new()) }
}

/// A module of these partitions, with their worst verdict and the sum of their delays.
pub(in crate::kmonitor) fn module(name: &str, topic: &str, partitions: Vec<PartitionView>) -> ModuleView {
    let worst = partitions.iter().max_by_key(|partition| partition.verdict);
    let delays: Vec<u64> = partitions.iter().filter_map(|partition| partition.delay).collect();
    ModuleView {
        id: 0,
        name: name.into(),
        topic: topic.into(),
        source: Source::Zookeeper,
        verdict: worst.map_or(Verdict::Ok, |worst| worst.verdict),
        since: SystemTime::UNIX_EPOCH,
        reason: "nothing waits".into(),
        reason_code: worst.map_or(ReasonCode::NothingWaits, |worst| worst.reason_code),
        delay: (!delays.is_empty()).then(|| delays.iter().fold(0_u64, |sum, more| sum.saturating_add(*more))),
        delay_is_partial: delays.len() < partitions.len(),
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

/// A partition with this delay, and the verdict OK or UNKNOWN.
pub(in crate::kmonitor) fn partition(number: PartitionId, delay: Option<u64>) -> PartitionView {
    let is_known = delay.is_some();
    PartitionView {
        partition: number,
        verdict: if is_known { Verdict::Ok } else { Verdict::Unknown },
        since: SystemTime::UNIX_EPOCH,
        reason: "nothing waits".into(),
        reason_code: if is_known { ReasonCode::NothingWaits } else { ReasonCode::LeaderSilent },
        delay,
        stored: Some(3),
        oldest: Some(0),
        newest: delay.map(|delay| i64::try_from(delay).unwrap_or(i64::MAX).saturating_add(3)),
        lost: 0,
        seconds_behind: None,
        seconds_from: None,
        seconds_at_least: false,
        stored_moved: None,
        owner: None,
        read_at: Some(Instant::now()),
        unknown: (!is_known).then_some("leader_silent"),
        history: Arc::new([0; 60]),
    }
}
