//! Tests of a push over real sockets: the bytes that the backend receives, and the outcome of the attempt.

use super::*;
use std::time::Duration;

use crate::ktransfer::backend_client::{BackendResolver, HttpClient};
use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::test_backend::TestBackend;
use crate::ktransfer::test_fixtures::{RECORD_HEADERS, job, module_config};

mod answers;
mod connections;
mod limits;
#[cfg(feature = "tls")]
mod tls;

/// The client of a module with the usual test configuration, and the pusher of its first worker.
fn client(server: &str) -> (HttpClient, Pusher) {
    client_with(server, |_| {})
}

/// As [`client`], with a changed configuration.
fn client_with(server: &str, change: impl FnOnce(&mut ModuleConfig)) -> (HttpClient, Pusher) {
    let mut config = module_config(&[server]);
    change(&mut config);
    let profile = ClientProfile::new(&config, BackendResolver::new(&config.backend_servers));
    let client = HttpClient::new(1);
    let pusher = client.pusher(0, Arc::new(profile));
    (client, pusher)
}

/// Pushes `job` to `server` as the first attempt.
fn push(pusher: &mut Pusher, job: &Job, server: &str) -> PushEnd {
    let url = pusher.url(job, server);
    pusher.push(job, &url, 1)
}

fn answered(status: u16, retry_after_s: Option<u64>) -> PushEnd {
    let retry_after = retry_after_s.map(Duration::from_secs);
    PushEnd::Attempted(AttemptOutcome::Answered { status, retry_after })
}

/// The kind of error of a failed attempt.
#[track_caller]
fn error_of(end: PushEnd) -> Option<TransportError> {
    match end {
        PushEnd::Attempted(AttemptOutcome::Failed { error, .. }) => error,
        other => panic!("not a failed attempt: {other:?}"),
    }
}

/// The reason of a failed attempt.
#[track_caller]
fn failure(end: PushEnd) -> String {
    match end {
        PushEnd::Attempted(AttemptOutcome::Failed { reason, .. }) => reason,
        other => panic!("not a failed attempt: {other:?}"),
    }
}

#[test]
fn a_push_has_the_message_as_body_and_its_topic_partition_and_offset_as_headers() {
    let backend = TestBackend::start(|_| 200);
    let (_client, mut pusher) = client(&backend.server);
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let job = job(Some(b"k/\xff"), Some(&body), RECORD_HEADERS);
    let url = pusher.url(&job, &backend.server);
    assert_eq!(pusher.push(&job, &url, 2), answered(200, Some(7)));
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
        ("x-kafka-claim", Some("1")),
        ("idempotency-key", Some("m/t/3/42/1700000000123")),
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
    let (_client, mut pusher) = client(&backend.server);
    assert_eq!(push(&mut pusher, &job(None, None, &[]), &backend.server), answered(204, None));
    let request = &backend.received()[0];
    assert_eq!((request.url.as_str(), request.body.len()), ("/p?key=&transid=42&method=%2A", 0));
    assert_eq!((request.header("x-kafka-key"), request.header("content-length")), (None, Some("0")));
}

#[test]
fn a_message_that_no_request_can_carry_returns_impossible_and_nothing_is_sent() {
    let backend = TestBackend::start(|_| 200);
    let (_client, mut pusher) = client(&backend.server);
    let long_key = vec![b'/'; 20_000];
    let end = push(&mut pusher, &job(Some(&long_key), Some(b"body"), &[]), &backend.server);
    assert!(matches!(end, PushEnd::Attempted(AttemptOutcome::Impossible { .. })), "{end:?}");
    assert!(backend.received().is_empty());
}
