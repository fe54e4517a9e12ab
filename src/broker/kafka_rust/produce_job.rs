//! An append on its way from the producer to a worker, and the number of appends that have not completed.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::broker::{Acks, PartitionId, Record};
use crate::locks::lock;

/// Counts the appends that were handed to workers and have not completed.
#[derive(Default)]
pub(super) struct Uncompleted {
    count: Mutex<usize>,
    changed: Condvar,
}

/// An append that the producer hands to a worker.
pub(super) struct ProduceJob<C> {
    pub(super) record: Record,
    pub(super) acks: Acks,
    pub(super) partition: PartitionId,
    pub(super) completion: C,
    pub(super) deadline: Instant,
    /// An earlier attempt may have stored the message: a broker may have appended and replicated it before losing the
    /// leadership of the partition.
    pub(super) may_be_stored: bool,
}

impl Uncompleted {
    /// Counts one more append.
    pub(super) fn add(&self) {
        *lock(&self.count) += 1;
    }

    /// Counts one append as completed.
    pub(super) fn remove(&self) {
        *lock(&self.count) -= 1;
        self.changed.notify_all();
    }

    /// Waits until every append has completed, at most `wait`.
    pub(super) fn wait_for_none(&self, wait: Duration) {
        let count = lock(&self.count);
        drop(self.changed.wait_timeout_while(count, wait, |count| *count > 0));
    }
}
