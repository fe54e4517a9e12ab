//! The interface to a ZooKeeper ensemble: the trait [`Keeper`], its nodes and its errors.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::BootTime;

/// Number of a session of one keeper, counted from 1; 0 before the first session. An ephemeral node vanishes when the
/// session of its epoch ends.
pub type Epoch = u64;

/// A node, as the server returned it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The data of the node.
    pub data: Vec<u8>,
    /// Version of the data. Each write increments it by one.
    pub version: i32,
    /// Id of the session that an ephemeral node belongs to; 0 for a persistent node.
    pub ephemeral_owner: i64,
    /// Milliseconds since 1970 of the creation, by the clock of the server; 0 if unknown.
    pub created_ms: i64,
    /// Milliseconds since 1970 of the last write, by the clock of the server; 0 if unknown.
    pub modified_ms: i64,
    /// Id of the last change that created or deleted a child (`pzxid`). As long as it is the same, the node has the
    /// same children, and none was recreated. 0 if unknown.
    pub children_changed: i64,
    /// Number of children.
    pub child_count: u32,
}

/// The nodes that [`Keeper::read_many`] read.
#[derive(Clone, Debug)]
pub struct ManyNodes {
    /// In the order of the paths.
    pub nodes: Vec<Result<Option<Node>, KeeperError>>,
    /// The cost of the requests for the server, in reads of one node.
    pub cost: u64,
}

/// How long a node exists after its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// The node exists until it is deleted.
    Persistent,
    /// The node exists until it is deleted or the session that created it ends.
    Ephemeral,
}

/// One change of several that are carried out together, see [`Keeper::multi`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The node exists, with this version; `None` for any version.
    Check(String, Option<i32>),
    /// Creates a node; its parent must exist.
    Create(String, Vec<u8>, Lifetime),
    /// Writes the data if the node has this version. `None` writes in any case, which is safe only beside another
    /// conditional change.
    Write(String, Vec<u8>, Option<i32>),
    /// Deletes the node if it has this version.
    Delete(String, i32),
}

impl Change {
    /// Returns the path of the node.
    pub fn path(&self) -> &str {
        match self {
            Change::Check(path, _)
            | Change::Create(path, _, _)
            | Change::Write(path, _, _)
            | Change::Delete(path, _) => path,
        }
    }
}

/// Why a call failed. All variants except `Unreachable` are errors that the server returned, with ZooKeeper's names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// The node does not exist. From `create`: the parent does not exist.
    #[error("node {0} (or its parent) does not exist")]
    NoNode(String),
    /// From `create`: the node exists already. An earlier attempt whose response was lost may have created it.
    #[error("node {0} already exists")]
    NodeExists(String),
    /// From `write` and `delete`: the node has another version, because another client wrote it.
    #[error("version of node {0} has changed, another client wrote it")]
    BadVersion(String),
    /// From `delete`: the node has children.
    #[error("node {0} has children")]
    NotEmpty(String),
    /// The node's access list (ACL) does not allow this call. The session stays trusted.
    #[error("access to node {0} is denied by its ACL")]
    NoAuth(String),
    /// There is no session, no response arrived by the deadline, or the response leaves the outcome open. ZooKeeper may
    /// still carry out the call later.
    #[error("ZooKeeper is unreachable: {0}")]
    Unreachable(String),
}

/// A client of a ZooKeeper ensemble, shared by all threads. Paths begin with `/` and are relative to the chroot.
pub trait Keeper: Send + Sync {
    /// Returns the names of the children of `path`, unsorted.
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError>;

    /// Returns the node at `path`, or `None` if it does not exist.
    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError>;

    /// Reads several nodes, with several requests in flight if the implementation can do that. The results have the
    /// order of `paths`. After the first read without a response, all later reads fail at once.
    fn read_all(&self, paths: &[String]) -> Vec<Result<Option<Node>, KeeperError>> {
        paths.iter().map(|path| self.read(path)).collect()
    }

    /// Reads many nodes as [`read_all`](Self::read_all) does, with as little work for the server as it allows: with
    /// MultiRead, which ZooKeeper has since 3.6.
    fn read_many(&self, paths: &[String]) -> ManyNodes {
        ManyNodes { nodes: self.read_all(paths), cost: paths.len() as u64 }
    }

    /// Returns how many nodes [`read_many`](Self::read_many) reads at the cost of one [`read`](Self::read), as far as
    /// it is known.
    fn nodes_per_read(&self) -> u64 {
        1
    }

    /// Returns the names of the children of several nodes, see [`read_all`](Self::read_all).
    fn children_all(&self, paths: &[String]) -> Vec<Result<Vec<String>, KeeperError>> {
        paths.iter().map(|path| self.children(path)).collect()
    }

    /// Creates a node; its parent must exist.
    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError>;

    /// Writes `data` if the node still has `version`, and returns the new version. There is no unconditional write.
    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError>;

    /// Deletes the node if it still has `version`.
    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError>;

    /// Carries out all `changes` or none of them. Returns the new version of each node that is written, and 0 for each
    /// other change. An error has the path of the change that is not possible.
    fn multi(&self, changes: &[Change]) -> Result<Vec<i32>, KeeperError>;

    /// Carries out several independent [`multi`](Self::multi)s, with several requests in flight if the implementation
    /// can do that. The results have the order of `groups`.
    fn multi_all(&self, groups: &[Vec<Change>]) -> Vec<Result<Vec<i32>, KeeperError>> {
        groups.iter().map(|changes| self.multi(changes)).collect()
    }

    /// Returns the id of the current session, the `ephemeral_owner` of its nodes; `None` without a session.
    fn session_id(&self) -> Option<i64>;

    /// Returns the epoch of the latest session. Read it *before* creating an ephemeral node: if it is the same
    /// afterwards, the node belongs to that epoch.
    fn epoch(&self) -> Epoch;

    /// Returns the send time of the latest write of the current session that succeeded; `None` if there is none. Only a
    /// write proves that the session exists: it passes the leader, while a server that lost its leader still answers
    /// reads. A caller that needs the epoch too must read this time before [`epoch`](Self::epoch).
    fn last_confirmed(&self) -> Option<BootTime>;

    /// Returns the session timeout that the server granted. Before the first session, returns the configured one.
    fn session_timeout(&self) -> Duration;

    /// Returns an error with the reason if the ensemble does not respond at present; for `/readyz`.
    fn reachable(&self) -> Result<(), String>;

    /// Closes the session, so that its ephemeral nodes vanish at once, and waits for that at most `grace`. Later calls
    /// fail.
    fn close(&self, grace: Duration);
}

/// A shared reference to a keeper.
pub type SharedKeeper = Arc<dyn Keeper>;
