//! A worker of the producer: batches the messages of its partitions and sends them, one produce request at a time.
//!
//! All messages that wait for one partition at one acks level go in one request, up to a limit. A batch that was sent
//! and got no response is not retried: its appends complete as [`Stored::Unknown`], and the client that sent the commit
//! decides whether to retry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use kafka::error::KafkaCode;

use super::guarded_client::{CallError, GuardedClient};
use super::produce_job::{ProduceJob, Uncompleted};
use super::produce_request::{
    KeyAndValue, MAX_CONFIRMING, QueueKey, SendDecision, failure_of, may_concern_one, produce,
};
use crate::broker::metadata_gate::{GateState, not_stored};
use crate::broker::{
    Acks, AppendError, AppendFailure, AppendResult, Appended, BrokerConfig, Completion, Offset, Stored,
};
use crate::shutdown::Stop;

/// Largest number of messages in one produce request.
const MAX_BATCH_MESSAGES: usize = 400;
/// Largest number of bytes in one produce request; a message that is larger than this goes alone.
const MAX_BATCH_BYTES: usize = 512 * 1024;
/// Pause before a partition is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long the code UNKNOWN_TOPIC_OR_PARTITION is retried before the messages of the partition fail.
const MAX_UNKNOWN: Duration = Duration::from_secs(2);

/// The messages of one partition at one acks level, in order.
struct PartitionQueue<C> {
    jobs: VecDeque<ProduceJob<C>>,
    not_before: Instant,
    /// The next call looks the leaders up first.
    reload: bool,
    /// Time of the first of the latest responses in a row that say that the partition does not exist.
    unknown_since: Option<Instant>,
    /// Number of messages still to be sent alone, since their batch was too large. So only a message that is too large
    /// by itself fails.
    one_by_one: usize,
}

/// A batch that is not sent yet or must be sent again. `records` has the keys and values of its jobs, shared with the
/// call that sends them.
struct UnsentBatch<C> {
    jobs: VecDeque<ProduceJob<C>>,
    records: Arc<Vec<KeyAndValue>>,
}

/// One worker: its client, and the queues of its partitions.
pub(super) struct ProduceWorker<C: Completion> {
    client: GuardedClient,
    state: Arc<GateState<C>>,
    uncompleted: Arc<Uncompleted>,
    abort: Stop,
    jobs: Receiver<ProduceJob<C>>,
    queues: HashMap<QueueKey, PartitionQueue<C>>,
    /// Largest number of jobs in `queues`; further jobs stay in the channel.
    max_queued: usize,
    queued_count: usize,
    request_timeout: Duration,
}

impl<C: Completion> ProduceWorker<C> {
    /// Makes a worker for the appends from the channel `jobs`; it holds at most `max_queued` of them at a time.
    pub(super) fn new(
        broker: &BrokerConfig,
        state: Arc<GateState<C>>,
        uncompleted: Arc<Uncompleted>,
        abort: Stop,
        jobs: Receiver<ProduceJob<C>>,
        max_queued: usize,
    ) -> Self {
        ProduceWorker {
            client: GuardedClient::new(broker, "kafka-call", abort.clone()),
            state,
            uncompleted,
            abort,
            jobs,
            queues: HashMap::new(),
            max_queued,
            queued_count: 0,
            request_timeout: broker.request_timeout,
        }
    }

    /// Runs until `abort` is triggered, or until the producer is dropped and all its appends have completed.
    pub(super) fn run(mut self) {
        while !self.abort.is_triggered() {
            self.take_available();
            if self.queued_count == 0 {
                select! {
                    recv(self.jobs) -> job => match job {
                        Ok(job) => self.enqueue(job),
                        Err(_) => return,
                    },
                    recv(self.abort.closed()) -> _ => break,
                }
                continue;
            }
            let now = Instant::now();
            let ready = self.queues.iter().filter(|(_, queue)| queue.not_before <= now);
            // Every append has the same timeout, so the earliest deadline is that of the message that has waited
            // longest.
            let next = ready.min_by_key(|(_, queue)| queue.jobs.front().map(|job| job.deadline));
            match next.map(|(key, _)| key.clone()) {
                Some(key) => self.serve(&key),
                None => {
                    let soonest = self.queues.values().map(|queue| queue.not_before).min().unwrap_or(now);
                    let _ = self.abort.sleep(soonest.saturating_duration_since(now));
                }
            }
        }
        self.complete_all_as_closed();
    }

    fn take_available(&mut self) {
        while self.queued_count < self.max_queued
            && let Ok(job) = self.jobs.try_recv()
        {
            self.enqueue(job);
        }
    }

    fn enqueue(&mut self, job: ProduceJob<C>) {
        let key = (Arc::clone(&job.record.topic), job.partition, job.acks);
        let queue = self.queues.entry(key).or_insert_with(|| PartitionQueue {
            jobs: VecDeque::new(),
            not_before: Instant::now(),
            reload: false,
            unknown_since: None,
            one_by_one: 0,
        });
        queue.jobs.push_back(job);
        self.queued_count += 1;
    }

    fn complete_all_as_closed(&mut self) {
        let queued = std::mem::take(&mut self.queues).into_values().flat_map(|queue| queue.jobs);
        let left: Vec<_> = queued.chain(self.jobs.try_iter()).collect();
        for job in left {
            let reason = "the producer was closed before the message was sent".to_owned();
            self.complete(job, Err(not_stored(AppendFailure::Closed, reason)));
        }
    }

    fn complete(&self, job: ProduceJob<C>, mut outcome: AppendResult) {
        if job.may_be_stored
            && let Err(error) = &mut outcome
        {
            error.stored = Stored::Unknown;
            // Every other kind would mean that nothing is stored.
            if error.kind != AppendFailure::Closed {
                error.kind = AppendFailure::TimedOut;
            }
        }
        if matches!(outcome, Ok(Appended { offset: Some(_), .. })) {
            self.state.confirmed();
        }
        job.completion.complete(outcome);
        self.uncompleted.remove();
    }

    /// Completes the expired appends of a partition, then sends its next batch.
    fn serve(&mut self, key: &QueueKey) {
        let Some(mut queue) = self.queues.remove(key) else { return };
        let now = Instant::now();
        while queue.jobs.front().is_some_and(|job| job.deadline <= now) {
            if let Some(job) = queue.jobs.pop_front() {
                self.queued_count -= 1;
                let reason = format!("the leader of {}/{} could not be reached in time", key.0, key.1);
                self.complete(job, Err(not_stored(AppendFailure::Unreachable, reason)));
            }
        }
        let batch = next_batch(&mut queue);
        if let Some(first) = batch.front() {
            self.queued_count -= batch.len();
            let left = first.deadline.saturating_duration_since(now);
            self.send(key, &mut queue, batch, left);
        }
        if !queue.jobs.is_empty() {
            self.queues.insert(key.clone(), queue);
        }
    }

    fn send(
        &mut self,
        key: &QueueKey,
        queue: &mut PartitionQueue<C>,
        mut jobs: VecDeque<ProduceJob<C>>,
        left: Duration,
    ) {
        let records: Vec<KeyAndValue> =
            jobs.iter_mut().map(|job| (job.record.key.take(), job.record.value.take())).collect();
        let decision = Arc::<SendDecision>::default();
        let records = Arc::new(records);
        let call = produce(key, Arc::clone(&records), std::mem::take(&mut queue.reload), left, Arc::clone(&decision));
        match self.client.call(left.min(MAX_CONFIRMING + self.request_timeout), call) {
            Ok(first_offset) => {
                queue.unknown_since = None;
                for (index, job) in jobs.into_iter().enumerate() {
                    let offset = first_offset.map(|first| first + index as Offset);
                    self.complete(job, Ok(Appended { partition: key.1, offset }));
                }
            }
            Err(CallError::Code(code)) => self.refused(key, queue, UnsentBatch { jobs, records }, code),
            Err(CallError::Unreachable(_)) => self.requeue(queue, UnsentBatch { jobs, records }),
            // The call may have sent the batch, or may still send it: a retry could store the messages twice.
            Err(error) if !decision.prevent() => {
                let kind = match self.abort.is_triggered() {
                    true => AppendFailure::Closed,
                    false => AppendFailure::TimedOut,
                };
                for job in jobs {
                    let reason = format!("no acknowledgement for {}/{}: {}", key.0, key.1, error.in_words());
                    self.complete(job, Err(AppendError { kind, stored: Stored::Unknown, reason }));
                }
                queue.not_before = Instant::now() + RETRY_PAUSE;
            }
            Err(_) => self.requeue(queue, UnsentBatch { jobs, records }),
        }
    }

    /// Puts a batch back to the front of its queue, to be sent again. The messages are certainly not stored, or are
    /// marked as `may_be_stored`.
    fn requeue(&mut self, queue: &mut PartitionQueue<C>, unsent: UnsentBatch<C>) {
        let jobs = unsent.into_jobs();
        self.queued_count += jobs.len();
        for job in jobs.into_iter().rev() {
            queue.jobs.push_front(job);
        }
        queue.reload = true;
        queue.not_before = Instant::now() + RETRY_PAUSE;
    }

    /// Handles an error code of the broker for a batch.
    fn refused(&mut self, key: &QueueKey, queue: &mut PartitionQueue<C>, mut unsent: UnsentBatch<C>, code: KafkaCode) {
        let (topic, partition, acks) = key;
        // With acks=-1 a broker also returns this code for a batch that it appended and that was not yet replicated.
        // The retry may then store the batch twice, but no message is lost.
        if code == KafkaCode::NotLeaderForPartition && *acks == Acks::All {
            unsent.jobs.iter_mut().for_each(|job| job.may_be_stored = true);
        }
        let now = Instant::now();
        let (kind, stored, reason) = match code {
            KafkaCode::LeaderNotAvailable
            | KafkaCode::NotLeaderForPartition
            | KafkaCode::BrokerNotAvailable
            | KafkaCode::NotEnoughReplicas => return self.requeue(queue, unsent),
            KafkaCode::UnknownTopicOrPartition => {
                // The crate returns this code for a partition without a leader, too.
                if now.duration_since(*queue.unknown_since.get_or_insert(now)) < MAX_UNKNOWN {
                    return self.requeue(queue, unsent);
                }
                (AppendFailure::UnknownTopic, Stored::No, format!("{topic}/{partition} does not exist"))
            }
            // One message of the batch may be the cause: each is sent alone.
            code if unsent.jobs.len() > 1 && may_concern_one(code) => {
                queue.one_by_one = unsent.jobs.len();
                self.requeue(queue, unsent);
                // The leader responded, so neither a pause nor a lookup is needed.
                queue.not_before = now;
                queue.reload = false;
                return;
            }
            KafkaCode::MessageSizeTooLarge | KafkaCode::InvalidMessageSize | KafkaCode::RecordListTooLarge => {
                let reason = format!(
                    "larger than the limit of the broker (message.max.bytes) or of topic {topic} (max.message.bytes)"
                );
                (AppendFailure::TooLarge, Stored::No, reason)
            }
            code => {
                let (kind, stored) = failure_of(code);
                (kind, stored, format!("not confirmed for {topic}/{partition}: {code:?}"))
            }
        };
        let error = self.state.reconsider(topic, AppendError { kind, stored, reason });
        for job in unsent.jobs {
            self.complete(job, Err(error.clone()));
        }
    }
}

impl<C> UnsentBatch<C> {
    /// Returns the jobs, with their keys and values put back.
    fn into_jobs(self) -> VecDeque<ProduceJob<C>> {
        // The records are copied only if an abandoned call still holds a reference to them.
        let records = Arc::try_unwrap(self.records).unwrap_or_else(|shared| (*shared).clone());
        let restored = |(mut job, (key, value)): (ProduceJob<C>, _)| {
            (job.record.key, job.record.value) = (key, value);
            job
        };
        self.jobs.into_iter().zip(records).map(restored).collect()
    }
}

fn next_batch<C>(queue: &mut PartitionQueue<C>) -> VecDeque<ProduceJob<C>> {
    let max = if queue.one_by_one > 0 { 1 } else { MAX_BATCH_MESSAGES };
    let mut bytes = 0;
    let mut batch = VecDeque::new();
    while batch.len() < max
        && let Some(job) = queue.jobs.front()
    {
        bytes += job.record.value_bytes() + job.record.key.as_ref().map_or(0, Vec::len);
        if !batch.is_empty() && bytes > MAX_BATCH_BYTES {
            break;
        }
        batch.extend(queue.jobs.pop_front());
    }
    queue.one_by_one = queue.one_by_one.saturating_sub(batch.len());
    batch
}
