//! The number of threads of a kproxy, while brokers are killed and started.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::http::Client;
use crate::harness::{Cluster, Daemon, Kproxy, STOP_DEADLINE, SetOnDrop, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const MAX_THREADS: usize = 24;
const CLIENTS: usize = 64;

/// The states of the brokers, in the order in which [`run_phases`] causes them.
const PHASES: [&str; 4] = ["all are up", "one is killed", "it is up again", "all are killed and started again"];

/// Reads the thread names every 2 ms until `stop` is set; returns the longest list of each phase.
fn sample(kproxy: &Daemon, phase: &AtomicUsize, stop: &AtomicBool) -> [Vec<String>; PHASES.len()] {
    let mut peaks: [Vec<String>; PHASES.len()] = Default::default();
    while !stop.load(Ordering::Relaxed) {
        let names = kproxy.thread_names();
        let peak = &mut peaks[phase.load(Ordering::Relaxed)];
        // Later lists replace earlier ones: a thread has the name of its parent for a moment.
        if names.len() >= peak.len() {
            *peak = names;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    peaks
}

/// Posts at every acks level until `stop` is set, to `topic` and, in every tenth request, to an unknown topic. Opens a
/// new connection after 20 requests.
fn post(address: &str, topic: &str, number: usize, stop: &AtomicBool, stored: &AtomicUsize) {
    let mut round = number;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::connect(address) else { continue };
        for _ in 0..20 {
            round += 1;
            let acks = ["0", "1", "-1"][round % 3];
            let path = match round % 10 {
                0 => format!("/commit?topic=unknown_{number}_{round}&acks={acks}"),
                _ => format!("/commit?topic={topic}&acks={acks}&key={round}"),
            };
            match client.post(&path, b"some bytes") {
                Ok(answer) if answer.status == 200 => drop(stored.fetch_add(1, Ordering::Relaxed)),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

/// Posts over [`CLIENTS`] connections during all [`PHASES`]; returns the longest list of thread names of each phase.
fn run_phases(cluster: &Cluster, kproxy: &Kproxy, topic: &str) -> [Vec<String>; PHASES.len()] {
    let (phase, stop, stored) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let stop_at_end = SetOnDrop(&stop);
        let sampling = scope.spawn(|| sample(&kproxy.daemon, &phase, &stop));
        for number in 0..CLIENTS {
            let (address, stop, stored) = (&kproxy.address, &stop, &stored);
            scope.spawn(move || post(address, topic, number, stop, stored));
        }
        let wait_for_stored = |n_more: usize| {
            let before = stored.load(Ordering::Relaxed);
            wait_until(DEADLINE, "commits succeed", || stored.load(Ordering::Relaxed) >= before + n_more);
        };
        let next_phase = || phase.fetch_add(1, Ordering::Relaxed);
        wait_for_stored(2_000);
        next_phase();
        cluster.kafka_servers[1].kill9();
        wait_for_stored(1_000);
        next_phase();
        cluster.kafka_servers[1].restart();
        wait_for_stored(1_000);
        next_phase();
        cluster.kafka_servers.iter().for_each(|broker| broker.kill9());
        wait_until(DEADLINE, "kproxy is not ready", || kproxy.readiness().0 == 503);
        std::thread::scope(|scope| {
            cluster.kafka_servers.iter().for_each(|broker| drop(scope.spawn(|| broker.restart())));
        });
        wait_for_stored(500);
        drop(stop_at_end);
        sampling.join().expect("sampling does not panic")
    })
}

#[test]
fn a_kproxy_with_three_brokers_has_at_most_24_threads_under_load() {
    let cluster = Cluster::start(3);
    let topic = unique("threads");
    cluster.create_replicated_topic(&topic, 6, 3);
    // The configuration has no `admin_port`, since the server of that port would add a thread.
    let config =
        configs::kproxy(&cluster).remove("admin_port").set("read_timeout_ms", 5000).set("commit_timeout_ms", 5000);
    let mut kproxy = Kproxy::start(config);
    let peaks = run_phases(&cluster, &kproxy, &topic);
    for (name, peak) in PHASES.iter().zip(&peaks) {
        let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
        peak.iter().for_each(|name| *counted.entry(name).or_default() += 1);
        eprintln!("{name}: at most {} threads: {counted:?}", peak.len());
    }
    eprintln!("at the end: {:?}", kproxy.daemon.thread_names());
    let is_sender = |name: &String| name.starts_with("kafka-") && name.contains("acks");
    assert_eq!(peaks[0].iter().filter(|name| is_sender(name)).count(), 9, "3 brokers, 3 levels: {:?}", peaks[0]);
    for (name, peak) in PHASES.iter().zip(&peaks) {
        assert!(peak.len() <= MAX_THREADS, "{name}: {} threads: {peak:?}", peak.len());
    }
    kproxy.daemon.stop(STOP_DEADLINE);
}
