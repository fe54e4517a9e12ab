//! How fast kproxy is with a real broker: requests per second, latencies and CPU time per request.
//!
//! `make bench`, or `cargo bench --bench kproxy -- [SECONDS [CONNECTIONS...]]` where `wrk` is installed. The broker,
//! the load generator and kproxy share the machine, and kproxy logs a line for each commit. The speed of a shared
//! machine varies between runs, so two upper bounds are measured in the same run:
//!
//! - "no Kafka": the same kproxy answers `GET /healthz`;
//! - "engine alone": the Kafka client in this process, with one message in flight for each connection and no HTTP.
//!
//! The CPU time of the load generator and the broker is shown too, since they share the cores with kproxy. Further
//! tables show: half of the maximum rate over few and many connections, so that every process has CPU to spare; body
//! sizes and acks levels at 64 connections; and the cost of ten thousand idle connections.
//!
//! With `BASELINE=FOLDER` two builds of kproxy are compared instead: see [`compare`]. With `ALLOCATIONS=1` the
//! allocations for a request are counted: see [`allocations`].

#![allow(clippy::print_stdout, reason = "the benchmark prints its results")]

mod allocations;
mod compare;
mod engine;
mod engines;
#[path = "../../tests/stories/harness/mod.rs"]
mod harness;
mod load;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Cluster, Daemon, Kafka, Kproxy, configs, wait_until};
use kafka_http_wrapper::broker::{Acks, Engine};
use kafka_http_wrapper::daemon::raise_open_files;

const PARTITIONS: i32 = 8;
const DEADLINE: Duration = Duration::from_secs(30);
/// Number of connections in the rows that compare body sizes, acks levels and idle connections.
const USUAL: u32 = 64;
/// Number of connections at which kproxy is close to its maximum rate.
const MANY: u32 = 512;
const IDLE: usize = 10_000;
const SMALL: usize = 200;
const LARGE: usize = 10 * 1024;

/// The kproxy that is measured, with its cluster and topic.
struct Bench {
    kproxy: Kproxy,
    cluster: Cluster,
    topic: String,
    seconds: u32,
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(10);
    let connections = if numbers.len() > 1 { &numbers[1..] } else { &[8, 64, 512, 4_096] };
    raise_open_files();
    print_machine();
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("ENGINES") {
        return engines::run(seconds);
    }
    if is_set("ALLOCATIONS") {
        return allocations::run(seconds, connections);
    }
    if let Some(folder) = std::env::var_os("BASELINE").filter(|folder| !folder.is_empty()) {
        return compare::run(&PathBuf::from(folder), seconds, connections);
    }

    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("bench", PARTITIONS);
    let config = configs::kproxy(&cluster).set("read_timeout_ms", 10_000).set("write_timeout_ms", 10_000);
    // The idle timeout is an hour, so that the idle connections stay open until the end of the run.
    let kproxy = Kproxy::start(config.set("idle_timeout_ms", 3_600_000));
    let bench = Bench { kproxy, cluster, topic, seconds };
    // Each acks level has its own producer, which the first commit at this level creates.
    for acks in [1, 0, -1] {
        wait_for_commits(&bench.kproxy, &bench.commit_path(acks));
    }
    bench.commits(USUAL, SMALL, 1, 2);

    load::Measurement::print_heading();
    for &count in connections {
        bench.commits(count, SMALL, 1, seconds).print(&format!("{SMALL} B, acks=1"), count);
        bench.no_kafka(count).print("no Kafka", count);
        bench.engine_alone(count, SMALL, Acks::Leader).print("engine alone", count);
    }
    println!();
    bench.same_rate(connections);
    println!();
    for size in [SMALL, LARGE] {
        for (acks, level) in [(0, Acks::None), (1, Acks::Leader), (-1, Acks::All)] {
            bench.commits(USUAL, size, acks, seconds).print(&format!("{size} B, acks={acks}"), USUAL);
            bench.engine_alone(USUAL, size, level).print("engine alone", USUAL);
        }
    }
    println!();
    bench.idle_connections();
}

impl Bench {
    fn commit_path(&self, acks: i32) -> String {
        format!("/commit?topic={}&acks={acks}", self.topic)
    }

    fn commits(&self, connections: u32, size: usize, acks: i32, seconds: u32) -> load::Measurement {
        self.posts(connections, size, acks, seconds, "")
    }

    /// Posts messages for `seconds` with a wrk script that ends with the Lua code `lua`; returns the figures.
    fn posts(&self, connections: u32, size: usize, acks: i32, seconds: u32, lua: &str) -> load::Measurement {
        let script = write_script(&self.kproxy, size, lua);
        load::run(self.processes(), &self.kproxy.url(&self.commit_path(acks)), &["-s", &script], connections, seconds)
    }

    fn engine_alone(&self, in_flight: u32, size: usize, acks: Acks) -> load::Measurement {
        let load = engine::Load { in_flight, size, acks, has_keys: false, seconds: self.seconds };
        engine::run(&self.cluster.brokers, Engine::Auto, std::slice::from_ref(&self.topic), load)
    }

    fn no_kafka(&self, connections: u32) -> load::Measurement {
        load::run(self.processes(), &self.kproxy.url("/healthz"), &[], connections, self.seconds)
    }

    fn processes(&self) -> (&Daemon, &Kafka) {
        (&self.kproxy.daemon, &self.cluster.kafka_servers[0])
    }

    /// Measures each number of connections at half of the rate that [`MANY`] connections reach. Every connection pauses
    /// between an answer and its next request, for a random time from 0.5 to 1.5 times the average pause.
    fn same_rate(&self, connections: &[u32]) {
        let rate = self.commits(MANY, SMALL, 1, self.seconds).rate / 2.0;
        // wrk pauses for whole milliseconds. An average below 5 ms would be too inexact, so these rows are left out.
        for &count in connections.iter().filter(|&&count| f64::from(count) > rate * 0.005) {
            let pause_ms = f64::from(count) * 1_000.0 / rate;
            let (min_ms, max_ms) = ((pause_ms / 2.0).floor(), (pause_ms * 1.5).ceil());
            let pause = format!("function delay() return math.random({min_ms}, {max_ms}) end\n");
            self.posts(count, SMALL, 1, self.seconds, &pause).print("half of the rate", count);
        }
    }

    /// Measures without and with idle connections in turns, so that a change of the machine's speed affects both.
    fn idle_connections(&self) {
        for _ in 0..2 {
            self.commits(USUAL, SMALL, 1, self.seconds).print("none idle", USUAL);
            let idle: Vec<TcpStream> =
                (0..IDLE).map(|_| TcpStream::connect(&self.kproxy.address).expect("kproxy accepts")).collect();
            self.kproxy.wait_for_metric(&format!("http_connections{{server=\"http\"}} {IDLE}"), DEADLINE);
            self.commits(USUAL, SMALL, 1, self.seconds).print(&format!("{IDLE} idle"), USUAL);
            drop(idle);
            self.kproxy.wait_for_metric("http_connections{server=\"http\"} 0", DEADLINE);
        }
    }
}

/// Waits until kproxy answers a post to `path` with 200.
fn wait_for_commits(kproxy: &Kproxy, path: &str) {
    wait_until(DEADLINE, "kproxy commits", || kproxy.post(path, b"warm").status == 200);
}

/// Writes the script of [`post_script`] into the folder of a kproxy.
fn write_script(kproxy: &Kproxy, size: usize, lua: &str) -> String {
    post_script(kproxy.daemon.folder(), size, lua)
}

/// Writes a wrk script that posts bodies of `size` bytes and ends with the Lua code `lua`; returns its path.
fn post_script(folder: &Path, size: usize, lua: &str) -> String {
    let script = folder.join("post.lua");
    let text = format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {size})\n{lua}");
    fs::write(&script, text).expect("a file in a temporary folder");
    script.into_os_string().into_string().expect("a temporary path is UTF-8")
}

fn print_machine() {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches(['\t', ':', ' ']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, {model}; one run, with broker and load on the same cores");
}
