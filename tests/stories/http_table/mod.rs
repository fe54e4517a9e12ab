//! A table of unusual, malformed and hostile requests, each with the section of its RFC, sent to one kproxy with a real
//! Kafka.
//!
//! A row is a small script of bytes to send and answers to expect. After the script, the connection either serves
//! another request or is closed, as the row states. At the end the topic has exactly the messages that the rows expect.

mod connections;
mod framing;
mod requests;
mod script;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::{Kproxy, cluster, configs, wait_until};
use script::Row;

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn every_row_gets_its_answers_and_only_confirmed_messages_are_stored() {
    let cluster = cluster();
    let topic = cluster.new_topic("table", 1);
    let config = configs::kproxy(cluster)
        .set("read_timeout_ms", 3000)
        .set("write_timeout_ms", 30_000)
        .set("max_request_size_bytes", framing::MAX_BODY);
    let mut kproxy = Kproxy::start_ready(config);

    let rows: Vec<Row> = [requests::rows(), framing::rows(), connections::rows()].concat();
    assert!(rows.len() >= 150, "{} rows", rows.len());
    let (mut expected, mut failures) = (Vec::new(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        match row.run(&kproxy.address, &topic, number) {
            Ok(stored) => expected.extend(stored),
            Err(error) => failures.push(format!("row {number}, RFC {}: {}\n    {error}", row.section, row.excerpt())),
        }
    }
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), rows.len(), failures.join("\n"));
    eprintln!("{} rows, {} messages stored by them", rows.len(), expected.len());

    // A commit with acks=0 is answered before Kafka has stored the message.
    wait_until(DEADLINE, "all messages are stored", || cluster.log_ends(&topic)[&0] >= expected.len() as i64);
    let mut stored: Vec<_> = cluster.messages(&topic).into_iter().map(|message| message.value).collect();
    stored.sort();
    expected.sort();
    assert!(stored == expected, "stored {:?}\nbut expected {:?}", texts(&stored), texts(&expected));

    wait_until(DEADLINE, "all connections are closed", || kproxy.has_metric("http_connections{server=\"http\"} 0"));
    let counted = limits(&kproxy);
    for limit in ["uri", "headers", "header_fields", "request_size", "chunks"] {
        assert!(counted.get(limit).is_some_and(|count| *count > 0), "{limit}: {counted:?}");
    }
    kproxy.daemon.stop(DEADLINE);
}

/// Returns how often each limit of the HTTP server was reached, by the name of the limit.
fn limits(kproxy: &Kproxy) -> BTreeMap<String, u64> {
    let metrics = kproxy.metrics();
    let lines = metrics.text().lines().filter_map(|line| line.strip_prefix("http_limits_total{limit=\""));
    lines
        .filter_map(|line| {
            let (limit, rest) = line.split_once('"')?;
            let count = rest.rsplit(' ').next()?.parse().ok()?;
            rest.contains("server=\"http\"").then(|| (limit.to_owned(), count))
        })
        .collect()
}

fn texts(values: &[Vec<u8>]) -> Vec<String> {
    values.iter().map(|value| format!("{:.40}", String::from_utf8_lossy(value))).collect()
}
