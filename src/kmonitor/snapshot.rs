//! The newest snapshot of every cluster: written by its poller, read by every request.
//!
//! A [`ClusterSnapshot`] is the result of one poll and never changes. An HTTP request takes the snapshots and formats
//! them. It makes no request to ZooKeeper or Kafka, and holds a lock only while it clones an `Arc`.
//!
//! Invariant: a snapshot that is too old is not used. If a poller hangs, the delays of its cluster become unknown
//! instead of staying at their last values.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::delay::ModuleDelay;
use crate::locks::lock;

/// A snapshot is fresh for this number of polls, each taken as the poll interval plus the duration of the last poll.
const STALE_AFTER_POLLS: u32 = 3;

/// The delays of one cluster at one poll.
#[derive(Debug)]
pub(super) struct ClusterSnapshot {
    /// The modules by name.
    pub modules: BTreeMap<Arc<str>, ModuleDelay>,
    /// Time from which the snapshot is stale, and no longer used.
    pub fresh_until: Instant,
}

/// Names and snapshots of the clusters, in the order of the configuration; `None` for a cluster without a fresh
/// snapshot.
pub(super) type Snapshots = Vec<(Arc<str>, Option<Arc<ClusterSnapshot>>)>;

impl ClusterSnapshot {
    /// Makes the snapshot of a poll that began at `began` and ended now; `interval` is the poll interval.
    pub(super) fn new(modules: BTreeMap<Arc<str>, ModuleDelay>, began: Instant, interval: Duration) -> Self {
        let now = Instant::now();
        // A poll of a slow cluster may take longer than the interval. The next poll will take about as long.
        ClusterSnapshot { modules, fresh_until: now + (interval + (now - began)) * STALE_AFTER_POLLS }
    }

    /// Returns all modules, or only the module named `only`.
    pub(super) fn modules<'a>(
        &'a self,
        only: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a ModuleDelay)> {
        self.modules.iter().filter(move |(name, _)| only.is_none_or(|only| only == &***name))
    }
}

/// The newest snapshot of each cluster. Clones of the store share the snapshots.
#[derive(Clone)]
pub(super) struct SnapshotStore {
    clusters: Arc<[Cluster]>,
}

struct Cluster {
    name: Arc<str>,
    newest: Mutex<Option<Arc<ClusterSnapshot>>>,
}

/// Write access to the snapshot of one cluster, for the poller of the cluster.
pub(super) struct SnapshotWriter {
    store: SnapshotStore,
    index: usize,
}

impl SnapshotStore {
    /// Makes a store for clusters of these names, without a snapshot.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let clusters = names.into_iter().map(|name| Cluster { name: name.into(), newest: Mutex::default() }).collect();
        SnapshotStore { clusters }
    }

    /// Returns one writer for each cluster, in the order of the configuration.
    pub(super) fn writers(&self) -> Vec<SnapshotWriter> {
        (0..self.clusters.len()).map(|index| SnapshotWriter { store: self.clone(), index }).collect()
    }

    /// Returns every cluster with its fresh snapshot, in the order of the configuration.
    pub(super) fn snapshots(&self) -> Snapshots {
        let now = Instant::now();
        let fresh = |cluster: &Cluster| cluster.lock().clone().filter(|snapshot| now < snapshot.fresh_until);
        self.clusters.iter().map(|cluster| (Arc::clone(&cluster.name), fresh(cluster))).collect()
    }
}

impl SnapshotWriter {
    /// Replaces the snapshot. `None` removes it, because the stored offsets could not be read.
    pub(super) fn put(&self, snapshot: Option<ClusterSnapshot>) {
        let snapshot = snapshot.map(Arc::new);
        // The old snapshot is dropped after the lock is released, because dropping many partitions takes a while.
        let _old = std::mem::replace(&mut *self.store.clusters[self.index].lock(), snapshot);
    }
}

impl Cluster {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<ClusterSnapshot>>> {
        lock(&self.newest)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::broker::{Offset, TopicPartition};
    use crate::kmonitor::delay::{LogEnd, StoredByModule, StoredOffsets, join};

    /// Makes a snapshot of these modules: for each its name, then the stored offset and log end of each partition of
    /// the topic `t`.
    pub(in crate::kmonitor) fn snapshot(modules: &[(&str, &[(Offset, LogEnd)])]) -> ClusterSnapshot {
        let at = |index: usize| TopicPartition { topic: "t".into(), partition: i32::try_from(index).unwrap() };
        let stored = |offsets: &[(Offset, LogEnd)]| -> StoredOffsets {
            offsets.iter().enumerate().map(|(index, (stored, _))| (at(index), Some(*stored))).collect()
        };
        let mut joined = BTreeMap::new();
        for (name, offsets) in modules {
            let by_module = StoredByModule::from([((*name).into(), stored(offsets))]);
            joined.extend(join(by_module, |partition| offsets[usize::try_from(partition.partition).unwrap()].1));
        }
        ClusterSnapshot::new(joined, Instant::now(), Duration::from_secs(60))
    }

    #[test]
    fn a_snapshot_is_returned_until_it_is_removed_or_stale() {
        let store = SnapshotStore::new(["a", "b"]);
        let writers = store.writers();
        let known = || store.snapshots().iter().map(|(_, snapshot)| snapshot.is_some()).collect::<Vec<_>>();
        assert_eq!(known(), [false, false]);
        let now = Instant::now();
        writers[1].put(Some(ClusterSnapshot::new(BTreeMap::new(), now, Duration::from_secs(60))));
        assert_eq!(known(), [false, true]);
        writers[0].put(Some(ClusterSnapshot { modules: BTreeMap::new(), fresh_until: now }));
        assert_eq!(known(), [false, true], "a stale snapshot is not returned");
        writers[1].put(None);
        assert_eq!(known(), [false, false]);
    }

    #[test]
    fn the_snapshot_of_a_slow_poll_stays_fresh_for_longer() {
        let began = Instant::now();
        let snapshot = ClusterSnapshot::new(BTreeMap::new(), began, Duration::from_secs(5));
        assert!(began + Duration::from_secs(15) <= snapshot.fresh_until);
        let slow = Duration::from_secs(20);
        let long_ago = began.checked_sub(slow).unwrap_or(began);
        let snapshot = ClusterSnapshot::new(BTreeMap::new(), long_ago, Duration::from_secs(5));
        assert!(began + (Duration::from_secs(5) + slow) * 2 < snapshot.fresh_until);
    }
}
