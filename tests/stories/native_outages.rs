//! Commits and batches while leaders move and brokers are killed or hang: every answer is compared with the topic.
//!
//! `OUTAGE_SECONDS` (default 8) is the time for which leaders move or a broker hangs.
//!
//! With acks=1 a message is lost if its leader loses the partition before a follower has fetched the message; another
//! message may then get its offset. It may be stored twice, if a leader stored it and did not answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::http::{Client, Response, post_request};
use crate::harness::oracle::{AnswerCheck, Answered, MessageId, check_answers, check_pushes, value_of};
use crate::harness::{Cluster, Kproxy, SetOnDrop, configs, wait_until};

/// Deadline for commits to succeed again. It is long, because a broker may be starting on the same machine.
const DEADLINE: Duration = Duration::from_secs(60);
const LEVELS: [&str; 2] = ["1", "-1"];
const BATCH_LINES: u64 = 1000;
const NDJSON: &[(&str, &str)] = &[("Content-Type", "application/x-ndjson")];

fn outage_time() -> Duration {
    let seconds = std::env::var("OUTAGE_SECONDS").map_or(8, |text| text.parse().expect("OUTAGE_SECONDS is a number"));
    Duration::from_secs(seconds)
}

/// Connections that post to one topic an acks level.
struct Load<'a> {
    cluster: &'a Cluster,
    kproxy: &'a Kproxy,
    topics: [String; 2],
    stop: AtomicBool,
    n_confirmed: AtomicUsize,
}

type Answers = Vec<(MessageId, Answered)>;

fn outcome_of(result: &Value) -> Answered {
    match (result["offset"].as_i64(), result["partition"].as_i64(), result["stored"].as_str()) {
        (Some(offset), Some(partition), _) => Answered::Stored { partition: partition as i32, offset },
        (_, _, Some("no")) => Answered::NotStored,
        (_, _, Some("unknown")) => Answered::Unknown,
        _ => panic!("{result}"),
    }
}

impl<'a> Load<'a> {
    fn new(cluster: &'a Cluster, kproxy: &'a Kproxy, partitions: i32, replication: i16) -> Self {
        let settings = [("unclean.leader.election.enable", "false")];
        let topic = |acks: &str| {
            let name = format!("outage{}", acks.replace('-', "_"));
            let topic = cluster.new_topic_with(&name, partitions, replication, &settings);
            cluster.wait_for_in_sync(&topic, replication as usize);
            topic
        };
        let topics = LEVELS.map(topic);
        Load { cluster, kproxy, topics, stop: AtomicBool::new(false), n_confirmed: AtomicUsize::new(0) }
    }

    /// Posts one number after the other, or batches of them, until `stop`.
    fn post(&self, poster: usize, level: usize, lines: u64) -> Answers {
        let (topic, acks) = (&self.topics[level], LEVELS[level]);
        let key = format!("{acks}.{poster}");
        let mut answers = Vec::new();
        let mut client: Option<Client> = None;
        let mut next = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let connection = client.get_or_insert_with(|| {
                let client = self.kproxy.connect();
                client.socket().set_read_timeout(Some(Duration::from_secs(90))).expect("the time-out is not zero");
                client
            });
            let ids: Vec<MessageId> = (next..next + lines).map(|number| (key.clone(), number)).collect();
            next += lines;
            let request = if lines == 1 {
                post_request(&format!("/commit?topic={topic}&acks={acks}&key={key}"), &[], &value_of(&ids[0]))
            } else {
                let line =
                    |id| format!("{{\"key\":\"{key}\",\"value\":\"{}\"}}\n", String::from_utf8_lossy(&value_of(id)));
                let body: String = ids.iter().map(line).collect();
                post_request(&format!("/commit_batch?topic={topic}&acks={acks}"), NDJSON, body.as_bytes())
            };
            let answer = connection.send_raw(&request).and_then(|()| connection.read_response());
            let Ok(answer) = answer else {
                answers.extend(ids.into_iter().map(|id| (id, Answered::Unknown)));
                client = None;
                continue;
            };
            let outcomes = outcomes_of(&answer, ids.len());
            let n_stored = outcomes.iter().filter(|outcome| matches!(outcome, Answered::Stored { .. })).count();
            self.n_confirmed.fetch_add(n_stored, Ordering::Relaxed);
            answers.extend(ids.into_iter().zip(outcomes));
            if answer.header("Connection") == Some("close") {
                client = None;
            }
        }
        answers
    }

    /// Posts while `meanwhile` runs; returns the check of each level.
    fn run(&self, meanwhile: impl FnOnce()) -> [AnswerCheck; 2] {
        let answers: Vec<(usize, Answers)> = std::thread::scope(|scope| {
            let post = |poster: usize| {
                let lines = if poster % 4 < 2 { BATCH_LINES } else { 1 };
                scope.spawn(move || (poster % 2, self.post(poster, poster % 2, lines)))
            };
            let posters: Vec<_> = (0..16).map(post).collect();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            self.stop.store(true, Ordering::Relaxed);
            let answers = posters.into_iter().map(|poster| poster.join().expect("a poster does not panic")).collect();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            answers
        });
        std::array::from_fn(|level| {
            let of_level = answers.iter().filter(|(of, _)| *of == level).flat_map(|(_, answers)| answers.clone());
            let answers: Answers = of_level.collect();
            let check = check_answers(&answers, &self.cluster.messages(&self.topics[level]));
            eprintln!("acks={}: {check}", LEVELS[level]);
            check
        })
    }

    #[track_caller]
    fn wait_for_confirmed(&self, n_more: usize, what: &str) -> Duration {
        let started = Instant::now();
        let wanted = self.n_confirmed.load(Ordering::Relaxed) + n_more;
        wait_until(DEADLINE, what, || self.n_confirmed.load(Ordering::Relaxed) >= wanted);
        started.elapsed()
    }
}

fn outcomes_of(answer: &Response, n_lines: usize) -> Vec<Answered> {
    if answer.header("Content-Type") == Some("application/x-ndjson") {
        let text = answer.text();
        let results = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON"));
        return results.map(|result: Value| outcome_of(&result)).collect();
    }
    vec![outcome_of(&answer.json()); n_lines]
}

#[track_caller]
fn assert_correct(checks: &[AnswerCheck; 2], loses_with_acks_1: bool) {
    let [leader, all] = checks;
    assert!(all.is_correct() && all.n_repeats == 0, "acks=-1: {all:?}");
    assert!(leader.denied.is_empty() && leader.invented.is_empty(), "acks=1: {leader:?}");
    let n_lost = leader.lost.len() + leader.misplaced.len();
    assert!(loses_with_acks_1 || n_lost == 0, "acks=1: {leader:?}");
    assert!(leader.out_of_order.len() <= n_lost, "acks=1: {leader:?}");
}

#[test]
fn batches_are_in_order_while_leaders_move_without_pause() {
    let cluster = Cluster::start(3);
    let config = configs::kproxy(&cluster).set("commit_timeout_ms", 60_000).set("read_timeout_ms", 30_000);
    let mut kproxy = Kproxy::start_ready(config);
    let checks = {
        let load = Load::new(&cluster, &kproxy, 3, 3);
        load.run(|| {
            load.wait_for_confirmed(5000, "messages are stored");
            let (started, mut n_moves) = (Instant::now(), 0);
            while started.elapsed() < outage_time() {
                let next = Instant::now() + Duration::from_millis(300);
                cluster.move_leaders(&load.topics[n_moves % 2]);
                n_moves += 1;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            eprintln!("{n_moves} moves of all leaders in {:.1?}", started.elapsed());
            load.wait_for_confirmed(5000, "messages are stored after the moves");
        })
    };
    assert_correct(&checks, true);
    for (check, acks) in checks.iter().zip(LEVELS) {
        assert_eq!((check.n_not_stored, check.n_unknown), (0, 0), "acks={acks}: the deadline is long");
    }
    kproxy.daemon.stop(DEADLINE);
}

/// At acks=0 messages may be lost while leaders move; those that are stored are in order.
#[test]
fn batches_without_acknowledgement_are_in_order_while_leaders_move() {
    let cluster = Cluster::start(3);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 30_000));
    let topic = cluster.new_topic_with("unconfirmed", 3, 3, &[("unclean.leader.election.enable", "false")]);
    cluster.wait_for_in_sync(&topic, 3);
    let stop = AtomicBool::new(false);
    let posted: Vec<MessageId> = std::thread::scope(|scope| {
        let post = |poster: usize| {
            let (kproxy, topic, stop) = (&kproxy, &topic, &stop);
            scope.spawn(move || {
                let (mut client, mut ids) = (kproxy.connect(), Vec::new());
                let key = format!("0.{poster}");
                while !stop.load(Ordering::Relaxed) {
                    let first = ids.len() as u64;
                    let batch: Vec<MessageId> = (first..first + 200).map(|number| (key.clone(), number)).collect();
                    let line = |id| {
                        format!("{{\"key\":\"{key}\",\"value\":\"{}\"}}\n", String::from_utf8_lossy(&value_of(id)))
                    };
                    let body: String = batch.iter().map(line).collect();
                    let path = format!("/commit_batch?topic={topic}&acks=0");
                    let answer = client.request("POST", &path, NDJSON, body.as_bytes()).expect("kproxy answers");
                    assert!([200, 503].contains(&answer.status), "{}", answer.text());
                    ids.extend(batch);
                }
                ids
            })
        };
        let posters: Vec<_> = (0..6).map(post).collect();
        let end = SetOnDrop(&stop);
        let (started, mut n_moves) = (Instant::now(), 0);
        while started.elapsed() < outage_time() {
            cluster.move_leaders(&topic);
            n_moves += 1;
            std::thread::sleep(Duration::from_millis(300));
        }
        drop(end);
        eprintln!("{n_moves} moves of all leaders");
        posters.into_iter().flat_map(|poster| poster.join().expect("a poster does not panic")).collect()
    });
    let stored = cluster.messages(&topic);
    let id_of = |value: &[u8]| {
        let text = String::from_utf8_lossy(value);
        let (key, number) = text.rsplit_once('/').expect("a value of `value_of`");
        (key.to_owned(), number.parse().expect("a number"))
    };
    let stored: Vec<MessageId> = stored.iter().map(|message| id_of(&message.value)).collect();
    let check = check_pushes(&[], &posted, &stored);
    eprintln!("{} posted, {} stored, {} of them again", posted.len(), stored.len(), check.n_repeats);
    assert!(check.out_of_order.is_empty() && check.unknown.is_empty(), "{check:?}");
    assert!(stored.len() > posted.len() / 20, "{} of {} stored", stored.len(), posted.len());
}

#[test]
fn batches_are_in_order_while_the_only_broker_is_killed_twice() {
    let cluster = Cluster::start(1);
    let config = configs::kproxy(&cluster).set("commit_timeout_ms", 60_000).set("read_timeout_ms", 30_000);
    let mut kproxy = Kproxy::start_ready(config);
    let checks = {
        let load = Load::new(&cluster, &kproxy, 4, 1);
        load.run(|| {
            for _ in 0..2 {
                load.wait_for_confirmed(5000, "messages are stored");
                cluster.kafka_servers[0].kill9();
                cluster.kafka_servers[0].restart();
                let took = load.wait_for_confirmed(1, "messages are stored after the restart");
                eprintln!("first confirmation {took:.1?} after the broker answered again");
            }
            load.wait_for_confirmed(5000, "messages are stored after the outages");
        })
    };
    assert_correct(&checks, false);
    kproxy.daemon.stop(DEADLINE);
}

/// Posts wait for the broker when the SIGTERM comes: each is answered within the grace.
#[test]
fn a_hung_broker_does_not_hold_up_the_end() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("hung", 1);
    let config = configs::kproxy(&cluster).set("commit_timeout_ms", 60_000).set("shutdown_grace_ms", 3000);
    let mut kproxy = Kproxy::start_ready(config);
    let path = |acks: &str| format!("/commit?topic={topic}&acks={acks}");
    for acks in LEVELS {
        assert_eq!(kproxy.post(&path(acks), b"before").status, 200);
    }
    cluster.kafka_servers[0].freeze();
    let mut clients = LEVELS.map(|acks| kproxy.start_post(&path(acks), b"during"));
    kproxy.wait_for_commits_in_flight(clients.len());
    // Meanwhile the metadata requests grow to their longest time.
    std::thread::sleep(Duration::from_secs(5));
    kproxy.daemon.terminate();
    for client in &mut clients {
        let answer = client.read_response().expect("kproxy answers");
        assert_eq!(outcome_of(&answer.json()), Answered::Unknown, "{}", answer.text());
    }
    assert_eq!(kproxy.daemon.wait(DEADLINE).code(), Some(0), "the stop ends within the grace");
}

/// One of three brokers is stopped with SIGSTOP, and continued.
#[test]
fn a_hung_broker_delays_only_its_own_partitions_and_only_until_they_have_other_leaders() {
    let cluster = Cluster::start(3);
    let topic = cluster.new_topic_with("paused", 6, 3, &[("min.insync.replicas", "2")]);
    cluster.wait_for_in_sync(&topic, 3);
    let config = configs::kproxy(&cluster).set("commit_timeout_ms", 60_000).set("read_timeout_ms", 30_000);
    let mut kproxy = Kproxy::start_ready(config);
    let leaders = cluster.leaders(&topic).expect("a broker answers");
    let (stop, frozen, n_answers) = (AtomicBool::new(false), 2, AtomicUsize::new(0));
    let posted: Vec<(i32, Answers, Duration)> = std::thread::scope(|scope| {
        let post = |(partition, acks): (i32, &'static str)| {
            let (kproxy, topic, stop, n_answers) = (&kproxy, &topic, &stop, &n_answers);
            let post = move || {
                let (mut answers, mut longest, mut client) = (Vec::new(), Duration::ZERO, kproxy.connect());
                client.socket().set_read_timeout(Some(DEADLINE)).expect("the time-out is not zero");
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = (format!("{acks}.{partition}"), number);
                    let path = format!("/commit?topic={topic}&acks={acks}&partition={partition}&key={}", id.0);
                    let started = Instant::now();
                    let answer = client.post(&path, &value_of(&id)).expect("kproxy answers");
                    longest = longest.max(started.elapsed());
                    answers.push((id, outcome_of(&answer.json())));
                    n_answers.fetch_add(1, Ordering::Relaxed);
                }
                (partition, answers, longest)
            };
            scope.spawn(post)
        };
        let posters: Vec<_> = (0..6).flat_map(|partition| LEVELS.map(|acks| (partition, acks))).map(post).collect();
        let end = SetOnDrop(&stop);
        let wait_for_more = || {
            let wanted = n_answers.load(Ordering::Relaxed) + 2_000;
            wait_until(DEADLINE, "messages are stored", || n_answers.load(Ordering::Relaxed) >= wanted);
        };
        wait_for_more();
        cluster.kafka_servers[frozen].freeze();
        std::thread::sleep(outage_time());
        cluster.kafka_servers[frozen].unfreeze();
        cluster.wait_for_in_sync(&topic, 3);
        wait_for_more();
        drop(end);
        posters.into_iter().map(|poster| poster.join().expect("a poster does not panic")).collect()
    });
    for (partition, answers, longest) in &posted {
        let acks = answers.first().map_or("", |(id, _)| id.0.split('.').next().unwrap_or_default());
        let leader = leaders[partition];
        let n_stored = answers.iter().filter(|(_, outcome)| matches!(outcome, Answered::Stored { .. })).count();
        eprintln!(
            "partition {partition} of broker {leader}, acks={acks}: {n_stored} of {} stored, at most {longest:.1?} each",
            answers.len()
        );
        assert_eq!(n_stored, answers.len(), "the deadline is long");
        assert!(*longest < Duration::from_secs(30), "partition {partition}, acks={acks}: {longest:.1?}");
    }
    // A replica that hangs delays acks=-1 until it is out of sync; acks=1 is not concerned. Compared with the
    // partitions that wait for another leader, because everything may be slow on a busy machine.
    let longest_of = |is_frozen: bool| {
        let concerned = posted.iter().filter(|(partition, answers, _)| {
            (leaders[partition] == frozen as i32) == is_frozen && answers.iter().all(|(id, _)| id.0.starts_with("1."))
        });
        concerned.map(|(_, _, longest)| *longest).max().expect("every broker leads a partition")
    };
    assert!(longest_of(false) < longest_of(true), "{:?}, {:?}", longest_of(false), longest_of(true));
    let answers: Answers = posted.into_iter().flat_map(|(_, answers, _)| answers).collect();
    let check = check_answers(&answers, &cluster.messages(&topic));
    eprintln!("{} stored, {} lost, {} at another position", check.n_stored, check.lost.len(), check.misplaced.len());
    assert!(check.is_correct_but_for_losses() || check.lost.len() + check.misplaced.len() > 0, "{check:?}");
    let is_all = |id: &MessageId| id.0.starts_with('-');
    assert!(!check.lost.iter().chain(&check.misplaced).chain(&check.out_of_order).any(is_all), "{check:?}");
    kproxy.daemon.stop(DEADLINE);
}
