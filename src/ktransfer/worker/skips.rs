//! Skips a message by the order of an operator.

use super::Worker;
use super::key_queues::QueueId;
use super::pending_job::PendingJob;
use crate::clock::unix_ms;
use crate::ktransfer::dead_letters::DeadLetterCause;
use crate::ktransfer::give_up::skip;
use crate::ktransfer::job::SkipOrder;

impl Worker {
    /// Skips the message of the order if this worker has it, with a dead letter if the module has a dead-letter topic
    /// and the order does not exclude it. A message that was on the wire is in the queues again by now: the dispatcher
    /// has cut its push, or the push has ended.
    pub(super) fn skip(&mut self, order: &SkipOrder) {
        let letters = self.context.dead_letters.clone().filter(|_| order.stores_letter);
        let Some((queue, pending)) = self.take_for(order, letters.is_some()) else { return };
        skip(&self.context, &pending.job, pending.attempts, order);
        let Some(letters) = letters else { return self.done(queue, pending) };
        let (status, error, attempts) = (None, None, pending.attempts);
        let detail = format!("skipped by the operator {}", order.by);
        let cause = DeadLetterCause { reason: "skipped", status, error, detail, attempts, time_ms: unix_ms() };
        self.begin_letter(queue, pending, Box::new(letters.begin(cause)));
    }

    /// Takes the job of the order, and the turn of the order. If that was cancelled, the job stays where it is, with
    /// its pause. A message that waits for its dead letter was given up already: only an order without a letter ends
    /// it.
    fn take_for(&mut self, order: &SkipOrder, has_letter: bool) -> Option<(QueueId, PendingJob)> {
        let is_wanted = |pending: &PendingJob| {
            order.is_for(&pending.job) && !(has_letter && pending.letter.is_some()) && order.turn.take()
        };
        let on_its_way = self.letters.iter().find(|(_, (_, pending))| is_wanted(pending)).map(|(ticket, _)| *ticket);
        match on_its_way {
            // The result of the letter no longer matters; it may still be stored.
            Some(ticket) => self.letters.remove(&ticket),
            None => self.queues.take_where(is_wanted),
        }
    }
}
