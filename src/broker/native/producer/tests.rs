use std::sync::mpsc;

use super::*;
use crate::broker::{Engine as EngineName, KafkaSettings};
use crate::kafka::metadata::PartitionMetadata;
use crate::kafka::testkit::{ApiKey, Fault, Scope, TestCluster};
use crate::shutdown::Stop;
use crate::supervise::Ended;

type Report = Box<dyn FnOnce(AppendResult) + Send>;

/// Longer than anything takes unless the test fails.
const LONG: Duration = Duration::from_secs(30);

/// A producer of a cluster in memory.
struct TestProducer {
    producer: NativeProducer<Report>,
    supervisor: Supervisor,
}

impl TestProducer {
    fn new(cluster: &TestCluster) -> Self {
        let broker = BrokerConfig {
            hosts: cluster.bootstrap().iter().map(|(host, port)| format!("{host}:{port}")).collect(),
            engine: EngineName::Auto,
            client_id: "test".into(),
            request_timeout: Duration::from_secs(5),
            requests: Default::default(),
            settings: KafkaSettings::default(),
        };
        let config = ProducerConfig {
            partitioner: PartitionerKind::Fnv1a,
            max_message_bytes: 1_000_000,
            max_in_flight: 10_000,
            timeout: Duration::from_secs(10),
        };
        let supervisor = Supervisor::new("test", Stop::new());
        let producer = NativeProducer::new(&broker, &config, &supervisor).unwrap();
        TestProducer { producer, supervisor }
    }

    /// Appends to topic "t"; the outcome is received.
    fn append(&self, partition: Option<i32>) -> mpsc::Receiver<AppendResult> {
        self.append_to("t", partition)
    }

    fn append_to(&self, topic: &str, partition: Option<i32>) -> mpsc::Receiver<AppendResult> {
        let (sender, outcome) = mpsc::channel();
        let (key, value) = (Some(b"key".to_vec()), Some(b"value".to_vec()));
        let record = Record { topic: topic.into(), partition, key, value, headers: Vec::new(), timestamp_ms: None };
        self.producer.append(record, Acks::Leader, Box::new(move |result| _ = sender.send(result)));
        outcome
    }

    /// Appends to a partition that the topic lacks until it could have been added, so that the append waits. Other
    /// messages are confirmed all the time.
    fn append_to_missing(&self) -> mpsc::Receiver<AppendResult> {
        let started = Instant::now();
        loop {
            let outcome = self.append(Some(99));
            self.append(None).recv_timeout(LONG).unwrap().unwrap();
            match outcome.try_recv() {
                Err(_) => return outcome,
                Ok(result) => {
                    assert_eq!(result.unwrap_err().kind, AppendFailure::UnknownPartition);
                    assert!(started.elapsed() < LONG, "the partition is not looked up");
                }
            }
        }
    }

    fn close(self) {
        self.producer.close(Duration::ZERO);
        self.supervisor.stop().trigger();
        assert_eq!(self.supervisor.join(LONG), Ended::Stopped);
    }
}

#[test]
fn a_partition_that_a_topic_lacks_holds_up_no_other_message_of_it() {
    let cluster = TestCluster::start(1);
    cluster.create_topic("t", 2);
    let producer = TestProducer::new(&cluster);
    producer.append(None).recv_timeout(LONG).unwrap().unwrap();
    for is_answered in [true, false] {
        cluster.fault_always(Scope::api(ApiKey::Metadata), if is_answered { Fault::held() } else { Fault::lost() });
        let missing = producer.append_to_missing();
        let result = loop {
            // Metadata is not answered, and the other messages do not need it.
            for _ in 0..20 {
                producer.append(None).recv_timeout(LONG).unwrap().unwrap();
            }
            if is_answered {
                assert!(missing.try_recv().is_err(), "it waits for metadata");
                cluster.clear_faults();
                cluster.release_held();
                break missing.recv_timeout(LONG).unwrap();
            }
            if let Ok(result) = missing.try_recv() {
                break result;
            }
        };
        cluster.clear_faults();
        let error = result.unwrap_err();
        let expected = if is_answered { AppendFailure::UnknownPartition } else { AppendFailure::Unreachable };
        assert_eq!((error.kind, error.stored), (expected, Stored::No), "{error}");
    }
    cluster.add_partitions("t", 100);
    let started = Instant::now();
    while let Err(error) = producer.append(Some(99)).recv_timeout(LONG).unwrap() {
        assert!(started.elapsed() < LONG, "{error}");
        producer.append(None).recv_timeout(LONG).unwrap().unwrap();
    }
    producer.close();
}

#[test]
fn many_topics_are_looked_up_with_few_requests() {
    let cluster = TestCluster::start(1);
    let names: Vec<String> = (0..200).map(|number| format!("t{number}")).collect();
    names.iter().for_each(|name| cluster.create_topic(name, 1));
    let producer = TestProducer::new(&cluster);
    cluster.fault_always(Scope::api(ApiKey::Metadata), Fault::held());
    let outcomes: Vec<_> = names.iter().map(|name| producer.append_to(name, None)).collect();
    assert!(cluster.wait_until(LONG, |cluster| cluster.held_requests() > 0));
    cluster.clear_faults();
    cluster.release_held();
    outcomes.iter().for_each(|outcome| _ = outcome.recv_timeout(LONG).unwrap().unwrap());
    let requests = cluster.requests(ApiKey::Metadata);
    assert!(requests < 50, "{requests} requests");
    producer.close();
}

#[test]
fn the_partition_count_of_a_broker_that_lags_behind_is_ignored() {
    let found = TopicMetadata { name: "t".into(), id: None, error_code: 0, may_write: None, partitions: Vec::new() };
    let higher = HashMap::from([("t".into(), 4)]);
    assert_eq!(answer(Some(&found), &higher), LookupAnswer::NotYet);
    let partition = PartitionMetadata {
        partition: 0,
        error_code: 0,
        leader: None,
        leader_epoch: 0,
        replicas: Vec::new(),
        in_sync: Vec::new(),
    };
    let found = TopicMetadata { partitions: vec![partition], ..found };
    assert_eq!(answer(Some(&found), &HashMap::new()), LookupAnswer::Exists(1));
    assert_eq!(answer(Some(&found), &higher), LookupAnswer::Exists(4));
}

#[test]
fn a_partition_that_was_deleted_meanwhile_causes_a_lookup() {
    for stored in [Stored::No, Stored::Unknown] {
        let error = rejected(code::UNKNOWN_TOPIC_OR_PARTITION, stored, "t", "", true);
        assert_eq!((error.kind, error.stored), (AppendFailure::UnknownTopic, stored));
    }
    // Nothing else concerns the existence of the topic.
    let others = [
        (code::INVALID_RECORD, Stored::No, AppendFailure::Invalid),
        (code::MESSAGE_TOO_LARGE, Stored::No, AppendFailure::TooLarge),
        (code::UNKNOWN_SERVER_ERROR, Stored::Unknown, AppendFailure::TimedOut),
        (code::TOPIC_AUTHORIZATION_FAILED, Stored::No, AppendFailure::NotAuthorized),
        (code::TOPIC_AUTHORIZATION_FAILED, Stored::Unknown, AppendFailure::TimedOut),
        (code::CLUSTER_AUTHORIZATION_FAILED, Stored::No, AppendFailure::NotAuthorized),
        (code::INVALID_TIMESTAMP, Stored::No, AppendFailure::Invalid),
        (code::CORRUPT_MESSAGE, Stored::No, AppendFailure::Invalid),
        (code::UNSUPPORTED_VERSION, Stored::No, AppendFailure::Refused),
    ];
    for (error, stored, kind) in others {
        assert_eq!(rejected(error, stored, "t", "", true).kind, kind, "{error}");
    }
    // Not the fault of a request without a timestamp.
    let clock = rejected(code::INVALID_TIMESTAMP, Stored::No, "t", "", false);
    assert_eq!(clock.kind, AppendFailure::Refused);
}
