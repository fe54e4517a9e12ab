//! All stored offsets of a group, in ZooKeeper or in Kafka, read and written from outside of the group: for a move from
//! one to the other. The group must have no members meanwhile; every write is refused if it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::kafka::metadata::{self, CommitMetadata, MAX_BYTES};
use super::mailbox::DoneAhead;
use super::{StoredPosition, ahead};
use crate::broker::PartitionId;
use crate::broker::membership::{CommittedOffset, GroupOffsets};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Change, Keeper, KeeperError, Lifetime};

/// Time limit of one request.
const CALL: Duration = Duration::from_secs(10);
/// Partitions whose nodes are written together: their changes fit into one request (`jute.maxbuffer`, 1 MiB).
const PARTITIONS_A_WRITE: usize = 32;

/// What a group has stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredOffsets {
    /// The position of each partition that has one.
    pub(crate) positions: BTreeMap<PartitionId, StoredPosition>,
    /// Number of partitions that existed when the group began: if one of them has no position, `start_from` decides.
    pub(crate) first_partitions: PartitionId,
}

/// The stored offsets of one group and topic.
pub(crate) trait OffsetStore {
    /// Returns the members of the group that are alive.
    fn members(&mut self) -> Result<Vec<String>, String>;

    /// Reads everything.
    fn read(&mut self) -> Result<StoredOffsets, String>;

    /// Writes all positions of `offsets`; partitions that it does not have stay as they are.
    fn write(&mut self, offsets: &StoredOffsets) -> Result<(), String>;
}

/// The offset nodes of a group.
pub(crate) struct ZookeeperOffsets<'a> {
    /// The connection.
    pub(crate) keeper: &'a dyn Keeper,
    /// Name of the group.
    pub(crate) group: &'a str,
    /// The topic.
    pub(crate) topic: &'a str,
}

impl ZookeeperOffsets<'_> {
    fn children(&self, path: &str) -> Result<Vec<String>, String> {
        match self.keeper.children(path) {
            Err(KeeperError::NoNode(_)) => Ok(Vec::new()),
            children => children.map_err(to_text),
        }
    }

    fn ensure(&self, path: &str, data: &[u8]) -> Result<(), String> {
        match create_with_parents(self.keeper, path, data, Lifetime::Persistent) {
            Ok(()) | Err(KeeperError::NodeExists(_)) => Ok(()),
            Err(error) => Err(to_text(error)),
        }
    }

    /// Returns the two writes of a position, conditional on the version of the offset node.
    fn changes_of(&self, partition: PartitionId, position: &StoredPosition) -> Result<[Change; 2], String> {
        let path = paths::offset(self.group, self.topic, partition);
        let node = self.keeper.read(&path).map_err(to_text)?;
        let version = node.ok_or_else(|| format!("node {path} was deleted meanwhile"))?.version;
        let done = DoneAhead {
            topic_id: position.topic_id,
            leader_epoch: position.leader_epoch,
            ranges: Arc::clone(&position.done_ahead),
        };
        let data = ahead::encode(position.next, version.wrapping_add(1), &done);
        let ahead_path = paths::ahead(self.group, self.topic, partition);
        let write = Change::Write(path, paths::offset_text(position.next), Some(version));
        Ok([write, Change::Write(ahead_path, data, None)])
    }
}

impl OffsetStore for ZookeeperOffsets<'_> {
    fn members(&mut self) -> Result<Vec<String>, String> {
        self.children(&paths::group_ids(self.group))
    }

    fn read(&mut self) -> Result<StoredOffsets, String> {
        let names = self.children(&paths::offsets(self.group, self.topic))?;
        let mut found = StoredOffsets::default();
        for partition in names.iter().filter_map(|name| paths::parse_partition(name)) {
            found.first_partitions = found.first_partitions.max(partition.saturating_add(1));
            let path = paths::offset(self.group, self.topic, partition);
            let Some(node) = self.keeper.read(&path).map_err(to_text)? else { continue };
            let stored = paths::parse_offset(&node.data).map_err(|bad| format!("node {path}: {bad}"))?;
            let Some(next) = stored else { continue };
            let beside = self.keeper.read(&paths::ahead(self.group, self.topic, partition)).map_err(to_text)?;
            let known = beside.and_then(|beside| ahead::decode(&beside.data, next, node.version)).unwrap_or_default();
            let DoneAhead { topic_id, leader_epoch, ranges } = known;
            found.positions.insert(partition, StoredPosition { next, topic_id, leader_epoch, done_ahead: ranges });
        }
        Ok(found)
    }

    fn write(&mut self, offsets: &StoredOffsets) -> Result<(), String> {
        // Partitions without a node would count as added later, and would be read from their beginning.
        let existing = 0..offsets.first_partitions;
        for partition in existing.chain(offsets.positions.keys().copied()) {
            self.ensure(&paths::offset(self.group, self.topic, partition), paths::NOTHING_STORED)?;
        }
        let positions: Vec<_> = offsets.positions.iter().collect();
        for some in positions.chunks(PARTITIONS_A_WRITE) {
            let mut changes = Vec::new();
            for (partition, position) in some {
                self.ensure(&paths::ahead(self.group, self.topic, **partition), ahead::VOID)?;
                changes.extend(self.changes_of(**partition, position)?);
            }
            self.keeper.multi(&changes).map_err(to_text)?;
        }
        Ok(())
    }
}

/// The committed offsets of a group.
pub(crate) struct KafkaOffsets {
    /// The connection.
    pub(crate) offsets: Box<dyn GroupOffsets>,
}

impl OffsetStore for KafkaOffsets {
    fn members(&mut self) -> Result<Vec<String>, String> {
        Ok(self.offsets.members(Instant::now() + CALL)?.names)
    }

    fn read(&mut self) -> Result<StoredOffsets, String> {
        let mut found = StoredOffsets::default();
        let mut first_partitions: Option<PartitionId> = None;
        for committed in self.offsets.committed(Instant::now() + CALL)? {
            let CommittedOffset { partition, offset: next, leader_epoch, metadata: text } = committed;
            let known = metadata::decode(next, &text).unwrap_or_default();
            if let Some(count) = known.first_partitions {
                first_partitions = Some(first_partitions.map_or(count, |least| least.min(count)));
            }
            let CommitMetadata { topic_id, ranges, .. } = known;
            found.positions.insert(partition, StoredPosition { next, topic_id, leader_epoch, done_ahead: ranges });
        }
        found.first_partitions = first_partitions.unwrap_or_default();
        Ok(found)
    }

    fn write(&mut self, offsets: &StoredOffsets) -> Result<(), String> {
        let known = self.offsets.committed(Instant::now() + CALL)?;
        let tokens: BTreeMap<PartitionId, u64> = known
            .iter()
            .filter_map(|of| Some((of.partition, metadata::decode(of.offset, &of.metadata)?.token)))
            .collect();
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now_ms = u64::try_from(now_ms).unwrap_or_default();
        let commit = |(partition, position): (&PartitionId, &StoredPosition)| {
            let metadata = CommitMetadata {
                // A claim takes a larger one than this.
                token: tokens.get(partition).copied().unwrap_or_default().max(now_ms),
                first_partitions: Some(offsets.first_partitions),
                topic_id: position.topic_id,
                ranges: Arc::clone(&position.done_ahead),
            };
            CommittedOffset {
                partition: *partition,
                offset: position.next,
                leader_epoch: position.leader_epoch,
                metadata: metadata::encode(position.next, &metadata, MAX_BYTES),
            }
        };
        let commits: Vec<CommittedOffset> = offsets.positions.iter().map(commit).collect();
        let results = self.offsets.commit(&commits, Instant::now() + CALL);
        results.into_iter().collect::<Result<(), _>>().map_err(|error| error.to_string())
    }
}

fn to_text(error: KeeperError) -> String {
    error.to_string()
}
