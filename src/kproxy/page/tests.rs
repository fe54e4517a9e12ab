//! The page of kproxy as a whole: what it says of topics and connections, that names cannot break it, how large it is.

use std::time::{Duration, Instant};

use super::*;
use crate::broker::{Acks, ConnectionState, ConnectionStatus};
use crate::html::test_support::{HOSTILE_NAMES, assert_harmless, assert_same_rows, between, write_sample};
use crate::kproxy::metrics::OTHER_TOPICS;
use crate::kproxy::traffic::{StatusTraffic, TopicTraffic};

fn page(content: &ProxyContent, query: &str) -> String {
    ProxyPage::whole(content, &Query::parse(query).unwrap(), Moment::now())
}

/// A topic with these statuses and rates; each status has as many commits as 10,000 s would have.
fn topic(name: &str, codes: &[(u16, f64)]) -> TopicRow {
    let status = |(code, rate): &(u16, f64)| StatusTraffic {
        code: *code,
        totals: vec![("-1".to_owned(), (rate * 7_000.0) as u64 + 40), ("1".to_owned(), (rate * 3_000.0) as u64)],
        per_second: Some(*rate),
    };
    let traffic = TopicTraffic { topic: name.to_owned(), codes: codes.iter().map(status).collect() };
    TopicRow::new(|topic| (topic == "orders").then(|| "2000 requests, 5000000 B /s".to_owned()), traffic)
}

fn connection(broker: i32, acks: Acks, state: ConnectionState) -> (usize, ConnectionStatus) {
    let now = Instant::now();
    let time = match state {
        ConnectionState::Connected | ConnectionState::Idle => None,
        ConnectionState::Throttled => Some(now + Duration::from_millis(3_990)),
        _ => Some(now.checked_sub(Duration::from_millis(42_500)).unwrap_or(now)),
    };
    let reason = match state {
        ConnectionState::BackOff => "10.20.0.3:9092: Connection refused (os error 111)",
        _ => "",
    };
    (0, ConnectionStatus { broker, acks, state, time, reason: reason.to_owned() })
}

fn busy() -> ProxyContent {
    ProxyContent {
        number: 1,
        broker: Ok(()),
        failed_reloads: Vec::new(),
        topics: vec![
            topic("", &[(400, 0.1), (401, 0.02), (503, 0.0)]),
            topic("audit", &[(200, 4.25)]),
            topic("billing", &[(200, 120.25), (503, 0.0), (504, 0.03)]),
            topic("clicks", &[(200, 8_412.0), (429, 31.5), (413, 0.2)]),
            topic("orders", &[(200, 311.0)]),
            topic(OTHER_TOPICS, &[(404, 0.4)]),
        ],
        connections: Some(vec![
            connection(1, Acks::All, ConnectionState::Connected),
            connection(1, Acks::Leader, ConnectionState::Connected),
            connection(2, Acks::All, ConnectionState::Throttled),
            connection(2, Acks::None, ConnectionState::Idle),
            connection(3, Acks::All, ConnectionState::BackOff),
            connection(3, Acks::Leader, ConnectionState::Silent),
        ]),
        waits: [None, Some([2_113.0, 0.0]), Some([6_791.5, 0.6])],
        limits: vec![
            LimitRow::count("Messages in flight", "req_pool_size", 412, 10_000),
            LimitRow::bytes("Memory of requests", "max_in_flight_bytes", 3 << 20, 256 << 20),
            LimitRow::count("Connections of clients", "max_connections", 1_204, 16_384),
        ],
        refusals: vec![("credentials: missing".to_owned(), 31), ("limit of the server: connections".to_owned(), 4)],
    }
}

#[test]
fn topics_have_a_verdict_rates_and_a_reason() {
    let text = page(&busy(), "");
    assert!(text.contains("<title>1 FAILED · kproxy</title>"));
    let rows = between(&text, "<tbody data-id=\"", "</tbody>");
    let named = |row: &&str| between(row, "<bdi>", "</bdi>")[0].to_owned();
    let names: Vec<String> = rows.iter().map(named).collect();
    assert_eq!(names, ["billing", "clicks", "other topics", "no topic", "orders", "audit"], "the worst first");
    for (row, parts) in [
        (rows[0], ["data-verdict=\"FAILED\"", ">120<", ">0.03<", "504 may be stored, or not: 0.03 /s"]),
        (rows[1], ["data-verdict=\"REFUSED\"", ">8,412<", ">32<", "429 over a rate limit or a quota: 32 /s; 413"]),
        (rows[3], ["data-verdict=\"REFUSED\"", ">0<", ">0.12<", "400 bad request: 0.10 /s; 401"]),
        (rows[4], ["data-verdict=\"OK\"", ">311<", ">2000 requests, 5000000 B /s<", "answered since the start"]),
    ] {
        for part in parts {
            assert!(row.contains(part), "{part}: {row}");
        }
    }
    // A topic of that name is one like the others.
    let both =
        ProxyContent { topics: vec![topic("other", &[(200, 1.0)]), topic(OTHER_TOPICS, &[(404, 1.0)])], ..busy() };
    assert_ne!(both.topics[0].id, both.topics[1].id);
    assert_eq!(both.topics.iter().map(|topic| &*topic.name).collect::<Vec<_>>(), ["other", "other topics"]);
    assert_eq!((&*both.topics[0].why, both.topics[0].verdict), ("", TopicVerdict::Ok));
    let unknown = TopicTraffic {
        topic: "new".to_owned(),
        codes: vec![StatusTraffic { code: 503, totals: Vec::new(), per_second: None }],
    };
    let row = TopicRow::new(|_| None, unknown);
    assert_eq!((row.verdict, row.rates), (TopicVerdict::Ok, None), "nothing is known yet");
    for (label, limits) in [("t", Some("1 requests /s")), ("", None), (OTHER_TOPICS, None)] {
        let traffic = TopicTraffic { topic: label.to_owned(), codes: Vec::new() };
        let row = TopicRow::new(|_| Some("1 requests /s".to_owned()), traffic);
        assert_eq!(row.limits.as_deref(), limits, "{label}: the glob * is for topics");
    }
    let empty = page(&ProxyContent { topics: Vec::new(), ..busy() }, "");
    assert!(empty.contains("No topic has had a commit.") && empty.contains("<title>kproxy</title>"));
}

#[test]
fn statuses_are_shown_when_they_are_asked_for() {
    let content = busy();
    let open = format!("open={:x}", content.topics[2].id);
    assert!(!page(&content, "").contains("Statuses of"));
    let text = page(&content, &open);
    let rows = between(between(&text, "<details open>", "</details>")[0], "<tr data-id=\"", "</tr>");
    assert_eq!(rows.len(), 3);
    assert!(
        rows[0].starts_with("200\"") && rows[0].contains(">841,790<") && rows[0].contains(">360,750<"),
        "{}",
        rows[0]
    );
    assert!(rows[2].starts_with("504\"") && rows[2].contains("may be stored, or not"), "{}", rows[2]);
}

#[test]
fn the_connections_to_brokers_have_their_state_the_worst_first() {
    let text = page(&busy(), "");
    let section = between(&text, "<section id=\"extra\">", "</section>")[0];
    let rows = between(section, "data-verdict=\"", "</tr>");
    let words: Vec<&str> = rows.iter().map(|row| row.split('"').next().unwrap()).collect();
    assert_eq!(words, ["BACK-OFF", "SILENT", "THROTTLED", "IDLE", "CONNECTED", "CONNECTED"]);
    assert!(rows[0].contains("Connection refused (os error 111)") && rows[0].contains(">42 s</time>"), "{}", rows[0]);
    assert!(rows[2].contains("delays the next request for 3 s"), "{}", rows[2]);
    for part in [">412<", ">10,000<", ">3 MiB<", ">256 MiB<", "req_pool_size", ">6,792<", "credentials: missing"] {
        assert!(section.contains(part), "{part}: {section}");
    }
    let silent = page(&ProxyContent { connections: None, ..busy() }, "");
    assert!(silent.contains("This Kafka client does not report its connections."));
    let none = page(&ProxyContent { connections: Some(Vec::new()), refusals: Vec::new(), ..busy() }, "");
    assert!(none.contains("None yet") && !none.contains("Refused since the start"));
    let many = vec![connection(1, Acks::All, ConnectionState::Connected); 300];
    let many = page(&ProxyContent { connections: Some(many), ..busy() }, "");
    assert!(many.contains("100 more connections are counted in /metrics."));
    let away = page(&ProxyContent { broker: Err("no broker has responded yet".to_owned()), ..busy() }, "");
    assert!(away.contains("<title>NOT READY · kproxy</title>") && away.contains("no broker has responded yet"));
}

#[test]
fn a_part_that_could_not_be_reloaded_is_stale() {
    let failed_reloads =
        vec![("credentials_file", "a.yaml: is empty".to_owned()), ("tls", "key_file is /k".to_owned())];
    let content = ProxyContent { failed_reloads, topics: vec![topic("t", &[(200, 1.0)])], ..busy() };
    let text = page(&content, "");
    assert!(text.contains("<title>STALE · kproxy</title>"));
    let items = between(&text, "data-verdict=\"STALE\"", "</li>");
    for (item, reason) in items
        .iter()
        .zip(["credentials_file could not be reloaded: a.yaml: is empty", "tls could not be reloaded: key_file is /k"])
    {
        assert!(item.contains(reason), "{item}");
    }
    assert_eq!(items.len(), 2);
    let failed = page(&ProxyContent { topics: busy().topics, ..content }, "");
    assert!(failed.contains("<title>1 FAILED · kproxy</title>") && failed.contains("data-verdict=\"STALE\""));
}

#[test]
fn names_and_reasons_stay_text() {
    for name in HOSTILE_NAMES {
        let mut connection = connection(1, Acks::All, ConnectionState::BackOff);
        connection.1.reason = name.to_owned();
        let content = ProxyContent {
            broker: Err(name.to_owned()),
            failed_reloads: vec![("tls", name.to_owned())],
            topics: vec![topic(name, &[(200, 1.0)])],
            connections: Some(vec![connection]),
            refusals: vec![(name.to_owned(), 1)],
            ..busy()
        };
        let id = content.topics[0].id;
        for query in ["", &format!("open={id:x}&filter=onerror%3D")] {
            let (query, now) = (Query::parse(query).unwrap(), Moment::now());
            let (text, rows) = (ProxyPage::whole(&content, &query, now), ProxyPage::rows(&content, &query, now));
            assert_harmless(&text);
            assert_same_rows(&text, &rows);
        }
    }
}

#[test]
fn a_thousand_topics_are_a_page_below_200_kb() {
    let topics = (0..1_000).map(|number| topic(&format!("topic-of-a-team-{number:04}"), &[(200, 3.0), (503, 0.5)]));
    let text = page(&ProxyContent { topics: topics.collect(), ..busy() }, "");
    assert_eq!(between(&text, "<tbody data-id=\"", "\"").len(), 200);
    assert!(text.len() < 200_000, "{}", text.len());
    assert!(text.contains("1 to 200 of 1,000") && text.contains(">Next</a>"));
}

/// Writes the sample pages for `make screenshots`.
#[test]
fn sample_pages_can_be_written() {
    let content = busy();
    write_sample("kproxy", &page(&content, ""));
    write_sample("kproxy-open", &page(&content, &format!("open={:x}", content.topics[3].id)));
}
