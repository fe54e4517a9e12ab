//! How fast kproxy is before a real broker: requests a second, latencies and CPU time for each request.
//!
//! `make bench`, or `cargo bench --bench kproxy -- [SECONDS [CONNECTIONS...]]` where `wrk` is installed. Broker, load and
//! kproxy share the machine, and kproxy writes the log line of each commit. So that figures can be compared although the
//! machine is never the same twice, the limits are measured in the same run:
//!
//! - "no Kafka": the same server answering `/healthz`, the most it could do;
//! - "engine alone": librdkafka within this process, as many messages under way as there are connections, no HTTP.
//!
//! What the load and the broker took of the machine is shown beside it: more connections cost the load as well, which shares
//! the cores. Then the same number of requests a second over few and many connections, so that nobody is short of a core; a
//! table of body sizes and levels of acks at 64 connections; and what ten thousand idle connections cost.

#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

mod engine;
#[path = "../../tests/stories/harness/mod.rs"]
mod harness;
mod load;

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use harness::{Cluster, Daemon, Kafka, Program, configs, free_port, http, wait_until};
use kafka_http_wrapper::broker::Acks;
use kafka_http_wrapper::daemon::raise_open_files;

const PARTITIONS: i32 = 8;
const WAIT: Duration = Duration::from_secs(30);
/// Connections of the rows that compare sizes, levels and idle connections.
const USUAL: u32 = 64;
/// Connections that come near to what kproxy can do.
const MANY: u32 = 512;
const IDLE: usize = 10_000;
const SMALL: usize = 200;
const LARGE: usize = 10 * 1024;

/// A kproxy under measurement.
struct Bench {
    daemon: Daemon,
    cluster: Cluster,
    port: u16,
    topic: String,
    seconds: u32,
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(10);
    let connections = if numbers.len() > 1 { &numbers[1..] } else { &[8, 64, 512, 4_096] };
    raise_open_files();
    print_machine();

    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("bench", PARTITIONS);
    let (port, admin) = (free_port(), free_port());
    let file = configs::kproxy(&cluster, port, admin).replace("_timeout_ms: 100", "_timeout_ms: 10000");
    // The idle connections outlast the run.
    let file = format!("{file}\nidle_timeout_ms: 3600000\n");
    let daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &file)]);
    let bench = Bench { daemon, cluster, port, topic, seconds };
    // Each level has a producer of its own, made when it is first used.
    for acks in [1, 0, -1] {
        let commit = bench.commit_url(acks);
        wait_until(WAIT, "kproxy commits", || http::post(&commit, b"warm").is_ok_and(|answer| answer.status == 200));
    }
    bench.commits(USUAL, SMALL, 1, 2);

    load::Row::print_heading();
    for &count in connections {
        bench.commits(count, SMALL, 1, seconds).print(&format!("{SMALL} B, acks=1"), count);
        bench.no_kafka(count).print("no Kafka", count);
        engine::run(&bench.cluster.brokers, &bench.topic, count, SMALL, Acks::Leader, seconds)
            .print("engine alone", count);
    }
    println!();
    bench.same_rate(connections);
    println!();
    for size in [SMALL, LARGE] {
        for (acks, level) in [(0, Acks::None), (1, Acks::Leader), (-1, Acks::All)] {
            bench.commits(USUAL, size, acks, seconds).print(&format!("{size} B, acks={acks}"), USUAL);
            engine::run(&bench.cluster.brokers, &bench.topic, USUAL, size, level, seconds).print("engine alone", USUAL);
        }
    }
    println!();
    bench.idle_connections();
}

impl Bench {
    fn commit_url(&self, acks: i32) -> String {
        format!("http://127.0.0.1:{}/commit?topic={}&acks={acks}", self.port, self.topic)
    }

    fn commits(&self, connections: u32, size: usize, acks: i32, seconds: u32) -> load::Row {
        self.posts(connections, size, acks, seconds, "")
    }

    /// Posts by a script of wrk that has `more` in it.
    fn posts(&self, connections: u32, size: usize, acks: i32, seconds: u32, more: &str) -> load::Row {
        let script = self.daemon.folder().join("post.lua");
        let text = format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {size})\n{more}");
        fs::write(&script, text).expect("a file in our own folder");
        let script = script.to_str().expect("a path of ours");
        load::run(self.parties(), &self.commit_url(acks), &["-s", script], connections, seconds)
    }

    fn no_kafka(&self, connections: u32) -> load::Row {
        let url = format!("http://127.0.0.1:{}/healthz", self.port);
        load::run(self.parties(), &url, &[], connections, self.seconds)
    }

    fn parties(&self) -> (&Daemon, &Kafka) {
        (&self.daemon, &self.cluster.kafka_servers[0])
    }

    /// Half of what [`MANY`] connections can do, spread over each number of connections: every one waits between an answer and
    /// its next request, half to one and a half times as long as it has to on average.
    fn same_rate(&self, connections: &[u32]) {
        let rate = self.commits(MANY, SMALL, 1, self.seconds).rate / 2.0;
        // Pauses are whole milliseconds, so few connections cannot be held back to this rate.
        for &count in connections.iter().filter(|&&count| f64::from(count) > rate * 0.005) {
            let pause_ms = f64::from(count) * 1_000.0 / rate;
            let (least, most) = ((pause_ms / 2.0).floor(), (pause_ms * 1.5).ceil());
            let pause = format!("function delay() return math.random({least}, {most}) end\n");
            self.posts(count, SMALL, 1, self.seconds, &pause).print("half of the rate", count);
        }
    }

    /// In turn without and with them, so that a machine that grows slower in the meantime does not decide.
    fn idle_connections(&self) {
        for _ in 0..2 {
            self.commits(USUAL, SMALL, 1, self.seconds).print("none idle", USUAL);
            let address = format!("127.0.0.1:{}", self.port);
            let idle: Vec<TcpStream> =
                (0..IDLE).map(|_| TcpStream::connect(&address).expect("kproxy accepts")).collect();
            let metric = format!("http_connections{{server=\"http\"}} {}", IDLE + 1);
            let metrics = format!("http://{address}/metrics");
            wait_until(WAIT, "all are open", || {
                http::get(&metrics).is_ok_and(|answer| answer.text().lines().any(|line| line == metric))
            });
            self.commits(USUAL, SMALL, 1, self.seconds).print(&format!("{IDLE} idle"), USUAL);
            drop(idle);
            let metric = "http_connections{server=\"http\"} 1";
            wait_until(WAIT, "all are closed", || {
                http::get(&metrics).is_ok_and(|answer| answer.text().lines().any(|line| line == metric))
            });
        }
    }
}

fn print_machine() {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches(['\t', ':', ' ']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, {model}; all figures are of one run, broker and load on the same cores");
}
