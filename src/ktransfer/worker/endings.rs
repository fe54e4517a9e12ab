//! The end of a job: it is done, or abandoned because its claim has ended.

use std::sync::Arc;

use super::Worker;
use super::key_queues::QueueId;
use super::pending_job::PendingJob;
use crate::ktransfer::job::{Ack, Assignment, ClaimIds, ClaimPhase, JobEnd, WorkerReport};

impl Worker {
    /// Acknowledges a taken job as done: it was delivered, dropped, or its dead letter is stored.
    pub(super) fn done(&mut self, queue: QueueId, pending: PendingJob) {
        self.acknowledge(pending, JobEnd::Done);
        self.queues.finish(queue);
    }

    /// Abandons a taken job, and the later jobs with the same key that must not overtake it.
    pub(super) fn abandon(&mut self, queue: QueueId, pending: PendingJob) {
        // The dispatcher sends no job of a claim after it has moved the claim on, so the channel has the last of them.
        self.receive_all();
        self.abandon_queue(queue, pending);
    }

    fn abandon_queue(&mut self, queue: QueueId, pending: PendingJob) {
        for behind in self.queues.remove_behind(queue, |behind| behind.follows(&pending.job)) {
            self.acknowledge(behind, JobEnd::Abandoned);
        }
        self.acknowledge(pending, JobEnd::Abandoned);
        self.queues.finish(queue);
    }

    /// Abandons the jobs of these claims after which no attempt follows.
    pub(super) fn abandon_what_is_over(&mut self, claims: &ClaimIds) {
        // The claims of which a job of the present queue was abandoned: the later jobs of these must not overtake it.
        let mut broken: Vec<Arc<Assignment>> = Vec::new();
        let removed = self.queues.remove_where(|pending, is_first| {
            if is_first {
                broken.clear();
            }
            let assignment = &pending.job.assignment;
            if broken.iter().any(|claim| Arc::ptr_eq(claim, assignment)) {
                return true;
            }
            let is_over = claims.contains(&assignment.id()) && pending.is_over();
            // Nobody pushes a message of a log that is gone again, so none can overtake it.
            if is_over && assignment.is_of_present_log(pending.job.window) {
                broken.push(Arc::clone(assignment));
            }
            is_over
        });
        for pending in removed {
            self.acknowledge(pending, JobEnd::Abandoned);
        }
        self.abandon_letters(claims);
    }

    /// Abandons the jobs of these claims whose dead letters are being stored, if the claim has ended. While a claim is
    /// drained, a letter in flight may still be stored, like a push on the wire.
    fn abandon_letters(&mut self, claims: &ClaimIds) {
        let is_ended =
            |assignment: &Assignment| claims.contains(&assignment.id()) && assignment.phase() == ClaimPhase::Ended;
        let ended = self.letters.iter().filter(|(_, (_, pending))| is_ended(&pending.job.assignment));
        for ticket in ended.map(|(ticket, _)| *ticket).collect::<Vec<_>>() {
            if let Some((queue, pending)) = self.letters.remove(&ticket) {
                self.abandon_queue(queue, pending);
            }
        }
    }

    fn acknowledge(&self, mut pending: PendingJob, end: JobEnd) {
        self.release_slot(&mut pending);
        let PendingJob { job, has_waited, has_failure, .. } = pending;
        if has_failure {
            self.context.attempts.forget(&job);
        }
        let ack = Ack {
            worker: self.number,
            has_waited,
            partition: job.assignment.partition,
            generation: job.assignment.generation,
            window: job.window,
            offset: job.message.offset,
            end,
        };
        // Before the report: once all jobs are acknowledged, all their memory is returned.
        drop(job);
        self.report(WorkerReport::Ack(ack));
    }
}
