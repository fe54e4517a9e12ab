//! Measures an engine without HTTP: a closed loop in this process keeps a fixed number of messages in flight.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use kafka_http_wrapper::broker::{
    self, Acks, AppendResult, Completion, Engine, PartitionerKind, Producer, ProducerConfig, Record,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::Supervisor;

use crate::harness::engine::broker_config;
use crate::load::{Measurement, cpu_time};

/// Sends the start time and the outcome of an append to the closed loop.
struct Done(Sender<(Instant, AppendResult)>, Instant);

impl Completion for Done {
    fn complete(self, outcome: AppendResult) {
        self.0.send((self.1, outcome)).expect("the loop receives until all appends have completed");
    }
}

/// A loop that starts one append for each append that completes, so that the number in flight is constant.
struct ClosedLoop {
    producer: Arc<dyn Producer<Done>>,
    load: Load,
    topics: Vec<Arc<str>>,
    next_random: Cell<u64>,
    sender: Sender<(Instant, AppendResult)>,
    done: Receiver<(Instant, AppendResult)>,
}

impl ClosedLoop {
    fn append(&self) {
        let topic = self.random() as usize % self.topics.len();
        self.append_to(&self.topics[topic]);
    }

    fn append_to(&self, topic: &Arc<str>) {
        let random = self.random();
        let record = Record {
            topic: Arc::clone(topic),
            partition: None,
            key: self.load.has_keys.then(|| random.to_string().into_bytes()),
            value: Some(vec![b'x'; self.load.size]),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        self.producer.append(record, self.load.acks, Done(self.sender.clone(), Instant::now()));
    }

    /// The next number of a linear congruential generator (Knuth's MMIX), without its low bits.
    fn random(&self) -> u64 {
        let next =
            self.next_random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.next_random.set(next);
        next >> 33
    }

    /// Waits until one append has completed; returns its latency.
    fn wait_for_one(&self) -> Duration {
        let (started, outcome) = self.done.recv().expect("every append completes");
        outcome.expect("the message is stored");
        started.elapsed()
    }

    /// Appends a message to each topic, so that the metadata and the broker's log files of all topics are there, then
    /// runs the loop until connections and buffers have their size.
    fn warm_up(&self, in_flight: u32) {
        for topics in self.topics.chunks(in_flight as usize) {
            topics.iter().for_each(|topic| self.append_to(topic));
            for _ in topics {
                self.wait_for_one();
            }
        }
        self.run(in_flight, Duration::from_millis(500));
    }

    /// Runs the loop for `time`; returns the sorted latencies of all appends in microseconds.
    fn run(&self, in_flight: u32, time: Duration) -> Vec<u32> {
        let started = Instant::now();
        (0..in_flight).for_each(|_| self.append());
        let mut latencies_us = Vec::new();
        let mut left = in_flight;
        while left > 0 {
            latencies_us.push(u32::try_from(self.wait_for_one().as_micros()).unwrap_or(u32::MAX));
            if started.elapsed() < time {
                self.append();
            } else {
                left -= 1;
            }
        }
        latencies_us.sort_unstable();
        latencies_us
    }
}

/// The load of one measurement.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Messages in flight.
    pub(crate) in_flight: u32,
    /// Bytes of a value.
    pub(crate) size: usize,
    pub(crate) acks: Acks,
    /// Random keys; without keys the engine chooses the partition.
    pub(crate) has_keys: bool,
    pub(crate) seconds: u32,
}

/// Measures `engine` with appends to random ones of `topics`.
pub(crate) fn run(brokers: &str, engine: Engine, topics: &[String], load: Load) -> Measurement {
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10 << 20,
        max_in_flight: 10_240,
        timeout: Duration::from_secs(30),
    };
    let group = Supervisor::new("engine", Stop::new());
    let producer =
        broker::producer(&broker_config(brokers, engine), config, &group).expect("creating a producer needs no broker");
    // The channel has one place for each message in flight, so that a completion never blocks.
    let (sender, done) = bounded((load.in_flight as usize).max(topics.len()));
    let topics = topics.iter().map(|topic| Arc::from(&**topic)).collect();
    let closed_loop = ClosedLoop { producer, load, topics, next_random: Cell::new(1), sender, done };
    closed_loop.warm_up(load.in_flight);

    let (started, cpu) = (Instant::now(), cpu_time(libc::RUSAGE_SELF));
    let latencies_us = closed_loop.run(load.in_flight, Duration::from_secs(load.seconds.into()));
    let (took, cpu) = (started.elapsed(), cpu_time(libc::RUSAGE_SELF) - cpu);
    closed_loop.producer.close(Duration::from_secs(5));
    drop(closed_loop);
    group.stop().trigger();
    group.join(Duration::from_secs(10));

    let count = latencies_us.len();
    let percentile = |percent: usize| format!("{:.2}ms", f64::from(latencies_us[(count - 1) * percent / 100]) / 1e3);
    Measurement {
        rate: count as f64 / took.as_secs_f64(),
        p50: percentile(50),
        p99: percentile(99),
        cpu_us: [Some(cpu.as_secs_f64() * 1e6 / count as f64), None, None],
        daemon: None,
        errors: String::new(),
    }
}
