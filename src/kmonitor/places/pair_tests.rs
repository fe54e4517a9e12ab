//! Tests of long cycles: the two readings of a delay belong together, however often one of them is made alone.

use super::tests::{Rig, key, reading, rig};
use super::*;
use crate::kmonitor::facts::{Limits, Verdict};
use crate::kmonitor::view::ModuleView;

/// Offset of the next message of `t`, and how many a second come in.
struct Inflow {
    end: i64,
    per_second: i64,
}

impl Inflow {
    fn let_pass(&mut self, rig: &mut Rig, seconds: u64) {
        let count = self.per_second * i64::try_from(seconds).unwrap();
        rig.put("t", usize::try_from(count).unwrap());
        self.end += count;
    }
}

/// With cycles of 100 s, as the poller sets them.
fn limits() -> Limits {
    Limits { fresh_for: Duration::from_secs(300), lagging_messages: Some(1_000), ..Limits::default() }
}

fn module<'a>(modules: &'a [ModuleView], name: &str) -> &'a ModuleView {
    modules.iter().find(|module| &*module.name == name).unwrap()
}

fn check(module: &ModuleView, delay: u64, when: u64) {
    let partition = &module.partitions[0];
    assert_eq!((module.delay, module.verdict), (Some(delay), Verdict::Ok), "after {when} s: {}", module.reason);
    let difference = partition.newest.unwrap() - partition.stored.unwrap();
    assert_eq!(u64::try_from(difference).unwrap(), delay, "after {when} s: the two offsets that are shown");
}

#[test]
fn what_came_in_since_the_stored_offset_was_read_is_no_delay() {
    let mut rig = rig(&["t"]);
    rig.limits = limits();
    let (m, other) = (key("m", Source::Zookeeper), key("other", Source::Zookeeper));
    let mut inflow = Inflow { end: 0, per_second: 50 };
    inflow.let_pass(&mut rig, 1);
    // Cycles of 100 s. Both modules push what comes in at once, but for a few messages.
    for began in (0..500).step_by(100) {
        rig.read(&m, reading(&[("t", inflow.end - 3, Some("one"))]), began);
        check(module(&rig.view_of(std::slice::from_ref(&m), began).modules, "m"), 3, began);
        inflow.let_pass(&mut rig, 40);
        // The slice with the other module, which pushes the same topic.
        let second = began + 40;
        rig.read(&other, reading(&[("t", inflow.end - 7, Some("two"))]), second);
        let view = rig.view_of(std::slice::from_ref(&other), second);
        check(module(&view.modules, "m"), 3, second);
        check(module(&view.modules, "other"), 7, second);
        // The ends alone, with which a cycle begins.
        for second in [began + 80, began + 90] {
            inflow.let_pass(&mut rig, if second == began + 80 { 40 } else { 10 });
            let view = rig.view_of(&[], second);
            check(module(&view.modules, "m"), 3, second);
            check(module(&view.modules, "other"), 7, second);
        }
        inflow.let_pass(&mut rig, 10);
    }
}

#[test]
fn one_reading_of_the_stored_offset_is_one_reading_however_often_the_end_is_read() {
    let mut rig = rig(&["t"]);
    rig.limits = limits();
    let m = key("m", Source::Zookeeper);
    let mut inflow = Inflow { end: 0, per_second: 50 };
    inflow.let_pass(&mut rig, 60);
    rig.read(&m, reading(&[("t", inflow.end, Some("one"))]), 0);
    assert_eq!(rig.view(0).modules[0].verdict, Verdict::Ok);
    for (second, behind, verdict) in [(100, 2_000, Verdict::Ok), (200, 0, Verdict::Ok), (300, 2_000, Verdict::Ok)] {
        inflow.let_pass(&mut rig, 50);
        rig.read(&m, reading(&[("t", inflow.end - behind, Some("one"))]), second);
        assert_eq!(rig.view(second).modules[0].verdict, verdict, "after {second} s");
        for later in (second + 5..second + 95).step_by(5) {
            // Whether more comes in or not.
            inflow.let_pass(&mut rig, u64::from(later % 2 == 0));
            let view = rig.view_of(&[], later);
            assert_eq!(view.modules[0].verdict, verdict, "after {later} s: {}", view.modules[0].reason);
        }
    }
    inflow.let_pass(&mut rig, 50);
    rig.read(&m, reading(&[("t", inflow.end - 2_000, Some("one"))]), 400);
    assert_eq!(rig.view(400).modules[0].verdict, Verdict::Lagging, "the second reading");
}

#[test]
fn a_module_at_rest_is_read_when_the_end_of_its_log_has_moved_whoever_saw_that() {
    let mut rig = rig(&["t"]);
    let (m, other) = (key("m", Source::Zookeeper), key("other", Source::Zookeeper));
    let mut inflow = Inflow { end: 0, per_second: 1 };
    inflow.let_pass(&mut rig, 5);
    for key in [&m, &other] {
        rig.read(key, reading(&[("t", 5, Some("one"))]), 0);
    }
    rig.view(0);
    let is_active = |rig: &Rig| {
        let mut candidates = rig.places.candidates(Source::Zookeeper, BTreeSet::new(), rig.at(10).at);
        rig.places.mark_active(&mut candidates);
        candidates.iter().find(|candidate| candidate.key == m).unwrap().is_active
    };
    rig.view_of(&[], 5);
    assert!(!is_active(&rig));
    rig.places.confirm_idle(Source::Zookeeper, rig.at(6).at);
    assert_eq!(rig.places.modules[&m].valid_at, Some(rig.at(6).at));
    // The other module is read, and with it the log; in the cycle after that nothing comes in.
    inflow.let_pass(&mut rig, 2);
    rig.read(&other, reading(&[("t", 5, Some("one"))]), 7);
    rig.view_of(std::slice::from_ref(&other), 7);
    rig.view_of(&[], 12);
    assert!(is_active(&rig), "two messages came in");
    rig.places.confirm_idle(Source::Zookeeper, rig.at(13).at);
    assert_eq!(rig.places.modules[&m].valid_at, Some(rig.at(6).at), "its number is that of before");
}

#[test]
fn an_offset_that_could_not_be_read_again_makes_no_delay_with_the_end_of_now() {
    for source in [Source::Zookeeper, Source::Kafka] {
        let mut rig = rig(&["t"]);
        let (m, other) = (key("m", source), key("other", source));
        let mut inflow = Inflow { end: 0, per_second: 50 };
        inflow.let_pass(&mut rig, 1);
        for second in [0, 5, 10, 15] {
            // Both push what comes in; one of the slice cannot be read for some seconds.
            match second {
                0 | 15 => rig.read(&m, reading(&[("t", inflow.end - 3, Some("one"))]), second),
                _ => rig.places.record_failure(&m, &"no response".into(), rig.at(second).at),
            }
            rig.read(&other, reading(&[("t", inflow.end - 7, Some("two"))]), second);
            let modules = rig.view(second).modules;
            check(module(&modules, "m"), 3, second);
            check(module(&modules, "other"), 7, second);
            inflow.let_pass(&mut rig, 5);
        }
        rig.places.record_failure(&m, &"no response".into(), rig.at(400).at);
        let module = rig.view(400).modules.remove(0);
        assert_eq!((module.delay, module.verdict), (None, Verdict::Unknown));
    }
}

#[test]
fn a_delay_of_before_has_the_age_of_its_offsets() {
    let mut rig = rig(&["t"]);
    let (m, other) = (key("m", Source::Zookeeper), key("other", Source::Zookeeper));
    let log = TopicPartition { topic: "t".into(), partition: 0 };
    rig.put("t", 10);
    rig.read(&m, reading(&[("t", 7, Some("one"))]), 0);
    rig.view(0);
    // The log is read for another module, and then it does not respond.
    rig.read(&other, reading(&[("t", 10, Some("two"))]), 5);
    rig.put("t", 1);
    rig.view_of(std::slice::from_ref(&other), 5);
    rig.broker.set_broken(&log, Some("a test"));
    rig.read(&m, reading(&[("t", 8, Some("one"))]), 6);
    let partition = rig.view(6).modules.remove(0).partitions.remove(0);
    assert_eq!((partition.delay, partition.stored, partition.read_at), (Some(3), Some(7), Some(rig.at(0).at)));
    rig.broker.set_broken(&log, None);
    let partition = rig.view(7).modules.remove(0).partitions.remove(0);
    assert_eq!((partition.delay, partition.read_at), (Some(3), Some(rig.at(6).at)));
}
