//! Which backends have a name whose first look-up has not ended: pushes go to the others.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::locks::lock;

/// The backends of a module without an address yet. Clones share the set.
#[derive(Clone, Default)]
pub(super) struct UnresolvedNames(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Whether there are any: usually there are none, and then no lock is taken.
    has_any: AtomicBool,
    /// Entries of `backend_servers`.
    servers: Mutex<BTreeSet<String>>,
}

impl UnresolvedNames {
    /// Replaces the set.
    pub(super) fn set(&self, servers: BTreeSet<String>) {
        let mut known = lock(&self.0.servers);
        self.0.has_any.store(!servers.is_empty(), Ordering::Release);
        *known = servers;
    }

    /// Whether there are any.
    pub(super) fn has_any(&self) -> bool {
        self.0.has_any.load(Ordering::Acquire)
    }

    /// Whether this entry of `backend_servers` has no address yet.
    pub(super) fn has(&self, server: &str) -> bool {
        self.has_any() && lock(&self.0.servers).contains(server)
    }
}
