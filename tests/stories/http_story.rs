//! kproxy and clients that mean it ill, or are just odd: raw bytes in, and what must come out.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::{cluster, wait_until};
use crate::kproxy_story::Kproxy;

const DEADLINE: Duration = Duration::from_secs(30);

/// Sends bytes, closes the sending half, and reads all there is to read.
fn exchange(address: &str, bytes: &[u8], half_close: bool) -> String {
    let mut socket = TcpStream::connect(address).expect("kproxy listens");
    socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
    socket.set_write_timeout(Some(DEADLINE)).expect("not zero");
    socket.write_all(bytes).expect("kproxy takes what it is sent");
    if half_close {
        socket.shutdown(Shutdown::Write).expect("it is open");
    }
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the connection ends in time and without a reset");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn hostile_requests_get_their_status_and_store_nothing() {
    let cluster = cluster();
    let topic = cluster.new_topic("hostile", 1);
    let mut kproxy = Kproxy::start_ready(cluster, "");
    let line = format!("POST /commit?topic={topic} HTTP/1.1\r\n");
    let start = format!("{line}Host: h\r\n");
    let with = |fields: &str| format!("{start}{fields}");
    let long_uri = format!("POST /commit?topic={topic}&x={} HTTP/1.1\r\nHost: h\r\n\r\n", "y".repeat(9000));
    let rows: Vec<(String, u16)> = vec![
        (with("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), 400),
        (with("Content-Length: 5, 6\r\n\r\nhello!"), 400),
        (with("Content-Length: -5\r\n\r\nhello"), 400),
        (with("Content-Length: +5\r\n\r\nhello"), 400),
        (with("Content-Length: 5x\r\n\r\nhello"), 400),
        (with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 400),
        (with("Transfer-Encoding: gzip\r\n\r\nhello"), 400),
        (with("Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 501),
        (with("Transfer-Encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 400),
        (with("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n"), 400),
        (with("Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"), 400),
        (with("Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n"), 400),
        (with("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello"), 413),
        (with("Content-Length : 5\r\n\r\nhello"), 400),
        (with("X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello"), 400),
        (with("X: a\rb\r\nContent-Length: 5\r\n\r\nhello"), 400),
        (with("X: a\u{0}b\r\nContent-Length: 5\r\n\r\nhello"), 400),
        (with("Host: i\r\nContent-Length: 5\r\n\r\nhello"), 400),
        (format!("{line}Content-Length: 5\r\n\r\nhello"), 400),
        (format!("{}\n\n", start.replace('\r', "")), 400),
        (with("Content-Length: 1000000000000\r\n\r\nhello"), 413),
        (with("Content-Length: 9223372036854775807\r\n\r\nhello"), 413),
        (with("Content-Length: 99999999999999999999999\r\n\r\nhello"), 413),
        (with("Expect: 100-continue\r\nContent-Length: 10485761\r\n\r\n"), 413),
        (with("Expect: 42\r\nContent-Length: 5\r\n\r\nhello"), 417),
        (with(&format!("X: {}\r\n\r\n", "y".repeat(17_000))), 431),
        (with(&format!("{}\r\n", "X: y\r\n".repeat(101))), 431),
        (long_uri, 414),
        (start.replace("HTTP/1.1", "HTTP/2.0") + "\r\n", 505),
        (start.replace("POST /", "POST http:/") + "\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(), 400),
        (" POST / HTTP/1.1\r\n\r\n".to_owned(), 400),
    ];
    for (bytes, status) in &rows {
        // What follows must never be taken for a request of its own.
        let smuggled = format!("{start}Content-Length: 8\r\n\r\nsmuggled");
        let answer = exchange(&kproxy.address, format!("{bytes}{smuggled}").as_bytes(), false);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {bytes:.120}: {answer}");
        assert_eq!(answer.matches("\r\nDate: ").count(), 1, "{bytes:.120}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{bytes:.120}: {answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["stored"], "no", "{bytes:.120}");
    }
    // Truncated: the client says it is done before it is.
    for bytes in [
        with("Content-Length: 5000\r\n\r\nhello"),
        with("Transfer-Encoding: chunked\r\n\r\n5000\r\nhello"),
        with("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        start.clone(),
    ] {
        assert_eq!(exchange(&kproxy.address, bytes.as_bytes(), true), "", "{bytes:.120}");
    }
    let slow = exchange(&kproxy.address, with("Content-Length: 5\r\n\r\nhell").as_bytes(), false);
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");

    assert_eq!(kproxy.post(&format!("/commit?topic={topic}"), b"good").status, 200);
    let messages = cluster.messages(&topic);
    assert_eq!(messages.len(), 1, "only the good one is stored: {messages:?}");
    // One connection is the one that asks.
    wait_until(DEADLINE, "no connection is left", || kproxy.has_metric("http_connections{server=\"http\"} 1"));
    kproxy.daemon.end_well(DEADLINE);
}

#[test]
fn an_early_413_reaches_a_client_that_sends_everything_first() {
    let cluster = cluster();
    let kproxy = Kproxy::start_ready(cluster, "");
    let mut bytes = b"POST /commit?topic=t HTTP/1.1\r\nHost: h\r\nContent-Length: 30000000\r\n\r\n".to_vec();
    bytes.resize(bytes.len() + 30_000_000, b'x');
    let answer = exchange(&kproxy.address, &bytes, false);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer:.300}");
    assert!(kproxy.daemon.resident_bytes() < 100 << 20);
}

#[test]
fn six_hundred_half_heads_slow_nobody_and_take_no_memory() {
    let cluster = cluster();
    let topic = cluster.new_topic("halves", 1);
    // They would be gone after read_timeout_ms; here they are to stay.
    let (port, admin) = (crate::harness::free_port(), crate::harness::free_port());
    let file =
        crate::harness::configs::kproxy(cluster, port, admin).replace("read_timeout_ms: 100", "read_timeout_ms: 60000");
    let daemon = crate::harness::Daemon::start(crate::harness::Program::Kproxy, &[("kproxy.yaml", &file)]);
    let kproxy = Kproxy { daemon, address: format!("127.0.0.1:{port}"), admin: format!("127.0.0.1:{admin}") };
    let path = format!("/commit?topic={topic}");
    wait_until(DEADLINE, "kproxy commits", || {
        crate::harness::http::post(&kproxy.url(&path), b"warm").is_ok_and(|answer| answer.status == 200)
    });
    let halves: Vec<TcpStream> = (0..600)
        .map(|_| {
            let mut socket = TcpStream::connect(&kproxy.address).unwrap();
            socket.write_all(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Le").as_bytes()).unwrap();
            socket
        })
        .collect();
    wait_until(DEADLINE, "all are open", || kproxy.has_metric("http_connections{server=\"http\"} 601"));
    let mut took: Vec<Duration> = (0..50)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(kproxy.post(&path, b"fresh").status, 200);
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    let resident = kproxy.daemon.resident_bytes();
    eprintln!(
        "600 half heads: a fresh request takes {:?} (median), {:?} (slowest of 50); RSS {} MiB",
        took[25],
        took[49],
        resident >> 20
    );
    // The median: other stories share the machine.
    assert!(took[25] < Duration::from_millis(100), "{took:?}");
    assert!(resident < 100 << 20, "{resident} bytes");
    drop(halves);
    wait_until(DEADLINE, "they are gone", || kproxy.has_metric("http_connections{server=\"http\"} 1"));
}
