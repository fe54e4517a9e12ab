//! Retries that wait for another backend than the one that failed them.
//!
//! While a backend fails its pushes quickly and the others have their share of the workers, it is the only one with
//! room: without a wait, every retry would go to it again. So a retry looks for room at another backend at intervals,
//! as long as pushes end there, but not for ever. First attempts leave it some of the room that becomes free, or they
//! would take it first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Backend, Backends, NextPush};

/// How long a retry waits for another backend.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How long it waits while no push ends at another backend.
const MAX_QUIET: Duration = Duration::from_secs(1);
/// Interval at which it looks whether there is room.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The wait of one retry for another backend. It ends when it is dropped.
pub(crate) struct RetryWait {
    since: Instant,
    last: Arc<Backend>,
    n_waiting_retries: Arc<AtomicUsize>,
}

impl RetryWait {
    /// Returns when the retry looks again.
    pub(crate) fn next_look(now: Instant) -> Instant {
        now + LOOK_INTERVAL
    }
}

impl Drop for RetryWait {
    fn drop(&mut self) {
        self.last.n_waiting_retries.fetch_sub(1, Ordering::Relaxed);
        self.n_waiting_retries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// When the latest push at a backend ended.
#[derive(Debug)]
pub(super) struct LastEnd {
    base: Instant,
    /// Milliseconds after `base`.
    at_ms: AtomicU64,
}

impl Default for LastEnd {
    fn default() -> Self {
        LastEnd { base: Instant::now(), at_ms: AtomicU64::new(0) }
    }
}

impl LastEnd {
    pub(super) fn note(&self, now: Instant) {
        let ms = now.saturating_duration_since(self.base).as_millis();
        self.at_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns the time; that of the creation without a push.
    fn get(&self) -> Instant {
        self.base + Duration::from_millis(self.at_ms.load(Ordering::Relaxed))
    }
}

impl NextPush {
    /// Whether the push, for which the backend at `index` was found, waits for another one. `n_usable`: number of
    /// backends in use.
    pub(super) fn waits_for_other(&self, index: Option<usize>, n_usable: usize) -> bool {
        self.may_wait && n_usable > 1 && index.is_some() && index == self.last
    }
}

impl Backends {
    /// Begins the wait of a retry whose latest attempt was at `last`; `None` if that is no backend any more.
    pub(crate) fn begin_retry_wait(&self, last: &str, now: Instant) -> Option<RetryWait> {
        let last = Arc::clone(&self.backends[self.index_of(last)?]);
        last.n_waiting_retries.fetch_add(1, Ordering::Relaxed);
        self.n_waiting_retries.fetch_add(1, Ordering::Relaxed);
        Some(RetryWait { since: now, last, n_waiting_retries: Arc::clone(&self.n_waiting_retries) })
    }

    /// Whether a retry may wait longer.
    pub(crate) fn may_wait(&self, wait: &RetryWait, now: Instant) -> bool {
        let others = self.backends.iter().filter(|backend| !Arc::ptr_eq(backend, &wait.last));
        let quiet_since =
            others.map(|backend| backend.last_end.get()).max().map_or(wait.since, |at| at.max(wait.since));
        now < wait.since + MAX_WAIT && now < quiet_since + MAX_QUIET
    }

    /// Whether the room of a backend is kept for retries of others: up to half of its share.
    pub(super) fn is_kept_for_retries(&self, index: usize, n_usable: usize) -> bool {
        let n_waiting = self.n_waiting_retries.load(Ordering::Relaxed);
        if n_waiting == 0 {
            return false;
        }
        let Backend { n_under_way, n_waiting_retries, .. } = &*self.backends[index];
        let n_of_others = n_waiting.saturating_sub(n_waiting_retries.load(Ordering::Relaxed));
        let share = self.share(n_usable);
        let n_kept = n_of_others.min(share.div_ceil(2));
        share <= n_under_way.load(Ordering::Relaxed) + n_kept
    }
}
