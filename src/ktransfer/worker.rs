//! A thread that pushes one message at a time.
//!
//! All messages of one key have the same worker. A message that waits for its next attempt, or for a valid lease, holds
//! up its key alone: the worker goes on with its other keys, and is busy only while a request is on the wire. It blocks
//! on its own channel only.
//!
//! Invariants: no attempt begins without a valid lease; at most one request of a key is on the wire; the messages of a
//! key are attempted in the order of their partition; every job is acknowledged exactly once.

mod attempt_fields;
mod channels;
mod jitter;
mod key_queues;
mod pending_job;
mod skips;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use log::{Level, info};

use super::backend_client::{PushEnd, Pusher};
use super::backends::BackendRotation;
use super::give_up::{GiveUpReason, LastAttempt, give_up};
use super::job::{Ack, Assignment, ClaimIds, Job, JobEnd, WorkerMessage, WorkerReport};
use super::policy::{AttemptOutcome, NextStep};
use super::window_slots::{Acquired, Left};
use super::worker_context::WorkerContext;
use crate::log_limited;
use attempt_fields::AttemptFields;
pub(super) use channels::WorkerChannels;
use jitter::Random;
use key_queues::{KeyQueues, QueueId};
use pending_job::PendingJob;

/// Interval at which a worker checks a lease that is not valid at the moment.
const LEASE_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// One worker, which runs on its own thread.
pub(super) struct Worker {
    number: usize,
    context: Arc<WorkerContext>,
    channels: WorkerChannels,
    pusher: Box<dyn PushAttempt>,
    queues: KeyQueues<PendingJob>,
    /// Hashes keys. Its keys are random, so that nobody can choose message keys that share a queue.
    hasher: RandomState,
    rotation: BackendRotation,
    random: Random,
    /// Whether the next turn goes to a retry rather than to a first attempt, where both are possible.
    is_turn_of_retries: bool,
    slot: SlotRequest,
    /// Whether this worker has given up a slot, or its registration for one, because of a retry.
    has_left_slot_queue: bool,
    /// Number of grants of a slot that are on their way although the slot was returned already.
    void_grants: usize,
    has_ended: bool,
}

/// Makes the attempts of one worker.
pub(super) trait PushAttempt: Send {
    /// Returns the url to which the message of `job` is pushed at `server`, for the request and for the log.
    fn url(&self, job: &Job, server: &str) -> String;

    /// Makes an attempt and returns its outcome; `None` if the claim or its lease prevented or ended it, so that the
    /// attempt does not count. `attempt` counts from 1.
    fn push(&mut self, job: &Job, url: &str, attempt: u32) -> Option<AttemptOutcome>;

    /// Closes the connections kept from earlier pushes if they have been idle for too long; returns when they will be,
    /// or `None` if there are none.
    fn close_idle(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}

impl PushAttempt for Pusher {
    fn url(&self, job: &Job, server: &str) -> String {
        Pusher::url(self, job, server)
    }

    fn push(&mut self, job: &Job, url: &str, attempt: u32) -> Option<AttemptOutcome> {
        match Pusher::push(self, job, url, attempt) {
            PushEnd::Attempted(outcome) => Some(outcome),
            PushEnd::NotBegun | PushEnd::Aborted => None,
        }
    }

    fn close_idle(&mut self, now: Instant) -> Option<Instant> {
        Pusher::close_idle(self, now)
    }
}

/// Whether a worker waits for a slot of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotRequest {
    /// It does not.
    None,
    /// It is registered, or the grant is on its way.
    Waiting,
    /// It has a slot for its next first attempt.
    Granted,
}

impl Worker {
    /// Creates worker `number`, counted from 0.
    pub(super) fn new(
        number: usize,
        context: Arc<WorkerContext>,
        channels: WorkerChannels,
        pusher: Box<dyn PushAttempt>,
    ) -> Self {
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
            slot: SlotRequest::None,
            has_left_slot_queue: false,
            void_grants: 0,
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
            let idle_end = self.pusher.close_idle(Instant::now());
            let received = match self.queues.next_due().into_iter().chain(idle_end).min() {
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

    /// Receives what has arrived, and makes one attempt if one can be made now. Returns whether one was made. Blocks
    /// only for the attempt.
    pub(super) fn step(&mut self) -> bool {
        self.receive_all();
        self.work_once()
    }

    /// Whether nothing but a message or the end of a wait can give this worker something to do.
    #[cfg(test)]
    pub(super) fn may_block(&self) -> bool {
        !self.queues.has_fresh() || self.slot == SlotRequest::Waiting
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
            WorkerMessage::SlotGranted if self.void_grants > 0 => self.void_grants -= 1,
            WorkerMessage::SlotGranted => self.slot = SlotRequest::Granted,
            WorkerMessage::Skip(order) => self.skip(&order),
            WorkerMessage::End => self.has_ended = true,
        }
    }

    fn enqueue(&mut self, job: Box<Job>) {
        let key = job.message.key.as_ref().filter(|key| !key.is_empty() && self.context.config.serialize_by_key);
        let hash = key.map(|key| self.hasher.hash_one(key));
        let pending = PendingJob::new(job);
        if self.queues.push(hash, pending) {
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
            self.withdraw_slot_request();
        }
        is_taken
    }

    fn take_due(&mut self) -> Option<(QueueId, PendingJob)> {
        self.queues.next_due()?;
        self.queues.take_due(Instant::now())
    }

    /// Takes a job for its first attempt, with a slot of the window.
    fn take_fresh(&mut self) -> Option<(QueueId, PendingJob)> {
        if !self.queues.has_fresh() {
            return None;
        }
        match self.slot {
            SlotRequest::Granted => self.slot = SlotRequest::None,
            SlotRequest::Waiting => return None,
            SlotRequest::None => {
                let is_back = std::mem::take(&mut self.has_left_slot_queue);
                if let Acquired::Registered(granted) = self.context.slots.acquire(self.number, is_back) {
                    self.tell_granted(granted);
                    self.slot = SlotRequest::Waiting;
                    return None;
                }
            }
        }
        let (queue, mut pending) = self.queues.take_fresh()?;
        pending.has_slot = true;
        self.context.show_window();
        Some((queue, pending))
    }

    /// Returns a slot that was granted and ends the wait for one. Must be called before this worker does anything that
    /// takes long, since the slot would be unused meanwhile.
    fn withdraw_slot_request(&mut self) {
        self.has_left_slot_queue |= self.slot != SlotRequest::None && self.queues.has_fresh();
        let was_granted = match std::mem::replace(&mut self.slot, SlotRequest::None) {
            SlotRequest::None => false,
            SlotRequest::Granted => true,
            SlotRequest::Waiting => {
                let left = self.context.slots.leave(self.number);
                self.void_grants += usize::from(left == Left::Granted);
                left == Left::Granted
            }
        };
        if was_granted {
            self.tell_granted(self.context.slots.release());
        }
    }

    fn attempt_or_wait(&mut self, queue: QueueId, pending: PendingJob) {
        if pending.is_over() {
            self.abandon(queue, pending);
        } else if pending.job.assignment.may_push() {
            self.attempt(queue, pending);
        } else {
            self.wait_for_lease(queue, pending);
        }
    }

    fn attempt(&mut self, queue: QueueId, mut pending: PendingJob) {
        self.withdraw_slot_request();
        let attempt = pending.attempts.saturating_add(1);
        let servers = &self.context.config.backend_servers;
        let backend = self.rotation.next(servers.len(), pending.last_backend);
        let job = &pending.job;
        job.assignment.note_started(job.message.offset);
        let url = self.pusher.url(job, &servers[backend]);
        let began = Instant::now();
        self.context.attempts.begin(self.number, job, attempt, backend);
        let outcome = self.pusher.push(job, &url, attempt);
        self.context.attempts.end(self.number);
        let Some(outcome) = outcome else {
            // The end of the lease or of the claim ended the request. The message is not done, even if this was its
            // last attempt.
            return self.wait_for_lease(queue, pending);
        };
        let took = began.elapsed();
        (pending.attempts, pending.last_backend) = (attempt, Some(backend));
        let next = self.context.config.retry.next(attempt, &outcome, self.random.next());
        self.count(&outcome, next, took);
        let (module, number, job) = (&self.context.config.name, self.number, &pending.job);
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
                self.context.attempts.note_failure(job, attempt, &outcome, &servers[backend]);
                pending.is_on_board = true;
                self.park(queue, pending, pause);
            }
            NextStep::GiveUp => {
                let last = LastAttempt { number: attempt, outcome: &outcome, url: &url, took };
                let reason = GiveUpReason::after_attempt(last);
                give_up(&self.context, &job.message, job.method.as_deref(), reason);
                self.done(queue, pending);
            }
        }
    }

    fn wait_for_lease(&mut self, queue: QueueId, mut pending: PendingJob) {
        if pending.attempts == 0 {
            self.release_slot(&mut pending);
        }
        self.park(queue, pending, LEASE_CHECK_INTERVAL);
    }

    /// Lets the queue of a taken job wait for `pause`, or abandons the job if no attempt may follow.
    fn park(&mut self, queue: QueueId, mut pending: PendingJob, pause: Duration) {
        if pending.is_over() {
            return self.abandon(queue, pending);
        }
        if !pending.has_waited {
            pending.has_waited = true;
            self.report(WorkerReport::Waits { worker: self.number });
        }
        self.queues.park(queue, pending, Instant::now() + pause);
    }

    fn done(&mut self, queue: QueueId, pending: PendingJob) {
        self.acknowledge(pending, JobEnd::Done);
        self.queues.finish(queue);
    }

    /// Abandons a taken job, and the later jobs of its claim with the same key: they must not overtake it.
    fn abandon(&mut self, queue: QueueId, pending: PendingJob) {
        // The dispatcher sends no job of a claim after it has moved the claim on, so the channel has the last of them.
        self.receive_all();
        for behind in self.queues.remove_behind(queue, |behind| behind.is_of_claim(&pending.job)) {
            self.acknowledge(behind, JobEnd::Abandoned);
        }
        self.acknowledge(pending, JobEnd::Abandoned);
        self.queues.finish(queue);
    }

    /// Abandons the jobs of these claims after which no attempt follows.
    fn abandon_what_is_over(&mut self, claims: &ClaimIds) {
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
            if claims.contains(&assignment.id()) && pending.is_over() {
                broken.push(Arc::clone(assignment));
                return true;
            }
            false
        });
        for pending in removed {
            self.acknowledge(pending, JobEnd::Abandoned);
        }
    }

    fn acknowledge(&self, mut pending: PendingJob, end: JobEnd) {
        self.release_slot(&mut pending);
        let PendingJob { job, has_waited, is_on_board, .. } = pending;
        if is_on_board {
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

    fn report(&self, report: WorkerReport) {
        // Never blocks, because the channel is unbounded. Fails only after the dispatcher has ended.
        let _ = self.channels.reports.send(report);
    }

    fn release_slot(&self, pending: &mut PendingJob) {
        if std::mem::take(&mut pending.has_slot) {
            self.tell_granted(self.context.slots.release());
        }
    }

    fn tell_granted(&self, worker: Option<usize>) {
        if let Some(worker) = worker {
            // Fails only if that worker has ended, and then the module ends.
            let _ = self.channels.workers[worker].send(WorkerMessage::SlotGranted);
        }
    }

    /// Counts an attempt, and counts the message if it is delivered. [`give_up`] counts a message that is given up.
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
