//! The position up to which dead letters are replayed, for each partition of the dead-letter topic: a node in
//! ZooKeeper, or an offset that the group `MODULE.replayed` has committed in Kafka.
//!
//! Beside the next offset to replay there is the id of the topic, where brokers have topic ids, so that a topic that
//! was created again is replayed from its beginning. Of two runs at the same time one ends with an error: every write
//! to ZooKeeper is conditional on the version that was read, and before a commit to Kafka the offset is read again.

use std::time::{Duration, Instant};

use crate::broker::membership::{CommittedOffset, GroupOffsets};
use crate::broker::{Offset, TopicId, TopicPartition};
use crate::keeper::{Keeper, Lifetime, paths};

/// Time limit of one request to Kafka.
const CALL: Duration = Duration::from_secs(20);

/// How far a partition is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The next offset to replay.
    pub(super) next: Offset,
    /// The topic that the offset belongs to, if it is known.
    pub(super) topic_id: Option<TopicId>,
    stored: Option<Offset>,
    /// Version of the node in ZooKeeper.
    version: Option<i32>,
    /// The offset that is committed in Kafka, as far as this run knows.
    committed: Option<Offset>,
}

impl Position {
    /// Begins at `oldest` of another topic of the same name.
    pub(super) fn restart(&mut self, topic_id: Option<TopicId>, oldest: Offset) {
        (self.next, self.topic_id, self.stored) = (oldest, topic_id, None);
    }
}

/// The positions of one module.
pub(super) trait PositionStore {
    /// Returns the position of a partition; 0 if nothing was replayed yet.
    fn read(&mut self, partition: &TopicPartition) -> Result<Position, String>;

    /// Stores the position if it has moved.
    fn store(&mut self, partition: &TopicPartition, position: &mut Position) -> Result<(), String>;
}

/// The positions in ZooKeeper.
pub(super) struct KeeperPositions<'a> {
    pub(super) keeper: &'a dyn Keeper,
    pub(super) module: &'a str,
}

impl PositionStore for KeeperPositions<'_> {
    fn read(&mut self, partition: &TopicPartition) -> Result<Position, String> {
        let path = paths::replayed(self.module, &partition.topic, partition.partition);
        let Some(node) = self.keeper.read(&path).map_err(|cause| cause.to_string())? else {
            return Ok(Position::default());
        };
        let (next, topic_id) = parse(&node.data).ok_or_else(|| {
            let begin = String::from_utf8_lossy(&node.data[..node.data.len().min(60)]).into_owned();
            format!("node {path} has {begin:?}, but must have an offset: correct or delete it")
        })?;
        Ok(Position { next, topic_id, stored: Some(next), version: Some(node.version), committed: None })
    }

    fn store(&mut self, partition: &TopicPartition, position: &mut Position) -> Result<(), String> {
        if position.stored == Some(position.next) {
            return Ok(());
        }
        let path = paths::replayed(self.module, &partition.topic, partition.partition);
        let data = text(position);
        let stored = match position.version {
            Some(version) => self.keeper.write(&path, &data, version),
            None => paths::create_with_parents(self.keeper, &path, &data, Lifetime::Persistent).map(|()| 0),
        };
        let version = stored.map_err(|cause| cannot_store(position, &cause.to_string()))?;
        (position.version, position.stored) = (Some(version), Some(position.next));
        Ok(())
    }
}

/// The positions in Kafka.
pub(super) struct KafkaPositions {
    pub(super) offsets: Box<dyn GroupOffsets>,
}

impl KafkaPositions {
    fn committed(&mut self, partition: &TopicPartition) -> Result<Option<CommittedOffset>, String> {
        let committed = self.offsets.committed(Instant::now() + CALL)?;
        Ok(committed.into_iter().find(|committed| committed.partition == partition.partition))
    }
}

impl PositionStore for KafkaPositions {
    fn read(&mut self, partition: &TopicPartition) -> Result<Position, String> {
        let found = self.committed(partition)?;
        let Some(CommittedOffset { offset, metadata, .. }) = found else { return Ok(Position::default()) };
        // Without our metadata the offset was committed by hand, for the present topic.
        let topic_id = parse(metadata.as_bytes()).filter(|(next, _)| *next == offset).and_then(|(_, id)| id);
        Ok(Position { next: offset, topic_id, stored: Some(offset), version: None, committed: Some(offset) })
    }

    fn store(&mut self, partition: &TopicPartition, position: &mut Position) -> Result<(), String> {
        if position.stored == Some(position.next) {
            return Ok(());
        }
        let found = self.committed(partition)?.map(|committed| committed.offset);
        // A commit without a response may have been carried out.
        if found != position.committed && found != Some(position.next) {
            let other = found.map_or("no offset".to_owned(), |offset| offset.to_string());
            return Err(cannot_store(position, &format!("{other} is committed, so another run replays as well")));
        }
        let offset = CommittedOffset {
            partition: partition.partition,
            offset: position.next,
            leader_epoch: None,
            metadata: String::from_utf8(text(position)).unwrap_or_default(),
        };
        let results = self.offsets.commit(std::slice::from_ref(&offset), Instant::now() + CALL);
        for result in results {
            result.map_err(|cause| cannot_store(position, &cause.to_string()))?;
        }
        (position.stored, position.committed) = (Some(position.next), Some(position.next));
        Ok(())
    }
}

fn cannot_store(position: &Position, cause: &str) -> String {
    format!("cannot store how far it is replayed, at {}: {cause}", position.next)
}

fn text(position: &Position) -> Vec<u8> {
    let mut text = position.next.to_string();
    if let Some(id) = position.topic_id {
        text.push(' ');
        id.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
    }
    text.into_bytes()
}

fn parse(data: &[u8]) -> Option<(Offset, Option<TopicId>)> {
    let text = std::str::from_utf8(data).ok()?;
    let mut words = text.split_ascii_whitespace();
    let next = words.next()?.parse().ok().filter(|next| *next >= 0)?;
    let topic_id = match words.next() {
        None => None,
        Some(hex) if hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Some(u128::from_str_radix(hex, 16).ok()?.to_be_bytes())
        }
        Some(_) => return None,
    };
    words.next().is_none().then_some((next, topic_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PartitionId;
    use crate::broker::membership::{CommitError, GroupMembers};
    use crate::keeper::in_memory::InMemoryEnsemble;

    #[test]
    fn a_position_is_text_with_or_without_a_topic_id() {
        let id: TopicId = std::array::from_fn(|index| u8::try_from(index * 16).unwrap());
        for (topic_id, expected) in [(None, "42"), (Some(id), "42 00102030405060708090a0b0c0d0e0f0")] {
            let position = Position { next: 42, topic_id, ..Position::default() };
            assert_eq!(text(&position), expected.as_bytes());
            assert_eq!(parse(expected.as_bytes()), Some((42, topic_id)));
        }
        for wrong in
            ["", "-1", "x", "1 2", "1 00102030405060708090a0b0c0d0e0f0 3", "1 +0102030405060708090a0b0c0d0e0f0"]
        {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    /// A group whose offsets are in memory.
    struct Committed(Vec<CommittedOffset>);

    impl GroupOffsets for Committed {
        fn committed(&mut self, _: Instant) -> Result<Vec<CommittedOffset>, String> {
            Ok(self.0.clone())
        }

        fn members(&mut self, _: Instant) -> Result<GroupMembers, String> {
            Err("not needed".to_owned())
        }

        fn n_partitions(&mut self, _: Instant) -> Result<Option<PartitionId>, String> {
            Ok(None)
        }

        fn commit(&mut self, offsets: &[CommittedOffset], _: Instant) -> Vec<Result<(), CommitError>> {
            self.0.retain(|known| offsets.iter().all(|offset| offset.partition != known.partition));
            self.0.extend_from_slice(offsets);
            offsets.iter().map(|_| Ok(())).collect()
        }
    }

    #[test]
    fn a_position_in_kafka_is_an_offset_with_the_topic_id_as_metadata() {
        let by_hand = CommittedOffset { partition: 1, offset: 4, leader_epoch: None, metadata: "7 of ours".to_owned() };
        let mut store = KafkaPositions { offsets: Box::new(Committed(vec![by_hand])) };
        let partition = |partition| TopicPartition { topic: "dead".into(), partition };
        assert_eq!(store.read(&partition(0)).unwrap(), Position::default());
        let of_hand = store.read(&partition(1)).unwrap();
        assert_eq!((of_hand.next, of_hand.topic_id), (4, None));
        let mut position = Position { next: 9, topic_id: Some([3; 16]), ..Position::default() };
        store.store(&partition(0), &mut position).unwrap();
        let read = store.read(&partition(0)).unwrap();
        assert_eq!((read.next, read.topic_id), (9, Some([3; 16])));
        // Of two runs at the same time one ends with an error.
        let (mut first, mut second) = (read, read);
        (first.next, second.next) = (10, 11);
        store.store(&partition(0), &mut first).unwrap();
        let error = store.store(&partition(0), &mut second).unwrap_err();
        assert!(error.ends_with("at 11: 10 is committed, so another run replays as well"), "{error}");
        first.next = 12;
        store.store(&partition(0), &mut first).unwrap();
    }

    #[test]
    fn of_two_runs_one_ends_with_an_error() {
        let ensemble = InMemoryEnsemble::new();
        let keeper = ensemble.connect(Duration::from_secs(9));
        let mut store = KeeperPositions { keeper: &*keeper, module: "m" };
        let partition = TopicPartition { topic: "dead".into(), partition: 0 };
        let mut first = store.read(&partition).unwrap();
        first.next = 5;
        store.store(&partition, &mut first).unwrap();
        let mut second = store.read(&partition).unwrap();
        assert_eq!(second.next, 5);
        first.next = 6;
        store.store(&partition, &mut first).unwrap();
        second.next = 7;
        assert!(
            store.store(&partition, &mut second).unwrap_err().contains("cannot store how far it is replayed, at 7")
        );
        assert_eq!(store.read(&partition).unwrap().next, 6);
    }
}
