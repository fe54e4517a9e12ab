//! Compares the engines without HTTP, with random keys: `ENGINES=1 make bench`.
//!
//! The rows of the engines alternate, so that a change of the machine's speed affects all of them.

use kafka_http_wrapper::broker::{Acks, Engine};

use crate::engine::{self, Load};
use crate::harness::Cluster;
use crate::load::Measurement;
use crate::{LARGE, SMALL};

const ENGINES: [(&str, Engine); 2] = [("native", Engine::Native), ("kafka-rust", Engine::KafkaRust)];
const LEVELS: [(i32, Acks); 3] = [(0, Acks::None), (1, Acks::Leader), (-1, Acks::All)];
const MANY_TOPICS: usize = 1_000;

/// Measures all rows, each for `seconds`.
pub(crate) fn run(seconds: u32) {
    Measurement::print_heading();
    let only: Option<i32> = std::env::var("PARTITIONS").ok().and_then(|text| text.parse().ok());
    {
        let cluster = Cluster::start(1);
        for partitions in [1, 8, 64, 512].into_iter().filter(|count| only.is_none_or(|only| only == *count)) {
            let topics = [cluster.new_topic("bench", partitions)];
            for (number, acks) in LEVELS {
                for in_flight in [1, 8, 64, 512] {
                    let load = Load { in_flight, size: SMALL, acks, has_keys: true, seconds };
                    compare(&cluster, &topics, load, &format!("{partitions} p. acks={number}"));
                }
            }
        }
        if only.is_none() {
            let topics = [cluster.new_topic("large", 64)];
            let load = Load { in_flight: 64, size: LARGE, acks: Acks::Leader, has_keys: true, seconds };
            compare(&cluster, &topics, load, "64 p. 10 KiB");
            let topics: Vec<String> = (0..MANY_TOPICS).map(|_| cluster.new_topic("many", 1)).collect();
            let load = Load { in_flight: 64, size: SMALL, acks: Acks::Leader, has_keys: true, seconds };
            compare(&cluster, &topics, load, "1,000 topics");
        }
    }
    if only.is_none() {
        let cluster = Cluster::start(3);
        let topics = [cluster.new_topic("replicated", 64)];
        for in_flight in [1, 8, 64, 512] {
            let load = Load { in_flight, size: SMALL, acks: Acks::All, has_keys: true, seconds };
            compare(&cluster, &topics, load, "3 brokers acks=-1");
        }
    }
}

fn compare(cluster: &Cluster, topics: &[String], load: Load, name: &str) {
    for (engine_name, engine) in ENGINES {
        engine::run(&cluster.brokers, engine, topics, load).print(&format!("{engine_name} {name}"), load.in_flight);
    }
}
