//! Waiting for a condition, which is checked in short intervals up to a deadline.

use std::time::{Duration, Instant};

/// The result of a condition: `true`, or `Some` value.
pub(crate) trait Condition {
    /// What [`wait_until`] returns.
    type Value;
    /// The value, if the condition holds.
    fn value(self) -> Option<Self::Value>;
}

impl Condition for bool {
    type Value = ();
    fn value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Condition for Option<T> {
    type Value = T;
    fn value(self) -> Option<T> {
        self
    }
}

/// Returns when the condition holds; panics with its `description` once `deadline` has passed.
#[track_caller]
pub(crate) fn wait_until<C: Condition>(
    deadline: Duration,
    description: &str,
    mut condition: impl FnMut() -> C,
) -> C::Value {
    match poll(deadline, || condition().value()) {
        Some(value) => value,
        None => panic!("timed out after {:.1} s: {description}", deadline.as_secs_f64()),
    }
}

/// As [`wait_until`]; returns `None` once `deadline` has passed.
pub(crate) fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        // Checked once more after the deadline, so that a machine that stalled during the pause does not fail the
        // story.
        let is_last = started.elapsed() >= deadline;
        if let Some(value) = condition() {
            return Some(value);
        }
        if is_last {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
