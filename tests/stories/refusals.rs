//! Thousands of messages that the brokers refuse, beside other traffic: every other message is stored exactly once, at
//! the position of its answer, and about as fast as without them.
//!
//! kproxy has no right to read the configs of the topics, since it would refuse these messages itself; for that see
//! `topic_rules.rs`.
//!
//! `REFUSALS` (default 1500) is the number of refused messages of each kind and acks level. 33,000 are more than a
//! producer id has epochs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::http::{Client, Response};
use crate::harness::kafka_admin::AUTHORIZER;
use crate::harness::kproxy::{INVALID_MESSAGE, NOT_AUTHORIZED, Refusal, TOO_LARGE, is_refused, position};
use crate::harness::oracle::{Answered, MessageId, check_answers, value_of};
use crate::harness::{Cluster, Kproxy, configs};

const DEADLINE: Duration = Duration::from_secs(60);
/// Connections that post messages to be refused, for each kind.
const N_BAD: usize = 8;
/// Connections that post good messages to each topic.
const N_GOOD: usize = 4;

fn refusal_count() -> usize {
    std::env::var("REFUSALS").map_or(1_500, |text| text.parse().expect("REFUSALS is a number"))
}

/// A kind of refusal: its topic, and what is posted there.
struct Kind {
    topic: String,
    /// Parameters of a message that is refused.
    parameters: String,
    bad_body: Vec<u8>,
    expected: Refusal,
    /// Whether other messages to the topic are accepted.
    accepts_others: bool,
}

fn kinds(cluster: &Cluster, kproxy: &Kproxy) -> Vec<Kind> {
    let topic = |prefix, settings: &[(&str, &str)]| {
        let topic = cluster.new_topic_with(prefix, 2, 1, settings);
        cluster.hide_configs(&topic);
        topic
    };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let bad = |topic: String, parameters: String, bad_body: Vec<u8>, expected, accepts_others| Kind {
        topic,
        parameters,
        bad_body,
        expected,
        accepts_others,
    };
    let denied = topic("denied", &[]);
    assert_eq!(kproxy.post(&format!("/commit?topic={denied}&acks=-1"), b"x").status, 200);
    cluster.deny_write(&denied, true);
    vec![
        bad(topic("compacted", &[("cleanup.policy", "compact")]), String::new(), b"x".to_vec(), INVALID_MESSAGE, true),
        bad(topic("limited", &[("max.message.bytes", "1000")]), "&key=k".to_owned(), vec![b'x'; 2000], TOO_LARGE, true),
        bad(
            topic("dated", &[("message.timestamp.after.max.ms", "60000")]),
            format!("&timestamp={}", now_ms + 86_400_000),
            b"x".to_vec(),
            INVALID_MESSAGE,
            true,
        ),
        bad(denied, String::new(), b"x".to_vec(), NOT_AUTHORIZED, false),
    ]
}

/// Messages of one connection with their answers, and how long each took.
type Posted = Vec<(MessageId, Answered, Duration)>;

/// Posts numbered messages until `stop`; each must be stored.
fn post_good(kproxy: &Kproxy, topic: &str, acks: &str, poster: usize, stop: &AtomicBool) -> Posted {
    let mut client = kproxy.connect();
    let mut posted = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = (format!("{acks}.{poster}"), number);
        let path = format!("/commit?topic={topic}&acks={acks}&key={}", id.0);
        let started = Instant::now();
        let answer = client.post(&path, &value_of(&id)).expect("kproxy answers");
        let took = started.elapsed();
        assert_eq!(answer.status, 200, "{topic} {acks} {id:?} after {took:.1?}: {}", answer.text());
        let (partition, offset) = if acks == "0" { (0, 0) } else { position(&answer, topic) };
        posted.push((id, Answered::Stored { partition, offset }, took));
    }
    posted
}

/// Posts messages that are refused until `left` is used up.
fn post_bad(kproxy: &Kproxy, kind: &Kind, acks: &str, left: &AtomicUsize) {
    let path = format!("/commit?topic={}&acks={acks}{}", kind.topic, kind.parameters);
    let mut client = kproxy.connect();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let answer: Response = client.post(&path, &kind.bad_body).expect("kproxy answers");
        // At acks=0 only a refusal of the topic's metadata is noticed.
        let is_right = is_refused(&answer, kind.expected) || (acks == "0" && answer.status == 200);
        assert!(is_right, "{path}: {} {}", answer.status, answer.text());
    }
}

fn percentile(posted: &[&Posted], hundredths: usize) -> Duration {
    let mut times: Vec<Duration> = posted.iter().flat_map(|posted| posted.iter().map(|(_, _, took)| *took)).collect();
    times.sort_unstable();
    times.get((times.len() * hundredths / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Posts good messages to all topics at all levels in `levels` while `meanwhile` runs; checks the topics afterwards.
fn with_good_traffic(
    cluster: &Cluster,
    kproxy: &Kproxy,
    topics: &[&str],
    levels: &[&'static str],
    n_earlier: usize,
    meanwhile: impl FnOnce(),
) -> Duration {
    let stop = AtomicBool::new(false);
    let all: Vec<(usize, &str, Posted)> = std::thread::scope(|scope| {
        let mut posters = Vec::new();
        for (index, topic) in topics.iter().enumerate() {
            for acks in levels {
                for poster in 0..N_GOOD {
                    let stop = &stop;
                    let post = move || (index, *acks, post_good(kproxy, topic, acks, n_earlier + poster, stop));
                    posters.push(scope.spawn(post));
                }
            }
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        stop.store(true, Ordering::Relaxed);
        let posted = posters.into_iter().map(|poster| poster.join().expect("a poster does not panic")).collect();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        posted
    });
    for (index, topic) in topics.iter().enumerate() {
        let stored = cluster.messages(topic);
        let keys: Vec<&Vec<u8>> = stored.iter().map(|message| &message.key).collect();
        assert!(keys.iter().all(|key| !key.is_empty() && **key != b"k"), "{topic}: a refused message is stored");
        for acks in levels {
            let of_level = all.iter().filter(|(at, level, _)| *at == index && level == acks);
            let of_level: Vec<&Posted> = of_level.map(|(_, _, posted)| posted).collect();
            let answers =
                of_level.iter().flat_map(|posted| posted.iter().map(|(id, outcome, _)| (id.clone(), *outcome)));
            let answers: Vec<_> = answers.collect();
            let keys: Vec<Vec<u8>> =
                (0..N_GOOD).map(|poster| format!("{acks}.{}", n_earlier + poster).into_bytes()).collect();
            let stored: Vec<_> = stored.iter().filter(|message| keys.contains(&message.key)).cloned().collect();
            let check = check_answers(&answers, &stored);
            if *acks != "0" {
                assert!(check.is_correct() && check.n_repeats == 0, "{topic} acks={acks}: {check:?}");
            }
            eprintln!(
                "  {topic} acks={acks}: {} stored ({} in the topic), p50 {:.1?}, p99 {:.1?}, max {:.1?}",
                check.n_stored,
                stored.len(),
                percentile(&of_level, 50),
                percentile(&of_level, 99),
                percentile(&of_level, 100)
            );
        }
    }
    percentile(&all.iter().map(|(_, _, posted)| posted).collect::<Vec<_>>(), 99)
}

#[test]
fn refused_messages_disturb_no_others() {
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 20_000));
    let kinds = kinds(&cluster, &kproxy);
    let other = cluster.new_topic("other", 4);
    let mut topics: Vec<&str> = kinds.iter().filter(|kind| kind.accepts_others).map(|kind| &*kind.topic).collect();
    topics.push(&other);
    let levels = ["-1", "1"];
    // The same load, with messages that are accepted in place of those that are refused.
    let elsewhere = cluster.new_topic("elsewhere", 2);
    let accepted = Kind {
        topic: elsewhere,
        parameters: String::new(),
        bad_body: b"x".to_vec(),
        expected: INVALID_MESSAGE,
        accepts_others: true,
    };
    let mut n_earlier = 0;
    let mut run = |what: &str, meanwhile: &dyn Fn()| {
        let started = Instant::now();
        let p99 = with_good_traffic(&cluster, &kproxy, &topics, &levels, n_earlier, meanwhile);
        n_earlier += N_GOOD;
        eprintln!("{what}: p99 of the others {p99:.1?}, {:.1?} in all", started.elapsed());
        p99
    };
    let without = run("accepted messages", &|| post_accepted(&kproxy, &accepted, Duration::from_secs(2)));
    for kind in &kinds {
        for acks in levels {
            let with = run(&format!("{} at acks={acks}", kind.topic), &|| {
                let started = Instant::now();
                let left = AtomicUsize::new(refusal_count());
                std::thread::scope(|scope| {
                    for _ in 0..N_BAD {
                        scope.spawn(|| post_bad(&kproxy, kind, acks, &left));
                    }
                });
                eprintln!("  {} refusals in {:.1?}", refusal_count(), started.elapsed());
            });
            assert!(with < without * 4 + Duration::from_secs(1), "{}: {with:.1?}, without {without:.1?}", kind.topic);
        }
    }
}

fn post_accepted(kproxy: &Kproxy, kind: &Kind, time: Duration) {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..N_BAD {
            let acks = ["-1", "1"][number % 2];
            scope.spawn(move || {
                let mut client = kproxy.connect();
                while started.elapsed() < time {
                    let path = format!("/commit?topic={}&acks={acks}", kind.topic);
                    assert_eq!(client.post(&path, &kind.bad_body).expect("kproxy answers").status, 200);
                }
            });
        }
    });
}

/// At acks=0 a broker reports a refusal by closing the connection, which loses other messages of acks=0. Those of the
/// other levels are not concerned.
#[test]
fn refused_messages_without_acknowledgement_disturb_no_other_level() {
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 20_000));
    let kinds = kinds(&cluster, &kproxy);
    let mut topics: Vec<&str> = kinds.iter().filter(|kind| kind.accepts_others).map(|kind| &*kind.topic).collect();
    let other = cluster.new_topic("other", 4);
    topics.push(&other);
    let mut n_earlier = 0;
    for kind in &kinds {
        let p99 = with_good_traffic(&cluster, &kproxy, &topics, &["-1", "1"], n_earlier, || {
            let left = AtomicUsize::new(refusal_count() / 2);
            std::thread::scope(|scope| {
                for _ in 0..N_BAD {
                    scope.spawn(|| post_bad(&kproxy, kind, "0", &left));
                }
            });
        });
        n_earlier += N_GOOD;
        eprintln!("{} at acks=0: p99 of the other levels {p99:.1?}", kind.topic);
        assert!(p99 < Duration::from_secs(2), "{}: {p99:.1?}", kind.topic);
    }
    // Messages of acks=0 are stored again afterwards.
    let mut client: Client = kproxy.connect();
    let before = cluster.message_count(&other);
    crate::harness::wait_until(DEADLINE, "messages of acks=0 are stored", || {
        let path = format!("/commit?topic={other}&acks=0&key=after");
        assert_eq!(client.post(&path, b"x").expect("kproxy answers").status, 200);
        cluster.message_count(&other) > before
    });
}
