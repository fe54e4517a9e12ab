//! kproxy with a real broker: what its answers say is what is in Kafka.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::http::{self, Client, Response};
use crate::harness::{Cluster, Daemon, Program, cluster, configs, free_port, wait_until};

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(12);

/// A kproxy of its own.
pub(crate) struct Kproxy {
    pub(crate) daemon: Daemon,
    pub(crate) address: String,
    pub(crate) admin: String,
}

impl Kproxy {
    /// Starts one before a cluster, with more lines of configuration, which win; returns when it listens.
    pub(crate) fn start(cluster: &Cluster, lines: &str) -> Kproxy {
        let own: Vec<&str> =
            lines.lines().filter_map(|line| line.split(':').next()).filter(|key| !key.is_empty()).collect();
        let usual = configs::kproxy(cluster, free_port(), free_port());
        let usual: Vec<&str> = usual.lines().filter(|line| !own.iter().any(|key| line.starts_with(key))).collect();
        Kproxy::start_from(&format!("{}\n{lines}", usual.join("\n")))
    }

    /// Starts one with this file; returns when it listens.
    pub(crate) fn start_from(file: &str) -> Kproxy {
        let address = |key: &str| {
            let port = file.lines().find_map(|line| line.strip_prefix(key)).expect("the file names both ports");
            format!("127.0.0.1:{}", port.trim())
        };
        let daemon = Daemon::start(Program::Kproxy, &[("kproxy.yaml", file)]);
        let kproxy = Kproxy { daemon, address: address("port:"), admin: address("admin_port:") };
        wait_until(START_DEADLINE, "kproxy listens", || http::get(&kproxy.url("/healthz")).is_ok());
        kproxy
    }

    /// As [`Kproxy::start`], and it has reached a broker.
    pub(crate) fn start_ready(cluster: &Cluster, lines: &str) -> Kproxy {
        let kproxy = Kproxy::start(cluster, lines);
        wait_until(START_DEADLINE, "kproxy is ready", || kproxy.readiness().0 == 200);
        kproxy
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Response {
        http::post(&self.url(path), body).expect("kproxy answers")
    }

    pub(crate) fn readiness(&self) -> (u16, String) {
        let answer = http::get(&format!("http://{}/readyz", self.admin)).expect("kproxy answers");
        (answer.status, answer.text())
    }

    /// Posts to a broker that stands still; the client gets the answer one day.
    fn with_commit_under_way(&self, path: &str) -> Client {
        let mut client = Client::connect(&self.address).unwrap();
        let request = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nsecond");
        client.send_raw(request.as_bytes()).unwrap();
        wait_until(START_DEADLINE, "the commit is under way", || self.has_metric("kproxy_commits_in_flight 1"));
        client
    }

    pub(crate) fn has_metric(&self, line: &str) -> bool {
        self.metrics().lines().any(|known| known == line)
    }

    /// Its metrics, asked for at the port of clients.
    pub(crate) fn metrics(&self) -> String {
        http::get(&self.url("/metrics")).expect("kproxy answers").text()
    }
}

fn error_of(answer: &Response) -> (u16, String, String) {
    let body = answer.json();
    let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    (answer.status, word("error"), word("stored"))
}

#[test]
fn a_200_names_where_the_message_is_and_there_it_is() {
    let cluster = cluster();
    let topic = cluster.new_topic("commit", 4);
    let mut kproxy = Kproxy::start_ready(cluster, "");
    let mut client = Client::connect(&kproxy.address).unwrap();
    let mut told = Vec::new();
    for (number, acks) in ["", "&acks=0", "&acks=1", "&acks=-1"].iter().cycle().take(40).enumerate() {
        let key = if number % 3 == 0 { String::new() } else { format!("key {}", number % 5) };
        let value = format!("\u{0}message {number}\u{ff}").into_bytes();
        let path = format!("/commit?topic={topic}{acks}&key={}", key.replace(' ', "+"));
        let answer = client.post(&path, &value).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let body = answer.json();
        assert_eq!(body["topic"], topic.as_str());
        assert_eq!(body["offset"].is_null(), *acks == "&acks=0", "{acks}: {body}");
        told.push((body, key.into_bytes(), value));
    }
    let stored = wait_until(START_DEADLINE, "all messages are there", || {
        let stored = cluster.messages(&topic);
        (stored.len() >= told.len()).then_some(stored)
    });
    assert_eq!(stored.len(), told.len());
    for (body, key, value) in &told {
        let found = stored.iter().find(|message| message.value == *value).expect("it is there");
        assert_eq!(&found.key, key);
        // Without a confirmation the partition of a message without a key is not known either.
        if let Value::Number(offset) = &body["offset"] {
            let at = (body["partition"].as_i64(), offset.as_i64());
            assert_eq!(at, (Some(found.partition.into()), Some(found.offset)));
        }
    }
    wait_until(START_DEADLINE, "the level is back to nothing", || kproxy.has_metric("kproxy_commits_in_flight 0"));
    let counted = format!("kproxy_commits_total{{acks=\"-1\",code=\"200\",topic=\"{topic}\"}} 10");
    assert!(kproxy.has_metric(&counted), "{counted}");
    kproxy.daemon.end_well(STOP_DEADLINE);
    assert_eq!(kproxy.daemon.log().matches(" stored partition=").count(), 40, "a line a request");
}

#[test]
fn when_many_are_under_way_the_readers_answer_and_each_answer_has_its_line() {
    const CLIENTS: usize = 64;
    const EACH: usize = 100;
    let cluster = cluster();
    let topic = cluster.new_topic("many", 4);
    let mut kproxy = Kproxy::start_ready(cluster, "");
    let mut places: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (kproxy, topic) = (&kproxy, &topic);
                scope.spawn(move || {
                    let mut connection = Client::connect(&kproxy.address).unwrap();
                    let path = format!("/commit?topic={topic}&key={client}");
                    let place = |number: usize| {
                        let answer = connection.post(&path, number.to_string().as_bytes()).unwrap();
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        let body = answer.json();
                        format!("partition={} offset={}", body["partition"], body["offset"])
                    };
                    (0..EACH).map(place).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    kproxy.daemon.end_well(STOP_DEADLINE);
    let log = kproxy.daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(" stored partition=")).collect();
    let said = |line: &&str| {
        let (place, _) = line.split_once(" stored ")?.1.split_once(" bytes=")?;
        Some(place.to_owned())
    };
    let mut logged: Vec<_> = lines.iter().filter_map(said).collect();
    places.sort_unstable();
    logged.sort_unstable();
    assert_eq!(places.len(), CLIENTS * EACH);
    assert!(logged == places, "{} lines for {} answers", logged.len(), places.len());
    for thread in ["[http-0] ", "[http-1] "] {
        assert!(lines.iter().any(|line| line.contains(thread)), "{thread} answered nothing");
    }
}

#[test]
fn an_unknown_topic_is_404_in_time_and_nothing_is_created() {
    let cluster = Cluster::start_with(1, &["auto.create.topics.enable=false"]);
    let kproxy = Kproxy::start_ready(&cluster, "");
    for acks in ["1", "-1", "0"] {
        let started = Instant::now();
        let answer = kproxy.post(&format!("/commit?topic=never_made&acks={acks}"), b"x");
        assert_eq!(error_of(&answer), (404, "unknown_topic".into(), "no".into()), "acks={acks}: {}", answer.text());
        assert!(started.elapsed() < Duration::from_secs(5), "acks={acks}: {:?}", started.elapsed());
    }
    // Once it is there it is found.
    cluster.create_topic("never_made", 1);
    wait_until(START_DEADLINE, "the topic is found", || kproxy.post("/commit?topic=never_made", b"x").status == 200);
}

#[test]
fn without_a_broker_kproxy_says_so_and_comes_back_by_itself() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("away", 2);
    let broker = &cluster.kafka_servers[0];
    broker.kill9();
    let mut kproxy = Kproxy::start(&cluster, "commit_timeout_ms: 2000");
    let (status, body) = kproxy.readiness();
    assert!(status == 503 && body.contains("\"broker\""), "{status} {body}");
    let path = format!("/commit?topic={topic}");
    for acks in ["1", "-1", "0"] {
        let started = Instant::now();
        let answer = kproxy.post(&format!("{path}&acks={acks}"), b"lost");
        assert_eq!(error_of(&answer), (503, "no_broker".into(), "no".into()), "acks={acks}: {}", answer.text());
        assert_eq!(answer.header("Retry-After"), Some("1"));
        assert!(started.elapsed() < Duration::from_secs(5), "acks={acks}: {:?}", started.elapsed());
    }
    broker.restart();
    wait_until(START_DEADLINE, "kproxy is ready", || kproxy.readiness().0 == 200);
    wait_until(START_DEADLINE, "a commit succeeds", || kproxy.post(&path, b"kept").status == 200);
    let values: Vec<_> = cluster.messages(&topic).into_iter().map(|message| message.value).collect();
    assert!(!values.contains(&b"lost".to_vec()), "what was told not to be stored is not");
    assert!(values.contains(&b"kept".to_vec()));
    kproxy.daemon.end_well(STOP_DEADLINE);
}

#[test]
fn a_stop_confirms_what_is_under_way_and_exits_with_0() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("stop", 1);
    let mut kproxy = Kproxy::start_ready(&cluster, "shutdown_grace_ms: 5000");
    let path = format!("/commit?topic={topic}");
    let mut idle = Client::connect(&kproxy.address).unwrap();
    assert_eq!(idle.post(&path, b"first").unwrap().status, 200);
    // The broker stands still, so that a commit is certainly under way.
    cluster.kafka_servers[0].stop_process();
    let mut busy = kproxy.with_commit_under_way(&path);
    kproxy.daemon.terminate();
    assert_eq!(idle.read_rest().unwrap(), b"", "an idle connection is closed at once");
    cluster.kafka_servers[0].continue_process();
    let answer = busy.read_response().unwrap();
    assert_eq!((answer.status, answer.header("Connection")), (200, Some("close")), "{}", answer.text());
    assert_eq!(kproxy.daemon.wait(STOP_DEADLINE).code(), Some(0));
    assert_eq!(cluster.messages(&topic).len(), 2);
}

#[test]
fn a_stop_with_a_broker_that_stands_still_is_bounded_and_honest() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("stuck", 1);
    let mut kproxy = Kproxy::start_ready(&cluster, "shutdown_grace_ms: 3000");
    let path = format!("/commit?topic={topic}");
    assert_eq!(kproxy.post(&path, b"first").status, 200);
    cluster.kafka_servers[0].stop_process();
    let mut busy = kproxy.with_commit_under_way(&path);
    kproxy.daemon.terminate();
    let answer = busy.read_response().unwrap();
    assert_eq!(error_of(&answer), (504, "no_confirmation".into(), "unknown".into()), "{}", answer.text());
    assert_eq!(kproxy.daemon.wait(Duration::from_secs(5)).code(), Some(0));
    cluster.kafka_servers[0].continue_process();
}
