//! Kafka's own command line client: a consumer of a group.

use super::jars::{Edition, java};
use super::process::{Process, folder};

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
    let mut command = java(edition, ["-Xmx128m", "-XX:TieredStopAtLevel=1"]);
    command.args(["org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", brokers]);
    command.args(["--topic", topic, "--group", group, "--from-beginning"]);
    command.args(properties.iter().flat_map(|property| ["--consumer-property", property]));
    Process::start("the console consumer", command, &folder("consumer").join("output"))
}
