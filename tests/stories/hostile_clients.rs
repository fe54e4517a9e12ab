//! Thousands of hostile clients: the memory, time and threads that they cost kproxy are bounded, and kproxy frees the
//! memory and the connections afterwards.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::http::{self, Client, connect_raw, post_request};
use crate::harness::kproxy::{OVERLOADED, assert_refused};
use crate::harness::{Cluster, Kproxy, cluster, configs, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Starts a kproxy with these numbers in its configuration.
fn start(cluster: &Cluster, settings: &[(&str, u64)]) -> Kproxy {
    let config = settings.iter().fold(configs::kproxy(cluster), |file, (key, value)| file.set(key, value));
    Kproxy::start_ready(config)
}

fn connections(kproxy: &Kproxy) -> u64 {
    kproxy.metric("http_connections{server=\"http\"}")
}

/// Waits until kproxy has no connection, no commit in flight and no bytes of requests in its byte budget.
fn wait_until_all_is_freed(kproxy: &Kproxy) {
    for name in ["http_connections{server=\"http\"}", "kproxy_commits_in_flight", "kproxy_in_flight_bytes"] {
        wait_until(DEADLINE, &format!("{name} is 0"), || kproxy.metric(name) == 0);
    }
}

/// Opens a connection with a small receive buffer, so that kproxy soon cannot write if the client does not read.
fn connect_small_buffer(address: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.parse::<SocketAddr>().expect("an address").into()).expect("kproxy listens");
    socket.into()
}

/// Closes a connection with a reset (RST).
fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("it is open");
    drop(socket);
}

/// A client that sends its whole request, even after an answer, and reads until the connection is closed. One thread
/// drives many of them.
struct FloodClient {
    socket: TcpStream,
    sent: usize,
    answer: Vec<u8>,
    is_done: bool,
}

impl FloodClient {
    /// Reads and writes without blocking; returns whether it made progress or is done.
    fn advance(&mut self, request: &[u8]) -> bool {
        let mut piece = [0; 4096];
        let mut progressed = false;
        match self.socket.read(&mut piece) {
            Ok(0) => self.is_done = true,
            Ok(count) => {
                self.answer.extend_from_slice(&piece[..count]);
                progressed = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The connection was reset; an answer may have arrived before.
            Err(_) => self.is_done = true,
        }
        if !self.is_done && self.sent < request.len() {
            let end = request.len().min(self.sent + 64 * 1024);
            match self.socket.write(&request[self.sent..end]) {
                Ok(count) => {
                    self.sent += count;
                    progressed = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.sent = request.len(),
            }
        }
        progressed || self.is_done
    }

    fn status(&self) -> String {
        String::from_utf8_lossy(&self.answer).split(' ').nth(1).unwrap_or("none").to_owned()
    }
}

/// Sends the request from 1000 clients at once; returns the number of answers by status, and the time until the last.
fn flood(kproxy: &Kproxy, request: &[u8]) -> (BTreeMap<String, u64>, Duration) {
    let threads = kproxy.daemon.threads();
    let mut crowd: Vec<FloodClient> = (0..1000)
        .map(|_| {
            let socket = connect_raw(&kproxy.address, DEADLINE);
            socket.set_nonblocking(true).expect("it is open");
            FloodClient { socket, sent: 0, answer: Vec::new(), is_done: false }
        })
        .collect();
    let started = Instant::now();
    while crowd.iter().any(|client| !client.is_done) {
        assert!(started.elapsed() < 2 * DEADLINE, "not every client is answered");
        let mut progressed = false;
        for client in crowd.iter_mut().filter(|client| !client.is_done) {
            progressed |= client.advance(request);
        }
        if !progressed {
            assert_eq!(kproxy.daemon.threads(), threads);
        }
    }
    let mut statuses = BTreeMap::new();
    crowd.iter().for_each(|client| *statuses.entry(client.status()).or_default() += 1);
    (statuses, started.elapsed())
}

#[test]
fn a_thousand_bodies_of_ten_megabytes_stay_within_the_byte_budget_which_is_freed() {
    const BUDGET: u64 = 64 * MIB;
    /// Allowed memory above the budget: the request in flight is there twice more, as a batch and as bytes for the
    /// socket; each of the 1000 connections may keep a buffer of 64 KiB; and the allocator needs some room.
    const SLACK: u64 = 20 * MIB + 1000 * 64 * 1024 + 16 * MIB;
    kafka_http_wrapper::daemon::raise_open_files();
    let cluster = Cluster::start_with(1, &["message.max.bytes=11534336", "replica.fetch.max.bytes=11534336"]);
    let topic = cluster.new_topic("flood", 4);
    let mut kproxy =
        start(&cluster, &[("max_in_flight_bytes", BUDGET), ("read_timeout_ms", 60_000), ("write_timeout_ms", 60_000)]);
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"warm").status, 200);
    let (before, threads) = (kproxy.daemon.resident_bytes(), kproxy.daemon.threads());

    let body = vec![b'x'; 10_000_000];
    let request = post_request(&path, &[("Connection", "close")], &body);
    let (mut n_stored, mut n_refused, mut after) = (1, 0, Vec::new());
    for _ in 0..2 {
        let (statuses, took) = flood(&kproxy, &request);
        eprintln!("1000 x 10 MB in {:.1} s: {statuses:?}", took.as_secs_f64());
        // kproxy discards the rest of a refused body for 2 s. A client that sends for longer may lose its answer.
        assert!(statuses.keys().all(|status| ["200", "503", "none"].contains(&status.as_str())), "{statuses:?}");
        assert!(statuses["200"] > 0 && statuses["503"] > 500, "{statuses:?}");
        n_stored += statuses["200"];
        n_refused += statuses["503"];
        wait_until_all_is_freed(&kproxy);
        assert_eq!(cluster.message_count(&topic), n_stored as i64);
        wait_until(DEADLINE, "the memory is freed", || kproxy.daemon.resident_bytes() < before + 16 * MIB);
        after.push(kproxy.daemon.resident_bytes() / MIB);
    }
    let peak = kproxy.daemon.peak_resident_bytes();
    let before = before / MIB;
    eprintln!("RSS {before} MiB before, {} MiB at its peak, {after:?} MiB after each flood", peak / MIB);
    assert!(peak / MIB < before + (BUDGET + SLACK) / MIB, "{} MiB", peak / MIB);
    assert!(kproxy.metric("http_limits_total{limit=\"in_flight_bytes\",server=\"http\"}") >= n_refused);
    assert_eq!(kproxy.daemon.threads(), threads);
    kproxy.daemon.stop(DEADLINE);
}

#[test]
fn with_a_full_byte_budget_new_requests_get_503_and_begun_ones_finish() {
    let cluster = cluster();
    let topic = cluster.new_topic("full", 1);
    let settings = [("max_request_size_bytes", 400_000), ("max_in_flight_bytes", 900_000), ("read_timeout_ms", 60_000)];
    let kproxy = start(cluster, &settings);
    let path = format!("/commit?topic={topic}");
    let request = post_request(&path, &[], &[b'x'; 400_000]);
    let (begin, end) = request.split_at(request.len() - 1000);
    let mut halves: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = kproxy.connect();
            client.send_raw(begin).unwrap();
            client
        })
        .collect();
    wait_until(DEADLINE, "both bodies are nearly complete", || kproxy.metric("kproxy_in_flight_bytes") > 790_000);
    let refused = kproxy.post(&path, &[b'y'; 300_000]);
    assert_refused(&refused, OVERLOADED, "the budget is full");
    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert_eq!(http::get(&kproxy.url("/healthz")).unwrap().status, 200, "health checks are answered");
    for client in &mut halves {
        client.send_raw(end).unwrap();
        assert_eq!(client.read_response().unwrap().status, 200);
    }
    assert_eq!(kproxy.post(&path, &[b'z'; 300_000]).status, 200);
    assert_eq!(cluster.messages(&topic).len(), 3);
    assert_eq!(kproxy.metric("http_limits_total{limit=\"in_flight_bytes\",server=\"http\"}"), 1);
    drop(halves);
    wait_until_all_is_freed(&kproxy);
}

#[test]
fn two_thousand_slow_senders_delay_no_other_client_and_get_408() {
    const EACH: usize = 1000;
    kafka_http_wrapper::daemon::raise_open_files();
    let cluster = cluster();
    let topic = cluster.new_topic("slow", 1);
    let mut kproxy = start(cluster, &[("read_timeout_ms", 8_000), ("idle_timeout_ms", 600_000)]);
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"warm").status, 200);
    let (before, threads) = (kproxy.daemon.resident_bytes(), kproxy.daemon.threads());

    let start_slowly = |start: String| {
        let mut socket = connect_raw(&kproxy.address, DEADLINE);
        socket.write_all(start.as_bytes()).unwrap();
        socket
    };
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n");
    let mut crowd: Vec<TcpStream> = (0..EACH).map(|_| start_slowly(format!("{head}X-Slow: "))).collect();
    crowd.extend((0..EACH).map(|_| start_slowly(format!("{head}Content-Length: 90000\r\n\r\n"))));
    wait_until(DEADLINE, "all clients are connected", || connections(&kproxy) == 2 * EACH as u64);

    let is_over = AtomicBool::new(false);
    let (latencies, resident) = std::thread::scope(|scope| {
        scope.spawn(|| send_byte_by_byte(&crowd, &is_over));
        let latencies = post_latencies(&kproxy, &path);
        let resident = kproxy.daemon.resident_bytes();
        assert_eq!(kproxy.daemon.threads(), threads);
        wait_until(DEADLINE, "each connection got 408", || {
            kproxy.metric("http_timeouts_total{deadline=\"read\",server=\"http\"}") == 2 * EACH as u64
        });
        is_over.store(true, Ordering::Relaxed);
        (latencies, resident)
    });
    eprintln!(
        "2000 slow senders: another request takes {:?} (median), {:?} (slowest of 50); \
         RSS {} MiB before, {} MiB with them",
        latencies[25],
        latencies[49],
        before / MIB,
        resident / MIB
    );
    // Only the median is checked, because other stories run on the same machine.
    assert!(latencies[25] < Duration::from_millis(250), "{latencies:?}");
    assert!(resident < before + 64 * MIB, "{resident} bytes");
    drop(crowd);
    wait_until_all_is_freed(&kproxy);
    assert_eq!(cluster.log_ends(&topic)[&0], 51, "the first commit and the fifty others");
    kproxy.daemon.stop(DEADLINE);
}

/// Sends byte after byte on every connection. The bytes must not prolong the read deadline.
fn send_byte_by_byte(crowd: &[TcpStream], is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        for mut socket in crowd {
            // The write fails on connections that kproxy has closed already.
            let _ = socket.write(b"x");
        }
        // The pace of the clients: it leaves the processor to kproxy and to other stories.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Posts fifty commits, each on a connection of its own; returns the sorted latencies.
fn post_latencies(kproxy: &Kproxy, path: &str) -> Vec<Duration> {
    let post = |_| {
        let started = Instant::now();
        assert_eq!(kproxy.post(path, b"other").status, 200);
        started.elapsed()
    };
    let mut latencies: Vec<Duration> = (0..50).map(post).collect();
    latencies.sort_unstable();
    latencies
}

#[test]
fn clients_that_never_read_take_little_memory_and_are_closed() {
    const CROWD: u64 = 30;
    let cluster = cluster();
    let kproxy = start(cluster, &[("write_timeout_ms", 1500), ("read_timeout_ms", 60_000)]);
    let (before, threads) = (kproxy.daemon.resident_bytes(), kproxy.daemon.threads());
    let requests = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3000);
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| {
            let mut socket = connect_small_buffer(&kproxy.address);
            socket.set_nonblocking(true).unwrap();
            // It is enough to send as many bytes as the socket buffers take.
            let _ = socket.write(requests.as_bytes());
            socket
        })
        .collect();
    wait_until(DEADLINE, "all connections are closed", || {
        kproxy.metric("http_timeouts_total{deadline=\"write\",server=\"http\"}") == CROWD
    });
    let peak = kproxy.daemon.peak_resident_bytes();
    eprintln!("{CROWD} clients that never read: RSS {} MiB before, {} MiB at its peak", before / MIB, peak / MIB);
    assert!(peak < before + 64 * MIB, "{peak} bytes");
    assert_eq!(kproxy.daemon.threads(), threads);
    drop(crowd);
    wait_until_all_is_freed(&kproxy);
}

#[test]
fn a_slow_reader_gets_every_answer_in_order_while_others_are_served() {
    const PAIRS: usize = 150;
    let cluster = cluster();
    let topic = cluster.new_topic("reader", 1);
    let kproxy = start(cluster, &[("write_timeout_ms", 60_000), ("read_timeout_ms", 60_000)]);
    let mut socket = connect_small_buffer(&kproxy.address);
    let pair = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut writer = socket.try_clone().unwrap();
    let (answers, n_others) = std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(format!("{}{last}", pair.repeat(PAIRS)).as_bytes()).unwrap());
        let (mut answers, mut piece, mut n_others) = (Vec::new(), vec![0; 32 * 1024], 0);
        loop {
            match socket.read(&mut piece).expect("the answers arrive in time") {
                0 => return (String::from_utf8(answers).unwrap(), n_others),
                count => answers.extend_from_slice(&piece[..count]),
            }
            if answers.len() / (64 * 1024) > n_others {
                n_others += 1;
                assert_eq!(kproxy.post(&format!("/commit?topic={topic}"), b"other").status, 200);
            }
        }
    });
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    let expected = [["200", "404"].repeat(PAIRS), vec!["200"]].concat();
    assert_eq!(statuses, expected);
    assert!(n_others > 5, "{n_others}");
    eprintln!("{} KiB of answers read slowly, {n_others} other clients served meanwhile", answers.len() / 1024);
    wait_until_all_is_freed(&kproxy);
}

/// Connects groups of 40 clients that reset their connections.
struct ResetCrowd<'a> {
    kproxy: &'a Kproxy,
    threads: u64,
}

impl ResetCrowd<'_> {
    const SIZE: usize = 40;

    /// Opens [`Self::SIZE`] connections and sends these bytes on each.
    fn connect(&self, bytes: &str) -> Vec<TcpStream> {
        let connect = |_| {
            let mut socket = connect_small_buffer(&self.kproxy.address);
            socket.write_all(bytes.as_bytes()).unwrap();
            socket
        };
        (0..Self::SIZE).map(connect).collect()
    }

    fn wait_until_connected(&self) {
        wait_until(DEADLINE, "all clients are connected", || connections(self.kproxy) == Self::SIZE as u64);
    }

    fn reset(&self, phase: &str, sockets: Vec<TcpStream>) {
        sockets.into_iter().for_each(reset);
        wait_until_all_is_freed(self.kproxy);
        assert_eq!(self.kproxy.daemon.threads(), self.threads, "after resets in phase {phase}");
    }
}

#[test]
fn a_reset_in_any_phase_frees_the_connection() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("reset", 1);
    let mut kproxy = start(&cluster, &[("read_timeout_ms", 60_000), ("write_timeout_ms", 60_000)]);
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"warm").status, 200);
    let crowd = ResetCrowd { kproxy: &kproxy, threads: kproxy.daemon.threads() };
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n");

    // These connections are reset before kproxy accepts them, or just after.
    for _ in 0..ResetCrowd::SIZE {
        reset(connect_raw(&kproxy.address, DEADLINE));
    }
    crowd.reset("accept", Vec::new());
    for (phase, bytes) in [
        ("idle", String::new()),
        ("head", format!("{head}Content-")),
        ("body", format!("{head}Content-Length: 50000\r\n\r\n{}", "x".repeat(20_000))),
        ("chunks", format!("{head}Transfer-Encoding: chunked\r\n\r\nffff\r\n{}", "x".repeat(20_000))),
        ("writing", "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(400)),
    ] {
        let sockets = crowd.connect(&bytes);
        crowd.wait_until_connected();
        crowd.reset(phase, sockets);
    }
    reset_while_answering(&crowd, &cluster, &topic, &head);
    reset_while_lingering(&crowd, &head);
    assert_eq!(kproxy.post(&path, b"alive").status, 200);
    kproxy.daemon.stop(DEADLINE);
}

/// Resets connections whose commit is in flight at a frozen broker, and whose next request has arrived.
fn reset_while_answering(crowd: &ResetCrowd, cluster: &Cluster, topic: &str, head: &str) {
    cluster.kafka_servers[0].freeze();
    let commit_and_next = format!("{head}Content-Length: 4\r\n\r\nlost{head}Content-Length: 5\r\n\r\nahead");
    let sockets = crowd.connect(&commit_and_next);
    crowd.kproxy.wait_for_commits_in_flight(ResetCrowd::SIZE);
    sockets.into_iter().for_each(reset);
    cluster.kafka_servers[0].unfreeze();
    crowd.reset("answering", Vec::new());
    let values: Vec<Vec<u8>> = cluster.messages(topic).into_iter().map(|message| message.value).collect();
    let n_stored = values.iter().filter(|value| *value == b"lost").count();
    assert_eq!(n_stored, ResetCrowd::SIZE, "complete requests are stored");
}

/// Resets connections whose request was refused and whose body kproxy still reads and discards.
fn reset_while_lingering(crowd: &ResetCrowd, head: &str) {
    let sockets = crowd.connect(&format!("{head}Content-Length: 99999999\r\n\r\n"));
    for mut socket in &sockets {
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 413 "));
    }
    crowd.reset("lingering", sockets);
}

#[test]
fn each_address_has_its_own_limit_of_connections() {
    let cluster = cluster();
    let kproxy = start(cluster, &[("max_connections_per_ip", 5), ("idle_timeout_ms", 600_000)]);
    let port = kproxy.address.rsplit(':').next().unwrap();
    let connect_from = |source: &str| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&format!("{source}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&format!("127.0.0.1:{port}").parse::<SocketAddr>().unwrap().into()).unwrap();
        let mut socket: TcpStream = socket.into();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        // After an answer, kproxy has certainly accepted (200) or refused (503) the connection.
        let _ = socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut start = [0; 12];
        socket.read_exact(&mut start).unwrap();
        (socket, String::from_utf8_lossy(&start[9..]).into_owned())
    };
    let kept: Vec<_> = (0..5).map(|_| connect_from("127.0.0.7")).collect();
    assert!(kept.iter().all(|(_, status)| status == "200"));
    assert_eq!(connect_from("127.0.0.7").1, "503");
    assert_eq!(connect_from("127.0.0.8").1, "200", "another address has a limit of its own");
    assert_eq!(kproxy.metric("http_limits_total{limit=\"connections_per_ip\",server=\"http\"}"), 1);
    drop(kept);
    wait_until(DEADLINE, "the connections of the address are freed", || connect_from("127.0.0.7").1 == "200");
}
