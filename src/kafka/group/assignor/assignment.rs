//! Input and output of the assignors.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kafka::group::TopicPartition;
use crate::kafka::group::subscription::Subscription;

/// A member, as the leader sees it.
#[derive(Clone, Debug)]
pub struct GroupMember {
    /// Id that the coordinator assigned.
    pub member_id: Arc<str>,
    /// Id of a static member.
    pub instance_id: Option<Arc<str>>,
    /// The topics that the member subscribes to, and the partitions that it holds.
    pub subscription: Subscription,
}

/// The partitions of each member, sorted, by member id. Every member has an entry.
pub type Assignments = BTreeMap<Arc<str>, Vec<TopicPartition>>;

/// Numbers of partitions by topic. A topic that does not exist has no entry and is not assigned.
pub type PartitionCounts = BTreeMap<Arc<str>, i32>;
