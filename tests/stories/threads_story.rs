//! How many threads a kproxy has at most, and who they are.
#![cfg(feature = "librdkafka")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::http::{self, Client};
use crate::harness::{Cluster, Daemon, Program, free_port, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const MOST_THREADS: usize = 32;
const CLIENTS: usize = 64;

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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
    kproxy.wait_until_ready(&address, DEADLINE);

    let (stop, ok) = (AtomicBool::new(false), AtomicUsize::new(0));
    let peak = std::thread::scope(|scope| {
        // A story that fails ends its clients, too.
        let ending = SetAtEnd(&stop);
        let watcher = scope.spawn({
            let (kproxy, stop) = (&kproxy, &stop);
            move || {
                let mut peak = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let names = kproxy.thread_names();
                    if names.len() > peak.len() {
                        peak = names;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                peak
            }
        });
        for number in 0..CLIENTS {
            let (stop, ok, address, topic) = (&stop, &ok, &address, &topic);
            scope.spawn(move || {
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
                            Ok(answer) if answer.status == 200 => drop(ok.fetch_add(1, Ordering::Relaxed)),
                            Ok(_) => {}
                            Err(_) => break,
                        }
                    }
                }
            });
        }
        let more = |by: usize| {
            let before = ok.load(Ordering::Relaxed);
            wait_until(DEADLINE, "commits go on", || ok.load(Ordering::Relaxed) >= before + by);
        };
        more(2_000);
        cluster.kafka_servers[1].kill9();
        more(1_000);
        cluster.kafka_servers[1].restart();
        more(1_000);
        // All of them, too: librdkafka then goes back to the hosts it was given.
        for broker in &cluster.kafka_servers {
            broker.kill9();
        }
        wait_until(DEADLINE, "kproxy notices", || {
            http::get(&format!("http://{address}/readyz")).is_ok_and(|answer| answer.status == 503)
        });
        for broker in &cluster.kafka_servers {
            broker.restart();
        }
        more(500);
        drop(ending);
        watcher.join().expect("it does not panic")
    });
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for name in &peak {
        *counted.entry(name).or_default() += 1;
    }
    eprintln!("{} threads at most: {counted:?}", peak.len());
    eprintln!("in the end: {:?}", kproxy.thread_names());
    assert!(peak.len() <= MOST_THREADS, "{} threads: {counted:?}", peak.len());
    kproxy.end_well(Duration::from_secs(12));
}
