//! Implements the operations on nodes with calls in the current session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zookeeper::{Acl, CreateMode, ZkError, ZkResult, ZooKeeper};

use super::sessions::Sessions;
use crate::keeper::api::{Epoch, Keeper, KeeperError, Lifetime, Node};
use crate::keeper::paths::parent_of;

/// The implementation of [`Keeper`] for a real ensemble.
pub(super) struct ZookeeperClient {
    sessions: Arc<Sessions>,
}

impl ZookeeperClient {
    pub(super) fn new(sessions: Arc<Sessions>) -> ZookeeperClient {
        ZookeeperClient { sessions }
    }

    fn full_path(&self, path: &str) -> String {
        self.sessions.config.full_path(path)
    }

    /// Creates the nodes of the chroot that do not exist, as the original does.
    fn create_chroot(&self) -> Result<(), KeeperError> {
        let chroot = &self.sessions.config.chroot;
        let ends = chroot.match_indices('/').skip(1).map(|(end, _)| end);
        for end in ends.chain([chroot.len()]) {
            let ancestor = chroot[..end].to_owned();
            let acl = Acl::open_unsafe().clone();
            match self.sessions.call(move |client| client.create(&ancestor, Vec::new(), acl, CreateMode::Persistent))? {
                Ok(_) | Err(ZkError::NodeExists) => {}
                Err(error) => return Err(node_error(error, "/")),
            }
        }
        Ok(())
    }
}

fn node_of(result: ZkResult<(Vec<u8>, zookeeper::Stat)>, path: &str) -> Result<Option<Node>, KeeperError> {
    match result {
        Ok((data, stat)) => Ok(Some(Node { data, version: stat.version, ephemeral_owner: stat.ephemeral_owner })),
        Err(ZkError::NoNode) => Ok(None),
        Err(error) => Err(node_error(error, path)),
    }
}

fn node_error(error: ZkError, path: &str) -> KeeperError {
    match error {
        ZkError::NoNode => KeeperError::NoNode(path.to_owned()),
        ZkError::NodeExists => KeeperError::NodeExists(path.to_owned()),
        ZkError::BadVersion => KeeperError::BadVersion(path.to_owned()),
        ZkError::NotEmpty => KeeperError::NotEmpty(path.to_owned()),
        ZkError::NoAuth => KeeperError::NoAuth(path.to_owned()),
        other => KeeperError::Unreachable(format!("request failed: {other:?}")),
    }
}

impl Keeper for ZookeeperClient {
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        let full = self.full_path(path);
        self.sessions.call(move |client| client.get_children(&full, false))?.map_err(|error| node_error(error, path))
    }

    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError> {
        let full = self.full_path(path);
        node_of(self.sessions.call(move |client| client.get_data(&full, false))?, path)
    }

    fn read_all(&self, paths: &[String]) -> Vec<Result<Option<Node>, KeeperError>> {
        let current = match self.sessions.current() {
            Ok(current) => current,
            Err(error) => return vec![Err(error); paths.len()],
        };
        let read = |path: &String| {
            let full = self.full_path(path);
            move |client: &ZooKeeper| client.get_data(&full, false)
        };
        let outcomes = current.instance.call_all(self.sessions.call_timeout(), paths.iter().map(read).collect());
        let results = paths.iter().zip(outcomes).map(|(path, outcome)| {
            self.sessions.record(current.epoch, outcome).and_then(|result| node_of(result, path))
        });
        let mut nodes: Vec<_> = results.collect();
        // `call_all` stops after the first call without a response, so the outcomes of later calls are missing.
        nodes.resize(paths.len(), Err(KeeperError::Unreachable("an earlier read got no response".into())));
        nodes
    }

    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError> {
        let mode = match lifetime {
            Lifetime::Persistent => CreateMode::Persistent,
            Lifetime::Ephemeral => CreateMode::Ephemeral,
        };
        let create = || {
            let (full, data, acl) = (self.full_path(path), data.to_vec(), Acl::open_unsafe().clone());
            self.sessions.call(move |client| client.create(&full, data, acl, mode))
        };
        let mut result = create()?;
        // The caller cannot create the chroot, because it is `/` in the caller's paths.
        let is_below_root = !self.sessions.config.chroot.is_empty() && parent_of(path) == Some("/");
        if is_below_root && matches!(result, Err(ZkError::NoNode)) {
            self.create_chroot()?;
            result = create()?;
        }
        result.map(drop).map_err(|error| node_error(error, path))
    }

    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError> {
        if version < 0 {
            // A negative version means "any version" to the server, and the seam has no unconditional write.
            return Err(KeeperError::BadVersion(path.to_owned()));
        }
        let (full, data) = (self.full_path(path), data.to_vec());
        let result = self.sessions.call(move |client| client.set_data(&full, data, Some(version)))?;
        result.map(|stat| stat.version).map_err(|error| node_error(error, path))
    }

    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError> {
        if version < 0 {
            return Err(KeeperError::BadVersion(path.to_owned()));
        }
        let full = self.full_path(path);
        self.sessions.call(move |client| client.delete(&full, Some(version)))?.map_err(|error| node_error(error, path))
    }

    fn epoch(&self) -> Epoch {
        self.sessions.epoch()
    }

    fn last_confirmed(&self) -> Option<Instant> {
        self.sessions.last_confirmed()
    }

    fn session_timeout(&self) -> Duration {
        self.sessions.session_timeout()
    }

    fn reachable(&self) -> Result<(), String> {
        self.sessions.reachable()
    }

    fn close(&self, grace: Duration) {
        self.sessions.close(grace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_a_node_become_the_variants_of_the_same_name() {
        let path = || "/a".to_owned();
        for (error, expected) in [
            (ZkError::NoNode, KeeperError::NoNode(path())),
            (ZkError::NodeExists, KeeperError::NodeExists(path())),
            (ZkError::BadVersion, KeeperError::BadVersion(path())),
            (ZkError::NotEmpty, KeeperError::NotEmpty(path())),
            (ZkError::NoAuth, KeeperError::NoAuth(path())),
        ] {
            assert_eq!(node_error(error, "/a"), expected);
        }
    }
}
