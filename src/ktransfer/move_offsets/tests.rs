//! Tests of a move between an ensemble in memory and offsets in memory.

use super::*;
use crate::broker::membership::{CommitError, CommittedOffset, GroupMembers, GroupOffsets};
use crate::keeper::Lifetime;
use crate::keeper::in_memory::InMemoryEnsemble;
use crate::keeper::paths::{self, create_with_parents};
use crate::ktransfer::pauses::Pauses;

/// The offsets of a group in Kafka, without a broker.
#[derive(Default)]
struct MemoryOffsets {
    offsets: Vec<CommittedOffset>,
    members: Vec<String>,
    /// Commits are confirmed and forgotten.
    forgets: bool,
    /// `offset.metadata.max.bytes`
    max_metadata_bytes: Option<usize>,
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
        let mut commit = |offset: &CommittedOffset| {
            if self.max_metadata_bytes.is_some_and(|max| max < offset.metadata.len()) {
                return Err(CommitError::MetadataTooLong);
            }
            if !self.forgets {
                self.offsets.retain(|known| known.partition != offset.partition);
                self.offsets.push(offset.clone());
            }
            Ok(())
        };
        offsets.iter().map(&mut commit).collect()
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
        read_epoch: Some(4),
    };
    let pauses = Pauses { module: None, partitions: [(2, mark("ann"))].into() };
    StoredOffsets { positions: [(0, full), (2, StoredPosition::at(7))].into(), first_partitions: 4, pauses }
}

fn mark(by: &str) -> PauseMark {
    PauseMark { by: by.to_owned(), at_ms: 1_700_000_000_000 }
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
                    2          7 paused                         -\n\
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
    later.pauses = Pauses { module: Some(mark("bob")), partitions: [(0, mark("ann"))].into() };
    kafka.write(&later).unwrap();
    let (result, text) = outcome(&mut kafka, &mut zookeeper, TO_ZOOKEEPER);
    assert_eq!((result, zookeeper.read()), (Ok(()), Ok(later.clone())));
    assert!(text.contains("\nin Kafka the module is paused by bob\n"), "{text}");
    // It is resumed in ZooKeeper: what Kafka knows of pauses is older.
    later.pauses = Pauses::default();
    zookeeper.write(&later).unwrap();
    let (result, _) = outcome(&mut zookeeper, &mut kafka, TO_KAFKA);
    assert_eq!((result, kafka.read()), (Ok(()), Ok(later)));
}

#[test]
fn a_pause_beside_which_nothing_is_stored_moves_to_kafka_only_with_that_of_the_module() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(30));
    keeper.read("/").unwrap();
    let mut zookeeper = ZookeeperOffsets { keeper: &*keeper, group: "g", topic: "t" };
    let mut offsets = positions();
    offsets.pauses.partitions.insert(3, mark("ann"));
    zookeeper.write(&offsets).unwrap();
    let mut kafka = kafka(MemoryOffsets::default());
    let failure = outcome(&mut zookeeper, &mut kafka, TO_KAFKA).0.unwrap_err();
    assert!(failure.contains("partitions [3] are paused") && failure.contains("--force"), "{failure}");
    assert_eq!(kafka.read(), Ok(StoredOffsets::default()));
    assert_eq!(outcome(&mut zookeeper, &mut kafka, Options { is_forced: true, ..TO_KAFKA }).0, Ok(()));
    assert_eq!(kafka.read(), Ok(positions()));
    offsets.pauses.module = Some(mark("bob"));
    zookeeper.write(&offsets).unwrap();
    assert_eq!(outcome(&mut zookeeper, &mut kafka, TO_KAFKA).0, Ok(()));
    assert_eq!(kafka.read().unwrap().pauses.module, Some(mark("bob")));
}

#[test]
fn brokers_that_keep_little_text_get_less_of_what_is_done_ahead() {
    let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(30));
    keeper.read("/").unwrap();
    let mut zookeeper = ZookeeperOffsets { keeper: &*keeper, group: "g", topic: "t" };
    let mut offsets = positions();
    let many = (0..500).map(|number| 60 + 2 * number..61 + 2 * number);
    offsets.positions.get_mut(&0).unwrap().done_ahead = many.collect();
    zookeeper.write(&offsets).unwrap();
    let mut target = kafka(MemoryOffsets { max_metadata_bytes: Some(300), ..MemoryOffsets::default() });
    assert_eq!(outcome(&mut zookeeper, &mut target, TO_KAFKA).0, Ok(()));
    let moved = target.read().unwrap();
    assert!(moved.positions[&0].done_ahead.len() > 30 && moved.pauses == positions().pauses, "{moved:?}");
    let mut target = kafka(MemoryOffsets { max_metadata_bytes: Some(10), ..MemoryOffsets::default() });
    let failure = outcome(&mut zookeeper, &mut target, TO_KAFKA).0.unwrap_err();
    assert!(failure.contains("offset.metadata.max.bytes"), "{failure}");
    assert_eq!(target.read(), Ok(StoredOffsets::default()));
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
        let before = StoredOffsets {
            positions: [(partition, position)].into(),
            first_partitions: 1,
            ..StoredOffsets::default()
        };
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
