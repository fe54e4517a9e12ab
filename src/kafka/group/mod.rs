//! Membership in a consumer group by the classic group protocol (JoinGroup, SyncGroup, Heartbeat, LeaveGroup).
//!
//! - [`subscription`]: subscription and assignment as bytes (ConsumerProtocolSubscription, ConsumerProtocolAssignment).
//! - [`assignor`]: `cooperative-sticky` (KIP-429) and `range`, pure functions.
//! - [`config`]: the settings of a member.
//! - [`member`]: the state machine of a member, pure.
//! - [`client`]: a member with its thread and the connection to the coordinator.
//!
//! Terms: the *coordinator* is the broker that manages the group. Each *rebalance* starts a new *generation*. The
//! *leader* is the member that runs the assignor. The *owner* is the code that works on the assigned partitions. A
//! partition is *held* from the event `Assigned` until the owner has released it or its lease has ended. A *claim* is a
//! partition that a member reports as held when it joins.

pub mod assignor;
pub mod client;
pub mod config;
mod errors;
mod holdings;
pub mod member;
#[cfg(test)]
mod simulation;
pub mod subscription;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Number of the partition.
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}

/// Names the partitions of one event that the owner must release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseToken(pub u64);

/// Why partitions were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// No heartbeat was answered within the session timeout.
    SessionExpired,
    /// UNKNOWN_MEMBER_ID: the coordinator has removed the member.
    UnknownMember,
    /// ILLEGAL_GENERATION: the group has had a rebalance without this member.
    IllegalGeneration,
    /// The member has failed; the event [`GroupEvent::Failed`] follows.
    Failed,
}

/// What happens to the partitions of a member, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The owner may work on these partitions, in addition to those that it has, as long as the lease lasts.
    Assigned {
        /// The added partitions.
        partitions: Vec<TopicPartition>,
        /// Generation of the group, for offset commits.
        generation: i32,
    },
    /// The owner must stop work on these partitions, commit their offsets, and then release them.
    Revoke {
        /// The partitions to be released.
        partitions: Vec<TopicPartition>,
        /// To be passed to `released`.
        token: ReleaseToken,
    },
    /// All partitions are lost; other members may have them already. The owner must stop work at once, without a
    /// commit, and then release them.
    Lost {
        /// All partitions of the member, also those of a revocation that was not completed.
        partitions: Vec<TopicPartition>,
        /// To be passed to `released`.
        token: ReleaseToken,
        /// Why.
        reason: LostReason,
    },
    /// The lease was extended: a partition may be worked on while the time is before
    /// `sent + session_timeout - margin`.
    HeartbeatAnswered {
        /// When the request was sent.
        sent: Instant,
        /// When its response arrived.
        answered: Instant,
    },
    /// The member has failed with an error that a retry cannot remove. No event follows.
    Failed {
        /// What happened, as an error text.
        reason: String,
    },
}
