//! The fence of a ZooKeeper group: a claim is valid while its session is the current one and was confirmed recently.

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use super::{Fence, Generation};
use crate::broker::PartitionId;
use crate::keeper::{Epoch, SharedKeeper};
use crate::locks::{read, write};

/// The claims of one group, written by the group's thread and read by every worker.
pub(super) struct KeeperFence {
    keeper: SharedKeeper,
    claims: RwLock<HashMap<PartitionId, (Generation, Epoch)>>,
}

/// Returns the last part of the session timeout, in which no push may begin: clocks and threads are never exactly on
/// time.
fn margin(session_timeout: Duration) -> Duration {
    session_timeout / 6
}

impl KeeperFence {
    pub(super) fn new(keeper: SharedKeeper) -> KeeperFence {
        KeeperFence { keeper, claims: RwLock::default() }
    }

    /// Makes the lease of a claim valid while `epoch` is the epoch of the current session.
    pub(super) fn grant(&self, partition: PartitionId, generation: Generation, epoch: Epoch) {
        let mut claims = write(&self.claims);
        claims.insert(partition, (generation, epoch));
    }

    /// Ends the lease of `partition`.
    pub(super) fn revoke(&self, partition: PartitionId) {
        write(&self.claims).remove(&partition);
    }
}

impl Fence for KeeperFence {
    fn valid_until(&self, partition: PartitionId, generation: Generation) -> Option<Instant> {
        let claim = read(&self.claims).get(&partition).copied();
        let (claimed, epoch) = claim?;
        // The server restarts the session timeout when it receives a request, so never before the request was sent. The
        // confirmation is read before the epoch, so it cannot belong to a later session than the epoch compared below.
        let confirmed = self.keeper.last_confirmed()?;
        if claimed != generation || self.keeper.epoch() != epoch {
            return None;
        }
        let session_timeout = self.keeper.session_timeout();
        Some(confirmed + (session_timeout - margin(session_timeout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use crate::keeper::{Keeper, Lifetime};
    use std::sync::Arc;

    #[test]
    fn a_lease_ends_with_its_claim_its_session_or_its_deadline() {
        let ensemble = InMemoryEnsemble::new();
        let session = ensemble.connect(Duration::from_millis(240));
        session.create("/x", b"", Lifetime::Persistent).unwrap();
        let fence = KeeperFence::new(Arc::clone(&session) as SharedKeeper);
        let (first, second) = (Generation(1), Generation(2));
        assert!(!fence.is_valid(3, first), "a partition that was never claimed");
        fence.grant(3, first, session.epoch());
        assert!(fence.is_valid(3, first) && !fence.is_valid(3, second) && !fence.is_valid(4, first));

        session.set_reachable(false);
        let until = fence.valid_until(3, first).unwrap();
        assert!(until < Instant::now() + Duration::from_millis(201), "five sixths of the session timeout");
        while Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!fence.is_valid(3, first), "the lease has expired");
        session.set_reachable(true);
        assert!(fence.is_valid(3, first), "the session has survived");

        ensemble.expire(&session);
        session.read("/").unwrap();
        assert!(!fence.is_valid(3, first), "the claim belongs to the earlier session");
        fence.grant(3, second, session.epoch());
        assert!(fence.is_valid(3, second) && !fence.is_valid(3, first));
        fence.revoke(3);
        assert!(!fence.is_valid(3, second));
    }
}
