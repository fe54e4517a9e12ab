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

fn answer_each(topics: &[Arc<str>], answer: impl Fn(&str) -> LookupAnswer) -> Vec<TopicAnswer> {
    topics.iter().map(|topic| (Arc::clone(topic), answer(topic))).collect()
}

/// An engine to which nothing is submitted.
struct NoEngine;

impl ProducerEngine<Report> for NoEngine {
    fn submit(&self, _: PendingAppend<Report>, _: i32) -> Result<(), NotSubmitted<Report>> {
        panic!("no topic exists");
    }
}

/// Brokers that answer each lookup after this time.
struct Slow(Duration);

impl MetadataClient for Slow {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, topics: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        std::thread::sleep(self.0);
        Ok(answer_each(topics, |_| LookupAnswer::DoesNotExist))
    }
}

/// An engine that stores everything.
struct Stores;

impl ProducerEngine<Report> for Stores {
    fn submit(&self, append: PendingAppend<Report>, _: i32) -> Result<(), NotSubmitted<Report>> {
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

    fn look_up(&mut self, topics: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        Ok(answer_each(topics, |topic| match topic {
            "denied" => LookupAnswer::Refused(AppendFailure::NotAuthorized, "TOPIC_AUTHORIZATION_FAILED".to_owned()),
            _ => LookupAnswer::Exists(1),
        }))
    }

    fn rules(&mut self, topics: &[Arc<str>], _: Duration) -> HashMap<Arc<str>, TopicRules> {
        let configs = HashMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        topics.iter().map(|topic| (Arc::clone(topic), TopicRules::from_configs(&configs))).collect()
    }
}

fn config() -> ProducerConfig {
    ProducerConfig {
        partitioner: PartitionerKind::Fnv1a,
        max_message_bytes: 10,
        max_in_flight: 10,
        timeout: Duration::from_secs(30),
    }
}

#[test]
fn what_a_topic_does_not_accept_is_refused_once_its_rules_are_known_and_a_denied_topic_is_seldom_looked_up() {
    let config = config();
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
    let config = ProducerConfig { max_in_flight: 1_000, timeout: Duration::from_millis(500), ..config() };
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
    assert!(gate.topic_lookups() <= 1_000, "some lookups of each topic within its time");
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
}

/// An engine that forgets a topic after each append, until the topic is looked up.
#[derive(Clone, Default)]
struct Forgetful {
    /// The partition count of the topic, and whether the engine knows it.
    topic: Arc<Mutex<(i32, bool)>>,
}

impl ProducerEngine<Report> for Forgetful {
    fn submit(&self, append: PendingAppend<Report>, partition_count: i32) -> Result<(), NotSubmitted<Report>> {
        let mut topic = crate::locks::lock(&self.topic);
        if !std::mem::take(&mut topic.1) {
            return Err(NotSubmitted::NeedsLookup(Box::new(append)));
        }
        assert_eq!(partition_count, topic.0, "the partition count is not that of the latest lookup");
        drop(topic);
        Stores.submit(append, partition_count)
    }
}

impl MetadataClient for Forgetful {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, topics: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        let mut topic = crate::locks::lock(&self.topic);
        topic.1 = true;
        Ok(answer_each(topics, |_| LookupAnswer::Exists(topic.0)))
    }

    fn refresh(&mut self, _: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        Err("no refresh".to_owned())
    }
}

#[test]
fn an_append_to_a_topic_that_the_engine_has_forgotten_waits_for_a_lookup() {
    let config = config();
    let group = Supervisor::new("t", Stop::new());
    let engine = Forgetful::default();
    let wait = Duration::from_secs(1);
    let gate = start(engine.clone(), GateState::new(&config), &config, engine.clone(), wait, &group);
    // Deleted, and recreated with fewer partitions, or with more.
    for count in [8, 2, 5] {
        crate::locks::lock(&engine.topic).0 = count;
        let (sender, outcomes) = crossbeam_channel::bounded(1);
        append(&gate, "t", None, Box::new(move |outcome| sender.send(outcome).expect("the test receives")));
        outcomes.recv().expect("it completes").unwrap_or_else(|error| panic!("{count}: {error}"));
    }
    assert_eq!(gate.topic_lookups(), 3);
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
}

/// Brokers that take longer to describe topics than a turn usually allows.
struct SlowToDescribe;

impl MetadataClient for SlowToDescribe {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, topics: &[Arc<str>], wait: Duration) -> Result<Vec<TopicAnswer>, String> {
        Compacted.look_up(topics, wait)
    }

    fn rules(&mut self, topics: &[Arc<str>], wait: Duration) -> HashMap<Arc<str>, TopicRules> {
        if wait < Duration::from_secs(1) { HashMap::new() } else { Compacted.rules(topics, wait) }
    }
}

#[test]
fn rules_that_the_brokers_are_slow_to_describe_are_read_all_the_same() {
    let config = config();
    let group = Supervisor::new("t", Stop::new());
    let gate = start(Stores, GateState::new(&config), &config, SlowToDescribe, Duration::from_secs(5), &group);
    let started = Instant::now();
    loop {
        let (sender, outcomes) = crossbeam_channel::bounded(1);
        append(&gate, "t", None, Box::new(move |outcome| sender.send(outcome).expect("the test receives")));
        // The topic is compacted, and the message has no key.
        if outcomes.recv().expect("it completes").is_err() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the rules are not read");
        std::thread::yield_now();
    }
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
}

/// Gets the names of one refresh.
type RefreshedTopics = crossbeam_channel::Sender<Vec<Arc<str>>>;

/// Brokers in front of which a lookup is always due: each lookup of a name that does not exist brings further ones.
#[derive(Clone, Default)]
struct Flooded {
    gate: Arc<OnceLock<Weak<MetadataGate<Report, Stores>>>>,
    names: Arc<AtomicU64>,
    refreshed: Arc<Mutex<Option<RefreshedTopics>>>,
}

impl MetadataClient for Flooded {
    fn check_reachable(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn look_up(&mut self, topics: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        let gate = self.gate.get().and_then(Weak::upgrade).expect("the gate exists");
        Ok(answer_each(topics, |topic| {
            if topic == "t" {
                return LookupAnswer::Exists(1);
            }
            for _ in 0..2 {
                let name = format!("made-up{}", self.names.fetch_add(1, Ordering::Relaxed));
                append(&gate, &name, None, Box::new(|_| {}));
            }
            LookupAnswer::DoesNotExist
        }))
    }

    fn refresh(&mut self, topics: &[Arc<str>], _: Duration) -> Result<Vec<TopicAnswer>, String> {
        if let Some(refreshed) = crate::locks::lock(&self.refreshed).take() {
            refreshed.send(topics.to_vec()).expect("the test receives");
        }
        Ok(answer_each(topics, |_| LookupAnswer::Exists(1)))
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
    let config = ProducerConfig { max_in_flight: 10_000, ..config() };
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
    // The rules are read, and after a refusal the partitions are counted.
    let started = Instant::now();
    while outcome_of("t").is_ok() {
        assert!(started.elapsed() < Duration::from_secs(30), "the rules are not read");
        std::thread::yield_now();
    }
    let (sender, refreshed) = crossbeam_channel::bounded(1);
    *crate::locks::lock(&client.refreshed) = Some(sender);
    state.refresh_soon(&"t".into());
    let topics = refreshed.recv_timeout(Duration::from_secs(30)).expect("the topic is not refreshed");
    assert_eq!(topics, ["t".into()]);
    gate.close();
    group.stop().trigger();
    assert_eq!(group.join(Duration::from_secs(10)), Ended::Stopped);
}
