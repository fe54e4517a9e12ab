//! How far the dead letters of a module are replayed: a node in ZooKeeper for each partition of the dead-letter topic.
//!
//! The node has the next offset to replay and, where brokers have topic ids, the id of the topic, so that a topic that
//! was created again is replayed from its beginning. Every write is conditional on the version that was read, so of two
//! runs at the same time one ends with an error.

use crate::broker::{Offset, TopicId, TopicPartition};
use crate::keeper::{Keeper, Lifetime, paths};

/// How far a partition is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The next offset to replay.
    pub(super) next: Offset,
    /// The topic that the offset belongs to, if it is known.
    pub(super) topic_id: Option<TopicId>,
    stored: Option<Offset>,
    version: Option<i32>,
}

impl Position {
    /// Begins at `oldest` of another topic of the same name.
    pub(super) fn restart(&mut self, topic_id: Option<TopicId>, oldest: Offset) {
        (self.next, self.topic_id, self.stored) = (oldest, topic_id, None);
    }
}

/// The positions of one module.
#[derive(Clone, Copy)]
pub(crate) struct PositionStore<'a> {
    keeper: &'a dyn Keeper,
    module: &'a str,
}

impl<'a> PositionStore<'a> {
    /// Creates the store of `module`.
    pub(crate) fn new(keeper: &'a dyn Keeper, module: &'a str) -> Self {
        PositionStore { keeper, module }
    }

    /// Returns the position of a partition; 0 if nothing was replayed yet.
    pub(super) fn read(&self, partition: &TopicPartition) -> Result<Position, String> {
        let path = paths::replayed(self.module, &partition.topic, partition.partition);
        let Some(node) = self.keeper.read(&path).map_err(|cause| cause.to_string())? else {
            return Ok(Position::default());
        };
        let (next, topic_id) = parse(&node.data).ok_or_else(|| {
            let begin = String::from_utf8_lossy(&node.data[..node.data.len().min(60)]).into_owned();
            format!("node {path} has {begin:?}, but must have an offset: correct or delete it")
        })?;
        Ok(Position { next, topic_id, stored: Some(next), version: Some(node.version) })
    }

    /// Stores the position if it has moved.
    pub(super) fn store(&self, partition: &TopicPartition, position: &mut Position) -> Result<(), String> {
        if position.stored == Some(position.next) {
            return Ok(());
        }
        let path = paths::replayed(self.module, &partition.topic, partition.partition);
        let data = text(position);
        let stored = match position.version {
            Some(version) => self.keeper.write(&path, &data, version),
            None => paths::create_with_parents(self.keeper, &path, &data, Lifetime::Persistent).map(|()| 0),
        };
        let version =
            stored.map_err(|cause| format!("cannot store how far it is replayed, at {}: {cause}", position.next))?;
        (position.version, position.stored) = (Some(version), Some(position.next));
        Ok(())
    }
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
    use crate::keeper::in_memory::InMemoryEnsemble;
    use std::time::Duration;

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

    #[test]
    fn of_two_runs_one_ends_with_an_error() {
        let ensemble = InMemoryEnsemble::new();
        let keeper = ensemble.connect(Duration::from_secs(9));
        let store = PositionStore::new(&*keeper, "m");
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
