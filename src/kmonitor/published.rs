//! The pages of the newest view, which are rendered once for each view, whatever the number of clients.
//!
//! A poller calls [`PublishedPages::refresh`] when it has published, so that requests find the pages rendered. A
//! request renders them itself only where no poller does: when a poller hangs, its cluster becomes unknown without it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::SystemTime;

use log::warn;

use super::names::shortened;
use super::report::pages::Pages;
use super::report::prometheus::Detail;
use super::view::View;
use crate::http::OlderPages;
use crate::locks::lock;

/// Returns the newest view.
type NewestView = Box<dyn Fn() -> View + Send + Sync>;

/// The pages of the newest view.
pub(super) struct PublishedPages {
    view: NewestView,
    detail: Detail,
    /// Distinguishes the versions of pages from those before a restart.
    started: u128,
    newest: Mutex<Arc<Pages>>,
    /// Held while pages are rendered, so that they are rendered once.
    rendering: Mutex<()>,
    /// A poller waits for `rendering`, and has not taken the view that it will render.
    is_about_to_render: AtomicBool,
    /// The pages of earlier views that clients still read.
    older: OlderPages,
}

/// Limit on the memory of the pages of earlier views. Beyond it the oldest pages are withdrawn.
const MAX_OLDER_BYTES: usize = 32 << 20;

impl PublishedPages {
    /// Renders the pages of the view that `view` returns now.
    pub(super) fn new(view: impl Fn() -> View + Send + Sync + 'static, detail: Detail) -> Self {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let newest = Pages::render(Arc::new(view()), detail, started);
        PublishedPages {
            view: Box::new(view),
            detail,
            started,
            newest: Mutex::new(Arc::new(newest)),
            rendering: Mutex::default(),
            is_about_to_render: AtomicBool::new(false),
            older: OlderPages::default(),
        }
    }

    /// Renders the pages if there is a newer view. Returns at once if another thread is about to do it: of many
    /// clusters that publish at the same time, not each one has the pages of all rendered.
    pub(super) fn refresh(&self) {
        if self.is_about_to_render.swap(true, Ordering::AcqRel) {
            return;
        }
        let _rendering = lock(&self.rendering);
        // What is published from now on may be missing in the view that is taken next; what was before is not.
        self.is_about_to_render.swap(false, Ordering::AcqRel);
        self.render();
    }

    /// Returns the pages of the newest view, or the ones before if another thread renders the newest now.
    pub(super) fn pages(&self) -> Arc<Pages> {
        let newest = lock(&self.newest).clone();
        if is_same(&newest.view, &(self.view)()) {
            return newest;
        }
        match self.rendering.try_lock() {
            Err(TryLockError::WouldBlock) => newest,
            Ok(_rendering) => self.render(),
            Err(TryLockError::Poisoned(poisoned)) => {
                let _rendering = poisoned.into_inner();
                self.render()
            }
        }
    }

    /// Renders the pages if there is a newer view, and returns the newest. The caller holds `rendering`.
    fn render(&self) -> Arc<Pages> {
        let view = (self.view)();
        let before = lock(&self.newest).clone();
        if is_same(&before.view, &view) {
            return before;
        }
        let pages = Arc::new(Pages::render(Arc::new(view), self.detail, self.started));
        if !pages.ambiguous.is_empty() && pages.ambiguous != before.ambiguous {
            let modules = shortened(pages.ambiguous.join(", "));
            warn!("/delay?format=zabbix leaves out modules that would have the same key: {modules}");
        }
        // The old pages are dropped after the lock is released, because dropping many partitions takes a while.
        let old = std::mem::replace(&mut *lock(&self.newest), Arc::clone(&pages));
        let watches = old.close();
        drop((old, before));
        self.older.add(watches, MAX_OLDER_BYTES);
        pages
    }
}

/// Returns whether two views have the same content. A cluster whose poller hangs becomes unknown without a new number.
fn is_same(one: &View, other: &View) -> bool {
    let known = |view: &View| view.clusters.iter().map(|cluster| cluster.known).collect::<Vec<_>>();
    one.number == other.number && known(one) == known(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
    use crate::kmonitor::report::legacy::Selection;
    use crate::kmonitor::report::pages::DelayFormat;
    use crate::kmonitor::report::prometheus::DetailLevel;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn pages_are_rendered_once_for_each_view_and_when_a_cluster_becomes_unknown() {
        let newest = Arc::new(Mutex::new(view(vec![unknown("c")])));
        let (source, reads) = (Arc::clone(&newest), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&reads);
        let read = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            source.lock().unwrap().clone()
        };
        let published = PublishedPages::new(read, Detail { level: DetailLevel::Auto, max_partitions: 10 });
        let text = |pages: &Pages| {
            let body = pages.delay(DelayFormat::Json, Selection::default()).unwrap();
            String::from_utf8(body.to_vec()).unwrap()
        };
        let first = published.pages();
        assert_eq!(text(&first), r#"{"c":{}}"#);
        assert!(Arc::ptr_eq(&first, &published.pages()), "rendered once");
        let known = |delay| cluster("c", vec![module("m", "t", vec![partition(0, Some(delay))])]);
        *newest.lock().unwrap() = View { number: 2, ..view(vec![known(5)]) };
        published.refresh();
        let second = published.pages();
        assert_eq!(text(&second), r#"{"c":{"m":{"0":5}}}"#);
        published.refresh();
        assert!(Arc::ptr_eq(&second, &published.pages()), "rendered once");
        // The poller hangs: the number stays.
        *newest.lock().unwrap() = View { number: 2, ..view(vec![unknown("c")]) };
        assert_eq!(text(&published.pages()), r#"{"c":{}}"#);
        // While another thread renders, a request gets the pages before.
        *newest.lock().unwrap() = View { number: 3, ..view(vec![known(7)]) };
        let rendering = published.rendering.lock().unwrap();
        assert_eq!(text(&published.pages()), r#"{"c":{}}"#);
        drop(rendering);
        assert_eq!(text(&published.pages()), r#"{"c":{"m":{"0":7}}}"#);
        assert!(reads.load(Ordering::Relaxed) > 6);
    }

    #[test]
    fn clusters_that_publish_while_pages_are_rendered_have_them_rendered_once_more() {
        let number = Arc::new(AtomicUsize::new(1));
        let newest = Arc::clone(&number);
        let read = move || View { number: newest.load(Ordering::Relaxed) as u64, ..view(vec![unknown("c")]) };
        let published = PublishedPages::new(read, Detail { level: DetailLevel::Auto, max_partitions: 10 });
        std::thread::scope(|scope| {
            let rendering = published.rendering.lock().unwrap();
            number.store(2, Ordering::Relaxed);
            scope.spawn(|| published.refresh());
            while !published.is_about_to_render.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            for later in 3..6 {
                number.store(later, Ordering::Relaxed);
                published.refresh();
            }
            drop(rendering);
        });
        assert_eq!(published.newest.lock().unwrap().view.number, 5);
        assert!(!published.is_about_to_render.load(Ordering::Acquire));
    }
}
