//! Taking, using and giving back the claim on one partition: the protocol over ZooKeeper's nodes.
//!
//! A claim is an ephemeral owner node with the member's id, and the version of the offset node. Taking it writes the offset
//! node once without changing it: its version moves, so whatever an earlier owner still tries to store is refused. Every step may
//! fail or be carried out late, and may then be repeated.

use crate::broker::{Offset, PartitionId};
use crate::keeper::paths::{self, BadOffset, create_with_parents};
use crate::keeper::{Keeper, KeeperError, Lifetime};

/// Which partitions are meant, and for whom.
#[derive(Clone, Copy)]
pub(super) struct Claimant<'a> {
    pub(super) keeper: &'a dyn Keeper,
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    /// Id of this member in the present session.
    pub(super) id: &'a str,
}

/// How an attempt to take a partition ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taking {
    /// It is ours.
    Taken {
        /// Version of the offset node; the next store is conditional on it.
        version: i32,
        /// The stored offset.
        position: Option<Offset>,
    },
    /// Another owner's node is there.
    OwnedBy(String),
    /// It is ours, but its offset node holds something else; guessing a position could lose messages.
    Unreadable(BadOffset),
}

/// How a store ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Storing {
    /// Stored; the version of the node now.
    Stored(i32),
    /// Somebody else wrote or deleted the node: the claim is not ours any more.
    Fenced,
}

impl Claimant<'_> {
    /// Takes `partition`, unless another owner's node is there.
    pub(super) fn take(&self, partition: PartitionId) -> Result<Taking, KeeperError> {
        let owner = paths::owner(self.group, self.topic, partition);
        match create_with_parents(self.keeper, &owner, self.id.as_bytes(), Lifetime::Ephemeral) {
            Ok(()) => {}
            // Perhaps by our own earlier try whose answer was lost.
            Err(KeeperError::NodeExists(_)) => match self.keeper.read(&owner)? {
                Some(node) if node.data == self.id.as_bytes() => {}
                Some(node) => return Ok(Taking::OwnedBy(String::from_utf8_lossy(&node.data).into_owned())),
                None => return Ok(Taking::OwnedBy(String::new())),
            },
            Err(error) => return Err(error),
        }
        let offset = paths::offset(self.group, self.topic, partition);
        let Some(node) = self.keeper.read(&offset)? else {
            create_with_parents(self.keeper, &offset, paths::NOTHING_STORED, Lifetime::Persistent)?;
            return Ok(Taking::Taken { version: 0, position: None });
        };
        let position = match paths::parse_offset(&node.data) {
            Ok(position) => position,
            Err(bad) => return Ok(Taking::Unreadable(bad)),
        };
        // Fails if an earlier owner's store came in between: then the next try reads that.
        let version = self.keeper.write(&offset, &node.data, node.version)?;
        Ok(Taking::Taken { version, position })
    }

    /// Stores `next`, if nobody else has written since `version`.
    pub(super) fn store(&self, partition: PartitionId, next: Offset, version: i32) -> Result<Storing, KeeperError> {
        let offset = paths::offset(self.group, self.topic, partition);
        match self.keeper.write(&offset, &paths::offset_text(next), version) {
            Ok(version) => Ok(Storing::Stored(version)),
            Err(KeeperError::BadVersion(_) | KeeperError::NoNode(_)) => Ok(Storing::Fenced),
            Err(error) => Err(error),
        }
    }

    /// Deletes the owner node, if it is ours. Within one session nobody can put another in its place in between.
    pub(super) fn give_back(&self, partition: PartitionId) -> Result<(), KeeperError> {
        self.clear_owner(partition, self.id)
    }

    /// Deletes the owner node that holds `id`, if there is one.
    pub(super) fn clear_owner(&self, partition: PartitionId, id: &str) -> Result<(), KeeperError> {
        self.clear(&paths::owner(self.group, self.topic, partition), |data| data == id.as_bytes())
    }

    /// Deletes the registration of `id`, if there is one.
    pub(super) fn unregister(&self, id: &str) -> Result<(), KeeperError> {
        self.clear(&paths::group_id(self.group, id), |_| true)
    }

    fn clear(&self, path: &str, ours: impl Fn(&[u8]) -> bool) -> Result<(), KeeperError> {
        match self.keeper.read(path)? {
            Some(node) if node.ephemeral_owner != 0 && ours(&node.data) => match self.keeper.delete(path, node.version)
            {
                Err(KeeperError::NoNode(_) | KeeperError::BadVersion(_)) => Ok(()),
                outcome => outcome,
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::memory::MemoryKeeper;
    use std::time::Duration;

    const TIMEOUT: Duration = Duration::from_secs(6);

    fn claimant<'a>(keeper: &'a dyn Keeper, id: &'a str) -> Claimant<'a> {
        Claimant { keeper, group: "g", topic: "t", id }
    }

    #[test]
    fn a_claim_is_taken_once_and_fences_the_one_before() {
        let memory = MemoryKeeper::new();
        let (one, other) = (memory.session(TIMEOUT), memory.session(TIMEOUT));
        let (first, second) = (claimant(&*one, "h:1"), claimant(&*other, "h:2"));
        assert_eq!(first.take(0), Ok(Taking::Taken { version: 0, position: None }));
        assert_eq!(one.read("/consumers/g/offsets/t/0").unwrap().unwrap().data, b"-1");
        assert_eq!(first.take(0), Ok(Taking::Taken { version: 1, position: None }), "again, after a lost answer");
        assert_eq!(second.take(0), Ok(Taking::OwnedBy("h:1".into())));
        assert_eq!(first.store(0, 7, 1), Ok(Storing::Stored(2)));

        memory.expire(&one);
        assert_eq!(second.take(0), Ok(Taking::Taken { version: 3, position: Some(7) }));
        assert_eq!(first.store(0, 9, 2), Ok(Storing::Fenced));
        assert_eq!(first.give_back(0), Ok(()));
        assert!(other.read("/consumers/g/owners/t/0").unwrap().is_some(), "not ours to delete");
        assert_eq!(second.store(0, 8, 3), Ok(Storing::Stored(4)));
        assert_eq!(second.give_back(0), Ok(()));
        assert_eq!(other.read("/consumers/g/owners/t/0"), Ok(None));
        assert_eq!(other.read("/consumers/g/offsets/t/0").unwrap().unwrap().data, b"8");
    }

    #[test]
    fn a_deleted_or_unreadable_offset_node_is_noticed() {
        let keeper = MemoryKeeper::new().session(TIMEOUT);
        let me = claimant(&*keeper, "h:1");
        create_with_parents(&*keeper, "/consumers/g/offsets/t/0", b"soon", Lifetime::Persistent).unwrap();
        assert_eq!(me.take(0), Ok(Taking::Unreadable(BadOffset("soon".into()))));
        keeper.delete("/consumers/g/offsets/t/0", 0).unwrap();
        assert_eq!(me.take(0), Ok(Taking::Taken { version: 0, position: None }));
        keeper.delete("/consumers/g/offsets/t/0", 0).unwrap();
        assert_eq!(me.store(0, 1, 0), Ok(Storing::Fenced));
    }
}
