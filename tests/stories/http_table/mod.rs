//! HTTP to the letter: one table of odd and hostile requests, each with the section of the RFC that it is about, sent to one
//! kproxy before a real Kafka.
//!
//! A row is a small script of bytes and answers. After it the connection either serves another request or is closed, and at
//! the end the topic has what the rows say was stored and nothing else.

mod connections;
mod framing;
mod requests;
mod script;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::{cluster, configs, free_port, wait_until};
use crate::kproxy_story::Kproxy;
use script::Row;

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn every_row_gets_its_answers_and_only_what_is_confirmed_is_stored() {
    let cluster = cluster();
    let topic = cluster.new_topic("table", 1);
    let mut kproxy = Kproxy::start_from(&{
        let file = configs::kproxy(cluster, free_port(), free_port());
        file.replace("read_timeout_ms: 100", "read_timeout_ms: 3000")
            .replace("write_timeout_ms: 100", "write_timeout_ms: 30000")
            .replace("max_request_size_bytes: 10485760", "max_request_size_bytes: 100000")
    });
    wait_until(DEADLINE, "kproxy is ready", || kproxy.readiness().0 == 200);

    let rows: Vec<Row> = [requests::rows(), framing::rows(), connections::rows()].concat();
    assert!(rows.len() >= 150, "{} rows", rows.len());
    let (mut expected, mut failures) = (Vec::new(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        match row.play(&kproxy.address, &topic, number) {
            Ok(stored) => expected.extend(stored),
            Err(why) => failures.push(format!("row {number}, RFC {}: {}\n    {why}", row.section, row.shown())),
        }
    }
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), rows.len(), failures.join("\n"));
    eprintln!("{} rows, {} messages stored by them", rows.len(), expected.len());

    // One after the other, but acks=0 is answered before Kafka has it.
    wait_until(DEADLINE, "all is stored", || cluster.log_ends(&topic)[&0] >= expected.len() as i64);
    let mut stored: Vec<_> = cluster.messages(&topic).into_iter().map(|message| message.value).collect();
    stored.sort();
    expected.sort();
    assert!(stored == expected, "{:?}\nbut expected {:?}", texts(&stored), texts(&expected));

    wait_until(DEADLINE, "no connection is left", || kproxy.has_metric("http_connections{server=\"http\"} 1"));
    let counted = limits(&kproxy);
    for limit in ["uri", "headers", "header_fields", "request_size", "chunks"] {
        assert!(counted.get(limit).is_some_and(|count| *count > 0), "{limit}: {counted:?}");
    }
    kproxy.daemon.end_well(DEADLINE);
}

/// How often which limit was reached.
fn limits(kproxy: &Kproxy) -> BTreeMap<String, u64> {
    let metrics = kproxy.metrics();
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("http_limits_total{limit=\""));
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
