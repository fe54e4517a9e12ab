//! Reads many nodes with few requests: MultiRead, which servers know since ZooKeeper 3.6.
//!
//! An older server answers that it does not know the operation, and closes the connection (not the session). So the
//! first MultiRead is sent alone, and after such an answer nodes are read one by one for [`UNKNOWN_FOR`], beginning
//! with the next connection.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::errors::{node_error, unreadable};
use super::link::{CallKind, Link};
use super::protocol::{self, Request, Response, error};
use crate::keeper::api::{KeeperError, ManyNodes, Node};
use crate::locks::lock;

/// Nodes that one request reads. A server limits a node to 1 MiB (`jute.maxbuffer`), so that a response of the largest
/// ones stays below the longest one that is read.
const MAX_NODES: usize = 50;
const _: () = assert!((MAX_NODES + 1) << 20 < protocol::MAX_RESPONSE_BYTES);
/// Limit on the requests in flight.
const MAX_IN_FLIGHT: usize = 16;
/// Nodes of a MultiRead that cost the server as much as a request for one node. Measured with ZooKeeper 3.8: a request
/// for one node takes 34 µs of CPU time, a node of a MultiRead 1.4 µs.
pub(super) const NODES_PER_READ: u64 = 20;
/// Time after which MultiRead is tried again when a server did not know it: the servers may have been upgraded.
const UNKNOWN_FOR: Duration = Duration::from_secs(3600);

type NodeResult = Result<Option<Node>, KeeperError>;

/// Whether the servers know MultiRead.
#[derive(Default)]
pub(super) struct MultiRead {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Untried,
    Known,
    UnknownUntil(Instant),
}

impl MultiRead {
    pub(super) fn is_known(&self) -> bool {
        matches!(*lock(&self.state), State::Known)
    }

    /// Reads the nodes at `paths`; `None` if the server does not know how, and nothing was read.
    pub(super) fn read(&self, link: &Link, paths: &[String]) -> Option<ManyNodes> {
        let state = *lock(&self.state);
        match state {
            State::UnknownUntil(until) if Instant::now() < until => None,
            State::Known => {
                let mut nodes = Vec::with_capacity(paths.len());
                self.read_in_flight(link, paths, &mut nodes);
                Some(ManyNodes { nodes, cost: cost(paths) })
            }
            State::Untried | State::UnknownUntil(_) => {
                let (first, rest) = paths.split_at(paths.len().min(MAX_NODES));
                let mut nodes = Vec::with_capacity(paths.len());
                let connection = link.connection_count();
                self.read_in_flight(link, first, &mut nodes);
                let state = *lock(&self.state);
                match state {
                    State::Known => self.read_in_flight(link, rest, &mut nodes),
                    State::UnknownUntil(until) if Instant::now() < until => {
                        // The server closes the connection, and what is requested before it has gets no response.
                        link.wait_for_connection_after(connection);
                        return None;
                    }
                    State::Untried | State::UnknownUntil(_) => {
                        let skipped = || Err(KeeperError::Unreachable("an earlier request got no response".into()));
                        nodes.resize_with(paths.len(), skipped);
                    }
                }
                Some(ManyNodes { nodes, cost: cost(paths) })
            }
        }
    }

    fn read_in_flight(&self, link: &Link, paths: &[String], nodes: &mut Vec<NodeResult>) {
        let request = |paths: &[String]| {
            let full: Vec<String> = paths.iter().map(|path| link.config.full_path(path)).collect();
            Request::multi_read(full.iter().map(String::as_str))
        };
        let responses = link.call_all(paths.chunks(MAX_NODES).map(request), CallKind::Read, MAX_IN_FLIGHT);
        for (paths, response) in paths.chunks(MAX_NODES).zip(responses) {
            if let Ok(response) = &response {
                self.learn(response.error);
            }
            nodes.extend(nodes_of(response, paths));
        }
    }

    fn learn(&self, code: i32) {
        let mut state = lock(&self.state);
        if code == error::UNIMPLEMENTED {
            *state = State::UnknownUntil(Instant::now() + UNKNOWN_FOR);
            log::info!("the ZooKeeper server is older than 3.6 and has no MultiRead: nodes are read one by one");
        } else {
            *state = State::Known;
        }
    }
}

/// Returns what reading `paths` costs the server, in reads of one node.
fn cost(paths: &[String]) -> u64 {
    paths.chunks(MAX_NODES).map(|paths| (paths.len() as u64).div_ceil(NODES_PER_READ)).sum()
}

/// Returns one result for each path.
fn nodes_of(response: Result<Response, KeeperError>, paths: &[String]) -> Vec<NodeResult> {
    let all = |error: &KeeperError| paths.iter().map(|_| Err(error.clone())).collect();
    let response = match response {
        Ok(response) if response.error == error::OK => response,
        Ok(response) => return paths.iter().map(|path| Err(node_error(response.error, path))).collect(),
        Err(failure) => return all(&failure),
    };
    match protocol::parse_multi_read(&response.body) {
        Some(nodes) if nodes.len() == paths.len() => {
            let result = |(node, path): (Result<Node, i32>, &String)| match node {
                Ok(node) => Ok(Some(node)),
                Err(error::NO_NODE) => Ok(None),
                Err(code) => Err(node_error(code, path)),
            };
            nodes.into_iter().zip(paths).map(result).collect()
        }
        _ => all(&unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_of_a_response_has_its_own_result() {
        let paths: Vec<String> = ["/a", "/b", "/c"].map(str::to_owned).to_vec();
        let error = |code: i32| [&(-1_i32).to_be_bytes()[..], &[0], &code.to_be_bytes(), &code.to_be_bytes()].concat();
        let node = [&4_i32.to_be_bytes()[..], &[0; 5], &1_i32.to_be_bytes(), b"x", &[0; 68]].concat();
        let end = [&(-1_i32).to_be_bytes()[..], &[1], &[0xff; 4]].concat();
        let body = [node.clone(), error(error::NO_NODE), error(error::NO_AUTH), end.clone()].concat();
        let found = nodes_of(Ok(Response { error: error::OK, body }), &paths);
        assert_eq!(found[0].as_ref().unwrap().as_ref().unwrap().data, b"x");
        assert_eq!(found[1..], [Ok(None), Err(KeeperError::NoAuth("/c".into()))]);
        let short = nodes_of(Ok(Response { error: error::OK, body: [node, end].concat() }), &paths);
        assert!(short.iter().all(|node| matches!(node, Err(KeeperError::Unreachable(_)))) && short.len() == 3);
        let lost = nodes_of(Err(KeeperError::Unreachable("lost".into())), &paths);
        assert!(lost.iter().all(Result::is_err) && lost.len() == 3);
    }

    #[test]
    fn a_server_that_does_not_know_the_operation_is_remembered() {
        let multi_read = MultiRead::default();
        assert!(!multi_read.is_known());
        multi_read.learn(error::OK);
        assert!(multi_read.is_known());
        multi_read.learn(error::UNIMPLEMENTED);
        assert!(!multi_read.is_known());
        let paths = vec!["/a".to_owned(); 101];
        assert_eq!(cost(&paths), 3 + 3 + 1);
    }
}
