//! The newest snapshot of every cluster: written by its poller, read by every request.
//!
//! A [`ClusterSnapshot`] is the result of one poll and never changes. A request takes the snapshots and formats them:
//! no request to ZooKeeper or Kafka, and no lock held for longer than it takes to copy a pointer.
//!
//! Invariant: a snapshot that is too old is not shown. A poller that hangs makes its delays unknown, not frozen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::delay::ModuleDelay;
use crate::locks::lock;

/// A snapshot older than this number of polls, each with its pause, is not shown.
const STALE_AFTER_POLLS: u32 = 3;

/// The delays of one cluster at one poll.
#[derive(Debug)]
pub(super) struct ClusterSnapshot {
    /// The modules by name.
    pub modules: BTreeMap<Arc<str>, ModuleDelay>,
    /// From this moment on the snapshot is stale.
    pub fresh_until: Instant,
}

/// Clusters by name, in the order of the configuration; `None` where no fresh snapshot exists.
pub(super) type Snapshots = Vec<(Arc<str>, Option<Arc<ClusterSnapshot>>)>;

impl ClusterSnapshot {
    /// The result of a poll that began at `began`, ended now and is repeated after `interval`.
    pub(super) fn new(modules: BTreeMap<Arc<str>, ModuleDelay>, began: Instant, interval: Duration) -> Self {
        let now = Instant::now();
        // A poll of a slow cluster may take longer than the interval; the next one will take about as long.
        ClusterSnapshot { modules, fresh_until: now + (interval + (now - began)) * STALE_AFTER_POLLS }
    }

    /// The modules by name: all, or the one named.
    pub(super) fn modules<'a>(
        &'a self,
        only: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a ModuleDelay)> {
        self.modules.iter().filter(move |(name, _)| only.is_none_or(|only| only == &***name))
    }
}

/// The newest snapshot of each cluster. Clones share it.
#[derive(Clone)]
pub(super) struct SnapshotStore {
    clusters: Arc<[Cluster]>,
}

struct Cluster {
    name: Arc<str>,
    newest: Mutex<Option<Arc<ClusterSnapshot>>>,
}

/// The poller's end of the store: replaces the snapshot of one cluster.
pub(super) struct SnapshotWriter {
    store: SnapshotStore,
    index: usize,
}

impl SnapshotStore {
    /// A store without a snapshot of any of these clusters.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let clusters = names.into_iter().map(|name| Cluster { name: name.into(), newest: Mutex::default() }).collect();
        SnapshotStore { clusters }
    }

    /// One writer for each cluster, in order.
    pub(super) fn writers(&self) -> Vec<SnapshotWriter> {
        (0..self.clusters.len()).map(|index| SnapshotWriter { store: self.clone(), index }).collect()
    }

    /// Every cluster with its snapshot, in order.
    pub(super) fn snapshots(&self) -> Snapshots {
        let now = Instant::now();
        let fresh = |cluster: &Cluster| cluster.lock().clone().filter(|snapshot| now < snapshot.fresh_until);
        self.clusters.iter().map(|cluster| (Arc::clone(&cluster.name), fresh(cluster))).collect()
    }
}

impl SnapshotWriter {
    /// Replaces the snapshot; `None`: the stored offsets could not be read.
    pub(super) fn put(&self, snapshot: Option<ClusterSnapshot>) {
        let snapshot = snapshot.map(Arc::new);
        // Dropped after the lock is free: dropping a snapshot of many partitions takes a while.
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

    /// A snapshot of these modules: the name, then the stored offset and log end of each partition of the topic `t`.
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
    fn a_snapshot_is_shown_until_it_is_replaced_withdrawn_or_stale() {
        let store = SnapshotStore::new(["a", "b"]);
        let writers = store.writers();
        let known = || store.snapshots().iter().map(|(_, snapshot)| snapshot.is_some()).collect::<Vec<_>>();
        assert_eq!(known(), [false, false]);
        let now = Instant::now();
        writers[1].put(Some(ClusterSnapshot::new(BTreeMap::new(), now, Duration::from_secs(60))));
        assert_eq!(known(), [false, true]);
        writers[0].put(Some(ClusterSnapshot { modules: BTreeMap::new(), fresh_until: now }));
        assert_eq!(known(), [false, true], "a stale snapshot is not shown");
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
