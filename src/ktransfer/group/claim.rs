//! Claims one partition, stores its offset and releases it: the protocol over ZooKeeper nodes.
//!
//! A claim consists of an ephemeral owner node with the member's id, and of the known version of the offset node.
//! Claiming creates the offset node, or writes it once without changing its data. That write changes the node's
//! version, so a late store of an earlier owner fails (fencing). Every step may fail, or ZooKeeper may carry it out
//! late; it is safe to repeat.

use crate::broker::{Offset, PartitionId};
use crate::keeper::paths::{self, BadOffset, create_with_parents};
use crate::keeper::{Keeper, KeeperError, Lifetime};

/// A group member in one session, which claims partitions of a topic.
#[derive(Clone, Copy)]
pub(super) struct Claimant<'a> {
    pub(super) keeper: &'a dyn Keeper,
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    /// Id of this member in the current session.
    pub(super) id: &'a str,
}

/// How an attempt to claim a partition ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClaimOutcome {
    /// The partition is claimed.
    Claimed {
        /// Version of the offset node; the next store is conditional on it.
        version: i32,
        /// The stored offset; `None` if none is stored.
        position: Option<Offset>,
    },
    /// The owner node of another member exists. Contains that member's id, empty if the node vanished before the read.
    OwnedBy(String),
    /// The owner node is created, but the data of the offset node is no offset. A guessed position could lose messages.
    Unreadable(BadOffset),
}

/// How an attempt to store an offset ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoreOutcome {
    /// The offset is stored. Contains the new version of the offset node.
    Stored(i32),
    /// Nothing is stored, because another client wrote or deleted the offset node: the claim has ended.
    Fenced,
}

impl Claimant<'_> {
    /// Claims `partition`, unless another member has an owner node. Fails if a request fails or if another client wrote
    /// the offset node at the same time. `group_has_offsets`: without an offset node the partition is new to the group,
    /// and begins at offset 0; otherwise the node that is created has no offset.
    pub(super) fn claim(&self, partition: PartitionId, group_has_offsets: bool) -> Result<ClaimOutcome, KeeperError> {
        let owner = paths::owner(self.group, self.topic, partition);
        match create_with_parents(self.keeper, &owner, self.id.as_bytes(), Lifetime::Ephemeral) {
            Ok(()) => {}
            // An earlier attempt of this member may have created the node, with its response lost.
            Err(KeeperError::NodeExists(_)) => match self.keeper.read(&owner)? {
                Some(node) if node.data == self.id.as_bytes() => {}
                Some(node) => return Ok(ClaimOutcome::OwnedBy(String::from_utf8_lossy(&node.data).into_owned())),
                None => return Ok(ClaimOutcome::OwnedBy(String::new())),
            },
            Err(error) => return Err(error),
        }
        let offset = paths::offset(self.group, self.topic, partition);
        let Some(node) = self.keeper.read(&offset)? else {
            let (data, position) = match group_has_offsets {
                true => (paths::offset_text(0), Some(0)),
                false => (paths::NOTHING_STORED.to_vec(), None),
            };
            create_with_parents(self.keeper, &offset, &data, Lifetime::Persistent)?;
            return Ok(ClaimOutcome::Claimed { version: 0, position });
        };
        let position = match paths::parse_offset(&node.data) {
            Ok(position) => position,
            Err(bad) => return Ok(ClaimOutcome::Unreadable(bad)),
        };
        // Fails if an earlier owner stored an offset after the read above: the next attempt reads that offset.
        let version = self.keeper.write(&offset, &node.data, node.version)?;
        Ok(ClaimOutcome::Claimed { version, position })
    }

    /// Stores `next` if the offset node still has `version`.
    pub(super) fn store(
        &self,
        partition: PartitionId,
        next: Offset,
        version: i32,
    ) -> Result<StoreOutcome, KeeperError> {
        let offset = paths::offset(self.group, self.topic, partition);
        match self.keeper.write(&offset, &paths::offset_text(next), version) {
            Ok(version) => Ok(StoreOutcome::Stored(version)),
            Err(KeeperError::BadVersion(_) | KeeperError::NoNode(_)) => Ok(StoreOutcome::Fenced),
            Err(error) => Err(error),
        }
    }

    /// Deletes the owner node if it contains the id of this member.
    pub(super) fn release(&self, partition: PartitionId) -> Result<(), KeeperError> {
        self.delete_owner(partition, self.id)
    }

    /// Deletes the owner node if it contains `id`.
    pub(super) fn delete_owner(&self, partition: PartitionId, id: &str) -> Result<(), KeeperError> {
        self.delete_ephemeral(&paths::owner(self.group, self.topic, partition), |data| data == id.as_bytes())
    }

    /// Deletes the registration of member `id` if it exists.
    pub(super) fn unregister(&self, id: &str) -> Result<(), KeeperError> {
        self.delete_ephemeral(&paths::group_id(self.group, id), |_| true)
    }

    /// Deletes the node at `path` if it is ephemeral and its data fulfils `condition`. While the session that created
    /// the node lives, no other member can replace the node between the read and the delete.
    fn delete_ephemeral(&self, path: &str, condition: impl Fn(&[u8]) -> bool) -> Result<(), KeeperError> {
        match self.keeper.read(path)? {
            Some(node) if node.ephemeral_owner != 0 && condition(&node.data) => {
                match self.keeper.delete(path, node.version) {
                    Err(KeeperError::NoNode(_) | KeeperError::BadVersion(_)) => Ok(()),
                    result => result,
                }
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use std::time::Duration;

    const TIMEOUT: Duration = Duration::from_secs(6);

    fn claimant<'a>(keeper: &'a dyn Keeper, id: &'a str) -> Claimant<'a> {
        Claimant { keeper, group: "g", topic: "t", id }
    }

    #[test]
    fn a_partition_is_claimed_once_and_the_earlier_owner_is_fenced() {
        let ensemble = InMemoryEnsemble::new();
        let (one, other) = (ensemble.connect(TIMEOUT), ensemble.connect(TIMEOUT));
        let (first, second) = (claimant(&*one, "h:1"), claimant(&*other, "h:2"));
        assert_eq!(first.claim(0, false), Ok(ClaimOutcome::Claimed { version: 0, position: None }));
        assert_eq!(one.read("/consumers/g/offsets/t/0").unwrap().unwrap().data, b"-1");
        assert_eq!(
            first.claim(0, false),
            Ok(ClaimOutcome::Claimed { version: 1, position: None }),
            "a repeated claim after a lost response succeeds"
        );
        assert_eq!(second.claim(0, false), Ok(ClaimOutcome::OwnedBy("h:1".into())));
        assert_eq!(first.store(0, 7, 1), Ok(StoreOutcome::Stored(2)));

        ensemble.expire(&one);
        assert_eq!(second.claim(0, false), Ok(ClaimOutcome::Claimed { version: 3, position: Some(7) }));
        assert_eq!(first.store(0, 9, 2), Ok(StoreOutcome::Fenced));
        assert_eq!(first.release(0), Ok(()));
        assert!(other.read("/consumers/g/owners/t/0").unwrap().is_some(), "the node of another member is kept");
        assert_eq!(second.store(0, 8, 3), Ok(StoreOutcome::Stored(4)));
        assert_eq!(second.release(0), Ok(()));
        assert_eq!(other.read("/consumers/g/owners/t/0"), Ok(None));
        assert_eq!(other.read("/consumers/g/offsets/t/0").unwrap().unwrap().data, b"8");
    }

    #[test]
    fn a_deleted_or_invalid_offset_node_is_detected() {
        let keeper = InMemoryEnsemble::new().connect(TIMEOUT);
        let member = claimant(&*keeper, "h:1");
        create_with_parents(&*keeper, "/consumers/g/offsets/t/0", b"soon", Lifetime::Persistent).unwrap();
        assert_eq!(member.claim(0, false), Ok(ClaimOutcome::Unreadable(BadOffset("soon".into()))));
        keeper.delete("/consumers/g/offsets/t/0", 0).unwrap();
        assert_eq!(member.claim(0, false), Ok(ClaimOutcome::Claimed { version: 0, position: None }));
        keeper.delete("/consumers/g/offsets/t/0", 0).unwrap();
        assert_eq!(member.store(0, 1, 0), Ok(StoreOutcome::Fenced));
    }
}
