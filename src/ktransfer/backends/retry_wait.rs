//! A retry that waits for another backend than the one that failed it. The rules are in `preference`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Interval at which a retry looks whether there is room.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The wait of one retry for another backend. It ends when it is dropped.
pub(crate) struct RetryWait {
    pub(super) since: Instant,
    pub(super) last: Arc<RetryTrack>,
    /// Number of retries of the module that wait.
    n_waiting: Arc<AtomicUsize>,
}

/// What a retry has to know of one backend.
#[derive(Debug)]
pub(super) struct RetryTrack {
    /// Number of retries that wait for another backend than this one.
    n_waiting: AtomicUsize,
    created: Instant,
    /// When the latest push there ended, in milliseconds after `created`.
    last_end_ms: AtomicU64,
}

impl RetryWait {
    /// Begins the wait of a retry whose latest attempt was at the backend of `last`.
    pub(super) fn begin(last: &Arc<RetryTrack>, n_waiting: &Arc<AtomicUsize>, now: Instant) -> RetryWait {
        last.n_waiting.fetch_add(1, Ordering::Relaxed);
        n_waiting.fetch_add(1, Ordering::Relaxed);
        RetryWait { since: now, last: Arc::clone(last), n_waiting: Arc::clone(n_waiting) }
    }

    /// Returns when the retry looks again.
    pub(crate) fn next_look(now: Instant) -> Instant {
        now + LOOK_INTERVAL
    }
}

impl Drop for RetryWait {
    fn drop(&mut self) {
        self.last.n_waiting.fetch_sub(1, Ordering::Relaxed);
        self.n_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RetryTrack {
    pub(super) fn new() -> Arc<RetryTrack> {
        let (n_waiting, last_end_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(RetryTrack { n_waiting, created: Instant::now(), last_end_ms })
    }

    pub(super) fn n_waiting(&self) -> usize {
        self.n_waiting.load(Ordering::Relaxed)
    }

    /// Notes that a push ended.
    pub(super) fn note_end(&self, now: Instant) {
        let ms = now.saturating_duration_since(self.created).as_millis();
        self.last_end_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns when the latest push ended; the time of the creation without one.
    pub(super) fn last_end(&self) -> Instant {
        self.created + Duration::from_millis(self.last_end_ms.load(Ordering::Relaxed))
    }
}
