//! Shows the dead letters of a module that wait: a gauge counts them, and `/readyz` names the reason while one of them
//! could not be stored.

use std::sync::{Arc, Mutex};

use prometheus::IntGauge;

use crate::admin::Component;
use crate::locks::lock;

/// The letters of one module that wait. Clones share it.
#[derive(Clone)]
pub(super) struct LetterStatus {
    waiting: IntGauge,
    health: Component,
    /// Number of letters that wait after a failure. The lock is held for the update of `health` as well, so that the
    /// last update is the right one.
    n_failed: Arc<Mutex<usize>>,
}

/// A letter that waits, until the drop.
pub(super) struct WaitingLetter {
    status: LetterStatus,
    has_failed: bool,
}

impl LetterStatus {
    /// Creates the status of a module without letters.
    pub(super) fn new(waiting: IntGauge, health: Component) -> LetterStatus {
        health.set(Ok(()));
        LetterStatus { waiting, health, n_failed: Arc::default() }
    }

    /// Counts a letter that waits.
    pub(super) fn wait(&self) -> WaitingLetter {
        self.waiting.inc();
        WaitingLetter { status: self.clone(), has_failed: false }
    }
}

impl WaitingLetter {
    /// Shows why the letter could not be stored in `topic`.
    pub(super) fn fail(&mut self, topic: &str, reason: &str) {
        let mut n_failed = lock(&self.status.n_failed);
        *n_failed += usize::from(!std::mem::replace(&mut self.has_failed, true));
        self.status.health.set(Err(format!("dead letters cannot be stored in {topic}: {reason}")));
    }
}

impl Drop for WaitingLetter {
    fn drop(&mut self) {
        self.status.waiting.dec();
        if self.has_failed {
            let mut n_failed = lock(&self.status.n_failed);
            *n_failed -= 1;
            if *n_failed == 0 {
                self.status.health.set(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Health;

    #[test]
    fn not_ready_while_a_letter_waits_after_a_failure() {
        let health = Health::new();
        let gauge = IntGauge::new("g", "g").unwrap();
        let status = LetterStatus::new(gauge.clone(), health.component("dead letters of m"));
        assert_eq!(health.troubles(), []);
        let (mut first, mut second, third) = (status.wait(), status.wait(), status.wait());
        assert_eq!((gauge.get(), health.troubles().len()), (3, 0));
        first.fail("d", "no topic");
        second.fail("d", "no topic");
        second.fail("d", "too large");
        let reason = "dead letters cannot be stored in d: too large".to_owned();
        assert_eq!(health.troubles(), [("dead letters of m".to_owned(), reason)]);
        drop(second);
        drop(third);
        assert_eq!((gauge.get(), health.troubles().len()), (1, 1));
        drop(first);
        assert_eq!((gauge.get(), health.troubles().len()), (0, 0));
    }
}
