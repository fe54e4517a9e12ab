//! The ZooKeeper seam: nodes, versions and claims, in our own words.
//!
//! Behind it stand the `client` (the zookeeper crate under a supervisor that gives every call a deadline and replaces
//! a lost client) and `memory` (unit tests). No type of the zookeeper crate leaves this folder.
//!
//! What callers rely on: every call returns within a third of the session timeout; a write may be carried out late even if it
//! failed here, so every write must be safe to happen late (ephemeral with our instance id, or conditional
//! on a version); polling is the truth, watches are not used.

pub mod client;
pub mod discovery;
pub mod memory;
pub mod paths;

pub use client::connect;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Problems, Section};

/// Counts the sessions of one keeper, from 1; 0 while there was none. What was claimed (ephemeral nodes) in an earlier epoch is lost or about to be.
pub type Epoch = u64;

/// A node as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its data.
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
    /// Until it is deleted or the session that made it ends.
    Ephemeral,
}

/// Why a call did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// There is no such node (for `create`: no parent).
    #[error("node {0} (or its parent) does not exist")]
    NoNode(String),
    /// `create`: the node is there already, perhaps by our own earlier try.
    #[error("node {0} exists")]
    NodeExists(String),
    /// A conditional write or delete met another version: somebody else wrote in between.
    #[error("node {0} has another version")]
    BadVersion(String),
    /// `delete`: the node has children.
    #[error("node {0} has children")]
    NotEmpty(String),
    /// The node's access list (ACL) shuts us out. The session is as good as before.
    #[error("ZooKeeper refuses access to node {0}")]
    Refused(String),
    /// No good answer in time, or no session at all; the call may still be carried out late.
    #[error("no answer from ZooKeeper: {0}")]
    Unreachable(String),
}

/// A ZooKeeper ensemble under a chroot; shared by all threads. Paths begin with `/` and are below the chroot.
pub trait Keeper: Send + Sync {
    /// Names of the children of `path`, unsorted.
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError>;

    /// The node, or `None` where there is none.
    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError>;

    /// The nodes, in the same order, as many [`read`](Self::read)s: several are under way at the same time where that is quicker. After one
    /// that got no answer the others are not waited for.
    fn read_all(&self, paths: &[String]) -> Vec<Result<Option<Node>, KeeperError>> {
        paths.iter().map(|path| self.read(path)).collect()
    }

    /// Makes a node; its parent must be there.
    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError>;

    /// Writes if the node still has `version`; returns the new version. There is no unconditional write.
    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError>;

    /// Deletes if the node still has `version`.
    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError>;

    /// Which session this is. A caller that claimed something remembers the epoch read *before* it claimed.
    fn epoch(&self) -> Epoch;

    /// When the request of the latest good answer of the current session was *sent*; `None` while there is no session that is
    /// trusted. A heartbeat keeps it young while nobody calls. Read it before [`epoch`](Self::epoch), if both matter.
    fn last_good(&self) -> Option<Instant>;

    /// Session timeout: as granted by the server, at most what was asked for; as asked for while there was no server yet.
    fn session_timeout(&self) -> Duration;

    /// Whether the ensemble answers now, and if not, why; for `/readyz`.
    fn reachable(&self) -> Result<(), String>;

    /// Ends the session within `grace`, so that its ephemeral nodes vanish at once. Calls fail afterwards.
    fn close(&self, grace: Duration);
}

/// A keeper as it is passed around.
pub type SharedKeeper = Arc<dyn Keeper>;

/// How to reach an ensemble.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// `host:port` of the servers; at least one.
    pub hosts: Vec<String>,
    /// Prefix of every path, `/a/b` or empty. Added by us, never given to the client.
    pub chroot: String,
    /// Session timeout asked for (`zk_timeout_ms`, `zk_session_timeout_ms`).
    pub session_timeout: Duration,
    /// Bound on connecting to one server (`zk_connect_timeout_ms`).
    pub connect_timeout: Duration,
}

/// Takes the chroot from `key`: empty or absent, or `/a/b`.
pub fn chroot(key: &str, section: &mut Section, problems: &mut Problems) -> String {
    let chroot = section.string(key, Some(""), problems);
    paths::normalise_chroot(&chroot).unwrap_or_else(|wrong| {
        section.note(key, format!("{wrong}; it is empty or a path, as in /mq/test_cluster"), problems);
        String::new()
    })
}
