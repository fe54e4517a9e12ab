//! Claims partitions, stores their offsets and releases them: the protocol over ZooKeeper nodes.
//!
//! A claim consists of an ephemeral owner node with the member's id, and of the known version of the offset node.
//! Claiming creates the offset node if it is missing, and writes it once without changing its data. That write changes
//! the node's version, so a late store of an earlier owner fails (fencing). Every change is also conditional on the
//! member's registration: it exists only in the session in which the member joined, so nothing is changed after that
//! session has ended. A claim also writes the fencing token for the backends (`token`). Every step may fail, or
//! ZooKeeper may carry it out without a response; it is safe to repeat.
//!
//! All functions work on several partitions, whose requests are in flight at the same time.

use super::mailbox::DoneAhead;
use super::{ahead, token};
use crate::broker::{Offset, PartitionId};
use crate::keeper::paths::{self, BadOffset, create_with_parents};
use crate::keeper::{Change, Keeper, KeeperError, Lifetime, Node};

/// A group member in one session, which claims partitions of a topic.
#[derive(Clone, Copy)]
pub(super) struct Claimant<'a> {
    pub(super) keeper: &'a dyn Keeper,
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    /// Id of this member in the current session.
    pub(super) id: &'a str,
    /// The group has stored offsets of the topic: a partition without an offset node is new to it, and begins at offset
    /// 0. Otherwise the node that a claim creates has no offset.
    pub(super) group_has_offsets: bool,
}

/// How an attempt to claim a partition ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClaimOutcome {
    /// The partition is claimed.
    Claimed {
        /// Version of the offset node; the next store is conditional on it.
        version: i32,
        /// The fencing token of the claim.
        token: u64,
        /// The stored offset; `None` if none is stored.
        position: Option<Offset>,
        /// The messages done ahead that are stored beside the offset.
        ahead: DoneAhead,
    },
    /// The owner node of another member exists.
    Owned,
    /// The owner node is created, but the data of the offset node is no offset. A guessed position could lose messages.
    Unreadable(BadOffset),
}

/// The data to store for a partition.
#[derive(Debug)]
pub(super) struct Store<'a> {
    pub(super) partition: PartitionId,
    /// Version of the offset node after the latest write of this member.
    pub(super) version: i32,
    /// The offset that the offset node contains.
    pub(super) stored: Option<Offset>,
    /// The offset that the offset node shall contain.
    pub(super) next: Offset,
    pub(super) ahead: &'a DoneAhead,
}

/// How an attempt to store an offset ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoreOutcome {
    /// The offset is stored. Contains the version of the offset node.
    Stored(i32),
    /// Nothing is stored, because another client wrote or deleted the offset node: the claim has ended.
    Fenced,
}

impl Claimant<'_> {
    fn registration(&self) -> String {
        paths::group_id(self.group, self.id)
    }

    fn owner(&self, partition: PartitionId) -> String {
        paths::owner(self.group, self.topic, partition)
    }

    fn offset(&self, partition: PartitionId) -> String {
        paths::offset(self.group, self.topic, partition)
    }

    fn ahead(&self, partition: PartitionId) -> String {
        paths::ahead(self.group, self.topic, partition)
    }

    fn token(&self, partition: PartitionId) -> String {
        paths::token(self.group, self.topic, partition)
    }

    /// Makes each change only while this member's registration exists.
    fn guarded(&self, changes: impl IntoIterator<Item = Change>) -> Vec<Change> {
        std::iter::once(Change::Check(self.registration(), None)).chain(changes).collect()
    }

    /// Claims the partitions that have no owner node of another member. A result is an error if a request failed or if
    /// another client wrote the offset node at the same time.
    pub(super) fn claim_all(&self, partitions: &[PartitionId]) -> Vec<Result<ClaimOutcome, KeeperError>> {
        let owned = self.create_owners(partitions);
        let is_owner = |owned: &Result<bool, KeeperError>| matches!(owned, Ok(true));
        let claimed: Vec<PartitionId> =
            partitions.iter().zip(&owned).filter(|(_, owned)| is_owner(owned)).map(|(claimed, _)| *claimed).collect();
        let mut fenced = self.fence_all(&claimed).into_iter();
        let finish = |owned: Result<bool, KeeperError>| match owned? {
            true => fenced.next().expect("a result for each partition"),
            false => Ok(ClaimOutcome::Owned),
        };
        owned.into_iter().map(finish).collect()
    }

    /// Creates the owner nodes. Returns for each partition whether it has the owner node of this member.
    fn create_owners(&self, partitions: &[PartitionId]) -> Vec<Result<bool, KeeperError>> {
        let create = |partition: PartitionId| {
            Change::Create(self.owner(partition), self.id.as_bytes().to_vec(), Lifetime::Ephemeral)
        };
        let creates: Vec<_> = partitions.iter().map(|partition| self.guarded([create(*partition)])).collect();
        let results = partitions.iter().zip(&creates).zip(self.keeper.multi_all(&creates));
        let finish = |((partition, change), result): ((&PartitionId, &Vec<Change>), Result<_, KeeperError>)| {
            let owner = self.owner(*partition);
            match result {
                Err(KeeperError::NoNode(path)) if path == owner => {
                    self.create_folder(&owner)?;
                    self.keeper.multi(change).map(|_| true)
                }
                Err(KeeperError::NodeExists(_)) => self.take_owner(&owner, create(*partition)),
                result => result.map(|_| true),
            }
        };
        results.map(finish).collect()
    }

    /// Returns whether an existing owner node belongs to this member. A node that this process created in the current
    /// session under another id (by an earlier member whose leave failed) is replaced.
    fn take_owner(&self, owner: &str, create: Change) -> Result<bool, KeeperError> {
        match self.keeper.read(owner)? {
            // An earlier attempt of this member created the node, and its response was lost.
            Some(node) if node.data == self.id.as_bytes() => Ok(true),
            Some(node) if Some(node.ephemeral_owner) == self.keeper.session_id() => {
                let replace = [Change::Delete(owner.to_owned(), node.version), create];
                self.keeper.multi(&self.guarded(replace)).map(|_| true)
            }
            _ => Ok(false),
        }
    }

    /// Reads the offsets of partitions that have the owner node of this member, and writes them once.
    fn fence_all(&self, partitions: &[PartitionId]) -> Vec<Result<ClaimOutcome, KeeperError>> {
        let of = |partition: &PartitionId| [self.offset(*partition), self.ahead(*partition), self.token(*partition)];
        let paths = partitions.iter().flat_map(of);
        let mut nodes = self.keeper.read_all(&paths.collect::<Vec<_>>()).into_iter();
        let mut next = || nodes.next().expect("a result for each path");
        let mut plan = |partition: &PartitionId| {
            let (offset, ahead, token) = (next(), next(), next());
            self.plan_fencing(*partition, offset?, ahead?, token?)
        };
        let plans: Vec<Result<Fencing, KeeperError>> = partitions.iter().map(&mut plan).collect();
        let changes = |plan: &Fencing| plan.outcome.is_ok().then(|| plan.changes.clone());
        let writes: Vec<_> = plans.iter().flatten().filter_map(changes).collect();
        let mut written = self.keeper.multi_all(&writes).into_iter();
        let finish = |plan: Result<Fencing, KeeperError>| {
            let Fencing { changes, outcome, token_path, token } = plan?;
            let (position, ahead) = match outcome {
                Err(bad) => return Ok(ClaimOutcome::Unreadable(bad)),
                Ok(kept) => kept,
            };
            // Fails if an earlier owner stored an offset after the read above: the next attempt reads that offset.
            let versions = match written.next().expect("a result for each write") {
                Err(KeeperError::NoNode(path)) if path == token_path => {
                    self.create_folder(&path)?;
                    self.keeper.multi(&changes)?
                }
                versions => versions?,
            };
            let version = versions.get(1).copied().unwrap_or_default();
            Ok(ClaimOutcome::Claimed { version, token, position, ahead })
        };
        plans.into_iter().map(finish).collect()
    }

    fn plan_fencing(
        &self,
        partition: PartitionId,
        offset: Option<Node>,
        ahead: Option<Node>,
        latest_token: Option<Node>,
    ) -> Result<Fencing, KeeperError> {
        let (path, token_path) = (self.offset(partition), self.token(partition));
        let offset = match offset {
            Some(node) => node,
            None => {
                let data = match self.group_has_offsets {
                    true => paths::offset_text(0),
                    false => paths::NOTHING_STORED.to_vec(),
                };
                create_with_parents(self.keeper, &path, &data, Lifetime::Persistent)?;
                Node { data, ..Node::default() }
            }
        };
        let position = match paths::parse_offset(&offset.data) {
            Ok(position) => position,
            Err(bad) => return Ok(Fencing { changes: Vec::new(), outcome: Err(bad), token_path, token: 0 }),
        };
        let stored = |node: &Node| ahead::decode(&node.data, position?, offset.version);
        let known = ahead.as_ref().and_then(stored);
        let mut changes = vec![Change::Write(path, offset.data.clone(), Some(offset.version))];
        if ahead.is_some_and(|node| known.is_some() || node.data != ahead::VOID) {
            let data = match (position, &known) {
                (Some(position), Some(known)) => ahead::encode(position, next_version(offset.version), known),
                _ => ahead::VOID.to_vec(),
            };
            changes.push(Change::Write(self.ahead(partition), data, None));
        }
        let token = token::next(latest_token.as_ref(), next_version(offset.version));
        changes.push(match latest_token {
            Some(_) => Change::Write(token_path.clone(), token::encode(token), None),
            None => Change::Create(token_path.clone(), token::encode(token), Lifetime::Persistent),
        });
        let outcome = Ok((position, known.unwrap_or_default()));
        Ok(Fencing { changes: self.guarded(changes), outcome, token_path, token })
    }

    /// Stores offsets, and what is done ahead of them. Each store is conditional on the version of the offset node.
    pub(super) fn store_all(&self, stores: &[Store<'_>]) -> Vec<Result<StoreOutcome, KeeperError>> {
        let groups: Vec<_> = stores.iter().map(|store| self.changes_of(store)).collect();
        let results = self.keeper.multi_all(&groups);
        let outcomes = stores.iter().zip(&groups).zip(results);
        outcomes.map(|((store, changes), result)| self.outcome_of(store, changes, result)).collect()
    }

    fn outcome_of(
        &self,
        store: &Store<'_>,
        changes: &[Change],
        mut result: Result<Vec<i32>, KeeperError>,
    ) -> Result<StoreOutcome, KeeperError> {
        let (offset, ahead) = (self.offset(store.partition), self.ahead(store.partition));
        if result == Err(KeeperError::NoNode(ahead.clone())) {
            create_if_missing(self.keeper, &ahead)?;
            result = self.keeper.multi(changes);
        }
        match result {
            // The first change is the check of the registration, the second one that of the offset node.
            Ok(versions) => {
                let version = versions.get(1).copied().unwrap_or_default();
                Ok(StoreOutcome::Stored(version.max(store.version)))
            }
            Err(KeeperError::BadVersion(path) | KeeperError::NoNode(path)) if path == offset => {
                Ok(StoreOutcome::Fenced)
            }
            Err(error) => Err(error),
        }
    }

    fn changes_of(&self, store: &Store<'_>) -> Vec<Change> {
        let offset = self.offset(store.partition);
        let (change, version) = match store.stored == Some(store.next) {
            true => (Change::Check(offset, Some(store.version)), store.version),
            false => {
                let data = paths::offset_text(store.next);
                (Change::Write(offset, data, Some(store.version)), next_version(store.version))
            }
        };
        let mut changes = vec![change];
        // Without anything to say, an earlier node becomes void, because it belongs to an earlier version.
        if *store.ahead != DoneAhead::default() || version == store.version {
            let data = ahead::encode(store.next, version, store.ahead);
            changes.push(Change::Write(self.ahead(store.partition), data, None));
        }
        self.guarded(changes)
    }

    /// Returns for each store without a response (partition, version before it, offset) the version of the offset node:
    /// that before it if it was not carried out, the next one if it was, and `None` if another client wrote or deleted
    /// the node. All are read together, so a ZooKeeper that does not answer costs one timeout.
    pub(super) fn settle_all(&self, attempts: &[(PartitionId, i32, Offset)]) -> Vec<Result<Option<i32>, KeeperError>> {
        let offsets: Vec<String> = attempts.iter().map(|(partition, ..)| self.offset(*partition)).collect();
        let settled = |node: Node, version: i32, attempted: Offset| match node.version {
            same if same == version => Some(version),
            next if next == next_version(version) && node.data == paths::offset_text(attempted) => Some(next),
            _ => None,
        };
        let nodes = attempts.iter().zip(self.keeper.read_all(&offsets));
        nodes.map(|((_, version, next), node)| Ok(node?.and_then(|node| settled(node, *version, *next)))).collect()
    }

    /// Deletes the owner nodes that contain the id of this member.
    pub(super) fn release_all(&self, partitions: &[PartitionId]) -> Vec<Result<(), KeeperError>> {
        let owners: Vec<String> = partitions.iter().map(|partition| self.owner(*partition)).collect();
        let nodes = self.keeper.read_all(&owners);
        let is_own = |node: &Node| node.data == self.id.as_bytes();
        let delete = |(owner, node): (&String, &Result<Option<Node>, KeeperError>)| match node {
            Ok(Some(node)) if is_own(node) => Some(self.guarded([Change::Delete(owner.clone(), node.version)])),
            _ => None,
        };
        let deletes: Vec<Option<Vec<Change>>> = owners.iter().zip(&nodes).map(delete).collect();
        let mut deleted = self.keeper.multi_all(&deletes.iter().flatten().cloned().collect::<Vec<_>>()).into_iter();
        let finish = |((owner, node), delete): ((&String, Result<_, KeeperError>), &Option<_>)| {
            node?;
            match delete.as_ref().map(|_| deleted.next().expect("a result for each delete")) {
                Some(Err(KeeperError::NoNode(path) | KeeperError::BadVersion(path))) if path == *owner => Ok(()),
                Some(Err(error)) => Err(error),
                Some(Ok(_)) | None => Ok(()),
            }
        };
        owners.iter().zip(nodes).zip(&deletes).map(finish).collect()
    }

    /// Deletes the registration of member `id`, if this process created it in the current session.
    pub(super) fn unregister(&self, id: &str) -> Result<(), KeeperError> {
        let path = paths::group_id(self.group, id);
        match self.keeper.read(&path)? {
            Some(node) if Some(node.ephemeral_owner) == self.keeper.session_id() => {
                // The lease thread may have written the node after the read.
                match self.keeper.delete(&path, node.version) {
                    Err(KeeperError::NoNode(_)) => Ok(()),
                    result => result,
                }
            }
            _ => Ok(()),
        }
    }

    fn create_folder(&self, node: &str) -> Result<(), KeeperError> {
        create_if_missing(self.keeper, paths::parent_of(node).unwrap_or("/"))
    }
}

/// The write that begins a claim, and what it keeps.
struct Fencing {
    changes: Vec<Change>,
    outcome: Result<(Option<Offset>, DoneAhead), BadOffset>,
    token_path: String,
    token: u64,
}

/// Returns the version of a node after the next write: the server counts up, and wraps around.
fn next_version(version: i32) -> i32 {
    version.wrapping_add(1)
}

fn create_if_missing(keeper: &dyn Keeper, path: &str) -> Result<(), KeeperError> {
    match create_with_parents(keeper, path, b"", Lifetime::Persistent) {
        Err(KeeperError::NodeExists(_)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
