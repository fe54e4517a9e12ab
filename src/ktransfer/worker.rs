//! A thread that pushes one message at a time.
//!
//! All messages of one key have the same worker. A message that waits for its next attempt, or for a valid lease,
//! delays only its key: the worker continues with its other keys, and is busy only while a request is on the wire. It
//! blocks only on its own channel. While no backend is in use, or the limit on pushes is reached, it begins no attempt
//! and has no slot of the window; jobs that need no push continue.
//!
//! `slots` requests slots of the window, `endings` acknowledges and abandons jobs, `letters` ends them with a dead
//! letter.
//!
//! Invariants: no attempt begins without a valid lease; at most one request of a key is on the wire; the messages of a
//! key are attempted in the order of their partition; every job is acknowledged exactly once.

mod attempt_fields;
mod channels;
mod endings;
mod jitter;
mod key_queues;
mod letters;
mod pending_job;
mod push_attempt;
mod skips;
mod slots;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use log::{Level, info};

use super::backends::{BackendRotation, Choice, ChosenBackend, NextPush, PushVerdict, RetryWait};
use super::give_up::{GiveUpReason, LastAttempt};
use super::job::{Job, SettingsChange, WorkerMessage, WorkerReport};
use super::policy::{AttemptOutcome, NextStep};
use super::worker_context::{PushSettings, WorkerContext};
use crate::log_limited;
use attempt_fields::AttemptFields;
pub(super) use channels::WorkerChannels;
use jitter::Random;
use key_queues::{KeyQueues, QueueId};
use pending_job::PendingJob;
pub(super) use push_attempt::PushAttempt;
use slots::WorkerSlots;

/// Time after which a worker first rechecks a lease that is not valid; it doubles with each further check.
const FIRST_LEASE_CHECK: Duration = Duration::from_millis(50);
/// Largest number of doublings: many jobs that wait for long must not keep a processor busy with checks.
const MAX_LEASE_DOUBLINGS: u32 = 4;

/// One worker, which runs on its own thread.
pub(super) struct Worker {
    number: usize,
    context: Arc<WorkerContext>,
    channels: WorkerChannels,
    pusher: Box<dyn PushAttempt>,
    queues: KeyQueues<PendingJob>,
    /// Hashes keys. The hasher's keys are random, so that no client can choose message keys that share a queue.
    hasher: RandomState,
    rotation: BackendRotation,
    random: Random,
    /// Whether the next turn goes to a retry rather than to a first attempt, where both are possible.
    is_turn_of_retries: bool,
    /// The jobs whose dead letter is being stored, with their queues, by the ticket of the letter.
    letters: HashMap<u64, (QueueId, PendingJob)>,
    last_ticket: u64,
    slots: WorkerSlots,
    /// Until then no attempt begins, although one could be made: no backend is in use, or the limit on pushes is
    /// reached.
    held_until: Option<Instant>,
    /// The permit for the next push, if pushes are limited: from then on it may begin.
    permit: Option<Instant>,
    has_ended: bool,
}

impl Worker {
    /// Creates worker `number`, counted from 0.
    pub(super) fn new(
        number: usize,
        context: Arc<WorkerContext>,
        channels: WorkerChannels,
        pusher: Box<dyn PushAttempt>,
    ) -> Self {
        let slots = WorkerSlots::new(number, Arc::clone(&context), Arc::clone(&channels.workers));
        Worker {
            number,
            context,
            channels,
            pusher,
            queues: KeyQueues::new(),
            hasher: RandomState::new(),
            rotation: BackendRotation::starting_at(number),
            random: Random::new(),
            is_turn_of_retries: false,
            letters: HashMap::new(),
            last_ticket: 0,
            slots,
            held_until: None,
            permit: None,
            has_ended: false,
        }
    }

    /// Works until the dispatcher has ended.
    pub(super) fn run(mut self) {
        while !self.has_ended {
            // The step may have received the last message.
            if self.step() || self.has_ended {
                continue;
            }
            let now = Instant::now();
            let idle_end = self.pusher.close_idle(now);
            let next_push = self.held_until.or_else(|| self.queues.next_due());
            let next_letter = self.queues.next_unpushed(now);
            let received = match [next_push, next_letter, idle_end].into_iter().flatten().min() {
                Some(due) => self.channels.inbox.recv_deadline(due),
                None => self.channels.inbox.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(message) => self.receive(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Receives what has arrived, takes the next step of one job that needs no push, and makes one attempt, as far as
    /// that can be done now. Returns whether one of the two was done. Blocks only for the attempt.
    pub(super) fn step(&mut self) -> bool {
        self.receive_all();
        let has_ended_one = self.end_one_without_push();
        self.held_until = self.hold();
        if self.held_until.is_some() {
            self.slots.withdraw(self.queues.has_fresh());
            return has_ended_one;
        }
        self.work_once() || has_ended_one
    }

    /// Takes the next step of a job that needs no push, whether or not pushes may begin.
    fn end_one_without_push(&mut self) -> bool {
        if !self.queues.has_unpushed() {
            return false;
        }
        let Some((queue, pending)) = self.queues.take_unpushed(Instant::now()) else { return false };
        self.attempt_or_wait(queue, pending);
        true
    }

    /// Returns until when no attempt may begin, if there is something to attempt now.
    fn hold(&mut self) -> Option<Instant> {
        let settings = self.context.settings();
        if settings.backends.are_all_ready() && self.permit.is_none() {
            return None;
        }
        let now = Instant::now();
        let has_due = self.queues.next_due().is_some_and(|due| due <= now);
        if !has_due && (!self.queues.has_fresh() || self.slots.is_waiting()) {
            return None;
        }
        settings.backends.blocked_until(self.number, now).or(self.permit.filter(|due| now < *due))
    }

    /// Whether nothing but a message or the end of a wait can give this worker something to do.
    #[cfg(test)]
    pub(super) fn may_block(&self) -> bool {
        !self.queues.has_fresh_unpushed()
            && (!self.queues.has_fresh() || self.slots.is_waiting() || self.held_until.is_some())
    }

    fn receive_all(&mut self) {
        while let Ok(message) = self.channels.inbox.try_recv() {
            self.receive(message);
        }
    }

    fn receive(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Job(job) => self.enqueue(job),
            WorkerMessage::Recheck(claims) => self.abandon_what_is_over(&claims),
            WorkerMessage::Skip(order) => self.skip(&order),
            WorkerMessage::LetterEnded { ticket, result } => self.on_letter_ended(ticket, result),
            WorkerMessage::SlotGranted => self.slots.granted(),
            // Only wakes the worker.
            WorkerMessage::BackendReturned => {}
            WorkerMessage::SettingsChanged(change) => self.follow_change(change),
            WorkerMessage::End => self.has_ended = true,
        }
    }

    fn follow_change(&mut self, change: SettingsChange) {
        if change.has_new_rate {
            self.permit = None;
        }
        if change.retries_now {
            self.queues.end_waits(Instant::now());
        }
    }

    fn enqueue(&mut self, job: Box<Job>) {
        let key = job.message.key.as_ref().filter(|key| !key.is_empty() && self.context.config.serialize_by_key);
        let hash = key.map(|key| self.hasher.hash_one(key));
        if self.queues.push(hash, PendingJob::new(job)) {
            self.report(WorkerReport::Waits { worker: self.number });
        }
    }

    /// Makes one attempt, if one can be made now. First attempts and retries take turns.
    fn work_once(&mut self) -> bool {
        self.is_turn_of_retries = !self.is_turn_of_retries;
        let taken = match self.is_turn_of_retries {
            true => self.take_due().or_else(|| self.take_fresh()),
            // A job that waited for its lease becomes fresh when its wait is over.
            false => self.take_fresh().or_else(|| self.take_due()).or_else(|| self.take_fresh()),
        };
        let is_taken = taken.is_some();
        if let Some((queue, pending)) = taken {
            self.attempt_or_wait(queue, pending);
        } else if !self.queues.has_fresh() {
            self.slots.withdraw(false);
        }
        is_taken
    }

    fn take_due(&mut self) -> Option<(QueueId, PendingJob)> {
        self.queues.next_due()?;
        self.queues.take_due(Instant::now())
    }

    /// Takes a job for its first attempt, with a slot of the window.
    fn take_fresh(&mut self) -> Option<(QueueId, PendingJob)> {
        if !self.queues.has_fresh() || !self.slots.acquire() {
            return None;
        }
        let (queue, mut pending) = self.queues.take_fresh()?;
        pending.has_slot = true;
        self.context.show_window();
        Some((queue, pending))
    }

    fn release_slot(&self, pending: &mut PendingJob) {
        if std::mem::take(&mut pending.has_slot) {
            self.slots.release();
        }
    }

    fn attempt_or_wait(&mut self, queue: QueueId, mut pending: PendingJob) {
        if pending.is_over() {
            self.abandon(queue, pending);
        } else if !pending.job.assignment.may_store_letters() {
            self.wait_for_lease(queue, pending);
        } else if let Some(letter) = pending.letter.take() {
            self.store_letter(queue, pending, letter);
        } else if let Some(reason) = pending.job.unpushable {
            pending.job.assignment.note_started(pending.job.window, pending.job.message.offset);
            self.give_up(queue, pending, GiveUpReason::from(reason));
        } else {
            self.attempt(queue, pending);
        }
    }

    fn attempt(&mut self, queue: QueueId, mut pending: PendingJob) {
        self.slots.withdraw(self.queues.has_fresh());
        let attempt = pending.attempts.saturating_add(1);
        let (settings, chosen) = match self.choose_backend(&mut pending) {
            Ok(chosen) => chosen,
            Err(until) => return self.wait(queue, pending, until.saturating_duration_since(Instant::now())),
        };
        let (server, job) = (settings.backends.server(chosen.index), &pending.job);
        job.assignment.note_started(job.window, job.message.offset);
        self.pusher.follow(&settings.profile);
        let url = self.pusher.url(job, server);
        let began = Instant::now();
        self.context.attempts.begin(self.number, job, attempt, server);
        let outcome = self.pusher.push(job, &url, attempt);
        self.context.attempts.end(self.number);
        let Some(outcome) = outcome else {
            // The end of the lease or of the claim ended the request. The message is not done, even if this was its
            // last attempt.
            self.end_push(&settings, chosen, PushVerdict::NotMade);
            return self.wait_for_lease(queue, pending);
        };
        let took = began.elapsed();
        (pending.attempts, pending.last_backend, pending.n_lease_waits) = (attempt, Some(Arc::clone(server)), 0);
        let config = &settings.config;
        let next = config.retry.next(&config.outcomes, attempt, &outcome, self.random.next());
        self.end_push(&settings, chosen, PushVerdict::new(&outcome, next, attempt, config.ejection.count_5xx));
        self.count(&outcome, next, took);
        let (module, number, job) = (&config.name, self.number, &pending.job);
        let fields = AttemptFields { job, url: &url, attempt, outcome: &outcome, took };
        match next {
            NextStep::Delivered => {
                info!("module [{module}]: worker[{number}] success push: {fields}");
                self.done(queue, pending);
            }
            NextStep::Retry(pause) => {
                let pause_ms = pause.as_millis();
                log_limited!(
                    Level::Warn,
                    "module [{module}]: worker[{number}] fail push, retry in {pause_ms}ms: {fields}"
                );
                self.context.attempts.note_failure(job, attempt, &outcome, server);
                pending.has_failure = true;
                self.park(queue, pending, pause);
            }
            NextStep::GiveUp(cause) => {
                if self.context.dead_letters.is_some() {
                    // For operators, while the message waits for its dead letter.
                    self.context.attempts.note_failure(job, attempt, &outcome, server);
                    pending.has_failure = true;
                }
                let last = LastAttempt { number: attempt, outcome: &outcome, url: &url, took };
                self.give_up(queue, pending, GiveUpReason::AfterAttempt(cause, last));
            }
        }
    }

    /// Returns the backend of the next push with the settings of the attempt, or until when no push may begin.
    fn choose_backend(&mut self, pending: &mut PendingJob) -> Result<(Arc<PushSettings>, ChosenBackend), Instant> {
        let (settings, now) = (self.context.settings(), Instant::now());
        if let Some(rate) = &settings.push_rate {
            let due = rate.permit(&mut self.permit, now);
            if now < due {
                return Err(due);
            }
        }
        let may_retry = settings.config.retry.may_retry_after(pending.attempts.saturating_add(1));
        let may_wait = pending.retry_wait.as_ref().is_none_or(|wait| settings.backends.may_wait(wait, now));
        let push = NextPush { last: None, may_retry, may_wait, random: self.random.next() };
        let last = pending.last_backend.as_deref();
        match self.context.choose_backend(&mut self.rotation, last, push, now) {
            (settings, Choice::Use(chosen)) => {
                (self.permit, pending.retry_wait) = (None, None);
                Ok((settings, chosen))
            }
            (_, Choice::WaitUntil(until)) => Err(until),
            (settings, Choice::WaitForOther) => {
                let begin = || last.and_then(|last| settings.backends.begin_retry_wait(last, now));
                pending.retry_wait = pending.retry_wait.take().or_else(begin);
                Err(RetryWait::next_look(now))
            }
        }
    }

    /// Ends a push at its backend, and wakes the workers that can go on because of it.
    fn end_push(&self, settings: &PushSettings, chosen: ChosenBackend, verdict: PushVerdict<'_>) {
        for worker in self.context.end_push(settings, chosen, verdict) {
            // Fails only if that worker has ended, and then the module ends.
            let _ = self.channels.workers[worker].send(WorkerMessage::BackendReturned);
        }
    }

    /// Lets a taken job wait for its lease.
    fn wait_for_lease(&mut self, queue: QueueId, mut pending: PendingJob) {
        let pause = FIRST_LEASE_CHECK * (1 << pending.n_lease_waits);
        pending.n_lease_waits = MAX_LEASE_DOUBLINGS.min(pending.n_lease_waits + 1);
        self.wait(queue, pending, pause);
    }

    /// Lets a taken job wait although its turn has come: for its lease, or for a backend. Without an attempt it has no
    /// slot meanwhile.
    fn wait(&mut self, queue: QueueId, mut pending: PendingJob, pause: Duration) {
        if pending.attempts == 0 {
            self.release_slot(&mut pending);
        }
        self.park(queue, pending, pause);
    }

    /// Lets the queue of a taken job wait for `pause`, or abandons the job if no attempt may follow.
    fn park(&mut self, queue: QueueId, mut pending: PendingJob, pause: Duration) {
        if pending.is_over() {
            return self.abandon(queue, pending);
        }
        self.report_wait(&mut pending);
        self.queues.park(queue, pending, Instant::now() + pause);
    }

    /// Reports that a job waits, once.
    fn report_wait(&self, pending: &mut PendingJob) {
        if !std::mem::replace(&mut pending.has_waited, true) {
            self.report(WorkerReport::Waits { worker: self.number });
        }
    }

    fn report(&self, report: WorkerReport) {
        // Never blocks, because the channel is unbounded. Fails only after the dispatcher has ended.
        let _ = self.channels.reports.send(report);
    }

    /// Counts an attempt, and counts the message if it is delivered.
    fn count(&self, outcome: &AttemptOutcome, next: NextStep, took: Duration) {
        let metrics = &self.context.metrics;
        metrics.push_seconds.observe(took.as_secs_f64());
        match (outcome, next) {
            (AttemptOutcome::Answered { .. }, NextStep::Delivered) => metrics.pushes_ok.inc(),
            (AttemptOutcome::Answered { .. }, _) => metrics.pushes_refused.inc(),
            (AttemptOutcome::Failed { .. } | AttemptOutcome::Impossible { .. }, _) => metrics.pushes_failed.inc(),
        }
        if next == NextStep::Delivered {
            metrics.delivered.inc();
        }
    }
}

#[cfg(test)]
mod tests;
