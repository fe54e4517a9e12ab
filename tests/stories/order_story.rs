//! Order and truth while leaders move and brokers die: many connections post numbered messages of keys of their own, and
//! afterwards every answer is held against the topic.
//!
//! `OUTAGE_SECONDS` (default 20) is how long the story of the outage posts. What its counts mean: a broker that is killed with
//! `kill -9` loses its process, not what it wrote, which the kernel keeps; so with one broker nothing that was confirmed may be
//! missing, not even with acks=1. With acks=1 a message may be there twice: it was stored, the broker died before the answer,
//! and it was sent again. With acks=-1 the broker recognises what it has. Where a partition has replicas, acks=1 may lose what
//! was confirmed, and what comes after takes its offsets: the leader dies before another has it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::http::{Client, Response};
use crate::harness::oracle::{Account, Id, Told, account, value_of};
use crate::harness::{Cluster, wait_until};
use crate::kproxy_story::Kproxy;

/// For things to go on again; generous, since two brokers may be starting on the machine meanwhile.
const DEADLINE: Duration = Duration::from_secs(60);

/// The topics by level of acks; each poster has keys of its own.
struct Load<'a> {
    cluster: &'a Cluster,
    kproxy: &'a Kproxy,
    topics: [(&'static str, String); 2],
    stop: AtomicBool,
    n_confirmed: AtomicUsize,
}

/// What one poster was told, in the order of the answers.
type Answers = Vec<(Id, Told)>;

impl<'a> Load<'a> {
    fn new(cluster: &'a Cluster, kproxy: &'a Kproxy, topics: [(&'static str, String); 2]) -> Self {
        Load { cluster, kproxy, topics, stop: AtomicBool::new(false), n_confirmed: AtomicUsize::new(0) }
    }

    /// Posts to one topic until the stop: `depth` requests at a time, of two keys in turn. A number is posted once, whatever
    /// is told about it.
    fn post(&self, poster: usize, topic: &str, acks: &str, depth: u64) -> Answers {
        let mut told = Vec::new();
        let mut numbers = 0..;
        let mut client = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(connected) = client.as_mut() else {
                client = Client::connect(&self.kproxy.address).ok();
                continue;
            };
            let ids: Vec<Id> = numbers
                .by_ref()
                .take(depth as usize)
                .map(|number| (format!("{poster}.{}", number % 2), number))
                .collect();
            let mut requests = Vec::new();
            for id in &ids {
                let value = value_of(id);
                let head = format!("POST /commit?topic={topic}&acks={acks}&key={} HTTP/1.1\r\nHost: h\r\n", id.0);
                requests.extend_from_slice(format!("{head}Content-Length: {}\r\n\r\n", value.len()).as_bytes());
                requests.extend_from_slice(&value);
            }
            let mut is_open = connected.send_raw(&requests).is_ok();
            for id in ids {
                let answer = if is_open { connected.read_response().ok() } else { None };
                is_open &= answer.as_ref().is_some_and(|answer| answer.header("Connection") != Some("close"));
                let what = answer.map_or(Told::Unknown, |answer| told_by(&answer));
                if matches!(what, Told::At { .. }) {
                    self.n_confirmed.fetch_add(1, Ordering::Relaxed);
                }
                told.push((id, what));
            }
            if !is_open {
                client = None;
            }
        }
        told
    }

    /// Posts over `n_connections`, half of them at each level, while `meanwhile` runs; every fourth pipelines.
    fn run(&self, n_connections: usize, meanwhile: impl FnOnce()) -> [Account; 2] {
        let told: Vec<(usize, Answers)> = std::thread::scope(|scope| {
            let post = |poster: usize| {
                let level = poster % 2;
                let (acks, topic) = &self.topics[level];
                let depth = if poster % 8 >= 6 { 5 } else { 1 };
                scope.spawn(move || (level, self.post(poster, topic, acks, depth)))
            };
            let posters: Vec<_> = (0..n_connections).map(post).collect();
            // The posters must end, too, when this fails.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            self.stop.store(true, Ordering::Relaxed);
            let told = posters.into_iter().map(|poster| poster.join().expect("a poster does not panic")).collect();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            told
        });
        let mut levels: [Answers; 2] = Default::default();
        for (level, told) in told {
            levels[level].extend(told);
        }
        std::array::from_fn(|level| {
            let (acks, topic) = &self.topics[level];
            let account = account(&levels[level], &self.cluster.messages(topic));
            eprintln!(
                "acks={acks}: {} confirmed, {} told not to be stored, {} unknown ({} of them there), {} copies beyond the first, \
                 {} lost, {} elsewhere",
                account.n_stored,
                account.n_no,
                account.n_unknown,
                account.n_unknown_there,
                account.n_repeats,
                account.lost.len(),
                account.misplaced.len()
            );
            account
        })
    }

    /// Waits until so many more are confirmed.
    #[track_caller]
    fn wait_for_confirmed(&self, n_more: usize, what: &str) {
        let wanted = self.n_confirmed.load(Ordering::Relaxed) + n_more;
        wait_until(DEADLINE, what, || self.n_confirmed.load(Ordering::Relaxed) >= wanted);
    }
}

fn told_by(answer: &Response) -> Told {
    let body = answer.json();
    match (answer.status, body["stored"].as_str()) {
        (200, _) => {
            let number = |name: &str| body[name].as_i64().unwrap_or_else(|| panic!("{body}"));
            Told::At { partition: number("partition") as i32, offset: number("offset") }
        }
        (_, Some("no")) => Told::No,
        (_, Some("unknown")) => Told::Unknown,
        _ => panic!("{} {body}", answer.status),
    }
}

#[test]
fn every_answer_is_true_while_leaders_move_and_a_broker_dies() {
    let [leader, all] = leaders_move_and_a_broker_dies("");
    assert!(all.is_true() && all.n_repeats == 0, "{all:?}");
    assert_honest_of_a_leader_alone(&leader);
}

/// The pure-Rust engine has no idempotent producer: what its leader had and did not confirm when it lost its office may be
/// there twice.
#[test]
fn every_answer_of_the_pure_engine_is_true_while_leaders_move_and_a_broker_dies() {
    let [leader, all] = leaders_move_and_a_broker_dies("kafka_client: kafka-rust");
    assert!(all.is_true() && all.n_repeats * 20 < all.n_stored, "{all:?}");
    assert_honest_of_a_leader_alone(&leader);
}

/// What a leader alone had when it was killed may be gone, and its offsets given again.
#[track_caller]
fn assert_honest_of_a_leader_alone(leader: &Account) {
    let n_gone = leader.lost.len() + leader.misplaced.len();
    assert!(leader.denied.is_empty() && leader.invented.is_empty(), "{leader:?}");
    assert!(leader.out_of_order.len() <= n_gone, "{leader:?}");
    assert!(n_gone * 10 < leader.n_stored, "{leader:?}");
}

fn leaders_move_and_a_broker_dies(lines: &str) -> [Account; 2] {
    let cluster = Cluster::start(3);
    // Two replicas must have what is told to be stored with acks=-1, so that the loss of any broker loses none of it.
    let settings = [("min.insync.replicas", "2"), ("unclean.leader.election.enable", "false")];
    let topic = |prefix| cluster.new_topic_with(prefix, 6, 3, &settings);
    let topics = [("1", topic("order_leader")), ("-1", topic("order_all"))];
    topics.iter().for_each(|(_, topic)| cluster.wait_for_in_sync(topic, 3));
    let kproxy = Kproxy::start_ready(&cluster, &format!("commit_timeout_ms: 10000\n{lines}"));
    let load = Load::new(&cluster, &kproxy, topics);
    load.run(16, || {
        load.wait_for_confirmed(500, "messages are stored");
        for (_, topic) in &load.topics {
            cluster.move_leaders(topic);
            load.wait_for_confirmed(200, "they are with the new leaders");
        }
        cluster.kafka_servers[1].kill9();
        load.wait_for_confirmed(200, "they are while a broker is dead");
        cluster.kafka_servers[1].restart();
        for (_, topic) in &load.topics {
            cluster.wait_for_in_sync(topic, 3);
            cluster.move_leaders(topic);
        }
        load.wait_for_confirmed(200, "they are when all is well again");
    })
}

#[test]
fn every_answer_is_true_while_the_only_broker_is_killed_three_times() {
    let seconds = std::env::var("OUTAGE_SECONDS").map_or(20, |text| text.parse().expect("OUTAGE_SECONDS is a number"));
    let whole = Duration::from_secs(seconds);
    let cluster = Cluster::start(1);
    let topics = [("1", cluster.new_topic("outage_leader", 8)), ("-1", cluster.new_topic("outage_all", 8))];
    // The broker stands still for seconds at a time, and the clients share the machine with its start.
    let kproxy = Kproxy::start_ready(&cluster, "read_timeout_ms: 30000\nwrite_timeout_ms: 30000");
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
        wait_until(whole + DEADLINE, "the time is over", || started.elapsed() >= whole);
        eprintln!("posted for {:.1?}, broker killed three times", started.elapsed());
        load.topics.iter().for_each(|(_, topic)| cluster.wait_for_in_sync(topic, 1));
    });
    assert!(all.is_true() && all.n_repeats == 0, "{all:?}");
    assert!(leader.is_true(), "{leader:?}");
}
