//! The engine alone in a closed loop: what Kafka's client itself can do with as many messages under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use kafka_http_wrapper::broker::{
    self, Acks, AppendResult, BrokerConfig, Completion, Engine, PartitionerKind, ProducerConfig, Record,
};
use kafka_http_wrapper::shutdown::Stop;
use kafka_http_wrapper::supervise::Supervisor;

use crate::load::{Row, cpu_time};

/// Tells the loop when the message was handed over and how it ended.
struct Done(Sender<(Instant, AppendResult)>, Instant);

impl Completion for Done {
    fn complete(self, outcome: AppendResult) {
        self.0.send((self.1, outcome)).expect("the loop listens until all have ended");
    }
}

pub(crate) fn run(brokers: &str, topic: &str, in_flight: u32, size: usize, acks: Acks, seconds: u32) -> Row {
    let broker = BrokerConfig {
        hosts: brokers.split(',').map(str::to_owned).collect(),
        engine: Engine::Auto,
        client_id: "bench".to_owned(),
        request_timeout: Duration::from_secs(5),
        settings: Default::default(),
    };
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10 << 20,
        max_in_flight: 10_240,
        timeout: Duration::from_secs(30),
    };
    let group = Supervisor::new("engine", Stop::new());
    let producer = broker::producer(&broker, config, &group).expect("a producer");
    // As many as are under way, so that sending never blocks.
    let (sender, done) = bounded(in_flight as usize);
    let topic: Arc<str> = topic.into();
    let append = || {
        let record = Record {
            topic: Arc::clone(&topic),
            partition: None,
            key: None,
            value: vec![b'x'; size],
            headers: Vec::new(),
            timestamp_ms: None,
        };
        producer.append(record, acks, Done(sender.clone(), Instant::now()));
    };
    // The first one waits for the topic to be looked up.
    append();
    done.recv().expect("it completes").1.expect("it is stored");

    let (started, cpu) = (Instant::now(), cpu_time(libc::RUSAGE_SELF));
    (0..in_flight).for_each(|_| append());
    let mut latencies_us: Vec<u32> = Vec::new();
    let mut left = in_flight;
    while left > 0 {
        let (handed_over, outcome) = done.recv().expect("it completes");
        outcome.expect("it is stored");
        latencies_us.push(u32::try_from(handed_over.elapsed().as_micros()).unwrap_or(u32::MAX));
        if started.elapsed() < Duration::from_secs(seconds.into()) {
            append();
        } else {
            left -= 1;
        }
    }
    let (took, cpu) = (started.elapsed(), cpu_time(libc::RUSAGE_SELF) - cpu);
    producer.close(Duration::from_secs(5));
    drop(producer);
    group.stop().trigger();
    group.join(Duration::from_secs(10));

    latencies_us.sort_unstable();
    let count = latencies_us.len();
    let percentile = |percent: usize| format!("{:.2}ms", f64::from(latencies_us[(count - 1) * percent / 100]) / 1e3);
    Row {
        rate: count as f64 / took.as_secs_f64(),
        p50: percentile(50),
        p99: percentile(99),
        cpu_us: [Some(cpu.as_secs_f64() * 1e6 / count as f64), None, None],
        daemon: None,
        troubles: String::new(),
    }
}
