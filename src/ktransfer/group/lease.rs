//! Proves that the ZooKeeper session is alive, and extends the fences of all claims made in it.
//!
//! The session is shared by all modules of a process, and so is its proof: a write that succeeded. The thread `leases`
//! writes the registration of a member again, unchanged, several times each session timeout. It does nothing else, so a
//! module that waits for ZooKeeper, or has many partitions to claim, delays no proof.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use log::warn;

use super::TimedFence;
use crate::clock::BootTime;
use crate::keeper::{Epoch, KeeperError, SharedKeeper};
use crate::locks::lock;
use crate::shutdown::Stop;

/// How much earlier than the client assumes the session timeout may have started at the leader. A follower reports its
/// clients to the leader every half tick, which is 1 s by default; the rest is for clocks and threads.
const SERVER_LAG: Duration = Duration::from_millis(1_250);

/// Returns how long before the end of the session timeout a lease ends: a sixth of the timeout, but at least
/// [`SERVER_LAG`]. In a session of less than three times that lag it is a third of the timeout.
fn margin(session_timeout: Duration) -> Duration {
    (session_timeout / 6).max(SERVER_LAG.min(session_timeout / 3))
}

/// The leases of all claims of a process.
pub struct Leases {
    keeper: SharedKeeper,
    table: Mutex<LeaseTable>,
}

#[derive(Default)]
struct LeaseTable {
    /// The registrations of this process, by path, with their data.
    registrations: BTreeMap<String, Vec<u8>>,
    /// The fences of all claims, each with the epoch of its session.
    fences: Vec<(Epoch, Weak<TimedFence>)>,
}

impl Leases {
    /// Creates an empty table. The leases are extended while [`Self::run`] runs.
    pub fn new(keeper: SharedKeeper) -> Arc<Leases> {
        Arc::new(Leases { keeper, table: Mutex::default() })
    }

    /// Proves the session and extends the leases until `stop`.
    pub fn run(&self, stop: &Stop) {
        let mut warned = 0;
        while stop.sleep((self.keeper.session_timeout() / 12).clamp(Duration::from_millis(10), Duration::from_secs(1)))
        {
            self.prove();
            self.extend();
            let (epoch, timeout) = (self.keeper.epoch(), self.keeper.session_timeout());
            if warned != epoch && timeout < 3 * SERVER_LAG {
                warned = epoch;
                warn!(
                    "ZooKeeper session timeout of {} ms is too short for a safe hand-over: pushes stop {} ms after the \
                     latest write that ZooKeeper confirmed, and behind a server without a leader that may be too late; \
                     set zk_timeout_ms to at least {}",
                    timeout.as_millis(),
                    (timeout - margin(timeout)).as_millis(),
                    (3 * SERVER_LAG).as_millis()
                );
            }
        }
    }

    /// Adds the registration at `path`, which proves the session from now on. Its node is ephemeral.
    pub(super) fn add_registration(&self, path: String, data: Vec<u8>) {
        lock(&self.table).registrations.insert(path, data);
    }

    /// Removes the registration at `path`.
    pub(super) fn remove_registration(&self, path: &str) {
        lock(&self.table).registrations.remove(path);
    }

    /// Creates the fence of a claim that was made in session `epoch`.
    pub(super) fn new_fence(&self, epoch: Epoch) -> Arc<TimedFence> {
        let fence = TimedFence::until(self.end_of_lease(epoch).unwrap_or_else(BootTime::now));
        lock(&self.table).fences.push((epoch, Arc::downgrade(&fence)));
        fence
    }

    /// Extends the leases of the current session by the latest proof, and ends those of earlier sessions.
    pub(super) fn extend(&self) {
        let epoch = self.keeper.epoch();
        let until = self.end_of_lease(epoch);
        // A session that has expired is known by its missing id before the next one begins.
        let is_over = self.keeper.session_id().is_none();
        lock(&self.table).fences.retain(|(of, fence)| {
            let Some(fence) = fence.upgrade() else { return false };
            if *of < epoch || is_over {
                fence.end();
                return false;
            }
            if let Some(until) = until.filter(|_| *of == epoch) {
                fence.extend(until);
            }
            true
        });
    }

    /// Returns the end of the leases of session `epoch`; `None` if it is not the current session or is not proven.
    fn end_of_lease(&self, epoch: Epoch) -> Option<BootTime> {
        // The proof is read before the epoch, so it cannot belong to a later session than the epoch compared below.
        let confirmed = self.keeper.last_confirmed()?;
        if self.keeper.epoch() != epoch {
            return None;
        }
        let session_timeout = self.keeper.session_timeout();
        Some(confirmed + (session_timeout - margin(session_timeout)))
    }

    /// Writes a registration again, unless a write of the last sixth of the session timeout succeeded.
    fn prove(&self) {
        let max_age = self.keeper.session_timeout() / 6;
        let is_recent = |confirmed: BootTime| BootTime::now().saturating_since(confirmed) < max_age;
        if self.keeper.last_confirmed().is_some_and(is_recent) {
            return;
        }
        let registrations = lock(&self.table).registrations.clone();
        for (path, data) in registrations {
            match self.rewrite(&path, &data) {
                // The node was deleted: its group registers again, and another registration proves the session.
                Ok(false) => {}
                Ok(true) | Err(KeeperError::Unreachable(_)) => return,
                Err(error) => warn!("cannot prove the ZooKeeper session: {error}"),
            }
        }
    }

    /// Writes the node if it exists and is of this session. Returns whether it does.
    fn rewrite(&self, path: &str, data: &[u8]) -> Result<bool, KeeperError> {
        let Some(node) = self.keeper.read(path)? else { return Ok(false) };
        if Some(node.ephemeral_owner) != self.keeper.session_id() {
            return Ok(false);
        }
        match self.keeper.write(path, data, node.version) {
            Ok(_) => Ok(true),
            Err(KeeperError::NoNode(_) | KeeperError::BadVersion(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use crate::keeper::{Keeper, Lifetime};

    const SESSION: Duration = Duration::from_secs(30);

    #[test]
    fn the_margin_is_a_sixth_of_the_session_and_covers_the_lag_of_a_server() {
        for (session_ms, margin_ms) in [(30_000, 5_000), (6_000, 1_250), (4_000, 1_250), (3_750, 1_250), (3_000, 1_000)]
        {
            assert_eq!(margin(Duration::from_millis(session_ms)), Duration::from_millis(margin_ms), "{session_ms}");
        }
    }

    #[test]
    fn only_an_answered_write_extends_a_lease_and_the_end_of_the_session_ends_it() {
        let ensemble = InMemoryEnsemble::new();
        let keeper = ensemble.connect(SESSION);
        let leases = Leases::new(Arc::clone(&keeper) as SharedKeeper);
        keeper.read("/").unwrap();
        let fence = leases.new_fence(keeper.epoch());
        leases.extend();
        assert!(!fence.is_valid(), "a read proves nothing");
        leases.prove();
        leases.extend();
        assert!(!fence.is_valid(), "no member is registered");

        keeper.create("/id", b"x", Lifetime::Ephemeral).unwrap();
        leases.add_registration("/id".into(), b"x".to_vec());
        leases.extend();
        assert!(fence.remaining() > SESSION / 2);
        assert_eq!(keeper.read("/id").unwrap().unwrap().version, 0);
        leases.prove();
        assert_eq!(keeper.read("/id").unwrap().unwrap().version, 0, "a recent proof is enough");
        assert_eq!(leases.rewrite("/id", b"x"), Ok(true));
        assert_eq!(keeper.read("/id").unwrap().unwrap().data, b"x");

        ensemble.expire(&keeper);
        leases.extend();
        assert!(!fence.is_valid());
        keeper.read("/").unwrap();
        assert_eq!(leases.rewrite("/id", b"x"), Ok(false));
    }

    #[test]
    fn a_registration_that_was_deleted_leaves_the_proof_to_another_one() {
        let keeper = InMemoryEnsemble::new().connect(Duration::ZERO);
        let leases = Leases::new(Arc::clone(&keeper) as SharedKeeper);
        leases.add_registration("/a".into(), b"x".to_vec());
        leases.add_registration("/b".into(), b"y".to_vec());
        keeper.create("/b", b"y", Lifetime::Ephemeral).unwrap();
        leases.prove();
        assert_eq!(keeper.read("/b").unwrap().unwrap().version, 1);
    }
}
