//! Tests of what operators have paused: it is no alarm, and its clock begins again when it is resumed.

use super::tests::{in_kafka, key, reading, rig};
use super::*;
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::view::ReasonCode;

const BY_ANN: &[u8] = br#"{"partitions":{"0":{"by":"ann","at_ms":1}}}"#;

fn with(mut reading: ModuleReading, pauses: Option<Pauses>) -> ModuleReading {
    reading.topics.values_mut().for_each(|topic| topic.pauses.clone_from(&pauses));
    reading
}

#[test]
fn what_an_operator_paused_is_never_stalled_and_has_its_time_after_the_pause() {
    for source in [Source::Zookeeper, Source::Kafka] {
        let mut rig = rig(&["t"]);
        let m = key("m", source);
        let mut paused_reads = 0;
        for second in (0..=300).step_by(5) {
            if second == 5 {
                rig.put("t", 7);
            }
            // In ZooKeeper, the node is read only where nothing moves. The pause ends after 200 s.
            let is_read = source == Source::Kafka || rig.places.needs_pauses(&m);
            let pauses = if second < 200 { Pauses::of_node(BY_ANN) } else { Pauses::default() };
            paused_reads += usize::from(is_read);
            let offsets = if source == Source::Kafka { in_kafka(0) } else { reading(&[("t", 0, Some("one"))]) };
            rig.read(&m, with(offsets, is_read.then_some(pauses)), second);
            let module = rig.view(second).modules.remove(0);
            match second {
                0..245 => assert!(module.verdict <= Verdict::Lagging, "after {second} s: {}", module.reason),
                260.. => assert_eq!(module.verdict, Verdict::Stalled, "after {second} s: {}", module.reason),
                _ => {}
            }
            if (30..200).contains(&second) {
                assert_eq!((module.reason_code, module.delay), (ReasonCode::Paused, Some(7)), "after {second} s");
                assert!(module.reason.starts_with("paused by ann "), "{}", module.reason);
            }
        }
        assert!(source == Source::Kafka || paused_reads < 60, "{paused_reads}");
        assert!(rig.places.needs_pauses(&m), "something is wrong");
    }
}

#[test]
fn only_what_stands_still_needs_to_be_read() {
    let mut rig = rig(&["t"]);
    let m = key("m", Source::Zookeeper);
    for second in (0..=100).step_by(5) {
        rig.put("t", 1);
        rig.read(&m, reading(&[("t", i64::try_from(second / 5).unwrap(), Some("one"))]), second);
        rig.view(second);
        assert!(!rig.places.needs_pauses(&m), "after {second} s");
    }
}
