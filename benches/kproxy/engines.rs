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

/// Measures all rows, each for `seconds`, or those that have `ROWS` in their name.
pub(crate) fn run(seconds: u32) {
    Measurement::print_heading();
    let rows = Rows { only: std::env::var("ROWS").unwrap_or_default(), seconds };
    rows.of_one_broker();
    rows.of_three_brokers();
}

struct Rows {
    only: String,
    seconds: u32,
}

impl Rows {
    fn of_one_broker(&self) {
        let cluster = Cluster::start(1);
        for partitions in [1, 8, 64, 512] {
            let topics = [cluster.new_topic("bench", partitions)];
            for (number, acks) in LEVELS {
                for in_flight in [1, 8, 64, 512] {
                    self.compare(
                        &cluster,
                        &topics,
                        self.load(in_flight, acks),
                        &format!("{partitions} p. acks={number}"),
                    );
                }
            }
        }
        let large = Load { size: LARGE, ..self.load(64, Acks::Leader) };
        self.compare(&cluster, &[cluster.new_topic("large", 64)], large, "64 p. 10 KiB");
        let topics: Vec<String> = (0..MANY_TOPICS).map(|_| cluster.new_topic("many", 1)).collect();
        self.compare(&cluster, &topics, self.load(64, Acks::Leader), "1,000 topics");
    }

    fn of_three_brokers(&self) {
        let cluster = Cluster::start(3);
        let topics = [cluster.new_topic("replicated", 64)];
        // The brokers' virtual machines compile their code first: the first row is not the slowest.
        engine::run(&cluster.brokers, Engine::Native, &topics, Load { seconds: 5, ..self.load(64, Acks::All) });
        for in_flight in [1, 8, 64, 512] {
            self.compare(&cluster, &topics, self.load(in_flight, Acks::All), "3 brokers acks=-1");
        }
    }

    fn load(&self, in_flight: u32, acks: Acks) -> Load {
        Load { in_flight, size: SMALL, acks, has_keys: true, seconds: self.seconds }
    }

    fn compare(&self, cluster: &Cluster, topics: &[String], load: Load, name: &str) {
        for (engine_name, engine) in ENGINES.into_iter().filter(|_| name.contains(&self.only)) {
            engine::run(&cluster.brokers, engine, topics, load).print(&format!("{engine_name} {name}"), load.in_flight);
        }
    }
}
