//! An in-memory ZooKeeper ensemble for unit tests: one tree, several sessions, faults on demand.
//!
//! Nodes, versions and ephemeral nodes behave as those of a real ensemble. Sessions do not time out: a session ends
//! only with [`InMemoryEnsemble::expire`] or [`Keeper::close`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::api::{Change, Epoch, Keeper, KeeperError, Lifetime, ManyNodes, Node};
use super::paths::parent_of;
use crate::clock::BootTime;
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
    /// Nodes whose reads get no response, and end the connection.
    poisoned: BTreeSet<String>,
    /// Id of the last change of the tree.
    last_change: i64,
    /// The paths of [`Keeper::read_many`] since the last call of [`InMemoryKeeper::take_reads`].
    reads: Vec<String>,
}

#[derive(Default)]
struct ClientState {
    /// Id of the client's session; `None` before the first call and after the end of the session.
    session: Option<i64>,
    epoch: Epoch,
    /// The value of [`Keeper::last_confirmed`].
    last_confirmed: Option<BootTime>,
    cut_off: bool,
    closed: bool,
    /// Number of next creates, writes and deletes that are carried out, but whose responses are lost.
    lost_responses: usize,
}

impl Default for EnsembleState {
    fn default() -> Self {
        let root = Node::default();
        EnsembleState {
            nodes: BTreeMap::from([("/".into(), root)]),
            clients: Vec::new(),
            last_session: 0,
            reachable: true,
            denied: BTreeSet::new(),
            poisoned: BTreeSet::new(),
            last_change: 0,
            reads: Vec::new(),
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

    /// Lets every read of `path` lose its response and those of the reads after it, as when the connection ends with
    /// it.
    pub(crate) fn poison(&self, path: &str) {
        lock(&self.state).poisoned.insert(path.to_owned());
    }

    /// Sets whether the ensemble responds to its clients.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        lock(&self.state).reachable = reachable;
    }
}

impl InMemoryKeeper {
    /// Sets whether the ensemble responds to this client. An unreachable client keeps its session until the test
    /// expires it.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        lock(&self.state).clients[self.client].cut_off = !reachable;
    }

    /// Makes the next `count` creates, writes and deletes return `Unreachable` although they are carried out.
    pub(crate) fn lose_responses(&self, count: usize) {
        lock(&self.state).clients[self.client].lost_responses = count;
    }

    /// Returns the paths that [`Keeper::read_many`] read since the last call.
    pub(crate) fn take_reads(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).reads)
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
        if is_change && result.is_ok() {
            client.last_confirmed = Some(BootTime::now());
        }
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
        self.clients[client].last_confirmed = None;
        if let Some(session) = self.clients[client].session.take() {
            let ended: Vec<String> =
                self.nodes.extract_if(.., |_, node| node.ephemeral_owner == session).map(|(path, _)| path).collect();
            self.last_change += 1;
            ended.iter().for_each(|path| self.child_changed(path, -1));
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
        self.last_change += 1;
        let node =
            Node { data: data.to_vec(), ephemeral_owner: owner, children_changed: self.last_change, ..Node::default() };
        self.nodes.insert(path.into(), node);
        self.child_changed(path, 1);
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

    fn write(&mut self, path: &str, data: &[u8], version: Option<i32>) -> Result<i32, KeeperError> {
        let node = match version {
            Some(version) => self.versioned(path, version)?,
            None => self.nodes.get_mut(path).ok_or_else(|| KeeperError::NoNode(path.into()))?,
        };
        node.data = data.to_vec();
        node.version += 1;
        Ok(node.version)
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<(), KeeperError> {
        self.versioned(path, version)?;
        if !self.children(path)?.is_empty() {
            return Err(KeeperError::NotEmpty(path.into()));
        }
        self.nodes.remove(path);
        self.last_change += 1;
        self.child_changed(path, -1);
        Ok(())
    }

    /// Notes that the node at `path` was created or deleted.
    fn child_changed(&mut self, path: &str, count: i32) {
        let change = self.last_change;
        if let Some(parent) = parent_of(path).and_then(|parent| self.nodes.get_mut(parent)) {
            parent.children_changed = change;
            parent.child_count = parent.child_count.saturating_add_signed(count);
        }
    }

    /// Makes one change and returns the new version of a node that is written, otherwise 0.
    fn change(&mut self, change: &Change, session: i64) -> Result<i32, KeeperError> {
        match change {
            Change::Check(path, None) if self.nodes.contains_key(path) => Ok(0),
            Change::Check(path, None) => Err(KeeperError::NoNode(path.clone())),
            Change::Check(path, Some(version)) => self.versioned(path, *version).map(|_| 0),
            Change::Create(path, data, lifetime) => self.create(path, data, owner_of(*lifetime, session)).map(|()| 0),
            Change::Write(path, data, version) => self.write(path, data, *version),
            Change::Delete(path, version) => self.delete(path, *version).map(|()| 0),
        }
    }

    /// Returns the node if it has this version. A negative version never matches, although it means "any version" to a
    /// real server, because the seam has no unconditional write.
    fn versioned(&mut self, path: &str, version: i32) -> Result<&mut Node, KeeperError> {
        let node = self.nodes.get_mut(path).ok_or_else(|| KeeperError::NoNode(path.into()))?;
        if node.version == version { Ok(node) } else { Err(KeeperError::BadVersion(path.into())) }
    }
}

/// Returns the owner of a node that is created in `session`.
fn owner_of(lifetime: Lifetime, session: i64) -> i64 {
    if lifetime == Lifetime::Ephemeral { session } else { 0 }
}

impl Keeper for InMemoryKeeper {
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        self.call(false, |state, _| state.check_readable(path).and_then(|()| state.children(path)))
    }

    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError> {
        self.call(false, |state, _| state.check_readable(path).map(|()| state.nodes.get(path).cloned()))
    }

    fn read_many(&self, paths: &[String]) -> ManyNodes {
        let lost = {
            let mut state = lock(&self.state);
            state.reads.extend(paths.iter().cloned());
            paths.iter().position(|path| state.poisoned.contains(path)).unwrap_or(paths.len())
        };
        let lost_response = || Err(KeeperError::Unreachable("the connection was lost".into()));
        let mut nodes = self.read_all(&paths[..lost]);
        nodes.resize_with(paths.len(), lost_response);
        ManyNodes { nodes, cost: paths.len() as u64 }
    }

    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError> {
        self.call(true, |state, session| state.create(path, data, owner_of(lifetime, session)))
    }

    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError> {
        self.call(true, |state, _| state.write(path, data, Some(version)))
    }

    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError> {
        self.call(true, |state, _| state.delete(path, version))
    }

    fn multi(&self, changes: &[Change]) -> Result<Vec<i32>, KeeperError> {
        self.call(true, |state, session| {
            let before = state.nodes.clone();
            let versions: Result<_, _> = changes.iter().map(|change| state.change(change, session)).collect();
            if versions.is_err() {
                state.nodes = before;
            }
            versions
        })
    }

    fn session_id(&self) -> Option<i64> {
        lock(&self.state).clients[self.client].session
    }

    fn epoch(&self) -> Epoch {
        lock(&self.state).clients[self.client].epoch
    }

    fn last_confirmed(&self) -> Option<BootTime> {
        lock(&self.state).clients[self.client].last_confirmed
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
        let written = one.read("/a").unwrap().unwrap();
        assert_eq!((&written.data[..], written.version, written.ephemeral_owner), (&b"z"[..], 1, 0));
        assert_eq!((written.child_count, written.children_changed), (1, 2), "the second change created its child");
        assert_eq!(one.delete("/a", 0), Err(KeeperError::BadVersion("/a".into())));
        assert_eq!(one.delete("/a", 1), Err(KeeperError::NotEmpty("/a".into())));
        assert_eq!(one.delete("/a/b", 0), Ok(()));
        assert_eq!(one.delete("/a", 1), Ok(()));
        assert_eq!(one.delete("/a", 1), Err(KeeperError::NoNode("/a".into())));
    }

    #[test]
    fn several_changes_are_carried_out_together_or_not_at_all() {
        let one = InMemoryEnsemble::new().connect(TIMEOUT);
        one.create("/a", b"", Persistent).unwrap();
        let create = Change::Create("/b".into(), b"b".to_vec(), Ephemeral);
        let write = |version| Change::Write("/a".into(), b"x".to_vec(), version);
        let wrong = one.multi(&[create.clone(), write(Some(7))]);
        assert_eq!(wrong, Err(KeeperError::BadVersion("/a".into())));
        assert_eq!(one.read("/b"), Ok(None));
        assert_eq!(
            one.multi(&[create, write(Some(0)), write(None), Change::Check("/b".into(), None)]),
            Ok(vec![0, 1, 2, 0])
        );
        let delete = Change::Delete("/b".into(), 0);
        assert_eq!(
            one.multi(&[Change::Check("/c".into(), None), delete.clone()]),
            Err(KeeperError::NoNode("/c".into()))
        );
        assert_eq!(one.multi(&[Change::Check("/a".into(), Some(2)), delete]), Ok(vec![0, 0]));
        assert_eq!(one.read("/b"), Ok(None));
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
        assert!(one.reachable().is_err() && one.read("/").is_err() && other.read("/").is_ok());
        assert_eq!(one.last_confirmed(), None, "the only response was lost");
        one.set_reachable(true);
        one.read("/").unwrap();
        assert_eq!(one.last_confirmed(), None, "a read proves nothing");
        one.write("/late", b"", 0).unwrap();
        assert!(one.last_confirmed().is_some());
        assert!(one.write("/late", b"", 0).is_err());
        ensemble.set_reachable(false);
        assert!(one.reachable().is_err() && other.read("/").is_err());
    }
}
