//! How fast kproxy is before a real broker: requests a second, latencies and CPU time for each request.
//!
//! `make bench`, or `cargo bench --bench kproxy -- [SECONDS [CONNECTIONS...]]` where `wrk` is installed. Messages
//! have 200 bytes, acks=1, the log line of each commit is on. Broker, load and kproxy share the machine. The row
//! "no Kafka" is the same server answering `/healthz`, the most it could do.

#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "../tests/stories/harness/mod.rs"]
mod harness;

use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::{Cluster, Daemon, Program, configs, free_port, http, wait_until};

const PARTITIONS: i32 = 8;
const WAIT: Duration = Duration::from_secs(30);

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(10);
    let connections = if numbers.len() > 1 { &numbers[1..] } else { &[8, 64, 512] };

    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("bench", PARTITIONS);
    let (port, admin) = (free_port(), free_port());
    let file = configs::kproxy(&cluster, port, admin).replace("_timeout_ms: 100", "_timeout_ms: 5000");
    let daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &file)]);
    let commit = format!("http://127.0.0.1:{port}/commit?topic={topic}&acks=1");
    let healthz = format!("http://127.0.0.1:{port}/healthz");
    wait_until(WAIT, "kproxy commits", || http::post(&commit, b"warm").is_ok_and(|answer| answer.status == 200));
    let script = daemon.folder().join("post.lua");
    fs::write(&script, "wrk.method = 'POST'\nwrk.body = string.rep('x', 200)\n").expect("a file in our own folder");
    let script = script.to_str().expect("a path of ours").to_owned();

    println!(
        "{:<12} {:>6} {:>12} {:>10} {:>10} {:>12} {:>9} {:>8}",
        "", "conns", "requests/s", "p50", "p99", "CPU/request", "RSS", "threads"
    );
    run(&daemon, &commit, &["-s", &script], 64, 2);
    for &count in connections {
        for (what, url, arguments) in [("acks=1", &commit, &["-s", &*script][..]), ("no Kafka", &healthz, &[])] {
            let row = run(&daemon, url, arguments, count, seconds);
            println!(
                "{what:<12} {count:>6} {:>12} {:>10} {:>10} {:>9.1} us {:>5} MiB {:>8}{}",
                row.rate, row.p50, row.p99, row.cpu_us, row.resident_mib, row.threads, row.troubles
            );
        }
    }
}

struct Row {
    rate: String,
    p50: String,
    p99: String,
    cpu_us: f64,
    resident_mib: u64,
    threads: usize,
    /// Answers other than 2xx and 3xx, and errors of sockets, as wrk tells them.
    troubles: String,
}

fn run(daemon: &Daemon, url: &str, arguments: &[&str], connections: u32, seconds: u32) -> Row {
    let before = daemon.cpu_time();
    let output = Command::new("wrk")
        .args(["--latency", "-t", "2", "-c", &connections.to_string(), "-d", &format!("{seconds}s")])
        .args(arguments)
        .arg(url)
        .output()
        .expect("wrk is installed");
    let cpu = daemon.cpu_time() - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |start: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(start));
        line.unwrap_or_else(|| panic!("wrk says nothing of {start}: {text}")).trim().to_owned()
    };
    let requests: f64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .expect("wrk counts");
    let troubles: Vec<_> =
        text.lines().map(str::trim).filter(|line| line.starts_with("Non-2xx") || line.starts_with("Socket")).collect();
    Row {
        rate: after("Requests/sec:"),
        p50: after("50%"),
        p99: after("99%"),
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        resident_mib: daemon.resident_bytes() >> 20,
        threads: fs::read_dir(format!("/proc/{}/task", daemon.pid())).map_or(0, Iterator::count),
        troubles: troubles.iter().map(|line| format!("  {line}")).collect(),
    }
}
