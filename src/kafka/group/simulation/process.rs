//! A process of the simulation, and what happens to it.

use std::collections::BTreeSet;
use std::time::Instant;

use super::coordinator::{Answer, RequestId};
use crate::kafka::group::assignor::PartitionCounts;
use crate::kafka::group::member::Member;
use crate::kafka::group::{GroupEvent, ReleaseToken, TopicPartition};
use crate::kafka::protocol::heartbeat::HeartbeatRequest;
use crate::kafka::protocol::join_group::JoinGroupRequest;
use crate::kafka::protocol::leave_group::LeaveGroupRequest;
use crate::kafka::protocol::sync_group::SyncGroupRequest;

#[derive(Clone)]
pub(super) enum Sent {
    Join(JoinGroupRequest),
    Sync(SyncGroupRequest),
    Heartbeat(HeartbeatRequest),
    Leave(LeaveGroupRequest),
}

pub(super) enum Happens {
    Wakes,
    Arrives(RequestId, Sent),
    Answered(Answer),
    HeartbeatAnswered(RequestId, i16),
    TimesOut(RequestId),
    Counts(RequestId, Option<PartitionCounts>),
    OwnerSees(GroupEvent),
    Releases(ReleaseToken),
}

/// What happens to a process, unless it was restarted since.
pub(super) struct Scheduled {
    pub(super) process: usize,
    pub(super) incarnation: u64,
    pub(super) what: Happens,
}

pub(super) struct Process {
    pub(super) member: Member,
    pub(super) incarnation: u64,
    pub(super) outstanding: Option<RequestId>,
    pub(super) working_on: BTreeSet<TopicPartition>,
    pub(super) lease_from: Option<Instant>,
    /// Until then its requests and the responses to them are lost.
    pub(super) cut_until: u64,
    /// The owner takes events one after another, the last one at this time.
    pub(super) owner_until: u64,
}
