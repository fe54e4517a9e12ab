//! The jobs that end without a delivery: dropped, or with a dead letter.
//!
//! [`Worker::give_up`] is the one place where a worker ends a job that was not delivered. With a dead letter the job is
//! done only when the letter is stored; until then its key waits, the worker continues with its other keys, and the job
//! takes no slot of the window. A letter that could not be stored is sent again after a pause. A letter needs neither a
//! backend nor a permit to push, so it is sent even while the worker may begin no attempt.

use log::Level;

use super::Worker;
use super::key_queues::QueueId;
use super::pending_job::PendingJob;
use crate::ktransfer::dead_letters::{LetterReply, PendingLetter};
use crate::ktransfer::give_up::{GiveUpReason, drop_message};
use crate::ktransfer::job::{LetterError, WorkerReport};
use crate::log_limited;

impl Worker {
    /// Ends a taken job without a further push.
    pub(super) fn give_up(&mut self, queue: QueueId, pending: PendingJob, reason: GiveUpReason<'_>) {
        match &self.context.dead_letters {
            Some(letters) if reason.wants_dead_letter() => {
                let letter = Box::new(letters.begin(reason.dead_letter_cause()));
                self.begin_letter(queue, pending, letter);
            }
            _ => {
                drop_message(&self.context, &pending.job.message, pending.job.method.as_deref(), reason);
                self.done(queue, pending);
            }
        }
    }

    /// Ends a taken job with a dead letter.
    pub(super) fn begin_letter(&mut self, queue: QueueId, pending: PendingJob, letter: Box<PendingLetter>) {
        self.report(WorkerReport::AwaitsLetter(pending.place()));
        self.store_letter(queue, pending, letter);
    }

    /// Sends the dead letter of a taken job. The job stays taken until the letter is stored or has failed.
    pub(super) fn store_letter(&mut self, queue: QueueId, mut pending: PendingJob, letter: Box<PendingLetter>) {
        self.release_slot(&mut pending);
        self.report_wait(&mut pending);
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let reply = LetterReply { worker: self.channels.workers[self.number].clone(), ticket };
        let is_sent = letter.send(&pending.job.message, reply);
        pending.letter = Some(letter);
        if is_sent {
            self.letters.insert(ticket, (queue, pending));
        } else {
            self.retry_letter(queue, pending, LetterError::Busy);
        }
    }

    /// Handles the end of an attempt to store a dead letter.
    pub(super) fn on_letter_ended(&mut self, ticket: u64, result: Result<(), LetterError>) {
        // If the claim has ended meanwhile, the job is abandoned: the next owner of the partition repeats it.
        let Some((queue, pending)) = self.letters.remove(&ticket) else { return };
        match result {
            Ok(()) => {
                if let Some(letter) = &pending.letter {
                    letter.note_stored(&pending.job.message);
                }
                self.done(queue, pending);
            }
            Err(error) => self.retry_letter(queue, pending, error),
        }
    }

    fn retry_letter(&mut self, queue: QueueId, mut pending: PendingJob, error: LetterError) {
        let settings = self.context.settings();
        let retry = &settings.config.retry;
        let mut pause = retry.first_pause;
        if let (Some(letter), LetterError::Failed(reason)) = (&mut pending.letter, error) {
            pause = retry.pause(letter.note_failed(&reason), self.random.next());
            let (module, from, offset) =
                (&self.context.config.name, &pending.job.message.from, pending.job.message.offset);
            log_limited!(
                Level::Warn,
                "module [{module}]: cannot store the dead letter of topic={}, partition={}, transid={offset} in {}, \
                 retry in {}ms: {reason}",
                from.topic,
                from.partition,
                letter.topic(),
                pause.as_millis()
            );
        }
        self.park(queue, pending, pause);
    }
}
