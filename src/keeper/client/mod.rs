//! ZooKeeper through the zookeeper crate, made safe for a daemon: calls have deadlines, and a client that lost its
//! connection is replaced.
//!
//! The crate's calls have no deadline, and its client does not survive every connection loss. So the crate is used only
//! inside a *client instance* ([`instance`]): one client of the crate, its one ZooKeeper session and the threads that
//! call the client. At most one instance is *current*; only its session is trusted. An instance is never repaired, only
//! given up and replaced.
//!
//! # Threads
//!
//! - `keeper@NAME`, one for each keeper ([`session_manager`]): sends the heartbeats of the current session, and
//!   reconnects.
//! - `zk-search`, at most one for each keeper: resolves the host names, which has no deadline, and finds an available
//!   server with a [`handshake`].
//! - `zk-call-0` to `zk-call-5`, for each instance: run the blocking calls of the crate. Several calls are in flight at
//!   once on one connection; kmonitor, which may read 100,000 nodes, needs that. A caller only waits for the result, so
//!   a call that hangs in the crate never hangs the thread of a caller.
//! - `zk-close`, for each instance: closes its session after it was given up.
//!
//! # Lock
//!
//! The only mutex is the one around the session state ([`sessions`]). It is never held across a call.
//!
//! # Invariants
//!
//! - Only a response about a node confirms a session: success, NoNode, NodeExists, BadVersion, NotEmpty or NoAuth. The
//!   response confirms it as of the instant when the request was sent, because the server starts its timeout no
//!   earlier.
//! - A response confirms only the session of the instance that sent the request; the epoch identifies that session.
//! - When an instance is given up, `last_confirmed` becomes `None` before the session of the instance is closed. So
//!   every lease ends first.
//! - No call blocks beyond its deadline.
//!
//! # Session loss
//!
//! An instance is given up after a missed deadline, a state other than connected, any other error, or a panic in the
//! crate, since none of these shows whether the session still exists. Callers get `Unreachable` until the session
//! manager has a new session, which has the next epoch. The old session stays open for two thirds of its timeout.
//! Pushes that began under the claims of the old session have that time to end before another member can claim the
//! partitions.

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

/// Starts a thread that keeps a session with the ensemble, and returns the client. Never fails and never blocks:
/// without a session, calls return `Unreachable`. The session ends with [`Keeper::close`](super::Keeper::close) or with
/// the stop of `supervisor`, which must be triggered only after all users of the client have ended.
pub fn connect(config: KeeperConfig, supervisor: &Supervisor) -> SharedKeeper {
    // One pending wake-up is enough, because the session manager checks its whole state when it wakes.
    let (wake, woken) = bounded(1);
    let sessions = Arc::new(Sessions::new(config, wake));
    let manager = SessionManager::new(Arc::clone(&sessions), woken, supervisor.stop().clone());
    supervisor.spawn(format!("keeper@{}", supervisor.name()), move || manager.run());
    Arc::new(ZookeeperClient::new(sessions))
}
