//! Clients that do not read, or slowly: the memory and the time of their responses are bounded.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fixture::{Fixture, PATIENCE, answer, post, shared_page, start, whole_answer};
use crate::http::connection::{Connection, Phase};
use crate::http::encode::EncodeOptions;
use crate::http::inbox::Inbox;
use crate::http::unsent::AnswerLease;
use crate::http::{Body, ByteBudget, Response, SharedBytes, WriteLimits};

const LARGE_BYTES: usize = 32 << 20;

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Requests the large response on a new connection.
fn request_large(fixture: &Fixture) -> TcpStream {
    let mut socket = fixture.connect();
    socket.write_all(post("/large", "").as_bytes()).unwrap();
    socket
}

#[test]
fn unread_responses_count_in_the_budget_until_they_are_read_or_the_connection_ends() {
    let fixture = start(|_| ());
    let mut first = request_large(&fixture);
    wait_until("the response is leased", || fixture.budget.used() > LARGE_BYTES / 2);
    // The budget of 8 MiB is exceeded now: no further request that needs memory is admitted, and none is answered
    // with a large response.
    let refused = fixture.exchange(post("/", "x").as_bytes());
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(fixture.exchange(b"GET /refuse HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").contains(" 403 "));
    assert_eq!(answer(&mut first).1.len(), LARGE_BYTES);
    wait_until("the lease is released", || fixture.budget.used() == 0);

    let second = request_large(&fixture);
    wait_until("the response is leased", || fixture.budget.used() > LARGE_BYTES / 2);
    drop(second);
    wait_until("the lease is released", || fixture.budget.used() == 0);
    first.write_all(post("/", "x").as_bytes()).unwrap();
    assert_eq!(answer(&mut first).0, 200);
    drop(first);
    fixture.end();
}

#[test]
fn while_the_budget_is_exceeded_a_large_response_is_cut_off() {
    let fixture = start(|_| ());
    let mut kept = fixture.connect();
    kept.write_all(post("/later", "").as_bytes()).unwrap();
    let (request, reply) = fixture.echo.release();
    let first = request_large(&fixture);
    wait_until("the response is leased", || fixture.budget.used() > LARGE_BYTES / 2);
    drop(request);
    reply.send(Response::text(200, vec![b'x'; LARGE_BYTES]));
    let mut rest = Vec::new();
    // The end of the stream or a reset, before the whole response.
    let _ = kept.read_to_end(&mut rest);
    assert!(rest.len() < LARGE_BYTES, "{}", rest.len());
    drop((first, kept));
    fixture.end();
}

#[test]
fn a_response_that_takes_too_long_is_cut_off_although_the_client_reads() {
    let fixture = start(|limits| limits.write.max = Duration::from_millis(1));
    let mut socket = request_large(&fixture);
    let mut rest = 0;
    // The end of the stream or a reset, before the whole response.
    while let Ok(read @ 1..) = socket.read(&mut [0; 1000]) {
        rest += read;
    }
    assert!(rest < LARGE_BYTES, "{rest}");
    let line = "http_timeouts_total{deadline=\"write\",server=\"http\"} 1";
    wait_until("the time-out is counted", || fixture.metric(line));
    drop(socket);
    fixture.end();
}

/// Returns a client and its connection, without a reader.
fn connection() -> (TcpStream, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let inbox = Arc::new(Inbox::new(Arc::default()).unwrap());
    let connection = Connection::new(socket, peer, 7, inbox, Instant::now(), None, AnswerLease::default());
    connection.begin_hand_over();
    (client, connection)
}

fn answer_with(connection: &Connection, body: Body) {
    let options = EncodeOptions { head_only: false, keep_alive: true, is_http10: false, keep_alive_seconds: 0 };
    connection.answer(Response::text(200, body), Vec::new(), options);
}

#[test]
fn each_byte_that_the_client_takes_postpones_the_deadline() {
    let (mut client, connection) = connection();
    let limits = WriteLimits::with_timeout(Duration::ZERO);
    answer_with(&connection, vec![b'x'; LARGE_BYTES].into());
    assert_eq!(connection.phase().0, Phase::Writing);
    let mut before = connection.write_deadline(&limits);
    let mut renewals = 0;
    let mut chunk = vec![0; 1 << 20];
    while connection.phase().0 == Phase::Writing {
        client.read_exact(&mut chunk).unwrap();
        connection.flush();
        if connection.phase().0 == Phase::Writing {
            let after = connection.write_deadline(&limits);
            assert!(after >= before);
            renewals += usize::from(after > before);
            before = after;
        }
    }
    assert!(renewals > 3, "{renewals}");
}

#[test]
fn slow_readers_of_one_page_share_its_memory_and_get_all_of_it() {
    let fixture = start(|_| ());
    let mut sockets: Vec<_> = (0..8).map(|_| fixture.connect()).collect();
    for socket in &mut sockets {
        socket.write_all(format!("{}{}", post("/shared", ""), post("/", "next")).as_bytes()).unwrap();
    }
    wait_until("all are being written", || shared_page().references() > sockets.len());
    assert!(fixture.budget.used() < 100_000, "no client has a copy: {}", fixture.budget.used());
    for mut socket in sockets {
        let (status, page) = answer(&mut socket);
        assert_eq!((status, page.as_bytes() == &**shared_page()), (200, true));
        assert_eq!(answer(&mut socket).1, "next");
    }
    wait_until("the page is released", || shared_page().references() == 1);
    fixture.end();
}

#[test]
fn a_page_that_is_withdrawn_is_released_although_its_client_has_not_read_it() {
    let page = SharedBytes::from(vec![b'x'; LARGE_BYTES]);
    let (watch, unread) = (page.watch(), page.watch());
    let (mut client, connection) = connection();
    answer_with(&connection, page.into());
    assert_eq!((connection.phase().0, watch.held_bytes()), (Phase::Writing, LARGE_BYTES));
    let mut chunk = vec![0; 1 << 20];
    client.read_exact(&mut chunk).unwrap();
    connection.flush();
    assert_eq!((connection.phase().0, watch.held_bytes()), (Phase::Writing, LARGE_BYTES), "it is read");
    unread.withdraw();
    client.read_exact(&mut chunk).unwrap();
    connection.flush();
    assert_eq!((connection.phase().0, watch.held_bytes()), (Phase::Broken, 0));
}

#[test]
fn a_large_response_beyond_the_answer_budget_is_replaced_by_a_503() {
    let answers = ByteBudget::new(LARGE_BYTES + LARGE_BYTES / 2);
    let fixture = start(|limits| limits.answer_budget = Some(answers.clone()));
    let mut first = request_large(&fixture);
    wait_until("the response is leased", || answers.used() >= LARGE_BYTES);
    let mut second = fixture.connect();
    second.write_all(post("/large", "").as_bytes()).unwrap();
    let (status, head, body) = whole_answer(&mut second);
    assert_eq!((status, body.as_str()), (503, "refusal: too many unread response bytes, retry later"));
    assert!(head.contains("\r\nRetry-After: 1\r\n") && !head.contains("Connection: close"), "{head}");
    assert!(fixture.metric("http_limits_total{limit=\"answer_bytes\",server=\"http\"} 1"));
    // Small responses and shared pages need no room, and HEAD sends no body.
    second.write_all(post("/", "small").as_bytes()).unwrap();
    assert_eq!(answer(&mut second).1, "small");
    second.write_all(b"HEAD /large HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut head = vec![0; 12];
    second.read_exact(&mut head).unwrap();
    assert_eq!(head, b"HTTP/1.1 200");
    assert_eq!(answer(&mut first).1.len(), LARGE_BYTES);
    wait_until("the lease is released", || answers.used() == 0);
    first.write_all(post("/large", "").as_bytes()).unwrap();
    assert_eq!(answer(&mut first).1.len(), LARGE_BYTES);
    drop((first, second));
    fixture.end();
}
