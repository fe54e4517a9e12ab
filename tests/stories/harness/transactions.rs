//! The performance producer of Kafka's tools, which appends in transactions.

use std::time::Duration;

use super::jars::{Edition, java};
use super::process::{Process, folder};
use super::{Cluster, unique};

/// Deadline for a producer that ends by itself, with the start of its JVM.
const DEADLINE: Duration = Duration::from_secs(60);

/// Starts a producer that appends `count` messages of 10 bytes to a topic, `per_second` of them, in transactions of
/// `transaction_ms`. A transaction without an end is aborted by the broker after `timeout_ms`.
pub(crate) fn start_transactions(
    cluster: &Cluster,
    topic: &str,
    count: u32,
    per_second: i32,
    transaction_ms: u32,
    timeout_ms: u32,
) -> Process {
    let mut command = java(Edition::WithZooKeeper, ["-Xmx128m", "-XX:TieredStopAtLevel=1"]);
    command.args(["org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--record-size", "10"]);
    command.args(["--num-records", &count.to_string(), "--throughput", &per_second.to_string()]);
    command.args(["--transactional-id", &unique("transactions")]);
    command.args(["--transaction-duration-ms", &transaction_ms.to_string(), "--producer-props"]);
    command.arg(format!("bootstrap.servers={}", cluster.brokers));
    command.args([format!("transaction.timeout.ms={timeout_ms}"), "linger.ms=0".to_owned()]);
    Process::start("the performance producer", command, &folder("transactions").join("output"))
}

/// Appends `count` messages in one or more transactions, and commits them.
pub(crate) fn commit_messages(cluster: &Cluster, topic: &str, count: u32) {
    let mut producer = start_transactions(cluster, topic, count, -1, 10_000, 60_000);
    let status = producer.wait(DEADLINE);
    assert!(status.success(), "the performance producer: {status}");
}
