//! The HTTP client of ktransfer with backends that answer early, late, wrongly or not at all.
//!
//! The status decides as soon as it came. Whatever a backend does, each message ends in a delivery, a retry or in being
//! given up, in bounded time and memory, and takes no slot of another key's.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Socket, Type};

use crate::harness::fleet::{Arrival, Ending, Fleet, Reply};
use crate::harness::one_topic::{OneTopic, produce, requests, wait_until_stored};
use crate::harness::{Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_message_is_done_when_its_status_came_even_if_the_body_never_ends() {
    let keys = ["no-body", "endless-chunks", "slow-chunks", "until-close"];
    let script = |arrival: &Arrival| match arrival.key().as_str() {
        "no-body" => Reply::without_its_body(200),
        "endless-chunks" => Reply::endless_chunks(200, Duration::from_millis(1)),
        "slow-chunks" => Reply::endless_chunks(200, Duration::from_secs(10)),
        _ => Reply::raw(Some(200), "HTTP/1.0 200 OK\r\n\r\n").ending(Ending::Hold),
    };
    // Without a read timeout, nothing but the status can end a push.
    let mut story = OneTopic::start(&keys, 2, script, |file| file.set("worker_num", 2).set("window_size", 4));
    story.wait_until_stored(8);
    let counts = story.requests();
    assert!(keys.iter().all(|key| counts[*key] == 2), "each message is pushed once: {counts:?}");
    story.member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn an_answer_that_comes_before_the_request_is_written_counts() {
    let cluster = cluster();
    let topic = cluster.new_topic_with("early", 1, 1, &[("max.message.bytes", "12000000")]);
    let module = unique("early");
    let body = vec![b'x'; 8_000_000];
    for key in ["ok", "busy", "too-large"] {
        cluster.produce(&topic, 0, &[(key.as_bytes(), &body)]);
    }
    let fleet = Fleet::start(1, |arrival| match (arrival.key().as_str(), arrival.attempt()) {
        ("ok", _) => Reply::status(200).early(),
        ("busy", 1) => Reply::retry_after(503, 2).early(),
        ("busy", _) => Reply::ok(),
        _ => Reply::status(413).early(),
    });
    let file = configs::module(&topic, &fleet.addresses())
        .set("protocol.write_timeout_ms", 1000)
        .set("fail_retry_interval_ms", 50)
        .set("max_retry_times", 1);
    let mut member = Member::start(cluster, &module, "a", file);
    wait_until_stored(&module, &topic, 3);
    let counts = requests(&fleet);
    assert_eq!(counts["ok"], 1, "an early 200 is a delivery");
    assert_eq!(counts["too-large"], 2, "an early 413 is retried and then given up");
    let times: Vec<Instant> =
        fleet.arrivals().iter().filter(|arrival| arrival.key() == "busy").map(|arrival| arrival.began).collect();
    assert_eq!(times.len(), 2, "an early 503 is retried");
    let pause = times[1] - times[0];
    assert!(pause >= Duration::from_secs(2), "Retry-After of an early answer is kept: {pause:?}");
    assert!(member.daemon.log().contains("http_status_code=413"), "the reason names the status");
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn retry_after_is_kept_as_seconds_and_as_a_date() {
    let script = |arrival: &Arrival| match (arrival.key().as_str(), arrival.attempt()) {
        ("seconds", 1) => Reply::retry_after(503, 2),
        ("date", 1) => Reply::retry_at(503, SystemTime::now() + Duration::from_secs(4)),
        ("past", 1) => Reply::retry_at(503, SystemTime::now() - Duration::from_secs(4000)),
        _ => Reply::ok(),
    };
    let mut story =
        OneTopic::start(&["seconds", "date", "past"], 1, script, |file| file.set("fail_retry_interval_ms", 50));
    story.wait_until_stored(3);
    let arrivals = story.fleet.arrivals();
    for (key, pause) in [("seconds", 2000), ("date", 2900), ("past", 50)] {
        let times: Vec<Instant> =
            arrivals.iter().filter(|arrival| arrival.key() == key).map(|arrival| arrival.began).collect();
        assert_eq!(times.len(), 2, "{key}");
        assert!(times[1] - times[0] >= Duration::from_millis(pause), "{key}: {:?}", times[1] - times[0]);
    }
    story.member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn an_unusual_answer_still_has_its_status() {
    let keys = ["100", "100-fields", "103-fields", "129-fields", "head-of-20k", "many-interims"];
    let script = |arrival: &Arrival| match arrival.key().as_str() {
        "100" => Reply::interim_first(100, "", 200),
        "100-fields" => Reply::interim_first(100, "Server: x\r\n", 200),
        "103-fields" => Reply::interim_first(103, "Link: </x>; rel=preload\r\nX: y\r\n", 200),
        "129-fields" => Reply::many_fields(200, 129),
        "head-of-20k" => Reply::with_fields(200, &format!("X-Long: {}\r\n", "x".repeat(20_000))),
        _ => Reply::raw(
            Some(200),
            &format!("{}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n".repeat(3)),
        ),
    };
    let mut story = OneTopic::start(&keys, 2, script, |file| file.set("protocol.read_timeout_ms", 2000));
    story.wait_until_stored(12);
    let counts = story.requests();
    assert!(keys.iter().all(|key| counts[*key] == 2), "each message is delivered once: {counts:?}");
    story.member.daemon.stop(STOP_DEADLINE);
}

/// A listening port whose queue of connections is full: the kernel drops the SYN of a further one, and the client sends
/// it again after 1, 3 and 7 seconds.
struct FullPort {
    listener: Socket,
    fillers: Vec<TcpStream>,
}

impl FullPort {
    fn open() -> FullPort {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        listener.bind(&any.into()).expect("a port");
        listener.listen(0).expect("the port listens");
        let mut port = FullPort { listener, fillers: Vec::new() };
        let address = port.address().parse().expect("an address");
        while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            port.fillers.push(filler);
            assert!(port.fillers.len() < 20, "the queue of the port does not fill");
        }
        port
    }

    fn address(&self) -> String {
        self.listener.local_addr().expect("an address").as_socket().expect("IPv4").to_string()
    }

    /// Whether a client has sent a SYN that the port has not answered.
    fn is_awaited(&self) -> bool {
        let address = self.address();
        let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        // proc(5), net/tcp: the local address, the remote address and the state, where 02 is SYN_SENT.
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the table of sockets");
        table.lines().any(|line| line.contains(&format!(":{port:04X} 02 ")))
    }

    /// Accepts connections until `condition` holds, and for half a second more, or until the deadline; returns the
    /// bytes that arrived.
    fn accept_until(self, condition: impl Fn(&FullPort) -> bool, deadline: Duration) -> Vec<u8> {
        let mut until = Instant::now() + deadline;
        let (mut received, mut accepted) = (Vec::new(), Vec::new());
        self.listener.set_nonblocking(true).expect("a socket can be non-blocking");
        while Instant::now() < until && received.is_empty() {
            if let Ok((socket, _)) = self.listener.accept() {
                socket.set_nonblocking(true).expect("a socket can be non-blocking");
                accepted.push(socket);
            }
            for socket in &mut accepted {
                let mut bytes = [0; 4096];
                let n = socket.read(&mut bytes).unwrap_or(0);
                received.extend_from_slice(&bytes[..n]);
            }
            if condition(&self) {
                until = until.min(Instant::now() + Duration::from_millis(500));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        received
    }
}

#[test]
fn a_connection_that_is_made_after_the_claim_has_ended_carries_no_request() {
    let cluster = cluster();
    let topic = cluster.new_topic("late_connect", 1);
    let (module, fleet) = (unique("late_connect"), Fleet::start(1, |_| Reply::ok()));
    let full = FullPort::open();
    let file = |server: String| configs::module(&topic, &[server]).set("protocol.conn_timeout_ms", 0);
    let first = Member::start(cluster, &module, "a", file(full.address()));
    wait_until(DEADLINE, "the first instance owns the partition", || cluster.owners(&module, &topic).len() == 1);
    produce(cluster, &topic, &["k"], 1);
    wait_until(DEADLINE, "the first instance connects", || full.is_awaited());
    first.zookeeper.stall();
    let _second = Member::start(cluster, &module, "b", file(fleet.addresses()[0].clone()));
    fleet.wait_until_delivered(1, DEADLINE);
    // The next SYN of the first instance comes at most 8 s after the last one; or it has given up.
    let received = full.accept_until(|port| !port.is_awaited(), Duration::from_secs(9));
    assert!(received.is_empty(), "pushed after the takeover: {}", String::from_utf8_lossy(&received));
    assert_eq!(fleet.n_arrivals(), 1);
}
