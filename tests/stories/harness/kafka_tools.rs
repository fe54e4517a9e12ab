//! Kafka's own command line clients: a consumer of a group, and a producer for brokers of every version.

use std::time::Duration;

use super::jars::{Edition, java};
use super::process::{Process, folder};

/// Deadline for a producer that ends by itself, with the start of its JVM.
const DEADLINE: Duration = Duration::from_secs(60);

/// Starts a consumer of a group, which commits its offsets every 200 ms; dropping the value kills it.
pub(crate) fn start_consumer(brokers: &str, group: &str, topic: &str) -> Process {
    start_consumer_with(brokers, group, topic, "auto.commit.interval.ms=200")
}

/// Starts a consumer of a group that never commits; dropping the value kills it.
pub(crate) fn start_consumer_without_commits(brokers: &str, group: &str, topic: &str) -> Process {
    start_consumer_with(brokers, group, topic, "enable.auto.commit=false")
}

fn start_consumer_with(brokers: &str, group: &str, topic: &str, property: &str) -> Process {
    start_consumer_of(Edition::WithZooKeeper, brokers, group, topic, &[property, "session.timeout.ms=6000"])
}

/// Starts a consumer of a group of the consumer protocol (KIP-848) of Kafka 4.x, which never commits; dropping the
/// value kills it.
pub(crate) fn start_new_consumer_without_commits(brokers: &str, group: &str, topic: &str) -> Process {
    let properties = ["enable.auto.commit=false", "group.protocol=consumer"];
    start_consumer_of(Edition::Kraft, brokers, group, topic, &properties)
}

fn start_consumer_of(edition: Edition, brokers: &str, group: &str, topic: &str, properties: &[&str]) -> Process {
    let mut command = java(edition, &["-Xmx128m", "-XX:TieredStopAtLevel=1"]);
    command.args(["org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", brokers]);
    command.args(["--topic", topic, "--group", group, "--from-beginning"]);
    command.args(properties.iter().flat_map(|property| ["--consumer-property", property]));
    Process::start("the console consumer", command, &folder("consumer").join("output"))
}

/// Appends `count` messages of 10 bytes to a topic.
pub(crate) fn append(brokers: &str, topic: &str, count: u32) {
    let mut command = java(Edition::WithZooKeeper, &["-Xmx128m", "-XX:TieredStopAtLevel=1"]);
    command.args(["org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--record-size", "10"]);
    command.args(["--num-records", &count.to_string(), "--throughput", "-1", "--producer-props"]);
    command.arg(format!("bootstrap.servers={brokers}"));
    let mut producer = Process::start("the performance producer", command, &folder("producer").join("output"));
    let status = producer.wait(DEADLINE);
    assert!(status.success(), "the performance producer: {status}");
}
