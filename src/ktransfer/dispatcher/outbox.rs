//! Hands jobs to the workers, and decides when further messages are to be read.
//!
//! A job with a key goes to the worker of its key at once; there it may queue behind its key. A job without a key waits
//! here until a worker is idle, so that it does not wait behind a slow push while others are idle.
//!
//! Reading continues while a worker has few jobs. It does not stop if the latest messages all queue behind busy keys,
//! because the next ones may be for an idle worker. Beyond [`ReadAhead::enough`] such reading is slowed down, since it
//! takes memory and rarely helps if a topic has few keys.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::worker_loads::WorkerLoads;
use crate::broker::partitioner::fnv1a;
use crate::ktransfer::job::{Ack, Assignment, ClaimIds, Job, SkipOrder, WorkerMessage};

/// Reading continues while a worker has fewer jobs than this that it could push. One of them may be on the wire.
const WANTED_LOAD: usize = 4;
/// A job without a key is sent to a worker with fewer jobs than this, so only to an idle one: behind a push it would
/// wait as long as the push takes, while other workers may be idle.
const MAX_LOAD_FOR_UNKEYED: usize = 1;
/// Number of jobs without a key that may wait for a worker before reading stops; at least one for each worker.
const MIN_UNKEYED: usize = 64;
/// After this many messages of which none could be pushed at once, reading is slowed down.
const UNFED_MESSAGES: usize = 1024;
/// Pause between two batches while reading is slowed down.
const SLOW_READ_PAUSE: Duration = Duration::from_millis(10);

/// The jobs that are being handed to the workers.
pub(super) struct Outbox {
    workers: Arc<[Sender<WorkerMessage>]>,
    serialize_by_key: bool,
    loads: WorkerLoads,
    unkeyed: VecDeque<Box<Job>>,
    read_ahead: ReadAhead,
    /// The claims whose phase has changed since the latest `Recheck`.
    to_recheck: ClaimIds,
}

/// How far reading is ahead of pushing.
struct ReadAhead {
    /// Number of waiting jobs up to which reading is never slowed down.
    enough: usize,
    /// Jobs that wait at workers: behind their key, or for their next attempt.
    waiting: usize,
    /// Messages sent since the last acknowledgement of a job that never waited.
    unfed: usize,
    /// When the last batch was taken.
    last_batch: Instant,
}

impl Outbox {
    pub(super) fn new(workers: Arc<[Sender<WorkerMessage>]>, serialize_by_key: bool, window_size: usize) -> Outbox {
        Outbox {
            loads: WorkerLoads::new(workers.len()),
            workers,
            serialize_by_key,
            unkeyed: VecDeque::new(),
            read_ahead: ReadAhead {
                enough: window_size.max(UNFED_MESSAGES),
                waiting: 0,
                unfed: 0,
                last_batch: Instant::now(),
            },
            to_recheck: ClaimIds::new(),
        }
    }

    /// Hands a job over to the worker of its key, or to the next idle worker.
    pub(super) fn send(&mut self, job: Box<Job>) {
        self.read_ahead.unfed += 1;
        match job.message.key.as_deref() {
            Some(key) if !key.is_empty() && self.serialize_by_key => {
                self.send_to(fnv1a(key) as usize % self.workers.len(), job);
            }
            _ => {
                self.unkeyed.push_back(job);
                self.send_unkeyed();
            }
        }
    }

    /// Sends jobs without a key as long as a worker is idle.
    pub(super) fn send_unkeyed(&mut self) {
        while !self.unkeyed.is_empty() {
            let (worker, load) = self.loads.least();
            if MAX_LOAD_FOR_UNKEYED <= load {
                return;
            }
            if let Some(job) = self.unkeyed.pop_front() {
                self.send_to(worker, job);
            }
        }
    }

    fn send_to(&mut self, worker: usize, job: Box<Job>) {
        self.loads.add(worker);
        // Fails only after the workers have ended, and then the supervisor stops the module.
        let _ = self.workers[worker].send(WorkerMessage::Job(job));
    }

    /// Counts a job that waits at its worker.
    pub(super) fn on_wait(&mut self, worker: usize) {
        self.loads.remove(worker);
        self.read_ahead.waiting += 1;
    }

    /// Counts a job that a worker has acknowledged.
    pub(super) fn on_ack(&mut self, ack: &Ack) {
        if ack.has_waited {
            self.read_ahead.waiting -= 1;
        } else {
            self.loads.remove(ack.worker);
            self.read_ahead.unfed = 0;
        }
    }

    /// Returns when the next batch is to be taken; `None` while the workers have enough to do.
    pub(super) fn next_batch_at(&self) -> Option<Instant> {
        let (_, least) = self.loads.least();
        if WANTED_LOAD <= least || self.workers.len().max(MIN_UNKEYED) <= self.unkeyed.len() {
            return None;
        }
        let ReadAhead { enough, waiting, unfed, last_batch } = self.read_ahead;
        let is_slowed_down = enough <= waiting && UNFED_MESSAGES <= unfed;
        Some(if is_slowed_down { last_batch + SLOW_READ_PAUSE } else { last_batch })
    }

    /// Whether a job without a key waits for an idle worker.
    pub(super) fn has_unkeyed(&self) -> bool {
        !self.unkeyed.is_empty()
    }

    /// Notes that a batch was taken.
    pub(super) fn on_batch(&mut self, now: Instant) {
        self.read_ahead.last_batch = now;
    }

    /// Drops the jobs of a claim that no worker has and that are over. Returns how many these were.
    pub(super) fn drop_over(&mut self, assignment: &Arc<Assignment>) -> usize {
        self.to_recheck.insert(assignment.id());
        let before = self.unkeyed.len();
        self.unkeyed.retain(|job| {
            !Arc::ptr_eq(&job.assignment, assignment) || !assignment.is_over_for(job.window, job.message.offset, false)
        });
        before - self.unkeyed.len()
    }

    /// Takes the job that is to be skipped, if no worker has it.
    pub(super) fn take_unsent(&mut self, order: &SkipOrder) -> Option<Box<Job>> {
        let place = self.unkeyed.iter().position(|job| order.is_for(job))?;
        self.unkeyed.remove(place)
    }

    /// Sends the job that is to be skipped to a worker, if no worker has it, so that it can store its dead letter.
    pub(super) fn send_unsent(&mut self, order: &SkipOrder) {
        if let Some(job) = self.take_unsent(order) {
            let (worker, _) = self.loads.least();
            self.send_to(worker, job);
        }
    }

    /// Sends one `Recheck` to each worker if the phase of a claim has changed: the workers then abandon its jobs.
    pub(super) fn send_recheck(&mut self) {
        if self.to_recheck.is_empty() {
            return;
        }
        let claims = Arc::new(std::mem::take(&mut self.to_recheck));
        for worker in &*self.workers {
            let _ = worker.send(WorkerMessage::Recheck(Arc::clone(&claims)));
        }
    }

    /// Ends all workers.
    pub(super) fn end_workers(&self) {
        for worker in &*self.workers {
            let _ = worker.send(WorkerMessage::End);
        }
    }
}
