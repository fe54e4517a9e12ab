//! Whether a broker can be reached.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::locks::lock;

/// Failed checks in a row after which appends are refused at once.
const FAILURES_TO_REFUSE: u32 = 2;
/// The failed checks must also span this time. A check can fail immediately, for instance when a broker closes the
/// connection, and then proves little.
const MIN_FAILING_TIME: Duration = Duration::from_secs(1);

/// The failed checks since the last success.
#[derive(Default)]
pub(super) struct CheckHistory {
    failures: u32,
    /// When the first of the failed checks began.
    failing_since: Option<Instant>,
}

impl CheckHistory {
    /// A broker answered a check, or confirmed a message.
    pub(super) fn succeeded(&mut self) {
        *self = CheckHistory::default();
    }

    /// A check that began at `started` failed.
    pub(super) fn failed(&mut self, started: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(started);
    }

    /// Whether the latest check failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// Whether appends are refused at once.
    pub(super) fn is_unreachable(&self, now: Instant) -> bool {
        let has_lasted = |since| now.saturating_duration_since(since) >= MIN_FAILING_TIME;
        self.failures >= FAILURES_TO_REFUSE && self.failing_since.is_some_and(has_lasted)
    }
}

/// Whether a broker can be reached, by the latest checks of the metadata thread.
pub(super) struct Reachability {
    /// Whether appends are refused at once.
    pub(super) is_refusing: AtomicBool,
    pub(super) state: Mutex<Result<(), String>>,
}

impl Reachability {
    pub(super) fn new() -> Self {
        Reachability {
            is_refusing: AtomicBool::new(false),
            state: Mutex::new(Err("no broker has responded yet".to_owned())),
        }
    }

    pub(super) fn reason(&self) -> String {
        let state = lock(&self.state);
        state.clone().err().unwrap_or_else(|| "no broker can be reached".to_owned())
    }

    pub(super) fn set(&self, outcome: Result<(), String>, is_refusing: bool) {
        let was_refusing = self.is_refusing.swap(is_refusing, Ordering::Relaxed);
        match (&outcome, was_refusing, is_refusing) {
            (Err(reason), false, true) => warn!("no broker can be reached, commits fail until one can: {reason}"),
            (Ok(()), true, _) => info!("a broker can be reached again"),
            _ => {}
        }
        *lock(&self.state) = outcome;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_unreachable_after_failures_that_took_time() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut checks = CheckHistory::default();
        assert!(!checks.is_unreachable(start));
        checks.failed(start);
        assert!(!checks.is_unreachable(at(60_000)), "one check");
        checks.failed(at(3));
        assert!(!checks.is_unreachable(at(6)), "two checks that failed at once");
        assert!(checks.is_unreachable(at(1_000)));
        checks.succeeded();
        assert!(!checks.has_failed() && !checks.is_unreachable(at(1_000)));
        checks.failed(at(1_000));
        checks.failed(at(2_000));
        assert!(checks.has_failed() && checks.is_unreachable(at(2_500)));
    }
}
