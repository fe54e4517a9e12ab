//! The contract of kproxy's answers, with real brokers: `status`, `error`, `stored` and `retriable` of each answer are
//! compared with the messages in the topic.

use std::time::{Duration, Instant};

use crate::harness::cluster::StoredMessage;
use crate::harness::http::{Client, Response, post_request};
use crate::harness::kafka_admin::AUTHORIZER;
use crate::harness::kproxy::{
    NO_BROKER, NO_CONFIRMATION, OVERLOADED, TOO_LARGE, UNKNOWN_TOPIC, assert_refused, is_refused, position,
};
use crate::harness::{Cluster, Kproxy, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
/// Time by which an answer may be late on a busy machine.
const MARGIN: Duration = Duration::from_secs(3);

/// The acks levels whose answers have an offset.
const LEVELS: [&str; 2] = ["1", "-1"];

fn commit(topic: &str, acks: &str, key: &str) -> String {
    format!("/commit?topic={topic}&acks={acks}&key={key}")
}

/// Returns the number of messages with this value.
fn count(stored: &[StoredMessage], value: &[u8]) -> usize {
    stored.iter().filter(|message| message.value == value).count()
}

/// Returns the value of the message at this partition and offset; panics if there is none.
fn value_at(stored: &[StoredMessage], at: (i32, i64)) -> &[u8] {
    &stored.iter().find(|message| (message.partition, message.offset) == at).expect("the message is stored").value
}

#[test]
fn a_broker_killed_before_during_and_after_the_append() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("killed", 1);
    let broker = &cluster.kafka_servers[0];
    let timeout = Duration::from_secs(4);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("commit_timeout_ms", 4000));
    let patient = Kproxy::start_ready(configs::kproxy(&cluster).set("commit_timeout_ms", 60_000));
    for kproxy in [&kproxy, &patient] {
        for acks in LEVELS {
            position(&kproxy.post(&commit(&topic, acks, "k"), b"warm"), acks);
        }
    }
    let before_kill = LEVELS.map(|acks| kproxy.post(&commit(&topic, acks, "k"), b"confirmed"));

    // The broker is frozen first, so that the messages have been sent and not confirmed when it is killed. Each kproxy
    // retries until its deadline.
    broker.freeze();
    let started = Instant::now();
    let start = |kproxy: &Kproxy, value: &str| {
        LEVELS.map(|acks| kproxy.start_post(&commit(&topic, acks, "k"), format!("{value}{acks}").as_bytes()))
    };
    let mut timing_out = start(&kproxy, "during");
    let mut outlasting = start(&patient, "late");
    kproxy.wait_for_commits_in_flight(2);
    patient.wait_for_commits_in_flight(2);
    broker.kill9();
    for (client, acks) in timing_out.iter_mut().zip(LEVELS) {
        let answer = client.read_response().expect("kproxy answers");
        assert_refused(&answer, NO_CONFIRMATION, &format!("killed during the append, acks={acks}"));
        let took = started.elapsed();
        assert!((timeout..timeout + MARGIN).contains(&took), "acks={acks}: {took:?}");
        eprintln!("killed during the append, acks={acks}: 504 after {took:.1?} of {timeout:?}");
    }
    for acks in LEVELS {
        let started = Instant::now();
        let answer = kproxy.post(&commit(&topic, acks, "k"), b"refused");
        assert_refused(&answer, NO_BROKER, &format!("killed before the request, acks={acks}"));
        assert!(started.elapsed() < timeout + MARGIN, "acks={acks}: {:?}", started.elapsed());
    }
    broker.restart();
    let late = read_late_answers(&mut outlasting);
    // The restarted broker may answer before it has loaded its topics.
    cluster.wait_for_in_sync(&topic, 1);
    check_topic_after_kill(&cluster.messages(&topic), &before_kill, late);
}

/// Reads the answers to the commits that kproxy retried during the outage; returns whether each was confirmed.
fn read_late_answers(clients: &mut [Client; 2]) -> Vec<bool> {
    let read = |(client, acks): (&mut Client, &str)| {
        client.socket().set_read_timeout(Some(Duration::from_secs(90))).expect("the time-out is not zero");
        let answer = client.read_response().expect("kproxy answers");
        if answer.status != 200 {
            // A restarted broker may first report its topics as unknown. That ends the retries, with 504, since the
            // message may have been stored before.
            assert_refused(&answer, NO_CONFIRMATION, &format!("retried until the broker came back, acks={acks}"));
        }
        eprintln!("retried until the broker came back, acks={acks}: {}", answer.status);
        answer.status == 200
    };
    clients.iter_mut().zip(LEVELS).map(read).collect()
}

fn check_topic_after_kill(stored: &[StoredMessage], before_kill: &[Response], late: Vec<bool>) {
    for answer in before_kill {
        let at = position(answer, "before the kill");
        assert_eq!(value_at(stored, at), b"confirmed", "a confirmed message outlives a kill -9 of the broker");
    }
    assert_eq!(count(stored, b"refused"), 0, "answered with stored: no");
    for (acks, is_confirmed) in LEVELS.into_iter().zip(late) {
        let n_late = count(stored, format!("late{acks}").as_bytes());
        assert!(n_late == 1 || (n_late == 0 && !is_confirmed), "acks={acks}: {n_late}, {is_confirmed}");
        assert!(count(stored, format!("during{acks}").as_bytes()) <= 1, "acks={acks}: answered with stored: unknown");
    }
}

#[test]
fn the_deadline_counts_from_the_request_and_not_from_the_append() {
    let cluster = Cluster::start(1);
    let (known, fresh) = (cluster.new_topic("known", 1), cluster.new_topic("fresh", 1));
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("commit_timeout_ms", 1500));
    position(&kproxy.post(&commit(&known, "1", ""), b"warm"), "warm");
    cluster.kafka_servers[0].freeze();
    let started = Instant::now();
    let mut clients = [&known, &fresh].map(|topic| kproxy.start_post(&commit(topic, "1", ""), b"x"));
    for (client, expected) in clients.iter_mut().zip([NO_CONFIRMATION, NO_BROKER]) {
        let answer = client.read_response().expect("kproxy answers");
        let took = started.elapsed();
        // The message to `known` was sent. The one to `fresh` was not, since the metadata of that topic was missing.
        assert_refused(&answer, expected, "the broker is frozen");
        assert!(took < Duration::from_millis(1_500) + MARGIN, "{took:?}");
        eprintln!("commit_timeout_ms 1500: {} after {took:.1?}", answer.status);
    }
    cluster.kafka_servers[0].unfreeze();
    wait_until(DEADLINE, "commits succeed again", || kproxy.post(&commit(&fresh, "1", ""), b"y").status == 200);
    assert_eq!(count(&cluster.messages(&fresh), b"x"), 0, "answered with stored: no");
}

/// The `max.message.bytes` of a topic, and the sizes of the messages that are sent to the topic in one batch.
struct SizeLimited {
    limit: &'static str,
    /// Sizes below the limit; two such messages together exceed it.
    fitting: [usize; 2],
    too_large: usize,
}

#[test]
fn only_a_message_that_exceeds_the_limit_itself_is_answered_with_413() {
    // kproxy may not read the limits: it would refuse the message beforehand, and gather smaller batches.
    let cluster = Cluster::start_with(1, &AUTHORIZER);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("read_timeout_ms", 20_000));
    for case in [
        SizeLimited { limit: "20000", fitting: [5_000, 19_000], too_large: 25_000 },
        SizeLimited { limit: "300000", fitting: [60_000, 250_000], too_large: 400_000 },
    ] {
        for acks in LEVELS {
            let topic = cluster.new_topic_with("limited", 1, 1, &[("max.message.bytes", case.limit)]);
            cluster.hide_configs(&topic);
            position(&kproxy.post(&commit(&topic, acks, "k"), b"warm"), case.limit);
            for round in ["first", "second"] {
                post_one_too_large_among_others(&cluster, &kproxy, &topic, acks, &case, round);
            }
        }
    }
    // Without this line no batch exceeded the limit, so nothing was tested.
    kproxy.daemon.wait_for_log("a batch exceeded max.message.bytes of topic", DEADLINE);
    let log = kproxy.daemon.log();
    assert!(
        !log.contains("sending its messages one by one"),
        "messages were sent one by one although the limit was known:\n{log}"
    );
}

fn post_one_too_large_among_others(
    cluster: &Cluster,
    kproxy: &Kproxy,
    topic: &str,
    acks: &str,
    case: &SizeLimited,
    round: &str,
) {
    const AT_TOO_LARGE: usize = 6;
    let when = format!("limit {}, acks={acks}, {round}", case.limit);
    let value = |number: usize, size: usize| {
        let mut value = format!("{round} {number} ").into_bytes();
        value.resize(size, b'.');
        value
    };
    let mut values: Vec<_> = (0..12).map(|number| value(number, case.fitting[number % 2])).collect();
    values.insert(AT_TOO_LARGE, value(99, case.too_large));
    // The broker is frozen, so that the messages are collected in one batch.
    cluster.kafka_servers[0].freeze();
    let start =
        |(number, value): (usize, &Vec<u8>)| kproxy.start_post(&commit(topic, acks, &format!("k{number}")), value);
    let mut clients: Vec<Client> = values.iter().enumerate().map(start).collect();
    kproxy.wait_for_commits_in_flight(clients.len());
    cluster.kafka_servers[0].unfreeze();
    let answers: Vec<Response> = clients.iter_mut().map(|client| client.read_response().unwrap()).collect();
    let stored = cluster.messages(topic);
    for (number, (answer, value)) in answers.iter().zip(&values).enumerate() {
        if number == AT_TOO_LARGE {
            assert_refused(answer, TOO_LARGE, &when);
            assert_eq!(count(&stored, value), 0, "{when}: the message that is too large is not stored");
        } else {
            assert_eq!(count(&stored, value), 1, "{when}: {number} is stored once");
            assert_eq!(value_at(&stored, position(answer, &when)), value, "{when}: {number}");
        }
    }
}

#[test]
fn a_topic_that_is_deleted_and_created_again() {
    let cluster = cluster();
    let kproxy = Kproxy::start_usual(cluster);
    let topic = cluster.new_topic("deleted", 2);
    for acks in LEVELS {
        position(&kproxy.post(&commit(&topic, acks, "k"), b"old"), acks);
    }
    cluster.delete_topic(&topic);
    let deleted = Instant::now();
    for acks in LEVELS {
        wait_until(DEADLINE, "404 for the deleted topic", || {
            let answer = kproxy.post(&commit(&topic, acks, "k"), b"lost");
            let is_unknown = is_refused(&answer, UNKNOWN_TOPIC);
            // The answer may be 503 until the broker has deleted every partition.
            assert!(is_unknown || is_refused(&answer, NO_BROKER), "{} {}", answer.status, answer.text());
            is_unknown
        });
        let took = deleted.elapsed();
        eprintln!("acks={acks}: 404 for a deleted topic after {took:.1?}");
        assert!(took < Duration::from_secs(20), "acks={acks}: {took:?}");
    }
    cluster.create_topic(&topic, 2);
    let created = Instant::now();
    for (acks, n_expected) in LEVELS.into_iter().zip([1, 2]) {
        let at = wait_until(DEADLINE, "the topic is found again", || {
            let answer = kproxy.post(&commit(&topic, acks, "k"), format!("new{acks}").as_bytes());
            (answer.status == 200).then(|| position(&answer, acks))
        });
        let stored = cluster.messages(&topic);
        assert_eq!(value_at(&stored, at), format!("new{acks}").as_bytes());
        assert_eq!(stored.len(), n_expected, "no old message and no duplicate: {stored:?}");
    }
    eprintln!("200 for the new topic after {:.1?}", created.elapsed());
}

#[test]
fn leaders_that_move_and_replicas_that_are_missing() {
    let cluster = Cluster::start(2);
    let topic = cluster.new_topic_with("replicas", 1, 2, &[("min.insync.replicas", "2")]);
    cluster.wait_for_in_sync(&topic, 2);
    let kproxy = Kproxy::start_ready(configs::kproxy(&cluster).set("commit_timeout_ms", 5000));
    let mut n_stored = 0;
    let mut post = |acks: &str, when: &str| {
        let value = format!("{when} {acks}");
        let at = position(&kproxy.post(&commit(&topic, acks, "k"), value.as_bytes()), &value);
        assert_eq!(at, (0, n_stored), "{value}: no other message was stored");
        n_stored += 1;
    };
    for move_number in 0..2 {
        LEVELS.iter().for_each(|acks| post(acks, &format!("before move {move_number}")));
        cluster.move_leaders(&topic);
        LEVELS.iter().for_each(|acks| post(acks, &format!("after move {move_number}")));
    }
    let leader = cluster.leaders(&topic).expect("a broker answers")[&0];
    let follower = &cluster.kafka_servers[1 - leader as usize];
    follower.kill9();
    cluster.wait_for_in_sync(&topic, 1);
    let started = Instant::now();
    assert_refused(&kproxy.post(&commit(&topic, "-1", "k"), b"too few"), NO_BROKER, "too few replicas in sync");
    eprintln!("503 for too few replicas in sync after {:.1?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(5) + MARGIN, "{:?}", started.elapsed());
    post("1", "one replica is enough");
    follower.restart();
    cluster.wait_for_in_sync(&topic, 2);
    LEVELS.iter().for_each(|acks| post(acks, "both replicas are in sync again"));
    assert_eq!(count(&cluster.messages(&topic), b"too few"), 0, "answered with stored: no");
}

#[test]
fn thousands_of_unknown_topics_do_not_delay_existing_ones() {
    const N_CONNECTIONS: usize = 500;
    const N_ROUNDS: usize = 10;
    let cluster = cluster();
    let kproxy = Kproxy::start_ready(configs::kproxy(cluster).set("read_timeout_ms", 20_000));
    let (known, new) = (cluster.new_topic("known", 1), cluster.new_topic("new", 1));
    position(&kproxy.post(&commit(&known, "1", ""), b"warm"), "warm");
    let mut clients: Vec<Client> = (0..N_CONNECTIONS).map(|_| kproxy.connect()).collect();
    let (mut n_unknown, mut n_overloaded, mut slowest) = (0, 0, Duration::ZERO);
    let mut new_topic_tries = 0;
    let started = Instant::now();
    for round in 0..N_ROUNDS {
        for client in &mut clients {
            client.send_raw(&post_request(&commit(&unique("made_up"), "1", ""), &[], b"x")).unwrap();
        }
        for _ in 0..10 {
            let posted = Instant::now();
            position(&kproxy.post(&commit(&known, "1", ""), b"x"), "a known topic meanwhile");
            slowest = slowest.max(posted.elapsed());
        }
        if round == N_ROUNDS / 2 {
            wait_until(Duration::from_secs(10), "a topic that exists and was not looked up yet is found", || {
                new_topic_tries += 1;
                kproxy.post(&commit(&new, "1", ""), b"x").status == 200
            });
        }
        for client in &mut clients {
            let answer = client.read_response().expect("kproxy answers");
            let (expected, counter) =
                if answer.status == 404 { (UNKNOWN_TOPIC, &mut n_unknown) } else { (OVERLOADED, &mut n_overloaded) };
            assert_refused(&answer, expected, "an unknown topic");
            *counter += 1;
        }
    }
    eprintln!(
        "{n_unknown} topics answered with 404, {n_overloaded} with 503 in {:.1?}; a known topic took at most \
         {slowest:.1?}, a new one {new_topic_tries} tries",
        started.elapsed()
    );
    assert_eq!(n_unknown + n_overloaded, N_CONNECTIONS * N_ROUNDS);
    assert!(n_unknown >= N_CONNECTIONS * N_ROUNDS / 10, "{n_unknown} and {n_overloaded}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn requests_for_one_unknown_topic_share_a_few_lookups() {
    let cluster = cluster();
    let name = unique("made_up");
    let path = commit(&name, "1", "");
    let kproxy = Kproxy::start_usual(cluster);
    let started = Instant::now();
    let mut client = kproxy.connect();
    let mut n_posts = 0;
    while n_posts < 1_000 || started.elapsed() < Duration::from_secs(2) {
        assert_refused(&client.post(&path, b"x").expect("kproxy answers"), UNKNOWN_TOPIC, "an unknown topic");
        n_posts += 1;
    }
    wait_until(DEADLINE, "lookups are counted", || kproxy.metric("kproxy_topic_lookups_total") > 0);
    let n_lookups = kproxy.metric("kproxy_topic_lookups_total");
    // At most 8 lookups in each period of four seconds, independent of the number of requests.
    let n_periods = started.elapsed().as_secs() / 4 + 1;
    eprintln!("{n_posts} posts to one unknown topic in {:.1?}: {n_lookups} lookups", started.elapsed());
    assert!(n_lookups <= 8 * n_periods, "{n_lookups} lookups in {:?}", started.elapsed());
    cluster.create_topic(&name, 1);
    let created = Instant::now();
    wait_until(DEADLINE, "the new topic is found", || client.post(&path, b"x").unwrap().status == 200);
    eprintln!("found {:.1?} after it was created", created.elapsed());
    assert_eq!(cluster.messages(&name).len(), 1);
}
