use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, Weak};
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

/// Brokers in front of which a lookup is always due: each lookup of a name that does not exist brings further ones.
#[derive(Clone, Default)]
struct Flooded {
    gate: Arc<OnceLock<Weak<MetadataGate<Report, Stores>>>>,
    names: Arc<AtomicU64>,
    refreshed: Arc<Mutex<Option<crossbeam_channel::Sender<Vec<Arc<str>>>>>>,
}

impl MetadataClient for Flooded {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, topic: &str, _: Duration) -> LookupAnswer {
        if topic == "t" {
            return LookupAnswer::Exists(1);
        }
        let gate = self.gate.get().and_then(Weak::upgrade).expect("the gate exists");
        for _ in 0..2 {
            let name = format!("made-up{}", self.names.fetch_add(1, Ordering::Relaxed));
            append(&gate, &name, None, Box::new(|_| {}));
        }
        LookupAnswer::DoesNotExist
    }

    fn refresh(&mut self, topics: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        if let Some(refreshed) = crate::locks::lock(&self.refreshed).take() {
            refreshed.send(topics.to_vec()).expect("the test receives");
        }
        Ok(topics.iter().map(|topic| (Arc::clone(topic), LookupAnswer::Exists(1))).collect())
    }

    fn rules(&mut self, topics: &[Arc<str>], wait: Duration) -> HashMap<Arc<str>, TopicRules> {
        Compacted.rules(topics, wait)
    }
}

fn append<E: ProducerEngine<Report>>(gate: &MetadataGate<Report, E>, topic: &str, partition: Option<i32>, to: Report) {
    let (topic, value) = (Arc::from(topic), Some(b"v".to_vec()));
    let record = Record { topic, partition, key: None, value, headers: Vec::new(), timestamp_ms: None };
    gate.append(record, Acks::Leader, to);
}

#[test]
fn known_topics_are_refreshed_although_names_that_do_not_exist_are_looked_up_all_the_time() {
    let config = ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10,
        max_in_flight: 10_000,
        timeout: Duration::from_secs(30),
    };
    let group = Supervisor::new("t", Stop::new());
    let (state, client) = (GateState::new(&config), Flooded::default());
    let gate = start(Stores, Arc::clone(&state), &config, client.clone(), Duration::from_secs(1), &group);
    client.gate.set(Arc::downgrade(&gate)).expect("it is set once");
    let outcome_of = |topic: &str| {
        let (sender, outcomes) = crossbeam_channel::bounded(1);
        append(&gate, topic, None, Box::new(move |outcome| sender.send(outcome).expect("the test receives")));
        outcomes.recv_timeout(Duration::from_secs(30)).expect("it completes")
    };
    append(&gate, "made-up", None, Box::new(|_| {}));
    assert!(outcome_of("t").is_ok());
    // The rules are read, and after a doubt the partitions are counted.
    let started = Instant::now();
    while outcome_of("t").is_ok() {
        assert!(started.elapsed() < Duration::from_secs(30), "the rules are not read");
        std::thread::yield_now();
    }
    let (sender, refreshed) = crossbeam_channel::bounded(1);
    *crate::locks::lock(&client.refreshed) = Some(sender);
    state.doubt(&"t".into());
    let topics = refreshed.recv_timeout(Duration::from_secs(30)).expect("the topic is not refreshed");
    assert_eq!(topics, ["t".into()]);
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
}
