//! The backends as operators see them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Backends;
use super::phases::Phase;
use crate::ktransfer::operations::{BackendState, BackendStatus};
use crate::locks::lock;

impl Backends {
    /// Returns the state of each backend, in the order of `backend_servers`.
    pub(crate) fn status(&self, now: Instant) -> Vec<BackendStatus> {
        let mut shared = self.lock();
        self.settle(&mut shared, now);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let status = |index: usize| {
            let backend = &self.backends[index];
            let last = lock(&backend.last_ejection);
            let ejection = last.as_ref();
            let (state, since) = match shared.phases.phase(index) {
                Phase::InUse => (BackendState::InUse, None),
                Phase::SlowStart { since, .. } => (BackendState::SlowStart, Some(since)),
                // Since the ejection, not since the latest probe.
                Phase::Ejected { since, .. } => (BackendState::Ejected, Some(ejection.map_or(since, |last| last.at))),
                Phase::Probed { since, .. } => (BackendState::Probed, Some(ejection.map_or(since, |last| last.at))),
            };
            BackendStatus {
                server: backend.server.to_string(),
                state,
                since_ms: since.map(|since| ms(now.saturating_duration_since(since))),
                next_probe_ms: shared.phases.due(index).map(|due| ms(due.saturating_duration_since(now))),
                on_wire: backend.n_under_way.load(Ordering::Relaxed),
                failures: backend.n_failures.load(Ordering::Relaxed),
                reason: ejection.map(|ejection| ejection.reason.clone()),
            }
        };
        (0..self.backends.len()).map(status).collect()
    }
}
