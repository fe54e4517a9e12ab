//! How many threads a kproxy has at most, and who they are.
#![cfg(feature = "librdkafka")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::http::{self, Client};
use crate::harness::{Cluster, Daemon, Program, free_port, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const MAX_THREADS: usize = 32;
/// As long as no broker at all can be reached, each of the three producers tries the three hosts of the configuration besides.
const MAX_WITHOUT_BROKERS: usize = MAX_THREADS + 9;
const CLIENTS: usize = 64;

/// What happens to the brokers meanwhile.
const PHASES: [&str; 4] = ["from the start on", "one broker dies", "it comes back", "none is left, then all"];

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks at the threads until told to stop; gives the names of the most there were in each phase.
fn watch(kproxy: &Daemon, phase: &AtomicUsize, stop: &AtomicBool) -> [Vec<String>; PHASES.len()] {
    let mut peaks: [Vec<String>; PHASES.len()] = Default::default();
    while !stop.load(Ordering::Relaxed) {
        let names = kproxy.thread_names();
        let peak = &mut peaks[phase.load(Ordering::Relaxed)];
        if names.len() > peak.len() {
            *peak = names;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    peaks
}

/// Posts with every level of acks, to a topic that exists and to ones that do not, on ever new connections.
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

#[test]
fn a_kproxy_before_three_brokers_has_at_most_32_threads_under_any_load() {
    let cluster = Cluster::start(3);
    let topic = unique("threads");
    cluster.create_replicated_topic(&topic, 6, 3);
    let port = free_port();
    let hosts: String = cluster.brokers.split(',').map(|host| format!(" - {host}\n")).collect();
    let file =
        format!("log_dir: ./log\nport: {port}\nread_timeout_ms: 5000\ncommit_timeout_ms: 5000\nbroker_hosts:\n{hosts}");
    let mut kproxy = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &file)]);
    let address = format!("127.0.0.1:{port}");

    let (phase, stop, stored) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let peaks = std::thread::scope(|scope| {
        // A story that fails ends its clients, too.
        let ending = SetAtEnd(&stop);
        let watching = scope.spawn(|| watch(&kproxy, &phase, &stop));
        for number in 0..CLIENTS {
            let (address, topic, stop, stored) = (&address, &topic, &stop, &stored);
            scope.spawn(move || post(address, topic, number, stop, stored));
        }
        let more = |by: usize| {
            let before = stored.load(Ordering::Relaxed);
            wait_until(DEADLINE, "commits go on", || stored.load(Ordering::Relaxed) >= before + by);
        };
        let next_phase = || phase.store(phase.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        more(2_000);
        next_phase();
        cluster.kafka_servers[1].kill9();
        more(1_000);
        next_phase();
        cluster.kafka_servers[1].restart();
        more(1_000);
        next_phase();
        cluster.kafka_servers.iter().for_each(|broker| broker.kill9());
        let readiness = || http::get(&format!("http://{address}/readyz"));
        wait_until(DEADLINE, "kproxy notices", || readiness().is_ok_and(|answer| answer.status == 503));
        cluster.kafka_servers.iter().for_each(|broker| broker.restart());
        more(500);
        drop(ending);
        watching.join().expect("it does not panic")
    });
    for (name, peak) in PHASES.iter().zip(&peaks) {
        let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
        peak.iter().for_each(|name| *counted.entry(name).or_default() += 1);
        eprintln!("{name}: {} threads at most: {counted:?}", peak.len());
    }
    eprintln!("in the end: {:?}", kproxy.thread_names());
    let is_rdk = |name: &&String| name.starts_with("rdk:");
    assert!(peaks[0].iter().any(|name| is_rdk(&name)), "the names are not what they were: {:?}", peaks[0]);
    for (number, (name, peak)) in PHASES.iter().zip(&peaks).enumerate() {
        let most = if number == PHASES.len() - 1 { MAX_WITHOUT_BROKERS } else { MAX_THREADS };
        assert!(peak.len() <= most, "{name}: {} threads: {peak:?}", peak.len());
    }
    kproxy.end_well(Duration::from_secs(12));
}
