//! What is known of every cluster: written by its poller, read by every answer.
//!
//! A [`View`] is one finished reading, never changed; the board holds the newest of each cluster. An answer takes
//! the views and formats them, so it costs no ZooKeeper, no Kafka and no lock held for longer than a copied pointer.
//!
//! Invariant: a view that is too old is not shown. A poller that hangs makes its delays unknown, not frozen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::delay::ModuleDelay;
use crate::locks::lock;

/// A view older than so many times the time between two readings is not shown.
const STALE_AFTER: u32 = 3;

/// One reading of one cluster.
#[derive(Debug)]
pub struct View {
    /// The modules by name.
    pub modules: BTreeMap<Arc<str>, ModuleDelay>,
    /// Until when it may be shown.
    pub fresh_until: Instant,
}

impl View {
    /// A reading that began at `began`, took until now and is repeated after `interval`.
    pub fn new(modules: BTreeMap<Arc<str>, ModuleDelay>, began: Instant, interval: Duration) -> Self {
        let now = Instant::now();
        View { modules, fresh_until: now + (interval + (now - began)) * STALE_AFTER }
    }
}

/// The newest view of each cluster. Clones share it.
#[derive(Clone)]
pub struct Board {
    clusters: Arc<[Cluster]>,
}

struct Cluster {
    name: Arc<str>,
    view: Mutex<Option<Arc<View>>>,
}

/// The place on the board where one cluster's poller puts its views.
pub struct Place {
    board: Board,
    index: usize,
}

impl Board {
    /// A board on which nothing is known of these clusters yet.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let clusters = names.into_iter().map(|name| Cluster { name: name.into(), view: Mutex::default() }).collect();
        Board { clusters }
    }

    /// The places of the clusters, in order.
    pub fn places(&self) -> Vec<Place> {
        (0..self.clusters.len()).map(|index| Place { board: self.clone(), index }).collect()
    }

    /// Every cluster, in order, with its view; `None` while nothing is known.
    pub fn views(&self) -> Vec<(Arc<str>, Option<Arc<View>>)> {
        let now = Instant::now();
        let view = |cluster: &Cluster| cluster.lock().clone().filter(|view| now < view.fresh_until);
        self.clusters.iter().map(|cluster| (Arc::clone(&cluster.name), view(cluster))).collect()
    }
}

impl Place {
    /// Shows this view from now on; `None`: nothing is known.
    pub fn put(&self, view: Option<View>) {
        let view = view.map(Arc::new);
        // Dropped after the lock is free: a view of many partitions takes a while to drop.
        let _old = std::mem::replace(&mut *self.board.clusters[self.index].lock(), view);
    }
}

impl Cluster {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<View>>> {
        lock(&self.view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_shown_until_it_is_replaced_withdrawn_or_stale() {
        let board = Board::new(["a", "b"]);
        let places = board.places();
        let known = || board.views().iter().map(|(_, view)| view.is_some()).collect::<Vec<_>>();
        assert_eq!(known(), [false, false]);
        let now = Instant::now();
        places[1].put(Some(View::new(BTreeMap::new(), now, Duration::from_secs(60))));
        assert_eq!(known(), [false, true]);
        places[0].put(Some(View { modules: BTreeMap::new(), fresh_until: now }));
        assert_eq!(known(), [false, true], "a stale view is not shown");
        places[1].put(None);
        assert_eq!(known(), [false, false]);
    }

    #[test]
    fn a_slow_reading_stays_fresh_for_longer() {
        let began = Instant::now();
        let view = View::new(BTreeMap::new(), began, Duration::from_secs(5));
        assert!(began + Duration::from_secs(15) <= view.fresh_until);
        let slow = Duration::from_secs(20);
        let view = View::new(BTreeMap::new(), began.checked_sub(slow).unwrap_or(began), Duration::from_secs(5));
        assert!(began + (Duration::from_secs(5) + slow) * 2 < view.fresh_until);
    }
}
