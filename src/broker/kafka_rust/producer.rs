//! Appends through the `kafka` crate.
//!
//! A few workers, each with a client of its own, send the messages ([`super::produce_worker`]). A partition always
//! belongs to the same worker, which keeps the order of its messages, also when its leader changes. A leader that does
//! not respond delays all partitions of each worker that waits for it, but not those of the other workers.

use std::num::NonZeroI32;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};

use super::metadata::KafkaRustMetadata;
use super::produce_job::{ProduceJob, Uncompleted};
use super::produce_worker::ProduceWorker;
use crate::broker::metadata_gate::{
    self, GateState, MetadataGate, NotSubmitted, PendingAppend, ProducerEngine, not_stored,
};
use crate::broker::partitioner::{Spread, fnv1a, partition_of};
use crate::broker::{Acks, AppendFailure, BrokerConfig, Completion, PartitionerKind, Producer, ProducerConfig, Record};
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// Number of worker threads.
const WORKERS: u32 = 4;
/// How long `close` waits, after the grace, until the workers have completed the remaining appends. The workers wait
/// for no response in this time.
const MAX_ABORT_TIME: Duration = Duration::from_secs(5);

/// Appends messages with the `kafka` crate.
pub(in crate::broker) struct KafkaRustProducer<C: Completion> {
    gate: Arc<MetadataGate<C, Workers<C>>>,
    abort: Stop,
}

/// The channels to the workers.
struct Workers<C> {
    partitioner: PartitionerKind,
    spread: Spread,
    /// One channel per worker, bounded by `max_in_flight`; when full, an append fails as `Full`.
    jobs: Vec<Sender<ProduceJob<C>>>,
    uncompleted: Arc<Uncompleted>,
}

impl<C: Completion> KafkaRustProducer<C> {
    /// Makes the producer and starts its threads; no broker need be reachable.
    pub(in crate::broker) fn new(broker: &BrokerConfig, config: &ProducerConfig, supervisor: &Supervisor) -> Self {
        let (state, abort, uncompleted) = (GateState::new(config), Stop::new(), Arc::<Uncompleted>::default());
        let max_jobs = config.max_in_flight.max(1);
        let start_worker = |number| {
            let (sender, jobs) = bounded(max_jobs);
            let uncompleted = Arc::clone(&uncompleted);
            let worker = ProduceWorker::new(broker, Arc::clone(&state), uncompleted, abort.clone(), jobs, max_jobs);
            // A task, which may end at any time: the worker ends when the producer is closed, and completes appends
            // until that close, even after the supervisor's stop.
            supervisor.spawn_task(format!("kafka-work-{number}"), move || worker.run());
            sender
        };
        let workers = Workers {
            partitioner: config.partitioner,
            spread: Spread::default(),
            jobs: (0..WORKERS).map(start_worker).collect(),
            uncompleted: Arc::clone(&uncompleted),
        };
        let metadata = KafkaRustMetadata::new(broker, abort.clone());
        let gate = metadata_gate::start(workers, state, config, metadata, broker.request_timeout, supervisor);
        KafkaRustProducer { gate, abort }
    }
}

impl<C: Completion> Producer<C> for KafkaRustProducer<C> {
    fn append(&self, record: Record, acks: Acks, completion: C) {
        self.gate.append(record, acks, completion);
    }

    fn close(&self, grace: Duration) {
        self.gate.close();
        self.gate.engine.uncompleted.wait_for_none(grace);
        // The workers then complete the remaining appends without waiting for a response.
        self.abort.trigger();
        self.gate.engine.uncompleted.wait_for_none(MAX_ABORT_TIME);
    }

    fn reachable(&self) -> Result<(), String> {
        self.gate.reachable()
    }

    fn topic_lookups(&self) -> u64 {
        self.gate.topic_lookups()
    }
}

impl<C: Completion> Drop for KafkaRustProducer<C> {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl<C: Completion> ProducerEngine<C> for Workers<C> {
    fn submit(&self, append: PendingAppend<C>, partition_count: i32) -> Result<(), NotSubmitted<C>> {
        let PendingAppend { record, acks, completion, deadline } = append;
        let failed = |completion, kind, reason| NotSubmitted::Failed((completion, not_stored(kind, reason)));
        if !record.headers.is_empty() || record.timestamp_ms.is_some() {
            let reason = "record headers and timestamps need kafka_client: native".to_owned();
            return Err(failed(completion, AppendFailure::Unsupported, reason));
        }
        let Some(count) = NonZeroI32::new(partition_count) else {
            let reason = format!("topic {} has no partitions", record.topic);
            return Err(failed(completion, AppendFailure::UnknownTopic, reason));
        };
        let partition = record.partition.unwrap_or_else(|| match &record.key {
            Some(key) => partition_of(self.partitioner, key, count),
            None => self.spread.next(count),
        });
        let worker = fnv1a(record.topic.as_bytes()).wrapping_add(partition.cast_unsigned()) % WORKERS;
        let job = ProduceJob { record, acks, partition, completion, deadline, may_be_stored: false };
        // Counted before it is sent: the worker may complete the append before `try_send` has returned.
        self.uncompleted.add();
        self.jobs[worker as usize].try_send(job).map_err(|refused| {
            self.uncompleted.remove();
            match refused {
                TrySendError::Full(job) => {
                    failed(job.completion, AppendFailure::Full, "the producer's queue is full".to_owned())
                }
                TrySendError::Disconnected(job) => {
                    failed(job.completion, AppendFailure::Closed, "the producer has ended".to_owned())
                }
            }
        })
    }
}
