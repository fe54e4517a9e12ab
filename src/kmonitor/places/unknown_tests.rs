//! Tests of what is shown while a number is unknown, and after that: nothing that stands still and looks like one.

use super::tests::{Rig, key, reading, rig};
use super::*;
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::view::ModuleView;

fn read(rig: &mut Rig, offset: i64, second: u64) -> ModuleView {
    rig.read(&key("m", Source::Zookeeper), reading(&[("t", offset, Some("one"))]), second);
    rig.view(second).modules.remove(0)
}

#[test]
fn seconds_and_rates_are_unknown_while_the_delay_is() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    for second in (0..=60).step_by(5) {
        rig.put("t", 10);
        read(&mut rig, i64::try_from(second).unwrap(), second);
    }
    let known = read(&mut rig, 60, 60);
    assert!(known.seconds_behind.is_some() && known.in_per_second.is_some() && known.out_per_second.is_some());
    for second in (65..=120).step_by(5) {
        rig.places.record_failure(&m, &"connection lost".into(), rig.at(second).at);
        let module = rig.view(second).modules.remove(0);
        let numbers = (module.seconds_behind, module.in_per_second, module.out_per_second);
        let partition = &module.partitions[0];
        if 75 < second {
            assert_eq!((module.verdict, numbers), (Verdict::Unknown, (None, None, None)), "after {second} s");
            assert_eq!((partition.seconds_behind, partition.seconds_from), (None, None));
        } else {
            assert!(partition.seconds_behind.is_some(), "after {second} s");
        }
    }
}

#[test]
fn what_came_and_went_while_nobody_could_see_it_is_no_peak_of_the_rates() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    let log = TopicPartition { topic: "t".into(), partition: 0 };
    let mut end = 0;
    let mut rates = Vec::new();
    for second in (0..=900).step_by(5) {
        // Ten messages a second come in, and are pushed at once.
        rig.put("t", 50);
        end += 50;
        let is_away = (300..600).contains(&second);
        rig.broker.set_broken(&log, is_away.then_some("a test"));
        if is_away {
            rig.places.record_failure(&m, &"connection lost".into(), rig.at(second).at);
            rig.view(second);
            continue;
        }
        let module = read(&mut rig, end, second);
        rates.extend([module.in_per_second, module.out_per_second].into_iter().flatten());
    }
    assert!(rates.iter().all(|rate| *rate < 10.1), "{rates:?}");
    assert!(rates.iter().rev().take(10).all(|rate| 9.9 < *rate), "{rates:?}");
}

#[test]
fn logs_that_cannot_be_probed_keep_no_other_from_it() {
    let mut rig = rig(&["a", "b", "c"]);
    for topic in ["a", "b", "c"] {
        rig.put(topic, 1);
        rig.read(&key(topic, Source::Zookeeper), reading(&[(topic, 0, Some("one"))]), 0);
    }
    let mut probed = Vec::new();
    for second in (0..=240).step_by(60) {
        rig.view(second);
        rig.view(second);
        let now = rig.at(second);
        probed.extend(rig.places.take_unprobed(1, now).into_iter().map(|probe| probe.at.topic.to_string()));
    }
    assert_eq!(probed, ["a", "b", "c", "a", "b"]);
}
