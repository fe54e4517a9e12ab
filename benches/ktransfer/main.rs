//! How fast ktransfer is with a real broker: messages per second and CPU time per message, by the number of workers.
//!
//! `make bench-ktransfer`, or `cargo bench --bench ktransfer -- [MESSAGES [WORKERS...]]` where `wrk` is installed. The
//! messages have 200 bytes and random keys over 8 partitions. They go to one backend, nginx where it is installed, that
//! answers at once. Broker, backend and ktransfer share the machine, whose speed varies between runs, so the same run
//! also measures other clients with the same backend:
//!
//! - "ureq alone": the HTTP client of ktransfer without our transport, Kafka and order, on as many threads;
//! - "one per partition": the same with a thread for each partition, like a program without workers;
//! - "wrk": the load generator on as many connections, which shows the limit of the backend.
//!
//! With `LATENCY_MS=5` the backend takes 5 ms to answer. That is the case for which workers exist: a program that
//! pushes one message at a time waits meanwhile.
//!
//! With `BASELINE=FOLDER` the `ktransfer_bin` of that folder is measured in turns with this build.

#![allow(clippy::print_stdout, reason = "the benchmark prints its results")]

mod clients;
#[path = "../../tests/stories/harness/mod.rs"]
mod harness;
mod sink;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use harness::{Cluster, Program, binary};
use kafka_http_wrapper::daemon::raise_open_files;

use clients::{ureq_alone, wrk};
use sink::Sink;
use transfer::{Measurement, Transfer};

const PARTITIONS: i32 = 8;
const MESSAGE_BYTES: usize = 200;
/// Number of runs of each build for each number of workers, with a baseline.
const ROUNDS: usize = 3;

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let n_messages = numbers.first().copied().unwrap_or(200_000);
    let workers = if numbers.len() > 1 { &numbers[1..] } else { &[16, 32, 100, 500] };
    raise_open_files();
    let latency = std::env::var("LATENCY_MS").ok().filter(|text| !text.is_empty());
    let latency_ms =
        latency.map_or(0, |text| text.parse().unwrap_or_else(|_| panic!("LATENCY_MS={text:?} is not a number")));
    let sink = Sink::start(Duration::from_millis(latency_ms));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{n_messages} messages of {MESSAGE_BYTES} B, backend: {}, {latency_ms} ms; broker and backend on the same {cores} cores\n",
        sink.name
    );

    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("bench", PARTITIONS);
    transfer::fill(&cluster, &topic, n_messages);
    let transfer = Transfer { cluster: &cluster, topic: &topic, n_messages, sink: &sink };
    let this = binary(Program::Ktransfer);
    let baseline = std::env::var_os("BASELINE").filter(|folder| !folder.is_empty());
    let baseline = baseline.map(|folder| Program::Ktransfer.in_folder(&PathBuf::from(folder)));

    Measurement::print_heading();
    ureq_alone(&sink, n_messages, PARTITIONS as usize).print("one per partition", PARTITIONS as usize);
    for &count in workers {
        if let Some(baseline) = &baseline {
            compare(&transfer, [baseline, &this], count);
        } else {
            transfer.run(&this, count).print("ktransfer", count);
        }
        ureq_alone(&sink, n_messages, count).print("ureq alone", count);
        wrk(&sink, count).print("wrk", count);
    }
}

/// Measures both builds in alternating order and prints the medians.
fn compare(transfer: &Transfer<'_>, builds: [&PathBuf; 2], workers: usize) {
    let mut runs: [Vec<Measurement>; 2] = Default::default();
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let build = (round + turn) % 2;
            runs[build].push(transfer.run(builds[build], workers));
        }
    }
    let [baseline, this] = runs.map(Measurement::median);
    baseline.print("baseline", workers);
    this.print("ktransfer", workers);
    let ratios = (this.rate / baseline.rate, this.cpu_us.zip(baseline.cpu_us).map_or(0.0, |(this, base)| this / base));
    println!("{:<20} {workers:>7} {:>10.2} {:>8.2}", "this / baseline", ratios.0, ratios.1);
}
