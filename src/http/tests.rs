//! The server as clients see it, through real sockets.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::inbox::{Inbox, Message};
use super::reader::Reader;
use super::*;
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

/// Size of the answer to `/medium`: rustls takes it whole, also while the socket is full.
pub(super) const MEDIUM: usize = 50_000;
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Echoes bodies; keeps the replies of `/later` until they are released; panics, forgets, refuses and blocks on request.
pub(super) struct Echo {
    pub(super) kept: Mutex<VecDeque<(Request, Reply)>>,
    arrived: Condvar,
    /// Lets the reader go on that `/block` keeps.
    go_on: (mpsc::SyncSender<()>, Mutex<mpsc::Receiver<()>>),
}

impl Default for Echo {
    fn default() -> Self {
        let (sender, receiver) = mpsc::sync_channel(1);
        Echo { kept: Mutex::default(), arrived: Condvar::new(), go_on: (sender, Mutex::new(receiver)) }
    }
}

impl Echo {
    /// Waits until a reply is kept and takes it.
    pub(super) fn release(&self) -> (Request, Reply) {
        let (mut kept, _) =
            self.arrived.wait_timeout_while(self.kept.lock().unwrap(), PATIENCE, |kept| kept.is_empty()).unwrap();
        kept.pop_front().expect("a request arrives in time")
    }
}

impl Handler for Echo {
    fn admit(self: Arc<Self>, head: &Head) -> Admission {
        match head.path.as_str() {
            "/refuse" => Admission::Refuse(Response::text(403, "no")),
            "/panic-early" => panic!("as asked"),
            path => {
                let path = path.to_owned();
                let then = Box::new(move |request: Request, reply| {
                    assert_eq!(request.head.path, path, "each request has its own handler");
                    self.handle(request, reply);
                });
                Admission::Read { max_body_bytes: 1 << 20, then }
            }
        }
    }

    fn refusal(&self, status: u16, reason: &str) -> Response {
        Response::text(status, format!("refusal: {reason}"))
    }
}

impl Echo {
    fn handle(&self, request: Request, reply: Reply) {
        match request.head.path.as_str() {
            "/later" => {
                self.kept.lock().unwrap().push_back((request, reply));
                self.arrived.notify_all();
            }
            "/panic" => panic!("as asked"),
            "/block" => {
                self.kept.lock().unwrap().push_back((request, reply));
                self.arrived.notify_all();
                // Keeps the reader itself, which no handler should, so that several things happen before it looks.
                let _ = self.go_on.1.lock().unwrap().recv_timeout(PATIENCE);
            }
            "/forget" => drop(reply),
            "/large" => reply.send(Response::text(200, vec![b'x'; 32 << 20])),
            "/medium" => reply.send(Response::text(200, vec![b'x'; MEDIUM])),
            "/close" => reply.send(Response::text(200, "bye").closing()),
            _ => reply.send(Response::text(200, request.body)),
        }
    }
}

pub(super) struct Fixture {
    pub(super) server: Server,
    pub(super) echo: Arc<Echo>,
    group: Supervisor,
    registry: Registry,
    budget: ByteBudget,
}

fn start(change: impl FnOnce(&mut Limits)) -> Fixture {
    start_with(None, change)
}

pub(super) fn start_with(tls: Option<Tls>, change: impl FnOnce(&mut Limits)) -> Fixture {
    let budget = ByteBudget::new(8 << 20);
    let mut limits = Limits {
        read_timeout: PATIENCE,
        write_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        max_connections: 100,
        max_connections_per_ip: None,
        head: HeadLimits::default(),
        body_budget: Some(budget.clone()),
    };
    change(&mut limits);
    let listen = Listen::At("127.0.0.1:0".parse().unwrap());
    let config = ServerConfig { listen, name: "http", readers: 2, limits, tls };
    let (echo, group, registry) = (Arc::new(Echo::default()), Supervisor::new("g", Stop::new()), Registry::new());
    let server = Server::start(config, Arc::<Echo>::clone(&echo), &group, &ServerMetrics::new(&registry)).unwrap();
    Fixture { server, echo, group, registry, budget }
}

impl Fixture {
    pub(super) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.server.local_addr()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends bytes and reads until the server closes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut socket = self.connect();
        socket.write_all(bytes).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("the server closes in time, without a reset");
        answer
    }

    pub(super) fn metric(&self, line: &str) -> bool {
        String::from_utf8(self.registry.render()).unwrap().lines().any(|known| known == line)
    }

    /// Ends the server; no connection and no byte may be left.
    pub(super) fn end(self) {
        assert_eq!(self.server.drain(PATIENCE), 0);
        assert!(self.metric("http_connections{server=\"http\"} 0"));
        assert_eq!(self.budget.used(), 0);
        self.group.stop().trigger();
        self.server.close();
        assert_eq!(self.group.join(PATIENCE), Ended::Stopped);
    }
}

/// Reads one answer with a Content-Length: status and body.
pub(super) fn answer(socket: &mut impl Read) -> (u16, String) {
    let (status, head, body) = whole_answer(socket);
    assert!(head.contains("Content-Length: "), "{head}");
    (status, body)
}

fn whole_answer(socket: &mut impl Read) -> (u16, String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "closed after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    socket.read_exact(&mut body).unwrap();
    (status, head, String::from_utf8(body).unwrap())
}

pub(super) fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    for body in ["one", "two"] {
        socket.write_all(post("/", body).as_bytes()).unwrap();
        assert_eq!(answer(&mut socket), (200, body.to_owned()));
    }
    for byte in post("/", "slowly").bytes() {
        socket.write_all(&[byte]).unwrap();
    }
    assert_eq!(answer(&mut socket), (200, "slowly".to_owned()));
    socket
        .write_all(
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n",
        )
        .unwrap();
    assert_eq!(answer(&mut socket), (200, "abc".to_owned()));
    socket.write_all(post("/close", "").as_bytes()).unwrap();
    assert_eq!(answer(&mut socket), (200, "bye".to_owned()));
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "closed as the handler said");
    drop(socket);
    fixture.end();
}

#[test]
fn pipelined_requests_are_answered_in_order_also_from_other_threads() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    let requests = [post("/", "1"), post("/later", "2"), post("/", "3"), post("/later", "4"), post("/", "5")].concat();
    socket.write_all(requests.as_bytes()).unwrap();
    assert_eq!(answer(&mut socket).1, "1");
    for (kept, next) in [("2", "3"), ("4", "5")] {
        let (request, reply) = fixture.echo.release();
        assert_eq!(request.body, kept.as_bytes());
        assert!(fixture.echo.kept.lock().unwrap().is_empty(), "one request of a connection at a time");
        // More arrives while it is being answered.
        reply.send(Response::text(200, request.body));
        assert_eq!(answer(&mut socket).1, kept);
        assert_eq!(answer(&mut socket).1, next);
    }
    drop(socket);
    fixture.end();
}

#[test]
fn what_was_sent_ahead_is_read_before_what_comes_after_the_answer() {
    let fixture = start(|_| ());
    // Every second connection has the same reader.
    let mut sockets: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    let next = post("/", "the next body");
    let (begin, end) = next.split_at(20);
    sockets[0].write_all(format!("{}{begin}", post("/later", "a")).as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    sockets[2].write_all(post("/block", "").as_bytes()).unwrap();
    let (_, first_block) = fixture.echo.release();
    // Both are found at once, in this order; the answer is given between the two.
    sockets[4].write_all(post("/block", "").as_bytes()).unwrap();
    sockets[0].write_all(end.as_bytes()).unwrap();
    fixture.echo.go_on.0.send(()).unwrap();
    let (_, second_block) = fixture.echo.release();
    reply.send(Response::text(200, "first"));
    assert_eq!(answer(&mut sockets[0]).1, "first");
    fixture.echo.go_on.0.send(()).unwrap();
    assert_eq!(answer(&mut sockets[0]), (200, "the next body".to_owned()));
    for (reply, index) in [(first_block, 2), (second_block, 4)] {
        reply.send(Response::text(200, "unblocked"));
        assert_eq!(answer(&mut sockets[index]).1, "unblocked");
    }
    drop(sockets);
    fixture.end();
}

#[test]
fn a_client_that_leaves_or_closes_its_half_while_it_is_answered_does_no_harm() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    socket.write_all(post("/later", "a").as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    socket.shutdown(Shutdown::Write).unwrap();
    reply.send(Response::text(200, "still heard"));
    assert_eq!(answer(&mut socket).1, "still heard");
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);

    let mut socket = fixture.connect();
    socket.write_all(post("/later", "b").as_bytes()).unwrap();
    let (request, reply) = fixture.echo.release();
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    drop(request);
    reply.send(Response::text(200, "not heard"));
    fixture.end();
}

#[test]
fn what_is_ambiguous_or_too_large_is_refused_and_the_connection_closed() {
    let fixture = start(|_| ());
    let large = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{}", 3 << 20, "x".repeat(3 << 20));
    let rows: &[(&str, u16)] = &[
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/9.9\r\nHost: h\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000000\r\n\r\nabc", 413),
        ("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413),
        ("POST /refuse HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n", 403),
        ("POST /panic-early HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\na", 500),
        (&post("/panic", "a"), 500),
        (&post("/forget", "a"), 500),
        (&large, 413),
    ];
    for (bytes, status) in rows {
        let follows = format!("{bytes}{}", post("/", "smuggled"));
        let answer = fixture.exchange(follows.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {bytes:.100}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n") && !answer.contains("smuggled"), "{answer}");
    }
    fixture.end();
}

#[test]
fn a_refused_request_with_a_short_body_keeps_the_connection() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    socket.write_all(format!("{}{}", post("/refuse", "unread"), post("/", "next")).as_bytes()).unwrap();
    assert_eq!(answer(&mut socket), (403, "no".to_owned()));
    assert_eq!(answer(&mut socket), (200, "next".to_owned()));
    drop(socket);
    fixture.end();
}

#[test]
fn a_client_is_told_to_go_on_and_head_and_old_clients_get_their_form() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    socket.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
    let (status, head, _) = whole_answer(&mut socket);
    assert_eq!((status, head.as_str()), (100, "HTTP/1.1 100 Continue\r\n\r\n"));
    socket.write_all(b"ok").unwrap();
    assert_eq!(answer(&mut socket), (200, "ok".to_owned()));
    drop(socket);

    let head = fixture.exchange(b"HEAD /close HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let old = fixture.exchange(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nok");
    assert!(old.contains("Connection: close\r\n") && old.ends_with("\r\n\r\nok"), "{old}");
    let kept = fixture
        .exchange(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nokGET / HTTP/1.0\r\n\r\n");
    assert!(kept.contains("Connection: keep-alive\r\n") && kept.contains("Connection: close\r\n"), "{kept}");
    fixture.end();
}

#[test]
fn a_truncated_body_is_no_request() {
    let fixture = start(|_| ());
    for bytes in [
        "POST /later HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\nabc",
        "POST /later HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "POST /later HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ] {
        let mut socket = fixture.connect();
        socket.write_all(bytes.as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "{bytes}");
    }
    assert!(fixture.echo.kept.lock().unwrap().is_empty());
    fixture.end();
}

#[test]
fn deadlines_end_slow_senders_slow_takers_and_idle_connections() {
    let short = Duration::from_millis(150);
    let fixture =
        start(|limits| (limits.read_timeout, limits.write_timeout, limits.idle_timeout) = (short, short, short * 3));
    let started = Instant::now();
    let answer = fixture.exchange(b"POST / HTTP/1.1\r\nHost:");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(started.elapsed() >= short && started.elapsed() < short * 20, "{:?}", started.elapsed());
    let answer = fixture.exchange(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(fixture.exchange(b"\r\n\r"), "", "empty lines are no beginning of a request, so it is just idle");
    let started = Instant::now();
    assert_eq!(fixture.exchange(b""), "", "an idle connection is closed without a word");
    assert!(started.elapsed() >= short * 3, "{:?}", started.elapsed());

    // Takes nothing of an answer that no socket buffer holds.
    let mut socket = fixture.connect();
    socket.write_all(post("/large", "").as_bytes()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !fixture.metric("http_timeouts_total{deadline=\"write\",server=\"http\"} 1") {
        assert!(Instant::now() < deadline, "the write deadline passes");
        std::thread::yield_now();
    }
    drop(socket);
    fixture.end();
}

#[test]
fn a_large_answer_arrives_whole_and_the_connection_goes_on() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    socket.write_all(format!("{}{}", post("/large", ""), post("/", "next")).as_bytes()).unwrap();
    assert_eq!(answer(&mut socket).1.len(), 32 << 20);
    assert_eq!(answer(&mut socket).1, "next");
    drop(socket);
    fixture.end();
}

#[test]
fn connections_and_bytes_beyond_the_limits_are_told_503() {
    let fixture = start(|limits| {
        limits.max_connections = 2;
        limits.body_budget = Some(ByteBudget::new(1000));
    });
    let mut first = fixture.connect();
    let mut second = fixture.connect();
    for socket in [&mut first, &mut second] {
        socket.write_all(post("/", "in").as_bytes()).unwrap();
        assert_eq!(answer(socket).0, 200);
    }
    let answer_to_third = fixture.exchange(b"");
    assert!(answer_to_third.starts_with("HTTP/1.1 503 "), "{answer_to_third}");

    first.write_all(post("/later", &"a".repeat(600)).as_bytes()).unwrap();
    let (request, reply) = fixture.echo.release();
    second.write_all(post("/", &"b".repeat(600)).as_bytes()).unwrap();
    assert_eq!(answer(&mut second).0, 503, "600 of 1000 bytes are taken");
    drop(request);
    reply.send(Response::text(200, "done"));
    assert_eq!(answer(&mut first).0, 200);
    drop(second);
    first.write_all(post("/", &"b".repeat(600)).as_bytes()).unwrap();
    assert_eq!(answer(&mut first).0, 200, "they were given back");
    drop(first);
    fixture.end();
}

#[test]
fn whatever_is_kept_of_a_request_is_within_the_budget() {
    let budget = ByteBudget::new(40_000);
    let fixture = start(|limits| limits.body_budget = Some(budget.clone()));
    let held = |least: usize| {
        let deadline = Instant::now() + PATIENCE;
        while budget.used() < least {
            assert!(Instant::now() < deadline, "{} of {least} bytes", budget.used());
            std::thread::yield_now();
        }
    };
    // A half head.
    let mut half = fixture.connect();
    half.write_all(format!("POST / HTTP/1.1\r\nHost: h\r\nX: {}", "y".repeat(10_000)).as_bytes()).unwrap();
    held(10_000);
    // What was sent ahead of an answer.
    let mut busy = fixture.connect();
    let ahead = post("/", &"z".repeat(9_000));
    busy.write_all(format!("{}{}", post("/later", "a"), &ahead[..ahead.len() - 1]).as_bytes()).unwrap();
    let (request, reply) = fixture.echo.release();
    held(19_000);
    // A refused body is passed over and takes nothing, but what will be answered does.
    let mut refused = fixture.connect();
    let body = "b".repeat(30_000);
    let head = format!("POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
    refused.write_all(format!("{head}{body}").as_bytes()).unwrap();
    // No room for another body, nor half a head; an answer without one needs none.
    let mut other = fixture.connect();
    other.write_all(post("/", &"c".repeat(25_000)).as_bytes()).unwrap();
    let (status, text) = answer(&mut other);
    assert_eq!((status, text.as_str()), (503, "refusal: too many bytes are in flight"));
    let mut filler = budget.lease();
    assert!(filler.set_to(40_000 - budget.used() - 2_000));
    let mut head_only = fixture.connect();
    head_only.write_all(format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(8_000)).as_bytes()).unwrap();
    assert_eq!(answer(&mut head_only).0, 503);
    let mut small = fixture.connect();
    small.write_all(b"GET /refuse HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert_eq!(answer(&mut small).0, 403);
    drop((filler, half, request));
    refused.write_all(b"b").unwrap();
    assert_eq!(answer(&mut refused).0, 403);
    reply.send(Response::text(200, "later"));
    assert_eq!(answer(&mut busy).1, "later");
    busy.write_all(b"z").unwrap();
    assert_eq!(answer(&mut busy), (200, "z".repeat(9_000)));
    assert!(fixture.metric("http_limits_total{limit=\"in_flight_bytes\",server=\"http\"} 2"));
    drop((busy, refused, other, head_only, small));
    fixture.end();
    assert_eq!(budget.used(), 0);
}

#[test]
fn one_connection_that_asks_much_at_once_gets_it_in_turns() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    let many: String = (0..300).map(|number| post("/", &number.to_string())).collect();
    socket.write_all(many.as_bytes()).unwrap();
    for number in 0..300 {
        assert_eq!(answer(&mut socket), (200, number.to_string()));
    }
    drop(socket);
    fixture.end();
}

#[test]
fn a_request_that_is_forgotten_is_answered_in_the_words_of_the_handler() {
    let fixture = start(|_| ());
    let answer = fixture.exchange(post("/forget", "a").as_bytes());
    assert!(answer.ends_with(&format!("refusal: {UNANSWERED}")), "{answer}");
    fixture.end();
}

#[test]
fn a_drain_answers_what_is_in_progress_and_closes_the_rest() {
    let fixture = start(|_| ());
    let mut idle = fixture.connect();
    let mut busy = fixture.connect();
    let mut begun = fixture.connect();
    idle.write_all(post("/", "hello").as_bytes()).unwrap();
    assert_eq!(answer(&mut idle).0, 200);
    begun.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\no").unwrap();
    busy.write_all(post("/later", "x").as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    assert!(fixture.metric("http_connections{server=\"http\"} 3"));
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| fixture.server.drain(PATIENCE));
        assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(fixture.server.local_addr()).is_ok() {
            assert!(Instant::now() < deadline, "nobody is accepted any more");
        }
        begun.write_all(b"k").unwrap();
        let (status, head, body) = whole_answer(&mut begun);
        assert_eq!((status, body.as_str(), head.contains("Connection: close")), (200, "ok", true));
        reply.send(Response::text(200, "done"));
        assert_eq!(answer(&mut busy).1, "done");
        drop((busy, begun));
        assert_eq!(drained.join().unwrap(), 0);
    });
    fixture.end();
}

/// Says which thread runs it.
struct WhoRunsIt(Reply);

impl DeferredResponse for WhoRunsIt {
    fn reply(&mut self) -> &Reply {
        &self.0
    }

    fn run(self: Box<Self>) {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        self.0.send(Response::text(200, name));
    }
}

#[test]
fn answers_left_to_the_reader_are_given_by_it_in_order_and_after_its_end_all_the_same() {
    let fixture = start(|_| ());
    let mut sockets: Vec<_> = (0..8).map(|_| fixture.connect()).collect();
    for socket in &mut sockets {
        // Two requests at once: the second is found when the first is answered.
        let (first, second) = (post("/later", "1"), post("/", "2"));
        socket.write_all([first, second].concat().as_bytes()).unwrap();
    }
    for _ in 0..8 {
        let (_, reply) = fixture.echo.release();
        Reply::defer_to_reader(Box::new(WhoRunsIt(reply)));
    }
    for socket in &mut sockets {
        let by = answer(socket).1;
        assert!(by.starts_with("http-"), "{by}");
        assert_eq!(answer(socket).1, "2");
    }
    sockets[0].write_all(post("/later", "3").as_bytes()).unwrap();
    let (_, late) = fixture.echo.release();
    fixture.group.stop().trigger();
    fixture.server.close();
    assert_eq!(fixture.group.join(PATIENCE), Ended::Stopped);
    // Its socket is closed; that it ends without a panic is all that can be seen.
    Reply::defer_to_reader(Box::new(WhoRunsIt(late)));
    assert_eq!(sockets[0].read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_connection_that_arrives_during_a_drain_is_closed() {
    let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
    let (group, metrics) = (Supervisor::new("g", Stop::new()), ServerMetrics::new(&Registry::new()).of("http"));
    let reader = Reader::new(Arc::clone(&inbox), Arc::<Echo>::default(), Limits::default(), metrics, None);
    group.spawn("reader", move || reader.run());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        inbox.control.connection_opened(peer.ip(), 10, None).unwrap();
        inbox.post(Message::New(socket, peer));
        client
    };
    let mut before = connect();
    inbox.control.drain();
    inbox.wake();
    assert_eq!(before.read(&mut [0]).unwrap(), 0, "the reader knows of the drain");
    // Accepted in the moment before the acceptor learned of it.
    let mut late = connect();
    assert_eq!(late.read(&mut [0]).expect("it is closed soon"), 0);
    assert_eq!(inbox.control.wait_until_closed(PATIENCE), 0);
    group.stop().trigger();
    inbox.control.end();
    inbox.wake();
    assert_eq!(group.join(PATIENCE), Ended::Stopped);
}
