//! The failures of a stop, with which the daemon does not end with exit code 0, and the time limit of a stop.
//!
//! The stop of the daemon has `shutdown_grace_ms`. The stop of one module by a reload has a limit only for its pushes:
//! storing its offsets and releasing its partitions may take any time. No other instance could take them over
//! meanwhile, since the process and its session with ZooKeeper continue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::locks::lock;
use crate::shutdown::Stop;

/// The failures of the stop of all modules, or of one. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct StopReport {
    failures: Arc<Mutex<Vec<String>>>,
    /// Triggered when the modules have no time left.
    is_over: Stop,
    by_reload: Option<StopByReload>,
}

/// Whether a reload stops the module.
#[derive(Clone)]
struct StopByReload {
    has_begun: Arc<AtomicBool>,
    /// Whether the module does not come back.
    is_removal: Arc<AtomicBool>,
    /// The stop of the daemon, which ends the exemption.
    daemon: Stop,
}

impl StopReport {
    /// Creates the report of one module. `daemon` is the stop of all modules.
    pub(crate) fn of_module(&self, daemon: Stop) -> StopReport {
        let by_reload = Some(StopByReload { has_begun: Arc::default(), is_removal: Arc::default(), daemon });
        StopReport { failures: Arc::default(), is_over: self.is_over.clone(), by_reload }
    }

    /// Adds work that a stop could not do.
    pub(crate) fn add(&self, failure: String) {
        lock(&self.failures).push(failure);
    }

    /// Removes and returns all failures.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.failures))
    }

    /// Ends the waits of all modules.
    pub(crate) fn end_waits(&self) {
        self.is_over.trigger();
    }

    /// Waits for `pause` and returns true, or returns false as soon as the modules have no time left.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        self.is_over.sleep(pause)
    }

    /// Notes that a reload stops the module, which removes it or starts it again.
    pub(crate) fn begin_stop_by_reload(&self, is_removal: bool) {
        if let Some(by_reload) = &self.by_reload {
            by_reload.is_removal.store(is_removal, Ordering::Release);
            by_reload.has_begun.store(true, Ordering::Release);
        }
    }

    /// Whether a reload removes the module.
    pub(crate) fn is_removal(&self) -> bool {
        self.by_reload.as_ref().is_some_and(|by_reload| by_reload.is_removal.load(Ordering::Acquire))
    }

    /// Whether the stop has no time limit: a reload stops the module, and the daemon continues.
    pub(crate) fn has_no_limit(&self) -> bool {
        let goes_on =
            |by_reload: &StopByReload| by_reload.has_begun.load(Ordering::Acquire) && !by_reload.daemon.is_triggered();
        self.by_reload.as_ref().is_some_and(goes_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_by_a_reload_has_no_limit_until_the_daemon_stops() {
        let (all, daemon) = (StopReport::default(), Stop::new());
        let module = all.of_module(daemon.clone());
        assert!(!module.has_no_limit());
        module.begin_stop_by_reload(true);
        assert!(module.clone().has_no_limit() && module.is_removal());
        daemon.trigger();
        assert!(!module.has_no_limit());
        all.begin_stop_by_reload(true);
        assert!(!all.has_no_limit() && !all.is_removal());
        module.add("a claim is left".to_owned());
        assert_eq!((all.take().len(), module.take().len()), (0, 1));
        all.end_waits();
        assert!(!module.wait(Duration::from_secs(60)), "the waits of all modules end");
    }
}
