//! Reads the stored offsets of every module of a cluster from ZooKeeper: `/consumers/MODULE/offsets/TOPIC/PARTITION`.

use std::collections::HashSet;
use std::sync::Arc;

use log::Level;

use crate::broker::TopicPartition;
use crate::keeper::{Keeper, KeeperError, paths};
use crate::log_limited;
use crate::shutdown::Stop;

use super::delay::StoredOffsets;

/// Largest number of nodes read in one call of [`Keeper::read_all`]; the stop is checked between two calls.
const NODES_PER_READ: usize = 256;

/// Why the stored offsets could not be read completely.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    /// A request to ZooKeeper failed.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The daemon is stopping.
    #[error("stopped")]
    Stopped,
}

/// Reads the consumer groups of one cluster, one after the other. A node that is deleted in the meantime is left out.
pub(super) struct GroupReader<'a> {
    keeper: &'a dyn Keeper,
    stop: &'a Stop,
    topics: NameInterner,
}

impl<'a> GroupReader<'a> {
    /// Makes a reader that uses `keeper` until `stop` is triggered.
    pub(super) fn new(keeper: &'a dyn Keeper, stop: &'a Stop) -> Self {
        GroupReader { keeper, stop, topics: NameInterner::default() }
    }

    /// Returns the names of all groups; none if `/consumers` does not exist.
    pub(super) fn group_names(&self) -> Result<Vec<String>, ReadError> {
        Ok(existing(self.keeper.children(paths::CONSUMERS))?.unwrap_or_default())
    }

    /// Returns the stored offsets of one group; `None` if it has no node `offsets`, or if ZooKeeper denies reading it.
    pub(super) fn stored_offsets(&mut self, group: &str) -> Result<Option<StoredOffsets>, ReadError> {
        match self.read_group(group) {
            Err(ReadError::Keeper(refused @ KeeperError::NoAuth(_))) => {
                log_limited!(Level::Warn, "{refused}; the delays of group {group} are unknown");
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
        let shared = self.topics.intern(topic);
        let mut partitions = Vec::new();
        for name in existing(self.keeper.children(&folder))?.unwrap_or_default() {
            match paths::parse_partition(&name) {
                Some(partition) => partitions.push(partition),
                None => log_limited!(Level::Warn, "{folder}/{name} is skipped: its name is not a partition number"),
            }
        }
        for batch in partitions.chunks(NODES_PER_READ) {
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

/// Turns the error for a node that does not exist into `None`.
fn existing<T>(outcome: Result<T, KeeperError>) -> Result<Option<T>, KeeperError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(KeeperError::NoNode(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Keeps one copy of each topic name, which all partitions and modules of the topic share.
#[derive(Default)]
struct NameInterner(HashSet<Arc<str>>);

impl NameInterner {
    fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.0.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::keeper::Lifetime;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use crate::kmonitor::delay::StoredByModule;
    use std::time::Duration;

    /// Writes a node, after creating its missing parents.
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
        for group in reader.group_names()? {
            by_module.extend(reader.stored_offsets(&group)?.map(|stored| (group.into(), stored)));
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
    fn a_group_that_zookeeper_denies_reading_does_not_affect_others() {
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
    fn reading_ends_with_the_stop_or_a_failed_request() {
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
