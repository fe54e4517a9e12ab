//! Tests of the clocks and the numbers: no alarm, and no 0, that the readings do not prove.

use super::tests::{Rig, in_kafka, key, reading, rig};
use super::*;
use crate::broker::GroupDescription;
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::probe::Finding;
use crate::kmonitor::readings::TopicReading;
use crate::kmonitor::timestamps::{Timestamps, ages};
use crate::kmonitor::view::{ModuleView, PartitionView, ReasonCode};

fn log_of(topic: &str) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition: 0 }
}

impl Rig {
    /// The first module after reading the logs.
    fn module(&mut self, second: u64) -> ModuleView {
        self.view(second).modules.remove(0)
    }

    /// Partition 0 of the first module after reading the logs.
    fn partition(&mut self, second: u64) -> PartitionView {
        self.module(second).partitions.remove(0)
    }

    /// The verdicts after reading the stored offset of `t` and its log in each of these seconds.
    fn verdicts(&mut self, m: &ModuleKey, offset: i64, seconds: impl IntoIterator<Item = u64>) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for second in seconds {
            self.read(m, reading(&[("t", offset, Some("one"))]), second);
            verdicts.push(self.module(second).verdict);
        }
        verdicts.dedup();
        verdicts
    }
}

#[test]
fn a_gap_in_the_readings_of_a_log_ages_no_message() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    assert_eq!(rig.verdicts(&m, 0, (0..=60).step_by(5)), [Verdict::Ok]);
    rig.broker.set_broken(&log_of("t"), Some("a test"));
    rig.verdicts(&m, 0, (65..=300).step_by(5));
    rig.broker.set_broken(&log_of("t"), None);
    // The message arrived somewhere in the last 245 s.
    rig.put("t", 1);
    assert_eq!(rig.verdicts(&m, 0, (305..345).step_by(5)), [Verdict::Ok]);
    let partition = rig.partition(345);
    assert_eq!((partition.seconds_behind, partition.seconds_at_least), (Some(35.0), true), "as of the last reading");
    assert_eq!(rig.verdicts(&m, 0, [345, 350, 355]), [Verdict::Ok, Verdict::Stalled]);
}

#[test]
fn between_two_readings_of_the_stored_offset_no_clock_runs() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    // Readings more than a minute apart, and a message shortly after each of them.
    for second in (0..700).step_by(70) {
        let stored = i64::try_from(second / 70).unwrap();
        rig.read(&m, reading(&[("t", stored, Some("one"))]), second);
        rig.view(second);
        rig.put("t", 1);
        for later in (second + 5..second + 70).step_by(5) {
            let view = rig.module(later);
            assert_eq!(view.verdict, Verdict::Ok, "after {later} s: {}", view.reason);
            assert_eq!(view.seconds_behind, Some(0.0), "after {later} s: the message came after the reading");
        }
    }
    // The same with nobody there: somebody may be back for as long as nobody looks.
    for second in [700, 705, 710] {
        rig.read(&m, reading(&[("t", 10, None)]), second);
        rig.view(second);
        rig.put("t", 1);
    }
    for later in (715..785).step_by(5) {
        let view = rig.module(later);
        assert_eq!(view.verdict, Verdict::Ok, "after {later} s: {}", view.reason);
    }
}

#[test]
fn a_stored_offset_beyond_the_end_is_never_a_delay_of_0() {
    let mut rig = rig(&["t"]);
    rig.broker.set_topic_ids(false);
    rig.put("t", 20);
    let m = key("m", Source::Zookeeper);
    assert_eq!(rig.verdicts(&m, 20, [0, 5, 10]), [Verdict::Ok]);
    rig.broker.recreate_topic("t", 1);
    rig.put("t", 3);
    // The end became smaller, which an election may do for a moment.
    rig.read(&m, reading(&[("t", 20, Some("one"))]), 15);
    let partition = rig.partition(15);
    assert_eq!((partition.verdict, partition.reason_code), (Verdict::Unknown, ReasonCode::BeyondEnd));
    assert_eq!((partition.delay, partition.unknown, rig.delay(15)), (None, Some("beyond_end"), None));
    assert_eq!(rig.verdicts(&m, 20, (20..60).step_by(5)), [Verdict::Unknown, Verdict::Rewound]);
    assert_eq!(rig.delay(60), Some(3));
}

#[test]
fn a_stored_offset_that_was_read_after_the_end_may_be_beyond_it() {
    let mut rig = rig(&["t"]);
    rig.put("t", 10);
    let m = key("m", Source::Zookeeper);
    rig.read(&m, reading(&[("t", 7, Some("one"))]), 0);
    assert_eq!(rig.delay(0), Some(3));
    // Messages come in and are pushed; the offset is read, and the leader does not respond.
    rig.put("t", 5);
    rig.broker.set_broken(&log_of("t"), Some("a test"));
    for second in [5, 10] {
        rig.read(&m, reading(&[("t", 12, Some("one"))]), second);
        let partition = rig.partition(second);
        assert_eq!((partition.verdict, partition.delay), (Verdict::Ok, Some(3)), "the last pair of offsets");
        assert_eq!((partition.stored, partition.newest), (Some(7), Some(10)));
        assert_eq!(partition.seconds_behind, Some(0.0), "as of that pair");
    }
    rig.broker.set_broken(&log_of("t"), None);
    assert_eq!((rig.delay(11), rig.partition(11).stored), (Some(3), Some(12)));
    // Of a module that is new, there is no such pair.
    rig.broker.set_broken(&log_of("t"), Some("a test"));
    let new = key("new", Source::Zookeeper);
    rig.read(&new, reading(&[("t", 16, Some("one"))]), 12);
    let partition = rig.view(12).modules.remove(1).partitions.remove(0);
    assert_eq!((partition.verdict, partition.delay, partition.unknown), (Verdict::Unknown, None, Some("failed")));
}

#[test]
fn an_empty_topic_that_was_created_again_is_not_rewound_for_ever() {
    let mut rig = rig(&["t"]);
    rig.put("t", 20);
    let m = key("m", Source::Zookeeper);
    rig.verdicts(&m, 20, [0, 5]);
    rig.broker.recreate_topic("t", 1);
    assert_eq!(rig.verdicts(&m, 20, (10..30).step_by(5)), [Verdict::Ok], "its id shows that nothing waits");
    assert_eq!(rig.delay(30), Some(0));
    rig.put("t", 1);
    assert_eq!(rig.verdicts(&m, 20, [35, 40]), [Verdict::Ok, Verdict::Rewound]);
    assert_eq!(rig.verdicts(&m, 1, [45]), [Verdict::Ok]);
}

#[test]
fn a_kafka_group_is_described_before_it_is_judged_and_unknown_members_are_not_none() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Kafka);
    let mut described_at = None;
    for second in (0..=60).step_by(5) {
        rig.put("t", 1);
        rig.places.record_members(&m, Some(true), rig.at(second).at);
        rig.read(&m, in_kafka(0), second);
        rig.view(second);
        let due = !rig.places.take_undescribed(50, rig.at(second).at).is_empty();
        described_at = described_at.or(due.then_some(second));
    }
    assert!(described_at.is_some_and(|second| second < 45), "{described_at:?}");
    let module = rig.module(60);
    assert_eq!((module.verdict, module.reason_code), (Verdict::Stalled, ReasonCode::NothingStored));
    assert!(module.reason.ends_with("came in; its members are not known"), "{}", module.reason);
    let group = GroupDescription { member_count: 1, owners: Some(vec![(log_of("t"), "one@h".into())]) };
    rig.places.record_description(&m, &group, rig.at(60));
    let module = rig.module(61);
    assert_eq!((module.verdict, module.reason_code), (Verdict::Stalled, ReasonCode::NotMoving));
}

#[test]
fn messages_of_an_open_transaction_are_nobodys_fault() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    rig.put("t", 10);
    rig.verdicts(&m, 10, [0, 5]);
    rig.put("t", 4);
    rig.broker.set_open_transaction(&log_of("t"), Some(10));
    assert_eq!(rig.verdicts(&m, 10, (10..60).step_by(5)), [Verdict::Ok]);
    let module = rig.module(60);
    assert_eq!((module.delay, module.reason_code), (Some(4), ReasonCode::Waiting));
    assert!(module.reason.ends_with("; all of them wait for a transaction to end"), "{}", module.reason);
    assert!(rig.places.take_unprobed(50, rig.at(60)).is_empty(), "nobody can read them");
    assert_eq!(rig.verdicts(&m, 10, [90, 95]), [Verdict::Ok, Verdict::Lagging], "they are late all the same");
    // It ends, and what it held back is pushed in time.
    rig.broker.set_open_transaction(&log_of("t"), None);
    assert_eq!(rig.verdicts(&m, 10, (100..140).step_by(5)), [Verdict::Lagging]);
    assert_eq!(rig.verdicts(&m, 10, [145, 150, 155]), [Verdict::Lagging, Verdict::Stalled]);
    assert_eq!(rig.verdicts(&m, 14, [160]), [Verdict::Ok]);
}

/// The reading of a group with the topics `a` and `b`, whose offset nodes have these times.
fn with_times(mut reading: ModuleReading, times: [(&str, i64, i64); 2]) -> ModuleReading {
    for (topic, created, written) in times {
        for place in reading.topics.get_mut(topic).unwrap().places.values_mut() {
            (place.created_ms, place.written_ms) = (Some(created), Some(written));
        }
    }
    reading
}

#[test]
fn a_topic_of_a_group_that_lost_its_consumers_is_not_left_behind() {
    let mut rig = rig(&["a", "b"]);
    let m = key("m", Source::Zookeeper);
    for second in (0..=1_200).step_by(10) {
        rig.read(&m, reading(&[("a", 0, Some("one")), ("b", 0, Some("two"))]), second);
    }
    rig.put("b", 3);
    for second in (1_210..=3_000).step_by(10) {
        rig.read(&m, reading(&[("a", 0, Some("one")), ("b", 0, None)]), second);
        assert_eq!(rig.delay(second), Some(3), "after {second} s");
    }
    let module = rig.view(3_000).modules.remove(1);
    assert_eq!((module.verdict, module.reason_code), (Verdict::Stopped, ReasonCode::NoOwner));
}

#[test]
fn after_a_start_the_nodes_say_which_topic_took_the_place_of_the_other() {
    let hour = 3_600_000;
    // The first one was written while the second one was pushed for an hour, or before, or in a rolling restart.
    for (a_written, b_created, is_left) in [(2 * hour, hour, false), (hour, 2 * hour, true), (hour, hour - 9_000, true)]
    {
        let mut rig = rig(&["a", "b"]);
        rig.put("a", 3);
        let m = key("m", Source::Zookeeper);
        for second in [0, 300, 601] {
            let offsets = reading(&[("a", 0, None), ("b", 0, Some("one"))]);
            rig.read(&m, with_times(offsets, [("a", 1, a_written), ("b", b_created, 3 * hour)]), second);
            rig.view(second);
        }
        assert_eq!(rig.delay(601), Some(if is_left { 0 } else { 3 }), "{a_written} {b_created}");
    }
}

#[test]
fn a_partition_that_is_added_is_no_alarm_until_its_messages_wait() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    let topic = |second: bool| {
        let place = |offset| PlaceReading { stored: Stored::Offset(offset), ..PlaceReading::nothing(owned_by_one()) };
        let mut places = BTreeMap::from([(0, place(0))]);
        if second {
            places.insert(1, place(1));
        }
        let other_owner = Some(Owner::Nobody { since: None });
        let topics =
            BTreeMap::from([(Arc::from("t"), TopicReading { places, other_owner, ..TopicReading::default() })]);
        ModuleReading { topics, members: Some(1), refused: None }
    };
    for second in (0..=100).step_by(5) {
        rig.read(&m, topic(false), second);
        rig.view(second);
    }
    rig.broker.create_topic("t", 2);
    rig.broker.put("t", 1, None, b"x");
    // It is claimed and pushed within a minute.
    for second in (105..=145).step_by(5) {
        rig.read(&m, topic(false), second);
        let module = rig.module(second);
        if second < 125 {
            assert_eq!(module.verdict, Verdict::Ok, "after {second} s: {}", module.reason);
        }
    }
    rig.read(&m, topic(true), 150);
    assert_eq!(rig.module(150).verdict, Verdict::Ok);
}

fn owned_by_one() -> Owner {
    Owner::Named("one".into())
}

#[test]
fn after_a_start_timestamps_say_how_old_a_message_is_and_no_verdict_follows() {
    let mut rig = rig(&["t"]);
    rig.put("t", 100);
    let m = key("m", Source::Zookeeper);
    assert_eq!(rig.verdicts(&m, 40, [0, 5]), [Verdict::Ok]);
    let partition = rig.partition(5);
    assert_eq!((partition.seconds_behind, partition.seconds_at_least), (Some(5.0), true));
    assert_eq!(rig.places.take_undated(9, rig.at(5)), [log_of("t")]);
    assert_eq!(rig.places.take_undated(9, rig.at(6)), [], "the answer is on its way");
    // A message a minute: the one at offset 40 is an hour old.
    let first = |age: Duration| i64::try_from(100 - (age.as_secs() / 60).min(100)).unwrap();
    let found = Timestamps::new(Duration::from_secs(5), ages().map(|age| Some(first(age))).collect());
    rig.places.record_timestamps(vec![(log_of("t"), found)]);
    let partition = rig.partition(6);
    let seconds = partition.seconds_behind.unwrap();
    assert!((3_000.0..4_200.0).contains(&seconds) && !partition.seconds_at_least, "{seconds}");
    assert_eq!((partition.seconds_from, partition.verdict), (Some("timestamps"), Verdict::Ok));
    assert_eq!(rig.verdicts(&m, 99, [10, 15]), [Verdict::Ok]);
    rig.put("t", 1);
    rig.verdicts(&m, 100, [20]);
    assert_eq!(rig.partition(20).seconds_from, Some("history"), "what was seen goes before");
}

#[test]
fn a_module_that_fails_from_its_first_reading_is_unknown_for_as_long_as_it_fails() {
    let mut rig = rig(&["t"]);
    for source in [Source::Zookeeper, Source::Kafka] {
        let m = key("m", source);
        let mut since = None;
        for second in (0..=300).step_by(15) {
            if second % 60 == 0 {
                let now = rig.at(second).at;
                rig.places.record_failure(&m, &"connection lost".into(), now);
            }
            let module = rig.module(second);
            assert_eq!((module.verdict, module.reason_code), (Verdict::Unknown, ReasonCode::SourceSilent));
            assert_eq!((module.delay, module.delay_is_partial), (None, true));
            assert!(module.reason.contains("connection lost"), "{}", module.reason);
            assert_eq!(*since.get_or_insert(module.since), module.since);
        }
        assert_eq!(&*rig.module(300).reason, "the stored offset could not be read for 5 min (connection lost)");
        rig.read(&m, reading(&[("t", 0, Some("one"))]), 301);
        assert_eq!(rig.module(301).verdict, Verdict::Ok);
        rig.places.record_module(&m, None, rig.at(302));
    }
}

#[test]
fn a_group_that_had_nothing_is_unknown_when_it_was_not_read_for_too_long() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    rig.read(&m, ModuleReading::default(), 0);
    rig.places.record_failure(&m, &"connection lost".into(), rig.at(5).at);
    assert_eq!(rig.module(15).verdict, Verdict::Ok, "what is known stays known");
    let module = rig.module(16);
    assert_eq!((module.verdict, &*module.reason), (Verdict::Unknown, SILENT));
}

const SILENT: &str = "the stored offset could not be read for 16 s (connection lost)";

#[test]
fn offsets_of_a_topic_that_may_not_be_listed_any_more_are_unknown_and_not_frozen() {
    let mut rig = rig(&["t", "u"]);
    let m = key("m", Source::Zookeeper);
    let both = || reading(&[("t", 0, Some("one")), ("u", 0, Some("one"))]);
    rig.put("t", 3);
    rig.read(&m, both(), 0);
    assert_eq!(rig.delay(0), Some(3));
    let mut denied = both();
    denied.topics.insert("t".into(), TopicReading { refused: Some("no access".into()), ..TopicReading::default() });
    for second in [5, 60] {
        rig.read(&m, denied.clone(), second);
        assert_eq!(rig.delay(second), None, "the sum of a number that is unknown");
        let partition = rig.partition(second);
        assert_eq!((partition.delay, partition.unknown), (None, Some("not_authorized")));
        assert_eq!(rig.module(second).reason_code, ReasonCode::NotAuthorized);
    }
    let partition = rig.partition(60);
    assert_eq!((partition.verdict, partition.reason_code), (Verdict::Unknown, ReasonCode::NotAuthorized));
    rig.read(&m, both(), 65);
    assert_eq!(rig.delay(65), Some(3));
}

#[test]
fn a_recreated_topic_that_is_pushed_again_is_known_throughout() {
    for has_ids in [true, false] {
        let mut rig = rig(&["t"]);
        rig.broker.set_topic_ids(has_ids);
        rig.put("t", 20);
        let m = key("m", Source::Zookeeper);
        rig.verdicts(&m, 20, [0, 5]);
        rig.broker.recreate_topic("t", 1);
        rig.put("t", 3);
        rig.verdicts(&m, 20, (10..=50).step_by(5));
        assert_eq!((rig.delay(50), rig.module(50).verdict), (Some(3), Verdict::Rewound), "{has_ids}");
        // Its first message is pushed, and the log cannot be read after the offset.
        rig.broker.set_broken(&log_of("t"), Some("a test"));
        rig.read(&m, reading(&[("t", 1, Some("one"))]), 55);
        let partition = rig.partition(55);
        assert_eq!((partition.verdict, partition.delay, partition.unknown), (Verdict::Rewound, Some(3), None));
        rig.broker.set_broken(&log_of("t"), None);
        assert_eq!(rig.verdicts(&m, 1, [60, 65]), [Verdict::Rewound, Verdict::Ok]);
        assert_eq!(rig.delay(65), Some(2));
    }
}

#[test]
fn a_topic_without_an_id_that_was_gone_and_is_back_counts_from_its_beginning() {
    let mut rig = rig(&[]);
    rig.broker.set_topic_ids(false);
    rig.broker.create_topic("t", 1);
    rig.put("t", 5);
    let (m, n) = (key("m", Source::Zookeeper), key("n", Source::Zookeeper));
    rig.verdicts(&m, 5, [0, 5]);
    rig.read(&n, reading(&[("t", 5, Some("one"))]), 5);
    rig.broker.delete_topic("t");
    for second in (10..=40).step_by(5) {
        rig.read(&n, reading(&[("t", 5, Some("one"))]), second);
        rig.verdicts(&m, 5, [second]);
    }
    assert_eq!(rig.partition(40).reason_code, ReasonCode::Gone);
    // The new one is longer than the stored offset of one module, and pushed by the other.
    rig.broker.create_topic("t", 1);
    rig.put("t", 8);
    for second in (45..=60).step_by(5) {
        rig.read(&n, reading(&[("t", 1, Some("one"))]), second);
        rig.read(&m, reading(&[("t", 5, Some("one"))]), second);
        rig.view(second);
    }
    let delays = rig.view(60).modules.iter().map(|module| module.delay).collect::<Vec<_>>();
    assert_eq!(delays, [Some(8), Some(7)]);
    assert_eq!(rig.partition(60).reason_code, ReasonCode::Recreated);
}

#[test]
fn a_message_behind_old_markers_has_its_own_time() {
    let mut rig = rig(&["t"]);
    rig.put("t", 3);
    rig.broker.put_marker(&log_of("t"));
    let m = key("m", Source::Zookeeper);
    // Nothing waits for an hour but a marker, which a probe passes.
    for second in (0..=3_600).step_by(60) {
        rig.verdicts(&m, 3, [second]);
        let now = rig.at(second);
        for probe in rig.places.take_unprobed(9, now) {
            rig.places.record_probes(&[(probe, Finding::Nothing)]);
        }
    }
    rig.put("t", 1);
    assert_eq!(rig.verdicts(&m, 3, (3_605..3_645).step_by(5)), [Verdict::Ok]);
    assert_eq!((rig.delay(3_645), rig.partition(3_645).seconds_behind), (Some(1), Some(37.5)));
    // The log is another one: nothing is known of its messages.
    rig.broker.recreate_topic("t", 1);
    rig.put("t", 6);
    rig.verdicts(&m, 3, [3_650]);
    assert_eq!(rig.delay(3_650), Some(6));
}
