//! kproxy with a real broker: its answers are compared with the messages in Kafka.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::http::Client;
use crate::harness::kproxy::{NO_BROKER, NO_CONFIRMATION, UNKNOWN_TOPIC, assert_refused};
use crate::harness::{Cluster, Kproxy, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_200_names_the_partition_and_offset_of_the_stored_message() {
    let cluster = cluster();
    let topic = cluster.new_topic("commit", 4);
    let mut kproxy = Kproxy::start_usual(cluster);
    let posted = post_at_every_level(&mut kproxy.connect(), &topic);
    let stored = wait_until(DEADLINE, "all messages are stored", || {
        let stored = cluster.messages(&topic);
        (stored.len() >= posted.len()).then_some(stored)
    });
    assert_eq!(stored.len(), posted.len());
    for (body, key, value) in &posted {
        let found = stored.iter().find(|message| message.value == *value).expect("the message is stored");
        assert_eq!(&found.key, key);
        // With acks=0 the answer has no offset, and without a key it has no partition either.
        if let Value::Number(offset) = &body["offset"] {
            let at = (body["partition"].as_i64(), offset.as_i64());
            assert_eq!(at, (Some(found.partition.into()), Some(found.offset)));
        }
    }
    kproxy.wait_for_commits_in_flight(0);
    let counted = format!("kproxy_commits_total{{acks=\"-1\",code=\"200\",topic=\"{topic}\"}} 10");
    assert!(kproxy.has_metric(&counted), "{counted}");
    kproxy.daemon.stop(STOP_DEADLINE);
    assert_eq!(kproxy.daemon.log().matches(" stored partition=").count(), 40, "one log line for each request");
}

/// Posts 40 messages at all acks levels; returns the body of the answer, the key and the value of each.
fn post_at_every_level(client: &mut Client, topic: &str) -> Vec<(Value, Vec<u8>, Vec<u8>)> {
    let mut posted = Vec::new();
    for (number, acks) in ["", "&acks=0", "&acks=1", "&acks=-1"].iter().cycle().take(40).enumerate() {
        let key = if number % 3 == 0 { String::new() } else { format!("key {}", number % 5) };
        let value = format!("\u{0}message {number}\u{ff}").into_bytes();
        let path = format!("/commit?topic={topic}{acks}&key={}", key.replace(' ', "+"));
        let answer = client.post(&path, &value).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let body = answer.json();
        assert_eq!(body["topic"], topic);
        assert_eq!(body["offset"].is_null(), *acks == "&acks=0", "{acks}: {body}");
        posted.push((body, key.into_bytes(), value));
    }
    posted
}

#[test]
fn with_many_commits_in_flight_the_readers_answer_and_each_answer_has_its_log_line() {
    const CLIENTS: usize = 64;
    const EACH: usize = 100;
    let cluster = cluster();
    let topic = cluster.new_topic("many", 4);
    let mut kproxy = Kproxy::start_usual(cluster);
    let mut answered: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (kproxy, topic) = (&kproxy, &topic);
                scope.spawn(move || {
                    let mut connection = kproxy.connect();
                    let path = format!("/commit?topic={topic}&key={client}");
                    let position = |number: usize| {
                        let answer = connection.post(&path, number.to_string().as_bytes()).unwrap();
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        let body = answer.json();
                        format!("partition={} offset={}", body["partition"], body["offset"])
                    };
                    (0..EACH).map(position).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    kproxy.daemon.stop(STOP_DEADLINE);
    let log = kproxy.daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(" stored partition=")).collect();
    let position_in = |line: &&str| {
        let (position, _) = line.split_once(" stored ")?.1.split_once(" bytes=")?;
        Some(position.to_owned())
    };
    let mut logged: Vec<_> = lines.iter().filter_map(position_in).collect();
    answered.sort_unstable();
    logged.sort_unstable();
    assert_eq!(answered.len(), CLIENTS * EACH);
    assert!(logged == answered, "{} lines for {} answers", logged.len(), answered.len());
    for thread in ["[http-0] ", "[http-1] "] {
        assert!(lines.iter().any(|line| line.contains(thread)), "{thread} answered nothing");
    }
}

#[test]
fn an_unknown_topic_is_answered_with_404_in_time_and_not_created() {
    let (cluster, topic) = (cluster(), unique("never_made"));
    let kproxy = Kproxy::start_usual(cluster);
    for acks in ["1", "-1", "0"] {
        let started = Instant::now();
        let answer = kproxy.post(&format!("/commit?topic={topic}&acks={acks}"), b"x");
        assert_refused(&answer, UNKNOWN_TOPIC, &format!("acks={acks}"));
        assert!(started.elapsed() < Duration::from_secs(5), "acks={acks}: {:?}", started.elapsed());
    }
    assert!(cluster.leaders(&topic).is_none_or(|leaders| leaders.is_empty()), "it is not created");
    cluster.create_topic(&topic, 1);
    let path = format!("/commit?topic={topic}");
    wait_until(DEADLINE, "the new topic is found", || kproxy.post(&path, b"x").status == 200);
}

#[test]
fn without_a_broker_kproxy_answers_503_and_recovers_by_itself() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("down", 2);
    let broker = &cluster.kafka_servers[0];
    broker.kill9();
    let mut kproxy = Kproxy::start(configs::kproxy(&cluster).set("commit_timeout_ms", 2000));
    let (status, body) = kproxy.readiness();
    assert!(status == 503 && body.contains("\"broker\""), "{status} {body}");
    let path = format!("/commit?topic={topic}");
    for acks in ["1", "-1", "0"] {
        let started = Instant::now();
        let answer = kproxy.post(&format!("{path}&acks={acks}"), b"lost");
        assert_refused(&answer, NO_BROKER, &format!("acks={acks}"));
        assert_eq!(answer.header("Retry-After"), Some("1"));
        assert!(started.elapsed() < Duration::from_secs(5), "acks={acks}: {:?}", started.elapsed());
    }
    broker.restart();
    kproxy.wait_until_ready();
    wait_until(DEADLINE, "a commit succeeds", || kproxy.post(&path, b"kept").status == 200);
    let values: Vec<_> = cluster.messages(&topic).into_iter().map(|message| message.value).collect();
    assert!(!values.contains(&b"lost".to_vec()), "a message answered with stored: no is not stored");
    assert!(values.contains(&b"kept".to_vec()));
    kproxy.daemon.stop(STOP_DEADLINE);
}

/// Sends a commit and waits until it is in flight; the broker is frozen, so the story reads the answer later.
fn start_commit(kproxy: &Kproxy, path: &str) -> Client {
    let client = kproxy.start_post(path, b"second");
    kproxy.wait_for_commits_in_flight(1);
    client
}

#[test]
fn a_stop_confirms_the_commits_in_flight_and_exits_with_0() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("stop", 1);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("shutdown_grace_ms", 5000));
    let path = format!("/commit?topic={topic}");
    let mut idle = kproxy.connect();
    assert_eq!(idle.post(&path, b"first").unwrap().status, 200);
    // The broker is frozen, so that the commit is certainly in flight when kproxy gets SIGTERM.
    cluster.kafka_servers[0].freeze();
    let mut busy = start_commit(&kproxy, &path);
    kproxy.daemon.terminate();
    assert_eq!(idle.read_rest().unwrap(), b"", "an idle connection is closed at once");
    cluster.kafka_servers[0].unfreeze();
    let answer = busy.read_response().unwrap();
    assert_eq!((answer.status, answer.header("Connection")), (200, Some("close")), "{}", answer.text());
    assert_eq!(kproxy.daemon.wait(STOP_DEADLINE).code(), Some(0));
    assert_eq!(cluster.messages(&topic).len(), 2);
}

#[test]
fn a_stop_with_a_frozen_broker_ends_within_the_grace_and_answers_504() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("frozen", 1);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("shutdown_grace_ms", 3000));
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"first").status, 200);
    cluster.kafka_servers[0].freeze();
    let mut busy = start_commit(&kproxy, &path);
    kproxy.daemon.terminate();
    assert_refused(&busy.read_response().unwrap(), NO_CONFIRMATION, "at the end of the grace");
    assert_eq!(kproxy.daemon.wait(Duration::from_secs(5)).code(), Some(0));
    cluster.kafka_servers[0].unfreeze();
}
