use std::collections::HashMap;
use std::time::Instant;

use super::*;
use crate::broker::topic_rules::TopicRules;
use crate::broker::topics::LookupAnswer;
use crate::broker::{Acks, AppendFailure, AppendResult, Appended, PartitionerKind, Record, Stored};
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

/// An engine that stores everything.
struct Stores;

impl ProducerEngine<Report> for Stores {
    fn submit(&self, append: PendingAppend<Report>, _: i32) -> Result<(), FailedAppend<Report>> {
        append.completion.complete(Ok(Appended { partition: 0, offset: Some(7) }));
        Ok(())
    }
}

/// A cluster where every topic but "denied" is compacted.
struct Compacted;

impl MetadataClient for Compacted {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, topic: &str, _: Duration) -> LookupAnswer {
        match topic {
            "denied" => LookupAnswer::Refused(AppendFailure::NotAuthorized, "TOPIC_AUTHORIZATION_FAILED".to_owned()),
            _ => LookupAnswer::Exists(1),
        }
    }

    fn rules(&mut self, topics: &[Arc<str>], _: Duration) -> HashMap<Arc<str>, TopicRules> {
        let configs = HashMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        topics.iter().map(|topic| (Arc::clone(topic), TopicRules::from_configs(&configs))).collect()
    }
}

#[test]
fn what_a_topic_does_not_accept_is_refused_once_its_rules_are_known_and_a_denied_topic_is_seldom_looked_up() {
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10,
        max_in_flight: 10,
        timeout: Duration::from_secs(30),
    };
    let group = Supervisor::new("t", Stop::new());
    let gate = start(Stores, GateState::new(&config), &config, Compacted, Duration::from_secs(1), &group);
    let append = |topic: &str, key: Option<&[u8]>| {
        let (sender, outcomes) = crossbeam_channel::bounded(1);
        let (topic, key, value) = (Arc::from(topic), key.map(<[u8]>::to_vec), b"v".to_vec());
        let record =
            Record { topic, partition: None, key, value: Some(value), headers: Vec::new(), timestamp_ms: None };
        let report: Report = Box::new(move |outcome| sender.send(outcome).expect("the test receives"));
        gate.append(record, Acks::None, report);
        outcomes.recv().expect("it completes")
    };
    let started = Instant::now();
    let refusal = loop {
        assert!(started.elapsed() < Duration::from_secs(30), "the rules are not read");
        if let Err(error) = append("t", None) {
            break error;
        }
    };
    assert_eq!((refusal.kind, refusal.stored), (AppendFailure::Invalid, Stored::No), "{refusal}");
    assert!(append("t", Some(b"k")).is_ok());
    let (before, started) = (gate.topic_lookups(), Instant::now());
    for _ in 0..100 {
        let refusal = append("denied", None).expect_err("the topic is denied");
        assert_eq!((refusal.kind, refusal.stored), (AppendFailure::NotAuthorized, Stored::No), "{refusal}");
        assert!(refusal.reason.contains("TOPIC_AUTHORIZATION_FAILED"), "{refusal}");
    }
    let lookups = gate.topic_lookups() - before;
    assert!(lookups <= 2 + started.elapsed().as_secs(), "{lookups} lookups");
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
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
