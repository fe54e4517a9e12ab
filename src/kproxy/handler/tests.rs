//! Tests of the handler with a broker in memory.

mod batch;
mod results;

use super::*;
use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{AppendFailure, Message, Stored};
use crate::http::{ByteBudget, ByteLease};
use crate::metrics::Registry;
use std::sync::mpsc;

struct Fixture {
    handler: Arc<CommitHandler>,
    broker: MemoryBroker,
    registry: Registry,
}

fn fixture() -> Fixture {
    let (registry, broker) = (Registry::new(), MemoryBroker::new());
    broker.create_topic("t", 4);
    let handler = CommitHandler {
        producers: ProducerPool::new(vec![Arc::new(broker.producer())]),
        admin: Admin::new(registry.clone(), Health::new()),
        metrics: Arc::new(KproxyMetrics::new(&registry)),
        access: None,
        origins: None,
        slots: SlotPool::new(2),
        max_message_bytes: 100,
        commit_coding: CommitCoding::Keep,
        batch_limits: BatchLimits { max_messages: 4, max_body_bytes: 1000, max_value_bytes: 100, max_slots: 2 },
        has_headers_and_timestamps: true,
    };
    Fixture { handler: Arc::new(handler), broker, registry }
}

impl Fixture {
    fn head(method: &'static str, target: &str) -> Head {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let method = Cow::Borrowed(method);
        Head { method, path: path.to_owned(), query: query.map(str::to_owned), ..Head::default() }
    }

    /// Gives mutable access to the handler, before the first request.
    fn handler(&mut self) -> &mut CommitHandler {
        Arc::get_mut(&mut self.handler).unwrap()
    }

    /// Passes a request to the handler as the HTTP server does. The returned channel receives the answer.
    fn request(&self, method: &'static str, target: &str, body: &[u8]) -> mpsc::Receiver<Response> {
        self.request_with(method, target, &[], body)
    }

    fn request_with(
        &self,
        method: &'static str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> mpsc::Receiver<Response> {
        let (sender, answers) = mpsc::channel();
        let deliver = move |response| sender.send(response).unwrap();
        let mut head = Self::head(method, target);
        fields.iter().for_each(|(name, value)| head.headers.push(name, value.as_bytes()));
        match Arc::clone(&self.handler).admit(&head) {
            Admission::Refuse(response) => deliver(response),
            Admission::Read { max_body_bytes, then } => {
                assert!(body.len() <= max_body_bytes);
                let request = Request { head, body: body.to_vec(), lease: ByteLease::default() };
                then(request, Reply::to(deliver));
            }
        }
        answers
    }

    fn answer(&self, method: &'static str, target: &str, body: &[u8]) -> (u16, String) {
        let response = self.request(method, target, body).try_recv().unwrap();
        (response.status, String::from_utf8(response.body.to_vec()).unwrap())
    }

    fn messages(&self) -> Vec<Message> {
        (0..4).flat_map(|partition| self.broker.messages("t", partition)).collect()
    }
}

#[test]
fn a_message_is_stored_verbatim_with_its_key() {
    let fixture = fixture();
    let (status, body) = fixture.answer("POST", "/commit?topic=t&key=%00k&acks=-1", b"\x81\xa6method");
    let [message] = &fixture.messages()[..] else { panic!("one message") };
    assert_eq!((message.key.as_deref(), message.value.as_deref()), (Some(&b"\0k"[..]), Some(&b"\x81\xa6method"[..])));
    let expected = format!(r#"{{"topic":"t","partition":{},"offset":0}}"#, message.from.partition);
    assert_eq!((status, body), (200, expected));

    let (status, body) = fixture.answer("POST", "/commit?topic=t&acks=0", b"x");
    assert!(status == 200 && body.ends_with(r#""offset":null}"#), "{body}");
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    assert!(text.contains(r#"kproxy_commits_total{acks="-1",code="200",topic="t"} 1"#), "{text}");
    assert!(text.contains(r#"kproxy_commit_seconds_count{acks="0"} 1"#), "{text}");
}

#[test]
fn partition_timestamp_and_headers_go_into_the_record() {
    let mut fixture = fixture();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = [("X-Kafka-Header-Tenant", "blue"), ("Traceparent", parent)];
    let target = "/commit?topic=t&partition=2&timestamp=1700000000123";
    let answers = fixture.request_with("POST", target, &fields, b"x");
    assert_eq!(answers.try_recv().unwrap().body.to_vec(), br#"{"topic":"t","partition":2,"offset":0}"#);
    let [message] = &fixture.broker.messages("t", 2)[..] else { panic!("one message") };
    let headers: Vec<_> = message.headers.iter().map(|header| (&*header.name, header.value.as_deref())).collect();
    let expected = [("tenant", Some(&b"blue"[..])), ("traceparent", Some(parent.as_bytes()))];
    assert_eq!((&headers[..], message.timestamp_ms), (&expected[..], Some(1_700_000_000_123)));

    let (status, body) = fixture.answer("POST", "/commit?topic=t&partition=4", b"x");
    assert!(status == 404 && body.contains("unknown_partition"), "{body}");

    fixture.handler().has_headers_and_timestamps = false;
    for (target, fields) in [("/commit?topic=t&timestamp=1", &fields[1..]), ("/commit?topic=t", &fields[..])] {
        let response = fixture.request_with("POST", target, fields, b"x").try_recv().unwrap();
        let body = String::from_utf8(response.body.to_vec()).unwrap();
        assert!(response.status == 400 && body.contains("unsupported"), "{body}");
    }
    let answers = fixture.request_with("POST", "/commit?topic=t&partition=3", &fields[1..], b"x");
    assert_eq!(answers.try_recv().unwrap().status, 200, "the trace context is dropped");
    assert_eq!(fixture.broker.messages("t", 3)[0].headers, []);
    assert_eq!(fixture.messages().len(), 2);
}

#[test]
fn a_tombstone_has_a_null_value() {
    let fixture = fixture();
    let (status, _) = fixture.answer("POST", "/commit?topic=t&key=k&tombstone=1", b"");
    assert_eq!((status, fixture.answer("POST", "/commit?topic=t&key=k&tombstone=0", b"x").0), (200, 200));
    let stored = fixture.messages().into_iter().map(|message| (message.key, message.value));
    let key = || Some(b"k".to_vec());
    assert_eq!(stored.collect::<Vec<_>>(), [(key(), None), (key(), Some(b"x".to_vec()))]);
}

/// `hello` in gzip.
const GZIPPED: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0";

#[test]
fn a_coding_is_kept_decoded_or_refused() {
    let headers_of = |message: &Message| -> Vec<(String, Vec<u8>)> {
        let pair = |header: &Header| (header.name.clone(), header.value.clone().unwrap_or_default());
        message.headers.iter().map(pair).collect()
    };
    let kept = |value: &str| Ok((GZIPPED, vec![("Content-Encoding".to_owned(), value.as_bytes().to_vec())]));
    let own = Ok((GZIPPED, vec![("content-encoding".to_owned(), b"mine".to_vec())]));
    let decoded = Ok((&b"hello"[..], vec![]));
    let as_it_is = Ok((GZIPPED, vec![]));
    let gzip = ("Content-Encoding", "gzip");
    type Row<'a, T> = (CommitCoding, &'a [(&'a str, &'a str)], Result<T, (u16, &'a str)>);
    let rows: [Row<'_, _>; 13] = [
        (CommitCoding::Keep, &[gzip], kept("gzip")),
        (CommitCoding::Keep, &[("Content-Encoding", "br")], kept("br")),
        (CommitCoding::Keep, &[gzip, ("Content-Encoding", "identity, gzip")], kept("gzip, gzip")),
        (CommitCoding::Keep, &[gzip, ("X-Kafka-Header-Content-Encoding", "mine")], own),
        (CommitCoding::Keep, &[("Content-Encoding", "identity")], as_it_is.clone()),
        (CommitCoding::Keep, &[("Content-Encoding", "")], as_it_is.clone()),
        (CommitCoding::Decode, &[gzip], decoded.clone()),
        (CommitCoding::Decode, &[("Content-Encoding", "X-GZIP")], decoded),
        (CommitCoding::Decode, &[("Content-Encoding", "br")], Err((415, "unsupported_coding"))),
        (CommitCoding::Decode, &[("Content-Encoding", "zstd")], Err((400, "bad_coding"))),
        (CommitCoding::Decode, &[], as_it_is.clone()),
        (CommitCoding::Refuse, &[gzip], Err((415, "unsupported_coding"))),
        (CommitCoding::Refuse, &[("Content-Encoding", "identity")], as_it_is),
    ];
    for (coding, fields, expected) in rows {
        let mut fixture = fixture();
        fixture.handler().commit_coding = coding;
        let response = fixture.request_with("POST", "/commit?topic=t", fields, GZIPPED).try_recv().unwrap();
        let text = String::from_utf8(response.body.to_vec()).unwrap();
        match expected {
            Ok((value, headers)) => {
                assert_eq!(response.status, 200, "{coding:?} {fields:?}: {text}");
                let [message] = &fixture.messages()[..] else { panic!("one message") };
                assert_eq!((message.value.as_deref(), headers_of(message)), (Some(value), headers), "{fields:?}");
            }
            Err((status, code)) => {
                assert!(response.status == status && text.contains(code), "{coding:?} {fields:?}: {text}");
                assert_eq!(fixture.messages(), []);
            }
        }
    }
    let mut fixture = fixture();
    let answers = fixture.request_with("POST", "/commit?topic=t&key=k&tombstone=1", &[gzip], b"");
    assert_eq!((answers.try_recv().unwrap().status, headers_of(&fixture.messages()[0])), (200, vec![]));
    fixture.handler().has_headers_and_timestamps = false;
    let answers = fixture.request_with("POST", "/commit?topic=t&key=k", &[gzip], GZIPPED);
    assert_eq!((answers.try_recv().unwrap().status, headers_of(&fixture.messages()[1])), (200, vec![]));
}

#[test]
fn each_invalid_request_has_its_error_code_and_stores_nothing() {
    let fixture = fixture();
    for (method, target, body, status, code) in [
        ("POST", "/commit", "x", 400, "no_topic"),
        ("POST", "/commit?topic=a/b", "x", 400, "bad_topic"),
        ("POST", "/commit?topic=t&acks=7", "x", 400, "bad_acks"),
        ("POST", "/commit?topic=t&partition=x", "x", 400, "bad_partition"),
        ("POST", "/commit?topic=t&timestamp=x", "x", 400, "bad_timestamp"),
        ("POST", "/commit?topic=t&topic=t", "x", 400, "repeated_parameter"),
        ("POST", "/commit?topic=t", "", 400, "empty_body"),
        ("POST", "/commit?topic=t&key=k&tombstone=0", "", 400, "empty_body"),
        ("POST", "/commit?topic=t&key=k&tombstone=1", "x", 400, "bad_tombstone"),
        ("POST", "/commit?topic=t&tombstone=1", "", 400, "bad_tombstone"),
        ("POST", "/commit?topic=t&key=k&tombstone=yes", "", 400, "bad_tombstone"),
        ("POST", "/commit?topic=absent", "x", 404, "unknown_topic"),
        ("POST", "/Commit?topic=t", "x", 404, "unknown_path"),
        ("POST", "/", "x", 404, "unknown_path"),
        ("GET", "/favicon.ico", "", 404, "unknown_path"),
        ("OPTIONS", "/other", "", 404, "unknown_path"),
        ("GET", "/commit?topic=t", "", 405, "not_post"),
        ("HEAD", "/commit?topic=t", "", 405, "not_post"),
        ("PUT", "/commit?topic=t", "x", 405, "not_post"),
    ] {
        let (seen, answer) = fixture.answer(method, target, body.as_bytes());
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (seen, &answer["error"], &answer["stored"]),
            (status, &code.into(), &"no".into()),
            "{method} {target}"
        );
    }
    assert_eq!(fixture.messages(), []);
}

#[test]
fn probes_of_load_balancers_are_answered_with_200() {
    let fixture = fixture();
    for (method, target, allow) in [
        ("OPTIONS", "/commit", Some("POST, OPTIONS")),
        ("OPTIONS", "/commit_batch", Some("POST, OPTIONS")),
        ("OPTIONS", "*", Some("GET, HEAD, POST, OPTIONS")),
        ("OPTIONS", "/", Some("GET, HEAD, OPTIONS")),
        ("OPTIONS", "/healthz", Some("GET, HEAD, OPTIONS")),
        ("OPTIONS", "/metrics", Some("GET, HEAD, OPTIONS")),
        ("GET", "/", None),
        ("HEAD", "/", None),
        ("GET", "/healthz", None),
        ("HEAD", "/healthz", None),
        ("GET", "/metrics", None),
    ] {
        let response = fixture.request(method, target, b"").try_recv().unwrap();
        let seen = response.headers.iter().find(|(name, _)| *name == "Allow").map(|(_, value)| value.as_str());
        assert_eq!((response.status, seen), (200, allow), "{method} {target}");
    }
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    assert!(!text.contains("kproxy_commits_total{"), "none is counted as a refused request: {text}");
}

#[test]
fn a_pre_flight_request_needs_no_credentials_and_an_allowed_origin() {
    let mut fixture = fixture();
    let credentials = "credentials: [{name: n, token: s3cret}]\n";
    fixture.handler().access = Some(AccessControl::for_tests("", credentials, &fixture.registry));
    let fields = |origin| [("Origin", origin), ("Access-Control-Request-Method", "POST")];
    let (known, other) = ("https://app.example", "https://other.example");
    let status = |fixture: &Fixture, target, origin| {
        fixture.request_with("OPTIONS", target, &fields(origin), b"").try_recv().unwrap().status
    };
    assert_eq!(status(&fixture, "/commit", known), 200, "off by default");
    assert_eq!(fixture.handler.response_headers(None), []);
    fixture.handler().origins = Some(AllowedOrigins::Listed(vec![known.to_owned()]));
    for (target, origin, expected) in [
        ("/commit?topic=t", known, 204),
        ("/commit_batch?topic=t", known, 204),
        ("/metrics", known, 204),
        ("/healthz", known, 204),
        ("/commit?topic=t", other, 200),
        ("/metrics", other, 200),
        ("/nowhere", known, 404),
    ] {
        assert_eq!(status(&fixture, target, origin), expected, "{target} {origin}");
    }
    let posted = fixture.request_with("POST", "/commit?topic=t", &fields(known), b"x").try_recv().unwrap();
    assert_eq!(posted.status, 401);
}

#[test]
fn credentials_are_checked_before_the_query_and_rates_last() {
    let mut fixture = fixture();
    let (lines, credentials) = (
        "rate_limits: [{topics: [t], requests_per_second: 2}]\n",
        "credentials: [{name: n, token: s3cret, topics: [t]}]\n",
    );
    fixture.handler().access = Some(AccessControl::for_tests(lines, credentials, &fixture.registry));
    let good = [("authorization", "Bearer s3cret")];
    for (method, target, fields, status) in [
        ("POST", "/commit?topic=t", &[][..], 401),
        ("POST", "/commit?topic=a/b", &[], 401),
        ("POST", "/commit?topic=t", &[("authorization", "Bearer other")], 401),
        ("GET", "/metrics", &[], 401),
        ("GET", "/metrics", &good, 200),
        ("GET", "/healthz", &[], 200),
        ("GET", "/commit", &[], 405),
        ("POST", "/commit?topic=absent", &good, 403),
        ("POST", "/commit?topic=t&acks=7", &good, 400),
        ("POST", "/commit?topic=t", &good, 200),
        ("POST", "/commit?topic=t", &good, 200),
        ("POST", "/commit?topic=t", &good, 429),
    ] {
        let response = fixture.request_with(method, target, fields, b"x").try_recv().unwrap();
        let text = String::from_utf8(response.body.to_vec()).unwrap();
        assert_eq!(response.status, status, "{method} {target} {fields:?}: {text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert_eq!(fixture.messages().len(), 2);
}

#[test]
fn a_failed_append_says_whether_the_message_may_be_stored() {
    let fixture = fixture();
    fixture.broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
    let (status, body) = fixture.answer("POST", "/commit?topic=t", b"x");
    assert!(status == 504 && body.contains(r#""stored":"unknown""#), "{body}");
    fixture.broker.fail_next(AppendFailure::Unreachable, Stored::No);
    let response = fixture.request("POST", "/commit?topic=t", b"x").try_recv().unwrap();
    assert_eq!((response.status, response.headers[0].0), (503, "Retry-After"));
}

#[test]
fn a_full_pool_is_refused_at_once_and_slots_are_released() {
    let fixture = fixture();
    fixture.broker.hold_completions();
    let waiting: Vec<_> = (0..2).map(|_| fixture.request("POST", "/commit?topic=t", b"x")).collect();
    let (status, body) = fixture.answer("POST", "/commit?topic=t", b"x");
    assert!(status == 503 && body.contains("req_pool_size"), "{body}");
    assert_eq!(fixture.handler.metrics.pool_full.get(), 1);
    assert!(waiting.iter().all(|answers| answers.try_recv().is_err()));
    fixture.broker.release_completions();
    assert!(waiting.iter().all(|answers| answers.try_recv().unwrap().status == 200));
    assert_eq!(fixture.handler.slots.used(), 0);
    assert_eq!(fixture.messages().len(), 2);
}

#[test]
fn slot_and_bytes_are_released_before_the_answer() {
    let fixture = fixture();
    let budget = ByteBudget::new(100);
    for (target, status) in [("/commit?topic=t", 200), ("/commit?topic=absent", 404)] {
        let mut lease = budget.lease();
        assert!(lease.grow_to(1));
        let (budget, handler) = (budget.clone(), Arc::clone(&fixture.handler));
        let (sender, answers) = mpsc::channel();
        let reply = Reply::to(move |response| {
            sender.send((response.status, handler.slots.used(), budget.used())).unwrap();
        });
        let head = Fixture::head("POST", target);
        let Admission::Read { then, .. } = Arc::clone(&fixture.handler).admit(&head) else { panic!("not admitted") };
        let request = Request { head, body: b"x".to_vec(), lease };
        then(request, reply);
        assert_eq!(answers.try_recv().unwrap(), (status, 0, 0));
    }
}
