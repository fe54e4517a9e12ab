//! The further ways into kproxy, against a real broker: partition, timestamp, record headers, and batches.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http::{self, Client, Response};
use crate::harness::{Daemon, Program, cluster, configs, free_port, wait_until};
use crate::kproxy_story::Kproxy;

const SOON: Duration = Duration::from_secs(30);
const NDJSON: &[(&str, &str)] = &[("Content-Type", "application/x-ndjson")];
const BINARY: &[(&str, &str)] = &[("Content-Type", "application/octet-stream")];

/// Each line of the answer to a batch.
fn lines(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.header("Content-Type"), Some("application/x-ndjson"), "{}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[cfg(feature = "librdkafka")]
mod with_headers {
    use super::*;
    use kafka_http_wrapper::broker::{self, BrokerConfig, Engine, FetcherConfig, Message, TopicPartition};
    use kafka_http_wrapper::shutdown::Stop;
    use kafka_http_wrapper::supervise::Supervisor;
    use serde_json::json;
    use std::time::Instant;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// One record of the binary form.
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

    /// The first `count` messages of a partition, with all that a record has.
    fn read(topic: &str, partition: i32, count: usize) -> Vec<Message> {
        let config = BrokerConfig {
            hosts: cluster().brokers.split(',').map(str::to_owned).collect(),
            engine: Engine::Librdkafka,
            client_id: "ways".to_owned(),
            request_timeout: Duration::from_secs(5),
            settings: Default::default(),
        };
        let supervisor = Supervisor::new("ways", Stop::new());
        let sizes = FetcherConfig { prefetch_bytes: 1 << 20, max_message_bytes: 1 << 20 };
        let mut fetcher = broker::fetcher(&config, sizes, &supervisor).expect("a fetcher needs no broker");
        fetcher.assign(&TopicPartition { topic: topic.into(), partition }, 0);
        let (mut found, deadline) = (Vec::new(), Instant::now() + SOON);
        while found.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} messages in time", found.len());
            // What fails is tried again inside.
            found.extend(fetcher.poll(Duration::from_millis(200), 1_000).unwrap_or_default());
        }
        assert_eq!(found.len(), count, "{found:?}");
        found
    }

    fn headers_of(message: &Message) -> Vec<(&str, &[u8])> {
        let shown =
            message.headers.iter().map(|header| (&*header.name, header.value.as_deref().expect("none is null")));
        shown.collect()
    }

    #[test]
    fn a_commit_brings_partition_timestamp_headers_and_its_trace() {
        let topic = cluster().new_topic("ways", 4);
        let mut kproxy = Kproxy::start_ready(cluster(), "");
        let mut client = Client::connect(&kproxy.address).unwrap();
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

        let [one, two] = &read(&topic, 2, 2)[..] else { panic!("two messages") };
        let expected: [(&str, &[u8]); 4] = [
            ("tenant", "b\u{e4}r".as_bytes()),
            ("tenant", b"second"),
            ("traceparent", PARENT.as_bytes()),
            ("tracestate", b"v=1"),
        ];
        assert_eq!(headers_of(one), expected);
        assert_eq!((one.timestamp_ms, one.key.as_deref()), (Some(1_700_000_000_123), Some(&b"k"[..])));
        assert_eq!((two.headers.len(), two.value.as_deref()), (0, Some(&b"two"[..])));
        assert!(two.timestamp_ms > Some(1_700_000_000_123), "now, as nothing else was said: {:?}", two.timestamp_ms);
        assert_eq!(cluster().log_ends(&topic).values().sum::<i64>(), 2, "what was refused is not there");
        kproxy.daemon.end_well(SOON);
    }

    #[test]
    fn both_forms_of_a_batch_bring_all_that_a_record_has() {
        let topic = cluster().new_topic("batch", 2);
        let mut kproxy = Kproxy::start_ready(cluster(), "");
        let mut client = Client::connect(&kproxy.address).unwrap();
        let path = format!("/commit_batch?topic={topic}&partition=1&timestamp=1700000000000&acks=-1");
        let body = r#"{"value":"text\u0000","key":"k","headers":{"Tenant":"blue"},"timestamp":1700000000005}
{"value_json":{"n": 1.50},"key_base64":"AP8="}
"#;
        let fields = [NDJSON, &[("traceparent", PARENT)]].concat();
        let answer = client.request("POST", &path, &fields, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(lines(&answer), [json!({"partition": 1, "offset": 0}), json!({"partition": 1, "offset": 1})]);
        let body = [record(Some(b"\0k"), &[("a", b"\xff"), ("a", b"")], b"bytes\xfe"), record(None, &[], b"plain")];
        let answer = client.request("POST", &path, BINARY, &body.concat()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(lines(&answer), [json!({"partition": 1, "offset": 2}), json!({"partition": 1, "offset": 3})]);

        let found = read(&topic, 1, 4);
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
        kproxy.daemon.end_well(SOON);
    }
}

#[test]
fn each_result_of_a_batch_names_where_its_message_is_and_each_key_keeps_its_order() {
    let topic = cluster().new_topic("batches", 4);
    let mut kproxy = start(|file| {
        assert!(file.contains("producer_num: 1"), "{file}");
        file.replace("producer_num: 1", "producer_num: 3")
    });
    let mut client = Client::connect(&kproxy.address).unwrap();
    let mut told = Vec::new();
    // Pipelined: the answers come in the order of the requests.
    for round in 0..5 {
        let line = |n: usize| {
            let value = format!("{round}/{n}");
            match n % 4 {
                0 => told.push((None, value.clone())),
                key => told.push((Some(format!("key {key}")), value.clone())),
            }
            match &told.last().unwrap().0 {
                None => format!("{{\"value\":\"{value}\"}}\n"),
                Some(key) => format!("{{\"value\":\"{value}\",\"key\":\"{key}\"}}\n"),
            }
        };
        let body: String = (0..200).map(line).collect();
        let head = format!(
            "POST /commit_batch?topic={topic}&acks={} HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n",
            [1, -1][round % 2],
            body.len()
        );
        client.send_raw(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    }
    let mut results = Vec::new();
    for _ in 0..5 {
        let answer = client.read_response().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        results.extend(lines(&answer));
    }
    assert_eq!(results.len(), told.len());
    let stored: HashMap<_, _> =
        cluster().messages(&topic).into_iter().map(|message| ((message.partition, message.offset), message)).collect();
    assert_eq!(stored.len(), told.len());
    let mut last_of_key = HashMap::new();
    for (result, (key, value)) in results.iter().zip(&told) {
        let at = (result["partition"].as_i64().unwrap() as i32, result["offset"].as_i64().unwrap());
        let message = &stored[&at];
        assert_eq!((&message.value[..], &message.key[..]), (value.as_bytes(), key.as_deref().unwrap_or("").as_bytes()));
        // The levels have an order each: within a batch the lines', and batches of one level follow one another.
        if let Some(key) = key {
            let level = value.as_bytes()[0] % 2;
            let before = last_of_key.insert((key, level), at);
            assert!(before.is_none_or(|before| before.0 == at.0 && before.1 < at.1), "{key}: {before:?}, {at:?}");
        }
    }
    let has = |line: &str| kproxy.has_metric(line);
    assert!(has("kproxy_batches_total{code=\"200\"} 5"));
    assert!(has(&format!("kproxy_commits_total{{acks=\"1\",code=\"200\",topic=\"{topic}\"}} 600")));
    wait_until(SOON, "the level is back to nothing", || {
        has("kproxy_commits_in_flight 0") && has("kproxy_in_flight_bytes 0")
    });
    kproxy.daemon.end_well(SOON);
    assert_eq!(kproxy.daemon.log().matches(" stored messages=200 ").count(), 5, "a line a batch");
}

#[test]
fn a_batch_that_is_not_all_stored_is_no_success_and_a_malformed_one_stores_nothing() {
    let topic = cluster().new_topic("partly", 1);
    let mut kproxy = Kproxy::start_ready(cluster(), "max_batch_messages: 3\nmax_batch_bytes: 500\n");
    let mut client = Client::connect(&kproxy.address).unwrap();
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
        let told = answer.json();
        let expected = (status, &Value::from(word), &Value::from("no"));
        assert_eq!((answer.status, &told["error"], &told["stored"]), expected, "{body}: {told}");
    }
    // One that is announced to be too large is refused before it is read, and the connection ends.
    let mut other = Client::connect(&kproxy.address).unwrap();
    let answer = other.request("POST", &path, NDJSON, long.as_bytes()).unwrap();
    assert_eq!((answer.status, &answer.json()["error"]), (413, &"too_large".into()));
    assert_eq!(cluster().log_ends(&topic).values().sum::<i64>(), 0);

    let body = format!("{good}{{\"value\":\"b\",\"partition\":7}}\n{good}");
    let answer = client.request("POST", &path, NDJSON, body.as_bytes()).unwrap();
    let results = lines(&answer);
    assert_eq!((answer.status, &results[1]["status"], &results[1]["stored"]), (404, &404.into(), &"no".into()));
    assert_eq!(
        (&results[0]["offset"], &results[1]["error"], &results[2]["offset"]),
        (&0.into(), &"unknown_partition".into(), &1.into())
    );
    assert_eq!(cluster().log_ends(&topic).values().sum::<i64>(), 2);
    assert!(kproxy.has_metric("kproxy_batches_total{code=\"404\"} 1"));
    kproxy.daemon.end_well(SOON);
}

#[test]
fn without_a_broker_each_message_of_a_batch_is_worth_another_try() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let hosts: Vec<_> = cluster().brokers.split(',').collect();
    let mut kproxy = start(|file| hosts.iter().fold(file, |file, host| file.replace(host, &nobody)));
    let path = "/commit_batch?topic=t";
    let mut client = Client::connect(&kproxy.address).unwrap();
    let answer = client.request("POST", path, NDJSON, b"{\"value\":\"a\"}\n{\"value\":\"b\"}\n").unwrap();
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")), "{}", answer.text());
    let results = lines(&answer);
    assert_eq!(results.len(), 2);
    for result in results {
        let told = (&result["error"], &result["retriable"], &result["status"], &result["stored"]);
        assert_eq!(told, (&"no_broker".into(), &true.into(), &503.into(), &"no".into()));
    }
    kproxy.daemon.end_well(SOON);
}

#[test]
fn the_engine_without_headers_refuses_them_by_name_and_takes_the_rest() {
    let topic = cluster().new_topic("plain", 3);
    let mut kproxy = Kproxy::start_ready(cluster(), "kafka_client: kafka-rust\n");
    let mut client = Client::connect(&kproxy.address).unwrap();
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
        let told = answer.json();
        assert_eq!(
            (answer.status, &told["error"], &told["stored"]),
            (400, &"unsupported".into(), &"no".into()),
            "{told}"
        );
        assert!(told["message"].as_str().unwrap().contains("kafka_client"), "{told}");
    }
    assert_eq!(cluster().log_ends(&topic).values().sum::<i64>(), 0);
    let answer = post(&one, &[trace], "v");
    assert_eq!((answer.status, answer.json()["partition"].as_i64()), (200, Some(2)), "{}", answer.text());
    let answer = post(&batch, &[NDJSON, &[trace]].concat(), &good.repeat(2));
    assert_eq!((answer.status, lines(&answer)[1]["offset"].as_i64()), (200, Some(2)), "{}", answer.text());
    kproxy.daemon.end_well(SOON);
}

/// A kproxy before the shared cluster with another configuration; returns when it serves.
fn start(change: impl FnOnce(String) -> String) -> Kproxy {
    let (port, admin_port) = (free_port(), free_port());
    let file = change(configs::kproxy(cluster(), port, admin_port));
    let daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &file)]);
    let kproxy = Kproxy { daemon, address: format!("127.0.0.1:{port}"), admin: format!("127.0.0.1:{admin_port}") };
    wait_until(SOON, "kproxy listens", || http::get(&kproxy.url("/healthz")).is_ok());
    kproxy
}
