//! Dead letters: their contents, when they are stored, the messages that wait for a letter that cannot be stored, and
//! the replay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kafka_http_wrapper::broker::{Header, Record};

use crate::harness::dead_letters::{Letter, append, letters, replay};
use crate::harness::fleet::{Arrival, Fleet, Reply};
use crate::harness::{Cluster, Ktransfer, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(90);

fn refuse_bad(arrival: &Arrival) -> Reply {
    if arrival.key().starts_with("bad") { Reply::status(500) } else { Reply::ok() }
}

/// Appends `n` messages of each key to partition 0, one round of the keys after the other.
fn produce(cluster: &Cluster, topic: &str, keys: &[&str], n: usize) {
    let rounds = (0..n).flat_map(|round| keys.iter().map(move |key| (key.as_bytes(), round.to_string().into_bytes())));
    let messages: Vec<(&[u8], Vec<u8>)> = rounds.collect();
    let messages: Vec<(&[u8], &[u8])> = messages.iter().map(|(key, value)| (*key, value.as_slice())).collect();
    cluster.produce(topic, 0, &messages);
}

/// Panics unless there is exactly one letter of each of `n` messages of each key, and those of a key are in order.
#[track_caller]
fn assert_complete_in_order(letters: &[Letter], keys: &[&str], n: usize) {
    for key in keys {
        let of_key = letters.iter().filter(|letter| letter.key() == *key);
        let values: Vec<usize> =
            of_key.map(|letter| String::from_utf8_lossy(letter.value.as_deref().unwrap()).parse().unwrap()).collect();
        assert_eq!(values, (0..n).collect::<Vec<_>>(), "{key}");
    }
    assert_eq!(letters.len(), keys.len() * n);
}

#[test]
fn refused_messages_are_letters_once_after_three_tries_and_return_exactly_by_the_replay() {
    const N_BAD: usize = 20;
    let cluster = cluster();
    let (topic, dead) = (cluster.new_topic("dead_source", 3), cluster.new_topic("dead", 2));
    let (module, fleet) = (unique("dead"), Fleet::start(2, refuse_bad));
    let header = |name: &str, value: Option<&[u8]>| Header { name: name.to_owned(), value: value.map(Into::into) };
    let binary: Vec<u8> = (0..=255).collect();
    let mut records = Vec::new();
    for number in 0..3 * N_BAD {
        let key = if number % 3 == 0 { format!("bad-{}", number % 4) } else { "good".to_owned() };
        let value = match number % 5 {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some([number.to_string().as_bytes(), &binary].concat()),
        };
        let headers = vec![
            header("trace", Some(&binary)),
            header("null", None),
            header("trace", Some(number.to_string().as_bytes())),
            header("X-Dead-Letter-Reason", Some(b"mine")),
        ];
        let partition = Some(number as i32 % 3);
        let key = Some(key.into_bytes());
        records.push(Record { topic: topic.as_str().into(), partition, key, value, headers, timestamp_ms: Some(1000) });
    }
    append(cluster, records.clone());
    let file = configs::module(&topic, &fleet.addresses())
        .set("max_retry_times", 2)
        .set("fail_retry_interval_ms", 20)
        .set("dead_letter_topic", &dead);
    let mut member = Member::start(cluster, &module, "a", file);
    let all_stored = |n: usize| cluster.stored_offsets_sum(&module, &topic, 3) == n as i64;
    wait_until(DEADLINE, "all messages are done", || all_stored(records.len()));

    let found = letters(cluster, &dead);
    assert_eq!(found.len(), N_BAD, "each refused message is there exactly once");
    let positions: BTreeSet<_> =
        found.iter().map(|letter| (letter.field("Partition").to_owned(), letter.offset())).collect();
    assert_eq!(positions.len(), N_BAD);
    let mut tries: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    for arrival in fleet.arrivals().iter().filter(|arrival| !arrival.is_delivered()) {
        *tries.entry(arrival.position()).or_default() += 1;
        let is_null = arrival.request.header("X-Kafka-Value") == Some("null");
        assert!(!is_null || arrival.request.body.is_empty());
    }
    assert_eq!(tries.len(), N_BAD);
    assert!(tries.values().all(|count| *count == 3), "exactly three tries: {tries:?}");
    for letter in &found {
        let names = ["Reason", "Status", "Attempts", "Module", "Topic", "Timestamp"];
        let fields = names.map(|name| letter.field(name));
        assert_eq!(fields, ["retries_used_up", "500", "3", &module, &topic, "1000"]);
    }

    let dry = replay(&member.daemon, &module, &["--dry-run"]);
    let text = String::from_utf8_lossy(&dry.stdout).into_owned();
    assert!(dry.status.success() && text.contains("20 dead letters of module"), "{text}{dry:?}");
    assert_eq!(text.lines().filter(|line| line.contains("reason=retries_used_up, status=500")).count(), N_BAD);
    assert_eq!(cluster.message_count(&topic), records.len() as i64, "a dry run appends nothing");

    fleet.script(0, |_| Reply::ok());
    fleet.script(1, |_| Reply::ok());
    let before: Vec<i64> = cluster.log_ends(&topic).into_values().collect();
    let run = replay(&member.daemon, &module, &[]);
    assert!(run.status.success(), "{run:?}");
    wait_until(DEADLINE, "the replayed messages are pushed", || all_stored(records.len() + N_BAD));
    let content = |record: &Record| format!("{:?} {:?} {:?}", record.key, record.value, record.headers);
    for partition in 0..3 {
        let refused = |record: &&Record| {
            record.partition == Some(partition) && record.key.as_ref().is_some_and(|key| key.starts_with(b"bad"))
        };
        let mut expected: Vec<String> = records.iter().filter(refused).map(content).collect();
        let end = usize::try_from(cluster.log_ends(&topic)[&partition]).expect("a count");
        let read = crate::harness::engine::read_partition(&cluster.brokers, &topic, partition, end);
        let replayed = &read[usize::try_from(before[partition as usize]).expect("a count")..];
        let mut found: Vec<String> = replayed
            .iter()
            .map(|message| format!("{:?} {:?} {:?}", message.key, message.value, message.headers))
            .collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "partition {partition}: key, value and headers, exactly");
    }
    let again = replay(&member.daemon, &module, &[]);
    assert!(
        again.status.success() && String::from_utf8_lossy(&again.stdout).starts_with("0 dead letters"),
        "{again:?}"
    );
    assert_eq!(cluster.message_count(&topic), (records.len() + N_BAD) as i64, "nothing is replayed twice");
    assert_eq!(letters(cluster, &dead).len(), N_BAD);
    for wrong in [&["no-such-module"][..], &[]] {
        let mut command = std::process::Command::new(crate::harness::binary(crate::harness::Program::Ktransfer));
        command.current_dir(member.daemon.folder()).args(["-f", "conf/ktransfer.yaml", "--replay-dead-letters"]);
        let output = command.args(wrong).output().expect("ktransfer runs");
        assert_eq!(output.status.code(), Some(if wrong.is_empty() { 2 } else { 1 }), "{output:?}");
    }
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn while_the_topic_is_missing_refused_keys_wait_others_go_on_and_a_stop_loses_none() {
    const N: usize = 10;
    let cluster = cluster();
    let (topic, dead) = (cluster.new_topic("dead_missing", 1), unique("dead_missing_letters"));
    let (module, fleet) = (unique("dead_missing"), Fleet::start(1, refuse_bad));
    let bad = ["bad-0", "bad-1", "bad-2", "bad-3", "bad-4"];
    let keys: Vec<&str> = bad.iter().copied().chain(["good"]).collect();
    produce(cluster, &topic, &keys, N);
    let file = configs::module(&topic, &fleet.addresses())
        .set("max_retry_times", 2)
        .set("fail_retry_interval_ms", 20)
        .set("max_retry_interval_ms", 500)
        // Fewer slots than refused keys.
        .set("window_size", 2)
        .set("dead_letter_topic", &dead);
    let mut first = Member::start(cluster, &module, "a", file.clone());
    wait_until(DEADLINE, "the other key is delivered", || fleet.n_delivered() == N);
    let waiting = format!("ktransfer_dead_letters_waiting{{module=\"{module}\"}}");
    wait_until(DEADLINE, "a letter of each refused key waits", || {
        first.metrics().value(&waiting) == Some(bad.len() as u64)
    });
    let reason = format!("dead letters cannot be stored in {dead}: topic {dead} does not exist");
    wait_until(DEADLINE, "/readyz names the component and the reason", || {
        let (status, text) = first.readiness();
        status == 503 && text.contains(&format!("dead letters of {module}")) && text.contains(&reason)
    });
    first.daemon.wait_for_log("cannot store the dead letter of topic=", DEADLINE);
    let failed = format!("ktransfer_dead_letters_total{{module=\"{module}\",result=\"failed\"}}");
    assert!(first.metrics().value(&failed).is_some_and(|count| count > 0));
    assert_eq!(fleet.count(|arrival| arrival.key().starts_with("bad")), 3 * bad.len(), "later messages wait");
    let stopping = Instant::now();
    first.daemon.stop(STOP_DEADLINE);
    eprintln!("stopped after {:.1?} with waiting letters", stopping.elapsed());
    assert_eq!(cluster.stored_offset(&module, &topic, 0), Some(0), "the first message is not done");

    let mut second = Member::start(cluster, &module, "b", file);
    wait_until(DEADLINE, "a letter of each refused key waits", || {
        second.metrics().value(&waiting) == Some(bad.len() as u64)
    });
    cluster.create_topic(&dead, 3);
    wait_until(DEADLINE, "all are done", || cluster.stored_offset(&module, &topic, 0) == Some((keys.len() * N) as i64));
    assert_complete_in_order(&letters(cluster, &dead), &bad, N);
    wait_until(DEADLINE, "ready again", || second.readiness().0 == 200);
    let metrics = second.metrics();
    let stored = format!("ktransfer_dead_letters_total{{module=\"{module}\",result=\"stored\"}}");
    assert_eq!(metrics.value(&stored), Some((bad.len() * N) as u64));
    second.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_topic_that_is_too_small_holds_up_the_key_of_the_large_message_until_it_is_enlarged() {
    let cluster = cluster();
    let topic = cluster.new_topic("dead_small_source", 1);
    let dead = cluster.new_topic_with("dead_small", 1, 1, &[("max.message.bytes", "20000")]);
    let (module, fleet) = (unique("dead_small"), Fleet::start(1, refuse_bad));
    let large = vec![b'x'; 100_000];
    let messages: [(&[u8], &[u8]); 4] =
        [(b"bad-large", &large), (b"bad-large", b"1"), (b"bad-small", b"0"), (b"good", b"0")];
    let file = configs::module(&topic, &fleet.addresses())
        .set("max_retry_times", 0)
        .set("fail_retry_interval_ms", 20)
        .set("max_retry_interval_ms", 500)
        .set("dead_letter_topic", &dead);
    // It is ready until the first letter cannot be stored.
    let mut member = Member::start(cluster, &module, "a", file);
    cluster.produce(&topic, 0, &messages);
    wait_until(DEADLINE, "the letter of the small message is stored, the large one waits", || {
        cluster.message_count(&dead) == 1 && member.readiness().1.contains("max.message.bytes")
    });
    assert_eq!(fleet.count(|arrival| arrival.key() == "bad-large"), 1, "the key waits");
    assert_eq!(cluster.stored_offset(&module, &topic, 0), Some(0));
    cluster.set_topic_configs(&dead, &[("max.message.bytes", "200000")]);
    wait_until(DEADLINE, "all are done", || cluster.stored_offset(&module, &topic, 0) == Some(4));
    let found = letters(cluster, &dead);
    let of_large: Vec<i64> = found.iter().filter(|letter| letter.key() == "bad-large").map(Letter::offset).collect();
    assert_eq!((found.len(), of_large), (3, vec![0, 1]), "in order");
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn while_the_broker_of_the_topic_is_down_for_seconds_nothing_is_lost_or_out_of_order() {
    const N: usize = 8;
    let cluster = Cluster::start(2);
    // Topics whose only partition is led by this broker.
    let topic_of = |broker: i32, prefix: &str| {
        wait_until(DEADLINE, "a topic of that leader", || {
            let name = cluster.new_topic(prefix, 1);
            (cluster.leaders(&name)?.get(&0) == Some(&broker)).then_some(name)
        })
    };
    let (topic, dead) = (topic_of(0, "dead_outage"), topic_of(1, "dead_outage_letters"));
    let fleet = Fleet::start(1, refuse_bad);
    let bad = ["bad-0", "bad-1", "bad-2"];
    let keys: Vec<&str> = bad.iter().copied().chain(["good"]).collect();
    let file = configs::module(&topic, &fleet.addresses())
        .set("max_retry_times", 2)
        .set("fail_retry_interval_ms", 20)
        .set("max_retry_interval_ms", 500)
        .set("dead_letter_topic", &dead);
    let mut ktransfer = Ktransfer::start_ready(&cluster, &[("dead_outage", file)]);
    // One letter before the outage, so that the producer knows the topic. Its confirmation must have arrived.
    produce(&cluster, &topic, &["bad-first"], 1);
    wait_until(DEADLINE, "the first message is done", || cluster.stored_offset("dead_outage", &topic, 0) == Some(1));
    let broker = &cluster.kafka_servers[1];
    broker.kill9();
    let down = Instant::now();
    produce(&cluster, &topic, &keys, N);
    wait_until(DEADLINE, "the other key is delivered", || fleet.n_delivered() == N);
    let waiting = "ktransfer_dead_letters_waiting{module=\"dead_outage\"}";
    wait_until(DEADLINE, "a letter of each refused key waits", || {
        ktransfer.metrics().value(waiting) == Some(bad.len() as u64)
    });
    // The length of the outage.
    std::thread::sleep(Duration::from_secs(8).saturating_sub(down.elapsed()));
    assert_eq!(fleet.count(|arrival| bad.contains(&arrival.key().as_str())), 3 * bad.len(), "the keys wait");
    broker.restart();
    wait_until(DEADLINE, "all are done", || {
        cluster.stored_offset("dead_outage", &topic, 0) == Some((1 + keys.len() * N) as i64)
    });
    let mut found = letters(&cluster, &dead);
    assert_eq!(found.remove(0).key(), "bad-first");
    let mut seen = BTreeSet::new();
    let n_found = found.len();
    found.retain(|letter| seen.insert(letter.offset()));
    eprintln!("{} letters were stored twice in an outage of {:.0?}", n_found - found.len(), down.elapsed());
    assert_complete_in_order(&found, &bad, N);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn undecodable_impossible_and_filtered_messages_are_letters() {
    let cluster = cluster();
    let (topic, dead) = (cluster.new_topic("dead_kinds", 1), cluster.new_topic("dead_kinds_letters", 1));
    let (module, fleet) = (unique("dead_kinds"), Fleet::start(1, |_| Reply::ok()));
    let encode =
        |method: &str| crate::harness::message::Message { method: method.to_owned(), id: ("k".to_owned(), 1) }.encode();
    let (ours, other, long) = (encode("Greeting"), encode("NotOurs"), vec![0xff; 6000]);
    let record = |key: &[u8], value: Option<&[u8]>| Record {
        topic: topic.as_str().into(),
        partition: Some(0),
        key: Some(key.into()),
        value: value.map(Into::into),
        headers: Vec::new(),
        timestamp_ms: None,
    };
    let records = vec![
        record(b"k", Some(&ours)),
        record(b"k", Some(b"{}")),
        record(b"k", Some(&other)),
        record(b"k", None),
        record(&long, Some(&ours)),
        record(b"k", Some(&ours)),
    ];
    append(cluster, records);
    let file = configs::filtered_module(&topic, &fleet.addresses())
        .set("dead_letter_topic", &dead)
        .set("filtered", "dead_letter");
    let mut member = Member::start(cluster, &module, "a", file);
    wait_until(DEADLINE, "all are done", || cluster.stored_offset(&module, &topic, 0) == Some(6));
    let mut found: Vec<(i64, String)> =
        letters(cluster, &dead).iter().map(|letter| (letter.offset(), letter.field("Reason").to_owned())).collect();
    found.sort();
    let expected = [(1, "undecodable"), (2, "filtered"), (4, "impossible")];
    assert_eq!(found, expected.map(|(offset, reason)| (offset, reason.to_owned())));
    assert_eq!(fleet.n_delivered(), 2);
    let metrics = member.metrics();
    for (outcome, count) in
        [("delivered", 2), ("dead_letter", 3), ("tombstone", 1), ("undecodable", 0), ("filtered", 0)]
    {
        let name = format!("ktransfer_messages_total{{module=\"{module}\",outcome=\"{outcome}\"}}");
        assert_eq!(metrics.value(&name), Some(count), "{outcome}");
    }
    assert!(!member.daemon.log().contains("gave up"), "a letter is no message that was dropped");
    member.daemon.stop(STOP_DEADLINE);
}
