//! The fence of a ZooKeeper group: a claim holds while its session is the present one and has been confirmed of late.

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use super::{Fence, Generation};
use crate::broker::PartitionId;
use crate::keeper::{Epoch, SharedKeeper};
use crate::locks::{read, write};

/// The claims of one group, written by its loop and read by every worker.
pub(super) struct KeeperFence {
    keeper: SharedKeeper,
    claims: RwLock<HashMap<PartitionId, (Generation, Epoch)>>,
}

/// The part of the session timeout at whose end no push may begin any more: clocks and threads are never quite on time.
fn margin(session_timeout: Duration) -> Duration {
    session_timeout / 6
}

impl KeeperFence {
    pub(super) fn new(keeper: SharedKeeper) -> KeeperFence {
        KeeperFence { keeper, claims: RwLock::default() }
    }

    pub(super) fn open(&self, partition: PartitionId, generation: Generation, epoch: Epoch) {
        let mut claims = write(&self.claims);
        claims.insert(partition, (generation, epoch));
    }

    pub(super) fn shut(&self, partition: PartitionId) {
        write(&self.claims).remove(&partition);
    }
}

impl Fence for KeeperFence {
    fn may_begin_until(&self, partition: PartitionId, generation: Generation) -> Option<Instant> {
        let claim = read(&self.claims).get(&partition).copied();
        let (claimed, epoch) = claim?;
        // The server counts the session's timeout from when it got a request, so never from before it was sent. Read before the epoch:
        // then this cannot be of a later session than the one compared.
        let good = self.keeper.last_good()?;
        if claimed != generation || self.keeper.epoch() != epoch {
            return None;
        }
        let session = self.keeper.session_timeout();
        Some(good + (session - margin(session)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::memory::MemoryKeeper;
    use crate::keeper::{Keeper, Lifetime};
    use std::sync::Arc;

    #[test]
    fn a_lease_ends_with_its_claim_its_session_or_its_time() {
        let memory = MemoryKeeper::new();
        let session = memory.session(Duration::from_millis(240));
        session.create("/x", b"", Lifetime::Persistent).unwrap();
        let fence = KeeperFence::new(Arc::clone(&session) as SharedKeeper);
        let (first, second) = (Generation(1), Generation(2));
        assert!(!fence.valid_for(3, first), "never claimed");
        fence.open(3, first, session.epoch());
        assert!(fence.valid_for(3, first) && !fence.valid_for(3, second) && !fence.valid_for(4, first));

        session.set_reachable(false);
        let until = fence.may_begin_until(3, first).unwrap();
        assert!(until < Instant::now() + Duration::from_millis(201), "five sixths of the session");
        while Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!fence.valid_for(3, first), "its time is over");
        session.set_reachable(true);
        assert!(fence.valid_for(3, first), "the session has survived");

        memory.expire(&session);
        session.read("/").unwrap();
        assert!(!fence.valid_for(3, first), "another session");
        fence.open(3, second, session.epoch());
        assert!(fence.valid_for(3, second) && !fence.valid_for(3, first));
        fence.shut(3);
        assert!(!fence.valid_for(3, second));
    }
}
