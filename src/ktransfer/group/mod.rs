//! The membership of a module in its consumer group: decides which partitions this process pushes.
//!
//! # Threads and locks
//!
//! A group is one loop on one thread, `group@MODULE`, which owns the state of the membership. The loop sends
//! [`GroupEvent`]s to the dispatcher over a bounded channel. The dispatcher sends [`GroupCommand`]s with a
//! [`CommandSender`], which never blocks. Workers check the [`TimedFence`] of a claim before every push. The thread
//! `leases` ([`Leases`]), one for all modules, extends the fences. The locks are those of the mailbox and of the table
//! of leases; each is held for one table access, never across a ZooKeeper call.
//!
//! Two services manage groups: ZooKeeper, in the node layout of the original ([`zookeeper`]), and Kafka ([`kafka`]).
//! The table of leases and the text on sessions are those of ZooKeeper; `kafka` says how it keeps the invariants.
//!
//! # Invariants
//!
//! - **Claim**: a member owns a partition from `Gained` until `Lost` or its command `Release`. No other member of the
//!   group pushes the partition in that time, provided that no push begins without a valid lease.
//! - **Fencing**: a claim changes the version of the offset node, and every store is conditional on that version, and
//!   on the member's registration, which exists only in its session. So a store of an earlier owner fails, even if
//!   ZooKeeper carries it out late.
//! - **Lease**: a claim is valid until shortly before the end of the session timeout, counted from the latest write of
//!   its session that succeeded. Only a write proves a session: it passes the leader of the ensemble, while a server
//!   that lost its leader still answers reads. The margin is for the lag of a server, for clocks and for threads.
//! - **Generation**: each claim of a partition has another number, and commands with the number of an earlier claim are
//!   ignored.
//!
//! # Lost connections and sessions
//!
//! A lost connection to ZooKeeper ends no claim: the keeper continues the session with another server, and the leases
//! run on meanwhile. When ZooKeeper reports that the session has expired, the group sends `Lost` for each partition and
//! ends its lease; in the next session it registers under a new id and claims its partitions again, each with a new
//! generation.

mod ahead;
mod assignor;
mod claim;
mod fence;
mod held_claims;
pub mod kafka;
mod lease;
mod leave_limit;
mod mailbox;
mod member;
mod observers;
pub(crate) mod offset_stores;
mod progress;
mod store_receipts;
mod token;
pub mod zookeeper;

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::broker::{LogIdentity, Offset, PartitionId, TopicId};
pub use fence::TimedFence;
pub use lease::Leases;
pub use mailbox::{CommandSender, Mailbox, mailbox};
pub(crate) use observers::GroupObservers;
pub(crate) use store_receipts::StoreReceipts;

/// Number of a claim, counted from 1 in each group. A partition that is lost and gained again has another generation,
/// so that late commands and acks of the earlier claim are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// A claim on a partition, as the group reports it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Number of the partition.
    pub partition: PartitionId,
    /// Number of this claim.
    pub generation: Generation,
    /// The time until which pushes of this claim may begin or continue.
    pub fence: Arc<TimedFence>,
    /// Fencing token: a number that grows with every claim of this partition by any member, for the backends.
    pub token: u64,
    /// Where to continue; `None` if nothing is stored, and then `start_from` decides.
    pub position: Option<StoredPosition>,
}

/// Two claims of one group are equal if their partition and their generation are.
impl PartialEq for Claim {
    fn eq(&self, other: &Claim) -> bool {
        (self.partition, self.generation) == (other.partition, other.generation)
    }
}

impl Eq for Claim {}

/// The position that is stored for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPosition {
    /// Offset of the next message to push.
    pub next: Offset,
    /// Id of the topic whose offsets are meant. `None` if it is unknown: the original stored the offset, or the brokers
    /// have no topic ids.
    pub topic_id: Option<TopicId>,
    /// Leader epoch of the message before `next`; `None` if it is unknown.
    pub leader_epoch: Option<i32>,
    /// Ascending ranges of offsets, all above `next`, whose messages are done already.
    pub done_ahead: Arc<[Range<Offset>]>,
    /// The highest leader epoch that had been read when `done_ahead` was stored; `None` if it is unknown.
    pub read_epoch: Option<i32>,
}

impl StoredPosition {
    /// Returns the position `next` of a topic with an unknown id, without messages done ahead of it.
    pub fn at(next: Offset) -> StoredPosition {
        StoredPosition { next, topic_id: None, leader_epoch: None, done_ahead: Arc::default(), read_epoch: None }
    }

    /// Returns the log that `next` belongs to.
    pub fn log(&self) -> LogIdentity {
        LogIdentity { topic_id: self.topic_id, leader_epoch: self.leader_epoch }
    }
}

/// An event that the group sends to the dispatcher. `Gained` begins a generation, `Lost` ends it. `Releasing` requests
/// the command `Release`, which also ends the generation; `Lost` may still arrive before the dispatcher sends
/// `Release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The partition is claimed: read and push it. A push of an earlier generation may still be in flight; only the
    /// jobs of the same worker wait for its end.
    Gained(Claim),
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
    /// All messages before `next` are done. The group stores the latest commit within `zk_offset_update_interval_sec`,
    /// and within 200 ms if it is well beyond the stored offset. The first commit of a claim wakes the group, and the
    /// first offset of a partition is stored at once.
    Commit {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim; the command is ignored if the claim has ended.
        generation: Generation,
        /// Offset of the next message to read.
        next: Offset,
    },
    /// The next message to read is at `next` of `log`, and later commits of this claim refer to the same log. Stored at
    /// once, with the log: reading has begun, or has begun again in another log (a recreated topic, an unclean leader
    /// election), and another owner must not begin elsewhere. Replaces an earlier commit and snapshot.
    StoreNow {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim; the command is ignored if the claim has ended.
        generation: Generation,
        /// Offset of the next message to read.
        next: Offset,
        /// The log that `next` belongs to.
        log: LogIdentity,
    },
    /// A snapshot of the messages that are done above the commit point. The group stores the latest snapshot of each
    /// partition at a bounded rate; the next owner finds it in [`StoredPosition::done_ahead`] and does not push these
    /// messages again. Sent also without ranges, for the topic's id: once for each claim, and when the ranges are gone.
    DoneAhead {
        /// Number of the partition.
        partition: PartitionId,
        /// Number of the claim; the command is ignored if the claim has ended.
        generation: Generation,
        /// Id of the topic whose offsets are meant; `None` if the brokers have no topic ids.
        topic_id: Option<TopicId>,
        /// Ascending ranges of offsets, all above the commit point.
        ranges: Arc<[Range<Offset>]>,
        /// The highest leader epoch that was read so far; `None` if it is unknown.
        read_epoch: Option<i32>,
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

/// A group membership, in ZooKeeper or in Kafka.
pub trait Group: Send {
    /// Whether the claims of this member remain after its loop has failed, until the end of the process: then only the
    /// end of the process releases them to other members.
    fn keeps_claims_of_failed_loop(&self) -> bool;

    /// Joins the group, and runs until the command `Leave` or until all [`CommandSender`]s are dropped; then leaves the
    /// group within a bounded time. While the dispatcher does not receive events, no further partition is claimed.
    fn run(self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>);
}
