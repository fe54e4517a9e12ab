//! A consumer group of the classic protocol as its coordinator keeps it, without sockets and without a clock of its
//! own: members, generations, rebalances, committed offsets.
//!
//! The rules are those of Kafka's `GroupCoordinator`. Time passes in [`Group::tick`], which every request calls first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::codes;

/// State of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupState {
    /// No member.
    #[default]
    Empty,
    /// Waits for all members to join.
    PreparingRebalance,
    /// Waits for the assignment of the leader.
    CompletingRebalance,
    /// All members have their assignments.
    Stable,
}

impl GroupState {
    /// Returns the name that ListGroups and DescribeGroups answer.
    pub fn name(self) -> &'static str {
        match self {
            GroupState::Empty => "Empty",
            GroupState::PreparingRebalance => "PreparingRebalance",
            GroupState::CompletingRebalance => "CompletingRebalance",
            GroupState::Stable => "Stable",
        }
    }
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Offset of the next record to read.
    pub offset: i64,
    /// Leader epoch of the last record that was read; -1 unknown.
    pub leader_epoch: i32,
    /// Text that the consumer stored with it.
    pub metadata: String,
}

/// A member that joins.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocol_type: String,
    /// Names and metadata of the assignors, the preferred first.
    pub(super) protocols: Vec<(String, Bytes)>,
}

/// A member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) joining: Joining,
    pub(super) assignment: Bytes,
    /// The end of the session, unless a heartbeat comes before.
    expires: Instant,
    /// Whether the member waits for the end of the rebalance.
    pub(super) has_joined: bool,
}

impl Member {
    /// Returns the metadata for an assignor.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.joining.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

/// A group.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) state: GroupState,
    pub(super) generation: i32,
    pub(super) protocol_type: String,
    pub(super) protocol: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) offsets: BTreeMap<(String, i32), Committed>,
    /// Member ids that were given out and have not joined yet.
    pending: Vec<String>,
    rebalance_deadline: Option<Instant>,
}

impl Group {
    /// Ends expired sessions and overdue rebalances.
    pub(super) fn tick(&mut self, now: Instant) {
        let is_expired = |member: &Member| member.expires <= now && !member.has_joined;
        let expired: Vec<_> =
            self.members.iter().filter(|(_, member)| is_expired(member)).map(|(id, _)| id.clone()).collect();
        for id in expired {
            self.remove(&id, now);
        }
        if self.state == GroupState::PreparingRebalance {
            let is_overdue = self.rebalance_deadline.is_some_and(|deadline| deadline <= now);
            if is_overdue || self.members.values().all(|member| member.has_joined) {
                self.complete_join(now);
            }
        }
    }

    /// Returns when [`tick`](Self::tick) changes something at the latest.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let sessions = self.members.values().filter(|member| !member.has_joined).map(|member| member.expires);
        sessions.chain(self.rebalance_deadline).min()
    }

    /// Returns a new member id, which the member must join with.
    pub(super) fn new_member_id(&mut self, client_id: &str) -> String {
        // A group that is recreated has no id of an earlier member.
        static NEXT_MEMBER: AtomicU64 = AtomicU64::new(1);
        let id = format!("{client_id}-{:08}", NEXT_MEMBER.fetch_add(1, Ordering::Relaxed));
        self.pending.push(id.clone());
        id
    }

    /// Lets a member join; returns whether it must wait for the end of the rebalance.
    pub(super) fn join(&mut self, id: &str, joining: Joining, now: Instant) -> Result<bool, i16> {
        if joining.protocols.is_empty() || joining.protocol_type.is_empty() {
            return Err(codes::INCONSISTENT_GROUP_PROTOCOL);
        }
        let is_new = !self.members.contains_key(id);
        if is_new && !self.pending.iter().any(|pending| pending == id) {
            return Err(codes::UNKNOWN_MEMBER_ID);
        }
        let others = || self.members.iter().filter(|(other, _)| *other != id).map(|(_, member)| &member.joining);
        let is_common = |name: &String| others().all(|other| other.protocols.iter().any(|(known, _)| known == name));
        let has_common = joining.protocols.iter().any(|(name, _)| is_common(name));
        if !has_common || others().any(|other| other.protocol_type != joining.protocol_type) {
            return Err(codes::INCONSISTENT_GROUP_PROTOCOL);
        }
        self.pending.retain(|pending| pending != id);
        self.protocol_type.clone_from(&joining.protocol_type);
        let is_unchanged = self.members.get(id).is_some_and(|known| known.joining.protocols == joining.protocols);
        let is_leader = self.leader.as_deref() == Some(id);
        let must_rebalance = match self.state {
            GroupState::Empty | GroupState::PreparingRebalance => true,
            // The leader joins again when it wants another assignment.
            GroupState::Stable => !is_unchanged || is_leader,
            GroupState::CompletingRebalance => !is_unchanged,
        };
        let expires = now + joining.session_timeout;
        let assignment = self.members.get(id).map(|member| member.assignment.clone()).unwrap_or_default();
        self.members.insert(id.to_owned(), Member { joining, assignment, expires, has_joined: must_rebalance });
        if must_rebalance && self.state != GroupState::PreparingRebalance {
            self.prepare_rebalance(now);
        }
        self.tick(now);
        Ok(must_rebalance)
    }

    /// Gives the place of a static member to a new member id; returns whether the group goes on without a rebalance.
    pub(super) fn replace_static(&mut self, new_id: &str, joining: &Joining, now: Instant) -> bool {
        let is_same = |member: &Member| member.joining.instance_id == joining.instance_id;
        let found = self.members.iter().find(|(_, member)| is_same(member)).map(|(id, _)| id.clone());
        let Some(old_id) = found.filter(|old_id| old_id != new_id) else { return false };
        let Some(mut member) = self.members.remove(&old_id) else { return false };
        if self.leader.as_deref() == Some(&*old_id) {
            self.leader = Some(new_id.to_owned());
        }
        self.pending.retain(|pending| pending != new_id);
        let is_unchanged = self.state == GroupState::Stable && member.joining.protocols == joining.protocols;
        member.expires = now + joining.session_timeout;
        member.has_joined = false;
        self.members.insert(new_id.to_owned(), member);
        is_unchanged
    }

    /// Checks a member id; `FENCED_INSTANCE_ID` if the static member has another id now.
    pub(super) fn check_member(&self, id: &str, instance_id: Option<&str>) -> Result<(), i16> {
        let is_fenced = |(other, member): (&String, &Member)| {
            instance_id.is_some() && member.joining.instance_id.as_deref() == instance_id && other != id
        };
        if self.members.iter().any(is_fenced) {
            return Err(codes::FENCED_INSTANCE_ID);
        }
        if self.members.contains_key(id) { Ok(()) } else { Err(codes::UNKNOWN_MEMBER_ID) }
    }

    /// Prolongs a session; the error says that the member must join again.
    pub(super) fn heartbeat(
        &mut self,
        id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), i16> {
        self.check_member(id, instance_id)?;
        if generation != self.generation {
            return Err(codes::ILLEGAL_GENERATION);
        }
        if let Some(member) = self.members.get_mut(id) {
            member.expires = now + member.joining.session_timeout;
        }
        match self.state {
            GroupState::PreparingRebalance => Err(codes::REBALANCE_IN_PROGRESS),
            GroupState::Empty => Err(codes::UNKNOWN_MEMBER_ID),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    /// Takes the assignments of the leader; those of other members are ignored.
    pub(super) fn assign(&mut self, id: &str, assignments: &[(String, Bytes)]) {
        if self.state != GroupState::CompletingRebalance || self.leader.as_deref() != Some(id) {
            return;
        }
        for (member_id, member) in &mut self.members {
            let found = assignments.iter().find(|(other, _)| other == member_id);
            member.assignment = found.map(|(_, assignment)| assignment.clone()).unwrap_or_default();
        }
        self.state = GroupState::Stable;
    }

    /// Removes a member; the others rebalance.
    pub(super) fn remove(&mut self, id: &str, now: Instant) {
        if self.members.remove(id).is_none() {
            return;
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = None;
        }
        if self.members.is_empty() {
            self.generation += 1;
            (self.state, self.rebalance_deadline, self.protocol) = (GroupState::Empty, None, None);
        } else if self.state != GroupState::PreparingRebalance {
            self.prepare_rebalance(now);
        }
    }

    fn prepare_rebalance(&mut self, now: Instant) {
        self.state = GroupState::PreparingRebalance;
        let longest = self.members.values().map(|member| member.joining.rebalance_timeout).max();
        self.rebalance_deadline = Some(now + longest.unwrap_or_default());
    }

    /// Begins the next generation with the members that have joined.
    fn complete_join(&mut self, now: Instant) {
        self.members.retain(|_, member| member.has_joined);
        self.generation += 1;
        self.rebalance_deadline = None;
        if self.leader.as_ref().is_none_or(|leader| !self.members.contains_key(leader)) {
            self.leader = self.members.keys().next().cloned();
        }
        let Some(leader) = self.leader.as_ref().and_then(|leader| self.members.get(leader)) else {
            (self.state, self.protocol) = (GroupState::Empty, None);
            return;
        };
        let supports = |member: &Member, name: &String| member.joining.protocols.iter().any(|(known, _)| known == name);
        let names = leader.joining.protocols.iter().map(|(name, _)| name);
        let mut common = names.filter(|name| self.members.values().all(|member| supports(member, name)));
        self.protocol = common.next().cloned();
        self.state = GroupState::CompletingRebalance;
        for member in self.members.values_mut() {
            member.has_joined = false;
            member.expires = now + member.joining.session_timeout;
        }
    }
}
