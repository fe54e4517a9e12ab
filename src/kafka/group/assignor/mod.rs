//! The assignors: pure functions from the subscriptions of all members and the partition counts of the topics to the
//! partitions of each member.

mod assignment;
mod range;
mod sticky;
#[cfg(test)]
mod tests;

pub use assignment::{Assignments, GroupMember, PartitionCounts};

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
