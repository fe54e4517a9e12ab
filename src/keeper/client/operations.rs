//! Implements the operations on nodes with calls in the current session.

use std::sync::Arc;
use std::time::Duration;

use super::errors::{node_error, unreadable};
use super::link::{CallKind, Link, MAX_QUEUED_CALLS};
use super::multi_read::{self, MultiRead};
use super::protocol::{self, Request, Response, error};
use crate::clock::BootTime;
use crate::keeper::api::{Change, Epoch, Keeper, KeeperError, Lifetime, ManyNodes, Node};
use crate::keeper::paths::parent_of;

/// The implementation of [`Keeper`] for a real ensemble.
pub(super) struct ZookeeperClient {
    link: Arc<Link>,
    multi_read: MultiRead,
}

impl ZookeeperClient {
    pub(super) fn new(link: Arc<Link>) -> ZookeeperClient {
        ZookeeperClient { link, multi_read: MultiRead::default() }
    }

    fn full_path(&self, path: &str) -> String {
        self.link.config.full_path(path)
    }

    /// Returns the change with the chroot before its path.
    fn full_change(&self, change: &Change) -> Change {
        let mut full = change.clone();
        let path = match &mut full {
            Change::Check(path, _)
            | Change::Create(path, _, _)
            | Change::Write(path, _, _)
            | Change::Delete(path, _) => path,
        };
        *path = self.full_path(path);
        full
    }

    fn full_multi(&self, changes: &[Change]) -> Request {
        Request::multi(&changes.iter().map(|change| self.full_change(change)).collect::<Vec<_>>())
    }

    /// Makes one change and returns the body of the response.
    fn change(&self, change: &Change) -> Result<Vec<u8>, KeeperError> {
        let response = self.link.call(Request::change(&self.full_change(change)), CallKind::Write)?;
        body_of(response, change.path())
    }

    /// Creates the nodes of the chroot that do not exist, as the original does.
    fn create_chroot(&self) -> Result<(), KeeperError> {
        let chroot = &self.link.config.chroot;
        let ends = chroot.match_indices('/').skip(1).map(|(end, _)| end);
        for end in ends.chain([chroot.len()]) {
            let create = Change::Create(chroot[..end].to_owned(), Vec::new(), Lifetime::Persistent);
            match body_of(self.link.call(Request::change(&create), CallKind::Write)?, "/") {
                Ok(_) | Err(KeeperError::NodeExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Returns the body of a response without an error.
fn body_of(response: Response, path: &str) -> Result<Vec<u8>, KeeperError> {
    match response.error {
        error::OK => Ok(response.body),
        code => Err(node_error(code, path)),
    }
}

fn node_of(response: Response, path: &str) -> Result<Option<Node>, KeeperError> {
    match body_of(response, path) {
        Ok(body) => protocol::parse_node(&body).map(Some).ok_or_else(unreadable),
        Err(KeeperError::NoNode(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn children_of(response: Response, path: &str) -> Result<Vec<String>, KeeperError> {
    protocol::parse_children(&body_of(response, path)?).ok_or_else(unreadable)
}

fn versions_of(response: Response, changes: &[Change]) -> Result<Vec<i32>, KeeperError> {
    let first_path = changes.first().map_or("/", Change::path);
    match protocol::parse_multi(&body_of(response, first_path)?).ok_or_else(unreadable)? {
        Ok(versions) => Ok(versions),
        Err(codes) => {
            let is_cause = |code: i32| code != error::OK && code != error::RUNTIME_INCONSISTENCY;
            let cause = codes.iter().zip(changes).find(|(code, _)| is_cause(**code));
            Err(cause.map_or_else(unreadable, |(code, change)| node_error(*code, change.path())))
        }
    }
}

impl Keeper for ZookeeperClient {
    fn children(&self, path: &str) -> Result<Vec<String>, KeeperError> {
        children_of(self.link.call(Request::get_children(&self.full_path(path)), CallKind::Read)?, path)
    }

    fn children_all(&self, paths: &[String]) -> Vec<Result<Vec<String>, KeeperError>> {
        let requests = paths.iter().map(|path| Request::get_children(&self.full_path(path)));
        let responses = self.link.call_all(requests, CallKind::Read, MAX_QUEUED_CALLS);
        paths.iter().zip(responses).map(|(path, response)| children_of(response?, path)).collect()
    }

    fn read(&self, path: &str) -> Result<Option<Node>, KeeperError> {
        node_of(self.link.call(Request::get_data(&self.full_path(path)), CallKind::Read)?, path)
    }

    fn read_all(&self, paths: &[String]) -> Vec<Result<Option<Node>, KeeperError>> {
        let requests = paths.iter().map(|path| Request::get_data(&self.full_path(path)));
        let responses = self.link.call_all(requests, CallKind::Read, MAX_QUEUED_CALLS);
        paths.iter().zip(responses).map(|(path, response)| node_of(response?, path)).collect()
    }

    fn read_many(&self, paths: &[String]) -> ManyNodes {
        self.multi_read.read(&self.link, paths).unwrap_or_else(|| {
            let cost = paths.len() as u64;
            ManyNodes { nodes: self.read_all(paths), cost }
        })
    }

    fn nodes_per_read(&self) -> u64 {
        if self.multi_read.is_known() { multi_read::NODES_PER_READ } else { 1 }
    }

    fn create(&self, path: &str, data: &[u8], lifetime: Lifetime) -> Result<(), KeeperError> {
        let create = Change::Create(path.to_owned(), data.to_vec(), lifetime);
        let mut result = self.change(&create);
        // The caller cannot create the chroot, because it is `/` in the caller's paths.
        let is_below_root = !self.link.config.chroot.is_empty() && parent_of(path) == Some("/");
        if is_below_root && matches!(result, Err(KeeperError::NoNode(_))) {
            self.create_chroot()?;
            result = self.change(&create);
        }
        result.map(drop)
    }

    fn write(&self, path: &str, data: &[u8], version: i32) -> Result<i32, KeeperError> {
        if version < 0 {
            // A negative version means "any version" to the server, and the seam has no unconditional write.
            return Err(KeeperError::BadVersion(path.to_owned()));
        }
        let body = self.change(&Change::Write(path.to_owned(), data.to_vec(), Some(version)))?;
        protocol::parse_version(&body).ok_or_else(unreadable)
    }

    fn delete(&self, path: &str, version: i32) -> Result<(), KeeperError> {
        if version < 0 {
            return Err(KeeperError::BadVersion(path.to_owned()));
        }
        self.change(&Change::Delete(path.to_owned(), version)).map(drop)
    }

    fn multi(&self, changes: &[Change]) -> Result<Vec<i32>, KeeperError> {
        versions_of(self.link.call(self.full_multi(changes), CallKind::Multi)?, changes)
    }

    fn multi_all(&self, groups: &[Vec<Change>]) -> Vec<Result<Vec<i32>, KeeperError>> {
        let requests = groups.iter().map(|changes| self.full_multi(changes));
        let responses = self.link.call_all(requests, CallKind::Multi, MAX_QUEUED_CALLS);
        groups.iter().zip(responses).map(|(changes, response)| versions_of(response?, changes)).collect()
    }

    fn session_id(&self) -> Option<i64> {
        self.link.session_id()
    }

    fn epoch(&self) -> Epoch {
        self.link.epoch()
    }

    fn last_confirmed(&self) -> Option<BootTime> {
        self.link.last_confirmed()
    }

    fn session_timeout(&self) -> Duration {
        self.link.session_timeout()
    }

    fn reachable(&self) -> Result<(), String> {
        self.link.reachable()
    }

    fn close(&self, grace: Duration) {
        self.link.close(grace);
    }
}
