//! What ktransfer promises of its pushes, over the real binary: nothing stops a module, order per key, hand-over on SIGTERM.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::harness::backend::Journal;
use crate::harness::message::{METHODS, Message};
use crate::harness::{
    Answer, Backend, Cluster, Daemon, Program, Record, cluster, configs, free_port, http, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(12);

/// A ktransfer with these modules (name and file), ready.
fn start(cluster: &Cluster, modules: &[(&str, String)]) -> (Daemon, String) {
    let admin = free_port();
    let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
    let main_file = configs::ktransfer(cluster, admin, &names);
    let paths: Vec<String> = names.iter().map(|name| format!("conf/modules/{name}.yaml")).collect();
    let mut files = vec![("conf/ktransfer.yaml", main_file.as_str())];
    files.extend(paths.iter().zip(modules).map(|(path, (_, text))| (path.as_str(), text.as_str())));
    let mut daemon = Daemon::start(Program::Ktransfer, &files);
    let address = format!("127.0.0.1:{admin}");
    daemon.wait_until_ready(&address, DEADLINE);
    (daemon, address)
}

/// The same file without its methods: every message is pushed.
fn all_methods(module: &str) -> String {
    let is_of_methods =
        |line: &&str| *line == "methods:" || METHODS.iter().any(|method| line.trim() == format!("- {method}"));
    module.lines().filter(|line| !is_of_methods(line)).map(|line| format!("{line}\n")).collect()
}

fn is_done(record: &&Record) -> bool {
    record.status == Some(200)
}

/// Partition and offset of a push.
fn place(record: &Record) -> (i64, i64) {
    let number = |name: &str| record.request.header(name).expect(name).parse().expect(name);
    (number("X-Kafka-Partition"), number("X-Kafka-Offset"))
}

/// Of each key, deliveries must come in the order of the partition; a delivery that is a repeat counts where it first came.
fn assert_order_per_key(records: &[Record]) {
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    let mut seen = HashSet::new();
    for record in records.iter().filter(is_done) {
        let (partition, offset) = place(record);
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

#[test]
fn a_message_that_is_no_msgpack_never_stops_a_module() {
    let cluster = cluster();
    let topic = cluster.new_topic("poison", 1);
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
    let (mut daemon, admin) = start(cluster, &[(&module, configs::module(&topic, &[backend.address()]))]);
    wait_until(DEADLINE, "the position passes everything", || cluster.stored_offset(&module, &topic, 0) == Some(250));
    let numbers: Vec<u64> =
        backend.records().iter().map(|record| Message::decode(&record.request.body).expect("ours").id.1).collect();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    daemon.wait_for_log("the message is not a msgpack map", DEADLINE);
    let metrics = http::get(&format!("http://{admin}/metrics")).expect("it answers").text();
    let line = format!("ktransfer_messages_total{{module=\"{module}\",outcome=\"undecodable\"}} 150");
    assert!(metrics.contains(&line), "{metrics}");
    daemon.end_well(STOP_DEADLINE);
}

#[test]
fn a_retry_goes_to_the_other_backend_and_keeps_the_order_of_its_key() {
    let cluster = cluster();
    let topic = cluster.new_topic("retries", 4);
    let module = unique("module");
    let journal = Journal::default();
    // Each tenth message fails twice, in different ways.
    let script = |request: &crate::harness::backend::Request| {
        let number = |name: &str| request.header(name).and_then(|value| value.parse::<i64>().ok()).unwrap_or_default();
        match (number("X-Kafka-Offset") % 10, number("X-Kafka-Attempt")) {
            (3, 1) => Answer::status(503),
            (3, 2) => Answer::hang_up(),
            _ => Answer::ok().after(Duration::from_millis(1)),
        }
    };
    let backends = [Backend::start_sharing(&journal, script), Backend::start_sharing(&journal, script)];
    let servers: Vec<String> = backends.iter().map(Backend::address).collect();
    for partition in 0..4 {
        let keys: Vec<String> = (0..500).map(|number| format!("{partition}-{}", number % 20)).collect();
        let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), b"text".as_slice())).collect();
        cluster.produce(&topic, partition, &messages);
    }
    let file = all_methods(&configs::module(&topic, &servers)).replace("interval_ms: 200", "interval_ms: 20");
    let (mut daemon, _) = start(cluster, &[(&module, file)]);
    wait_until(DEADLINE, "everything is delivered and stored", || {
        (0..4).all(|partition| cluster.stored_offset(&module, &topic, partition) == Some(500))
    });
    let records = journal.records();
    assert_eq!(records.iter().filter(is_done).count(), 2000);
    assert_eq!(records.len(), 2000 + 2 * 200);
    assert_eq!(journal.most_of_one_key(), 1);
    assert_order_per_key(&records);
    let mut attempts: BTreeMap<(i64, i64), Vec<&str>> = BTreeMap::new();
    for record in &records {
        attempts.entry(place(record)).or_default().push(&record.backend);
    }
    for (place, backends) in attempts {
        assert!(backends.windows(2).all(|pair| pair[0] != pair[1]), "{place:?} was tried at {backends:?}");
    }
    daemon.end_well(STOP_DEADLINE);
}

#[test]
fn a_module_without_its_backend_holds_up_no_other() {
    let cluster = cluster();
    let topic = cluster.new_topic("isolated", 2);
    let (dead, living) = (unique("dead"), unique("living"));
    let backend = Backend::start();
    let messages: Vec<(&[u8], &[u8])> = vec![(b"k", b"text"); 300];
    cluster.produce(&topic, 0, &messages);
    cluster.produce(&topic, 1, &messages);
    let nobody = format!("127.0.0.1:{}", free_port());
    let file = |server: String| all_methods(&configs::module(&topic, &[server]));
    let (mut daemon, _) = start(cluster, &[(&dead, file(nobody)), (&living, file(backend.address()))]);
    wait_until(DEADLINE, "the other module is done", || {
        (0..2).all(|partition| cluster.stored_offset(&living, &topic, partition) == Some(300))
    });
    daemon.wait_for_log("fail push, retry in", DEADLINE);
    daemon.end_well(STOP_DEADLINE);
    // Where it began is stored, so nothing it could not push is passed over.
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
    let backend = Backend::start_with(|_| Answer::ok().after(Duration::from_millis(15)));
    let file = all_methods(&configs::module(&topic, &[backend.address()])).replace("worker_num: 100", "worker_num: 8");
    let (mut first, _) = start(cluster, &[(&module, file.clone())]);
    let (mut second, _) = start(cluster, &[(&module, file)]);
    let owners = || {
        let parent = format!("/consumers/{module}/owners/{topic}");
        let partitions = cluster.children(&parent);
        let owners: Vec<String> =
            partitions.iter().filter_map(|partition| cluster.read(&format!("{parent}/{partition}"))).collect();
        (owners.len(), owners.into_iter().collect::<HashSet<_>>().len())
    };
    wait_until(DEADLINE, "both have their share", || owners() == (N_PARTITIONS as usize, 2));
    for partition in 0..N_PARTITIONS {
        let keys: Vec<String> = (0..N_OF_EACH).map(|number| format!("{partition}-{}", number % 10)).collect();
        let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), b"text".as_slice())).collect();
        cluster.produce(&topic, partition, &messages);
    }
    backend.wait_for_requests(1000, DEADLINE);
    let began = Instant::now();
    first.end_well(STOP_DEADLINE);
    let stopped_after = began.elapsed();
    wait_until(DEADLINE, "the other one has everything", || owners() == (N_PARTITIONS as usize, 1));
    let taken_over_after = began.elapsed();
    wait_until(DEADLINE, "everything is delivered and stored", || {
        (0..N_PARTITIONS).all(|partition| cluster.stored_offset(&module, &topic, partition) == Some(N_OF_EACH as i64))
    });
    second.end_well(STOP_DEADLINE);
    assert_eq!(owners(), (0, 0), "claims left behind");
    let records = backend.records();
    let places: HashSet<_> = records.iter().map(place).collect();
    let n_repeats = records.len() - places.len();
    eprintln!(
        "stopped after {:.1} s, taken over after {:.1} s, {n_repeats} repeats",
        stopped_after.as_secs_f64(),
        taken_over_after.as_secs_f64()
    );
    assert_eq!(places.len(), N_PARTITIONS as usize * N_OF_EACH, "lost");
    assert!(n_repeats <= 200, "{n_repeats} repeats, more than a window");
    assert_eq!(backend.journal().most_of_one_key(), 1, "pushes of one key at the same time");
    assert_order_per_key(&records);
}

#[test]
fn without_zookeeper_it_waits_says_so_and_can_be_stopped() {
    let cluster = cluster();
    let admin = free_port();
    let module = unique("module");
    let main_file = configs::ktransfer(cluster, admin, &[&module])
        .replace(&cluster.zookeeper, &format!("127.0.0.1:{}", free_port()));
    let module_file = configs::module("topic", &["127.0.0.1:1".to_owned()]);
    let path = format!("conf/modules/{module}.yaml");
    let mut daemon = Daemon::start(Program::Ktransfer, &[("conf/ktransfer.yaml", &main_file), (&path, &module_file)]);
    let ready = || http::get(&format!("http://127.0.0.1:{admin}/readyz"));
    wait_until(DEADLINE, "it says what it waits for", || {
        ready().is_ok_and(|answer| answer.status == 503 && answer.text().contains("no answer from ZooKeeper"))
    });
    daemon.wait_for_log("cannot start yet", DEADLINE);
    daemon.end_well(STOP_DEADLINE);
}
