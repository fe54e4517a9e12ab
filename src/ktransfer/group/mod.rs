//! The membership of a module in its consumer group: decides which partitions this process pushes.
//!
//! # Threads and locks
//!
//! A group is one loop on one thread, `group@MODULE`, which owns the state of the membership. The loop sends
//! [`GroupEvent`]s to the dispatcher over a bounded channel. The dispatcher sends [`GroupCommand`]s with a
//! [`CommandSender`], which never blocks. Workers check the [`Lease`] before every push. There are two locks, in the
//! mailbox and in the fence. Each is held for one table access, never across a ZooKeeper call.
//!
//! # Invariants
//!
//! - **Claim**: a member owns a partition from `Gained` until `Lost` or its command `Release`. No other member of the
//!   group pushes the partition in that time, provided that no push begins without a valid lease.
//! - **Fencing**: a claim changes the version of the offset node, and every store is conditional on that version. So a
//!   store of an earlier owner fails, even if ZooKeeper carries it out late.
//! - **Lease**: a claim is valid for five sixths of the session timeout after the latest request that confirmed its
//!   session. The last sixth is a margin, since clocks and threads are never exactly on time.
//! - **Generation**: each claim of a partition has another number, and commands with the number of an earlier claim are
//!   ignored.
//!
//! # Session loss
//!
//! When the keeper gives the ZooKeeper session up, every lease ends at once and no push begins. Then the group sends
//! `Lost` for each partition; in the next session it registers under a new id and claims its partitions again, each
//! with a new generation. A push that began before the session was lost has at least the margin of the lease to end
//! before another member can claim its partition.

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

/// Number of a claim, counted from 1 in each group. A partition that is lost and gained again has another generation,
/// so that late commands and acks of the earlier claim are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// An event that the group sends to the dispatcher. `Gained` begins a generation, `Lost` ends it. `Releasing` requests
/// the command `Release`, which also ends the generation; `Lost` may still arrive before the dispatcher sends
/// `Release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The partition is claimed: read and push it. A push of an earlier generation may still be in flight. Only the
    /// jobs in the queue of the same worker wait for that push.
    Gained {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of this claim.
        generation: Generation,
        /// Offset of the next message to read; `None` if none is stored, and then `start_from` decides.
        position: Option<Offset>,
    },
    /// The partition is assigned to another member: stop reading, wait for the pushes in flight, then send `Release`.
    Releasing {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim that ends.
        generation: Generation,
    },
    /// The claim has ended: begin no further push. Commits of this generation are not stored, and no `Release` is
    /// expected.
    Lost {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim that has ended.
        generation: Generation,
    },
}

/// A command that the dispatcher sends to the group, with [`CommandSender::send`], which never blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupCommand {
    /// All messages before `next` are done. The group stores the latest commit at the next store interval; the first
    /// offset of a partition is stored in the next turn of the loop, without waiting for the interval.
    Commit {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim; the command is ignored if the claim has ended.
        generation: Generation,
        /// Offset of the next message to read.
        next: Offset,
    },
    /// No push of the partition is in flight: store `next` and release the claim.
    Release {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim; the command is ignored if the claim has ended.
        generation: Generation,
        /// Offset of the next message to read; `None` stores the latest commit.
        next: Option<Offset>,
    },
    /// Release all claims, leave the group and end the loop. Send a `Release` for each partition first.
    Leave,
}

/// Decides whether a push may begin. The check is cheap enough to be made before each push.
pub trait Fence: Send + Sync {
    /// Returns the time until which pushes of this claim may begin; `None` if the claim has ended or its session is not
    /// trusted. Every response that confirms the session moves this time forward.
    fn valid_until(&self, partition: PartitionId, generation: Generation) -> Option<Instant>;

    /// Whether a push of this claim may begin now. While ZooKeeper is unreachable this becomes false before another
    /// member can claim the partition, and true again if the claim has survived. So a worker checks again until the
    /// claim ends.
    fn is_valid(&self, partition: PartitionId, generation: Generation) -> bool {
        self.valid_until(partition, generation).is_some_and(|until| Instant::now() < until)
    }
}

/// The fence of a group, shared by the workers.
pub type Lease = Arc<dyn Fence>;

/// A group membership. [`zookeeper`] is the only implementation outside tests.
pub trait Group: Send {
    /// Returns the fence of this membership, for the workers.
    fn lease(&self) -> Lease;

    /// Joins the group, and runs until the command `Leave` or until all [`CommandSender`]s are dropped; then leaves the
    /// group within a bounded time. While the dispatcher does not receive events, no further partition is claimed.
    fn run(self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>);
}
