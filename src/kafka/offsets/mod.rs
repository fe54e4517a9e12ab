//! Offsets and consumer groups: blocking requests to the brokers that are responsible, all of them at the same time.
//!
//! - `rounds`: sends the requests of many items to their brokers in parallel, and retries until the deadline.
//! - `leaders`, `coordinators`: the brokers of partitions and groups, cached.
//! - `reader`: the connections and the caches. `error`: why a request failed.
//! - `log_ends`: first offsets, ends and offsets of times, by partition leader (ListOffsets).
//! - `groups`: committed offsets, commits, lists and descriptions of groups, by coordinator.
//!
//! Invariants: each partition and each group fails by itself, with a reason; a broker that hangs delays only its own
//! partitions and groups, and the whole call at most until its deadline; nothing creates a topic.

mod coordinators;
mod error;
mod groups;
mod leaders;
mod log_ends;
mod reader;
mod rounds;

pub use super::protocol::consumer_group_describe::{ConsumerGroupMember, DescribedConsumerGroup};
pub use super::protocol::describe_groups::{DescribedGroup, GroupMember};
pub use super::protocol::list_groups::ListedGroup;
pub use super::protocol::offset_commit::GroupMemberId;
pub use super::protocol::offset_fetch::{FetchedOffset, TopicOffsets};
pub use error::{OffsetError, OffsetErrorKind};
pub use groups::{GroupList, GroupRequest, OffsetToCommit};
pub use log_ends::{OffsetRange, OffsetSpec};
pub use reader::OffsetReader;

#[cfg(test)]
mod tests;
