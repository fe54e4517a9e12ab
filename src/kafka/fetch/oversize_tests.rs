//! A batch that makes a response too large holds up its own partition alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{FetchConfig, FetchEvent, Fetcher};
use crate::kafka::config::{BrokerAddress, ConnectionConfig};
use crate::kafka::connection::Connector;
use crate::kafka::testkit::{ApiKey, TestCluster};
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

#[test]
fn the_other_partitions_of_the_broker_are_read_beside_one_with_a_batch_that_is_too_large() {
    let cluster = TestCluster::builder(1).start();
    cluster.create_topic("t", 3);
    cluster.append_record("t", 0, "k", &"x".repeat(300_000));
    let connection = ConnectionConfig { max_response_bytes: 200_000, ..ConnectionConfig::default() };
    let config = FetchConfig {
        prefetch_bytes: 100_000,
        max_message_bytes: 100_000,
        max_wait: Duration::from_millis(50),
        client_rack: None,
        read_committed: true,
    };
    let bootstrap = cluster.bootstrap().into_iter().map(|(host, port)| BrokerAddress { host: Arc::from(host), port });
    let supervisor = Supervisor::new("test", Stop::new());
    let mut fetcher = Fetcher::new(Connector::new(connection), bootstrap.collect(), config, &supervisor);
    let topic: Arc<str> = "t".into();
    (0..3).for_each(|partition| fetcher.assign(&topic, partition, 0, None));
    let (mut received, mut errors) = ([0; 3], Vec::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 1..=20 {
        (1..3).for_each(|partition| {
            cluster.append_record("t", partition, "k", "v");
        });
        while received[1..] != [round, round] || errors.is_empty() {
            assert!(Instant::now() < deadline, "{received:?} {errors:?}");
            for event in fetcher.poll(Duration::from_millis(100), 100) {
                match event {
                    FetchEvent::Messages(messages) => {
                        received[messages.partition().partition as usize] += messages.len()
                    }
                    FetchEvent::PartitionError { partition, reason, .. } => errors.push((partition.partition, reason)),
                    FetchEvent::Unreachable { reason, .. } => panic!("{reason}"),
                    _ => {}
                }
            }
        }
    }
    assert!(
        errors
            .iter()
            .all(|(partition, reason)| *partition == 0 && reason.contains("larger than the maximum of 200000"))
    );
    let (n_errors, n_requests) = (errors.len(), cluster.requests(ApiKey::Fetch));
    assert!(n_errors < 8 && n_requests < 1_000, "{errors:?}, {n_requests} requests");
    // Retention deletes the batch.
    fetcher.assign(&topic, 0, 1, None);
    cluster.append_record("t", 0, "k", "v");
    while received[0] == 0 {
        assert!(Instant::now() < deadline);
        for event in fetcher.poll(Duration::from_millis(100), 100) {
            if let FetchEvent::Messages(messages) = event {
                received[messages.partition().partition as usize] += messages.len();
            }
        }
    }
    supervisor.stop().trigger();
}
