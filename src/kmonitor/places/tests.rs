//! Tests of the table: which topics and sources count, who owns what, what is forgotten.

use super::*;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{GroupDescription, LogEnds};
use crate::kmonitor::delay::by_module;
use crate::kmonitor::facts::{Limits, Verdict};
use crate::kmonitor::places::publish::ClusterState;
use crate::kmonitor::probe::{Finding, Probe};
use crate::kmonitor::readings::TopicReading;
use crate::kmonitor::view::{ClusterView, ReasonCode};

/// A table with a broker in memory, at a time that the test sets.
pub(super) struct Rig {
    pub(super) broker: MemoryBroker,
    reader: LogReader,
    pub(super) places: Places,
    pub(super) limits: Limits,
    start: Moment,
}

pub(super) fn rig(topics: &[&str]) -> Rig {
    let broker = MemoryBroker::new();
    topics.iter().for_each(|topic| broker.create_topic(topic, 1));
    let source = broker.clone();
    let reader = LogReader::new(Box::new(move |_| Ok(Box::new(source.log_ends()) as Box<dyn LogEnds>)));
    let times = Times { forget_after: Some(Duration::from_hours(24)), left_behind_after: Duration::from_secs(600) };
    let places = Places::new("c".into(), vec![Source::Zookeeper, Source::Kafka], times);
    Rig { broker, reader, start: places.start, places, limits: Limits::default() }
}

pub(super) fn key(name: &str, source: Source) -> ModuleKey {
    ModuleKey { name: name.into(), source }
}

fn owned(owner: Option<&str>) -> Owner {
    owner.map_or(Owner::Nobody { since: None }, |name| Owner::Named(name.into()))
}

/// The reading of a module with these topics: the stored offset and the owner of partition 0.
pub(super) fn reading(topics: &[(&str, i64, Option<&str>)]) -> ModuleReading {
    let topic = |(name, offset, owner): &(&str, i64, Option<&str>)| {
        let place = PlaceReading { stored: Stored::Offset(*offset), ..PlaceReading::nothing(owned(*owner)) };
        (Arc::from(*name), TopicReading { places: BTreeMap::from([(0, place)]), ..TopicReading::default() })
    };
    let members = u32::from(topics.iter().any(|(_, _, owner)| owner.is_some()));
    ModuleReading { topics: topics.iter().map(topic).collect(), members: Some(members), refused: None }
}

/// The reading of a group in Kafka with this offset of partition 0 of `t`, which says nothing about its members.
pub(super) fn in_kafka(offset: i64) -> ModuleReading {
    let mut reading = ModuleReading { members: None, ..reading(&[("t", offset, None)]) };
    let places = reading.topics.values_mut().flat_map(|topic| topic.places.values_mut());
    places.for_each(|place| place.owner = Owner::Unknown);
    reading
}

impl Rig {
    pub(super) fn at(&self, second: u64) -> Moment {
        let after = Duration::from_secs(second);
        Moment { at: self.start.at + after, wall: self.start.wall + after }
    }

    pub(super) fn read(&mut self, key: &ModuleKey, reading: ModuleReading, second: u64) {
        let now = self.at(second);
        self.places.record_module(key, Some(reading), now);
    }

    /// Reads the logs and publishes.
    pub(super) fn view(&mut self, second: u64) -> ClusterView {
        let keys: Vec<ModuleKey> = self.places.modules.keys().cloned().collect();
        self.view_of(&keys, second)
    }

    /// Reads all logs, compares only the stored offsets of these modules with them, and publishes.
    pub(super) fn view_of(&mut self, compared: &[ModuleKey], second: u64) -> ClusterView {
        let now = self.at(second);
        let keys: Vec<ModuleKey> = self.places.modules.keys().cloned().collect();
        self.reader.look_up(&["b:1".into()], &self.places.topics(), now.at).unwrap();
        keys.iter().for_each(|key| self.places.complete(key, &self.reader, now));
        let logs: Vec<_> = self.places.logs_of(&keys).into_iter().collect();
        let readings = self.reader.ranges(&logs, now.at);
        self.places.record_logs(logs.into_iter().zip(readings), &mut self.reader, now);
        self.places.note_recreations(&keys);
        self.places.compare(compared, now.at);
        let state = ClusterState { is_known: true, ..ClusterState::default() };
        self.places.publish(state, |_| self.limits.clone(), now)
    }

    /// The delay of partition 0 of the module `m` in `/delay`.
    pub(super) fn delay(&mut self, second: u64) -> Option<u64> {
        let view = self.view(second);
        by_module(&view, Some("m")).pop().and_then(|(_, delays)| delays.get(&0).copied())
    }

    pub(super) fn put(&self, topic: &str, count: usize) {
        for _ in 0..count {
            self.broker.put(topic, 0, None, b"x");
        }
    }
}

#[test]
fn a_topic_that_the_module_does_not_push_any_more_is_left_behind() {
    let mut rig = rig(&["a", "b"]);
    let m = key("m", Source::Zookeeper);
    rig.read(&m, reading(&[("a", 0, Some("one")), ("b", 0, None)]), 0);
    rig.put("a", 5);
    rig.put("b", 3);
    assert_eq!(rig.delay(0), Some(8));
    // The module pushes b now. For ten minutes this may be a change back and forth.
    for second in [10, 300, 599] {
        rig.read(&m, reading(&[("a", 0, None), ("b", 3, Some("one"))]), second);
        assert_eq!(rig.delay(second), Some(5), "after {second} s");
    }
    rig.read(&m, reading(&[("a", 0, None), ("b", 3, Some("one"))]), 611);
    assert_eq!(rig.delay(611), Some(0));
    let view = rig.view(611);
    assert_eq!((view.left_behind, view.modules[0].reason_code), (1, ReasonCode::LeftBehind));
    assert!(!view.modules[0].in_legacy && view.modules[1].in_legacy);
    // It stays so while the pusher is away, and ends when it comes back to a.
    rig.read(&m, reading(&[("a", 0, None), ("b", 3, None)]), 700);
    assert_eq!(rig.delay(700), Some(0));
    rig.read(&m, reading(&[("a", 1, Some("one")), ("b", 3, None)]), 710);
    assert_eq!(rig.delay(710), Some(4));
}

#[test]
fn consumers_that_register_nothing_leave_no_topic_behind() {
    let mut rig = rig(&["a", "b"]);
    let m = key("m", Source::Zookeeper);
    let mut foreign = reading(&[("a", 0, None), ("b", 0, None)]);
    foreign.members = None;
    for topic in foreign.topics.values_mut() {
        topic.places.values_mut().for_each(|place| place.owner = Owner::Unsupported);
    }
    rig.put("a", 5);
    rig.put("b", 3);
    for second in [0, 1_000] {
        rig.read(&m, foreign.clone(), second);
        assert_eq!(rig.delay(second), Some(8));
    }
}

#[test]
fn a_module_that_moves_from_zookeeper_to_kafka_shows_one_delay_throughout() {
    let mut rig = rig(&["t"]);
    rig.put("t", 10);
    let (old, new) = (key("m", Source::Zookeeper), key("m", Source::Kafka));
    rig.read(&old, reading(&[("t", 4, Some("one"))]), 0);
    assert_eq!(rig.delay(0), Some(6));
    // The offsets are copied, and the pusher is stopped.
    rig.read(&new, in_kafka(4), 5);
    rig.places.record_members(&new, Some(false), rig.at(5).at);
    assert_eq!(rig.delay(5), Some(6));
    rig.read(&old, reading(&[("t", 4, None)]), 10);
    assert_eq!(rig.delay(10), Some(6));
    // It is started with its offsets in Kafka, and pushes.
    rig.places.record_members(&new, Some(true), rig.at(15).at);
    rig.read(&new, in_kafka(7), 15);
    assert_eq!(rig.delay(15), Some(3));
    let view = rig.view(15);
    let counted: Vec<_> = view.modules.iter().map(|module| (module.source, module.in_legacy)).collect();
    assert_eq!(counted, [(Source::Zookeeper, false), (Source::Kafka, true)]);
    // It dies: the choice stays, and the delay grows.
    rig.places.record_members(&new, Some(false), rig.at(20).at);
    rig.put("t", 5);
    assert_eq!(rig.delay(20), Some(8));
}

#[test]
fn after_a_start_the_source_counts_that_is_further_on() {
    for (old, new, expected) in [(4, 7, 3), (7, 4, 3)] {
        let mut rig = rig(&["t"]);
        rig.put("t", 10);
        rig.read(&key("m", Source::Zookeeper), reading(&[("t", old, None)]), 0);
        rig.read(&key("m", Source::Kafka), in_kafka(new), 0);
        assert_eq!(rig.delay(0), Some(expected));
    }
}

#[test]
fn a_module_at_rest_that_nobody_owns_is_forgotten() {
    let mut rig = rig(&["t"]);
    rig.put("t", 2);
    let (rests, owned) = (key("m", Source::Zookeeper), key("owned", Source::Zookeeper));
    for second in [0, 86_000, 86_401] {
        rig.read(&rests, reading(&[("t", 0, None)]), second);
        rig.read(&owned, reading(&[("t", 0, Some("one"))]), second);
        let names: Vec<_> = rig.view(second).modules.iter().map(|module| module.name.to_string()).collect();
        let expected = if second < 86_400 { vec!["m", "owned"] } else { vec!["owned"] };
        assert_eq!(names, expected, "after {second} s");
    }
    rig.read(&rests, reading(&[("t", 1, None)]), 90_000);
    assert_eq!(rig.delay(90_000), Some(1), "it stores again");
}

#[test]
fn a_module_that_stores_offsets_is_shown_however_wrong_the_clock_of_zookeeper_is() {
    let mut rig = rig(&["t"]);
    rig.put("t", 9);
    let m = key("m", Source::Zookeeper);
    for (second, offset) in [(0, 0), (5, 1), (10, 2)] {
        let mut reading = reading(&[("t", offset, None)]);
        let places = reading.topics.values_mut().flat_map(|topic| topic.places.values_mut());
        // As if each write were days ago.
        places.for_each(|place| place.written_ms = Some(1_000 + offset));
        rig.read(&m, reading, second);
        let shown = rig.view(second).modules.len();
        assert!(second == 0 || shown == 1, "after {second} s");
    }
}

#[test]
fn offsets_that_nobody_can_deliver_are_no_delay_until_something_moves() {
    let mut rig = rig(&["t"]);
    rig.put("t", 3);
    let at = TopicPartition { topic: "t".into(), partition: 0 };
    rig.broker.put_marker(&at);
    let m = key("m", Source::Zookeeper);
    rig.read(&m, reading(&[("t", 3, Some("one"))]), 0);
    assert_eq!(rig.delay(0), Some(1));
    assert_eq!(rig.delay(5), Some(1));
    let probe = Probe { at, from: 3, newest: 4 };
    let now = rig.at(10);
    assert_eq!(rig.places.take_unprobed(50, now), std::slice::from_ref(&probe));
    assert!(rig.places.take_unprobed(50, now).is_empty(), "it is on its way");
    rig.places.record_probes(&[(probe, Finding::Nothing)]);
    assert_eq!(rig.delay(10), Some(0));
    assert_eq!(rig.view(10).modules[0].partitions[0].reason_code, ReasonCode::NothingDeliverable);
    assert!(rig.places.take_unprobed(50, rig.at(11)).is_empty(), "the answer is known");
    rig.put("t", 1);
    assert_eq!(rig.delay(11), Some(1), "what is known of the marker stays");
    rig.view(12);
    let probes = rig.places.take_unprobed(50, rig.at(13));
    assert_eq!(probes.len(), 1);
    rig.places.record_probes(&[(probes[0].clone(), Finding::Message)]);
    rig.put("t", 1);
    assert_eq!(rig.delay(13), Some(2));
    rig.view(14);
    assert!(rig.places.take_unprobed(50, rig.at(15)).is_empty(), "the message is still there");
}

#[test]
fn a_source_that_cannot_be_read_makes_its_modules_unknown_when_they_are_too_old() {
    let mut rig = rig(&["t"]);
    rig.put("t", 2);
    let m = key("m", Source::Zookeeper);
    rig.read(&m, reading(&[("t", 0, Some("one"))]), 0);
    assert_eq!(rig.delay(0), Some(2));
    rig.places.record_source_failure(Source::Zookeeper, &"no route".into(), rig.at(1).at);
    assert_eq!(rig.delay(15), Some(2));
    assert_eq!(rig.delay(16), None);
    let partition = rig.view(16).modules.remove(0).partitions.remove(0);
    assert_eq!((partition.unknown, partition.verdict), (Some("source_silent"), Verdict::Unknown));
    rig.read(&m, reading(&[("t", 1, Some("one"))]), 17);
    assert_eq!(rig.delay(17), Some(1));
}

#[test]
fn the_writer_of_an_offset_says_to_which_topic_it_belongs() {
    for belongs_to_new in [false, true] {
        let mut rig = rig(&["t"]);
        rig.put("t", 5);
        let m = key("m", Source::Zookeeper);
        assert!(rig.places.needs_topic_ids(&m), "never read");
        rig.read(&m, reading(&[("t", 4, None)]), 0);
        assert_eq!(rig.delay(0), Some(1));
        let old = rig.reader.topic_id("t");
        assert!(!rig.places.needs_topic_ids(&m));
        // Between two cycles the last offset was stored, the topic was created again and got messages.
        rig.broker.recreate_topic("t", 1);
        rig.put("t", 7);
        rig.read(&m, reading(&[("t", 5, None)]), 5);
        rig.view(5);
        assert!(rig.places.needs_topic_ids(&m));
        let mut with_id = reading(&[("t", 5, None)]);
        let topic_id = if belongs_to_new { rig.reader.topic_id("t") } else { old };
        with_id.topics.values_mut().for_each(|topic| topic.places.values_mut().for_each(|at| at.topic_id = topic_id));
        rig.read(&m, with_id, 10);
        assert_eq!(rig.delay(10), Some(if belongs_to_new { 2 } else { 7 }));
        assert!(!rig.places.needs_topic_ids(&m));
        rig.read(&m, reading(&[("t", 5, None)]), 14);
        assert_eq!(rig.delay(14), Some(if belongs_to_new { 2 } else { 7 }), "it stays so until the offset moves");
    }
}

#[test]
fn a_kafka_group_that_never_committed_is_shown_with_what_its_members_have() {
    let mut rig = rig(&["t"]);
    rig.broker.create_topic("u", 2);
    let m = key("m", Source::Kafka);
    rig.put("u", 5);
    rig.read(&m, ModuleReading::default(), 0);
    let now = rig.at(0).at;
    rig.places.record_members(&m, Some(true), now);
    let view = rig.view(0);
    let [module] = &view.modules[..] else { panic!("{view:?}") };
    assert_eq!((&*module.name, module.verdict, module.delay), ("m", Verdict::Unknown, None));
    assert_eq!((module.reason_code, module.delay_is_partial), (ReasonCode::NotReadYet, true));
    // One of the two partitions is assigned; without a stored offset both count from the beginning.
    assert_eq!(rig.places.take_undescribed(9, rig.at(1).at), std::slice::from_ref(&m));
    let owned = |topic: &str| (TopicPartition { topic: topic.into(), partition: 0 }, Arc::from("client@host"));
    let group = GroupDescription { member_count: 1, owners: Some(vec![owned("u")]) };
    rig.places.record_description(&m, &group, rig.at(1));
    for second in [1, 5] {
        rig.read(&m, ModuleReading::default(), second);
        let view = rig.view(second);
        let [module] = &view.modules[..] else { panic!("{view:?}") };
        assert_eq!((&*module.topic, module.delay, module.partitions.len()), ("u", Some(5), 2), "after {second} s");
        assert_eq!(module.partitions[0].owner.as_deref(), Some("client@host"));
    }
    // Nothing is pushed, and nothing was ever stored.
    for second in [30, 60, 90, 120, 125] {
        rig.read(&m, ModuleReading::default(), second);
        rig.places.record_description(&m, &group, rig.at(second));
        rig.view(second);
    }
    let module = rig.view(125).modules.remove(0);
    assert_eq!((module.verdict, module.reason_code), (Verdict::Stalled, ReasonCode::NeverStored));
    // It consumes another topic, which it commits.
    let other = GroupDescription { member_count: 1, owners: Some(vec![owned("t")]) };
    rig.places.record_description(&m, &other, rig.at(160));
    rig.read(&m, in_kafka(0), 160);
    let topics: Vec<_> = rig.view(160).modules.iter().map(|module| module.topic.to_string()).collect();
    assert_eq!(topics, ["t"]);
    assert_eq!(rig.places.take_undescribed(9, rig.at(200).at), []);
    // A group without members has nothing that could wait.
    let empty = key("empty", Source::Kafka);
    rig.read(&empty, ModuleReading::default(), 200);
    rig.places.record_members(&empty, Some(false), rig.at(200).at);
    let view = rig.view(200);
    assert_eq!((&*view.modules[0].name, view.modules[0].verdict), ("empty", Verdict::Ok));
}

#[test]
fn a_consumer_that_has_not_committed_yet_takes_no_module_over() {
    let mut rig = rig(&["t"]);
    rig.put("t", 100);
    let (old, new) = (key("m", Source::Zookeeper), key("m", Source::Kafka));
    rig.read(&old, reading(&[("t", 97, None)]), 0);
    assert_eq!(rig.delay(0), Some(3));
    rig.read(&new, ModuleReading::default(), 5);
    let at = TopicPartition { topic: "t".into(), partition: 0 };
    let group = GroupDescription { member_count: 1, owners: Some(vec![(at, "client@host".into())]) };
    rig.places.record_description(&new, &group, rig.at(5));
    assert_eq!(rig.delay(5), Some(3));
    rig.read(&new, in_kafka(98), 10);
    rig.places.record_description(&new, &group, rig.at(10));
    assert_eq!(rig.delay(10), Some(2));
}
