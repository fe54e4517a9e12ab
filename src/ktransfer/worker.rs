//! A thread that pushes one message at a time, and retries it until it is delivered or given up.
//!
//! All messages of one key are queued, in order, for the same worker; while it retries a message, only its own queue
//! waits. Messages without a key, and all messages without `serialize_by_key`, are in a queue that all workers share.
//!
//! Invariants: no attempt begins without a valid lease; every job is acknowledged exactly once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use log::{Level, info};

use super::backend_client::{PushEnd, Pusher};
use super::backends::BackendRotation;
use super::give_up::{GiveUpReason, LastAttempt, give_up};
use super::group::Generation;
use super::job::{Ack, Assignment, Job, JobEnd};
use super::policy::{AttemptOutcome, NextStep};
use super::worker_context::WorkerContext;
use crate::broker::PartitionId;
use crate::log_limited;
use crate::random::random;

/// Interval at which a worker checks a lease that is not valid at the moment.
const LEASE_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// One worker, which runs on its own thread.
pub(super) struct Worker {
    number: usize,
    context: Arc<WorkerContext>,
    pusher: Pusher,
    rotation: BackendRotation,
    random: Random,
    /// Claims of which this worker abandoned a job. Later jobs of such a claim may have the key of the abandoned job,
    /// so they are abandoned too. At most one entry for each partition.
    abandoned: HashMap<PartitionId, Generation>,
}

impl Worker {
    /// Creates worker `number`, counted from 0.
    pub(super) fn new(number: usize, context: Arc<WorkerContext>) -> Self {
        Worker {
            number,
            pusher: context.http_client.pusher(number),
            context,
            rotation: BackendRotation::starting_at(number),
            random: Random::new(),
            abandoned: HashMap::new(),
        }
    }

    /// Works until the dispatcher has dropped both queues and they are empty. Takes jobs from its own queue first.
    pub(super) fn run(mut self, own_jobs: &Receiver<Job>, shared_jobs: &Receiver<Job>, acks: &Sender<Ack>) {
        while let Some(job) = next_job(own_jobs, shared_jobs) {
            let end = self.work(&job);
            let ack = Ack {
                partition: job.assignment.partition,
                generation: job.assignment.generation,
                window: job.window,
                offset: job.message.offset,
                size_bytes: job.size_bytes(),
                end,
            };
            // Never blocks, because the channel is unbounded. Fails only after the dispatcher has ended.
            if acks.send(ack).is_err() {
                return;
            }
        }
    }

    fn work(&mut self, job: &Job) -> JobEnd {
        let Assignment { partition, generation, .. } = *job.assignment;
        if self.abandoned.get(&partition) == Some(&generation) {
            return JobEnd::Abandoned;
        }
        let end = self.push_until_done(job);
        if end == JobEnd::Abandoned {
            self.abandoned.insert(partition, generation);
        }
        end
    }

    fn push_until_done(&mut self, job: &Job) -> JobEnd {
        let mut attempt = 1;
        loop {
            while !job.assignment.may_push() {
                if !job.assignment.stop.sleep(LEASE_CHECK_INTERVAL) {
                    return JobEnd::Abandoned;
                }
            }
            let server = self.rotation.next(&self.context.config.backend_servers);
            let url = self.pusher.url(job, server);
            let began = Instant::now();
            let outcome = match self.pusher.push(job, &url, attempt) {
                PushEnd::Attempted(outcome) => outcome,
                // The module's stop ended the request. The message is not done, even if this was its last attempt.
                PushEnd::NotBegun | PushEnd::Aborted if self.pusher.is_closed() => return JobEnd::Abandoned,
                // The claim was not held for a time, or has ended: nothing that the backend did.
                PushEnd::NotBegun | PushEnd::Aborted => continue,
            };
            let took = began.elapsed();
            let next = self.context.config.retry.next(attempt, &outcome, self.random.next());
            self.count(&outcome, next, took);
            let (module, number) = (&self.context.config.name, self.number);
            let fields = AttemptFields { job, url: &url, attempt, outcome: &outcome, took };
            match next {
                NextStep::Delivered => {
                    info!("module [{module}]: worker[{number}] success push: {fields}");
                    return JobEnd::Done;
                }
                NextStep::Retry(pause) => {
                    let pause_ms = pause.as_millis();
                    log_limited!(
                        Level::Warn,
                        "module [{module}]: worker[{number}] fail push, retry in {pause_ms}ms: {fields}"
                    );
                    if !job.assignment.ending.sleep(pause) {
                        return JobEnd::Abandoned;
                    }
                    // More than 2^32 attempts would take years.
                    attempt = attempt.saturating_add(1);
                }
                NextStep::GiveUp => {
                    let last = LastAttempt { number: attempt, outcome: &outcome, url: &url, took };
                    let reason = GiveUpReason::after_attempt(last);
                    give_up(&self.context, &job.message, job.method.as_deref(), reason);
                    return JobEnd::Done;
                }
            }
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

/// The fields of an attempt's log line, with the names that the original uses.
struct AttemptFields<'a> {
    job: &'a Job,
    url: &'a str,
    attempt: u32,
    outcome: &'a AttemptOutcome,
    took: Duration,
}

impl fmt::Display for AttemptFields<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttemptFields { job, url, attempt, outcome, took } = self;
        let message = &job.message;
        write!(
            formatter,
            "url={url}, topic={}, partition={}, transid={}, method={}, datalen={}, attempt={attempt}, \
             {outcome}, proctime={}ms",
            message.from.topic,
            message.from.partition,
            message.offset,
            job.method.as_deref().unwrap_or("*"),
            message.value.as_ref().map_or(0, Vec::len),
            took.as_millis()
        )
    }
}

/// Waits for the next job and returns it; `None` once both queues are closed and empty.
fn next_job<T>(own_jobs: &Receiver<T>, shared_jobs: &Receiver<T>) -> Option<T> {
    match own_jobs.try_recv() {
        Ok(job) => return Some(job),
        // The dispatcher drops all queues together, so the shared queue is closed too; it may still hold jobs.
        Err(TryRecvError::Disconnected) => return shared_jobs.recv().ok(),
        Err(TryRecvError::Empty) => {}
    }
    select! {
        recv(own_jobs) -> job => job.ok().or_else(|| shared_jobs.recv().ok()),
        recv(shared_jobs) -> job => job.ok().or_else(|| own_jobs.recv().ok()),
    }
}

/// Generates random numbers for the jitter of the back-off: xorshift64*, seeded by the standard library's random state.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Random(random() | 1)
    }

    /// Returns a number that is uniformly distributed in 0..1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high_bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        high_bits as f64 / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_spread_over_the_whole_range() {
        let mut random = Random::new();
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let number = random.next();
            assert!((0.0..1.0).contains(&number), "{number}");
            tenths[(number * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (700..1300).contains(count)), "{tenths:?}");
    }

    #[test]
    fn a_worker_takes_its_own_jobs_first_and_ends_when_both_queues_are_closed() {
        // next_job works for any type, so numbers stand for jobs.
        let (own_sender, own_jobs) = crossbeam_channel::unbounded();
        let (shared_sender, shared_jobs) = crossbeam_channel::unbounded();
        for number in 0..3 {
            shared_sender.send(number).unwrap();
            own_sender.send(number + 10).unwrap();
        }
        let first: Vec<i32> = (0..4).filter_map(|_| next_job(&own_jobs, &shared_jobs)).collect();
        assert_eq!(first, [10, 11, 12, 0]);
        drop((own_sender, shared_sender));
        let rest: Vec<i32> = std::iter::from_fn(|| next_job(&own_jobs, &shared_jobs)).collect();
        assert_eq!(rest, [1, 2]);
    }
}
