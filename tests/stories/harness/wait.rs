//! Waits for a condition, which is checked every 1 to 50 ms until a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The result of a condition: `true`, or `Some` value.
pub(crate) trait Condition {
    /// The type that [`wait_until`] returns.
    type Value;
    /// Returns the value; `None` if the condition does not hold yet.
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

/// Waits until the condition holds; returns its value. Panics with `description` when `deadline` has passed.
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

/// Waits until the condition is `Some`; returns its value, or `None` when `deadline` has passed.
pub(crate) fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        // The condition is checked once more after the deadline, so that a story does not fail only because the machine
        // stalled during the pause.
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

/// Sets the flag when it is dropped, also by a step that fails: threads that run until then do end.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
