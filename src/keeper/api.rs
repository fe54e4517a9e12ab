//! What callers see of a ZooKeeper ensemble: the trait [`Keeper`], its nodes and its errors.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of a session of one keeper, from 1; 0 before the first. Ephemeral nodes end with the epoch they belong to.
pub type Epoch = u64;

/// A node as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The data as it was last written.
    pub data: Vec<u8>,
    /// Version of the data: it grows by one with each write.
    pub version: i32,
    /// Id of the session that an ephemeral node belongs to; 0 for a persistent one.
    pub ephemeral_owner: i64,
}

/// How long a created node stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// Until it is deleted or the session that created it ends.
    Ephemeral,
}

/// Why a call failed. All variants but `Unreachable` are responses of the server, under ZooKeeper's names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// The node does not exist (for `create`: its parent does not).
    #[error("node {0} (or its parent) does not exist")]
    NoNode(String),
    /// `create`: the node exists already, perhaps by an earlier attempt whose response was lost.
    #[error("node {0} already exists")]
    NodeExists(String),
    /// A conditional write or delete met another version: another client wrote in between.
    #[error("version of node {0} has changed, another client wrote it")]
    BadVersion(String),
    /// `delete`: the node has children.
    #[error("node {0} has children")]
    NotEmpty(String),
    /// The node's access list (ACL) does not allow this call. The session stays trusted.
    #[error("access to node {0} is denied by its ACL")]
    NoAuth(String),
    /// No session, no response by the deadline, or an unclear one; the call may still be carried out later.
    #[error("ZooKeeper is unreachable: {0}")]
    Unreachable(String),
}

/// A ZooKeeper ensemble under a chroot; shared by all threads. Paths begin with `/` and are below the chroot.
pub trait Keeper: Send + Sync {
    /// Names of the children of `path`, unsorted.
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError>;

    /// The node, or `None` if it does not exist.
    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError>;

    /// Reads several nodes, with several requests in flight where the implementation can. The results have the order of
    /// `paths`. After the first read without a response the others are not waited for: they fail too.
    fn read_all(&self, paths: &[String]) -> Vec<Result<Option<Node>, KeeperError>> {
        paths.iter().map(|path| self.read(path)).collect()
    }

    /// Creates a node; its parent must exist.
    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError>;

    /// Writes if the node still has `version`; returns the new version. There is no unconditional write.
    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError>;

    /// Deletes if the node still has `version`.
    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError>;

    /// The epoch of the latest session. A claim (ephemeral node) belongs to the epoch read *before* it was created.
    fn epoch(&self) -> Epoch;

    /// When the request whose response last confirmed the current session was *sent*; `None` without a trusted session.
    /// A heartbeat keeps it recent between calls. Where both matter, read it before [`epoch`](Self::epoch).
    fn last_confirmed(&self) -> Option<Instant>;

    /// The session timeout the server granted, at most the configured one; the configured one before the first session.
    fn session_timeout(&self) -> Duration;

    /// Whether the ensemble responds now, or else the reason; for `/readyz`.
    fn reachable(&self) -> Result<(), String>;

    /// Ends the session within `grace`, so that its ephemeral nodes vanish at once. Later calls fail.
    fn close(&self, grace: Duration);
}

/// A keeper as it is passed around.
pub type SharedKeeper = Arc<dyn Keeper>;
