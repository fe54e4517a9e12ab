//! How much memory a partition takes: 100,000 of them have to fit into 200 MiB together with all answers.

use std::mem::size_of;

use super::tests::{key, reading, rig};
use super::*;
use crate::kmonitor::view::PartitionView;

/// While a view is published, the one before is still there.
const VIEWS: usize = 2;

#[test]
fn a_partition_at_rest_takes_about_a_kilobyte() {
    let (place, log, view) = (size_of::<Place>(), size_of::<Log>(), size_of::<PartitionView>());
    // Of the maps: a pointer and a number for a place; the key and a pointer for a log, in a table that may be half
    // full. The allocator adds 16 bytes to each box.
    let maps = 2 * size_of::<(PartitionId, usize)>() + 2 * size_of::<(TopicPartition, usize)>() + 2 * 16;
    let sum = place + log + maps + VIEWS * view;
    assert!(sum <= 1_300, "place {place}, log {log}, maps {maps}, view {view}: together {sum} bytes");
}

#[test]
fn partitions_at_rest_share_their_sentence_and_their_history() {
    let mut rig = rig(&[]);
    rig.broker.create_topic("t", 100);
    rig.read(&key("m", Source::Zookeeper), reading(&[("t", 0, Some("one"))]), 0);
    let view = rig.view(0).modules.remove(0);
    assert_eq!(view.partitions.len(), 100);
    for partition in &view.partitions[1..] {
        assert!(Arc::ptr_eq(&partition.history, &view.partitions[0].history), "{}", partition.partition);
        assert!(Arc::ptr_eq(&partition.reason, &view.partitions[0].reason), "{}", partition.partition);
    }
}
