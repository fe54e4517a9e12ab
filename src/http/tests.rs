//! Tests of the server through real sockets, as its clients see it.

mod drains;
pub(super) mod fixture;
mod refused_connections;
mod slow_readers;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::*;
use crate::supervise::Ended;
use fixture::{PATIENCE, answer, post, start, whole_answer};

#[test]
fn a_connection_serves_one_request_after_another() {
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
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "the handler closes the connection");
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
        // Further requests of the connection are pending while this request is answered.
        reply.send(Response::text(200, request.body));
        assert_eq!(answer(&mut socket).1, kept);
        assert_eq!(answer(&mut socket).1, next);
    }
    drop(socket);
    fixture.end();
}

#[test]
fn pipelined_bytes_are_parsed_before_bytes_that_arrive_after_the_response() {
    let fixture = start(|_| ());
    // There are two readers, so connections 0, 2 and 4 have the same one.
    let mut sockets: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    let next = post("/", "the next body");
    let (begin, end) = next.split_at(20);
    sockets[0].write_all(format!("{}{begin}", post("/later", "a")).as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    sockets[2].write_all(post("/block", "").as_bytes()).unwrap();
    let (_, first_block) = fixture.echo.release();
    // The blocked reader finds the events of connections 4 and 0 in its next wait, in this order. The test sends the
    // response on connection 0 while the event of 4 blocks the reader, before the reader handles the event of 0.
    sockets[4].write_all(post("/block", "").as_bytes()).unwrap();
    sockets[0].write_all(end.as_bytes()).unwrap();
    fixture.echo.unblock.0.send(()).unwrap();
    let (_, second_block) = fixture.echo.release();
    reply.send(Response::text(200, "first"));
    assert_eq!(answer(&mut sockets[0]).1, "first");
    fixture.echo.unblock.0.send(()).unwrap();
    assert_eq!(answer(&mut sockets[0]), (200, "the next body".to_owned()));
    for (reply, index) in [(first_block, 2), (second_block, 4)] {
        reply.send(Response::text(200, "unblocked"));
        assert_eq!(answer(&mut sockets[index]).1, "unblocked");
    }
    drop(sockets);
    fixture.end();
}

#[test]
fn a_client_may_disconnect_or_half_close_while_its_request_is_answered() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    socket.write_all(post("/later", "a").as_bytes()).unwrap();
    let (_, reply) = fixture.echo.release();
    socket.shutdown(Shutdown::Write).unwrap();
    reply.send(Response::text(200, "still received"));
    assert_eq!(answer(&mut socket).1, "still received");
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);

    let mut socket = fixture.connect();
    socket.write_all(post("/later", "b").as_bytes()).unwrap();
    let (request, reply) = fixture.echo.release();
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    drop(request);
    reply.send(Response::text(200, "not received"));
    fixture.end();
}

#[test]
fn ambiguous_or_too_large_requests_are_refused_and_the_connection_closed() {
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
fn expect_continue_head_and_http_1_0_requests_get_the_right_form_of_response() {
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
fn every_response_to_a_request_gets_the_headers_of_the_handler() {
    let short = Duration::from_millis(150);
    let fixture = start(|limits| limits.read_timeout = short);
    for (line, more, status) in [
        ("GET /close", "\r\n", 200),
        ("GET /refuse", "Connection: close\r\n\r\n", 403),
        ("POST /refuse", "Content-Length: 9\r\n\r\nabc", 403),
        ("POST /refuse", "Content-Length: 900000\r\n\r\n", 403),
        ("GET /panic", "\r\n", 500),
        ("GET /panic-early", "\r\n", 500),
        ("GET /forget", "\r\n", 500),
        ("POST /", "Content-Length: 9000000\r\n\r\n", 413),
        ("POST /", "Transfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        ("POST /", "Content-Length: 9\r\n\r\nabc", 408),
    ] {
        let answer = fixture.exchange(format!("{line} HTTP/1.1\r\nHost: h\r\nX-Echo: e\r\n{more}").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line} {more}: {answer}");
        assert_eq!(answer.matches("\r\nX-Echo: e\r\n").count(), 1, "{line} {more}: {answer}");
    }
    fixture.end();
}

#[test]
fn a_request_with_a_truncated_body_is_dropped() {
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
fn deadlines_close_slow_senders_slow_readers_and_idle_connections() {
    let short = Duration::from_millis(150);
    let fixture =
        start(|limits| (limits.read_timeout, limits.write.stall, limits.idle_timeout) = (short, short, short * 3));
    let started = Instant::now();
    let answer = fixture.exchange(b"POST / HTTP/1.1\r\nHost:");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(started.elapsed() >= short && started.elapsed() < short * 20, "{:?}", started.elapsed());
    let answer = fixture.exchange(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let answer = fixture.exchange(b"HEAD /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "a response to HEAD has no body: {answer}");
    assert_eq!(fixture.exchange(b"\r\n\r"), "", "empty lines do not start a request, so the connection is idle");
    let started = Instant::now();
    assert_eq!(fixture.exchange(b""), "", "an idle connection is closed without a response");
    assert!(started.elapsed() >= short * 3, "{:?}", started.elapsed());

    // The client does not read the response, which is larger than the socket buffers.
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
fn a_large_response_arrives_whole_and_the_connection_is_kept() {
    let fixture = start(|_| ());
    let mut socket = fixture.connect();
    socket.write_all(format!("{}{}", post("/large", ""), post("/", "next")).as_bytes()).unwrap();
    assert_eq!(answer(&mut socket).1.len(), 32 << 20);
    assert_eq!(answer(&mut socket).1, "next");
    drop(socket);
    fixture.end();
}

#[test]
fn connections_and_bytes_beyond_the_limits_get_a_503() {
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
    assert_eq!(answer(&mut second).0, 503, "600 of 1000 bytes are leased");
    drop(request);
    reply.send(Response::text(200, "done"));
    assert_eq!(answer(&mut first).0, 200);
    drop(second);
    first.write_all(post("/", &"b".repeat(600)).as_bytes()).unwrap();
    assert_eq!(answer(&mut first).0, 200, "the 600 bytes were released");
    drop(first);
    fixture.end();
}

#[test]
fn all_memory_of_requests_is_within_the_budget() {
    let budget = ByteBudget::new(40_000);
    let fixture = start(|limits| limits.body_budget = Some(budget.clone()));
    let wait_until_used = |min: usize| {
        let deadline = Instant::now() + PATIENCE;
        while budget.used() < min {
            assert!(Instant::now() < deadline, "{} of {min} bytes", budget.used());
            std::thread::yield_now();
        }
    };
    // An incomplete head.
    let mut half = fixture.connect();
    half.write_all(format!("POST / HTTP/1.1\r\nHost: h\r\nX: {}", "y".repeat(10_000)).as_bytes()).unwrap();
    wait_until_used(10_000);
    // Pipelined bytes.
    let mut busy = fixture.connect();
    let ahead = post("/", &"z".repeat(9_000));
    busy.write_all(format!("{}{}", post("/later", "a"), &ahead[..ahead.len() - 1]).as_bytes()).unwrap();
    let (request, reply) = fixture.echo.release();
    wait_until_used(19_000);
    // A refused body is discarded and needs no lease, but its response, which is kept until the body is complete, does.
    let mut refused = fixture.connect();
    let body = "b".repeat(30_000);
    let head = format!("POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
    refused.write_all(format!("{head}{body}").as_bytes()).unwrap();
    // The budget has no room for another body or an incomplete head. A refused request without a body needs no room.
    let mut other = fixture.connect();
    other.write_all(post("/", &"c".repeat(25_000)).as_bytes()).unwrap();
    let (status, text) = answer(&mut other);
    assert_eq!((status, text.as_str()), (503, "refusal: too many request bytes in flight, retry later"));
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
fn more_pipelined_requests_than_one_turn_allows_are_all_answered() {
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
fn pipelined_requests_that_take_long_let_other_connections_in_between() {
    let fixture = start(|_| ());
    // There are two readers, so connections 0, 2 and 4 have the same one.
    let mut sockets: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    sockets[2].write_all(post("/block", "").as_bytes()).unwrap();
    let (_, blocked) = fixture.echo.release();
    sockets[0].write_all(post("/slow", "a").repeat(20).as_bytes()).unwrap();
    sockets[4].write_all(post("/count-slow", "").as_bytes()).unwrap();
    fixture.echo.unblock.0.send(()).unwrap();
    let handled: usize = answer(&mut sockets[4]).1.parse().unwrap();
    assert!(handled <= 3, "{handled} requests of another connection came first");
    for _ in 0..20 {
        assert_eq!(answer(&mut sockets[0]), (200, "a".to_owned()));
    }
    blocked.send(Response::text(200, "unblocked"));
    assert_eq!(answer(&mut sockets[2]).1, "unblocked");
    drop(sockets);
    fixture.end();
}

#[test]
fn a_dropped_reply_answers_500_with_the_refusal_of_the_handler() {
    let fixture = start(|_| ());
    let answer = fixture.exchange(post("/forget", "a").as_bytes());
    assert!(answer.ends_with(&format!("refusal: {UNANSWERED}")), "{answer}");
    fixture.end();
}

/// A deferred response whose body is the name of the thread that runs it.
struct AnswerWithThreadName(Reply);

impl DeferredResponse for AnswerWithThreadName {
    fn run(self: Box<Self>) {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        self.0.send(Response::text(200, name));
    }
}

impl HasReply for AnswerWithThreadName {
    fn reply(&mut self) -> &Reply {
        &self.0
    }
}

#[test]
fn the_reader_runs_deferred_responses_and_the_caller_after_the_reader_has_ended() {
    let fixture = start(|_| ());
    let mut sockets: Vec<_> = (0..8).map(|_| fixture.connect()).collect();
    for socket in &mut sockets {
        // Two requests in one write: the reader parses the second when the first is answered.
        let (first, second) = (post("/later", "1"), post("/", "2"));
        socket.write_all([first, second].concat().as_bytes()).unwrap();
    }
    let mut deferred = DeferredResponses::default();
    for _ in 0..8 {
        let (_, reply) = fixture.echo.release();
        deferred.add(Box::new(AnswerWithThreadName(reply)));
    }
    drop(deferred);
    for socket in &mut sockets {
        let thread_name = answer(socket).1;
        assert!(thread_name.starts_with("http-"), "{thread_name}");
        assert_eq!(answer(socket).1, "2");
    }
    sockets[0].write_all(post("/later", "3").as_bytes()).unwrap();
    let (_, late) = fixture.echo.release();
    fixture.group.stop().trigger();
    fixture.server.close();
    assert_eq!(fixture.group.join(PATIENCE), Ended::Stopped);
    // The connection is shut down, so the test can check only that this does not panic.
    DeferredResponses::default().add(Box::new(AnswerWithThreadName(late)));
    assert_eq!(sockets[0].read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn many_deferred_responses_are_not_held_back_until_the_last() {
    let fixture = start(|limits| limits.max_connections = 200);
    let mut sockets: Vec<_> = (0..200).map(|_| fixture.connect()).collect();
    for socket in &mut sockets {
        socket.write_all(post("/later", "1").as_bytes()).unwrap();
    }
    let mut deferred = DeferredResponses::default();
    for _ in 0..sockets.len() {
        let (_, reply) = fixture.echo.release();
        deferred.add(Box::new(AnswerWithThreadName(reply)));
    }
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let deadline = Instant::now() + PATIENCE;
    // Of each of the two readers fewer than 64 are left.
    while sockets.iter().filter(|socket| socket.peek(&mut [0]).is_ok()).count() <= 200 - 2 * 64 {
        assert!(Instant::now() < deadline, "no response is sent before the last one is added");
        std::thread::yield_now();
    }
    drop(deferred);
    for socket in &mut sockets {
        socket.set_nonblocking(false).unwrap();
        assert_eq!(answer(socket).0, 200);
    }
    drop(sockets);
    fixture.end();
}
