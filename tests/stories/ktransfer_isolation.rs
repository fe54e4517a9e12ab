//! ktransfer: the effect of refused keys, and of messages that take much memory, on the rest of a module.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{
    Backend, BackendAnswer, Cluster, Ktransfer, Request, STOP_DEADLINE, cluster, configs, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(120);
const N_KEYS: usize = 40;

/// Appends `n` messages to 4 partitions, with 40 keys of 10 in each.
fn produce_over_keys(cluster: &Cluster, topic: &str, n: usize) {
    for partition in 0..4 {
        let keys: Vec<String> = (0..n / 4).map(|number| format!("key-{}", number % 10 * 4 + partition)).collect();
        let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), b"text".as_slice())).collect();
        cluster.produce(topic, i32::try_from(partition).unwrap(), &messages);
    }
}

/// Returns how many messages were delivered, repeats included.
fn n_delivered(backend: &Backend) -> usize {
    backend.records().iter().filter(|record| record.status == Some(200)).count()
}

/// A backend that refuses the messages for which `is_refused` returns true until the switch is on.
fn refusing_backend(is_refused: impl Fn(&Request) -> bool + Send + Sync + 'static) -> (Backend, Arc<AtomicBool>) {
    let is_healed = Arc::new(AtomicBool::new(false));
    let healed = Arc::clone(&is_healed);
    let backend = Backend::start_with(move |request| match is_refused(request) && !healed.load(Ordering::SeqCst) {
        true => BackendAnswer::status(500),
        false => BackendAnswer::ok(),
    });
    (backend, is_healed)
}

#[test]
fn a_key_that_is_refused_for_ever_holds_up_none_of_the_other_39() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("refused_key", 4), unique("module"));
    let (backend, is_healed) = refusing_backend(|request| request.key() == "key-17");
    produce_over_keys(cluster, &topic, 10_000);
    let module_file = configs::module(&topic, &[backend.address()]).set("window_size", 200).set("worker_num", 32);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file)]);
    wait_until(DEADLINE, "all messages of the other keys are delivered", || {
        n_delivered(&backend) == 10_000 / N_KEYS * (N_KEYS - 1)
    });
    let metrics = ktransfer.metrics();
    let in_use = format!("ktransfer_window_in_use{{module=\"{module}\"}}");
    assert_eq!(metrics.value(&in_use), Some(1), "messages behind their key take no part of the window");
    is_healed.store(true, Ordering::SeqCst);
    wait_until(DEADLINE, "everything is stored", || cluster.stored_offsets_sum(&module, &topic, 4) == 10_000);
    assert_eq!((n_delivered(&backend), backend.journal().max_per_key()), (10_000, 1));
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn refused_messages_are_given_up_after_their_attempts_and_the_end_of_the_topic_is_stored() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("given_up", 4), unique("module"));
    let (backend, _) = refusing_backend(|request| request.key() == "key-17");
    produce_over_keys(cluster, &topic, 4_000);
    let module_file = configs::module(&topic, &[backend.address()])
        .set("max_retry_times", 2)
        .set("fail_retry_interval_ms", 20)
        .set("worker_num", 32);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file)]);
    wait_until(DEADLINE, "everything is stored", || cluster.stored_offsets_sum(&module, &topic, 4) == 4_000);
    let records = backend.records();
    assert_eq!(records.len(), 3_900 + 100 * 3);
    // Warnings are in both log files of the daemon.
    let log = ktransfer.daemon.log();
    let given_up: HashSet<&str> = log.lines().filter(|line| line.contains("gave up topic=")).collect();
    assert_eq!(given_up.len(), 100);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_backend_that_refuses_everything_makes_no_module_hold_more_than_its_memory() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("memory", 4), unique("module"));
    let value = vec![b'x'; 900_000];
    for partition in 0..4 {
        for number in 0..50 {
            cluster.produce(&topic, partition, &[(format!("{partition}-{number}").as_bytes(), value.as_slice())]);
        }
    }
    let (backend, is_healed) = refusing_backend(|_| true);
    let max_bytes = 16 << 20;
    let module_file = configs::module(&topic, &[backend.address()])
        .set("max_in_flight_bytes", max_bytes)
        .set("max_retry_interval_ms", 500);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file)]);
    let bytes = format!("ktransfer_in_flight_bytes{{module=\"{module}\"}}");
    wait_until(DEADLINE, "the memory is used up", || {
        ktransfer.metrics().value(&bytes).is_some_and(|bytes| max_bytes - (2 << 20) < bytes)
    });
    // Each message waits for its next attempt by now, and is retried several times.
    backend.wait_for_requests(100, DEADLINE);
    assert!(ktransfer.metrics().value(&bytes).unwrap() <= max_bytes);
    let peak_mib = ktransfer.daemon.peak_resident_bytes() >> 20;
    eprintln!("{} MiB of messages: peak of {peak_mib} MiB", (200 * value.len()) >> 20);
    assert!(peak_mib < 100, "{peak_mib} MiB");
    is_healed.store(true, Ordering::SeqCst);
    wait_until(DEADLINE, "everything is stored", || cluster.stored_offsets_sum(&module, &topic, 4) == 200);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn after_a_crash_only_what_was_not_done_is_pushed_again() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("crash", 1), unique("module"));
    let keys: Vec<String> = (0..2_001).map(|number| format!("key-{number}")).collect();
    let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), b"text".as_slice())).collect();
    cluster.produce(&topic, 0, &messages);
    let (backend, is_healed) = refusing_backend(|request| request.key() == "key-0");
    let module_file = || configs::module(&topic, &[backend.address()]).set("worker_num", 32);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file())]);
    // The stored offset does not move, but what is done behind it is stored: 2,000 messages after a gap of one.
    let ahead = format!("/consumers/{module}/ahead/{topic}/0");
    wait_until(DEADLINE, "what is done ahead is stored", || {
        cluster.read(&ahead).is_some_and(|data| data.contains("\"done\":\"1+2000\""))
    });
    assert_eq!(cluster.stored_offset(&module, &topic, 0), Some(0));
    ktransfer.daemon.kill9();
    is_healed.store(true, Ordering::SeqCst);
    let mut ktransfer = Ktransfer::start_ready(cluster, &[(&module, module_file())]);
    wait_until(DEADLINE, "everything is stored", || cluster.stored_offset(&module, &topic, 0) == Some(2_001));
    assert_eq!(n_delivered(&backend), 2_001, "only the refused message was pushed again");
    ktransfer.daemon.stop(STOP_DEADLINE);
}
