//! The rules of a topic that kproxy knows before it sends a message: messages that break them are refused at once, at
//! every acks level, and do not affect other messages. The right to write is also denied and granted, and so is the
//! right that acks=-1 needs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::harness::http::{Client, Response};
use crate::harness::kafka_admin::AUTHORIZER;
use crate::harness::kafka_admin::{Acl, Operation, Resource};
use crate::harness::kproxy::{INVALID_MESSAGE, NOT_AUTHORIZED, Refusal, TOO_LARGE, assert_refused, is_refused};
use crate::harness::{Cluster, Kproxy, SetOnDrop, cluster, configs, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
/// Longest time until kproxy follows a config that was changed, or a right that was granted, if messages are refused
/// meanwhile; with a reserve for a busy machine. It is printed.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(15);
const LEVELS: [&str; 3] = ["0", "1", "-1"];

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()
}

/// A message that a topic does not accept.
struct Poison {
    topic: String,
    parameters: String,
    body: Vec<u8>,
    expected: Refusal,
    /// A word of Kafka in the message of the answer.
    word: &'static str,
}

impl Poison {
    fn path(&self, acks: &str) -> String {
        format!("/commit?topic={}&acks={acks}{}", self.topic, self.parameters)
    }

    #[track_caller]
    fn assert_refused(&self, answer: &Response, acks: &str) {
        assert_refused(answer, self.expected, &self.path(acks));
        assert!(answer.text().contains(self.word), "{}: {}", self.path(acks), answer.text());
    }
}

/// Three kinds of messages that a rule of their topic forbids.
fn poisons(cluster: &Cluster) -> Vec<Poison> {
    let topic = |prefix, config: (&str, &str)| cluster.new_topic_with(prefix, 2, 1, &[config]);
    let day_ms = 86_400_000;
    vec![
        Poison {
            topic: topic("compacted", ("cleanup.policy", "compact")),
            parameters: String::new(),
            body: b"x".to_vec(),
            expected: INVALID_MESSAGE,
            word: "INVALID_RECORD",
        },
        Poison {
            topic: topic("limited", ("max.message.bytes", "1000")),
            parameters: "&key=k".to_owned(),
            body: vec![b'x'; 2000],
            expected: TOO_LARGE,
            word: "max.message.bytes",
        },
        Poison {
            topic: topic("dated", ("message.timestamp.after.max.ms", "60000")),
            parameters: format!("&timestamp={}", now_ms() + day_ms),
            body: b"x".to_vec(),
            expected: INVALID_MESSAGE,
            word: "INVALID_TIMESTAMP",
        },
    ]
}

/// Posts to each topic until kproxy knows its rules: until then it accepts everything at acks=0.
fn learn(kproxy: &Kproxy, poisons: &[Poison]) {
    for poison in poisons {
        wait_until(DEADLINE, &format!("kproxy knows the rules of {}", poison.topic), || {
            is_refused(&kproxy.post(&poison.path("0"), &poison.body), poison.expected)
        });
    }
}

#[test]
fn messages_that_a_rule_of_their_topic_forbids_are_refused_at_every_level_until_it_changes() {
    let cluster = cluster();
    let kproxy = Kproxy::start_ready(configs::kproxy(cluster).set("read_timeout_ms", 5_000));
    let poisons = poisons(cluster);
    learn(&kproxy, &poisons);
    let mut good = 0;
    for poison in &poisons {
        let before = cluster.message_count(&poison.topic);
        for acks in LEVELS {
            poison.assert_refused(&kproxy.post(&poison.path(acks), &poison.body), acks);
            let path = format!("/commit?topic={}&acks={acks}&key=good", poison.topic);
            let answer = kproxy.post(&path, b"good");
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            good += 1;
        }
        wait_until(DEADLINE, "exactly the good messages are stored", || {
            cluster.message_count(&poison.topic) == before + LEVELS.len() as i64
        });
    }
    // The neighbours in a batch are stored.
    let compacted = &poisons[0].topic;
    let lines = "{\"key\":\"a\",\"value\":\"1\"}\n{\"value\":\"2\"}\n{\"key\":\"b\",\"value\":\"3\"}\n";
    for acks in LEVELS {
        let path = format!("/commit_batch?topic={compacted}&acks={acks}");
        let answer = kproxy
            .connect()
            .request("POST", &path, &[("Content-Type", "application/x-ndjson")], lines.as_bytes())
            .expect("kproxy answers");
        let text = answer.text();
        let results: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(answer.status, 422, "acks={acks}: {text}");
        assert_eq!(results[1]["status"], 422, "acks={acks}: {text}");
        assert_eq!((&results[1]["stored"], &results[1]["retriable"]), (&"no".into(), &false.into()), "{text}");
        assert!(results[0]["partition"].is_i64() && results[2]["partition"].is_i64(), "acks={acks}: {text}");
    }
    // Each rule is lifted: the topic has no own configs any more.
    for poison in &poisons {
        cluster.set_topic_configs(&poison.topic, &[]);
        let changed = Instant::now();
        for acks in LEVELS {
            wait_until(FOLLOWS_WITHIN, &format!("{} is accepted", poison.path(acks)), || {
                kproxy.post(&poison.path(acks), &poison.body).status == 200
            });
        }
        eprintln!("{}: accepted {:.1?} after the change", poison.topic, changed.elapsed());
    }
    eprintln!("{good} good messages");
}

/// P4: a topic is denied, then granted; another topic never notices.
#[test]
fn a_topic_that_is_denied_and_granted_again_is_written_to_within_seconds() {
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 5_000));
    let (denied, other) = (cluster.new_topic("denied", 2), cluster.new_topic("other", 2));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poster = scope.spawn(|| {
            let mut client = kproxy.connect();
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let acks = LEVELS[count % LEVELS.len()];
                let answer = client.post(&format!("/commit?topic={other}&acks={acks}"), b"x").expect("kproxy answers");
                assert_eq!(answer.status, 200, "the other topic: {}", answer.text());
                count += 1;
            }
            count
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for operations in [&[Operation::Write][..], &[Operation::Write, Operation::Describe]] {
                deny_and_grant(&cluster, &kproxy, &denied, operations);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let count = poster.join().expect("the poster does not panic");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        eprintln!("{count} messages to the other topic");
    });
    drop(kproxy);
    // A kproxy that has never seen the topic does not request its metadata with each message.
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 5_000));
    let acl = Acl { resource: Resource::Topic(&denied), operation: Operation::Describe, is_allowed: false };
    cluster.set_acl(acl, true);
    cluster.deny_write(&denied, true);
    let before = kproxy.metric("kproxy_topic_lookups_total");
    let started = Instant::now();
    let mut client = kproxy.connect();
    for number in 0..300 {
        let acks = LEVELS[number % LEVELS.len()];
        let answer = client.post(&format!("/commit?topic={denied}&acks={acks}"), b"x").expect("kproxy answers");
        assert_refused(&answer, NOT_AUTHORIZED, "a topic that was always denied");
    }
    let lookups = kproxy.metric("kproxy_topic_lookups_total") - before;
    assert!(lookups <= 2 + started.elapsed().as_secs(), "{lookups} lookups for 300 messages");
}

fn deny_and_grant(cluster: &Cluster, kproxy: &Kproxy, topic: &str, operations: &[Operation]) {
    let path = |acks: &str| format!("/commit?topic={topic}&acks={acks}");
    let set = |is_denied| {
        for operation in operations {
            let resource = Resource::Topic(topic);
            cluster.set_acl(Acl { resource, operation: *operation, is_allowed: false }, is_denied);
        }
    };
    for acks in LEVELS {
        assert_eq!(kproxy.post(&path(acks), b"x").status, 200);
    }
    set(true);
    for acks in ["1", "-1", "0"] {
        let answer = wait_until(DEADLINE, &format!("{} is refused", path(acks)), || {
            let answer = kproxy.post(&path(acks), b"x");
            (answer.status != 200).then_some(answer)
        });
        assert_refused(&answer, NOT_AUTHORIZED, &path(acks));
        assert!(answer.text().contains("TOPIC_AUTHORIZATION_FAILED"), "{}", answer.text());
    }
    set(false);
    let granted = Instant::now();
    for acks in LEVELS {
        wait_until(FOLLOWS_WITHIN, &format!("{} is stored", path(acks)), || {
            let answer = kproxy.post(&path(acks), b"x");
            assert!(answer.status == 200 || is_refused(&answer, NOT_AUTHORIZED), "{}", answer.text());
            answer.status == 200
        });
    }
    eprintln!("{operations:?}: stored {:.1?} after the right was granted", granted.elapsed());
}

/// acks=-1 needs a producer id, which the cluster may refuse. The answer has the reason and comes at once; the other
/// levels are not concerned, and the next id is requested after pauses.
#[test]
fn a_refused_producer_id_is_named_at_once_and_requested_again() {
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let mut kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 5_000));
    let topic = cluster.new_topic("written", 2);
    let (cluster_acl, any_topic) = (Resource::Cluster, Resource::Topic("*"));
    for resource in [cluster_acl, any_topic] {
        cluster.set_acl(Acl { resource, operation: Operation::All, is_allowed: true }, true);
    }
    // Since Kafka 2.8 the right to write to some topic is enough for a producer id.
    let denials = [(cluster_acl, Operation::IdempotentWrite), (any_topic, Operation::Write)];
    let set = |is_denied| {
        for (resource, operation) in denials {
            cluster.set_acl(Acl { resource, operation, is_allowed: false }, is_denied);
        }
    };
    set(true);
    let path = |acks: &str| format!("/commit?topic={topic}&acks={acks}");
    let answer = wait_until(DEADLINE, "acks=-1 is refused for the producer id", || {
        let answer = kproxy.post(&path("-1"), b"x");
        answer.text().contains("CLUSTER_AUTHORIZATION_FAILED").then_some(answer)
    });
    assert_refused(&answer, NOT_AUTHORIZED, "no producer id");
    eprintln!("refused: {}", answer.text());
    let mut client = kproxy.connect();
    let started = Instant::now();
    for _ in 0..500 {
        let answer = client.post(&path("-1"), b"x").expect("kproxy answers");
        assert_refused(&answer, NOT_AUTHORIZED, "no producer id");
        let answer = client.post(&path("1"), b"x").expect("kproxy answers");
        assert_refused(&answer, NOT_AUTHORIZED, "no right to write");
    }
    eprintln!("1000 refusals in {:.1?}", started.elapsed());
    let threads = kproxy.daemon.thread_names();
    assert!(threads.len() <= 24, "{threads:?}");
    let warnings = kproxy.daemon.log().matches("messages with acks=-1 are refused").count();
    assert!(warnings <= 2, "{warnings} warnings");
    set(false);
    wait_until(FOLLOWS_WITHIN, "acks=1 is stored", || kproxy.post(&path("1"), b"x").status == 200);
    // The pause has grown to 30 s at most.
    wait_until(DEADLINE, "acks=-1 is stored", || kproxy.post(&path("-1"), b"x").status == 200);
    kproxy.daemon.stop(DEADLINE);
}

/// Posts at a rate until `stop`; returns the time of each answer.
fn post_at(
    client: &mut Client,
    rate: u32,
    stop: &AtomicBool,
    mut post: impl FnMut(&mut Client, usize),
) -> Vec<Duration> {
    let started = Instant::now();
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = started + Duration::from_secs(1) * took.len() as u32 / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        post(client, took.len());
        took.push(sent.elapsed());
    }
    took
}

/// Clients that post 200 messages a second of each kind and each acks level which are refused, beside a client that
/// posts 1000 good ones a second to another topic.
#[test]
fn a_client_whose_messages_are_refused_disturbs_no_other() {
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 20_000));
    let mut poisons = poisons(&cluster);
    let denied = cluster.new_topic("denied", 2);
    cluster.deny_write(&denied, true);
    poisons.push(Poison {
        topic: denied,
        parameters: String::new(),
        body: b"x".to_vec(),
        expected: NOT_AUTHORIZED,
        word: "TOPIC_AUTHORIZATION_FAILED",
    });
    learn(&kproxy, &poisons);
    let other = cluster.new_topic("other", 4);
    let (stop, n_good, n_refused) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut took = std::thread::scope(|scope| {
        let (stop, kproxy, other, n_good, n_refused) = (&stop, &kproxy, &other, &n_good, &n_refused);
        let end = SetOnDrop(stop);
        for poison in &poisons {
            for acks in LEVELS {
                scope.spawn(move || {
                    let path = poison.path(acks);
                    post_at(&mut kproxy.connect(), 200, stop, |client, _| {
                        poison.assert_refused(&client.post(&path, &poison.body).expect("kproxy answers"), acks);
                        n_refused.fetch_add(1, Ordering::Relaxed);
                    })
                });
            }
        }
        let good = scope.spawn(move || {
            post_at(&mut kproxy.connect(), 1000, stop, |client, number| {
                let path = format!("/commit?topic={other}&acks={}", LEVELS[number % LEVELS.len()]);
                let answer = client.post(&path, b"good").expect("kproxy answers");
                assert_eq!(answer.status, 200, "{path} beside refusals: {}", answer.text());
                n_good.fetch_add(1, Ordering::Relaxed);
            })
        });
        wait_until(DEADLINE, "good messages are stored beside refused ones", || {
            n_good.load(Ordering::Relaxed) > 3_000 && n_refused.load(Ordering::Relaxed) > 6_000
        });
        drop(end);
        good.join().expect("every good message is stored")
    });
    took.sort_unstable();
    let (p99, n_refused) = (took[took.len() * 99 / 100], n_refused.into_inner());
    eprintln!("{} good messages beside {n_refused} refused ones, p99 {p99:.2?}", took.len());
    let connections = kproxy.daemon.log().matches("no broker can be reached").count();
    assert_eq!(connections, 0, "kproxy took the broker for unreachable");
}
