//! An in-memory ZooKeeper ensemble for unit tests: one tree, several sessions, faults on demand.
//!
//! Nodes, versions and ephemeral nodes behave as those of a real ensemble. Sessions do not time out: a session ends
//! only with [`InMemoryEnsemble::expire`] or [`Keeper::close`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::api::{Epoch, Keeper, KeeperError, Lifetime, Node};
use super::paths::parent_of;
use crate::locks::lock;

/// An ensemble: the tree of nodes and the sessions. Clones share the same ensemble.
#[derive(Clone, Default)]
pub(crate) struct InMemoryEnsemble {
    state: Arc<Mutex<EnsembleState>>,
}

/// One client of an [`InMemoryEnsemble`]. After its session has ended, its next call begins a new session.
pub(crate) struct InMemoryKeeper {
    state: Arc<Mutex<EnsembleState>>,
    /// Index into [`EnsembleState::clients`].
    client: usize,
    session_timeout: Duration,
}

struct EnsembleState {
    nodes: BTreeMap<String, Node>,
    clients: Vec<ClientState>,
    /// Id of the latest session of all clients.
    last_session: i64,
    reachable: bool,
    /// Nodes whose access list (ACL) denies all reads.
    denied: BTreeSet<String>,
}

#[derive(Default)]
struct ClientState {
    /// Id of the client's session; `None` before the first call and after the end of the session.
    session: Option<i64>,
    epoch: Epoch,
    /// The value of [`Keeper::last_confirmed`]. It is updated to the present when it is read, unless the client is
    /// unreachable.
    last_confirmed: Option<Instant>,
    cut_off: bool,
    closed: bool,
    /// Number of next creates, writes and deletes that are carried out, but whose responses are lost.
    lost_responses: usize,
}

impl Default for EnsembleState {
    fn default() -> Self {
        let root = Node { data: Vec::new(), version: 0, ephemeral_owner: 0 };
        EnsembleState {
            nodes: BTreeMap::from([("/".into(), root)]),
            clients: Vec::new(),
            last_session: 0,
            reachable: true,
            denied: BTreeSet::new(),
        }
    }
}

impl InMemoryEnsemble {
    /// Creates a reachable ensemble with an empty tree.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Creates a client. Its first call begins its session.
    pub(crate) fn connect(&self, session_timeout: Duration) -> Arc<InMemoryKeeper> {
        let mut state = lock(&self.state);
        state.clients.push(ClientState::default());
        let client = state.clients.len() - 1;
        Arc::new(InMemoryKeeper { state: Arc::clone(&self.state), client, session_timeout })
    }

    /// Ends the session of `keeper` as a server does after the session timeout: the session's ephemeral nodes vanish.
    /// The next call of `keeper` begins a session with the next epoch.
    pub(crate) fn expire(&self, keeper: &InMemoryKeeper) {
        lock(&self.state).end_session(keeper.client);
    }

    /// Makes the ACL of `path` deny reading the node and listing its children.
    pub(crate) fn refuse(&self, path: &str) {
        lock(&self.state).denied.insert(path.to_owned());
    }

    /// Sets whether the ensemble responds to its clients.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        let mut state = lock(&self.state);
        state.update_confirmed();
        state.reachable = reachable;
    }
}

impl InMemoryKeeper {
    /// Sets whether the ensemble responds to this client. An unreachable client keeps its session until the test
    /// expires it.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        let mut state = lock(&self.state);
        state.update_confirmed();
        state.clients[self.client].cut_off = !reachable;
    }

    /// Makes the next `count` creates, writes and deletes return `Unreachable` although they are carried out.
    pub(crate) fn lose_responses(&self, count: usize) {
        lock(&self.state).clients[self.client].lost_responses = count;
    }

    /// Runs one call, and first begins a session if the client has none.
    fn call<T>(
        &self,
        is_change: bool,
        work: impl FnOnce(&mut EnsembleState, i64) -> Result<T, KeeperError>,
    ) -> Result<T, KeeperError> {
        let mut state = lock(&self.state);
        state.check_reachable(self.client).map_err(KeeperError::Unreachable)?;
        let session = state.begin_session(self.client);
        let result = work(&mut state, session);
        let client = &mut state.clients[self.client];
        if is_change && client.lost_responses > 0 {
            client.lost_responses -= 1;
            return Err(KeeperError::Unreachable("the response was lost".into()));
        }
        client.last_confirmed = Some(Instant::now());
        result
    }
}

impl EnsembleState {
    fn check_reachable(&self, client: usize) -> Result<(), String> {
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
        self.update_confirmed();
        if let Some(session) = self.clients[client].session.take() {
            self.nodes.retain(|_, node| node.ephemeral_owner != session);
        }
    }

    /// Sets `last_confirmed` to the present for each client whose heartbeats would succeed. Called before a change that
    /// may make the heartbeats fail.
    fn update_confirmed(&mut self) {
        for client in 0..self.clients.len() {
            if self.check_reachable(client).is_ok() && self.clients[client].session.is_some() {
                self.clients[client].last_confirmed = Some(Instant::now());
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

    fn check_readable(&self, path: &str) -> Result<(), KeeperError> {
        if self.denied.contains(path) { Err(KeeperError::NoAuth(path.into())) } else { Ok(()) }
    }

    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        if !self.nodes.contains_key(path) {
            return Err(KeeperError::NoNode(path.into()));
        }
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let descendants = self.nodes.range(prefix.clone()..).map(|(path, _)| path);
        let relative = descendants.take_while(|path| path.starts_with(&prefix)).map(|path| &path[prefix.len()..]);
        Ok(relative.filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect())
    }

    /// Returns the node if it has this version. A negative version never matches, although it means "any version" to a
    /// real server, because the seam has no unconditional write.
    fn versioned(&mut self, path: &str, version: i32) -> Result<&mut Node, KeeperError> {
        let node = self.nodes.get_mut(path).ok_or_else(|| KeeperError::NoNode(path.into()))?;
        if node.version == version { Ok(node) } else { Err(KeeperError::BadVersion(path.into())) }
    }
}

impl Keeper for InMemoryKeeper {
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        self.call(false, |state, _| state.check_readable(path).and_then(|()| state.children(path)))
    }

    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError> {
        self.call(false, |state, _| state.check_readable(path).map(|()| state.nodes.get(path).cloned()))
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

    fn last_confirmed(&self) -> Option<Instant> {
        let mut state = lock(&self.state);
        state.update_confirmed();
        state.clients[self.client].last_confirmed
    }

    fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    fn reachable(&self) -> Result<(), String> {
        lock(&self.state).check_reachable(self.client)
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
    fn nodes_and_versions_behave_as_those_of_a_server() {
        let ensemble = InMemoryEnsemble::new();
        let one = ensemble.connect(TIMEOUT);
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
    fn ephemeral_nodes_vanish_with_their_session_and_the_next_session_has_the_next_epoch() {
        let ensemble = InMemoryEnsemble::new();
        let (one, other) = (ensemble.connect(TIMEOUT), ensemble.connect(TIMEOUT));
        assert_eq!((one.epoch(), one.last_confirmed()), (0, None));
        one.create("/mine", b"", Ephemeral).unwrap();
        one.create("/kept", b"", Persistent).unwrap();
        other.create("/other", b"", Ephemeral).unwrap();
        assert_ne!(one.read("/mine").unwrap().unwrap().ephemeral_owner, 0);
        assert_eq!(one.epoch(), 1);
        ensemble.expire(&one);
        assert_eq!(other.children("/"), Ok(vec!["kept".into(), "other".into()]));
        assert_eq!(one.epoch(), 1, "the next call begins the session");
        one.read("/").unwrap();
        assert_eq!(one.epoch(), 2);
        other.close(TIMEOUT);
        assert_eq!(one.children("/"), Ok(vec!["kept".into()]));
        assert!(other.read("/").is_err());
    }

    #[test]
    fn an_unreachable_client_is_not_confirmed_and_a_write_with_a_lost_response_is_carried_out() {
        let ensemble = InMemoryEnsemble::new();
        let (one, other) = (ensemble.connect(TIMEOUT), ensemble.connect(TIMEOUT));
        one.lose_responses(1);
        assert!(matches!(one.create("/late", b"", Ephemeral), Err(KeeperError::Unreachable(_))));
        assert!(other.read("/late").unwrap().is_some());
        one.set_reachable(false);
        let frozen = one.last_confirmed();
        assert!(one.reachable().is_err() && one.read("/").is_err() && other.read("/").is_ok());
        assert_eq!(one.last_confirmed(), frozen);
        one.set_reachable(true);
        assert!(one.last_confirmed() > frozen);
        ensemble.set_reachable(false);
        assert!(one.reachable().is_err() && other.read("/").is_err());
    }
}
