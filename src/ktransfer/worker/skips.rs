//! Passes over a message by the order of an operator.

use super::Worker;
use crate::ktransfer::give_up::skip;
use crate::ktransfer::job::{JobEnd, SkipOrder};

impl Worker {
    /// Passes over the message of the order if this worker has it. A message that was on the wire is in the queues
    /// again by now: the dispatcher has cut its push, or the push has ended.
    pub(super) fn skip(&mut self, order: &SkipOrder) {
        let ordered = self.queues.remove_where(|pending, _| order.is_for(&pending.job) && order.turn.take());
        for pending in ordered {
            skip(&self.context, &pending.job, pending.attempts, &order.by);
            self.acknowledge(pending, JobEnd::Done);
        }
    }
}
