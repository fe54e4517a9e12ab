//! Runs `wrk` against kproxy, and measures the CPU time of kproxy, the load generator and the broker.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Daemon, Kafka};

/// The results of one run of the load.
pub(crate) struct Measurement {
    pub(crate) rate: f64,
    pub(crate) p50: String,
    pub(crate) p99: String,
    /// CPU time per request in microseconds: of kproxy, of the load generator and of the broker.
    pub(crate) cpu_us: [Option<f64>; 3],
    /// Resident memory in MiB and number of threads of kproxy at the end of the run; `None` without kproxy.
    pub(crate) daemon: Option<(u64, usize)>,
    /// The lines in which wrk reports socket errors and answers other than 2xx and 3xx; empty without such lines.
    pub(crate) errors: String,
}

impl Measurement {
    pub(crate) fn print_heading() {
        println!(
            "{:<32} {:>6} {:>10} {:>9} {:>9}    CPU us per request {:>12} {:>8}\n\
             {:<32} {:>6} {:>10} {:>9} {:>9} {:>7} {:>6} {:>6}",
            "", "conns", "requests/s", "p50", "p99", "RSS", "threads", "", "", "", "", "", "kproxy", "load", "broker"
        );
    }

    pub(crate) fn print(&self, name: &str, connections: u32) {
        let (rss, threads) = match self.daemon {
            Some((mib, threads)) => (format!("{mib} MiB"), threads.to_string()),
            None => Default::default(),
        };
        let [daemon, load, broker] = self.cpu_us.map(|us| us.map_or_else(String::new, |us| format!("{us:.1}")));
        println!(
            "{name:<32} {connections:>6} {:>10.0} {:>9} {:>9} {daemon:>7} {load:>6} {broker:>6} {rss:>12} {threads:>8}\
             {}",
            self.rate, self.p50, self.p99, self.errors
        );
    }
}

/// Runs wrk against `url` of the daemon for `seconds`; returns its figures and the CPU time of all processes.
pub(crate) fn run(
    (daemon, broker): (&Daemon, &Kafka),
    url: &str,
    arguments: &[&str],
    connections: u32,
    seconds: u32,
) -> Measurement {
    let used = || [daemon.cpu_time(), cpu_time(libc::RUSAGE_CHILDREN), broker.cpu_time()];
    let before = used();
    let output = Command::new("wrk")
        .args(["--latency", "-t", "2", "-c", &connections.to_string(), "-d", &format!("{seconds}s")])
        .args(arguments)
        .arg(url)
        .output()
        .expect("wrk is installed");
    let after = used();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |start: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(start));
        line.unwrap_or_else(|| panic!("wrk prints no {start}: {text}")).trim().to_owned()
    };
    let requests = completed_requests(&text);
    let errors: Vec<_> =
        text.lines().map(str::trim).filter(|line| line.starts_with("Non-2xx") || line.starts_with("Socket")).collect();
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).map_or(0, Iterator::count);
    Measurement {
        rate: value("Requests/sec:").parse().expect("wrk prints a number"),
        p50: value("50%"),
        p99: value("99%"),
        cpu_us: [0, 1, 2].map(|process| Some((after[process] - before[process]).as_secs_f64() * 1e6 / requests)),
        daemon: Some((daemon.resident_bytes() >> 20, threads)),
        errors: errors.iter().map(|line| format!("  {line}")).collect(),
    }
}

/// Returns the number of requests in the output of wrk.
pub(crate) fn completed_requests(output: &str) -> f64 {
    let count = output.lines().find_map(|line| line.trim().split_once(" requests in "));
    count.and_then(|(count, _)| count.parse().ok()).expect("wrk prints the number of requests")
}

/// Returns the CPU time used so far by this process (`RUSAGE_SELF`), or by its children that have ended
/// (`RUSAGE_CHILDREN`).
pub(crate) fn cpu_time(whose: libc::c_int) -> Duration {
    // SAFETY: all zeros are a valid `rusage`, and the pointer is valid for the call, in which the kernel fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(whose, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
