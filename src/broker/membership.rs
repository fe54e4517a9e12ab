//! Membership in a consumer group that Kafka manages, and the offsets that are committed for it.
//!
//! A member reads one topic. It never blocks on its owner: without commands it keeps its session alive, and joins
//! rebalances with the partitions that it holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Select;

use super::{Offset, PartitionId};

/// The settings of a member.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// Name of the group.
    pub group: Arc<str>,
    /// The topic whose partitions the members share.
    pub topic: Arc<str>,
    /// Id of a static member; `None` for a member that leaves the group when it ends.
    pub instance_id: Option<Arc<str>>,
    /// The coordinator removes the member if it receives no heartbeat for this long.
    pub session_timeout: Duration,
    /// Longest time for which a rebalance waits for a member.
    pub rebalance_timeout: Duration,
}

/// Names the partitions of one event that the owner must release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseToken(pub(super) u64);

#[cfg(test)]
impl ReleaseToken {
    /// Returns the token with this number.
    pub(crate) fn for_tests(number: u64) -> ReleaseToken {
        ReleaseToken(number)
    }
}

/// What happens to the partitions of a member, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// The member has these partitions in addition to those before; none if it only takes part in the group.
    Assigned(Vec<PartitionId>),
    /// The owner must stop work on these partitions, commit their offsets, and then release them.
    Revoked(Vec<PartitionId>, ReleaseToken),
    /// All partitions are lost, for this reason; other members may have them already. The owner must stop work at once,
    /// without a commit, and then release them.
    Lost(ReleaseToken, String),
    /// The coordinator has answered a heartbeat that was sent at this time: the session lasts for a session timeout
    /// from then on. A join or a sync does not prove that.
    Proven(Instant),
    /// The member has ended with an error that a retry cannot remove.
    Failed(String),
}

/// An offset that is committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Number of the partition.
    pub partition: PartitionId,
    /// The next offset to read.
    pub offset: Offset,
    /// Leader epoch of the message before `offset`; `None` if it is unknown.
    pub leader_epoch: Option<i32>,
    /// Text that is kept with the offset.
    pub metadata: String,
}

/// Why an offset was not committed, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The member does not belong to the group any more, or not to this generation: [`MembershipEvent::Lost`] follows,
    /// or precedes.
    #[error("the membership has ended: {0}")]
    Ended(String),
    /// The metadata is longer than `offset.metadata.max.bytes` of the brokers.
    #[error("the metadata of the offset is too long for offset.metadata.max.bytes of the brokers")]
    MetadataTooLong,
    /// A retry may succeed; it is not known whether the offset is committed.
    #[error("{0}")]
    Failed(String),
}

/// The members of a group, as its coordinator describes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMembers {
    /// Clients of the members, as text for people.
    pub names: Vec<String>,
    /// The partitions of the topic that are assigned to members; `None` during a rebalance.
    pub assigned: Option<BTreeSet<PartitionId>>,
}

/// The committed offsets of a group and a topic. Used by one thread; each call returns at its deadline at the latest.
pub trait GroupOffsets: Send {
    /// Returns the committed offsets of the topic, by partition; of a group that does not exist there are none.
    fn committed(&mut self, deadline: Instant) -> Result<Vec<CommittedOffset>, String>;

    /// Returns the members of the group.
    fn members(&mut self, deadline: Instant) -> Result<GroupMembers, String>;

    /// Returns the number of partitions of the topic; `None` if it does not exist.
    fn n_partitions(&mut self, deadline: Instant) -> Result<Option<PartitionId>, String>;

    /// Commits offsets, as the member if this belongs to one, else from outside of the group, which then must have no
    /// members. Returns the results in the order of `offsets`.
    fn commit(&mut self, offsets: &[CommittedOffset], deadline: Instant) -> Vec<Result<(), CommitError>>;
}

/// A member of a group. Dropping the value ends the member without leaving the group: others get its partitions when
/// its session has ended.
pub trait Membership: GroupOffsets {
    /// Adds the channels that become ready when [`next`](Self::next) has an event.
    fn register<'a>(&'a self, select: &mut Select<'a>);

    /// Returns the next event, if there is one.
    fn next(&mut self) -> Option<MembershipEvent>;

    /// The owner no longer works on the partitions of the event with this token.
    fn released(&mut self, token: ReleaseToken);

    /// Leaves the group and ends the member. The owner must have stopped work on all partitions: other members get them
    /// at once. A static member only ends, so that it may come back, unless it leaves `for_good`.
    fn leave(self: Box<Self>, for_good: bool, deadline: Instant);
}
