//! A ZooKeeper in memory, for unit tests: one tree, several sessions, faults on demand.
//!
//! Answers as the real one does: what exists, versions, ephemeral nodes and when they vanish. Time does not pass by
//! itself here: a session ends when a test says so ([`MemoryKeeper::expire`]), never by its timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::paths::parent_of;
use super::{Epoch, Keeper, KeeperError, Lifetime, Node};
use crate::locks::lock;

/// The tree and its sessions. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryKeeper {
    state: Arc<Mutex<State>>,
}

/// One client of a [`MemoryKeeper`]. After its session ended it gets a new one with its next call, as the real client does.
pub struct MemorySession {
    state: Arc<Mutex<State>>,
    client: usize,
    timeout: Duration,
}

struct State {
    nodes: BTreeMap<String, Node>,
    clients: Vec<Client>,
    last_session: i64,
    reachable: bool,
    /// Nodes whose access list shuts everybody out.
    refused: BTreeSet<String>,
}

#[derive(Default)]
struct Client {
    /// Id of its session; `None` before the first call and after the end.
    session: Option<i64>,
    epoch: Epoch,
    /// Frozen while the ensemble does not answer; else the heartbeat keeps it at now.
    last_good: Option<Instant>,
    cut_off: bool,
    closed: bool,
    /// So many next writes are carried out while their answer is lost.
    lost_answers: usize,
}

impl Default for State {
    fn default() -> Self {
        let root = Node { data: Vec::new(), version: 0, ephemeral_owner: 0 };
        State {
            nodes: BTreeMap::from([("/".into(), root)]),
            clients: Vec::new(),
            last_session: 0,
            reachable: true,
            refused: BTreeSet::new(),
        }
    }
}

impl MemoryKeeper {
    /// An empty tree that answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of its own, with a session of its own.
    pub fn session(&self, timeout: Duration) -> Arc<MemorySession> {
        let mut state = lock(&self.state);
        state.clients.push(Client::default());
        let client = state.clients.len() - 1;
        Arc::new(MemorySession { state: Arc::clone(&self.state), client, timeout })
    }

    /// Ends the session as the server does after its timeout: its ephemeral nodes vanish. Its next call begins a new epoch.
    pub fn expire(&self, session: &MemorySession) {
        lock(&self.state).end_session(session.client);
    }

    /// From now on nobody may read this node or its children.
    pub fn refuse(&self, path: &str) {
        lock(&self.state).refused.insert(path.to_owned());
    }

    /// Whether any client gets answers.
    pub fn set_reachable(&self, reachable: bool) {
        let mut state = lock(&self.state);
        state.settle();
        state.reachable = reachable;
    }
}

impl MemorySession {
    /// Whether this client alone gets answers; the others are not touched. Cut off, it keeps its session until that is expired.
    pub fn set_reachable(&self, reachable: bool) {
        let mut state = lock(&self.state);
        state.settle();
        state.clients[self.client].cut_off = !reachable;
    }

    /// The next `count` creates, writes and deletes are carried out, but fail as unreachable.
    pub fn lose_answers(&self, count: usize) {
        lock(&self.state).clients[self.client].lost_answers = count;
    }

    /// Runs one call, beginning a session if there is none.
    fn call<T>(
        &self,
        changes: bool,
        work: impl FnOnce(&mut State, i64) -> Result<T, KeeperError>,
    ) -> Result<T, KeeperError> {
        let mut state = lock(&self.state);
        state.answers(self.client).map_err(KeeperError::Unreachable)?;
        let session = state.begin_session(self.client);
        let outcome = work(&mut state, session);
        let client = &mut state.clients[self.client];
        if changes && client.lost_answers > 0 {
            client.lost_answers -= 1;
            return Err(KeeperError::Unreachable("the answer was lost".into()));
        }
        client.last_good = Some(Instant::now());
        outcome
    }
}

impl State {
    fn answers(&self, client: usize) -> Result<(), String> {
        let client = &self.clients[client];
        if client.closed {
            return Err("closed".into());
        }
        if client.cut_off || !self.reachable {
            return Err("made unreachable by the test".into());
        }
        Ok(())
    }

    fn begin_session(&mut self, client: usize) -> i64 {
        if let Some(session) = self.clients[client].session {
            return session;
        }
        self.last_session += 1;
        let client = &mut self.clients[client];
        client.session = Some(self.last_session);
        client.epoch += 1;
        self.last_session
    }

    fn end_session(&mut self, client: usize) {
        self.settle();
        if let Some(session) = self.clients[client].session.take() {
            self.nodes.retain(|_, node| node.ephemeral_owner != session);
        }
    }

    /// Writes down what the heartbeats have reached, before something changes that stops them.
    fn settle(&mut self) {
        for client in 0..self.clients.len() {
            if self.answers(client).is_ok() && self.clients[client].session.is_some() {
                self.clients[client].last_good = Some(Instant::now());
            }
        }
    }

    fn create(&mut self, path: &str, data: &[u8], owner: i64) -> Result<(), KeeperError> {
        let parent = parent_of(path).ok_or_else(|| KeeperError::NodeExists(path.into()))?;
        let parent = self.nodes.get(parent).ok_or_else(|| KeeperError::NoNode(path.into()))?;
        if self.nodes.contains_key(path) {
            return Err(KeeperError::NodeExists(path.into()));
        }
        if parent.ephemeral_owner != 0 {
            return Err(KeeperError::Unreachable(format!("an ephemeral node cannot be the parent of {path}")));
        }
        self.nodes.insert(path.into(), Node { data: data.to_vec(), version: 0, ephemeral_owner: owner });
        Ok(())
    }

    fn readable(&self, path: &str) -> Result<(), KeeperError> {
        if self.refused.contains(path) { Err(KeeperError::Refused(path.into())) } else { Ok(()) }
    }

    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        if !self.nodes.contains_key(path) {
            return Err(KeeperError::NoNode(path.into()));
        }
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let below = self.nodes.range(prefix.clone()..).map(|(path, _)| path);
        let below = below.take_while(|path| path.starts_with(&prefix)).map(|path| &path[prefix.len()..]);
        Ok(below.filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect())
    }

    /// The node if it has this version. A negative version, which means "any" to a real server, never matches: the seam has no
    /// unconditional writes.
    fn versioned(&mut self, path: &str, version: i32) -> Result<&mut Node, KeeperError> {
        let node = self.nodes.get_mut(path).ok_or_else(|| KeeperError::NoNode(path.into()))?;
        if node.version == version { Ok(node) } else { Err(KeeperError::BadVersion(path.into())) }
    }
}

impl Keeper for MemorySession {
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        self.call(false, |state, _| state.readable(path).and_then(|()| state.children(path)))
    }

    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError> {
        self.call(false, |state, _| state.readable(path).map(|()| state.nodes.get(path).cloned()))
    }

    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError> {
        self.call(true, |state, session| {
            let owner = if lifetime == Lifetime::Ephemeral { session } else { 0 };
            state.create(path, data, owner)
        })
    }

    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError> {
        self.call(true, |state, _| {
            let node = state.versioned(path, version)?;
            node.data = data.to_vec();
            node.version += 1;
            Ok(node.version)
        })
    }

    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError> {
        self.call(true, |state, _| {
            state.versioned(path, version)?;
            if !state.children(path)?.is_empty() {
                return Err(KeeperError::NotEmpty(path.into()));
            }
            state.nodes.remove(path);
            Ok(())
        })
    }

    fn epoch(&self) -> Epoch {
        lock(&self.state).clients[self.client].epoch
    }

    fn last_good(&self) -> Option<Instant> {
        let mut state = lock(&self.state);
        state.settle();
        state.clients[self.client].last_good
    }

    fn session_timeout(&self) -> Duration {
        self.timeout
    }

    fn reachable(&self) -> Result<(), String> {
        lock(&self.state).answers(self.client)
    }

    fn close(&self, _grace: Duration) {
        let mut state = lock(&self.state);
        state.end_session(self.client);
        state.clients[self.client].closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Lifetime::{Ephemeral, Persistent};

    const TIMEOUT: Duration = Duration::from_secs(6);

    #[test]
    fn answers_as_a_server_does() {
        let keeper = MemoryKeeper::new();
        let one = keeper.session(TIMEOUT);
        assert_eq!(one.create("/a/b", b"", Persistent), Err(KeeperError::NoNode("/a/b".into())));
        assert_eq!(one.create("/a", b"x", Persistent), Ok(()));
        assert_eq!(one.create("/a", b"y", Persistent), Err(KeeperError::NodeExists("/a".into())));
        assert_eq!(one.create("/", b"y", Persistent), Err(KeeperError::NodeExists("/".into())));
        assert_eq!(one.create("/a/b", b"", Persistent), Ok(()));
        assert_eq!(one.create("/ab", b"", Persistent), Ok(()));
        assert_eq!(one.children("/"), Ok(vec!["a".into(), "ab".into()]));
        assert_eq!(one.children("/a"), Ok(vec!["b".into()]));
        assert_eq!(one.children("/a/b"), Ok(vec![]));
        assert_eq!(one.children("/c"), Err(KeeperError::NoNode("/c".into())));
        assert_eq!(one.read("/c"), Ok(None));
        assert_eq!(one.write("/c", b"", 0), Err(KeeperError::NoNode("/c".into())));
        assert_eq!(one.write("/a", b"z", 0), Ok(1));
        assert_eq!(one.write("/a", b"z", 0), Err(KeeperError::BadVersion("/a".into())));
        assert_eq!(one.write("/a", b"z", -1), Err(KeeperError::BadVersion("/a".into())));
        assert_eq!(one.read("/a"), Ok(Some(Node { data: b"z".to_vec(), version: 1, ephemeral_owner: 0 })));
        assert_eq!(one.delete("/a", 0), Err(KeeperError::BadVersion("/a".into())));
        assert_eq!(one.delete("/a", 1), Err(KeeperError::NotEmpty("/a".into())));
        assert_eq!(one.delete("/a/b", 0), Ok(()));
        assert_eq!(one.delete("/a", 1), Ok(()));
        assert_eq!(one.delete("/a", 1), Err(KeeperError::NoNode("/a".into())));
    }

    #[test]
    fn an_ended_session_takes_its_ephemeral_nodes_and_the_next_is_a_new_epoch() {
        let keeper = MemoryKeeper::new();
        let (one, other) = (keeper.session(TIMEOUT), keeper.session(TIMEOUT));
        assert_eq!((one.epoch(), one.last_good()), (0, None));
        one.create("/mine", b"", Ephemeral).unwrap();
        one.create("/kept", b"", Persistent).unwrap();
        other.create("/other", b"", Ephemeral).unwrap();
        assert_ne!(one.read("/mine").unwrap().unwrap().ephemeral_owner, 0);
        assert_eq!(one.epoch(), 1);
        keeper.expire(&one);
        assert_eq!(other.children("/"), Ok(vec!["kept".into(), "other".into()]));
        assert_eq!(one.epoch(), 1, "it learns of its new session with a call");
        one.read("/").unwrap();
        assert_eq!(one.epoch(), 2);
        other.close(TIMEOUT);
        assert_eq!(one.children("/"), Ok(vec!["kept".into()]));
        assert!(other.read("/").is_err());
    }

    #[test]
    fn without_answers_the_last_good_one_grows_old_and_a_lost_answer_was_carried_out() {
        let keeper = MemoryKeeper::new();
        let (one, other) = (keeper.session(TIMEOUT), keeper.session(TIMEOUT));
        one.lose_answers(1);
        assert!(matches!(one.create("/late", b"", Ephemeral), Err(KeeperError::Unreachable(_))));
        assert!(other.read("/late").unwrap().is_some());
        one.set_reachable(false);
        let frozen = one.last_good();
        assert!(one.reachable().is_err() && one.read("/").is_err() && other.read("/").is_ok());
        assert_eq!(one.last_good(), frozen);
        one.set_reachable(true);
        assert!(one.last_good() > frozen);
        keeper.set_reachable(false);
        assert!(one.reachable().is_err() && other.read("/").is_err());
    }
}
