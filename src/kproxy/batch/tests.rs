//! Tests of both formats, by tables and properties.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::Value;

use super::limits::{MAX_HEADERS, MAX_KEY_AND_HEADERS_BYTES};
use super::*;
use crate::broker::{Header, Stored};

const LIMITS: BatchLimits =
    BatchLimits { max_messages: 3, max_body_bytes: 1 << 20, max_value_bytes: 20, max_slots: 1000 };

/// The messages of a body, or why it is refused.
type Outcome<E> = Result<Vec<ParsedMessage>, E>;

fn header(name: &str, value: &[u8]) -> Header {
    Header { name: name.to_owned(), value: Some(value.to_vec()) }
}

fn of_value(value: &[u8]) -> ParsedMessage {
    ParsedMessage { value: Some(value.to_vec()), ..ParsedMessage::default() }
}

/// Encodes messages in the binary format, which has no partition and no timestamp.
fn encode(messages: &[ParsedMessage]) -> Vec<u8> {
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
    };
    for message in messages {
        match &message.key {
            Some(key) => put(&mut out, key),
            None => out.extend([0xff; 4]),
        }
        out.extend(u16::try_from(message.headers.len()).unwrap().to_be_bytes());
        for header in &message.headers {
            out.extend(u16::try_from(header.name.len()).unwrap().to_be_bytes());
            out.extend(header.name.as_bytes());
            put(&mut out, header.value.as_ref().unwrap());
        }
        match &message.value {
            Some(value) => put(&mut out, value),
            None => out.extend([0xff; 4]),
        }
    }
    out
}

#[test]
fn a_line_is_a_message_or_is_refused_with_its_number() {
    let whole = ParsedMessage {
        key: Some(b"k".to_vec()),
        headers: vec![header("b", b"\xc3\xa4"), header("a", b"")],
        partition: Some(i32::MAX),
        timestamp_ms: Some(i64::MAX),
        ..of_value(b"v")
    };
    let full = concat!(
        r#" { "key":"k", "value":"v", "headers":{"b":"\u00e4","a":""}, "#,
        r#""partition":2147483647, "timestamp":9223372036854775807 } "#
    );
    let many_headers: Vec<_> = (0..=MAX_HEADERS).map(|number| format!(r#""{number}":"""#)).collect();
    let many_headers = format!(r#"{{"value":"v","headers":{{{}}}}}"#, many_headers.join(","));
    let large_key = format!(r#"{{"value":"v","key":"{}"}}"#, "k".repeat(MAX_KEY_AND_HEADERS_BYTES + 1));
    let unknown = format!(r#"{{"{}":1}}"#, "\u{e4}".repeat(1_000));
    let wrong = format!(r#"{{"partition":"{}"}}"#, "\u{e4}".repeat(1_000));
    // The body; its messages, or the code and the beginning of the message of the refusal.
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
        (r#"{"value":"v","key":""}"#, Ok(vec![ParsedMessage { key: Some(Vec::new()), ..of_value(b"v") }])),
        (
            r#"{"value":"v","key_base64":"AP8="}"#,
            Ok(vec![ParsedMessage { key: Some(b"\0\xff".to_vec()), ..of_value(b"v") }]),
        ),
        ("", Err(("empty_body", "empty body: a batch needs at least one message"))),
        ("\n", Err(("bad_batch", "line 1: empty line"))),
        ("{\"value\":\"v\"}\n\n", Err(("bad_batch", "line 2: empty line"))),
        ("{\"value\":\"v\"}\n \r\n", Err(("bad_batch", "line 2: empty line"))),
        ("[{\"value\":\"v\"}]", Err(("bad_batch", "line 1, byte 1: invalid type: sequence, expected an object"))),
        ("{\"value\":\"v\"} {\"value\":\"v\"}", Err(("bad_batch", "line 1, byte 15: trailing characters"))),
        ("{\"value\":\"v\"}\n{\"value\":\"v", Err(("bad_batch", "line 2, byte 11: EOF while parsing a string"))),
        ("{\"value\":\n\"v\"}", Err(("bad_batch", "line 1, byte 9: EOF"))),
        (
            "{}",
            Err(("bad_batch", "line 1, byte 2: missing value: one of value, value_json and value_base64 is required")),
        ),
        (r#"{"value":""}"#, Err(("bad_batch", "line 1: the value is empty"))),
        (r#"{"value":null}"#, Ok(vec![ParsedMessage::default()])),
        (r#"{"value":null,"value":"v"}"#, Err(("bad_batch", "line 1, byte 26: the value is given more than once"))),
        (r#"{"value":nul}"#, Err(("bad_batch", "line 1, byte 13: expected ident"))),
        (r#"{"value_base64":null}"#, Err(("bad_batch", "line 1, byte 20: invalid type: null, expected a base64"))),
        (r#"{"value":null,"key":null}"#, Err(("bad_batch", "line 1, byte 24: invalid type: null, expected a string"))),
        (r#"{"value":{}}"#, Err(("bad_batch", "line 1, byte 9: invalid type: map, expected a string"))),
        (r#"{"value":1}"#, Err(("bad_batch", "line 1, byte 10: invalid type: integer, expected a string"))),
        (r#"{"value":"\ud800"}"#, Err(("bad_batch", "line 1, byte 17: unexpected end of hex escape"))),
        (r#"{"value":"a","value":"a"}"#, Err(("bad_batch", "line 1, byte 25: the value is given more than once"))),
        (r#"{"value":"a","value_json":1}"#, Err(("bad_batch", "line 1, byte 28: the value is given more than once"))),
        (
            r#"{"value":"a","key":"","key_base64":""}"#,
            Err(("bad_batch", "line 1, byte 38: the key is given more than once")),
        ),
        (r#"{"value_base64":"AP8"}"#, Err(("bad_batch", "line 1, byte 21: invalid value: string, expected a base64"))),
        (r#"{"value_base64":"-_8="}"#, Err(("bad_batch", "line 1, byte 22: invalid value"))),
        (r#"{"value_json":{"a":}}"#, Err(("bad_batch", "line 1, byte 20: expected value"))),
        (r#"{"valeu":"v"}"#, Err(("bad_batch", "line 1, byte 8: unknown member \"valeu\""))),
        (&unknown, Err(("bad_batch", "line 1, byte "))),
        (&wrong, Err(("bad_batch", "line 1, byte "))),
        (
            r#"{"value":"v","partition":-1}"#,
            Err(("bad_batch", "line 1, byte 27: invalid type: integer, expected an integer")),
        ),
        (r#"{"value":"v","partition":2147483648}"#, Err(("bad_batch", "line 1, byte 35: invalid value: integer"))),
        (r#"{"value":"v","partition":1.0}"#, Err(("bad_batch", "line 1, byte 28: invalid type: floating"))),
        (r#"{"value":"v","timestamp":null}"#, Err(("bad_batch", "line 1, byte 29: invalid type: null"))),
        (r#"{"value":"v","timestamp":9223372036854775808}"#, Err(("bad_batch", "line 1, byte 44: invalid value"))),
        (r#"{"value":"v","headers":{"a":1}}"#, Err(("bad_batch", "line 1, byte 29: invalid type: integer"))),
        (
            r#"{"value":"v","headers":{"a":"","a":""}}"#,
            Err(("bad_batch", "line 1, byte 34: header \"a\" is given more than once")),
        ),
        (r#"{"value":"v","headers":{"":"x"}}"#, Err(("bad_batch", "line 1: a header name is empty"))),
        (
            r#"{"value":"v","headers":{"\u0000":"x"}}"#,
            Err(("bad_batch", "line 1: a header name is empty or contains a zero")),
        ),
        (&many_headers, Err(("too_large", "line 1: more than 100 headers"))),
        (&large_key, Err(("too_large", "line 1: key and headers have 16385 bytes"))),
        (
            r#"{"value":"v","partition":"a `secret`, expected "}"#,
            Err(("bad_batch", "line 1, byte 48: invalid type: string, expected an integer")),
        ),
        ("{\"value\":\"123456789012345678901\"}", Err(("too_large", "line 1: the value has 21 bytes"))),
    ];
    for (body, expected) in rows {
        let outcome = BatchFormat::Ndjson.parse(body.as_bytes(), &LIMITS);
        match (&outcome, expected) {
            (Ok(messages), Ok(expected)) => assert_eq!(messages, expected, "{body}"),
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
    assert_eq!(BatchFormat::Ndjson.parse(b"{\"value\":\"\xff\"}", &LIMITS).unwrap_err().code, "bad_batch");
    assert_eq!(BatchFormat::Ndjson.parse(b"{\"value_json\":\"\xff\"}", &LIMITS).unwrap_err().code, "bad_batch");
    // Deep nesting does not overflow the stack.
    let deep = format!(r#"{{"value_json":{}"#, "[".repeat(1_000_000));
    assert_eq!(BatchFormat::Ndjson.parse(deep.as_bytes(), &LIMITS).unwrap_err().code, "bad_batch");
}

#[test]
fn a_record_is_a_message_or_is_refused_with_its_number() {
    let whole = ParsedMessage {
        key: Some(b"k".to_vec()),
        headers: vec![header("n", b"\xff"), header("n", b"")],
        ..of_value(b"v")
    };
    let no_key = [0xff; 4];
    let nothing_beside = [&no_key[..], &[0, 0]].concat();
    // The body; its messages, or the beginning of the message of the refusal.
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
        (vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'v'], Ok(vec![ParsedMessage { key: Some(Vec::new()), ..of_value(b"v") }])),
        (vec![0], Err("record 1, byte 1: the key length needs 4 bytes, the body has 1 left")),
        (vec![0, 0, 0, 9, b'k'], Err("record 1, byte 5: the key needs 9 bytes, the body has 1 left")),
        (vec![0xff, 0xff, 0xff, 0xfe, b'k'], Err("record 1, byte 5: the key needs 4294967294 bytes")),
        (no_key.to_vec(), Err("record 1, byte 5: the header count needs 2 bytes, the body has 0 left")),
        ([&no_key[..], &[0, 101]].concat(), Err("record 1, byte 7: 101 headers, the maximum is 100")),
        ([&no_key[..], &[0, 1, 0, 1, 0xff, 0, 0, 0, 0]].concat(), Err("record 1, byte 10: a header name is not UTF-8")),
        ([&no_key[..], &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]].concat(), Err("record 1: a header name is empty")),
        ([&nothing_beside[..], &no_key].concat(), Ok(vec![ParsedMessage::default()])),
        ([&nothing_beside[..], &[0, 0, 0, 0]].concat(), Err("record 1: the value is empty")),
        (
            [&nothing_beside[..], &[0, 0, 0, 2, 0]].concat(),
            Err("record 1, byte 11: the value needs 2 bytes, the body has 1 left"),
        ),
        ([&encode(&[of_value(b"v")])[..], &[0]].concat(), Err("record 2, byte 12: the key length")),
        (encode(&[of_value(&[0; 21])]), Err("record 1: the value has 21 bytes, max_request_size_bytes is 20")),
        (Vec::new(), Err("empty body: a batch needs at least one message")),
    ];
    for (body, expected) in rows {
        let outcome = BatchFormat::Binary.parse(body, &LIMITS);
        match (&outcome, expected) {
            (Ok(messages), Ok(expected)) => assert_eq!(messages, expected, "{body:?}"),
            (Err(failure), Err(start)) => assert!(failure.message.starts_with(start), "{body:?}: {}", failure.message),
            _ => panic!("{body:?}: {outcome:?}"),
        }
    }
}

#[test]
fn parsing_stops_after_the_allowed_number_of_messages() {
    let line = "{\"value\":\"v\"}\n";
    let binary = |count| encode(&vec![of_value(b"v"); count]);
    for (limits, named) in
        [(LIMITS, "max_batch_messages"), (BatchLimits { max_messages: 9, max_slots: 3, ..LIMITS }, "req_pool_size")]
    {
        assert_eq!(BatchFormat::Ndjson.parse(line.repeat(3).as_bytes(), &limits).unwrap().len(), 3);
        assert_eq!(BatchFormat::Binary.parse(&binary(3), &limits).unwrap().len(), 3);
        // The malformed message after the last allowed one is not parsed.
        let lines = BatchFormat::Ndjson.parse(format!("{}{{", line.repeat(3)).as_bytes(), &limits).unwrap_err();
        let records = BatchFormat::Binary.parse(&[&binary(3)[..], &[1]].concat(), &limits).unwrap_err();
        for failure in [lines, records] {
            assert_eq!((failure.status, failure.code, failure.retriable), (413, "too_many_messages", false));
            assert!(failure.message.contains(named), "{}", failure.message);
        }
    }
}

fn any_messages() -> impl Strategy<Value = Vec<ParsedMessage>> {
    let bytes = || vec(any::<u8>(), 0..20);
    let value = option::of(vec(any::<u8>(), 1..20));
    let headers = vec(("[^\\x00]{1,5}", bytes()).prop_map(|(name, value)| header(&name, &value)), 0..4);
    let message = (option::of(bytes()), value, headers).prop_map(|(key, value, headers)| ParsedMessage {
        key,
        value,
        headers,
        ..ParsedMessage::default()
    });
    vec(message, 1..=3)
}

fn text_messages() -> impl Strategy<Value = Vec<ParsedMessage>> {
    let headers = proptest::collection::btree_map("[^\\x00]{1,5}", ".{0,9}", 0..4);
    let message = (option::of(".{0,9}"), option::of("(?s).{1,5}"), headers, option::of(0_i32..), option::of(0_i64..));
    let message = message.prop_map(|(key, value, headers, partition, timestamp_ms)| ParsedMessage {
        key: key.map(String::into_bytes),
        value: value.map(String::into_bytes),
        headers: headers.iter().map(|(name, value)| header(name, value.as_bytes())).collect(),
        partition,
        timestamp_ms,
    });
    vec(message, 1..=3)
}

fn line_of(message: &ParsedMessage) -> String {
    let text = |bytes: &[u8]| Value::from(str::from_utf8(bytes).unwrap());
    let mut line = serde_json::Map::new();
    line.insert("value".into(), message.value.as_deref().map_or(Value::Null, text));
    let headers = message.headers.iter().map(|header| (header.name.clone(), text(header.value.as_ref().unwrap())));
    line.insert("headers".into(), Value::Object(headers.collect()));
    for (name, value) in [
        ("key", message.key.as_deref().map(text)),
        ("partition", message.partition.map(Value::from)),
        ("timestamp", message.timestamp_ms.map(Value::from)),
    ] {
        line.extend(value.map(|value| (name.to_owned(), value)));
    }
    Value::Object(line).to_string()
}

proptest! {
    #[test]
    fn encoded_binary_messages_are_parsed_unchanged(messages in any_messages()) {
        prop_assert_eq!(BatchFormat::Binary.parse(&encode(&messages), &LIMITS), Ok(messages));
    }

    #[test]
    fn encoded_ndjson_messages_are_parsed_unchanged(messages in text_messages()) {
        let lines: Vec<_> = messages.iter().map(line_of).collect();
        prop_assert_eq!(BatchFormat::Ndjson.parse(lines.join("\n").as_bytes(), &LIMITS), Ok(messages));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in vec(any::<u8>(), 0..200), text in "(?s).{0,60}") {
        let _ = BatchFormat::Binary.parse(&bytes, &LIMITS);
        let _ = BatchFormat::Ndjson.parse(&bytes, &LIMITS);
        let _ = BatchFormat::Ndjson.parse(format!("{{\"value\":{text}}}").as_bytes(), &LIMITS);
        let line = format!("{{\"key\":\"{text}\",\"value_base64\":\"{text}\"}}");
        let _ = BatchFormat::Ndjson.parse(line.as_bytes(), &LIMITS);
    }

    #[test]
    fn a_truncated_body_yields_no_new_messages(messages in any_messages(), cut in any::<prop::sample::Index>()) {
        let body = encode(&messages);
        let cut = cut.index(body.len());
        match BatchFormat::Binary.parse(&body[..cut], &LIMITS) {
            Ok(kept) => prop_assert!(messages.starts_with(&kept) && encode(&kept).len() == cut),
            Err(failure) => prop_assert!(failure.code == "bad_batch" || cut == 0),
        }
    }
}
