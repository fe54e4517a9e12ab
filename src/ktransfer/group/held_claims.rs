//! Applies the commands of the dispatcher to the claims that a member holds: the same for groups in ZooKeeper and in
//! Kafka.

use std::collections::BTreeMap;

use super::Generation;
use super::mailbox::PendingCommands;
use super::progress::Progress;
use crate::broker::PartitionId;

/// A claim that a member holds.
pub(super) trait HeldClaim {
    /// Returns the number of the claim.
    fn generation(&self) -> Generation;

    /// Returns the stored state of the claim, and the state to be stored.
    fn progress(&mut self) -> &mut Progress;

    /// Notes that the dispatcher has sent `Release`: no push of the claim follows.
    fn release(&mut self);
}

/// Returns the claim on `partition`, if it is that of `generation`.
pub(super) fn current<C: HeldClaim>(
    held: &mut BTreeMap<PartitionId, C>,
    partition: PartitionId,
    generation: Generation,
) -> Option<&mut C> {
    held.get_mut(&partition).filter(|claim| claim.generation() == generation)
}

/// Applies the pending commands. Commands of ended claims are ignored.
pub(super) fn apply<C: HeldClaim>(pending: PendingCommands, held: &mut BTreeMap<PartitionId, C>) {
    // Positions to store now come first: a commit or a snapshot that is pending beside one is later.
    for (partition, (generation, next, log)) in pending.starts {
        if let Some(claim) = current(held, partition, generation) {
            claim.progress().start_at(next, log);
        }
    }
    for (partition, (generation, next)) in pending.commits {
        if let Some(claim) = current(held, partition, generation) {
            claim.progress().committed = Some(next);
        }
    }
    for (partition, (generation, ahead)) in pending.done_ahead {
        if let Some(claim) = current(held, partition, generation) {
            claim.progress().set_ahead(ahead);
        }
    }
    // Releases are applied after commits, because the offset of a release is the later one.
    for (partition, (generation, next)) in pending.releases {
        if let Some(claim) = current(held, partition, generation) {
            let progress = claim.progress();
            progress.committed = next.or(progress.committed);
            claim.release();
        }
    }
}
