//! Tests of the members of Kafka groups: what a description proves, and which groups are described when.

use super::tests::{Rig, in_kafka, key, rig};
use super::*;
use crate::broker::GroupDescription;
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::view::ReasonCode;

fn at(topic: &str) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition: 0 }
}

/// A group that has assigned partition 0 of these topics.
fn assigned(topics: &[&str]) -> GroupDescription {
    let owners = topics.iter().map(|topic| (at(topic), Arc::from("client@host"))).collect();
    GroupDescription { member_count: 2, owners: Some(owners) }
}

/// A group that assigns its partitions now.
fn rebalancing() -> GroupDescription {
    GroupDescription { member_count: 2, owners: None }
}

impl Rig {
    /// Reads a group with members, as a cycle does.
    fn cycle(&mut self, m: &ModuleKey, reading: ModuleReading, second: u64) {
        let now = self.at(second).at;
        self.places.record_members(m, Some(true), now);
        self.read(m, reading, second);
    }

    fn undescribed(&mut self, max: usize, second: u64) -> Vec<ModuleKey> {
        let now = self.at(second).at;
        self.places.take_undescribed(max, now)
    }
}

#[test]
fn members_of_a_group_are_read_often_when_something_is_wrong_and_forgotten_later() {
    let mut rig = rig(&["t"]);
    rig.put("t", 100);
    let m = key("m", Source::Kafka);
    let mut described = Vec::new();
    for second in (0..=180).step_by(5) {
        rig.cycle(&m, in_kafka(0), second);
        rig.view(second);
        if rig.undescribed(50, second) == [m.clone()] {
            rig.places.record_description(&m, &assigned(&["t"]), rig.at(second));
            described.push(second);
        }
    }
    assert_eq!(described, [0, 30, 60, 90, 120, 150, 180], "once at the begin, and from when nothing moves");
    let module = rig.view(180).modules.remove(0);
    assert_eq!((module.members, module.owners, module.verdict), (Some(2), Some(1), Verdict::Stalled));
    assert_eq!(module.partitions[0].owner.as_deref(), Some("client@host"));
    assert_eq!(rig.undescribed(50, 210), std::slice::from_ref(&m), "it cannot be described");
    assert_eq!(rig.undescribed(50, 211), [], "not at once again");
    rig.undescribed(50, 270);
    let module = rig.view(270).modules.remove(0);
    assert_eq!((module.members, module.partitions[0].owner.as_deref()), (None, None), "too old");
}

#[test]
fn a_rebalance_leaves_no_partition_without_an_owner() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Kafka);
    rig.put("t", 1_000);
    rig.cycle(&m, in_kafka(0), 0);
    rig.places.record_description(&m, &assigned(&["t"]), rig.at(0));
    for second in (5..=120).step_by(5) {
        rig.put("t", 5);
        rig.cycle(&m, in_kafka(i64::try_from(second).unwrap()), second);
        if second % 30 == 0 {
            rig.places.record_description(&m, &rebalancing(), rig.at(second));
        }
        let module = rig.view(second).modules.remove(0);
        assert!(module.verdict < Verdict::Unknown, "after {second} s: {}", module.reason);
        assert_eq!(module.partitions[0].owner.as_deref(), Some("client@host"), "after {second} s");
    }
    // Neither is a partition unowned whose owner was never known, nor one of which nothing was ever committed.
    let new = key("new", Source::Kafka);
    for second in (125..=300).step_by(5) {
        rig.cycle(&new, in_kafka(i64::try_from(second).unwrap()), second);
        rig.places.record_description(&new, &rebalancing(), rig.at(second));
        let module = rig.view(second).modules.remove(1);
        assert!(module.verdict < Verdict::Unknown, "after {second} s: {}", module.reason);
    }
}

#[test]
fn a_group_without_known_topics_but_with_members_is_never_ok() {
    let mut rig = rig(&["t"]);
    rig.put("t", 5);
    let m = key("m", Source::Kafka);
    let steps: [(Option<GroupDescription>, &str); 4] = [
        (None, "nothing is committed, and it is not known yet which partitions the members have"),
        (Some(rebalancing()), "nothing is committed, and it is not known yet which partitions the members have"),
        (Some(assigned(&[])), "nothing is committed; 2 members are alive, but have no partition"),
        // A description that the list of groups contradicts.
        (
            Some(GroupDescription { member_count: 0, owners: Some(Vec::new()) }),
            "nothing is committed; 2 members are alive, but have no partition",
        ),
    ];
    let mut since = None;
    for ((description, reason), second) in steps.into_iter().zip([0, 5, 10, 15]) {
        rig.cycle(&m, ModuleReading::default(), second);
        if let Some(description) = description {
            rig.places.record_description(&m, &description, rig.at(second));
        }
        let module = rig.view(second).modules.remove(0);
        assert_eq!((module.verdict, module.reason_code), (Verdict::Unknown, ReasonCode::NotReadYet), "{second}");
        assert_eq!((&*module.reason, module.delay), (reason, None));
        assert_eq!(*since.get_or_insert(module.since), module.since, "since when it is so");
    }
    rig.places.record_description(&m, &assigned(&["t"]), rig.at(20));
    let module = rig.view(20).modules.remove(0);
    assert_eq!((&*module.topic, module.delay), ("t", Some(5)));
    // In the next rebalance its topic is still known.
    rig.cycle(&m, ModuleReading::default(), 25);
    rig.places.record_description(&m, &rebalancing(), rig.at(25));
    assert_eq!(rig.view(25).modules.remove(0).delay, Some(5));
    // An empty group that never committed has nothing that could wait.
    let empty = key("empty", Source::Kafka);
    rig.cycle(&empty, ModuleReading::default(), 30);
    rig.places.record_members(&empty, Some(false), rig.at(30).at);
    let module = rig.view(30).modules.remove(0);
    assert_eq!((&*module.name, module.verdict, module.delay), ("empty", Verdict::Ok, Some(0)));
}

#[test]
fn members_in_zookeeper_that_own_nothing_are_unknown_too() {
    let mut rig = rig(&[]);
    let m = key("m", Source::Zookeeper);
    for (members, verdict) in [(Some(1), Verdict::Unknown), (Some(0), Verdict::Ok), (None, Verdict::Ok)] {
        rig.read(&m, ModuleReading { members, ..ModuleReading::default() }, 0);
        let module = rig.view(0).modules.remove(0);
        assert_eq!((module.verdict, module.delay.is_none()), (verdict, verdict == Verdict::Unknown));
        let reason = "nothing is stored; 1 member is alive, but owns no partition";
        assert_eq!(&*module.reason == reason, verdict == Verdict::Unknown, "{}", module.reason);
    }
}

#[test]
fn a_topic_that_a_group_owns_and_never_committed_is_shown_beside_those_it_committed() {
    let mut rig = rig(&["t", "u"]);
    let m = key("m", Source::Kafka);
    rig.put("u", 5);
    let mut seen = None;
    for second in (0..=120).step_by(5) {
        // All that it committed is pushed.
        rig.cycle(&m, in_kafka(0), second);
        for key in rig.undescribed(50, second) {
            // The group consumes the other topic, too, after half a minute.
            let topics = if second < 30 { &["t"][..] } else { &["t", "u"] };
            rig.places.record_description(&key, &assigned(topics), rig.at(second));
        }
        let view = rig.view(second);
        if view.modules.len() == 2 {
            seen.get_or_insert(second);
            assert_eq!((&*view.modules[1].topic, view.modules[1].delay), ("u", Some(5)));
        }
    }
    assert_eq!(seen, Some(60), "it was seen, and stays");
}

#[test]
fn a_group_that_is_listed_and_not_read_yet_is_not_shown_and_one_without_members_is_not_described() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Kafka);
    rig.places.record_members(&m, Some(false), rig.at(0).at);
    assert!(rig.view(0).modules.is_empty());
    assert_eq!(rig.undescribed(9, 0), []);
    rig.put("t", 1);
    rig.read(&m, in_kafka(0), 0);
    assert_eq!(rig.undescribed(9, 0), [], "the list says that it has none");
    assert_eq!(rig.view(0).modules[0].members, Some(0));
}

#[test]
fn groups_that_cannot_be_described_keep_no_other_from_it() {
    let mut rig = rig(&["t"]);
    rig.put("t", 1);
    let keys = |name: &str| (0..30).map(|number| key(&format!("{name}-{number}"), Source::Kafka)).collect::<Vec<_>>();
    let (bad, good) = (keys("bad"), keys("good"));
    for second in [0, 60, 120] {
        bad.iter().for_each(|key| rig.cycle(key, in_kafka(0), second));
        good.iter().for_each(|key| rig.cycle(key, in_kafka(1), second));
        rig.view(second);
    }
    // The bad ones always fail.
    let mut taken = BTreeSet::new();
    for second in (120..150).step_by(5) {
        let keys = rig.undescribed(10, second);
        assert_eq!(keys.len(), 10);
        for key in keys {
            if key.name.starts_with("good") {
                rig.places.record_description(&key, &assigned(&["t"]), rig.at(second));
            }
            taken.insert(key);
        }
    }
    assert_eq!(bad.iter().filter(|key| taken.contains(key)).count(), 30, "the bad ones first");
    let described = good.iter().filter(|key| taken.contains(key)).count();
    assert_eq!(described, 12, "two of the others in each cycle");
}

#[test]
fn a_kafka_group_that_consumes_another_topic_now_has_left_the_former_one_behind() {
    let mut rig = rig(&["t", "u"]);
    let m = key("m", Source::Kafka);
    rig.put("u", 2);
    rig.cycle(&m, in_kafka(0), 0);
    rig.places.record_description(&m, &assigned(&["t"]), rig.at(0));
    for second in (10..=800).step_by(10) {
        rig.cycle(&m, in_kafka(0), second);
        rig.places.record_description(&m, &assigned(&["u"]), rig.at(second));
        rig.view(second);
    }
    rig.put("t", 1_000);
    assert_eq!(rig.delay(800), Some(2), "others write to the former topic");
    let codes: Vec<_> = rig.view(800).modules.iter().map(|module| module.reason_code).collect();
    assert_eq!(codes[0], ReasonCode::LeftBehind);
}

#[test]
fn a_partition_that_no_member_has_is_stopped_however_rarely_its_group_is_described() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Kafka);
    rig.put("t", 5);
    let mut verdicts = Vec::new();
    for second in (0..=1_000).step_by(5) {
        rig.put("t", 1);
        rig.cycle(&m, in_kafka(0), second);
        // Its turn comes every 200 s.
        let is_its_turn = second % 200 == 0;
        if !rig.undescribed(usize::from(is_its_turn), second).is_empty() {
            rig.places.record_description(&m, &assigned(&[]), rig.at(second));
        }
        verdicts.push(rig.view(second).modules[0].verdict);
    }
    verdicts.dedup();
    assert_eq!(verdicts, [Verdict::Ok, Verdict::Lagging, Verdict::Stopped]);
    assert_eq!(rig.view(1_000).modules[0].reason_code, ReasonCode::NoOwner);
    // Descriptions that fail make the owners unknown; the next one goes on with the clock.
    for second in (1_005..=1_300).step_by(5) {
        rig.cycle(&m, in_kafka(0), second);
        rig.undescribed(9, second);
    }
    assert_eq!(rig.view(1_300).modules[0].members, None);
    rig.places.record_description(&m, &assigned(&[]), rig.at(1_300));
    rig.view(1_300);
    rig.cycle(&m, in_kafka(0), 1_305);
    assert_eq!(rig.view(1_305).modules[0].reason_code, ReasonCode::NoOwner);
}

#[test]
fn a_partition_that_was_pushed_between_two_descriptions_had_an_owner() {
    let rig = rig(&[]);
    let at = |second| rig.at(second);
    for (is_unknown, moves, since) in [(true, false, 200), (true, true, 0), (false, false, 200), (false, true, 0)] {
        let mut place = Place::without_offset(Owner::Nobody { since: None }, at(0));
        if is_unknown {
            place.forget_owner();
        }
        if moves {
            let reading = PlaceReading { stored: Stored::Offset(1), ..PlaceReading::nothing(Owner::Unknown) };
            place.record(&reading, None, false, at(100));
        }
        place.set_owner(Owner::Nobody { since: None }, at(200).at);
        assert_eq!(place.owner(), Owner::Nobody { since: Some(Duration::from_secs(since)) });
    }
}

#[test]
fn a_topic_that_was_never_committed_leaves_some_time_after_its_last_member() {
    let mut rig = rig(&["t", "u"]);
    let m = key("m", Source::Kafka);
    rig.put("u", 5);
    let is_shown = |rig: &mut Rig, second: u64, description: Option<&[&str]>| {
        let now = rig.at(second);
        rig.places.record_members(&m, Some(description.is_some()), now.at);
        rig.read(&m, in_kafka(0), second);
        if let Some(topics) = description {
            rig.places.record_description(&m, &assigned(topics), now);
        }
        let view = rig.view(second);
        view.modules.into_iter().find(|module| &*module.topic == "u").map(|module| (module.delay, module.verdict))
    };
    assert_eq!(is_shown(&mut rig, 0, Some(&["t", "u"])), Some((Some(5), Verdict::Ok)));
    // The members restart.
    for (second, description) in [(10, None), (60, None), (120, Some(&["t", "u"][..]))] {
        let delay = is_shown(&mut rig, second, description).and_then(|(delay, _)| delay);
        assert_eq!(delay, Some(5), "after {second} s");
    }
    // They do not come back.
    for second in (130..=1_000).step_by(10) {
        let shown = is_shown(&mut rig, second, None);
        assert_eq!(shown.is_some(), second < 730, "after {second} s");
        if (160..730).contains(&second) {
            assert_eq!(shown, Some((Some(5), Verdict::Stopped)), "after {second} s");
        }
    }
    // Members that do not subscribe to it any more leave it at once.
    assert!(is_shown(&mut rig, 1_010, Some(&["t", "u"])).is_some());
    is_shown(&mut rig, 1_020, Some(&["t"]));
    assert_eq!(is_shown(&mut rig, 1_030, Some(&["t"])), None);
}

#[test]
fn a_group_that_one_list_lacks_is_kept_until_its_offsets_are_gone() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Kafka);
    rig.put("t", 1);
    for second in (0..=120).step_by(5) {
        rig.cycle(&m, in_kafka(0), second);
        rig.places.record_description(&m, &assigned(&["t"]), rig.at(second));
        rig.view(second);
    }
    // It moves to another coordinator.
    rig.places.keep_only(Source::Kafka, &BTreeSet::new());
    assert!(rig.places.candidates(Source::Kafka, BTreeSet::new(), rig.at(125).at)[0].is_active, "it is read now");
    rig.read(&m, in_kafka(0), 125);
    assert_eq!(rig.view(125).modules[0].verdict, Verdict::Stalled, "its clocks go on");
    rig.places.keep_only(Source::Kafka, &BTreeSet::from([Arc::clone(&m.name)]));
    rig.cycle(&m, ModuleReading::default(), 130);
    assert_eq!(rig.view(130).modules.len(), 1, "listed, without offsets");
    rig.places.keep_only(Source::Kafka, &BTreeSet::new());
    rig.read(&m, ModuleReading::default(), 135);
    assert!(rig.view(135).modules.is_empty(), "it was deleted");
}
