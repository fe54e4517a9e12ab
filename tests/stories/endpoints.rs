//! kproxy with a real broker: the partition, timestamp and record headers of a commit, and batches.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http::{Response, post_request};
use crate::harness::{Kproxy, cluster, configs, free_port};

const DEADLINE: Duration = Duration::from_secs(30);
const NDJSON: &[(&str, &str)] = &[("Content-Type", "application/x-ndjson")];
const BINARY: &[(&str, &str)] = &[("Content-Type", "application/octet-stream")];

/// Returns the parsed lines of the answer to a batch: one result for each message.
fn results(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.header("Content-Type"), Some("application/x-ndjson"), "{}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

mod with_headers {
    use super::*;
    use crate::harness::engine::read_partition;
    use kafka_http_wrapper::broker::Message;
    use serde_json::json;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Encodes one record of a binary batch.
    fn record(key: Option<&[u8]>, headers: &[(&str, &[u8])], value: &[u8]) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes();
        let short = |number: usize| u16::try_from(number).unwrap().to_be_bytes();
        let mut record = match key {
            Some(key) => [&length(key), key].concat(),
            None => vec![0xff; 4],
        };
        record.extend(short(headers.len()));
        for (name, value) in headers {
            record.extend([&short(name.len())[..], name.as_bytes(), &length(value), value].concat());
        }
        [&record[..], &length(value), value].concat()
    }

    fn headers_of(message: &Message) -> Vec<(&str, &[u8])> {
        message
            .headers
            .iter()
            .map(|header| (&*header.name, header.value.as_deref().expect("no header value is null")))
            .collect()
    }

    #[test]
    fn a_commit_stores_its_partition_timestamp_headers_and_trace_context() {
        let topic = cluster().new_topic("endpoints", 4);
        let mut kproxy = Kproxy::start_usual(cluster());
        let mut client = kproxy.connect();
        let path = format!("/commit?topic={topic}&key=k&partition=2&acks=-1");
        let fields = [
            ("X-Kafka-Header-Tenant", "b\u{e4}r"),
            ("traceparent", PARENT),
            ("X-KAFKA-HEADER-tenant", "second"),
            ("tracestate", "v=1"),
        ];
        let answer = client.request("POST", &format!("{path}&timestamp=1700000000123"), &fields, b"one").unwrap();
        assert_eq!((answer.status, answer.json()["partition"].as_i64()), (200, Some(2)), "{}", answer.text());
        let answer = client.request("POST", &path, &[("traceparent", "00-no")], b"two").unwrap();
        assert_eq!((answer.status, answer.json()["offset"].as_i64()), (200, Some(1)), "{}", answer.text());
        for (query, status, word) in [
            ("partition=4", 404, "unknown_partition"),
            ("partition=-1", 400, "bad_partition"),
            ("partition=1&partition=1", 400, "repeated_parameter"),
            ("timestamp=yesterday", 400, "bad_timestamp"),
        ] {
            let answer = client.post(&format!("/commit?topic={topic}&{query}"), b"refused").unwrap();
            assert_eq!((answer.status, &answer.json()["error"]), (status, &word.into()), "{query}");
        }

        let [one, two] = &read_partition(&cluster().brokers, &topic, 2, 2)[..] else { panic!("two messages") };
        let expected: [(&str, &[u8]); 4] = [
            ("tenant", "b\u{e4}r".as_bytes()),
            ("tenant", b"second"),
            ("traceparent", PARENT.as_bytes()),
            ("tracestate", b"v=1"),
        ];
        assert_eq!(headers_of(one), expected);
        assert_eq!((one.timestamp_ms, one.key.as_deref()), (Some(1_700_000_000_123), Some(&b"k"[..])));
        assert_eq!((two.headers.len(), two.value.as_deref()), (0, Some(&b"two"[..])));
        assert!(two.timestamp_ms > Some(1_700_000_000_123), "the current time by default: {:?}", two.timestamp_ms);
        assert_eq!(cluster().message_count(&topic), 2, "refused messages are not stored");
        kproxy.daemon.stop(DEADLINE);
    }

    #[test]
    fn ndjson_and_binary_batches_store_keys_headers_and_timestamps() {
        let topic = cluster().new_topic("batch", 2);
        let mut kproxy = Kproxy::start_usual(cluster());
        let mut client = kproxy.connect();
        let path = format!("/commit_batch?topic={topic}&partition=1&timestamp=1700000000000&acks=-1");
        let body = r#"{"value":"text\u0000","key":"k","headers":{"Tenant":"blue"},"timestamp":1700000000005}
{"value_json":{"n": 1.50},"key_base64":"AP8="}
"#;
        let fields = [NDJSON, &[("traceparent", PARENT)]].concat();
        let answer = client.request("POST", &path, &fields, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(results(&answer), [json!({"partition": 1, "offset": 0}), json!({"partition": 1, "offset": 1})]);
        let body = [record(Some(b"\0k"), &[("a", b"\xff"), ("a", b"")], b"bytes\xfe"), record(None, &[], b"plain")];
        let answer = client.request("POST", &path, BINARY, &body.concat()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(results(&answer), [json!({"partition": 1, "offset": 2}), json!({"partition": 1, "offset": 3})]);

        let found = read_partition(&cluster().brokers, &topic, 1, 4);
        let seen: Vec<_> = found
            .iter()
            .map(|message| {
                (message.key.as_deref(), message.value.as_deref(), message.timestamp_ms, headers_of(message))
            })
            .collect();
        let some = |bytes: &'static [u8]| Some(bytes);
        let trace = ("traceparent", PARENT.as_bytes());
        let (base, own) = (Some(1_700_000_000_000), Some(1_700_000_000_005));
        let expected = [
            (some(b"k"), some(b"text\0"), own, vec![("Tenant", &b"blue"[..]), trace]),
            (some(b"\0\xff"), some(br#"{"n": 1.50}"#), base, vec![trace]),
            (some(b"\0k"), some(b"bytes\xfe"), base, vec![("a", &b"\xff"[..]), ("a", b"")]),
            (None, some(b"plain"), base, vec![]),
        ];
        assert_eq!(seen, expected);
        kproxy.daemon.stop(DEADLINE);
    }
}

/// A message of the pipelined batches: its key, if any, and its value.
type Posted = (Option<String>, String);

/// Returns the 200 messages of one batch. Their values are `ROUND/NUMBER`; every fourth message has no key.
fn batch(round: usize) -> Vec<Posted> {
    let key = |number: usize| (!number.is_multiple_of(4)).then(|| format!("key {}", number % 4));
    (0..200).map(|number| (key(number), format!("{round}/{number}"))).collect()
}

fn ndjson(messages: &[Posted]) -> String {
    let line = |(key, value): &Posted| match key {
        None => format!("{{\"value\":\"{value}\"}}\n"),
        Some(key) => format!("{{\"value\":\"{value}\",\"key\":\"{key}\"}}\n"),
    };
    messages.iter().map(line).collect()
}

#[test]
fn each_result_of_a_batch_names_the_position_of_its_message_and_each_key_keeps_its_order() {
    let topic = cluster().new_topic("batches", 4);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster()).set("producer_num", 3));
    let mut client = kproxy.connect();
    let mut posted = Vec::new();
    // The requests are pipelined, and kproxy answers them in the order of the requests.
    for round in 0..5 {
        let messages = batch(round);
        let path = format!("/commit_batch?topic={topic}&acks={}", [1, -1][round % 2]);
        client.send_raw(&post_request(&path, NDJSON, ndjson(&messages).as_bytes())).unwrap();
        posted.extend(messages);
    }
    let mut all_results = Vec::new();
    for _ in 0..5 {
        let answer = client.read_response().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        all_results.extend(results(&answer));
    }
    check_positions_and_order(&topic, &posted, &all_results);
    assert!(kproxy.has_metric("kproxy_batches_total{code=\"200\"} 5"));
    assert!(kproxy.has_metric(&format!("kproxy_commits_total{{acks=\"1\",code=\"200\",topic=\"{topic}\"}} 600")));
    kproxy.wait_for_commits_in_flight(0);
    kproxy.wait_for_metric("kproxy_in_flight_bytes 0", DEADLINE);
    kproxy.daemon.stop(DEADLINE);
    assert_eq!(kproxy.daemon.log().matches(" stored messages=200 ").count(), 5, "one log line for each batch");
}

fn check_positions_and_order(topic: &str, posted: &[Posted], results: &[Value]) {
    let messages = cluster().messages(topic).into_iter();
    let stored: HashMap<_, _> = messages.map(|message| ((message.partition, message.offset), message)).collect();
    assert_eq!((results.len(), stored.len()), (posted.len(), posted.len()));
    let mut last_of_key = HashMap::new();
    for (result, (key, value)) in results.iter().zip(posted) {
        let at = (result["partition"].as_i64().unwrap() as i32, result["offset"].as_i64().unwrap());
        let message = &stored[&at];
        assert_eq!((&message.value[..], &message.key[..]), (value.as_bytes(), key.as_deref().unwrap_or("").as_bytes()));
        // At each acks level, the offsets of a key are in the order of the batches and of the lines in each batch.
        if let Some(key) = key {
            let level = value.as_bytes()[0] % 2;
            let before = last_of_key.insert((key, level), at);
            assert!(before.is_none_or(|before| before.0 == at.0 && before.1 < at.1), "{key}: {before:?}, {at:?}");
        }
    }
}

#[test]
fn a_batch_is_200_only_if_all_are_stored_and_a_malformed_one_stores_nothing() {
    let topic = cluster().new_topic("partly", 1);
    let mut kproxy =
        Kproxy::start_ready(configs::kproxy(cluster()).set("max_batch_messages", 3).set("max_batch_bytes", 500));
    let mut client = kproxy.connect();
    let path = format!("/commit_batch?topic={topic}");
    let long = format!("{{\"value\":\"{}\"}}", "x".repeat(500));
    let good = "{\"value\":\"a\"}\n";
    for (headers, body, status, word) in [
        (NDJSON, &*format!("{good}{good}{{\"value\":1}}\n"), 400, "bad_batch"),
        (BINARY, good, 400, "bad_batch"),
        (&[("Content-Type", "application/json")], good, 415, "unsupported_media_type"),
        (NDJSON, &good.repeat(4), 413, "too_many_messages"),
        (NDJSON, "", 400, "empty_body"),
    ] {
        let answer = client.request("POST", &path, headers, body.as_bytes()).unwrap();
        let json = answer.json();
        let expected = (status, &Value::from(word), &Value::from("no"));
        assert_eq!((answer.status, &json["error"], &json["stored"]), expected, "{body}: {json}");
    }
    // A body whose Content-Length exceeds the limit is refused before it is read, and the connection is closed.
    let mut other = kproxy.connect();
    let answer = other.request("POST", &path, NDJSON, long.as_bytes()).unwrap();
    assert_eq!((answer.status, &answer.json()["error"]), (413, &"too_large".into()));
    assert_eq!(cluster().message_count(&topic), 0);

    let body = format!("{good}{{\"value\":\"b\",\"partition\":7}}\n{good}");
    let answer = client.request("POST", &path, NDJSON, body.as_bytes()).unwrap();
    let results = results(&answer);
    assert_eq!((answer.status, &results[1]["status"], &results[1]["stored"]), (404, &404.into(), &"no".into()));
    assert_eq!(
        (&results[0]["offset"], &results[1]["error"], &results[2]["offset"]),
        (&0.into(), &"unknown_partition".into(), &1.into())
    );
    assert_eq!(cluster().message_count(&topic), 2);
    assert!(kproxy.has_metric("kproxy_batches_total{code=\"404\"} 1"));
    kproxy.daemon.stop(DEADLINE);
}

#[test]
fn without_a_broker_each_message_of_a_batch_is_retriable() {
    let mut kproxy = Kproxy::start(configs::kproxy_for(&[&format!("127.0.0.1:{}", free_port())]));
    let path = "/commit_batch?topic=t";
    let mut client = kproxy.connect();
    let answer = client.request("POST", path, NDJSON, b"{\"value\":\"a\"}\n{\"value\":\"b\"}\n").unwrap();
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")), "{}", answer.text());
    let results = results(&answer);
    assert_eq!(results.len(), 2);
    for result in results {
        let outcome = (&result["error"], &result["retriable"], &result["status"], &result["stored"]);
        assert_eq!(outcome, (&"no_broker".into(), &true.into(), &503.into(), &"no".into()));
    }
    kproxy.daemon.stop(DEADLINE);
}

#[test]
fn kafka_rust_refuses_headers_and_timestamps_and_stores_the_rest() {
    let topic = cluster().new_topic("plain", 3);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(cluster()).set("kafka_client", "kafka-rust"));
    let mut client = kproxy.connect();
    let trace = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let chosen = ("X-Kafka-Header-A", "1");
    let one = format!("/commit?topic={topic}&partition=2");
    let batch = format!("/commit_batch?topic={topic}&partition=2");
    let mut post = |path: &str, headers: &[(&str, &str)], body: &str| {
        client.request("POST", path, headers, body.as_bytes()).unwrap()
    };
    let good = "{\"value\":\"v\"}\n";
    for answer in [
        post(&one, &[chosen], "v"),
        post(&format!("{one}&timestamp=1"), &[], "v"),
        post(&format!("{batch}&timestamp=1"), NDJSON, good),
        post(&batch, NDJSON, &format!("{good}{{\"value\":\"v\",\"timestamp\":1}}")),
        post(&batch, NDJSON, &format!("{good}{{\"value\":\"v\",\"headers\":{{\"a\":\"1\"}}}}")),
    ] {
        let json = answer.json();
        let outcome = (answer.status, &json["error"], &json["stored"]);
        assert_eq!(outcome, (400, &"unsupported".into(), &"no".into()), "{json}");
        assert!(json["message"].as_str().unwrap().contains("kafka_client"), "{json}");
    }
    assert_eq!(cluster().message_count(&topic), 0);
    let answer = post(&one, &[trace], "v");
    assert_eq!((answer.status, answer.json()["partition"].as_i64()), (200, Some(2)), "{}", answer.text());
    let answer = post(&batch, &[NDJSON, &[trace]].concat(), &good.repeat(2));
    assert_eq!((answer.status, results(&answer)[1]["offset"].as_i64()), (200, Some(2)), "{}", answer.text());
    kproxy.daemon.stop(DEADLINE);
}
