//! The HTTP server of kproxy at its limits: a body that is too large, and a process without free file descriptors.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::http::{Client, connect_raw};
use crate::harness::metrics::Metrics;
use crate::harness::{Kproxy, cluster, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn an_early_413_reaches_a_client_that_sends_everything_before_it_reads() {
    let cluster = cluster();
    let kproxy = Kproxy::start_usual(cluster);
    let mut bytes = b"POST /commit?topic=t HTTP/1.1\r\nHost: h\r\nContent-Length: 30000000\r\n\r\n".to_vec();
    bytes.resize(bytes.len() + 30_000_000, b'x');
    let mut socket = connect_raw(&kproxy.address, DEADLINE);
    socket.write_all(&bytes).expect("kproxy reads the whole body");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the connection ends in time and without a reset");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer:.300}");
    assert!(kproxy.daemon.resident_bytes() < 100 << 20);
}

/// Limits the file descriptors of the process to 20 more than it has open.
fn limit_descriptors(pid: u32) {
    let pid = libc::pid_t::try_from(pid).unwrap();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    let limit = libc::rlimit { rlim_cur: open + 20, rlim_max: open + 20 };
    // SAFETY: `limit` is valid for the call, and a null pointer means that the old limit is not returned.
    assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) }, 0);
}

/// Returns the number of failed accepts so far. Uses the connection `open`, since a new one would not be accepted.
fn accept_failures(open: &mut Client) -> u64 {
    let metrics = Metrics::parse(open.get("/metrics").expect("an open connection is served").text());
    metrics.value("http_accept_failures_total{server=\"http\"}").unwrap_or_default()
}

#[test]
fn without_descriptors_accepting_is_retried_with_pauses_and_recovers() {
    let cluster = cluster();
    let mut kproxy = Kproxy::start_usual(cluster);
    let mut open = kproxy.connect();
    assert_eq!(open.get("/healthz").unwrap().status, 200);
    limit_descriptors(kproxy.daemon.pid());
    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(&kproxy.address).unwrap()).collect();
    wait_until(DEADLINE, "accept fails", || accept_failures(&mut open) > 0);
    let (failures, cpu_before, started) = (accept_failures(&mut open), kproxy.daemon.cpu_time(), Instant::now());
    wait_until(DEADLINE, "accept is retried ten times", || accept_failures(&mut open) > failures + 10);
    let (cpu, took) = (kproxy.daemon.cpu_time() - cpu_before, started.elapsed());
    assert!(cpu < took / 2, "{cpu:?} of CPU in {took:?}");

    drop(crowd);
    wait_until(DEADLINE, "new clients are served again", || {
        let answer = Client::connect(&kproxy.address).and_then(|mut client| client.get("/healthz"));
        answer.is_ok_and(|answer| answer.status == 200)
    });
    assert!(kproxy.daemon.log().contains("cannot accept connections, retrying"));
    kproxy.daemon.stop(DEADLINE);
}
