//! A produce quota of the brokers causes back-pressure: messages that cannot be sent in time are refused before they
//! are sent, none is stored twice, and all are accepted again as soon as the quota is lifted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::kproxy::{THROTTLED, assert_refused, position};
use crate::harness::oracle::{Answered, MessageId, check_answers, value_of};
use crate::harness::{Cluster, Kproxy, configs};

const QUOTA_BYTES: f64 = 20.0 * 1024.0;
/// One message a second on each of these connections: 100 KB/s.
const CONNECTIONS: usize = 100;
const PADDING_BYTES: usize = 1000;
const THROTTLED_TIME: Duration = Duration::from_secs(8);
/// After the quota was lifted, messages may be refused for this time.
const RECOVERY_TIME: Duration = Duration::from_secs(3);
const LIFTED_TIME: Duration = Duration::from_secs(5);
/// The brokers measure the rate over so many seconds, the messages of which may come at once.
const WINDOW: &str = "quota.window.num=3";

/// An answer: when the message was posted, the message, and what the answer says.
type Answer = (Instant, MessageId, Answered);

fn post(kproxy: &Kproxy, topic: &str, acks: &str, poster: usize, stop: &AtomicBool) -> Vec<Answer> {
    let mut client = kproxy.connect();
    let padding = "x".repeat(PADDING_BYTES);
    let (started, mut answers) = (Instant::now() + Duration::from_millis(10) * poster as u32, Vec::new());
    for number in 0.. {
        let due = started + Duration::from_secs(number);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (id, posted) = ((format!("{acks}.{poster}"), number), Instant::now());
        let path = format!("/commit?topic={topic}&acks={acks}&key={}", id.0);
        let answer =
            client.request("POST", &path, &[("X-Kafka-Header-Padding", &padding)], &value_of(&id)).expect("an answer");
        let outcome = if answer.status == 200 {
            let (partition, offset) = position(&answer, &path);
            Answered::Stored { partition, offset }
        } else {
            assert_refused(&answer, THROTTLED, &path);
            let pause: u64 = answer.header("Retry-After").and_then(|text| text.parse().ok()).expect("Retry-After");
            assert!((1..=3600).contains(&pause) && answer.text().contains("quota"), "{pause}: {}", answer.text());
            Answered::NotStored
        };
        answers.push((posted, id, outcome));
    }
    answers
}

#[test]
fn a_produce_quota_refuses_what_it_leaves_no_time_for_and_nothing_is_stored_twice() {
    let cluster = Cluster::start_with(1, &[WINDOW]);
    let config = configs::kproxy(&cluster).set("commit_timeout_ms", 4_000).set("read_timeout_ms", 20_000);
    let kproxy = Kproxy::start_ready(config);
    for acks in ["1", "-1"] {
        let topic = cluster.new_topic("quota", 4);
        cluster.set_produce_quota("kproxy", Some(QUOTA_BYTES));
        let stop = AtomicBool::new(false);
        let started = Instant::now();
        let (answers, lifted): (Vec<Answer>, Instant) = std::thread::scope(|scope| {
            let (kproxy, topic, stop) = (&kproxy, &topic, &stop);
            let posters: Vec<_> =
                (0..CONNECTIONS).map(|poster| scope.spawn(move || post(kproxy, topic, acks, poster, stop))).collect();
            std::thread::sleep(THROTTLED_TIME);
            cluster.set_produce_quota("kproxy", None);
            let lifted = Instant::now();
            std::thread::sleep(LIFTED_TIME);
            stop.store(true, Ordering::Relaxed);
            (posters.into_iter().flat_map(|poster| poster.join().expect("every answer is right")).collect(), lifted)
        });
        print_seconds(acks, started, &answers);
        let is_stored = |answer: &&Answer| matches!(answer.2, Answered::Stored { .. });
        let (before, after): (Vec<_>, Vec<_>) = answers.iter().partition(|(posted, ..)| *posted < lifted);
        let n_before = before.iter().filter(|answer| is_stored(answer)).count();
        let rate = n_before as f64 * (PADDING_BYTES + 100) as f64 / THROTTLED_TIME.as_secs_f64();
        eprintln!("acks={acks}: {n_before} of {} stored with the quota, about {:.0} bytes/s", before.len(), rate);
        assert!(n_before < before.len() * 2 / 3, "the quota has no effect: {n_before} of {}", before.len());
        assert!(rate > QUOTA_BYTES / 3.0, "the quota is not used: {rate:.0} bytes/s");
        let late: Vec<_> = after.iter().filter(|answer| answer.0 > lifted + RECOVERY_TIME).collect();
        let refused = late.iter().filter(|answer| !is_stored(answer)).count();
        assert!(refused == 0 && late.len() > CONNECTIONS, "acks={acks}: {refused} of {} refused", late.len());
        let answers: Vec<_> = answers.into_iter().map(|(_, id, outcome)| (id, outcome)).collect();
        let check = check_answers(&answers, &cluster.messages(&topic));
        assert!(check.is_correct() && check.n_repeats == 0 && check.n_unknown == 0, "acks={acks}: {check:?}");
    }
}

/// Prints how many messages of each second were stored, and how many refused.
fn print_seconds(acks: &str, started: Instant, answers: &[Answer]) {
    let mut seconds: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for (posted, _, outcome) in answers {
        let (stored, refused) = seconds.entry((*posted - started).as_secs()).or_default();
        *(if matches!(outcome, Answered::Stored { .. }) { stored } else { refused }) += 1;
    }
    eprintln!("acks={acks}, stored and refused by second: {:?}", seconds.values().collect::<Vec<_>>());
}
