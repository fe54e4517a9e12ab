//! All stored offsets of a group, in ZooKeeper or in Kafka, read and written from outside of the group: for a move from
//! one to the other. The group must have no members meanwhile; every write is refused if it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::kafka::metadata::{self, CommitMetadata, MAX_BYTES};
use super::kafka::pause_fields::GroupPauses;
use super::mailbox::DoneAhead;
use super::{StoredPosition, ahead};
use crate::broker::PartitionId;
use crate::broker::membership::{CommitError, CommittedOffset, GroupOffsets};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Change, Keeper, KeeperError, Lifetime};
use crate::ktransfer::pauses::{Pauses, read_node, write_node};

/// Time limit of one request.
const CALL: Duration = Duration::from_secs(10);
/// Partitions whose nodes are written together: their changes fit into one request (`jute.maxbuffer`, 1 MiB).
const PARTITIONS_A_WRITE: usize = 32;

/// The stored data of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredOffsets {
    /// The position of each partition that has one.
    pub(crate) positions: BTreeMap<PartitionId, StoredPosition>,
    /// Number of partitions that existed when the group began: if one of them has no position, `start_from` decides.
    pub(crate) first_partitions: PartitionId,
    /// What operators have paused.
    pub(in crate::ktransfer) pauses: Pauses,
}

/// The stored offsets of one group and topic.
pub(crate) trait OffsetStore {
    /// Returns the members of the group that are alive.
    fn members(&mut self) -> Result<Vec<String>, String>;

    /// Reads everything.
    fn read(&mut self) -> Result<StoredOffsets, String>;

    /// Writes all positions of `offsets`, and its pauses instead of those that are stored; positions that it does not
    /// have stay as they are.
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

    /// Writes the pauses, unless there are none and never were.
    fn write_pauses(&self, pauses: &Pauses) -> Result<(), String> {
        let path = paths::paused(self.group, self.topic);
        let (known, version) = read_node(self.keeper, &path).map_err(to_text)?;
        if known == *pauses {
            return Ok(());
        }
        write_node(self.keeper, &path, pauses, version).map_err(to_text)
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
            read_epoch: position.read_epoch,
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
        let (pauses, _) = read_node(self.keeper, &paths::paused(self.group, self.topic)).map_err(to_text)?;
        let mut found = StoredOffsets { pauses, ..StoredOffsets::default() };
        for partition in names.iter().filter_map(|name| paths::parse_partition(name)) {
            found.first_partitions = found.first_partitions.max(partition.saturating_add(1));
            let path = paths::offset(self.group, self.topic, partition);
            let Some(node) = self.keeper.read(&path).map_err(to_text)? else { continue };
            let stored = paths::parse_offset(&node.data).map_err(|bad| format!("node {path}: {bad}"))?;
            let Some(next) = stored else { continue };
            let beside = self.keeper.read(&paths::ahead(self.group, self.topic, partition)).map_err(to_text)?;
            let known = beside.and_then(|beside| ahead::decode(&beside.data, next, node.version)).unwrap_or_default();
            let DoneAhead { topic_id, leader_epoch, ranges: done_ahead, read_epoch } = known;
            let position = StoredPosition { next, topic_id, leader_epoch, done_ahead, read_epoch };
            found.positions.insert(partition, position);
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
        self.write_pauses(&offsets.pauses)
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
        let known = self.known()?;
        let first_partitions = known.iter().filter_map(|(_, metadata)| metadata.first_partitions).min();
        let pauses = pauses_of(&known).pauses();
        let position = |(committed, metadata): (CommittedOffset, CommitMetadata)| {
            let CommittedOffset { partition, offset: next, leader_epoch, .. } = committed;
            let CommitMetadata { topic_id, ranges: done_ahead, read_epoch, .. } = metadata;
            (partition, StoredPosition { next, topic_id, leader_epoch, done_ahead, read_epoch })
        };
        let positions = known.into_iter().map(position).collect();
        Ok(StoredOffsets { positions, first_partitions: first_partitions.unwrap_or_default(), pauses })
    }

    fn write(&mut self, offsets: &StoredOffsets) -> Result<(), String> {
        let known = self.known()?;
        let tokens: BTreeMap<PartitionId, u64> =
            known.iter().map(|(committed, metadata)| (committed.partition, metadata.token)).collect();
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now_ms = u64::try_from(now_ms).unwrap_or_default();
        let pauses = pauses_of(&known).replaced_by(&offsets.pauses, now_ms);
        let commit = |(partition, position): (&PartitionId, &StoredPosition), max_bytes: usize| {
            let metadata = CommitMetadata {
                // A claim takes a larger one than this.
                token: tokens.get(partition).copied().unwrap_or_default().max(now_ms),
                pauses: pauses.fields(*partition),
                first_partitions: Some(offsets.first_partitions),
                topic_id: position.topic_id,
                ranges: Arc::clone(&position.done_ahead),
                read_epoch: position.read_epoch,
            };
            let (offset, leader_epoch) = (position.next, position.leader_epoch);
            let metadata = metadata::encode(offset, &metadata, max_bytes)?;
            Some(CommittedOffset { partition: *partition, offset, leader_epoch, metadata })
        };
        let mut max_bytes = MAX_BYTES;
        loop {
            let commits: Option<Vec<CommittedOffset>> =
                offsets.positions.iter().map(|position| commit(position, max_bytes)).collect();
            let results = self.offsets.commit(&commits.ok_or(NO_ROOM)?, Instant::now() + CALL);
            if max_bytes > 0 && results.contains(&Err(CommitError::MetadataTooLong)) {
                // What does not fit is pushed again.
                max_bytes /= 2;
                continue;
            }
            return results.into_iter().collect::<Result<(), _>>().map_err(|error| error.to_string());
        }
    }
}

/// The text of the error when the brokers keep too little text for a pause.
const NO_ROOM: &str = "offset.metadata.max.bytes of the brokers has no room for a pause: raise it";

impl KafkaOffsets {
    /// Returns what is committed, each with its metadata; the default where that is of another program.
    fn known(&mut self) -> Result<Vec<(CommittedOffset, CommitMetadata)>, String> {
        let decoded = |of: CommittedOffset| {
            let metadata = metadata::decode(of.offset, &of.metadata).unwrap_or_default();
            (of, metadata)
        };
        Ok(self.offsets.committed(Instant::now() + CALL)?.into_iter().map(decoded).collect())
    }
}

fn pauses_of(known: &[(CommittedOffset, CommitMetadata)]) -> GroupPauses {
    let mut pauses = GroupPauses::default();
    pauses.take(known.iter().map(|(committed, metadata)| (committed.partition, &metadata.pauses)), |_| false);
    pauses
}

fn to_text(error: KeeperError) -> String {
    error.to_string()
}
