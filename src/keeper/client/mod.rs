//! ZooKeeper through the zookeeper crate, made safe for a daemon: calls have deadlines, lost clients are replaced.
//!
//! The crate's calls have no deadline, and its client does not survive every connection loss. So all of the crate is
//! kept inside a *client instance* ([`instance`]): one client of the crate, its one ZooKeeper session and the threads
//! that call it. At most one instance is *current*; its session is the one that is trusted. An instance is never
//! repaired, only given up and replaced.
//!
//! # Threads
//!
//! - `keeper@NAME`, one for each keeper ([`session_manager`]): heartbeats of the current session, and reconnects.
//! - `zk-search`, at most one: resolves names, which has no deadline, and makes the [`handshake`] that finds a server.
//! - `zk-call-0` to `zk-call-5`, for each instance: run the blocking calls of the crate. Several are in flight at once
//!   on one connection; kmonitor, which may read 100,000 nodes, needs that. A caller only waits for the result, so a
//!   call that hangs in the crate never hangs the thread of a caller.
//! - `zk-close`, for each instance: closes its session after it was given up.
//!
//! # Lock
//!
//! The only mutex is the one around the session state ([`sessions`]). It is never held across a call.
//!
//! # Invariants
//!
//! - Only a response about a node confirms a session: success, NoNode, NodeExists, BadVersion, NotEmpty or NoAuth. It
//!   confirms it as of the instant when the request was sent, because the server starts its timeout no earlier.
//! - A response is counted only for the instance that sent the request, found by its epoch.
//! - `last_confirmed` becomes `None`, and so every lease ends, before the session of that instance is closed.
//! - No call blocks beyond its deadline.
//!
//! # Session loss
//!
//! A missed deadline, a state other than connected, any other error and a panic in the crate all give the instance up,
//! since none of them says whether the session still exists. Callers get `Unreachable` until the session manager has a
//! new session, which has the next epoch. The old session stays open for two thirds of its timeout: pushes that began
//! under its claims have that time to end before another member can take the partitions over.

mod handshake;
mod instance;
mod operations;
mod session_manager;
mod sessions;

use std::sync::Arc;

use crossbeam_channel::bounded;

use self::operations::ZookeeperClient;
use self::session_manager::SessionManager;
use self::sessions::Sessions;
use super::api::SharedKeeper;
use super::config::KeeperConfig;
use crate::supervise::Supervisor;

/// Starts to keep a session with the ensemble. Never fails and never blocks: without a session, calls fail as
/// unreachable. The session ends with [`Keeper::close`](super::Keeper::close) or with the stop of `supervisor`, which
/// must come after the end of all users.
pub fn connect(config: KeeperConfig, supervisor: &Supervisor) -> SharedKeeper {
    // One pending wake-up is enough: the manager checks everything when it wakes.
    let (wake, woken) = bounded(1);
    let sessions = Arc::new(Sessions::new(config, wake));
    let manager = SessionManager::new(Arc::clone(&sessions), woken, supervisor.stop().clone());
    supervisor.spawn(format!("keeper@{}", supervisor.name()), move || manager.run());
    Arc::new(ZookeeperClient::new(sessions))
}
