//! Two builds of kproxy in turns, on the traffic that users have: random keys over many partitions, and no key.
//!
//! Both run at the same time against the same broker, and one of them gets the load. The order alternates, so that a
//! machine that slows down does not favour one; the medians of all rounds are compared.

use std::path::Path;

use crate::harness::{Cluster, Kproxy, Program, configs};
use crate::load::Measurement;
use crate::{SMALL, load, wait_for_commits, write_script};

/// Runs of each build for each row.
const ROUNDS: usize = 4;
/// Partitions of the topic with random keys, and of the topic without keys.
const PARTITIONS: [i32; 2] = [64, 8];
/// Distinct keys.
const KEYS: u32 = 1_000_000;

/// Prints the figures of `baseline/kproxy_bin` and of this build, and their ratios.
pub(crate) fn run(baseline: &Path, seconds: u32, connections: &[u32]) {
    let cluster = Cluster::start(1);
    let config = || configs::kproxy(&cluster).set("read_timeout_ms", 10_000).set("write_timeout_ms", 10_000);
    let builds = [Kproxy::start_binary(Program::Kproxy.in_folder(baseline), config()), Kproxy::start(config())];
    println!("baseline: {}; medians of {ROUNDS} runs of {seconds} s each, in turns\n", baseline.display());
    println!(
        "{:<28} {:>6} | {:>32} | {:>32} | {:>20}\n{:<28} {:>6} | {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10} | {:>6} {:>6} {:>6}",
        "",
        "",
        "baseline",
        "this build",
        "this / baseline",
        "",
        "conns",
        "requests/s",
        "p50 ms",
        "CPU us",
        "requests/s",
        "p50 ms",
        "CPU us",
        "rate",
        "p50",
        "CPU"
    );
    for (name, partitions) in ["random keys", "no key"].into_iter().zip(PARTITIONS) {
        let topic = cluster.new_topic("bench", partitions);
        for acks in [1, -1] {
            let path = format!("/commit?topic={topic}&acks={acks}");
            builds.iter().for_each(|kproxy| wait_for_commits(kproxy, &path));
            let lua = if name == "no key" {
                String::new()
            } else {
                format!("request = function() return wrk.format(nil, '{path}&key=' .. math.random({KEYS})) end\n")
            };
            let measure = |kproxy: &Kproxy, connections| {
                let script = write_script(kproxy, SMALL, &lua);
                let processes = (&kproxy.daemon, &cluster.kafka_servers[0]);
                load::run(processes, &kproxy.url(&path), &["-s", &script], connections, seconds)
            };
            for &count in connections {
                let mut figures: [Vec<[f64; 3]>; 2] = Default::default();
                for round in 0..ROUNDS {
                    for turn in 0..2 {
                        let build = (round + turn) % 2;
                        let measured = measure(&builds[build], count);
                        assert!(measured.errors.is_empty(), "{name}, {count} connections:{}", measured.errors);
                        figures[build].push(in_numbers(&measured));
                    }
                }
                print_row(&format!("{name}, {partitions} partitions, {acks:>2}"), count, figures.map(medians));
            }
        }
    }
}

/// Requests per second, median latency in ms, CPU time of kproxy per request in us.
fn in_numbers(measured: &Measurement) -> [f64; 3] {
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

fn medians(runs: Vec<[f64; 3]>) -> [f64; 3] {
    std::array::from_fn(|figure| {
        let mut values: Vec<f64> = runs.iter().map(|run| run[figure]).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
    })
}

fn print_row(name: &str, connections: u32, [baseline, this]: [[f64; 3]; 2]) {
    let [rate, p50, cpu] = std::array::from_fn(|figure| this[figure] / baseline[figure]);
    println!(
        "{name:<28} {connections:>6} | {:>10.0} {:>10.2} {:>10.1} | {:>10.0} {:>10.2} {:>10.1} | {rate:>6.2} {p50:>6.2} {cpu:>6.2}",
        baseline[0], baseline[1], baseline[2], this[0], this[1], this[2]
    );
}
