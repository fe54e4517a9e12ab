//! The pushes of ktransfer: undecodable messages are skipped, each key keeps its order, SIGTERM hands over at once.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::harness::backend::Journal;
use crate::harness::message::{METHODS, Message};
use crate::harness::{
    Backend, BackendAnswer, Cluster, Ktransfer, PushRecord, Request, STOP_DEADLINE, cluster, configs, free_port,
    unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

fn is_done(record: &&PushRecord) -> bool {
    record.status == Some(200)
}

/// Returns the partition and the offset of a push, from its headers.
fn position(record: &PushRecord) -> (i64, i64) {
    let number = |name: &str| record.request.header(name).expect(name).parse().expect(name);
    (number("X-Kafka-Partition"), number("X-Kafka-Offset"))
}

/// Panics unless the messages of each key were delivered in the order of their offsets. Repeats do not count.
fn assert_order_per_key(records: &[PushRecord]) {
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    let mut seen = HashSet::new();
    for record in records.iter().filter(is_done) {
        let (partition, offset) = position(record);
        if seen.insert((partition, offset)) {
            let newest = newest.entry(record.request.key()).or_insert(-1);
            assert!(*newest < offset, "key {}: {offset} after {newest}", record.request.key());
            *newest = offset;
        }
    }
}

fn encoded(key: &str, number: u64, method: &str) -> Vec<u8> {
    Message { method: method.to_owned(), id: (key.to_owned(), number) }.encode()
}

/// Appends `n_of_each` messages to each partition. Each partition has `n_keys` keys of its own.
fn produce_over_keys(cluster: &Cluster, topic: &str, n_partitions: i32, n_of_each: usize, n_keys: usize) {
    for partition in 0..n_partitions {
        let keys: Vec<String> = (0..n_of_each).map(|number| format!("{partition}-{}", number % n_keys)).collect();
        let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), b"text".as_slice())).collect();
        cluster.produce(topic, partition, &messages);
    }
}

#[test]
fn a_message_that_is_not_msgpack_is_skipped_and_counted() {
    let cluster = cluster();
    let topic = cluster.new_topic("not_msgpack", 1);
    let module = unique("module");
    let backend = Backend::start();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for number in 0..50 {
        contents.push(encoded("k", number, METHODS[0]));
        contents.push(b"{\"method\":\"Greeting\"}".to_vec());
        contents.push(encoded("k", number, "NotOurs"));
        contents.push(b"\x81\xa6method\xdb\xff\xff\xff\xff".to_vec());
        contents.push(vec![0xc1; 50]);
    }
    let messages: Vec<(&[u8], &[u8])> = contents.iter().map(|content| (b"k".as_slice(), content.as_slice())).collect();
    cluster.produce(&topic, 0, &messages);
    let module_file = configs::filtered_module(&topic, &[backend.address()]);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file)]);
    wait_until(DEADLINE, "the offset behind the last message is stored", || {
        cluster.stored_offset(&module, &topic, 0) == Some(250)
    });
    let numbers: Vec<u64> = backend
        .records()
        .iter()
        .map(|record| Message::decode(&record.request.body).expect("the backend gets only valid messages").id.1)
        .collect();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    ktransfer.daemon.wait_for_log("the message is not a msgpack map", DEADLINE);
    let metrics = ktransfer.metrics();
    let line = format!("ktransfer_messages_total{{module=\"{module}\",outcome=\"undecodable\"}}");
    assert_eq!(metrics.value(&line), Some(150), "{}", metrics.text());
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_retry_goes_to_the_other_backend_and_keeps_the_order_of_its_key() {
    let cluster = cluster();
    let topic = cluster.new_topic("retries", 4);
    let module = unique("module");
    let journal = Journal::default();
    // Every tenth message fails twice: first with 503, then with a closed connection.
    let script = |request: &Request| {
        let number = |name: &str| request.header(name).and_then(|value| value.parse::<i64>().ok()).unwrap_or_default();
        match (number("X-Kafka-Offset") % 10, number("X-Kafka-Attempt")) {
            (3, 1) => BackendAnswer::status(503),
            (3, 2) => BackendAnswer::close(),
            _ => BackendAnswer::ok().after(Duration::from_millis(1)),
        }
    };
    let backends = [Backend::start_sharing(&journal, script), Backend::start_sharing(&journal, script)];
    let servers: Vec<String> = backends.iter().map(Backend::address).collect();
    produce_over_keys(cluster, &topic, 4, 500, 20);
    // Without ejection: the failures of many messages at once would spare a backend.
    let module_file = configs::module(&topic, &servers).set("fail_retry_interval_ms", 20).set("ejection.failures", 0);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file)]);
    wait_until(DEADLINE, "everything is delivered and stored", || {
        (0..4).all(|partition| cluster.stored_offset(&module, &topic, partition) == Some(500))
    });
    let records = journal.records();
    assert_eq!(records.iter().filter(is_done).count(), 2000);
    assert_eq!(records.len(), 2000 + 2 * 200);
    assert_eq!(journal.max_per_key(), 1);
    assert_order_per_key(&records);
    let mut attempts: BTreeMap<(i64, i64), Vec<&str>> = BTreeMap::new();
    for record in &records {
        attempts.entry(position(record)).or_default().push(&record.backend);
    }
    for (position, backends) in attempts {
        assert!(backends.windows(2).all(|pair| pair[0] != pair[1]), "{position:?} was tried at {backends:?}");
    }
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_module_whose_backend_is_down_does_not_delay_another() {
    let cluster = cluster();
    let topic = cluster.new_topic("isolated", 2);
    let (dead, living) = (unique("dead"), unique("living"));
    let backend = Backend::start();
    let messages: Vec<(&[u8], &[u8])> = vec![(b"k", b"text"); 300];
    cluster.produce(&topic, 0, &messages);
    cluster.produce(&topic, 1, &messages);
    let file = |server: String| configs::module(&topic, &[server]);
    let down = format!("127.0.0.1:{}", free_port());
    let modules = [(dead.as_str(), file(down)), (&living, file(backend.address()))];
    let mut ktransfer = Ktransfer::start_ready(cluster, &modules);
    wait_until(DEADLINE, "the module with the living backend has pushed everything", || {
        (0..2).all(|partition| cluster.stored_offset(&living, &topic, partition) == Some(300))
    });
    ktransfer.daemon.wait_for_log("fail push, retry in", DEADLINE);
    ktransfer.daemon.stop(STOP_DEADLINE);
    // The stored offset is still the start offset 0, so no message is skipped.
    for partition in 0..2 {
        assert_eq!(cluster.stored_offset(&dead, &topic, partition), Some(0));
    }
}

#[test]
fn sigterm_hands_over_at_once_in_order_and_without_loss() {
    const N_PARTITIONS: i32 = 8;
    const N_OF_EACH: usize = 500;
    let cluster = cluster();
    let topic = cluster.new_topic("handover", N_PARTITIONS);
    let module = unique("module");
    let backend = Backend::start_with(|_| BackendAnswer::ok().after(Duration::from_millis(15)));
    let module_file = configs::module(&topic, &[backend.address()]).set("worker_num", 8);
    let start = || Ktransfer::start_ready(cluster, &[(&module, module_file.clone())]).daemon;
    let (mut first, mut second) = (start(), start());
    // Returns the number of claimed partitions and the number of different owners.
    let claims = || {
        let owners: Vec<String> = cluster.owners(&module, &topic).into_values().collect();
        (owners.len() as i32, owners.iter().collect::<HashSet<_>>().len())
    };
    wait_until(DEADLINE, "both ktransfers own partitions", || claims() == (N_PARTITIONS, 2));
    produce_over_keys(cluster, &topic, N_PARTITIONS, N_OF_EACH, 10);
    backend.wait_for_requests(1000, DEADLINE);
    let stopping = Instant::now();
    first.stop(STOP_DEADLINE);
    let stopped_after = stopping.elapsed();
    wait_until(DEADLINE, "the second ktransfer owns all partitions", || claims() == (N_PARTITIONS, 1));
    let taken_over_after = stopping.elapsed();
    wait_until(DEADLINE, "all messages are pushed and their offsets stored", || {
        (0..N_PARTITIONS).all(|partition| cluster.stored_offset(&module, &topic, partition) == Some(N_OF_EACH as i64))
    });
    second.stop(STOP_DEADLINE);
    assert_eq!(claims(), (0, 0), "claims are left");
    let records = backend.records();
    let positions: HashSet<_> = records.iter().map(position).collect();
    let n_repeats = records.len() - positions.len();
    eprintln!("stopped after {stopped_after:.1?}, taken over after {taken_over_after:.1?}, {n_repeats} repeats");
    assert_eq!(positions.len(), N_PARTITIONS as usize * N_OF_EACH, "lost messages");
    assert!(n_repeats <= 200, "{n_repeats} repeats");
    assert_eq!(backend.journal().max_per_key(), 1, "concurrent pushes of one key");
    assert_order_per_key(&records);
}

#[test]
fn without_zookeeper_ktransfer_waits_names_the_reason_and_can_be_stopped() {
    let module = unique("module");
    let config = configs::ktransfer(cluster()).set("zk_hosts", [format!("127.0.0.1:{}", free_port())]);
    let module_file = configs::filtered_module("topic", &["127.0.0.1:1".to_owned()]);
    let mut ktransfer = Ktransfer::start(config, &[(&module, module_file)]);
    wait_until(DEADLINE, "/readyz names ZooKeeper", || {
        let (status, body) = ktransfer.readiness();
        status == 503 && body.contains("ZooKeeper is unreachable")
    });
    ktransfer.daemon.wait_for_log("cannot start yet", DEADLINE);
    ktransfer.daemon.stop(STOP_DEADLINE);
}
