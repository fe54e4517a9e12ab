//! Tests of `/commit_batch` with a broker in memory.

use std::io::Write;

use serde_json::{Value, json};

use super::*;

const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson; charset=utf-8");
const BINARY: (&str, &str) = ("content-type", "Application/Octet-Stream");
/// A batch of one message: default key, no headers, the value `d`.
const BINARY_BODY: &[u8] = b"\xff\xff\xff\xff\0\0\0\0\0\x01d";

fn header(name: &str, value: &[u8]) -> Header {
    Header { name: name.to_owned(), value: Some(value.to_vec()) }
}

fn batch_fixture() -> Fixture {
    let mut fixture = fixture();
    fixture.handler().slots = SlotPool::new(5);
    fixture.handler().batch_limits =
        BatchLimits { max_messages: 4, max_body_bytes: 1000, max_value_bytes: 100, max_slots: 5 };
    fixture
}

/// Returns the status and the lines of the answer, and asserts that every line is JSON.
fn post(fixture: &Fixture, target: &str, fields: &[(&str, &str)], body: &[u8]) -> (u16, Vec<Value>) {
    let response = fixture.request_with("POST", target, fields, body).try_recv().expect("it is answered");
    let text = String::from_utf8(response.body.to_vec()).expect("answers are text");
    let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let is_result = response.content_type == "application/x-ndjson";
    assert!(is_result || lines.len() == 1, "{text}");
    assert!(!is_result || text.ends_with('\n'), "{text}");
    assert_eq!(response.headers.iter().any(|(name, _)| *name == "Retry-After"), response.status == 503);
    (response.status, lines)
}

#[test]
fn each_message_has_a_result_and_takes_defaults_from_the_query() {
    let fixture = batch_fixture();
    let body = br#"{"value":"a","partition":1,"headers":{"h":"1"}}
{"value":"b","key":"","timestamp":7}
{"value":"c","key":"own","headers":{"traceparent":"mine"}}
"#;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let target = "/commit_batch?topic=t&key=k&partition=2&timestamp=5";
    let (status, lines) = post(&fixture, target, &[NDJSON, ("traceparent", parent)], body);
    let expected =
        [(1, 0), (2, 0), (2, 1)].map(|(partition, offset)| json!({"partition": partition, "offset": offset}));
    assert_eq!((status, &lines[..]), (200, &expected[..]));
    let stored: Vec<_> =
        fixture.messages().into_iter().map(|message| (message.key, message.timestamp_ms, message.headers)).collect();
    let trace = || header("traceparent", parent.as_bytes());
    let expected = [
        (Some(b"k".to_vec()), Some(5), vec![header("h", b"1"), trace()]),
        (None, Some(7), vec![trace()]),
        (Some(b"own".to_vec()), Some(5), vec![header("traceparent", b"mine")]),
    ];
    assert_eq!(stored, expected);

    let (status, lines) = post(&fixture, "/commit_batch?topic=t&acks=0", &[BINARY], BINARY_BODY);
    assert_eq!((status, lines.len(), &lines[0]["offset"]), (200, 1, &Value::Null));
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    for line in [
        "kproxy_batches_total{code=\"200\"} 2",
        "kproxy_commits_total{acks=\"1\",code=\"200\",topic=\"t\"} 3",
        "kproxy_commits_total{acks=\"0\",code=\"200\",topic=\"t\"} 1",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is missing");
    }
    assert_eq!(fixture.handler.slots.used(), 0);
}

#[test]
fn a_null_value_is_stored_as_null_with_its_own_or_the_default_key() {
    let fixture = batch_fixture();
    let body = b"{\"value\":null,\"key\":\"own\",\"partition\":0}\n{\"value\":null,\"partition\":0}\n";
    assert_eq!(post(&fixture, "/commit_batch?topic=t&key=k", &[NDJSON], body).0, 200);
    let null = b"\xff\xff\xff\xff\0\0\xff\xff\xff\xff";
    assert_eq!(post(&fixture, "/commit_batch?topic=t&key=k&partition=0", &[BINARY], null).0, 200);
    let (status, lines) = post(&fixture, "/commit_batch?topic=t", &[BINARY], &[BINARY_BODY, null].concat());
    let message = "record 2: a null value needs a key, which it deletes";
    assert_eq!((status, &lines[0]["message"]), (400, &message.into()));
    let stored = fixture.messages().into_iter().map(|message| (message.key.unwrap_or_default(), message.value));
    let expected = [(b"own".to_vec(), None), (b"k".to_vec(), None), (b"k".to_vec(), None)];
    assert_eq!(stored.collect::<Vec<_>>(), expected);
}

#[test]
fn a_compressed_batch_is_decoded_or_refused() {
    let fixture = batch_fixture();
    let gzip = |plain: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let good = "{\"value\":\"a\"}\n{\"value\":\"b\"}\n";
    let whole = gzip(good);
    let of = |coding| ("Content-Encoding", coding);
    for (coding, body, status, code) in [
        ("gzip", whole.clone(), 200, None),
        ("identity", good.as_bytes().to_vec(), 200, None),
        ("bogus", whole.clone(), 415, Some("unsupported_coding")),
        ("gzip, gzip", gzip(good), 415, Some("unsupported_coding")),
        ("gzip", whole[..whole.len() - 3].to_vec(), 400, Some("bad_coding")),
        ("gzip", gzip(&" ".repeat(1001)), 413, Some("too_large")),
        ("gzip", gzip(""), 400, Some("empty_body")),
        ("gzip", Vec::new(), 400, Some("empty_body")),
        ("gzip", gzip(&format!("{good}{{")), 400, Some("bad_batch")),
        ("identity", whole.clone(), 400, Some("bad_batch")),
    ] {
        let (seen, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON, of(coding)], &body);
        let error = code.map_or(Value::Null, Value::from);
        assert_eq!((seen, &lines[0]["error"]), (status, &error), "{coding}: {lines:?}");
    }
    assert_eq!(fixture.messages().len(), 4);
}

#[test]
fn status_200_means_that_all_messages_are_stored() {
    let fixture = batch_fixture();
    let body =
        b"{\"value\":\"a\",\"partition\":0}\n{\"value\":\"b\",\"partition\":4}\n{\"value\":\"c\",\"partition\":0}";
    let (status, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON], body);
    assert_eq!((status, lines.len()), (404, 3));
    assert_eq!((&lines[0], &lines[2]), (&json!({"partition": 0, "offset": 0}), &json!({"partition": 0, "offset": 1})));
    let error = (&lines[1]["status"], &lines[1]["error"], &lines[1]["retriable"], &lines[1]["stored"]);
    assert_eq!(error, (&404.into(), &"unknown_partition".into(), &false.into(), &"no".into()));

    // The status says retriable if one of the messages is retriable.
    for (failure, stored, status) in
        [(AppendFailure::Unreachable, Stored::No, 503), (AppendFailure::TimedOut, Stored::Unknown, 504)]
    {
        fixture.broker.fail_next(failure, stored);
        let (seen, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON], body);
        assert_eq!((seen, &lines[0]["status"], &lines[1]["status"]), (status, &status.into(), &404.into()));
        assert!(lines[2]["offset"].is_number(), "{lines:?}");
    }
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    assert!(text.contains("kproxy_commits_total{acks=\"1\",code=\"404\",topic="), "{text}");
    assert!(text.contains("kproxy_batches_total{code=\"404\"} 1"), "{text}");
}

#[test]
fn a_refused_batch_stores_nothing() {
    let mut fixture = batch_fixture();
    let good = "{\"value\":\"a\"}\n";
    for (target, fields, body, status, code) in [
        ("/commit_batch", &[NDJSON][..], good, 400, "no_topic"),
        ("/commit_batch?topic=t&acks=2", &[NDJSON], good, 400, "bad_acks"),
        ("/commit_batch?topic=t", &[], good, 415, "unsupported_media_type"),
        ("/commit_batch?topic=t", &[("Content-Type", "application/json")], good, 415, "unsupported_media_type"),
        ("/commit_batch?topic=t", &[NDJSON, BINARY], good, 415, "unsupported_media_type"),
        ("/commit_batch?topic=t", &[NDJSON, ("X-Kafka-Header-A", "1")], good, 400, "bad_header"),
        ("/commit_batch?topic=t", &[NDJSON], "", 400, "empty_body"),
        ("/commit_batch?topic=t", &[NDJSON], &format!("{good}{{"), 400, "bad_batch"),
        ("/commit_batch?topic=t", &[BINARY], good, 400, "bad_batch"),
        ("/commit_batch?topic=t&key=k&tombstone=1", &[NDJSON], good, 400, "bad_tombstone"),
        ("/commit_batch?topic=t", &[NDJSON], &format!("{good}{{\"value\":null}}"), 400, "bad_batch"),
        ("/commit_batch?topic=t&key=k", &[NDJSON], r#"{"value":null,"key":""}"#, 400, "bad_batch"),
        ("/commit_batch?topic=t", &[NDJSON], &good.repeat(5), 413, "too_many_messages"),
        ("/commit_batch/?topic=t", &[NDJSON], good, 404, "unknown_path"),
    ] {
        let (seen, lines) = post(&fixture, target, fields, body.as_bytes());
        let expected = (status, &Value::from(code), &Value::from("no"));
        assert_eq!((seen, &lines[0]["error"], &lines[0]["stored"]), expected, "{target} {body}");
    }
    fixture.handler().has_headers_and_timestamps = false;
    for body in [r#"{"value":"a","headers":{"h":"1"}}"#, r#"{"value":"a","timestamp":1}"#] {
        let (status, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON], format!("{good}{body}").as_bytes());
        assert_eq!((status, &lines[0]["error"]), (400, &"unsupported".into()));
    }
    assert_eq!(fixture.messages(), []);
    assert_eq!(fixture.request_with("GET", "/commit_batch?topic=t", &[], b"").try_recv().unwrap().status, 405);
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    assert!(text.contains("kproxy_batches_total{code=\"415\"} 3"), "{text}");
}

#[test]
fn a_batch_that_never_fits_into_the_memory_is_not_worth_a_retry() {
    let (fixture, budget) = (batch_fixture(), ByteBudget::new(1000));
    let (topic, key) = ("t".into(), Some(vec![b'k'; 400]));
    let defaults = BatchDefaults { topic, key, partition: None, timestamp_ms: None, trace: Vec::new() };
    let prepare = |count: usize| {
        let body = b"{\"value\":\"a\"}\n".repeat(count);
        let prepared = fixture.handler.prepare_batch(BatchFormat::Ndjson, &defaults, body, &mut budget.lease());
        prepared.map(drop).map_err(|failure| (failure.status, failure.retriable))
    };
    // Each message has the default key, so that the messages take more memory than the body.
    assert_eq!((prepare(2), prepare(3)), (Ok(()), Err((413, false))));
    let mut others = budget.lease();
    assert!(others.grow_to(300));
    assert_eq!((prepare(1), prepare(2), prepare(3)), (Ok(()), Err((503, true)), Err((413, false))));
}

#[test]
fn all_messages_get_a_slot_or_none_and_the_last_outcome_sends_the_answer() {
    let fixture = batch_fixture();
    let body = b"{\"value\":\"a\"}\n{\"value\":\"b\"}\n{\"value\":\"c\"}\n";
    fixture.broker.hold_completions();
    let first = fixture.request_with("POST", "/commit_batch?topic=t", &[NDJSON], body);
    assert!(first.try_recv().is_err(), "nothing has been confirmed");
    let (status, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON], body);
    assert_eq!((status, &lines[0]["error"], &lines[0]["stored"]), (503, &"overloaded".into(), &"no".into()));
    assert_eq!(fixture.handler.slots.used(), 3, "the refused batch took no slot");
    let second = fixture.request_with("POST", "/commit_batch?topic=t", &[NDJSON], &body[..28]);
    assert!(second.try_recv().is_err());
    fixture.broker.release_completions();
    assert_eq!((first.try_recv().unwrap().status, second.try_recv().unwrap().status), (200, 200));
    assert_eq!(fixture.handler.slots.used(), 0);
    assert_eq!(fixture.messages().len(), 5);
}
