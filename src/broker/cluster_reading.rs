//! The data that a monitor reads from a cluster besides log end offsets: topics with their ids, and consumer groups.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::{MetadataError, Offset, PartitionInfo, TopicId, TopicPartition};

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its id: a topic that is deleted and created again has another one. `None` if the broker (before Kafka 2.8) or
    /// the engine has no topic ids.
    pub id: Option<TopicId>,
    /// Its partitions, sorted by number.
    pub partitions: Vec<PartitionInfo>,
}

/// The state of a consumer group, as far as its members are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has members, or is assigning partitions to them.
    Active,
    /// It has no members.
    Empty,
    /// The broker (before Kafka 2.6) does not return the state in lists.
    Unknown,
}

/// A consumer group in the list of all groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGroup {
    /// The group id.
    pub name: Arc<str>,
    /// Whether it has members.
    pub state: GroupState,
}

/// A committed offset of a consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The partition.
    pub at: TopicPartition,
    /// Offset of the next message to consume.
    pub offset: Offset,
    /// The text that was committed with it; empty if there is none.
    pub metadata: String,
}

/// The consumer groups of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupListing {
    /// The groups of the brokers that responded.
    pub groups: Vec<ListedGroup>,
    /// Why groups may be missing; empty if the list is complete.
    pub failures: Vec<String>,
    /// The brokers that did not respond.
    pub silent: Vec<i32>,
}

/// The members of a consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupDescription {
    /// Number of the members.
    pub member_count: usize,
    /// The member that has each assigned partition, by its client id and host; `None` if that is not known: the group
    /// assigns its partitions now, or in a format that cannot be read.
    pub owners: Option<Vec<(TopicPartition, Arc<str>)>>,
}

/// Reads the consumer groups of a cluster. Used by one thread; every call returns by its deadline, and a broker that
/// does not respond delays only its own groups.
pub trait GroupReader: Send {
    /// Returns all groups of consumers, as far as other brokers than those in `except` coordinate them.
    fn list(&mut self, except: &BTreeSet<i32>, deadline: Instant) -> GroupListing;

    /// Returns the broker that coordinates each group, in the same order; `None` if it is unknown. What is known stays
    /// for a while, unless the broker is one of `doubtful`: then it is looked up.
    fn coordinators(&mut self, groups: &[Arc<str>], doubtful: &BTreeSet<i32>, deadline: Instant) -> Vec<Option<i32>>;

    /// Returns the committed offsets of each group, in the same order; each can fail by itself. A group fails if one of
    /// its offsets cannot be read: without it, nothing would seem to be committed.
    fn committed(&mut self, groups: &[Arc<str>], deadline: Instant)
    -> Vec<Result<Vec<CommittedOffset>, MetadataError>>;

    /// Returns the members of each group, in the same order; each can fail by itself. A group that does not exist has
    /// no members, and owners that are not known.
    fn describe(&mut self, groups: &[Arc<str>], deadline: Instant) -> Vec<Result<GroupDescription, MetadataError>>;
}
