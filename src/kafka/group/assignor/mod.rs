//! The assignors: pure functions from the subscriptions of all members and the partition counts of the topics to the
//! partitions of each member.

mod range;
mod sticky;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::TopicPartition;
use super::subscription::Subscription;

/// A member, as the leader sees it.
#[derive(Clone, Debug)]
pub struct GroupMember {
    /// Id that the coordinator assigned.
    pub member_id: Arc<str>,
    /// Id of a static member.
    pub instance_id: Option<Arc<str>>,
    /// What the member wants and holds.
    pub subscription: Subscription,
}

/// The partitions of each member, sorted, by member id. Every member has an entry.
pub type Assignments = BTreeMap<Arc<str>, Vec<TopicPartition>>;

/// Numbers of partitions by topic. A topic that does not exist has no entry and is not assigned.
pub type PartitionCounts = BTreeMap<Arc<str>, i32>;

/// An assignor. All members of a group must have one in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignor {
    /// `cooperative-sticky` (KIP-429): balanced over all topics; members keep what they hold as far as balance allows,
    /// also during a rebalance. Partitions that move are assigned in a second rebalance, after their holders have
    /// released them.
    CooperativeSticky,
    /// `range`: each topic is split by itself. Members release everything before a rebalance.
    Range,
}

impl Assignor {
    /// The name in the group protocol, the same as in the Java client.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::CooperativeSticky => "cooperative-sticky",
            Assignor::Range => "range",
        }
    }

    /// Whether members keep their partitions during a rebalance.
    pub fn is_cooperative(self) -> bool {
        self == Assignor::CooperativeSticky
    }

    /// Assigns the partitions. A partition whose holder must release it first has no assignment yet; the result says
    /// whether there are such.
    pub fn assign(self, members: &[GroupMember], counts: &PartitionCounts) -> (Assignments, bool) {
        match self {
            Assignor::CooperativeSticky => {
                let mut assignments = sticky::assign(members, counts);
                let is_withheld = sticky::withhold_claimed(&mut assignments, members);
                (assignments, is_withheld)
            }
            Assignor::Range => (range::assign(members, counts), false),
        }
    }
}
