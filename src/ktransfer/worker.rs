//! A thread that pushes one message at a time, and again until it is delivered or given up.
//!
//! Messages of one key all go to one worker's own queue, in order; a message that is being retried holds up
//! that queue and no other. Messages without a key wait in a queue that all workers share.
//!
//! Invariants: no attempt begins without a valid lease; every job is acknowledged exactly once.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use log::info;

use super::backends::Rotation;
use super::config::ModuleConfig;
use super::group::{Generation, Lease};
use super::job::{Ack, Assignment, Job, JobEnd};
use super::metrics::ModuleMetrics;
use super::policy::{Attempt, Next};
use super::push::Pusher;
use crate::broker::PartitionId;
use crate::log_limited;

/// How often a worker asks again for a lease that is not valid at the moment.
const LEASE_PAUSE: Duration = Duration::from_millis(50);

/// What the workers of a module share.
pub struct Shared {
    /// The module's configuration.
    pub config: ModuleConfig,
    /// Sends the requests.
    pub pusher: Pusher,
    /// Whether a push may begin.
    pub lease: Lease,
    /// What is counted.
    pub metrics: ModuleMetrics,
}

/// One worker.
pub struct Worker {
    number: usize,
    shared: Arc<Shared>,
    rotation: Rotation,
    random: Random,
    /// Claims of which a job was abandoned here. What is queued behind it may have its key, so it is abandoned as well.
    /// One entry a partition at most.
    abandoned: HashMap<PartitionId, Generation>,
}

impl Worker {
    /// Worker `number`, from 0.
    pub fn new(number: usize, shared: Arc<Shared>) -> Self {
        Worker {
            number,
            shared,
            rotation: Rotation::starting_at(number),
            random: Random::new(),
            abandoned: HashMap::new(),
        }
    }

    /// Works until the dispatcher has dropped both queues and they are empty. Of both, its own goes first.
    pub fn run(mut self, own: &Receiver<Job>, anyone: &Receiver<Job>, acks: &Sender<Ack>) {
        while let Some(job) = next_job(own, anyone) {
            let end = self.work(&job);
            let ack = Ack {
                partition: job.assignment.partition,
                generation: job.assignment.generation,
                window: job.window,
                offset: job.message.offset,
                size: job.size(),
                end,
            };
            // Never full: it has room for every job of the window. Nobody listens only after the dispatcher ended.
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
        for attempt in 1.. {
            while !job.assignment.may_push(&self.shared.lease) {
                if !job.assignment.stop.sleep(LEASE_PAUSE) {
                    return JobEnd::Abandoned;
                }
            }
            let server = self.rotation.next(&self.shared.config.backend_servers);
            let url = self.shared.pusher.url(job, server);
            let began = Instant::now();
            let outcome = self.shared.pusher.push(job, &url, attempt);
            let took = began.elapsed();
            if matches!(outcome, Attempt::Failed { .. }) && self.shared.pusher.is_cut() {
                // Ended by us. It must not use up the last retry: the message is not done.
                return JobEnd::Abandoned;
            }
            let next = self.shared.config.retry.next(attempt, &outcome, self.random.next());
            self.shared.count(&outcome, next, took);
            self.log(job, &url, attempt, &outcome, next, took);
            match next {
                Next::Delivered | Next::GiveUp => return JobEnd::Done,
                Next::Retry(pause) => {
                    if !job.assignment.ending.sleep(pause) {
                        return JobEnd::Abandoned;
                    }
                }
            }
        }
        // Only after four thousand million attempts, which take years.
        JobEnd::Abandoned
    }

    /// One line an attempt, as the original has it.
    fn log(&self, job: &Job, url: &str, attempt: u32, outcome: &Attempt, next: Next, took: Duration) {
        let config = &self.shared.config;
        let message = &job.message;
        let datalen = message.value.as_ref().map_or(0, Vec::len);
        let text = format_args!(
            "url={url}, topic={}, partition={}, transid={}, method={}, datalen={datalen}, attempt={attempt}, {outcome}, proctime={}ms",
            message.from.topic,
            message.from.partition,
            message.offset,
            job.method.as_deref().unwrap_or("*"),
            took.as_millis()
        );
        match next {
            Next::Delivered => info!("module [{}]: worker[{}] success push: {text}", config.name, self.number),
            Next::Retry(pause) => {
                let pause_ms = pause.as_millis();
                log_limited!(
                    log::Level::Warn,
                    "module [{}]: worker[{}] fail push, retry in {pause_ms}ms: {text}",
                    config.name,
                    self.number
                );
            }
            // Never limited: this is the only record of the message. Its place first, for a line is cut somewhere behind a long key.
            Next::GiveUp => log::warn!(
                "module [{}]: worker[{}] gives up, offset {} of {} is passed over: {text}, key={}",
                config.name,
                self.number,
                message.offset,
                message.from,
                message.key.as_deref().unwrap_or_default().escape_ascii()
            ),
        }
    }
}

impl Shared {
    fn count(&self, outcome: &Attempt, next: Next, took: Duration) {
        let metrics = &self.metrics;
        metrics.push_seconds.observe(took.as_secs_f64());
        match (outcome, next) {
            (Attempt::Answered { .. }, Next::Delivered) => metrics.pushes_ok.inc(),
            (Attempt::Answered { .. }, _) => metrics.pushes_refused.inc(),
            (Attempt::Failed { .. } | Attempt::Impossible { .. }, _) => metrics.pushes_failed.inc(),
        }
        match next {
            Next::Delivered => metrics.delivered.inc(),
            Next::GiveUp => metrics.given_up.inc(),
            Next::Retry(_) => {}
        }
    }
}

/// The next job; `None` when there will be none.
fn next_job<T>(own: &Receiver<T>, anyone: &Receiver<T>) -> Option<T> {
    match own.try_recv() {
        Ok(job) => return Some(job),
        // The dispatcher drops all queues together.
        Err(TryRecvError::Disconnected) => return anyone.recv().ok(),
        Err(TryRecvError::Empty) => {}
    }
    select! {
        recv(own) -> job => job.ok().or_else(|| anyone.recv().ok()),
        recv(anyone) -> job => job.ok().or_else(|| own.recv().ok()),
    }
}

/// Chance for the jitter: the numbers of xorshift64*, seeded by the standard library's random state.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Random(RandomState::new().hash_one(0u8) | 1)
    }

    /// Uniform in 0..1.
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
    fn chance_is_spread_over_all_of_its_range() {
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
    fn a_worker_takes_its_own_jobs_first_and_ends_when_both_queues_have_ended() {
        // The queues of jobs and this function know nothing of what a job is.
        let (own_sender, own) = crossbeam_channel::unbounded();
        let (anyone_sender, anyone) = crossbeam_channel::unbounded();
        for number in 0..3 {
            anyone_sender.send(number).unwrap();
            own_sender.send(number + 10).unwrap();
        }
        let first: Vec<i32> = (0..4).filter_map(|_| next_job(&own, &anyone)).collect();
        assert_eq!(first, [10, 11, 12, 0]);
        drop((own_sender, anyone_sender));
        let rest: Vec<i32> = std::iter::from_fn(|| next_job(&own, &anyone)).collect();
        assert_eq!(rest, [1, 2]);
    }
}
