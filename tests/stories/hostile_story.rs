//! Clients that mean kproxy ill, in crowds: what they can take of its memory, threads and time, and that all of it comes back.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::http::{self, Client};
use crate::harness::{Cluster, cluster, configs, free_port, wait_until};
use crate::kproxy_story::Kproxy;

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A kproxy that has these lines instead of those of the same keys.
fn start(cluster: &Cluster, lines: &[(&str, u64)]) -> Kproxy {
    let mut file = configs::kproxy(cluster, free_port(), free_port());
    for (key, value) in lines {
        let others: Vec<&str> = file.lines().filter(|line| !line.starts_with(&format!("{key}:"))).collect();
        file = format!("{key}: {value}\n{}\n", others.join("\n"));
    }
    let kproxy = Kproxy::start_from(&file);
    wait_until(DEADLINE, "kproxy is ready", || kproxy.readiness().0 == 200);
    kproxy
}

/// A number among the metrics, asked for at the other port, so that nobody but the story's clients is counted.
fn metric(kproxy: &Kproxy, name: &str) -> u64 {
    let text = http::get(&format!("http://{}/metrics", kproxy.admin)).expect("kproxy answers").text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a number"))
}

fn connections(kproxy: &Kproxy) -> u64 {
    metric(kproxy, "http_connections{server=\"http\"}")
}

/// Nobody is connected, nothing is in flight and no byte is held.
fn wait_until_nothing_is_left(kproxy: &Kproxy) {
    for name in ["http_connections{server=\"http\"}", "kproxy_commits_in_flight", "kproxy_in_flight_bytes"] {
        wait_until(DEADLINE, &format!("{name} is 0"), || metric(kproxy, name) == 0);
    }
}

fn connect(address: &str) -> TcpStream {
    let socket = TcpStream::connect(address).expect("kproxy listens");
    socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
    socket.set_write_timeout(Some(DEADLINE)).expect("not zero");
    socket
}

/// A connection with so small a buffer that what it does not read soon stops the sender.
fn connect_narrow(address: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.parse::<SocketAddr>().expect("an address").into()).expect("kproxy listens");
    socket.into()
}

/// Ends a connection with a reset.
fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("it is open");
    drop(socket);
}

/// A client of a crowd that one thread drives: it sends all it has, whatever it is told meanwhile, and reads until the end.
struct Member {
    socket: TcpStream,
    sent: usize,
    answer: Vec<u8>,
    is_done: bool,
}

impl Member {
    /// Does what can be done now; whether that was something.
    fn go_on(&mut self, request: &[u8]) -> bool {
        let mut piece = [0; 4096];
        let mut moved = false;
        match self.socket.read(&mut piece) {
            Ok(0) => self.is_done = true,
            Ok(count) => {
                self.answer.extend_from_slice(&piece[..count]);
                moved = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // After a reset the answer that came before it is what counts.
            Err(_) => self.is_done = true,
        }
        if !self.is_done && self.sent < request.len() {
            let end = request.len().min(self.sent + 64 * 1024);
            match self.socket.write(&request[self.sent..end]) {
                Ok(count) => {
                    self.sent += count;
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.sent = request.len(),
            }
        }
        moved || self.is_done
    }

    fn status(&self) -> String {
        String::from_utf8_lossy(&self.answer).split(' ').nth(1).unwrap_or("none").to_owned()
    }
}

/// A thousand clients send this at once, until each is answered; how many got which status, and how long it took.
fn flood(kproxy: &Kproxy, request: &[u8]) -> (BTreeMap<String, u64>, Duration) {
    let threads = kproxy.daemon.threads();
    let mut crowd: Vec<Member> = (0..1000)
        .map(|_| {
            let socket = connect(&kproxy.address);
            socket.set_nonblocking(true).expect("it is open");
            Member { socket, sent: 0, answer: Vec::new(), is_done: false }
        })
        .collect();
    let started = Instant::now();
    while crowd.iter().any(|member| !member.is_done) {
        assert!(started.elapsed() < 2 * DEADLINE, "everybody is answered");
        let mut moved = false;
        for member in crowd.iter_mut().filter(|member| !member.is_done) {
            moved |= member.go_on(request);
        }
        if !moved {
            assert_eq!(kproxy.daemon.threads(), threads);
        }
    }
    let mut statuses = BTreeMap::new();
    crowd.iter().for_each(|member| *statuses.entry(member.status()).or_default() += 1);
    (statuses, started.elapsed())
}

#[test]
fn a_thousand_bodies_of_ten_megabytes_stay_within_the_budget_and_leave_nothing() {
    const BUDGET: u64 = 64 * MIB;
    /// Kafka's client holds each message that is on its way once more, and a request to the broker besides.
    const SLACK: u64 = 64 * MIB;
    kafka_http_wrapper::daemon::raise_open_files();
    let cluster = Cluster::start_with(1, &["message.max.bytes=11534336", "replica.fetch.max.bytes=11534336"]);
    let topic = cluster.new_topic("flood", 4);
    let mut kproxy =
        start(&cluster, &[("max_in_flight_bytes", BUDGET), ("read_timeout_ms", 60_000), ("write_timeout_ms", 60_000)]);
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"warm").status, 200);
    let (before, threads) = (kproxy.daemon.resident_bytes(), kproxy.daemon.threads());

    let body = vec![b'x'; 10_000_000];
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let request = [head.as_bytes(), &body].concat();
    let (mut n_stored, mut n_refused, mut after) = (1, 0, Vec::new());
    for _ in 0..2 {
        let (statuses, took) = flood(&kproxy, &request);
        eprintln!("1000 x 10 MB in {:.1} s: {statuses:?}", took.as_secs_f64());
        // A client that sends on for longer than kproxy listens to it may lose its answer.
        assert!(statuses.keys().all(|status| ["200", "503", "none"].contains(&status.as_str())), "{statuses:?}");
        assert!(statuses["200"] > 0 && statuses["503"] > 500, "{statuses:?}");
        n_stored += statuses["200"];
        n_refused += statuses["503"];
        wait_until_nothing_is_left(&kproxy);
        assert_eq!(cluster.log_ends(&topic).values().sum::<i64>(), n_stored as i64);
        wait_until(DEADLINE, "the memory is given back", || kproxy.daemon.resident_bytes() < before + 16 * MIB);
        after.push(kproxy.daemon.resident_bytes() / MIB);
    }
    let peak = kproxy.daemon.peak_resident_bytes();
    let before = before / MIB;
    eprintln!("RSS {before} MiB before, {} MiB at its peak, {after:?} MiB after each flood", peak / MIB);
    assert!(peak / MIB < before + (BUDGET + SLACK) / MIB, "{} MiB", peak / MIB);
    assert!(metric(&kproxy, "http_limits_total{limit=\"in_flight_bytes\",server=\"http\"}") >= n_refused);
    assert_eq!(kproxy.daemon.threads(), threads);
    kproxy.daemon.end_well(DEADLINE);
}

#[test]
fn a_full_budget_refuses_what_is_new_and_lets_the_rest_finish() {
    let cluster = cluster();
    let topic = cluster.new_topic("full", 1);
    let lines = [("max_request_size_bytes", 400_000), ("max_in_flight_bytes", 900_000), ("read_timeout_ms", 60_000)];
    let kproxy = start(cluster, &lines);
    let path = format!("/commit?topic={topic}");
    let request = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\n{}", "x".repeat(400_000));
    let (begin, end) = request.as_bytes().split_at(request.len() - 1000);
    let mut halves: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = Client::connect(&kproxy.address).unwrap();
            client.send_raw(begin).unwrap();
            client
        })
        .collect();
    wait_until(DEADLINE, "both are nearly there", || metric(&kproxy, "kproxy_in_flight_bytes") > 790_000);
    let refused = kproxy.post(&path, &[b'y'; 300_000]);
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("1")));
    assert_eq!((&refused.json()["error"], &refused.json()["stored"]), (&"overloaded".into(), &"no".into()));
    assert_eq!(http::get(&kproxy.url("/healthz")).unwrap().status, 200, "operations go on");
    for client in &mut halves {
        client.send_raw(end).unwrap();
        assert_eq!(client.read_response().unwrap().status, 200);
    }
    assert_eq!(kproxy.post(&path, &[b'z'; 300_000]).status, 200);
    assert_eq!(cluster.messages(&topic).len(), 3);
    assert_eq!(metric(&kproxy, "http_limits_total{limit=\"in_flight_bytes\",server=\"http\"}"), 1);
    drop(halves);
    wait_until_nothing_is_left(&kproxy);
}

#[test]
fn two_thousand_slow_senders_slow_nobody_and_are_ended_in_time() {
    const EACH: usize = 1000;
    kafka_http_wrapper::daemon::raise_open_files();
    let cluster = cluster();
    let topic = cluster.new_topic("slow", 1);
    let mut kproxy = start(cluster, &[("read_timeout_ms", 12_000), ("idle_timeout_ms", 600_000)]);
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"warm").status, 200);
    let (before, threads) = (kproxy.daemon.resident_bytes(), kproxy.daemon.threads());

    let slow = |start: &str| {
        let mut socket = connect(&kproxy.address);
        socket.write_all(start.as_bytes()).unwrap();
        socket
    };
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n");
    let mut crowd: Vec<TcpStream> = (0..EACH).map(|_| slow(&format!("{head}X-Slow: "))).collect();
    crowd.extend((0..EACH).map(|_| slow(&format!("{head}Content-Length: 90000\r\n\r\n"))));
    wait_until(DEADLINE, "all are open", || connections(&kproxy) == 2 * EACH as u64);

    let is_over = AtomicBool::new(false);
    let (took, resident) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Byte by byte, which must not buy any of them more time.
            while !is_over.load(Ordering::Relaxed) {
                for mut socket in &crowd {
                    // Some have been ended already.
                    let _ = socket.write(b"x");
                }
                std::thread::yield_now();
            }
        });
        let mut took: Vec<Duration> = (0..50)
            .map(|_| {
                let started = Instant::now();
                assert_eq!(kproxy.post(&path, b"fresh").status, 200);
                started.elapsed()
            })
            .collect();
        took.sort_unstable();
        let resident = kproxy.daemon.resident_bytes();
        assert_eq!(kproxy.daemon.threads(), threads);
        wait_until(DEADLINE, "each was told 408", || {
            metric(&kproxy, "http_timeouts_total{deadline=\"read\",server=\"http\"}") == 2 * EACH as u64
        });
        is_over.store(true, Ordering::Relaxed);
        (took, resident)
    });
    eprintln!(
        "2000 slow senders: a fresh request takes {:?} (median), {:?} (slowest of 50); RSS {} MiB before, {} MiB with them",
        took[25],
        took[49],
        before / MIB,
        resident / MIB
    );
    // The median: other stories share the machine.
    assert!(took[25] < Duration::from_millis(250), "{took:?}");
    assert!(resident < before + 64 * MIB, "{resident} bytes");
    drop(crowd);
    wait_until_nothing_is_left(&kproxy);
    assert_eq!(cluster.log_ends(&topic)[&0], 51, "the warm one and the fresh ones");
    kproxy.daemon.end_well(DEADLINE);
}

#[test]
fn clients_that_never_read_take_little_and_are_ended() {
    const CROWD: u64 = 30;
    let cluster = cluster();
    let kproxy = start(cluster, &[("write_timeout_ms", 1500), ("read_timeout_ms", 60_000)]);
    let (before, threads) = (kproxy.daemon.resident_bytes(), kproxy.daemon.threads());
    let requests = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3000);
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| {
            let mut socket = connect_narrow(&kproxy.address);
            socket.set_nonblocking(true).unwrap();
            // As much as is taken; the rest of what it wanted does not matter.
            let _ = socket.write(requests.as_bytes());
            socket
        })
        .collect();
    wait_until(DEADLINE, "all were ended", || {
        metric(&kproxy, "http_timeouts_total{deadline=\"write\",server=\"http\"}") == CROWD
    });
    let peak = kproxy.daemon.peak_resident_bytes();
    eprintln!("{CROWD} clients that never read: RSS {} MiB before, {} MiB at its peak", before / MIB, peak / MIB);
    assert!(peak < before + 64 * MIB, "{peak} bytes");
    assert_eq!(kproxy.daemon.threads(), threads);
    drop(crowd);
    wait_until_nothing_is_left(&kproxy);
}

#[test]
fn a_slow_reader_gets_every_answer_in_order_and_others_theirs_meanwhile() {
    const PAIRS: usize = 150;
    let cluster = cluster();
    let topic = cluster.new_topic("reader", 1);
    let kproxy = start(cluster, &[("write_timeout_ms", 60_000), ("read_timeout_ms", 60_000)]);
    let mut socket = connect_narrow(&kproxy.address);
    let pair = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut writer = socket.try_clone().unwrap();
    let (answers, n_others) = std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(format!("{}{last}", pair.repeat(PAIRS)).as_bytes()).unwrap());
        let (mut answers, mut piece, mut n_others) = (Vec::new(), vec![0; 32 * 1024], 0);
        loop {
            match socket.read(&mut piece).expect("the answers come") {
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
    wait_until_nothing_is_left(&kproxy);
}

#[test]
fn a_reset_in_any_phase_leaves_nothing_behind() {
    const CROWD: usize = 40;
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("reset", 1);
    let mut kproxy = start(&cluster, &[("read_timeout_ms", 60_000), ("write_timeout_ms", 60_000)]);
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"warm").status, 200);
    let threads = kproxy.daemon.threads();
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n");
    let crowd = |bytes: &str| -> Vec<TcpStream> {
        (0..CROWD)
            .map(|_| {
                let mut socket = connect_narrow(&kproxy.address);
                socket.write_all(bytes.as_bytes()).unwrap();
                socket
            })
            .collect()
    };
    let end = |phase: &str, crowd: Vec<TcpStream>| {
        crowd.into_iter().for_each(reset);
        wait_until_nothing_is_left(&kproxy);
        assert_eq!(kproxy.daemon.threads(), threads, "after resets in phase {phase}");
    };
    let all_open = || wait_until(DEADLINE, "all are open", || connections(&kproxy) == CROWD as u64);

    // Before it is accepted, or just after.
    for _ in 0..CROWD {
        reset(connect(&kproxy.address));
    }
    end("accept", Vec::new());
    for (phase, bytes) in [
        ("idle", String::new()),
        ("head", format!("{head}Content-")),
        ("body", format!("{head}Content-Length: 50000\r\n\r\n{}", "x".repeat(20_000))),
        ("chunks", format!("{head}Transfer-Encoding: chunked\r\n\r\nffff\r\n{}", "x".repeat(20_000))),
    ] {
        let crowd = crowd(&bytes);
        all_open();
        end(phase, crowd);
    }

    // A broker that stands still keeps them in the middle of being answered.
    cluster.kafka_servers[0].stop_process();
    let answering = crowd(&format!("{head}Content-Length: 4\r\n\r\nlost{head}Content-Length: 5\r\n\r\nahead"));
    wait_until(DEADLINE, "all are answering", || metric(&kproxy, "kproxy_commits_in_flight") == CROWD as u64);
    answering.into_iter().for_each(reset);
    cluster.kafka_servers[0].continue_process();
    end("answering", Vec::new());
    let bodies: Vec<Vec<u8>> = cluster.messages(&topic).into_iter().map(|message| message.value).collect();
    assert_eq!(bodies.iter().filter(|body| *body == b"lost").count(), CROWD, "what was complete is stored");

    let writing = crowd(&"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(400));
    all_open();
    end("writing", writing);

    let lingering = crowd(&format!("{head}Content-Length: 99999999\r\n\r\n"));
    for mut socket in &lingering {
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 413 "));
    }
    end("lingering", lingering);
    assert_eq!(kproxy.post(&path, b"alive").status, 200);
    kproxy.daemon.end_well(DEADLINE);
}

#[test]
fn one_address_has_its_share_of_the_connections() {
    let cluster = cluster();
    let kproxy = start(cluster, &[("max_connections_per_ip", 5), ("idle_timeout_ms", 600_000)]);
    let port = kproxy.address.rsplit(':').next().unwrap();
    let connect_from = |source: &str| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&format!("{source}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&format!("127.0.0.1:{port}").parse::<SocketAddr>().unwrap().into()).unwrap();
        let mut socket: TcpStream = socket.into();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        // Asked once, so that it is certainly accepted.
        let _ = socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut start = [0; 12];
        socket.read_exact(&mut start).unwrap();
        (socket, String::from_utf8_lossy(&start[9..]).into_owned())
    };
    let kept: Vec<_> = (0..5).map(|_| connect_from("127.0.0.7")).collect();
    assert!(kept.iter().all(|(_, status)| status == "200"));
    assert_eq!(connect_from("127.0.0.7").1, "503");
    assert_eq!(connect_from("127.0.0.8").1, "200", "others have their own share");
    assert_eq!(metric(&kproxy, "http_limits_total{limit=\"connections_per_ip\",server=\"http\"}"), 1);
    drop(kept);
    wait_until(DEADLINE, "the share comes back", || connect_from("127.0.0.7").1 == "200");
}
