//! Measures kmonitor, and its load on its peers, in a large installation: `make bench-kmonitor`, or `cargo bench
//! --bench kmonitor -- [MODULES [PARTITIONS [SECONDS]]]`.
//!
//! The modules have a topic each, and a fifth of them is behind. ZooKeeper and the brokers are programs in this process
//! that count their requests. While kmonitor polls, 50 clients request `/delay` once a second, three scrapers
//! `/metrics` and `/v1/delay` every five seconds, two `/v1/delay?partitions=all` (`/v1 all`), a browser its rows, and
//! 50 clients read `/delay` at 20 KiB a second.
//!
//! Printed are the times of `/delay`, `/metrics` and the page, kmonitor's peak memory and CPU time, and the requests in
//! each cycle and in the busiest second.

#![allow(clippy::print_stdout, reason = "the benchmark prints its results")]

#[path = "../../tests/stories/harness/mod.rs"]
mod harness;
mod load;
#[path = "../../src/kafka/testkit/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    reason = "the tests use more of it"
)]
mod testkit;

use std::time::{Duration, Instant};

use harness::fake_zookeeper::{FakeZooKeeper, Nodes, ONE_OF};
use harness::http::Client;
use harness::{Kmonitor, configs};
use kafka_http_wrapper::daemon::raise_open_files;
use testkit::{ApiKey, TestCluster};

use load::{Load, Times};

const BROKERS: usize = 3;
/// The requests that are counted.
const APIS: [ApiKey; 4] = [ApiKey::ApiVersions, ApiKey::Metadata, ApiKey::ListOffsets, ApiKey::Fetch];
/// Deadline for the first complete reading.
const DEADLINE: Duration = Duration::from_secs(300);

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    let (modules, partitions, seconds) = (number(0, 1_000), number(1, 100), number(2, 30));
    raise_open_files();
    println!("{modules} modules of {partitions} partitions, {BROKERS} brokers, one of {ONE_OF} modules is behind");

    let cluster = TestCluster::start(BROKERS);
    for index in 0..modules {
        let topic = format!("topic_{index}");
        cluster.create_topic(&topic, partitions);
        let behind = i32::try_from(partitions).expect("few partitions");
        for partition in 0..behind {
            cluster.append_record(&topic, partition, "k", "v");
        }
    }
    let brokers = cluster.bootstrap();
    let zookeeper = FakeZooKeeper::start(Nodes {
        modules,
        partitions,
        brokers,
        has_multi_read: std::env::var_os("OLD_ZOOKEEPER").is_none(),
    });
    let config = configs::kmonitor_for("", &[("bench", &zookeeper.address)]);
    let started = Instant::now();
    let monitor = Kmonitor::start(&config);
    let is_complete = || (monitor.get("/readyz").status == 200).then_some(());
    harness::poll(DEADLINE, is_complete).expect("kmonitor reads everything");
    let rss = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let first = started.elapsed().as_secs_f64();
    println!("first reading after {first:.1} s; memory {}", rss(monitor.daemon.resident_bytes()));

    let mut client = Client::connect(&monitor.address).expect("kmonitor listens");
    for path in ["/delay", "/metrics", "/v1/delay", "/v1/delay?partitions=all", "/"] {
        let began = Instant::now();
        let answer = client.request("GET", path, &[("Accept", "text/html")], b"").expect("kmonitor answers");
        let took = began.elapsed().as_secs_f64() * 1e3;
        println!("{path:<24} {} {:>9} bytes, {took:.1} ms for the first client", answer.status, answer.body.len());
    }

    let counters = || Counters::read(&zookeeper, &cluster, &monitor);
    let (before, cpu) = (counters(), monitor.daemon.cpu_time());
    let duration = Duration::from_secs(seconds as u64);
    let (times, busiest) = std::thread::scope(|scope| {
        let busiest = scope.spawn(|| busiest_second(&zookeeper, &cluster, duration));
        let times = Load::new(&monitor.address).run(duration);
        (times, busiest.join().expect("counting does not panic"))
    });
    let (after, cpu) = (counters(), monitor.daemon.cpu_time() - cpu);
    Times::print(&times);
    println!(
        "\npeak memory {}, CPU {:.2} of a core, {} threads",
        rss(monitor.daemon.peak_resident_bytes()),
        cpu.as_secs_f64() / seconds as f64,
        monitor.daemon.threads()
    );
    after.print_since(&before);
    println!("most requests in a second: ZooKeeper {}, brokers {}", busiest.0, busiest.1);
}

/// Returns the largest number of requests to ZooKeeper, and to all brokers, in a second of `duration`.
fn busiest_second(zookeeper: &FakeZooKeeper, cluster: &TestCluster, duration: Duration) -> (u64, u64) {
    let brokers = || APIS.into_iter().map(|api| cluster.requests(api)).sum::<u64>();
    let end = Instant::now() + duration;
    let mut most = (0, 0);
    while Instant::now() < end {
        let before = (zookeeper.requests().0, brokers());
        std::thread::sleep(Duration::from_secs(1));
        most.0 = most.0.max(zookeeper.requests().0 - before.0);
        most.1 = most.1.max(brokers() - before.1);
    }
    most
}

/// What the peers counted, and the cycles of kmonitor.
struct Counters {
    zookeeper: (u64, u64),
    brokers: Vec<(ApiKey, u64)>,
    cycles: f64,
}

impl Counters {
    fn read(zookeeper: &FakeZooKeeper, cluster: &TestCluster, monitor: &Kmonitor) -> Counters {
        let metrics = monitor.get("/metrics").text();
        let polls = metrics.lines().filter(|line| line.starts_with("kmonitor_polls_total"));
        Counters {
            zookeeper: zookeeper.requests(),
            brokers: APIS.into_iter().map(|api| (api, cluster.requests(api))).collect(),
            cycles: polls.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum(),
        }
    }

    fn print_since(&self, before: &Counters) {
        let cycles = (self.cycles - before.cycles).max(1.0);
        let each = |after: u64, before: u64| (after - before) as f64 / cycles;
        let ((requests, nodes), (old_requests, old_nodes)) = (self.zookeeper, before.zookeeper);
        println!(
            "{cycles} cycles; requests in each: ZooKeeper {:.0}, for {:.0} nodes",
            each(requests, old_requests),
            each(nodes, old_nodes)
        );
        for ((api, count), (_, earlier)) in self.brokers.iter().zip(&before.brokers) {
            println!("  {api:?} {:.1}", each(*count, *earlier));
        }
    }
}
