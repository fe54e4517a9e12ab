//! Load from `wrk`, and what it cost the daemon.

use std::fs;
use std::process::Command;

use crate::harness::Daemon;

/// What one run came to.
pub(crate) struct Row {
    pub(crate) rate: f64,
    pub(crate) p50: String,
    pub(crate) p99: String,
    pub(crate) cpu_us: f64,
    /// Resident memory and threads of the daemon at the end of the run.
    pub(crate) daemon: Option<(u64, usize)>,
    /// Answers other than 2xx and 3xx, and errors of sockets, as wrk tells them.
    pub(crate) troubles: String,
}

impl Row {
    pub(crate) fn print(&self, what: &str, connections: u32) {
        let (rss, threads) = match self.daemon {
            Some((mib, threads)) => (format!("{mib} MiB"), threads.to_string()),
            None => Default::default(),
        };
        println!(
            "{what:<18} {connections:>6} {:>10.0} {:>10} {:>10} {:>9.1} us {rss:>9} {threads:>8}{}",
            self.rate, self.p50, self.p99, self.cpu_us, self.troubles
        );
    }
}

/// Lets wrk load `url` of the daemon for some seconds.
pub(crate) fn run(daemon: &Daemon, url: &str, arguments: &[&str], connections: u32, seconds: u32) -> Row {
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
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).map_or(0, Iterator::count);
    Row {
        rate: after("Requests/sec:").parse().expect("wrk tells a number"),
        p50: after("50%"),
        p99: after("99%"),
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        daemon: Some((daemon.resident_bytes() >> 20, threads)),
        troubles: troubles.iter().map(|line| format!("  {line}")).collect(),
    }
}
