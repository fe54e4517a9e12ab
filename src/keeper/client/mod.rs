//! A synchronous ZooKeeper client: one session, which it keeps across lost connections.
//!
//! # Threads
//!
//! - `keeper@NAME`, one for each keeper ([`session_manager`]): connects, reads the responses of the present connection
//!   and hands them to their callers, sends pings, and reconnects.
//! - `keeper-send@NAME` ([`sender`]): writes the requests of all callers, in order. Any number of requests may be in
//!   flight; the server answers the requests of a connection in their order.
//! - `zk-search`, at most one for each keeper: resolves the host names, which has no deadline, and connects to an
//!   available server with a [`handshake`].
//!
//! # Lock
//!
//! The only mutex is the one around the state of the session and its connection ([`link`]). It is never held across IO.
//!
//! # Invariants
//!
//! - Only a write of the session that succeeded moves `last_confirmed`, to the time when it was sent: a write passes
//!   the leader, which knows whether the session exists, and the server starts the session timeout no earlier.
//! - No call blocks beyond its deadline, a third of the session timeout. A call without a response fails for its caller
//!   alone. If requests are pending and nothing arrives for that time, the connection is given up.
//! - A request is written to one connection only, and never again. So a call that failed without a response was carried
//!   out at most once.
//!
//! # Lost connections and the end of a session
//!
//! A lost connection ends no session. The session manager connects to another server, or the same one, and continues
//! the session there with its id and password. Until then calls fail with `Unreachable`, and `last_confirmed` stands
//! still. A session ends only when a server answers that it has expired: then the next session begins, with the next
//! epoch. While no server answers, nothing is known about the session, so nothing is concluded.

mod errors;
mod handshake;
mod link;
mod multi_read;
mod operations;
mod protocol;
mod sender;
mod session_manager;

use std::sync::Arc;

use crossbeam_channel::bounded;

use self::link::{Link, MAX_QUEUED_CALLS};
use self::operations::ZookeeperClient;
use self::session_manager::SessionManager;
use super::api::SharedKeeper;
use super::config::KeeperConfig;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// Starts the threads that keep a session with the ensemble, and returns the client. Never fails and never blocks:
/// without a connection, calls return `Unreachable`. The session ends with [`Keeper::close`](super::Keeper::close) or
/// with the stop of `supervisor`, which must be triggered only after all users of the client have ended.
pub fn connect(config: KeeperConfig, supervisor: &Supervisor) -> SharedKeeper {
    // While the queue is full, callers wait, at most until their deadline.
    let (call_sender, calls) = bounded(MAX_QUEUED_CALLS);
    let link = Arc::new(Link::new(config, call_sender));
    let ended = Stop::new();
    let manager = SessionManager::new(Arc::clone(&link), supervisor.stop().clone(), ended.clone());
    supervisor.spawn(format!("keeper@{}", supervisor.name()), move || manager.run());
    let sending = Arc::clone(&link);
    supervisor.spawn(format!("keeper-send@{}", supervisor.name()), move || sender::run(&sending, &calls, &ended));
    Arc::new(ZookeeperClient::new(link))
}
