//! Tests of a push over real sockets: the bytes that the backend receives, and the outcome of the attempt.

use super::*;
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::ktransfer::test_backend::TestBackend;
use crate::ktransfer::test_fixtures::{RECORD_HEADERS, job, module_config};

fn pusher(server: &str) -> Pusher {
    let config = module_config(&[server]);
    Pusher::new(&config, BackendResolver::new(&config.backend_servers))
}

fn answered(status: u16) -> AttemptOutcome {
    AttemptOutcome::Answered { status, retry_after: Some(Duration::from_secs(7)) }
}

#[test]
fn a_push_has_the_message_as_body_and_its_topic_partition_and_offset_as_headers() {
    let backend = TestBackend::start(|_| 200);
    let pusher = pusher(&backend.server);
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let job = job(Some(b"k/\xff"), Some(&body), RECORD_HEADERS);
    let url = pusher.url(&job, &backend.server);
    assert_eq!(pusher.push(&job, &url, 2), answered(200));
    let request = &backend.received()[0];
    assert_eq!(request.url, "/p?key=k%2F%FF&transid=42&method=%2A");
    assert!(request.body == body);
    for (name, value) in [
        ("host", Some("www.example.org")),
        ("x-two", Some("a")),
        ("x-kafka-topic", Some("t")),
        ("x-kafka-partition", Some("3")),
        ("x-kafka-offset", Some("42")),
        ("x-kafka-key", Some("k%2F%FF")),
        ("x-kafka-timestamp", Some("1700000000123")),
        ("x-kafka-attempt", Some("2")),
        ("idempotency-key", Some("m/t/3/42")),
        ("x-kafka-header-trace", Some("a b/c")),
        ("x-kafka-header-null", Some("")),
        ("x-kafka-header-bad name", None),
        ("x-kafka-header-bad-value", None),
        ("x-kafka-header-long", None),
        ("y", None),
        ("content-length", Some("100000")),
        ("accept", None),
        ("accept-encoding", None),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
    assert_eq!(request.headers.iter().filter(|(name, _)| name == "x-two").count(), 2);
    assert_eq!(request.headers.iter().filter(|(name, _)| name == "host").count(), 1);
}

#[test]
fn a_message_without_key_and_value_is_sent_as_an_empty_post() {
    let backend = TestBackend::start(|_| 204);
    let pusher = pusher(&backend.server);
    let job = job(None, None, &[]);
    let url = pusher.url(&job, &backend.server);
    assert!(matches!(pusher.push(&job, &url, 1), AttemptOutcome::Answered { status: 204, .. }));
    let request = &backend.received()[0];
    assert_eq!((request.url.as_str(), request.body.len()), ("/p?key=&transid=42&method=%2A", 0));
    assert_eq!((request.header("x-kafka-key"), request.header("content-length")), (None, Some("0")));
}

#[test]
fn every_status_is_an_answer_and_the_connection_is_reused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let pusher = pusher(&server);
    let statuses = [200u16, 302, 404, 500, 503, 299];
    let serving = std::thread::spawn(move || {
        // Only one connection is accepted, so a request on a second connection would time out.
        let (mut stream, _) = listener.accept().unwrap();
        let mut first_reads = Vec::new();
        for status in statuses {
            let mut request = [0; 4096];
            first_reads.push(io::Read::read(&mut stream, &mut request).unwrap());
            let answer = format!("HTTP/1.1 {status} X\r\nLocation: /elsewhere\r\nContent-Length: 3\r\n\r\nabc");
            stream.write_all(answer.as_bytes()).unwrap();
        }
        first_reads
    });
    let job = job(Some(b"k"), Some(b"body"), &[]);
    let url = pusher.url(&job, &server);
    for status in statuses {
        assert_eq!(pusher.push(&job, &url, 1), AttemptOutcome::Answered { status, retry_after: None });
    }
    let first_reads = serving.join().unwrap();
    assert!(
        first_reads.windows(2).all(|pair| pair[0] == pair[1]),
        "head and body were not sent with one write: {first_reads:?}"
    );
}

#[test]
fn an_attempt_without_an_answer_fails_within_its_timeouts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let began = Instant::now();
    let job = job(None, Some(b"body"), &[]);
    let pusher_of_silent = pusher(&silent);
    let outcome = pusher_of_silent.push(&job, &pusher_of_silent.url(&job, &silent), 1);
    assert!(matches!(&outcome, AttemptOutcome::Failed { reason } if reason.contains("timeout")), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    // The port is closed now, so the connect is refused.
    drop(listener);
    let outcome = pusher_of_silent.push(&job, &pusher_of_silent.url(&job, &silent), 1);
    assert!(matches!(&outcome, AttemptOutcome::Failed { reason } if reason.contains("refused")), "{outcome:?}");
}

#[test]
fn a_message_that_no_request_can_carry_returns_impossible_and_nothing_is_sent() {
    let backend = TestBackend::start(|_| 200);
    let pusher = pusher(&backend.server);
    let long_key = vec![b'/'; 20_000];
    let job = job(Some(&long_key), Some(b"body"), &[]);
    let url = pusher.url(&job, &backend.server);
    assert!(matches!(pusher.push(&job, &url, 1), AttemptOutcome::Impossible { .. }));
    assert!(backend.received().is_empty());
}

#[test]
fn an_abort_ends_a_push_without_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let mut config = module_config(&[&silent]);
    config.protocol.read_timeout = None;
    let pusher = Arc::new(Pusher::new(&config, BackendResolver::new(&config.backend_servers)));
    let job = job(None, Some(b"body"), &[]);
    let url = pusher.url(&job, &silent);
    let pushing = Arc::clone(&pusher);
    let thread = std::thread::spawn(move || pushing.push(&job, &url, 1));
    // The backend received bytes, so the request was sent.
    let (stream, _) = listener.accept().unwrap();
    stream.peek(&mut [0]).unwrap();
    pusher.abort();
    assert!(matches!(thread.join().unwrap(), AttemptOutcome::Failed { .. }));
}
