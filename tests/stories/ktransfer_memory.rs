//! ktransfer: its memory while backends refuse messages of unusual shapes: huge ones, ones of many record headers, and
//! ones of many partitions.
//!
//! `HELD_PARTITIONS` is the number of partitions of the last story (default 100), `MESSAGE_MIB` the size of the
//! messages of the first one (default 16; 64 is the largest that ktransfer reads).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::append::append;
use crate::harness::{
    Backend, BackendAnswer, Cluster, ConfigFile, Ktransfer, STOP_DEADLINE, cluster, configs, unique, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// What ktransfer takes without messages, at most: its threads, buffers and connections.
const BASE_MIB: u64 = 48;
const MIB: usize = 1 << 20;

/// A module whose backend refuses everything until it is healed.
struct Refused {
    topic: String,
    module: String,
    backend: Backend,
    is_healed: Arc<AtomicBool>,
    ktransfer: Ktransfer,
}

impl Refused {
    fn start(cluster: &Cluster, topic: String, change: impl FnOnce(ConfigFile) -> ConfigFile) -> Refused {
        let is_healed = Arc::new(AtomicBool::new(false));
        let healed = Arc::clone(&is_healed);
        let answer = move |_: &_| BackendAnswer::status(if healed.load(Ordering::SeqCst) { 200 } else { 500 });
        let backend = Backend::start_with(answer);
        let module = unique("memory");
        let file = configs::module(&topic, &[backend.address()]).set("max_retry_interval_ms", 500);
        let ktransfer = Ktransfer::start_ready(cluster, &[(&module, change(file))]);
        Refused { topic, module, backend, is_healed, ktransfer }
    }

    fn in_flight_bytes(&self) -> u64 {
        let name = format!("ktransfer_in_flight_bytes{{module=\"{}\"}}", self.module);
        self.ktransfer.metrics().value(&name).unwrap_or(0)
    }

    /// Returns the peak of the memory so far in MiB.
    fn peak_mib(&self) -> u64 {
        self.ktransfer.daemon.peak_resident_bytes() >> 20
    }

    /// Lets the backend take everything, waits until all is stored and returns the peak.
    fn heal(mut self, cluster: &Cluster, n_messages: i64, n_partitions: i32) -> u64 {
        self.is_healed.store(true, Ordering::SeqCst);
        wait_until(DEADLINE, "everything is stored", || {
            cluster.stored_offsets_sum(&self.module, &self.topic, n_partitions) == n_messages
        });
        let peak = self.peak_mib();
        self.ktransfer.daemon.stop(STOP_DEADLINE);
        peak
    }
}

fn number_from_environment(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn huge_messages_stay_within_the_memory_of_their_module() {
    const N: i64 = 5;
    let cluster = cluster();
    let topic = cluster.new_topic_with("huge", 2, 1, &[("max.message.bytes", "70000000")]);
    let size_mib = number_from_environment("MESSAGE_MIB", 16);
    // Without the record's own fields.
    let value = vec![b'x'; size_mib * MIB - 100];
    for number in 0..N {
        append(cluster, &topic, (number % 2) as i32, &format!("k{number}"), &value, &[]);
    }
    let max_mib = 4 * size_mib;
    let refused = Refused::start(cluster, topic, |file| file.set("max_in_flight_bytes", max_mib * MIB));
    refused.backend.wait_for_requests(6, DEADLINE);
    let held = refused.peak_mib();
    let peak = refused.heal(cluster, N, 2);
    eprintln!(
        "messages of {size_mib} MiB, {max_mib} MiB allowed: peak {held} MiB while refused, {peak} MiB at the end"
    );
    assert!(peak < max_mib as u64 + BASE_MIB, "{peak} MiB");
}

#[test]
fn messages_of_99000_headers_stay_within_the_memory_of_their_module() {
    const N: i64 = 60;
    let cluster = cluster();
    let topic = cluster.new_topic_with("headers", 1, 1, &[("max.message.bytes", "70000000")]);
    let headers: Vec<String> = (0..99_000).map(|number| format!("{number:x}")).collect();
    for number in 0..N {
        append(cluster, &topic, 0, &format!("k{number}"), b"value", &headers);
    }
    let refused = Refused::start(cluster, topic, |file| file.set("max_in_flight_bytes", 16 * MIB));
    // Those that are held wait for their next attempt, and are retried several times.
    refused.backend.wait_for_requests(200, DEADLINE);
    assert!(refused.in_flight_bytes() <= 16 * MIB as u64);
    let held = refused.peak_mib();
    let peak = refused.heal(cluster, N, 1);
    eprintln!("99,000 headers a message, 16 MiB allowed: peak {held} MiB while refused, {peak} MiB at the end");
    assert!(peak < 16 + BASE_MIB, "{peak} MiB");
}

#[test]
fn partitions_that_are_all_held_up_stay_within_the_memory_of_their_module() {
    let n_partitions = number_from_environment("HELD_PARTITIONS", 100) as i32;
    let cluster = cluster();
    let topic = cluster.new_topic("partitions", n_partitions);
    let value = vec![b'x'; 100_000];
    for partition in 0..n_partitions {
        cluster.produce(&topic, partition, &[(b"a", &value), (b"b", &value), (b"c", &value)]);
    }
    let refused = Refused::start(cluster, topic, |file| file.set("max_in_flight_bytes", 16 * MIB));
    wait_until(DEADLINE, "the memory is used up", || refused.in_flight_bytes() > 15 * MIB as u64);
    refused.backend.wait_for_requests(200, DEADLINE);
    let held = refused.peak_mib();
    let peak = refused.heal(cluster, 3 * i64::from(n_partitions), n_partitions);
    eprintln!("{n_partitions} partitions held, 16 MiB allowed: peak {held} MiB while refused, {peak} MiB at the end");
    assert!(peak < 16 + BASE_MIB, "{peak} MiB");
}
