//! The stored offsets of every module of a cluster, from ZooKeeper: `/consumers/MODULE/offsets/TOPIC/PARTITION`.

use std::collections::HashSet;
use std::sync::Arc;

use log::Level;

use crate::broker::TopicPartition;
use crate::keeper::{Keeper, KeeperError, paths};
use crate::log_limited;
use crate::shutdown::Stop;

use super::delay::StoredOffsets;

/// Nodes asked for at once; a stop waits for so many at most.
const READ_TOGETHER: usize = 256;

/// Why the stored offsets were not read to the end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// ZooKeeper did not answer one of the questions.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The daemon is stopping.
    #[error("stopped")]
    Stopped,
}

/// Reads the groups of one cluster, one after the other. A node that vanishes meanwhile is left out.
pub struct GroupReader<'a> {
    keeper: &'a dyn Keeper,
    stop: &'a Stop,
    topics: Names,
}

impl<'a> GroupReader<'a> {
    /// Reads through this keeper until the stop.
    pub fn new(keeper: &'a dyn Keeper, stop: &'a Stop) -> Self {
        GroupReader { keeper, stop, topics: Names::default() }
    }

    /// Every group; a cluster without consumers has none.
    pub fn names(&self) -> Result<Vec<String>, ReadError> {
        Ok(existing(self.keeper.children(paths::CONSUMERS))?.unwrap_or_default())
    }

    /// What one group has stored. `None`: nothing, or we may not read it, so it has no delay that could be known.
    pub fn stored(&mut self, group: &str) -> Result<Option<StoredOffsets>, ReadError> {
        match self.read_group(group) {
            Err(ReadError::Keeper(refused @ KeeperError::NoAuth(_))) => {
                log_limited!(Level::Warn, "{refused}, so the delays of group {group} are unknown");
                Ok(None)
            }
            outcome => outcome,
        }
    }

    fn read_group(&mut self, group: &str) -> Result<Option<StoredOffsets>, ReadError> {
        let Some(topics) = existing(self.keeper.children(&paths::offset_topics(group)))? else { return Ok(None) };
        let mut stored = StoredOffsets::new();
        for topic in topics {
            self.read_topic(group, &topic, &mut stored)?;
        }
        Ok(Some(stored))
    }

    fn read_topic(&mut self, group: &str, topic: &str, stored: &mut StoredOffsets) -> Result<(), ReadError> {
        let folder = paths::offsets(group, topic);
        let shared = self.topics.get(topic);
        let mut partitions = Vec::new();
        for name in existing(self.keeper.children(&folder))?.unwrap_or_default() {
            match paths::parse_partition(&name) {
                Some(partition) => partitions.push(partition),
                None => log_limited!(Level::Warn, "{folder}/{name} is passed over: its name is no partition"),
            }
        }
        for batch in partitions.chunks(READ_TOGETHER) {
            if self.stop.is_triggered() {
                return Err(ReadError::Stopped);
            }
            let nodes: Vec<String> = batch.iter().map(|partition| paths::offset(group, topic, *partition)).collect();
            for (partition, node) in batch.iter().zip(self.keeper.read_all(&nodes)) {
                let Some(node) = node? else { continue };
                let offset = match paths::parse_offset(&node.data) {
                    Ok(offset) => offset,
                    Err(bad) => {
                        log_limited!(Level::Warn, "{folder}/{partition}: {bad}; its delay is unknown");
                        None
                    }
                };
                stored.insert(TopicPartition { topic: Arc::clone(&shared), partition: *partition }, offset);
            }
        }
        Ok(())
    }
}

fn existing<T>(answer: Result<T, KeeperError>) -> Result<Option<T>, KeeperError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(KeeperError::NoNode(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// One copy of each topic's name, however many partitions and modules have it.
#[derive(Default)]
struct Names(HashSet<Arc<str>>);

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.0.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::keeper::Lifetime;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use crate::kmonitor::delay::StoredByModule;
    use std::time::Duration;

    /// Writes a node and whatever is missing above it.
    pub(in crate::kmonitor) fn put(keeper: &dyn Keeper, path: &str, data: &str) {
        for (end, _) in path.match_indices('/').skip(1) {
            let _ = keeper.create(&path[..end], b"", Lifetime::Persistent);
        }
        match keeper.read(path).unwrap() {
            None => keeper.create(path, data.as_bytes(), Lifetime::Persistent).unwrap(),
            Some(node) => drop(keeper.write(path, data.as_bytes(), node.version).unwrap()),
        }
    }

    fn read(keeper: &dyn Keeper, stop: &Stop) -> Result<StoredByModule, ReadError> {
        let mut reader = GroupReader::new(keeper, stop);
        let mut by_module = StoredByModule::new();
        for group in reader.names()? {
            by_module.extend(reader.stored(&group)?.map(|stored| (group.into(), stored)));
        }
        Ok(by_module)
    }

    fn at(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    #[test]
    fn every_group_with_offsets_is_a_module() {
        let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(6));
        assert_eq!(read(&*keeper, &Stop::new()).unwrap(), StoredByModule::new());
        put(&*keeper, "/consumers/m1/offsets/t/0", "12");
        put(&*keeper, "/consumers/m1/offsets/t/10", "0");
        put(&*keeper, "/consumers/m1/offsets/u/0", " 7\n");
        put(&*keeper, "/consumers/m1/offsets/t/x", "3");
        put(&*keeper, "/consumers/m1/offsets/t/-1", "3");
        put(&*keeper, "/consumers/m2/offsets/t/0", "-1");
        put(&*keeper, "/consumers/m2/offsets/t/1", "");
        put(&*keeper, "/consumers/empty/offsets", "");
        put(&*keeper, "/consumers/never/ids", "");
        let by_module = read(&*keeper, &Stop::new()).unwrap();
        let expected = StoredByModule::from([
            ("m1".into(), StoredOffsets::from([(at("t", 0), Some(12)), (at("t", 10), Some(0)), (at("u", 0), Some(7))])),
            ("m2".into(), StoredOffsets::from([(at("t", 0), None), (at("t", 1), None)])),
            ("empty".into(), StoredOffsets::new()),
        ]);
        assert_eq!(by_module, expected);
    }

    #[test]
    fn a_group_that_may_not_be_read_hides_no_other() {
        let tree = InMemoryEnsemble::new();
        let keeper = tree.connect(Duration::from_secs(6));
        for group in ["a", "b", "c"] {
            put(&*keeper, &format!("/consumers/{group}/offsets/t/0"), "1");
        }
        tree.refuse("/consumers/a/offsets");
        tree.refuse("/consumers/b/offsets/t/0");
        let expected = StoredByModule::from([("c".into(), StoredOffsets::from([(at("t", 0), Some(1))]))]);
        assert_eq!(read(&*keeper, &Stop::new()).unwrap(), expected);
    }

    #[test]
    fn no_answer_and_a_stop_end_the_reading() {
        let tree = InMemoryEnsemble::new();
        let keeper = tree.connect(Duration::from_secs(6));
        put(&*keeper, "/consumers/m/offsets/t/0", "1");
        let stop = Stop::new();
        stop.trigger();
        assert_eq!(read(&*keeper, &stop), Err(ReadError::Stopped));
        tree.set_reachable(false);
        assert!(matches!(read(&*keeper, &Stop::new()), Err(ReadError::Keeper(KeeperError::Unreachable(_)))));
    }
}
