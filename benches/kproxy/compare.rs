//! Compares two builds of kproxy on common traffic: random keys over many partitions with one broker and with three,
//! messages without a key, and requests that do not use Kafka.
//!
//! Both builds run at the same time against the same broker, and one of them at a time gets the load. The order of the
//! builds alternates, so that a machine that slows down does not favour one build. The medians of all rounds are
//! compared.

use std::path::Path;

use crate::harness::{Cluster, Kproxy, Program, configs, unique};
use crate::load::Measurement;
use crate::{SMALL, load, wait_for_commits, write_script};

/// Number of runs of each build for each row of the table.
const ROUNDS: usize = 4;
/// Number of different random keys.
const KEYS: u32 = 1_000_000;

/// Requests per second, median latency in ms, and CPU time of kproxy per request in us.
type Figures = [f64; 3];

/// Two builds with the same cluster.
struct Comparison<'a> {
    cluster: &'a Cluster,
    builds: [Kproxy; 2],
    seconds: u32,
    connections: &'a [u32],
}

/// Prints the figures of `baseline/kproxy_bin` and of this build, and the ratios of this build to the baseline.
pub(crate) fn run(baseline: &Path, seconds: u32, connections: &[u32]) {
    println!("baseline: {}; medians of {ROUNDS} runs of {seconds} s each, in turns\n", baseline.display());
    print_heading();
    {
        let cluster = Cluster::start(1);
        let comparison = Comparison::new(&cluster, baseline, seconds, connections);
        for (has_keys, partitions) in [(true, 64), (true, 8), (false, 8)] {
            let topic = cluster.new_topic("bench", partitions);
            let name = format!("{}, {partitions} partitions", if has_keys { "random keys" } else { "no key" });
            for acks in [1, -1] {
                comparison.commits(&format!("{name}, {acks:>2}"), &topic, acks, has_keys);
            }
        }
        comparison.without_kafka();
    }
    let cluster = Cluster::start(3);
    let topic = unique("replicated");
    cluster.create_replicated_topic(&topic, 64, 3);
    Comparison::new(&cluster, baseline, seconds, connections).commits("3 brokers, keys, 64 p., -1", &topic, -1, true);
}

impl<'a> Comparison<'a> {
    fn new(cluster: &'a Cluster, baseline: &Path, seconds: u32, connections: &'a [u32]) -> Self {
        let config = || configs::kproxy(cluster).set("read_timeout_ms", 10_000).set("write_timeout_ms", 10_000);
        let builds = [Kproxy::start_binary(Program::Kproxy.in_folder(baseline), config()), Kproxy::start(config())];
        Comparison { cluster, builds, seconds, connections }
    }

    /// Prints a row for each number of connections that post messages to `topic`.
    fn commits(&self, name: &str, topic: &str, acks: i32, has_keys: bool) {
        let path = format!("/commit?topic={topic}&acks={acks}");
        self.builds.iter().for_each(|kproxy| wait_for_commits(kproxy, &path));
        let lua = if has_keys { random_keys(&path) } else { String::new() };
        self.rows(name, &path, |kproxy| Some(write_script(kproxy, SMALL, &lua)));
    }

    /// Prints the rows of the same server without Kafka: `GET /healthz`.
    fn without_kafka(&self) {
        self.rows("no Kafka", "/healthz", |_| None);
    }

    fn rows(&self, name: &str, path: &str, script: impl Fn(&Kproxy) -> Option<String>) {
        for &count in self.connections {
            let figures = medians_in_turns(&self.builds, |kproxy| {
                let script = script(kproxy);
                let arguments: Vec<&str> = script.iter().flat_map(|script| ["-s", script]).collect();
                let processes = (&kproxy.daemon, &self.cluster.kafka_servers[0]);
                let measured = load::run(processes, &kproxy.url(path), &arguments, count, self.seconds);
                assert!(measured.errors.is_empty(), "{name}, {count} connections:{}", measured.errors);
                in_numbers(&measured)
            });
            print_row(name, count, figures);
        }
    }
}

/// Returns the Lua code for wrk that adds a random key to the query of `path` in every request.
fn random_keys(path: &str) -> String {
    format!("request = function() return wrk.format(nil, '{path}&key=' .. math.random({KEYS})) end\n")
}

/// Measures both builds [`ROUNDS`] times in alternating order; returns the medians of each build.
fn medians_in_turns(builds: &[Kproxy; 2], measure: impl Fn(&Kproxy) -> Figures) -> [Figures; 2] {
    let mut runs: [Vec<Figures>; 2] = Default::default();
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let build = (round + turn) % 2;
            runs[build].push(measure(&builds[build]));
        }
    }
    runs.map(medians)
}

fn in_numbers(measured: &Measurement) -> Figures {
    let p50 = &measured.p50;
    let (number, unit) = p50.split_at(p50.find(|letter: char| letter.is_alphabetic()).unwrap_or(p50.len()));
    let millis = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1_000.0,
        _ => panic!("wrk prints a latency in {unit:?}"),
    };
    let number: f64 = number.parse().expect("wrk prints a number");
    [measured.rate, number * millis, measured.cpu_us[0].unwrap_or_default()]
}

/// Returns the median of each figure over all runs.
fn medians(runs: Vec<Figures>) -> Figures {
    std::array::from_fn(|figure| {
        let mut values: Vec<f64> = runs.iter().map(|run| run[figure]).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
    })
}

/// Prints the heading of the table whose rows [`print_row`] prints.
fn print_heading() {
    println!("{:<28} {:>6} | {:>32} | {:>32} | {:>20}", "", "", "baseline", "this build", "this / baseline");
    let columns = format!("{:>10} {:>10} {:>10}", "requests/s", "p50 ms", "CPU us");
    println!("{:<28} {:>6} | {columns} | {columns} | {:>6} {:>6} {:>6}", "", "conns", "rate", "p50", "CPU");
}

fn print_row(name: &str, connections: u32, [baseline, this]: [Figures; 2]) {
    let columns = |[rate, p50, cpu]: Figures| format!("{rate:>10.0} {p50:>10.2} {cpu:>10.1}");
    let [rate, p50, cpu] = std::array::from_fn(|figure| this[figure] / baseline[figure]);
    let ratios = format!("{rate:>6.2} {p50:>6.2} {cpu:>6.2}");
    println!("{name:<28} {connections:>6} | {} | {} | {ratios}", columns(baseline), columns(this));
}
