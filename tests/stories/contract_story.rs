//! The answer's contract with real brokers: in each row, what was told (status, `error`, `stored`, `retriable`) and what is in the
//! topic afterwards.

use std::time::{Duration, Instant};

use crate::harness::cluster::StoredMessage;
use crate::harness::http::{Client, Response};
use crate::harness::{Cluster, cluster, http, unique, wait_until};
use crate::kproxy_story::Kproxy;

const START_DEADLINE: Duration = Duration::from_secs(30);
/// What an answer may come later than its time, on a machine that is slow and busy. librdkafka looks at its times once a second.
const MARGIN: Duration = Duration::from_secs(3);

/// Every answer of kproxy as far as it is a contract.
type Row = (u16, String, String, bool);

const NO_BROKER: (u16, &str, &str, bool) = (503, "no_broker", "no", true);
const NO_CONFIRMATION: (u16, &str, &str, bool) = (504, "no_confirmation", "unknown", true);
const TOO_LARGE: (u16, &str, &str, bool) = (413, "too_large", "no", false);
const UNKNOWN_TOPIC: (u16, &str, &str, bool) = (404, "unknown_topic", "no", false);

fn row(answer: &Response) -> Row {
    let body = answer.json();
    let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    (answer.status, word("error"), word("stored"), body["retriable"].as_bool().unwrap_or_default())
}

#[track_caller]
fn expect(answer: &Response, (status, error, stored, retriable): (u16, &str, &str, bool), when: &str) {
    assert_eq!(row(answer), (status, error.to_owned(), stored.to_owned(), retriable), "{when}: {}", answer.text());
}

/// A 200; returns the partition and offset.
#[track_caller]
fn place(answer: &Response, when: &str) -> (i32, i64) {
    assert_eq!(answer.status, 200, "{when}: {}", answer.text());
    let body = answer.json();
    let number = |name: &str| body[name].as_i64().unwrap_or_else(|| panic!("{when}: {body}"));
    (number("partition") as i32, number("offset"))
}

fn commit(topic: &str, acks: &str, key: &str) -> String {
    format!("/commit?topic={topic}&acks={acks}&key={key}")
}

/// How often the value is there.
fn count(stored: &[StoredMessage], value: &[u8]) -> usize {
    stored.iter().filter(|message| message.value == value).count()
}

/// Sends a request whose answer is read later.
fn start(kproxy: &Kproxy, path: &str, body: &[u8]) -> Client {
    let mut client = Client::connect(&kproxy.address).expect("kproxy listens");
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send_raw(&[head.as_bytes(), body].concat()).expect("kproxy reads");
    client
}

fn wait_for_in_flight(kproxy: &Kproxy, n_commits: usize) {
    let line = format!("kproxy_commits_in_flight {n_commits}");
    wait_until(START_DEADLINE, &line, || kproxy.has_metric(&line));
}

fn metric(kproxy: &Kproxy, name: &str) -> u64 {
    let text = http::get(&kproxy.url("/metrics")).expect("kproxy answers").text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn a_broker_killed_before_during_and_after_the_append() {
    let cluster = Cluster::start(1);
    let topic = cluster.new_topic("killed", 1);
    let broker = &cluster.kafka_servers[0];
    let timeout = Duration::from_secs(4);
    let kproxy = Kproxy::start_ready(&cluster, "commit_timeout_ms: 4000");
    let patient = Kproxy::start_ready(&cluster, "commit_timeout_ms: 60000");
    for kproxy in [&kproxy, &patient] {
        for acks in ["1", "-1"] {
            place(&kproxy.post(&commit(&topic, acks, "k"), b"warm"), acks);
        }
    }
    let levels = ["1", "-1"];
    let after: Vec<_> = levels.map(|acks| kproxy.post(&commit(&topic, acks, "k"), b"after")).to_vec();

    // During: it was sent, and before an answer the broker dies, while retries go on until the end of the time.
    broker.stop_process();
    let posted = Instant::now();
    let mut during = levels.map(|acks| start(&kproxy, &commit(&topic, acks, "k"), format!("during{acks}").as_bytes()));
    let mut outlasts = levels.map(|acks| start(&patient, &commit(&topic, acks, "k"), format!("late{acks}").as_bytes()));
    wait_for_in_flight(&kproxy, 2);
    wait_for_in_flight(&patient, 2);
    broker.kill9();
    for (client, acks) in during.iter_mut().zip(levels) {
        let answer = client.read_response().expect("kproxy answers");
        expect(&answer, NO_CONFIRMATION, &format!("during, acks={acks}"));
        let took = posted.elapsed();
        assert!((timeout..timeout + MARGIN).contains(&took), "acks={acks}: {took:?}");
        eprintln!("killed during the append, acks={acks}: 504 after {took:.1?} of {timeout:?}");
    }
    // Before: it is dead when the request arrives.
    for acks in levels {
        let posted = Instant::now();
        expect(&kproxy.post(&commit(&topic, acks, "k"), b"before"), NO_BROKER, &format!("before, acks={acks}"));
        assert!(posted.elapsed() < timeout + MARGIN, "acks={acks}: {:?}", posted.elapsed());
    }
    broker.restart();
    let mut late = Vec::new();
    for (client, acks) in outlasts.iter_mut().zip(levels) {
        client.socket().set_read_timeout(Some(Duration::from_secs(90))).expect("a socket can");
        let answer = client.read_response().expect("kproxy answers");
        let is_stored = answer.status == 200;
        if !is_stored {
            // A broker that comes back does not know its topics at first, which ends the retries of what it may have.
            expect(&answer, NO_CONFIRMATION, &format!("retried until it came back, acks={acks}"));
        }
        eprintln!("retried until the broker came back, acks={acks}: {}", answer.status);
        late.push(is_stored);
    }
    // It may answer before it knows its topics again.
    cluster.wait_for_in_sync(&topic, 1);
    let stored = cluster.messages(&topic);
    for answer in &after {
        let at = place(answer, "after");
        let found = stored.iter().find(|message| (message.partition, message.offset) == at).expect("it is there");
        assert_eq!(found.value, b"after", "what was confirmed outlives a kill -9 of the broker");
    }
    assert_eq!(count(&stored, b"before"), 0, "told not to be stored");
    for (acks, is_stored) in levels.into_iter().zip(late) {
        let n_late = count(&stored, format!("late{acks}").as_bytes());
        assert!(n_late == 1 || (n_late == 0 && !is_stored), "acks={acks}: {n_late}, {is_stored}");
        assert!(count(&stored, format!("during{acks}").as_bytes()) <= 1, "nobody could tell");
    }
}

#[test]
fn the_time_starts_with_the_request_and_not_with_the_append() {
    let cluster = Cluster::start(1);
    let (known, fresh) = (cluster.new_topic("known", 1), cluster.new_topic("fresh", 1));
    let kproxy = Kproxy::start_ready(&cluster, "commit_timeout_ms: 1500");
    place(&kproxy.post(&commit(&known, "1", ""), b"warm"), "warm");
    cluster.kafka_servers[0].stop_process();
    let posted = Instant::now();
    let mut clients = [&known, &fresh].map(|topic| start(&kproxy, &commit(topic, "1", ""), b"x"));
    for (client, expected) in clients.iter_mut().zip([NO_CONFIRMATION, NO_BROKER]) {
        let answer = client.read_response().expect("kproxy answers");
        let took = posted.elapsed();
        // A topic that was never looked up cannot be: nothing was sent. The other was sent.
        expect(&answer, expected, "the broker stands still");
        assert!(took < Duration::from_millis(1_500) + MARGIN, "{took:?}");
        eprintln!("commit_timeout_ms 1500: {} after {took:.1?}", answer.status);
    }
    cluster.kafka_servers[0].continue_process();
    wait_until(START_DEADLINE, "it goes on by itself", || kproxy.post(&commit(&fresh, "1", ""), b"y").status == 200);
    assert_eq!(count(&cluster.messages(&fresh), b"x"), 0, "told not to be stored");
}

#[test]
fn only_what_is_too_large_itself_is_told_so() {
    let cluster = Cluster::start(1);
    let kproxy = Kproxy::start_ready(&cluster, "read_timeout_ms: 20000");
    // The topic's limit, sizes that fit (more than it in all), a size that does not.
    for (limit, fits, too_large) in [("20000", [5_000, 19_000], 25_000), ("300000", [60_000, 250_000], 400_000)] {
        for acks in ["1", "-1"] {
            let topic = cluster.new_topic_with("limited", 1, 1, &[("max.message.bytes", limit)]);
            place(&kproxy.post(&commit(&topic, acks, "k"), b"warm"), limit);
            let sizes: Vec<usize> = (0..12).map(|number| fits[number % 2]).collect();
            for round in ["first", "again"] {
                let body = |number: usize, size: usize| {
                    let mut body = format!("{round} {number} ").into_bytes();
                    body.resize(size, b'.');
                    body
                };
                // All that gathers while the broker stands still goes in one batch.
                cluster.kafka_servers[0].stop_process();
                let path = |number: usize| commit(&topic, acks, &format!("k{number}"));
                let mut clients: Vec<Client> = Vec::new();
                for (number, size) in sizes.iter().enumerate() {
                    clients.push(start(&kproxy, &path(number), &body(number, *size)));
                    if number == 5 {
                        clients.push(start(&kproxy, &path(99), &body(99, too_large)));
                    }
                }
                wait_for_in_flight(&kproxy, clients.len());
                cluster.kafka_servers[0].continue_process();
                let when = format!("limit {limit}, acks={acks}, {round}");
                let answers: Vec<Response> = clients.iter_mut().map(|client| client.read_response().unwrap()).collect();
                expect(&answers[6], TOO_LARGE, &when);
                let places: Vec<_> = answers
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| *at != 6)
                    .map(|(_, answer)| place(answer, &when))
                    .collect();
                let stored = cluster.messages(&topic);
                for (number, (size, at)) in sizes.iter().zip(&places).enumerate() {
                    let value = body(number, *size);
                    assert_eq!(count(&stored, &value), 1, "{when}: {number} is there once");
                    let found = stored.iter().find(|message| message.value == value).expect("it is there");
                    assert_eq!((found.partition, found.offset), *at, "{when}: {number}");
                }
                assert_eq!(count(&stored, &body(99, too_large)), 0, "{when}: what is too large is not there");
            }
        }
    }
    let log = kproxy.daemon.log();
    assert!(log.contains("did not take a batch"), "batches were too large");
    assert!(!log.contains("go one by one"), "the limit is learned:\n{log}");
}

#[test]
fn a_topic_deleted_and_made_again() {
    let cluster = cluster();
    let kproxy = Kproxy::start_ready(cluster, "");
    let topic = cluster.new_topic("deleted", 2);
    let levels = ["1", "-1"];
    for acks in levels {
        place(&kproxy.post(&commit(&topic, acks, "k"), b"old"), acks);
    }
    cluster.delete_topic(&topic);
    let deleted = Instant::now();
    for acks in levels {
        wait_until(START_DEADLINE, "404", || {
            let answer = kproxy.post(&commit(&topic, acks, "k"), b"lost");
            let is_there = row(&answer) == (404, "unknown_topic".to_owned(), "no".to_owned(), false);
            // Until the brokers' word is sure.
            assert!(
                is_there || row(&answer) == (503, "no_broker".to_owned(), "no".to_owned(), true),
                "{}",
                answer.text()
            );
            is_there
        });
        let took = deleted.elapsed();
        eprintln!("acks={acks}: 404 for a deleted topic after {took:.1?}");
        assert!(took < Duration::from_secs(20), "acks={acks}: {took:?}");
    }
    cluster.create_topic(&topic, 2);
    let made = Instant::now();
    for acks in levels {
        let at = wait_until(START_DEADLINE, "it is found again", || {
            let answer = kproxy.post(&commit(&topic, acks, "k"), format!("new{acks}").as_bytes());
            (answer.status == 200).then(|| place(&answer, acks))
        });
        let stored = cluster.messages(&topic);
        let found = stored.iter().find(|message| (message.partition, message.offset) == at).expect("it is there");
        assert_eq!(found.value, format!("new{acks}").as_bytes());
        assert_eq!(stored.len(), if acks == "1" { 1 } else { 2 }, "nothing of before, nothing twice: {stored:?}");
    }
    eprintln!("200 for the new topic after {:.1?}", made.elapsed());
}

#[test]
fn leaders_that_move_and_replicas_that_are_missing() {
    let cluster = Cluster::start(2);
    let topic = cluster.new_topic_with("replicas", 1, 2, &[("min.insync.replicas", "2")]);
    cluster.wait_for_in_sync(&topic, 2);
    let kproxy = Kproxy::start_ready(&cluster, "commit_timeout_ms: 5000");
    let mut n_stored = 0;
    let mut post = |acks: &str, when: &str| {
        let value = format!("{when} {acks}");
        let at = place(&kproxy.post(&commit(&topic, acks, "k"), value.as_bytes()), &value);
        assert_eq!(at, (0, n_stored), "{value}: nothing else was stored");
        n_stored += 1;
    };
    for move_number in 0..2 {
        for acks in ["1", "-1"] {
            post(acks, &format!("before move {move_number}"));
        }
        cluster.move_leaders(&topic);
        for acks in ["1", "-1"] {
            post(acks, &format!("after move {move_number}"));
        }
    }
    let leader = cluster.leaders(&topic).expect("a broker answers")[&0];
    let follower = &cluster.kafka_servers[1 - leader as usize];
    follower.kill9();
    cluster.wait_for_in_sync(&topic, 1);
    let posted = Instant::now();
    expect(&kproxy.post(&commit(&topic, "-1", "k"), b"too few"), NO_BROKER, "too few replicas in sync");
    eprintln!("503 for too few replicas in sync after {:.1?}", posted.elapsed());
    assert!(posted.elapsed() < Duration::from_secs(5) + MARGIN, "{:?}", posted.elapsed());
    post("1", "one replica is enough");
    follower.restart();
    cluster.wait_for_in_sync(&topic, 2);
    for acks in ["1", "-1"] {
        post(acks, "all are back");
    }
    assert_eq!(count(&cluster.messages(&topic), b"too few"), 0, "told not to be stored");
}

#[test]
fn thousands_of_made_up_names_starve_no_topic() {
    const N_CONNECTIONS: usize = 500;
    const N_ROUNDS: usize = 10;
    let cluster = cluster();
    let kproxy = Kproxy::start_ready(cluster, "read_timeout_ms: 20000");
    let (known, new) = (cluster.new_topic("known", 1), cluster.new_topic("new", 1));
    place(&kproxy.post(&commit(&known, "1", ""), b"warm"), "warm");
    let mut clients: Vec<Client> =
        (0..N_CONNECTIONS).map(|_| Client::connect(&kproxy.address).expect("kproxy listens")).collect();
    let (mut n_absent, mut n_refused, mut slowest) = (0, 0, Duration::ZERO);
    let mut new_topic_tries = 0;
    let started = Instant::now();
    for round in 0..N_ROUNDS {
        for client in &mut clients {
            let path = commit(&unique("made_up"), "1", "");
            client
                .send_raw(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx").as_bytes())
                .unwrap();
        }
        for _ in 0..10 {
            let posted = Instant::now();
            place(&kproxy.post(&commit(&known, "1", ""), b"x"), "a known topic meanwhile");
            slowest = slowest.max(posted.elapsed());
        }
        if round == N_ROUNDS / 2 {
            wait_until(Duration::from_secs(10), "a topic that exists and was not known is found", || {
                new_topic_tries += 1;
                kproxy.post(&commit(&new, "1", ""), b"x").status == 200
            });
        }
        for client in &mut clients {
            let answer = client.read_response().expect("kproxy answers");
            match answer.status {
                404 => n_absent += 1,
                _ => n_refused += 1,
            }
            let expected = if answer.status == 404 { UNKNOWN_TOPIC } else { (503, "overloaded", "no", true) };
            expect(&answer, expected, "a made-up name");
        }
    }
    eprintln!(
        "{n_absent} names unknown, {n_refused} refused for the moment in {:.1?}; a known topic took {slowest:.1?} at most, a \
         new one {new_topic_tries} tries",
        started.elapsed()
    );
    assert_eq!(n_absent + n_refused, N_CONNECTIONS * N_ROUNDS);
    assert!(n_absent >= N_CONNECTIONS * N_ROUNDS / 10, "{n_absent} and {n_refused}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");

    // One name, over and over: a few questions in four seconds, whatever the number of requests.
    let name = unique("made_up");
    let path = commit(&name, "1", "");
    let kproxy = Kproxy::start_ready(cluster, "");
    let started = Instant::now();
    let mut client = Client::connect(&kproxy.address).expect("kproxy listens");
    let mut n_posts = 0;
    while n_posts < 1_000 || started.elapsed() < Duration::from_secs(2) {
        expect(&client.post(&path, b"x").expect("kproxy answers"), UNKNOWN_TOPIC, "a made-up name");
        n_posts += 1;
    }
    wait_until(START_DEADLINE, "the questions are counted", || metric(&kproxy, "kproxy_topic_lookups_total") > 0);
    let n_questions = metric(&kproxy, "kproxy_topic_lookups_total");
    let n_periods = started.elapsed().as_secs() / 4 + 1;
    eprintln!("{n_posts} posts to one unknown topic in {:.1?}: {n_questions} questions", started.elapsed());
    assert!(n_questions <= 8 * n_periods, "{n_questions} questions in {:?}", started.elapsed());
    cluster.create_topic(&name, 1);
    let made = Instant::now();
    wait_until(START_DEADLINE, "it is found once it is made", || client.post(&path, b"x").unwrap().status == 200);
    eprintln!("found {:.1?} after it was made", made.elapsed());
    assert_eq!(cluster.messages(&name).len(), 1);
}
