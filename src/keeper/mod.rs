//! The ZooKeeper seam: nodes, versions, sessions and ephemeral nodes.
//!
//! The trait [`Keeper`] has two implementations: `client` speaks ZooKeeper's protocol, gives every request a deadline
//! and keeps its session across lost connections; `in_memory` is for unit tests.
//!
//! Three rules for callers:
//!
//! - Every request ends within a third of the session timeout. A call that sends several requests (`read_all`, or
//!   `create` under a chroot that does not exist yet) may take that long for each request.
//! - ZooKeeper may carry out a write after the caller got an error. So every write must be safe when it is late: it
//!   creates a node that identifies its session, or it is conditional on a version.
//! - Callers poll the state of nodes. There are no watches.

mod api;
mod client;
mod config;
pub mod discovery;
#[cfg(test)]
pub(crate) mod in_memory;
pub mod paths;

pub use api::{Change, Epoch, Keeper, KeeperError, Lifetime, ManyNodes, Node, SharedKeeper};
pub use client::connect;
pub use config::{KeeperConfig, chroot};
