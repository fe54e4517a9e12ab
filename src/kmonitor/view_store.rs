//! The newest view of every cluster: written by its poller, read by every request.
//!
//! A [`ClusterView`] never changes. A request takes the views and formats them. It makes no request to ZooKeeper or
//! Kafka, and holds a lock only while it clones an `Arc`.
//!
//! Invariant: if a poller hangs, its cluster becomes unknown instead of keeping its last state. A view from before a
//! suspend of the machine becomes unknown, too.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::view::{ClusterView, Trouble, View};
use crate::clock::boot_instant;
use crate::locks::lock;

/// The newest view of each cluster. Clones share the views.
#[derive(Clone)]
pub(super) struct ViewStore {
    shared: Arc<Shared>,
}

struct Shared {
    /// Number and time of the last publication.
    last: Mutex<(u64, SystemTime)>,
    /// Called after each publication.
    on_publish: OnceLock<Box<dyn Fn() + Send + Sync>>,
    clusters: Vec<Mutex<Arc<ClusterView>>>,
}

/// Write access to the view of one cluster, for its poller.
pub(super) struct ViewWriter {
    store: ViewStore,
    index: usize,
}

impl ViewStore {
    /// Makes a store for clusters of these names, of which nothing is known.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let clusters =
            names.into_iter().map(|name| Mutex::new(Arc::new(unread(name.into(), boot_instant())))).collect();
        ViewStore {
            shared: Arc::new(Shared {
                last: Mutex::new((0, SystemTime::now())),
                on_publish: OnceLock::new(),
                clusters,
            }),
        }
    }

    /// Makes each publication call `call` on the thread that publishes. Only the first call of this function counts.
    pub(super) fn on_publish(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_publish.set(Box::new(call));
    }

    /// Returns one writer for each cluster, in the order of the configuration.
    pub(super) fn writers(&self) -> Vec<ViewWriter> {
        (0..self.shared.clusters.len()).map(|index| ViewWriter { store: self.clone(), index }).collect()
    }

    /// Returns the view of every cluster, in the order of the configuration.
    pub(super) fn view(&self) -> View {
        let now = boot_instant();
        let (number, made_at) = *lock(&self.shared.last);
        let newest = |cluster: &Mutex<Arc<ClusterView>>| or_unknown(lock(cluster).clone(), now);
        View { number, made_at, clusters: self.shared.clusters.iter().map(newest).collect() }
    }
}

impl ViewWriter {
    /// Replaces the view of the cluster.
    pub(super) fn publish(&self, view: ClusterView) {
        let view = Arc::new(view);
        // The old view is dropped after the lock is released, because dropping many partitions takes a while.
        let _old = std::mem::replace(&mut *lock(&self.store.shared.clusters[self.index]), view);
        let mut last = lock(&self.store.shared.last);
        *last = (last.0 + 1, SystemTime::now());
        drop(last);
        if let Some(call) = self.store.shared.on_publish.get() {
            call();
        }
    }
}

/// Returns the view, or one of an unknown cluster if its poller hangs.
fn or_unknown(view: Arc<ClusterView>, now: Instant) -> Arc<ClusterView> {
    let age = now.saturating_duration_since(view.published);
    if !view.known || age <= view.valid_for {
        return view;
    }
    let text = format!("no reading has ended for {} s", age.as_secs()).into();
    let since = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let unknown = unread(Arc::clone(&view.name), view.published);
    Arc::new(ClusterView {
        number: view.number,
        sources: view.sources.clone(),
        cycle: view.cycle,
        late_after: view.late_after,
        trouble: Some(Trouble { text, since }),
        ..unknown
    })
}

/// The view of a cluster before its first reading.
fn unread(name: Arc<str>, published: Instant) -> ClusterView {
    ClusterView {
        name,
        number: 0,
        sources: Vec::new(),
        published,
        oldest_read: None,
        cycle: None,
        trouble: None,
        known: false,
        is_partial: true,
        late_after: Duration::ZERO,
        valid_for: Duration::MAX,
        modules: Vec::new(),
        counts: [0; 6],
        gone: 0,
        left_behind: 0,
        history_end: SystemTime::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_returned_until_its_poller_hangs() {
        let store = ViewStore::new(["a", "b"]);
        let writers = store.writers();
        let known = || store.view().clusters.iter().map(|cluster| cluster.known).collect::<Vec<_>>();
        assert_eq!((known(), store.view().number), (vec![false, false], 0));
        let now = Instant::now();
        writers[1].publish(ClusterView { known: true, ..unread("b".into(), now) });
        assert_eq!((known(), store.view().number), (vec![false, true], 1));
        let valid_for = Duration::from_secs(60);
        let view = Arc::new(ClusterView { known: true, valid_for, ..unread("b".into(), now) });
        assert!(or_unknown(view.clone(), now + Duration::from_secs(60)).known);
        let hanging = or_unknown(view, now + Duration::from_secs(61));
        assert!(!hanging.known && hanging.modules.is_empty());
        assert_eq!(hanging.trouble.as_ref().map(|trouble| &*trouble.text), Some("no reading has ended for 61 s"));
    }
}
