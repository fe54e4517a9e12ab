//! Measures one ktransfer that pushes a topic from its beginning to its end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use kafka_http_wrapper::broker::{
    self, Acks, AppendResult, Completion, Engine, PartitionerKind, Producer, ProducerConfig, Record,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::Supervisor;

use crate::MESSAGE_BYTES;
use crate::harness::engine::broker_config;
use crate::harness::{Cluster, Ktransfer, configs, unique, wait_until};
use crate::sink::Sink;

/// Deadline for a run.
const DEADLINE: Duration = Duration::from_secs(300);
/// Interval at which the number of delivered messages is read.
const INTERVAL: Duration = Duration::from_millis(20);
/// Messages that are on their way while the topic is filled.
const IN_FLIGHT: usize = 1_000;
/// Number of different random keys.
const KEYS: u64 = 1_000_000;

/// The figures of one row.
#[derive(Default)]
pub(crate) struct Measurement {
    /// Messages per second.
    pub(crate) rate: f64,
    /// CPU time of the client for a message, in microseconds.
    pub(crate) cpu_us: Option<f64>,
    /// Highest resident memory in MiB, and number of threads.
    pub(crate) daemon: Option<(u64, u64)>,
}

impl Measurement {
    pub(crate) fn print_heading() {
        println!("{:<20} {:>7} {:>10} {:>8} {:>9} {:>8}", "", "workers", "messages/s", "CPU us", "RSS", "threads");
    }

    pub(crate) fn print(&self, name: &str, workers: usize) {
        let cpu = self.cpu_us.map_or_else(String::new, |us| format!("{us:.1}"));
        let (rss, threads) = match self.daemon {
            Some((mib, threads)) => (format!("{mib} MiB"), threads.to_string()),
            None => Default::default(),
        };
        println!("{name:<20} {workers:>7} {:>10.0} {cpu:>8} {rss:>9} {threads:>8}", self.rate);
    }

    /// Returns the run with the median rate.
    pub(crate) fn median(mut runs: Vec<Measurement>) -> Measurement {
        runs.sort_by(|left, right| left.rate.total_cmp(&right.rate));
        let middle = runs.len() / 2;
        runs.swap_remove(middle)
    }
}

/// A topic that is filled, and the backend.
pub(crate) struct Transfer<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) topic: &'a str,
    pub(crate) n_messages: usize,
    pub(crate) sink: &'a Sink,
}

impl Transfer<'_> {
    /// Runs the program `binary` with a new module, which begins at the first message, until all are delivered. The
    /// first twentieth of the messages is not measured: meanwhile the connections are opened.
    pub(crate) fn run(&self, binary: &Path, workers: usize) -> Measurement {
        let name = unique("bench");
        let module = configs::module(self.topic, std::slice::from_ref(&self.sink.address))
            .set("worker_num", workers)
            .set("window_size", (2 * workers).max(200))
            .set("protocol.conn_timeout_ms", 10_000)
            .set("protocol.write_timeout_ms", 10_000)
            .set("waiting_queue_size", 4_096);
        let config = configs::ktransfer(self.cluster);
        let mut ktransfer = Ktransfer::start_binary(binary.to_owned(), config, &[(&name, module)]);
        let metric = format!("ktransfer_messages_total{{module=\"{name}\",outcome=\"delivered\"}}");
        let reach = |ktransfer: &Ktransfer, count: usize| {
            let began = Instant::now();
            loop {
                let delivered = ktransfer.metrics().value(&metric).unwrap_or(0) as usize;
                if delivered >= count {
                    return (delivered, Instant::now(), ktransfer.daemon.cpu_time());
                }
                assert!(began.elapsed() < DEADLINE, "{delivered} of {count} messages in {DEADLINE:?}");
                std::thread::sleep(INTERVAL);
            }
        };
        let (first, began, cpu) = reach(&ktransfer, self.n_messages / 20);
        let (last, ended, cpu_at_end) = reach(&ktransfer, self.n_messages);
        let count = (last - first) as f64;
        let daemon = (ktransfer.daemon.peak_resident_bytes() >> 20, ktransfer.daemon.threads());
        ktransfer.daemon.kill9();
        Measurement {
            rate: count / (ended - began).as_secs_f64(),
            cpu_us: Some((cpu_at_end - cpu).as_secs_f64() * 1e6 / count),
            daemon: Some(daemon),
        }
    }
}

/// Counts the messages of [`fill`] that are stored.
struct Stored(Sender<AppendResult>);

impl Completion for Stored {
    fn complete(self, outcome: AppendResult) {
        self.0.send(outcome).expect("the loop receives until all messages are stored");
    }
}

/// Appends `n_messages` messages with random keys to the topic.
pub(crate) fn fill(cluster: &Cluster, topic: &str, n_messages: usize) {
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10 << 20,
        max_in_flight: IN_FLIGHT * 2,
        timeout: Duration::from_secs(30),
    };
    let group = Supervisor::new("fill", Stop::new());
    let producer: Arc<dyn Producer<Stored>> =
        broker::producer(&broker_config(&cluster.brokers, Engine::Auto), config, &group)
            .expect("creating a producer needs no broker");
    let (sender, stored) = bounded(IN_FLIGHT);
    let topic_name: Arc<str> = topic.into();
    let mut random = 1_u64;
    for number in 0..n_messages {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let record = Record {
            topic: Arc::clone(&topic_name),
            partition: None,
            key: Some(((random >> 33) % KEYS).to_string().into_bytes()),
            value: Some(vec![b'x'; MESSAGE_BYTES]),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        producer.append(record, Acks::Leader, Stored(sender.clone()));
        if number >= IN_FLIGHT {
            stored.recv().expect("every append completes").expect("the message is stored");
        }
    }
    for _ in 0..n_messages.min(IN_FLIGHT) {
        stored.recv().expect("every append completes").expect("the message is stored");
    }
    wait_until(Duration::from_secs(30), "all messages are in the topic", || {
        cluster.message_count(topic) == n_messages as i64
    });
    producer.close(Duration::from_secs(5));
    group.stop().trigger();
    group.join(Duration::from_secs(10));
}
