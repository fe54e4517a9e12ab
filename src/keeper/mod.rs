//! The ZooKeeper seam: nodes, versions, sessions and ephemeral claims, without the types of the zookeeper crate.
//!
//! [`Keeper`] has two implementations: `client` uses the zookeeper crate, gives every request a deadline and replaces a
//! lost client; `in_memory` is for unit tests. No type of the zookeeper crate leaves this folder.
//!
//! Callers rely on three rules:
//!
//! - Every request ends within a third of the session timeout. A call that sends several of them (`read_all`, or
//!   `create` under a chroot that does not exist yet) may take that long for each.
//! - A write that failed may still be carried out later. So every write must be safe when it is late: an ephemeral node
//!   that holds an id of its session, or a write that is conditional on a version.
//! - State is polled. Watches are not used.

mod api;
mod client;
mod config;
pub mod discovery;
#[cfg(test)]
pub(crate) mod in_memory;
pub mod paths;

pub use api::{Epoch, Keeper, KeeperError, Lifetime, Node, SharedKeeper};
pub use client::connect;
pub use config::{KeeperConfig, chroot};
