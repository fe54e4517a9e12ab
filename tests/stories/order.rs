//! Order and correct answers while leaders move and brokers are killed: many connections post numbered messages, and
//! afterwards every answer is compared with the topic.
//!
//! `OUTAGE_SECONDS` (default 12) is the time for which the story with one broker posts.
//!
//! A broker that is killed with `kill -9` loses no data that it wrote, since the data is in the page cache. So with one
//! broker no confirmed message may be missing, even with acks=1.
//!
//! With acks=1 a message may be stored twice: the broker stored the message and was killed before it responded, and the
//! producer sent the message again. With acks=-1 the producer is idempotent, and the broker drops duplicates. With
//! replicas and acks=1, a confirmed message is lost if its leader is killed before a follower has fetched the message;
//! a later message then gets the same offset.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::http::{Client, Response, post_request};
use crate::harness::kproxy::position;
use crate::harness::oracle::{AnswerCheck, Answered, MessageId, check_answers, value_of};
use crate::harness::{Cluster, ConfigFile, Kproxy, configs, wait_until};

/// Deadline for commits to succeed again. It is long, because a broker may be starting on the same machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Posters (connections) that share a kproxy; each poster has its own keys. Each acks level has its own topic.
struct Load<'a> {
    cluster: &'a Cluster,
    kproxy: &'a Kproxy,
    topics: [(&'static str, String); 2],
    stop: AtomicBool,
    n_confirmed: AtomicUsize,
}

/// The messages of one poster with their outcomes, in the order of the answers.
type Answers = Vec<(MessageId, Answered)>;

impl<'a> Load<'a> {
    fn new(cluster: &'a Cluster, kproxy: &'a Kproxy, topics: [(&'static str, String); 2]) -> Self {
        Load { cluster, kproxy, topics, stop: AtomicBool::new(false), n_confirmed: AtomicUsize::new(0) }
    }

    /// Posts to one topic until `stop` is set, with `depth` pipelined requests over two alternating keys; returns the
    /// outcomes. Each number is posted only once, also if the answer is an error.
    fn post(&self, poster: usize, topic: &str, acks: &str, depth: u64) -> Answers {
        let mut answers = Vec::new();
        let mut numbers = 0..;
        let mut client = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(connected) = client.as_mut() else {
                client = Client::connect(&self.kproxy.address).ok();
                continue;
            };
            let ids: Vec<MessageId> = numbers
                .by_ref()
                .take(depth as usize)
                .map(|number| (format!("{poster}.{}", number % 2), number))
                .collect();
            let mut requests = Vec::new();
            for id in &ids {
                let path = format!("/commit?topic={topic}&acks={acks}&key={}", id.0);
                requests.extend(post_request(&path, &[], &value_of(id)));
            }
            let mut is_open = connected.send_raw(&requests).is_ok();
            for id in ids {
                let answer = if is_open { connected.read_response().ok() } else { None };
                is_open &= answer.as_ref().is_some_and(|answer| answer.header("Connection") != Some("close"));
                let outcome = answer.map_or(Answered::Unknown, |answer| outcome_of(&answer));
                if matches!(outcome, Answered::Stored { .. }) {
                    self.n_confirmed.fetch_add(1, Ordering::Relaxed);
                }
                answers.push((id, outcome));
            }
            if !is_open {
                client = None;
            }
        }
        answers
    }

    /// Posts over `n_connections` while `meanwhile` runs; returns the check of each acks level. Half of the connections
    /// post at each level, and a quarter of them with five pipelined requests.
    fn run(&self, n_connections: usize, meanwhile: impl FnOnce()) -> [AnswerCheck; 2] {
        let answers: Vec<(usize, Answers)> = std::thread::scope(|scope| {
            let post = |poster: usize| {
                let level = poster % 2;
                let (acks, topic) = &self.topics[level];
                let depth = if poster % 8 >= 6 { 5 } else { 1 };
                scope.spawn(move || (level, self.post(poster, topic, acks, depth)))
            };
            let posters: Vec<_> = (0..n_connections).map(post).collect();
            // The panic is caught, so that the posters also end when `meanwhile` fails.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            self.stop.store(true, Ordering::Relaxed);
            let answers = posters.into_iter().map(|poster| poster.join().expect("a poster does not panic")).collect();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            answers
        });
        let mut levels: [Answers; 2] = Default::default();
        for (level, answers) in answers {
            levels[level].extend(answers);
        }
        std::array::from_fn(|level| {
            let (acks, topic) = &self.topics[level];
            let check = check_answers(&levels[level], &self.cluster.messages(topic));
            eprintln!("acks={acks}: {check}");
            check
        })
    }

    /// Waits until `n_more` further messages have been confirmed.
    #[track_caller]
    fn wait_for_confirmed(&self, n_more: usize, what: &str) {
        let wanted = self.n_confirmed.load(Ordering::Relaxed) + n_more;
        wait_until(DEADLINE, what, || self.n_confirmed.load(Ordering::Relaxed) >= wanted);
    }
}

fn outcome_of(answer: &Response) -> Answered {
    if answer.status == 200 {
        let (partition, offset) = position(answer, "a 200");
        return Answered::Stored { partition, offset };
    }
    match answer.json()["stored"].as_str() {
        Some("no") => Answered::NotStored,
        Some("unknown") => Answered::Unknown,
        _ => panic!("{} {}", answer.status, answer.text()),
    }
}

#[test]
fn every_answer_is_correct_while_leaders_move_and_a_broker_dies() {
    let [leader, all] = move_leaders_and_kill_a_broker(|config| config);
    assert!(all.is_correct() && all.n_repeats == 0, "{all:?}");
    assert_correct_for_acks_1(&leader);
}

/// kafka-rust has no idempotent producer. So a message may be stored twice if its leader stored the message and lost
/// the leadership before it responded.
#[test]
fn every_answer_of_kafka_rust_is_correct_while_leaders_move_and_a_broker_dies() {
    let [leader, all] = move_leaders_and_kill_a_broker(|config| config.set("kafka_client", "kafka-rust"));
    assert!(all.is_correct() && all.n_repeats * 20 < all.n_stored, "{all:?}");
    assert_correct_for_acks_1(&leader);
}

/// Checks the answers with acks=1. Messages that only a killed leader had may be lost, and their offsets may be
/// assigned to other messages.
#[track_caller]
fn assert_correct_for_acks_1(leader: &AnswerCheck) {
    let n_lost = leader.lost.len() + leader.misplaced.len();
    assert!(leader.denied.is_empty() && leader.invented.is_empty(), "{leader:?}");
    assert!(leader.out_of_order.len() <= n_lost, "{leader:?}");
    assert!(n_lost * 10 < leader.n_stored, "{leader:?}");
}

fn move_leaders_and_kill_a_broker(change: impl FnOnce(ConfigFile) -> ConfigFile) -> [AnswerCheck; 2] {
    let cluster = Cluster::start(3);
    // With acks=-1 at least two replicas have every confirmed message, so that killing one broker loses none.
    let settings = [("min.insync.replicas", "2"), ("unclean.leader.election.enable", "false")];
    let topic = |prefix| cluster.new_topic_with(prefix, 6, 3, &settings);
    let topics = [("1", topic("order_leader")), ("-1", topic("order_all"))];
    topics.iter().for_each(|(_, topic)| cluster.wait_for_in_sync(topic, 3));
    let kproxy = Kproxy::start_ready(change(configs::kproxy(&cluster).set("commit_timeout_ms", 10_000)));
    let load = Load::new(&cluster, &kproxy, topics);
    load.run(16, || {
        load.wait_for_confirmed(500, "messages are stored");
        for (_, topic) in &load.topics {
            cluster.move_leaders(topic);
            load.wait_for_confirmed(200, "messages are stored by the new leaders");
        }
        cluster.kafka_servers[1].kill9();
        load.wait_for_confirmed(200, "messages are stored while a broker is dead");
        cluster.kafka_servers[1].restart();
        for (_, topic) in &load.topics {
            cluster.wait_for_in_sync(topic, 3);
            cluster.move_leaders(topic);
        }
        load.wait_for_confirmed(200, "messages are stored with all brokers again");
    })
}

#[test]
fn every_answer_is_correct_while_the_only_broker_is_killed_three_times() {
    let seconds = std::env::var("OUTAGE_SECONDS").map_or(12, |text| text.parse().expect("OUTAGE_SECONDS is a number"));
    let whole = Duration::from_secs(seconds);
    let cluster = Cluster::start(1);
    let topics = [("1", cluster.new_topic("outage_leader", 8)), ("-1", cluster.new_topic("outage_all", 8))];
    // The time-outs are long, because the broker is down for seconds and its start slows the clients down.
    let config = configs::kproxy(&cluster).set("read_timeout_ms", 30_000).set("write_timeout_ms", 30_000);
    let kproxy = Kproxy::start_ready(config);
    let load = Load::new(&cluster, &kproxy, topics);
    let [leader, all] = load.run(64, || {
        let started = Instant::now();
        for number in 1..=3 {
            load.wait_for_confirmed(500, "messages are stored");
            let due = whole * number / 4;
            wait_until(due + DEADLINE, "the next outage is due", || started.elapsed() >= due);
            cluster.kafka_servers[0].kill9();
            cluster.kafka_servers[0].restart();
        }
        load.wait_for_confirmed(500, "messages are stored again");
        wait_until(whole + DEADLINE, "the posting time is over", || started.elapsed() >= whole);
        eprintln!("posted for {:.1?}, broker killed three times", started.elapsed());
        load.topics.iter().for_each(|(_, topic)| cluster.wait_for_in_sync(topic, 1));
    });
    assert!(all.is_correct() && all.n_repeats == 0, "{all:?}");
    assert!(leader.is_correct(), "{leader:?}");
}
