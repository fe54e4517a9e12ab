//! What a stop could not do: the reasons why it does not end with exit code 0.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::locks::lock;
use crate::shutdown::Stop;

/// The failures of the stops of all modules. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct StopReport {
    failures: Arc<Mutex<Vec<String>>>,
    /// Triggered when the modules have no time left.
    is_over: Stop,
}

impl StopReport {
    /// Adds what a stop could not do.
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
}
