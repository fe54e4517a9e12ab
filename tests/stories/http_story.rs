//! Early answers that arrive, and a kproxy without descriptors.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::http::Client;
use crate::harness::{cluster, wait_until};
use crate::kproxy_story::Kproxy;

const DEADLINE: Duration = Duration::from_secs(30);

/// Sends bytes and reads all there is to read.
fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).expect("kproxy listens");
    socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
    socket.set_write_timeout(Some(DEADLINE)).expect("not zero");
    socket.write_all(bytes).expect("kproxy takes what it is sent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the connection ends in time and without a reset");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn an_early_413_reaches_a_client_that_sends_everything_first() {
    let cluster = cluster();
    let kproxy = Kproxy::start_ready(cluster, "");
    let mut bytes = b"POST /commit?topic=t HTTP/1.1\r\nHost: h\r\nContent-Length: 30000000\r\n\r\n".to_vec();
    bytes.resize(bytes.len() + 30_000_000, b'x');
    let answer = exchange(&kproxy.address, &bytes);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer:.300}");
    assert!(kproxy.daemon.resident_bytes() < 100 << 20);
}

#[test]
fn out_of_descriptors_accepting_pauses_without_spinning_and_goes_on() {
    let cluster = cluster();
    let mut kproxy = Kproxy::start_ready(cluster, "");
    let mut kept = Client::connect(&kproxy.address).unwrap();
    assert_eq!(kept.get("/healthz").unwrap().status, 200);
    let pid = libc::pid_t::try_from(kproxy.daemon.pid()).unwrap();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let room = libc::rlimit { rlim_cur: open as u64 + 20, rlim_max: open as u64 + 20 };
    // SAFETY: the pointer is valid for the call, and null asks for nothing back.
    assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const room, std::ptr::null_mut()) }, 0);

    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(&kproxy.address).unwrap()).collect();
    let failures = |kept: &mut Client| -> u64 {
        let metrics = kept.get("/metrics").expect("a connection that is open is served").text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("http_accept_failures_total{server=\"http\"} "));
        line.map_or(0, |count| count.parse().unwrap())
    };
    wait_until(DEADLINE, "accepting fails", || failures(&mut kept) > 0);
    let (before, used, started) = (failures(&mut kept), kproxy.daemon.cpu_time(), Instant::now());
    wait_until(DEADLINE, "it is tried again and again", || failures(&mut kept) > before + 10);
    let (used, took) = (kproxy.daemon.cpu_time() - used, started.elapsed());
    assert!(used < took / 2, "{used:?} of CPU in {took:?}");

    drop(crowd);
    wait_until(DEADLINE, "new clients are served again", || {
        Client::connect(&kproxy.address)
            .and_then(|mut client| client.get("/healthz"))
            .is_ok_and(|answer| answer.status == 200)
    });
    assert!(kproxy.daemon.log().contains("no connection can be accepted now"));
    kproxy.daemon.end_well(DEADLINE);
}
