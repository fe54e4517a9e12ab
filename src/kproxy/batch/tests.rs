//! Both formats by table and property, and batches on their way through kproxy.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::broker::{AppendFailure, Stored};
use crate::kproxy::commit::tests::{Fixture, fixture};

const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson; charset=utf-8");
const BINARY: (&str, &str) = ("content-type", "Application/Octet-Stream");
const BOUNDS: Bounds = Bounds { messages: 3, bytes: 1 << 20, value_bytes: 20, places: 1000 };

/// The messages of a body, or the refusal.
type Outcome<E> = Result<Vec<Entry>, E>;

fn header(name: &str, value: &[u8]) -> Header {
    Header { name: name.to_owned(), value: Some(value.to_vec()) }
}

fn of_value(value: &[u8]) -> Entry {
    Entry { value: value.to_vec(), ..Entry::default() }
}

/// The binary form of messages; partition and timestamp have no place in it.
fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
    };
    for entry in entries {
        match &entry.key {
            Some(key) => put(&mut out, key),
            None => out.extend([0xff; 4]),
        }
        out.extend(u16::try_from(entry.headers.len()).unwrap().to_be_bytes());
        for header in &entry.headers {
            out.extend(u16::try_from(header.name.len()).unwrap().to_be_bytes());
            out.extend(header.name.as_bytes());
            put(&mut out, header.value.as_ref().unwrap());
        }
        put(&mut out, &entry.value);
    }
    out
}

#[test]
fn a_line_is_a_message_or_is_refused_with_its_place() {
    let whole = Entry {
        key: Some(b"k".to_vec()),
        headers: vec![header("b", b"\xc3\xa4"), header("a", b"")],
        partition: Some(i32::MAX),
        timestamp_ms: Some(i64::MAX),
        ..of_value(b"v")
    };
    let full = r#" { "key":"k", "value":"v", "headers":{"b":"\u00e4","a":""}, "partition":2147483647, "timestamp":9223372036854775807 } "#;
    let many_headers: Vec<_> = (0..=MAX_HEADERS).map(|number| format!(r#""{number}":"""#)).collect();
    let many_headers = format!(r#"{{"value":"v","headers":{{{}}}}}"#, many_headers.join(","));
    let large_key = format!(r#"{{"value":"v","key":"{}"}}"#, "k".repeat(MAX_KEY_AND_HEADERS_BYTES + 1));
    let unknown = format!(r#"{{"{}":1}}"#, "\u{e4}".repeat(1_000));
    let wrong = format!(r#"{{"partition":"{}"}}"#, "\u{e4}".repeat(1_000));
    // The body; its messages, or the word and the beginning of the message of the refusal.
    let rows: &[(&str, Outcome<(&str, &str)>)] = &[
        (r#"{"value":"v"}"#, Ok(vec![of_value(b"v")])),
        (full, Ok(vec![whole])),
        ("{\"value\":\"1\"}\n{\"value\":\"2\"}\r\n", Ok(vec![of_value(b"1"), of_value(b"2")])),
        (r#"{"value":"\ud83d\ude00\n\u0000"}"#, Ok(vec![of_value("\u{1f600}\n\0".as_bytes())])),
        (r#"{"value_json": {"a" : [1.0, null]} }"#, Ok(vec![of_value(br#"{"a" : [1.0, null]}"#)])),
        (r#"{"value_json":"text"}"#, Ok(vec![of_value(br#""text""#)])),
        (r#"{"value_json":1e400}"#, Ok(vec![of_value(b"1e400")])),
        (r#"{"value_json":null}"#, Ok(vec![of_value(b"null")])),
        (r#"{"value_base64":"AP8="}"#, Ok(vec![of_value(b"\0\xff")])),
        (r#"{"value":"v","key":""}"#, Ok(vec![Entry { key: Some(Vec::new()), ..of_value(b"v") }])),
        (r#"{"value":"v","key_base64":"AP8="}"#, Ok(vec![Entry { key: Some(b"\0\xff".to_vec()), ..of_value(b"v") }])),
        ("", Err(("empty_body", "a batch has at least one message"))),
        ("\n", Err(("bad_batch", "line 1: it is empty"))),
        ("{\"value\":\"v\"}\n\n", Err(("bad_batch", "line 2: it is empty"))),
        ("{\"value\":\"v\"}\n \r\n", Err(("bad_batch", "line 2: it is empty"))),
        ("[{\"value\":\"v\"}]", Err(("bad_batch", "line 1, byte 1: invalid type: sequence, expected an object"))),
        ("{\"value\":\"v\"} {\"value\":\"v\"}", Err(("bad_batch", "line 1, byte 15: trailing characters"))),
        ("{\"value\":\"v\"}\n{\"value\":\"v", Err(("bad_batch", "line 2, byte 11: EOF while parsing a string"))),
        ("{\"value\":\n\"v\"}", Err(("bad_batch", "line 1, byte 9: EOF"))),
        ("{}", Err(("bad_batch", "line 1, byte 2: one of value, value_json and value_base64 is needed"))),
        (r#"{"value":""}"#, Err(("bad_batch", "line 1: the value is empty"))),
        (r#"{"value":null}"#, Err(("bad_batch", "line 1, byte 13: invalid type: null, expected a string"))),
        (r#"{"value":{}}"#, Err(("bad_batch", "line 1, byte 9: invalid type: map, expected a string"))),
        (r#"{"value":1}"#, Err(("bad_batch", "line 1, byte 10: invalid type: integer `1`, expected a string"))),
        (r#"{"value":"\ud800"}"#, Err(("bad_batch", "line 1, byte 17: unexpected end of hex escape"))),
        (r#"{"value":"a","value":"a"}"#, Err(("bad_batch", "line 1, byte 25: the value is given twice"))),
        (r#"{"value":"a","value_json":1}"#, Err(("bad_batch", "line 1, byte 28: the value is given twice"))),
        (r#"{"value":"a","key":"","key_base64":""}"#, Err(("bad_batch", "line 1, byte 38: the key is given twice"))),
        (r#"{"value_base64":"AP8"}"#, Err(("bad_batch", "line 1, byte 21: invalid value: string \"AP8\", expected a"))),
        (r#"{"value_base64":"-_8="}"#, Err(("bad_batch", "line 1, byte 22: invalid value"))),
        (r#"{"value_json":{"a":}}"#, Err(("bad_batch", "line 1, byte 20: expected value"))),
        (r#"{"valeu":"v"}"#, Err(("bad_batch", "line 1, byte 8: there is no member \"valeu\""))),
        (&unknown, Err(("bad_batch", "line 1, byte "))),
        (&wrong, Err(("bad_batch", "line 1, byte "))),
        (
            r#"{"value":"v","partition":-1}"#,
            Err(("bad_batch", "line 1, byte 27: invalid type: integer `-1`, expected a whole")),
        ),
        (r#"{"value":"v","partition":2147483648}"#, Err(("bad_batch", "line 1, byte 35: invalid value: integer"))),
        (r#"{"value":"v","partition":1.0}"#, Err(("bad_batch", "line 1, byte 28: invalid type: floating"))),
        (r#"{"value":"v","timestamp":null}"#, Err(("bad_batch", "line 1, byte 29: invalid type: null"))),
        (r#"{"value":"v","timestamp":9223372036854775808}"#, Err(("bad_batch", "line 1, byte 44: invalid value"))),
        (r#"{"value":"v","headers":{"a":1}}"#, Err(("bad_batch", "line 1, byte 29: invalid type: integer"))),
        (
            r#"{"value":"v","headers":{"a":"","a":""}}"#,
            Err(("bad_batch", "line 1, byte 34: the header \"a\" is given twice")),
        ),
        (r#"{"value":"v","headers":{"":"x"}}"#, Err(("bad_batch", "line 1: a header's name is empty"))),
        (
            r#"{"value":"v","headers":{"\u0000":"x"}}"#,
            Err(("bad_batch", "line 1: a header's name is empty or has a zero")),
        ),
        (&many_headers, Err(("too_large", "line 1: there are more than 100 headers"))),
        (&large_key, Err(("too_large", "line 1: key and headers have 16385 bytes"))),
        ("{\"value\":\"123456789012345678901\"}", Err(("too_large", "line 1: the value has 21 bytes"))),
    ];
    for (body, expected) in rows {
        let outcome = Format::Ndjson.parse(body.as_bytes(), &BOUNDS);
        match (&outcome, expected) {
            (Ok(entries), Ok(expected)) => assert_eq!(entries, expected, "{body}"),
            (Err(failure), Err((code, start))) => {
                assert_eq!(failure.code, *code, "{body}");
                assert!(failure.message.starts_with(start), "{body}: {}", failure.message);
                assert!(failure.message.len() < 300, "{}", failure.message);
                let status = if *code == "too_large" { 413 } else { 400 };
                assert_eq!((failure.status, failure.stored), (status, Stored::No));
            }
            _ => panic!("{body}: {outcome:?}"),
        }
    }
    assert_eq!(Format::Ndjson.parse(b"{\"value\":\"\xff\"}", &BOUNDS).unwrap_err().code, "bad_batch");
    assert_eq!(Format::Ndjson.parse(b"{\"value_json\":\"\xff\"}", &BOUNDS).unwrap_err().code, "bad_batch");
    // However deep, it costs no stack.
    let deep = format!(r#"{{"value_json":{}"#, "[".repeat(1_000_000));
    assert_eq!(Format::Ndjson.parse(deep.as_bytes(), &BOUNDS).unwrap_err().code, "bad_batch");
}

#[test]
fn a_record_is_a_message_or_is_refused_with_its_place() {
    let whole =
        Entry { key: Some(b"k".to_vec()), headers: vec![header("n", b"\xff"), header("n", b"")], ..of_value(b"v") };
    let no_key = [0xff; 4];
    let nothing_beside = [&no_key[..], &[0, 0]].concat();
    // Bytes; messages, or the beginning of the refusal.
    let rows: &[(Vec<u8>, Outcome<&str>)] = &[
        (
            [
                &[0, 0, 0, 1, b'k', 0, 2][..],
                &[0, 1, b'n', 0, 0, 0, 1, 0xff, 0, 1, b'n', 0, 0, 0, 0],
                &[0, 0, 0, 1, b'v'],
            ]
            .concat(),
            Ok(vec![whole]),
        ),
        ([&nothing_beside[..], &[0, 0, 0, 1, 0]].concat(), Ok(vec![of_value(b"\0")])),
        (vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'v'], Ok(vec![Entry { key: Some(Vec::new()), ..of_value(b"v") }])),
        (vec![0], Err("record 1, byte 1: the length of the key has 4 bytes, but the body has only 1 more")),
        (vec![0, 0, 0, 9, b'k'], Err("record 1, byte 5: the key has 9 bytes, but the body has only 1 more")),
        (vec![0xff, 0xff, 0xff, 0xfe, b'k'], Err("record 1, byte 5: the key has 4294967294 bytes")),
        (no_key.to_vec(), Err("record 1, byte 5: the number of headers has 2 bytes, but the body has only 0 more")),
        ([&no_key[..], &[0, 101]].concat(), Err("record 1, byte 7: there are 101 headers, at most 100 can be")),
        (
            [&no_key[..], &[0, 1, 0, 1, 0xff, 0, 0, 0, 0]].concat(),
            Err("record 1, byte 10: a header's name is not UTF-8"),
        ),
        ([&no_key[..], &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]].concat(), Err("record 1: a header's name is empty")),
        ([&nothing_beside[..], &[0, 0, 0, 0]].concat(), Err("record 1: the value is empty")),
        ([&nothing_beside[..], &[0, 0, 0, 2, 0]].concat(), Err("record 1, byte 11: the value has 2 bytes, but")),
        ([&encode(&[of_value(b"v")])[..], &[0]].concat(), Err("record 2, byte 12: the length of the key")),
        (encode(&[of_value(&[0; 21])]), Err("record 1: the value has 21 bytes, max_request_size_bytes is 20")),
        (Vec::new(), Err("a batch has at least one message")),
    ];
    for (body, expected) in rows {
        let outcome = Format::Binary.parse(body, &BOUNDS);
        match (&outcome, expected) {
            (Ok(entries), Ok(expected)) => assert_eq!(entries, expected, "{body:?}"),
            (Err(failure), Err(start)) => assert!(failure.message.starts_with(start), "{body:?}: {}", failure.message),
            _ => panic!("{body:?}: {outcome:?}"),
        }
    }
}

#[test]
fn no_more_messages_than_may_be_are_read() {
    let line = "{\"value\":\"v\"}\n";
    let binary = |count| encode(&vec![of_value(b"v"); count]);
    for (bounds, named) in
        [(BOUNDS, "max_batch_messages"), (Bounds { messages: 9, places: 3, ..BOUNDS }, "req_pool_size")]
    {
        assert_eq!(Format::Ndjson.parse(line.repeat(3).as_bytes(), &bounds).unwrap().len(), 3);
        assert_eq!(Format::Binary.parse(&binary(3), &bounds).unwrap().len(), 3);
        // What is wrong further on is not looked at any more.
        let lines = Format::Ndjson.parse(format!("{}{{", line.repeat(3)).as_bytes(), &bounds).unwrap_err();
        let records = Format::Binary.parse(&[&binary(3)[..], &[1]].concat(), &bounds).unwrap_err();
        for failure in [lines, records] {
            assert_eq!((failure.status, failure.code, failure.retriable), (413, "too_many_messages", false));
            assert!(failure.message.contains(named), "{}", failure.message);
        }
    }
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let bytes = || vec(any::<u8>(), 0..20);
    let value = vec(any::<u8>(), 1..20);
    let headers = vec(("[^\\x00]{1,5}", bytes()).prop_map(|(name, value)| header(&name, &value)), 0..4);
    let entry = (option::of(bytes()), value, headers).prop_map(|(key, value, headers)| Entry {
        key,
        value,
        headers,
        ..Entry::default()
    });
    vec(entry, 1..=3)
}

fn texts() -> impl Strategy<Value = Vec<Entry>> {
    let headers = proptest::collection::btree_map("[^\\x00]{1,5}", ".{0,9}", 0..4);
    let entry = (option::of(".{0,9}"), "(?s).{1,5}", headers, option::of(0_i32..), option::of(0_i64..));
    let entry = entry.prop_map(|(key, value, headers, partition, timestamp_ms)| Entry {
        key: key.map(String::into_bytes),
        value: value.into_bytes(),
        headers: headers.iter().map(|(name, value)| header(name, value.as_bytes())).collect(),
        partition,
        timestamp_ms,
    });
    vec(entry, 1..=3)
}

fn line_of(entry: &Entry) -> String {
    let text = |bytes: &[u8]| Value::from(str::from_utf8(bytes).unwrap());
    let mut line = serde_json::Map::new();
    line.insert("value".into(), text(&entry.value));
    let headers = entry.headers.iter().map(|header| (header.name.clone(), text(header.value.as_ref().unwrap())));
    line.insert("headers".into(), Value::Object(headers.collect()));
    for (name, value) in [
        ("key", entry.key.as_deref().map(text)),
        ("partition", entry.partition.map(Value::from)),
        ("timestamp", entry.timestamp_ms.map(Value::from)),
    ] {
        line.extend(value.map(|value| (name.to_owned(), value)));
    }
    Value::Object(line).to_string()
}

proptest! {
    #[test]
    fn what_was_encoded_comes_back(entries in entries()) {
        prop_assert_eq!(Format::Binary.parse(&encode(&entries), &BOUNDS), Ok(entries));
    }

    #[test]
    fn what_was_put_in_lines_comes_back(entries in texts()) {
        let lines: Vec<_> = entries.iter().map(line_of).collect();
        prop_assert_eq!(Format::Ndjson.parse(lines.join("\n").as_bytes(), &BOUNDS), Ok(entries));
    }

    #[test]
    fn no_bytes_are_too_odd(bytes in vec(any::<u8>(), 0..200), text in "(?s).{0,60}") {
        let _ = Format::Binary.parse(&bytes, &BOUNDS);
        let _ = Format::Ndjson.parse(&bytes, &BOUNDS);
        let _ = Format::Ndjson.parse(format!("{{\"value\":{text}}}").as_bytes(), &BOUNDS);
        let _ = Format::Ndjson.parse(format!("{{\"key\":\"{text}\",\"value_base64\":\"{text}\"}}").as_bytes(), &BOUNDS);
    }

    #[test]
    fn a_body_that_was_cut_is_never_taken_for_another(entries in entries(), cut in any::<prop::sample::Index>()) {
        let body = encode(&entries);
        let cut = cut.index(body.len());
        match Format::Binary.parse(&body[..cut], &BOUNDS) {
            Ok(kept) => prop_assert!(entries.starts_with(&kept) && encode(&kept).len() == cut),
            Err(failure) => prop_assert!(failure.code == "bad_batch" || cut == 0),
        }
    }
}

fn batches() -> Fixture {
    let mut fixture = fixture();
    fixture.commits().max_commits = 5;
    fixture.commits().batches = Bounds { messages: 4, bytes: 1000, value_bytes: 100, places: 5 };
    fixture
}

/// Status and lines of the answer.
fn post(fixture: &Fixture, target: &str, fields: &[(&str, &str)], body: &[u8]) -> (u16, Vec<Value>) {
    let response = fixture.request_with("POST", target, fields, body).try_recv().expect("it is answered");
    let text = String::from_utf8(response.body).expect("answers are text");
    let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let is_result = response.content_type == "application/x-ndjson";
    assert!(is_result || lines.len() == 1, "{text}");
    assert!(!is_result || text.ends_with('\n'), "{text}");
    assert_eq!(response.headers.iter().any(|(name, _)| *name == "Retry-After"), response.status == 503);
    (response.status, lines)
}

#[test]
fn each_message_has_a_result_and_the_query_fills_in_what_it_does_not_say() {
    let fixture = batches();
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

    let (status, lines) = post(&fixture, "/commit_batch?topic=t&acks=0", &[BINARY], &encode(&[of_value(b"d")]));
    assert_eq!((status, lines.len(), &lines[0]["offset"]), (200, 1, &Value::Null));
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    for line in [
        "kproxy_batches_total{code=\"200\"} 2",
        "kproxy_commits_total{acks=\"1\",code=\"200\",topic=\"t\"} 3",
        "kproxy_commits_total{acks=\"0\",code=\"200\",topic=\"t\"} 1",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is missing");
    }
    assert_eq!(fixture.commits.in_flight.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn a_status_of_success_is_for_all_messages_or_none() {
    let fixture = batches();
    let body =
        b"{\"value\":\"a\",\"partition\":0}\n{\"value\":\"b\",\"partition\":4}\n{\"value\":\"c\",\"partition\":0}";
    let (status, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON], body);
    assert_eq!((status, lines.len()), (404, 3));
    assert_eq!((&lines[0], &lines[2]), (&json!({"partition": 0, "offset": 0}), &json!({"partition": 0, "offset": 1})));
    let told = (&lines[1]["status"], &lines[1]["error"], &lines[1]["retriable"], &lines[1]["stored"]);
    assert_eq!(told, (&404.into(), &"unknown_partition".into(), &false.into(), &"no".into()));

    // Worth another try as soon as one of the messages is.
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
fn a_batch_that_is_refused_is_refused_whole() {
    let mut fixture = batches();
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
        ("/commit_batch?topic=t", &[NDJSON], &good.repeat(5), 413, "too_many_messages"),
        ("/commit_batch/?topic=t", &[NDJSON], good, 404, "unknown_path"),
    ] {
        let (seen, lines) = post(&fixture, target, fields, body.as_bytes());
        let expected = (status, &Value::from(code), &Value::from("no"));
        assert_eq!((seen, &lines[0]["error"], &lines[0]["stored"]), expected, "{target} {body}");
    }
    fixture.commits().has_headers_and_timestamps = false;
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
fn all_messages_have_a_place_or_none_and_the_last_outcome_answers() {
    let fixture = batches();
    let body = b"{\"value\":\"a\"}\n{\"value\":\"b\"}\n{\"value\":\"c\"}\n";
    fixture.broker.hold_completions();
    let first = fixture.request_with("POST", "/commit_batch?topic=t", &[NDJSON], body);
    assert!(first.try_recv().is_err(), "nothing has been confirmed");
    let (status, lines) = post(&fixture, "/commit_batch?topic=t", &[NDJSON], body);
    assert_eq!((status, &lines[0]["error"], &lines[0]["stored"]), (503, &"overloaded".into(), &"no".into()));
    assert_eq!(fixture.commits.in_flight.load(std::sync::atomic::Ordering::Relaxed), 3, "none was taken");
    let second = fixture.request_with("POST", "/commit_batch?topic=t", &[NDJSON], &body[..28]);
    assert!(second.try_recv().is_err());
    fixture.broker.release_completions();
    assert_eq!((first.try_recv().unwrap().status, second.try_recv().unwrap().status), (200, 200));
    assert_eq!(fixture.commits.in_flight.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(fixture.messages().len(), 5);
}
