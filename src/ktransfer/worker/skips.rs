//! Passes over a message by the order of an operator.

use std::time::Instant;

use super::Worker;
use crate::clock::unix_ms;
use crate::ktransfer::dead_letters::DeadLetterCause;
use crate::ktransfer::give_up::skip;
use crate::ktransfer::job::SkipOrder;

impl Worker {
    /// Passes over the message of the order if this worker has it, with a dead letter if the module has a dead-letter
    /// topic. A message that was on the wire is in the queues again by now: the dispatcher has cut its push, or the push
    /// has ended.
    pub(super) fn skip(&mut self, order: &SkipOrder) {
        let Some((queue, pending)) = self.queues.take_where(|pending| order.is_for(&pending.job)) else { return };
        if !order.turn.take() {
            return self.queues.park(queue, pending, Instant::now());
        }
        skip(&self.context, &pending.job, pending.attempts, &order.by);
        match &self.context.dead_letters {
            None => self.done(queue, pending),
            Some(letters) => {
                let (status, error) = (None, None);
                let (attempts, detail) = (pending.attempts, format!("skipped by the operator {}", order.by));
                let cause = DeadLetterCause { reason: "skipped", status, error, detail, attempts, time_ms: unix_ms() };
                let letter = Box::new(letters.begin(cause));
                self.store_letter(queue, pending, letter);
            }
        }
    }
}
