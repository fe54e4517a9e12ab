//! Which partitions this process pushes: its membership in a consumer group.
//!
//! # Threads and locks
//!
//! A group is one loop on one thread, `group@MODULE`, which owns the state of the membership. It sends [`GroupEvent`]s
//! to the dispatcher over a bounded channel. The dispatcher sends [`GroupCommand`]s with a [`CommandSender`], which
//! never blocks. Workers check the [`Lease`] before every push. The two locks, in the mailbox and in the fence, are
//! held for one table access, never across a ZooKeeper call.
//!
//! # Invariants
//!
//! - **Claim**: a member owns a partition from `Gained` until `Lost` or its command `Release`. No other member of the
//!   group pushes the partition in that time, provided that no push begins without a valid lease.
//! - **Fencing**: a claim moves the version of the offset node, and every store is conditional on that version. So a
//!   store of an earlier owner fails, however late it is carried out.
//! - **Lease**: a claim is valid for five sixths of the session timeout after the latest request that confirmed its
//!   session. The last sixth is a margin, since clocks and threads are never exactly on time.
//! - **Generation**: each claim of a partition has another number, and commands of an earlier one are ignored.
//!
//! # Session loss
//!
//! When the keeper gives the ZooKeeper session up, every lease ends at once and no push begins. In the next session the
//! group sends `Lost` for each partition, registers under a new id and claims its partitions again, as new generations.
//! A push that began before the loss has at least the margin to end before another member can claim its partition.

mod assignor;
mod claim;
mod lease;
mod mailbox;
mod member;
pub mod zookeeper;

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::broker::{Offset, PartitionId};
pub use mailbox::{CommandSender, Mailbox, mailbox};

/// Counts the claims of one group, from 1. A partition that is lost and gained again has another generation, so that
/// late commands and acks of the earlier claim are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// From the group to the dispatcher. `Gained` begins a generation and `Lost` ends it. `Releasing` asks for the command
/// `Release`, which ends it too; `Lost` may still come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The partition is claimed: read and push it. A push of an earlier generation may still be in flight; only
    /// messages with the same key wait for it, at their worker.
    Gained {
        /// Number of the partition.
        partition: PartitionId,
        /// This claim.
        generation: Generation,
        /// The next message to read; `None` if nothing is stored (then `start_from` decides).
        position: Option<Offset>,
    },
    /// The partition is assigned to another member: read no more, finish what is in flight, then send `Release`.
    Releasing {
        /// Number of the partition.
        partition: PartitionId,
        /// The claim that ends.
        generation: Generation,
    },
    /// The claim has ended: stop at once. Commits of this generation are not stored, and no `Release` is expected.
    Lost {
        /// Number of the partition.
        partition: PartitionId,
        /// The claim that ended.
        generation: Generation,
    },
}

/// From the dispatcher to the group; sent with [`CommandSender::send`], which never blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupCommand {
    /// All messages before `next` are done. Stored at the next store interval, the first of a partition at the next
    /// poll; of several commits the latest counts.
    Commit {
        /// Number of the partition.
        partition: PartitionId,
        /// The claim; the command is ignored if it has ended.
        generation: Generation,
        /// The next message to read.
        next: Offset,
    },
    /// Nothing of the partition is in flight: store `next` and release the claim.
    Release {
        /// Number of the partition.
        partition: PartitionId,
        /// The claim; the command is ignored if it has ended.
        generation: Generation,
        /// The next message to read; `None` stores the latest commit.
        next: Option<Offset>,
    },
    /// Release all claims, leave the group and end the loop. Send a `Release` for each partition first.
    Leave,
}

/// Whether a push may begin. Cheap enough to check before each one.
pub trait Fence: Send + Sync {
    /// Until when pushes of this claim may begin; `None` if the claim has ended or its session is not trusted. It moves
    /// forward with every response that confirms the session.
    fn valid_until(&self, partition: PartitionId, generation: Generation) -> Option<Instant>;

    /// Whether a push of this claim may begin now. While ZooKeeper is unreachable this becomes false before another
    /// member can claim the partition, and true again if the claim has survived. Check again until `Lost` arrives.
    fn is_valid(&self, partition: PartitionId, generation: Generation) -> bool {
        self.valid_until(partition, generation).is_some_and(|until| Instant::now() < until)
    }
}

/// A fence that the workers share.
pub type Lease = Arc<dyn Fence>;

/// A kind of group membership, such as the one in ZooKeeper.
pub trait Group: Send {
    /// The fence of this membership, for the workers.
    fn lease(&self) -> Lease;

    /// Joins, and runs until the command `Leave` or until all [`CommandSender`]s are dropped; then it leaves, within a
    /// bounded time. While the dispatcher does not receive events, nothing more is claimed.
    fn run(self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>);
}
