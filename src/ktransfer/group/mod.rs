//! Which partitions this process pushes: membership in a consumer group, seen by the dispatcher and the workers.
//!
//! A group is one loop on one thread (`group@MODULE`). It tells the dispatcher what it gained and lost over a bounded
//! channel and is told what to store and give back through [`Commands`]. Workers ask the [`Lease`] before every push.
//!
//! Invariant: between `Gained` and `Lost`, or the command `Release`, no other member of the group pushes
//! the partition, as long as nobody starts a push for which the lease is not valid.

mod claim;
pub mod division;
mod lease;
mod mailbox;
mod member;
pub mod zookeeper;

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::broker::{Offset, PartitionId};
pub use mailbox::{Commands, Mailbox, Said, mailbox};

/// Counts the claims of one group, from 1: a partition that is lost and gained again has another generation, so
/// that late words about the earlier one can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What the group tells the dispatcher. `Gained` begins a generation; after it comes either `Releasing` (then `Release` is
/// awaited, though `Lost` may still come first) or `Lost`, which ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The partition is ours: read and push it. A push of an earlier generation may still be under way; what must not overtake it (the same key)
    /// waits for it at its worker, nothing else does.
    Gained {
        /// Which.
        partition: PartitionId,
        /// This claim of it.
        generation: Generation,
        /// The next message to read; `None` if nothing is stored (then `start_from` decides).
        position: Option<Offset>,
    },
    /// Somebody else shall have it: read no more, finish what is in flight, then send `Release`.
    Releasing {
        /// Which.
        partition: PartitionId,
        /// The claim that ends.
        generation: Generation,
    },
    /// It is not ours any more: stop at once. CommitHandler of this generation are not stored; `Release` is not awaited.
    Lost {
        /// Which.
        partition: PartitionId,
        /// The claim that ended.
        generation: Generation,
    },
}

/// What the dispatcher tells the group; sent with [`Commands::send`], which never blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupCommand {
    /// Everything before `next` is done. Stored with the next round of stores; of several, the latest counts.
    Commit {
        /// Which.
        partition: PartitionId,
        /// The claim; one that ended is ignored.
        generation: Generation,
        /// The next message to read.
        next: Offset,
    },
    /// Nothing of the partition is in flight any more: store `next` and give the partition back.
    Release {
        /// Which.
        partition: PartitionId,
        /// The claim; one that ended is ignored.
        generation: Generation,
        /// The next message to read; `None` stores what was committed last.
        next: Option<Offset>,
    },
    /// Give back what is left, leave the group and end the loop. Send a `Release` for each partition before it.
    Leave,
}

/// Whether a push may begin. Quick enough to ask before each one.
pub trait Fence: Send + Sync {
    /// Until when pushes of this claim may begin, as known now; `None` if the claim ended. It moves on with every good answer of the group's keeper.
    fn may_begin_until(&self, partition: PartitionId, generation: Generation) -> Option<Instant>;

    /// Whether a push of this claim may begin now. While the group's keeper is away this turns false before anyone else can take the
    /// partition over, and true again if the claim has survived: wait and ask again until `Lost` comes.
    fn valid_for(&self, partition: PartitionId, generation: Generation) -> bool {
        self.may_begin_until(partition, generation).is_some_and(|until| Instant::now() < until)
    }
}

/// The fence as it is handed to each worker.
pub type Lease = Arc<dyn Fence>;

/// A kind of group membership: by ZooKeeper, later by Kafka itself.
pub trait Group: Send {
    /// The fence of this membership, for the workers.
    fn lease(&self) -> Lease;

    /// Joins, and runs until the command `Leave` (or until the dispatcher has dropped its [`Commands`]) and a bounded farewell. The dispatcher takes
    /// the events as they come; while it does not, nothing more is claimed.
    fn run(self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>);
}
