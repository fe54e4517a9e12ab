//! An append on its way from the producer to a worker, and the count of those that have not completed.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::broker::metadata_gate::SharedCompletion;
use crate::broker::{Acks, PartitionId, Record};
use crate::locks::lock;

/// Number of appends that workers have and that have not completed.
#[derive(Default)]
pub(super) struct Uncompleted {
    count: Mutex<usize>,
    changed: Condvar,
}

/// An append at a worker.
pub(super) struct ProduceJob<C> {
    pub(super) record: Record,
    pub(super) acks: Acks,
    pub(super) partition: PartitionId,
    pub(super) completion: SharedCompletion<C>,
    pub(super) deadline: Instant,
    /// A broker that had just lost the leadership may have appended it, so the next leader may have it too.
    pub(super) may_be_stored: bool,
}

impl Uncompleted {
    /// Counts one append more.
    pub(super) fn add(&self) {
        *lock(&self.count) += 1;
    }

    /// Counts one append as completed.
    pub(super) fn remove(&self) {
        *lock(&self.count) -= 1;
        self.changed.notify_all();
    }

    /// Waits at most `wait` until there is none.
    pub(super) fn wait_for_none(&self, wait: Duration) {
        let count = lock(&self.count);
        drop(self.changed.wait_timeout_while(count, wait, |count| *count > 0));
    }
}
