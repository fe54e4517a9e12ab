use std::time::Instant;

use super::*;
use crate::broker::topics::LookupAnswer;
use crate::broker::{Acks, AppendResult, PartitionerKind, Record, Stored};
use crate::shutdown::Stop;
use crate::supervise::Ended;

type Report = Box<dyn FnOnce(AppendResult) + Send>;

/// An engine to which nothing is submitted.
struct NoEngine;

impl ProducerEngine<Report> for NoEngine {
    fn submit(&self, _: PendingAppend<Report>, _: i32) -> Result<(), FailedAppend<Report>> {
        panic!("no topic exists");
    }
}

/// Brokers that answer each lookup after this time.
struct Slow(Duration);

impl MetadataClient for Slow {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, _: &str, _: Duration) -> LookupAnswer {
        std::thread::sleep(self.0);
        LookupAnswer::DoesNotExist
    }
}

#[test]
fn appends_to_many_topics_fail_in_time_although_the_brokers_are_slow() {
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10,
        max_in_flight: 1_000,
        timeout: Duration::from_millis(500),
    };
    let group = Supervisor::new("t", Stop::new());
    let slow = Slow(Duration::from_millis(100));
    let gate = start(NoEngine, GateState::new(&config), &config, slow, Duration::from_secs(1), &group);
    let (sender, outcomes) = crossbeam_channel::unbounded();
    let started = Instant::now();
    for number in 0..100 {
        let topic = Arc::from(format!("t{number}"));
        let value = Some(b"v".to_vec());
        let record = Record { topic, partition: None, key: None, value, headers: Vec::new(), timestamp_ms: None };
        let sender = sender.clone();
        let report: Report = Box::new(move |outcome| sender.send(outcome).expect("the test receives"));
        gate.append(record, Acks::Leader, report);
    }
    for _ in 0..100 {
        let error = outcomes.recv().expect("each completes").expect_err("nothing exists");
        assert_eq!(error.stored, Stored::No, "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(gate.topic_lookups() < 20, "a topic for which no append waits is not looked up");
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
}
