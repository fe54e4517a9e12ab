//! Measures librdkafka without HTTP: a closed loop in this process keeps a fixed number of messages in flight.

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
    topic: Arc<str>,
    size: usize,
    acks: Acks,
    sender: Sender<(Instant, AppendResult)>,
    done: Receiver<(Instant, AppendResult)>,
}

impl ClosedLoop {
    fn append(&self) {
        let record = Record {
            topic: Arc::clone(&self.topic),
            partition: None,
            key: None,
            value: vec![b'x'; self.size],
            headers: Vec::new(),
            timestamp_ms: None,
        };
        self.producer.append(record, self.acks, Done(self.sender.clone(), Instant::now()));
    }

    /// Waits until one append has completed; returns its latency.
    fn wait_for_one(&self) -> Duration {
        let (started, outcome) = self.done.recv().expect("every append completes");
        outcome.expect("the message is stored");
        started.elapsed()
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

/// Measures appends to `topic` for `seconds`, with `in_flight` messages of `size` bytes in flight.
pub(crate) fn run(brokers: &str, topic: &str, in_flight: u32, size: usize, acks: Acks, seconds: u32) -> Measurement {
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10 << 20,
        max_in_flight: 10_240,
        timeout: Duration::from_secs(30),
    };
    let group = Supervisor::new("engine", Stop::new());
    let producer = broker::producer(&broker_config(brokers, Engine::Auto), config, &group)
        .expect("creating a producer needs no broker");
    // The channel has one place for each message in flight, so that a completion never blocks.
    let (sender, done) = bounded(in_flight as usize);
    let closed_loop = ClosedLoop { producer, topic: topic.into(), size, acks, sender, done };
    // The first append waits for the metadata of the topic, so it completes before the measurement.
    closed_loop.append();
    closed_loop.wait_for_one();

    let (started, cpu) = (Instant::now(), cpu_time(libc::RUSAGE_SELF));
    let latencies_us = closed_loop.run(in_flight, Duration::from_secs(seconds.into()));
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
