//! Tests of a move between an ensemble in memory and offsets in memory.

use super::*;
use crate::broker::membership::{CommitError, CommittedOffset, GroupMembers, GroupOffsets};
use crate::keeper::Lifetime;
use crate::keeper::in_memory::InMemoryEnsemble;
use crate::keeper::paths::{self, create_with_parents};

/// The offsets of a group in Kafka, without a broker.
#[derive(Default)]
struct MemoryOffsets {
    offsets: Vec<CommittedOffset>,
    members: Vec<String>,
    /// Commits are confirmed and forgotten.
    forgets: bool,
}

impl GroupOffsets for MemoryOffsets {
    fn committed(&mut self, _: Instant) -> Result<Vec<CommittedOffset>, String> {
        Ok(self.offsets.clone())
    }

    fn members(&mut self, _: Instant) -> Result<GroupMembers, String> {
        Ok(GroupMembers { names: self.members.clone(), assigned: None })
    }

    fn n_partitions(&mut self, _: Instant) -> Result<Option<PartitionId>, String> {
        Ok(None)
    }

    fn commit(&mut self, offsets: &[CommittedOffset], _: Instant) -> Vec<Result<(), CommitError>> {
        for offset in offsets.iter().filter(|_| !self.forgets) {
            self.offsets.retain(|known| known.partition != offset.partition);
            self.offsets.push(offset.clone());
        }
        offsets.iter().map(|_| Ok(())).collect()
    }
}

fn kafka(offsets: MemoryOffsets) -> KafkaOffsets {
    KafkaOffsets { offsets: Box::new(offsets) }
}

const TO_KAFKA: Options = Options { target: Service::Kafka, is_dry_run: false, is_forced: false };
const TO_ZOOKEEPER: Options = Options { target: Service::ZooKeeper, is_dry_run: false, is_forced: false };

fn positions() -> StoredOffsets {
    let ranges = [60..100, 120..130];
    let full = StoredPosition {
        next: 50,
        topic_id: Some([9; 16]),
        leader_epoch: Some(3),
        done_ahead: ranges.into_iter().collect(),
    };
    StoredOffsets { positions: [(0, full), (2, StoredPosition::at(7))].into(), first_partitions: 4 }
}

fn outcome(
    source: &mut dyn OffsetStore,
    target: &mut dyn OffsetStore,
    options: Options,
) -> (Result<(), String>, String) {
    let mut out = Vec::new();
    let result = move_offsets(source, target, options, &mut out);
    (result, String::from_utf8(out).unwrap())
}

#[test]
fn a_move_to_kafka_and_back_keeps_offsets_logs_and_what_is_done_ahead() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(30));
    keeper.read("/").unwrap();
    let mut zookeeper = ZookeeperOffsets { keeper: &*keeper, group: "g", topic: "t" };
    zookeeper.write(&positions()).unwrap();
    assert_eq!(zookeeper.read(), Ok(positions()));
    let mut kafka = kafka(MemoryOffsets::default());
    let dry_run = Options { is_dry_run: true, ..TO_KAFKA };
    let (result, text) = outcome(&mut zookeeper, &mut kafka, dry_run);
    assert_eq!((result, kafka.read()), (Ok(()), Ok(StoredOffsets::default())));
    let expected = "partition  ZooKeeper                        Kafka\n\
                    0          50 (+50 done ahead)              -\n\
                    1          -                                -\n\
                    2          7                                -\n\
                    3          -                                -\n\
                    dry run: nothing was written\n";
    assert_eq!(text, expected);
    let (result, text) = outcome(&mut zookeeper, &mut kafka, TO_KAFKA);
    assert_eq!((result, kafka.read()), (Ok(()), Ok(positions())));
    assert!(
        text.ends_with("moved 2 partitions from ZooKeeper to Kafka; the offsets in ZooKeeper are kept\n"),
        "{text}"
    );
    // The module goes on in Kafka, and comes back.
    let mut later = positions();
    later.positions.insert(0, StoredPosition { next: 90, ..later.positions[&0].clone() });
    later.positions.insert(1, StoredPosition::at(3));
    let ranges = [95..100, 105..106];
    later.positions.get_mut(&0).unwrap().done_ahead = ranges.into_iter().collect();
    kafka.write(&later).unwrap();
    let (result, _) = outcome(&mut kafka, &mut zookeeper, TO_ZOOKEEPER);
    assert_eq!((result, zookeeper.read()), (Ok(()), Ok(later)));
}

#[test]
fn nothing_is_written_while_a_member_is_alive() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(30));
    keeper.read("/").unwrap();
    let mut zookeeper = ZookeeperOffsets { keeper: &*keeper, group: "g", topic: "t" };
    zookeeper.write(&positions()).unwrap();
    let mut busy = kafka(MemoryOffsets { members: vec!["ktransfer-1".into()], ..MemoryOffsets::default() });
    for options in [TO_KAFKA, TO_ZOOKEEPER] {
        let (source, target): (&mut dyn OffsetStore, &mut dyn OffsetStore) = match options.target {
            Service::Kafka => (&mut zookeeper, &mut busy),
            Service::ZooKeeper => (&mut busy, &mut zookeeper),
        };
        let failure = outcome(source, target, options).0.unwrap_err();
        assert_eq!(failure, "the group in Kafka has live members, stop them first: ktransfer-1");
    }
    create_with_parents(&*keeper, &paths::group_id("g", "host:1"), b"", Lifetime::Ephemeral).unwrap();
    let mut idle = kafka(MemoryOffsets::default());
    let failure = outcome(&mut zookeeper, &mut idle, TO_KAFKA).0.unwrap_err();
    assert_eq!(failure, "the group in ZooKeeper has live members, stop them first: host:1");
    assert_eq!(idle.read(), Ok(StoredOffsets::default()));
}

#[test]
fn larger_offsets_and_those_of_another_topic_are_replaced_only_by_force() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(30));
    keeper.read("/").unwrap();
    let mut zookeeper = ZookeeperOffsets { keeper: &*keeper, group: "g", topic: "t" };
    zookeeper.write(&positions()).unwrap();
    let other = StoredPosition { topic_id: Some([1; 16]), ..StoredPosition::at(5) };
    for (partition, position, reason) in [
        (2, StoredPosition::at(8), "partition 2 has 8 at the target, which is more than 7"),
        (0, other, "the offsets of partition 0 belong to two topics of the same name"),
    ] {
        let mut kafka = kafka(MemoryOffsets::default());
        let before = StoredOffsets { positions: [(partition, position)].into(), first_partitions: 1 };
        kafka.write(&before).unwrap();
        let failure = outcome(&mut zookeeper, &mut kafka, TO_KAFKA).0.unwrap_err();
        assert!(failure.contains(reason) && failure.contains("--force"), "{failure}");
        assert_eq!(kafka.read().unwrap().positions, before.positions);
        let forced = Options { is_forced: true, ..TO_KAFKA };
        assert_eq!(outcome(&mut zookeeper, &mut kafka, forced).0, Ok(()));
        assert_eq!(kafka.read(), Ok(positions()));
    }
}

#[test]
fn a_source_without_offsets_and_a_target_that_forgets_are_errors() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(30));
    keeper.read("/").unwrap();
    let mut zookeeper = ZookeeperOffsets { keeper: &*keeper, group: "g", topic: "t" };
    let mut target = kafka(MemoryOffsets { forgets: true, ..MemoryOffsets::default() });
    let failure = outcome(&mut zookeeper, &mut target, TO_KAFKA).0.unwrap_err();
    assert_eq!(failure, "no offset of this module is stored in ZooKeeper");
    zookeeper.write(&positions()).unwrap();
    let failure = outcome(&mut zookeeper, &mut target, TO_KAFKA).0.unwrap_err();
    assert_eq!(failure, "Kafka: partition 0 has nothing instead of 50; the move is incomplete, repeat it");
}
