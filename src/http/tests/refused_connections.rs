//! Connections beyond the limits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::fixture::{Fixture, PATIENCE, answer, post, start};

fn wait_for_refusals(fixture: &Fixture, count: usize) {
    let line = format!("http_limits_total{{limit=\"connections\",server=\"http\"}} {count}");
    let deadline = Instant::now() + PATIENCE;
    while !fixture.metric(&line) {
        assert!(Instant::now() < deadline, "{count} connections are refused");
        std::thread::yield_now();
    }
}

#[test]
fn the_503_reaches_a_client_that_sends_a_large_request_before_it_reads() {
    let fixture = start(|limits| limits.max_connections = 1);
    let mut first = fixture.connect();
    first.write_all(post("/", "a").as_bytes()).unwrap();
    assert_eq!(answer(&mut first), (200, "a".to_owned()));
    let mut refused = fixture.connect();
    wait_for_refusals(&fixture, 1);
    // Written in several parts, so that a reset would fail one of them.
    let request = post("/", &"b".repeat(900_000));
    request.as_bytes().chunks(100_000).for_each(|part| refused.write_all(part).expect("no reset"));
    let (status, body) = answer(&mut refused);
    assert_eq!((status, body.as_str()), (503, "refusal: too many connections"));
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    assert!(fixture.metric("http_connections{server=\"http\"} 1"), "refused connections do not count");
    drop((first, refused));
    fixture.end();
}

#[test]
fn very_many_connections_beyond_the_limit_are_refused_at_once() {
    let fixture = start(|limits| limits.max_connections = 1);
    let mut first = fixture.connect();
    first.write_all(post("/", "a").as_bytes()).unwrap();
    assert_eq!(answer(&mut first), (200, "a".to_owned()));
    let refused: Vec<TcpStream> = (0..100).map(|_| fixture.connect()).collect();
    wait_for_refusals(&fixture, 100);
    for mut socket in refused {
        assert_eq!(answer(&mut socket).0, 503);
    }
    drop(first);
    fixture.end();
}
