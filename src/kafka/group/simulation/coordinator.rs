//! A model of the group coordinator of a broker (`GroupCoordinator.scala` of Kafka 3.x), in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::kafka::error_code::{
    COORDINATOR_LOAD_IN_PROGRESS, FENCED_INSTANCE_ID, ILLEGAL_GENERATION, INCONSISTENT_GROUP_PROTOCOL,
    MEMBER_ID_REQUIRED, REBALANCE_IN_PROGRESS, UNKNOWN_MEMBER_ID,
};
use crate::kafka::protocol::heartbeat::HeartbeatRequest;
use crate::kafka::protocol::join_group::{JoinGroupRequest, JoinGroupResponse, JoinedMember};
use crate::kafka::protocol::leave_group::LeaveGroupRequest;
use crate::kafka::protocol::sync_group::{SyncGroupRequest, SyncGroupResponse};

pub(super) type RequestId = u64;

/// A response and the request that it belongs to.
pub(super) enum Answer {
    Join(RequestId, JoinGroupResponse),
    Sync(RequestId, SyncGroupResponse),
}

#[derive(Clone)]
struct Known {
    instance_id: Option<String>,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<(&'static str, Vec<u8>)>,
    session_end: Instant,
    awaits_join: Option<RequestId>,
    awaits_sync: Option<RequestId>,
    assignment: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Empty,
    Preparing { until: Instant },
    Completing { until: Instant },
    Stable,
}

#[derive(Clone)]
struct Group {
    phase: Phase,
    generation: i32,
    leader: String,
    protocol: String,
    members: BTreeMap<String, Known>,
}

pub(super) struct Coordinator {
    group: Group,
    /// The group as it was written to the offsets topic.
    stored: Group,
    pending: BTreeSet<String>,
    next_id: u64,
    loading_until: Option<Instant>,
    answers: Vec<Answer>,
}

fn join_error(error_code: i16) -> JoinGroupResponse {
    JoinGroupResponse { error_code, generation: -1, ..JoinGroupResponse::default() }
}

fn sync_error(error_code: i16) -> SyncGroupResponse {
    SyncGroupResponse { error_code, ..SyncGroupResponse::default() }
}

impl Coordinator {
    pub(super) fn new() -> Self {
        let group = Group {
            phase: Phase::Empty,
            generation: 0,
            leader: String::new(),
            protocol: String::new(),
            members: BTreeMap::new(),
        };
        Coordinator {
            stored: group.clone(),
            group,
            pending: BTreeSet::new(),
            next_id: 0,
            loading_until: None,
            answers: Vec::new(),
        }
    }

    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Another broker becomes the coordinator: it loads what was stored, and has none of the waiting requests.
    pub(super) fn fail_over(&mut self, now: Instant, loading: Duration) {
        self.group = self.stored.clone();
        self.pending.clear();
        self.loading_until = Some(now + loading);
        for member in self.group.members.values_mut() {
            (member.awaits_join, member.awaits_sync) = (None, None);
            member.session_end = now + loading + member.session_timeout;
        }
    }

    fn is_loading(&self, now: Instant) -> bool {
        self.loading_until.is_some_and(|until| now < until)
    }

    fn id(&mut self) -> String {
        self.next_id += 1;
        format!("id-{}", self.next_id)
    }

    pub(super) fn join(&mut self, now: Instant, id: RequestId, request: &JoinGroupRequest) {
        self.tick(now);
        if self.is_loading(now) {
            return self.answers.push(Answer::Join(id, join_error(COORDINATOR_LOAD_IN_PROGRESS)));
        }
        let instance_id = request.instance_id.as_deref();
        let known_instance = instance_id.and_then(|instance| {
            let mut members = self.group.members.iter();
            members.find(|(_, member)| member.instance_id.as_deref() == Some(instance)).map(|(id, _)| id.clone())
        });
        let mut member_id = request.member_id.to_string();
        if member_id.is_empty() {
            member_id = self.id();
            if let Some(old) = known_instance {
                return self.replace_static(now, id, &old, &member_id, request);
            }
            if instance_id.is_none() {
                self.pending.insert(member_id.clone());
                let response = JoinGroupResponse { member_id, ..join_error(MEMBER_ID_REQUIRED) };
                return self.answers.push(Answer::Join(id, response));
            }
        } else if known_instance.is_some_and(|known| known != member_id) {
            return self.answers.push(Answer::Join(id, join_error(FENCED_INSTANCE_ID)));
        } else if !self.group.members.contains_key(&member_id) && !self.pending.remove(&member_id) {
            return self.answers.push(Answer::Join(id, join_error(UNKNOWN_MEMBER_ID)));
        }
        self.join_as(now, id, member_id, request);
    }

    fn join_as(&mut self, now: Instant, id: RequestId, member_id: String, request: &JoinGroupRequest) {
        let others = || self.group.members.iter().filter(|(other, _)| **other != member_id);
        let is_common = |name: &str| others().all(|(_, member)| member.protocols.iter().any(|(n, _)| *n == name));
        if !request.protocols.iter().any(|(name, _)| is_common(name)) {
            return self.answers.push(Answer::Join(id, join_error(INCONSISTENT_GROUP_PROTOCOL)));
        }
        let is_current = match (self.group.phase, self.group.members.get(&member_id)) {
            (Phase::Completing { .. }, Some(member)) => member.protocols == request.protocols,
            (Phase::Stable, Some(member)) => self.group.leader != member_id && member.protocols == request.protocols,
            _ => false,
        };
        if is_current {
            let response = self.joined(&member_id);
            return self.answers.push(Answer::Join(id, response));
        }
        let session_timeout = Duration::from_millis(request.session_timeout_ms as u64);
        let known = self.group.members.entry(member_id).or_insert_with(|| Known {
            instance_id: request.instance_id.as_deref().map(str::to_owned),
            session_timeout,
            rebalance_timeout: Duration::ZERO,
            protocols: Vec::new(),
            session_end: now,
            awaits_join: None,
            awaits_sync: None,
            assignment: Vec::new(),
        });
        known.rebalance_timeout = Duration::from_millis(request.rebalance_timeout_ms as u64);
        known.protocols = request.protocols.clone();
        known.awaits_join = Some(id);
        known.session_end = now + session_timeout;
        self.prepare_rebalance(now);
        self.tick(now);
    }

    /// A restarted static member takes the place of the old one.
    fn replace_static(&mut self, now: Instant, id: RequestId, old: &str, new: &str, request: &JoinGroupRequest) {
        let Some(mut known) = self.group.members.remove(old) else { return };
        if let Some(request) = known.awaits_join.take() {
            self.answers.push(Answer::Join(request, join_error(FENCED_INSTANCE_ID)));
        }
        if let Some(request) = known.awaits_sync.take() {
            self.answers.push(Answer::Sync(request, sync_error(FENCED_INSTANCE_ID)));
        }
        known.session_end = now + known.session_timeout;
        known.protocols = request.protocols.clone();
        self.group.members.insert(new.to_owned(), known);
        let was_leader = self.group.leader == old;
        if was_leader {
            self.group.leader = new.to_owned();
        }
        if self.group.phase == Phase::Stable {
            self.stored = self.group.clone();
            // The new process must not assign, but it watches the partition counts if it leads (KIP-814).
            let mut response = self.joined(new);
            response.skip_assignment = was_leader;
            return self.answers.push(Answer::Join(id, response));
        }
        // The leader may have received the old id: another rebalance is needed.
        if let Some(known) = self.group.members.get_mut(new) {
            known.protocols.clear();
        }
        self.join_as(now, id, new.to_owned(), request);
    }

    fn joined(&self, member_id: &str) -> JoinGroupResponse {
        let mut members = Vec::new();
        if self.group.leader == member_id {
            for (id, member) in &self.group.members {
                let chosen = member.protocols.iter().find(|(name, _)| *name == self.group.protocol);
                members.push(JoinedMember {
                    member_id: id.clone(),
                    instance_id: member.instance_id.clone(),
                    metadata: chosen.map(|(_, metadata)| metadata.clone()).unwrap_or_default(),
                });
            }
        }
        JoinGroupResponse {
            generation: self.group.generation,
            protocol: Some(self.group.protocol.clone()),
            leader: self.group.leader.clone(),
            member_id: member_id.to_owned(),
            members,
            ..JoinGroupResponse::default()
        }
    }

    fn prepare_rebalance(&mut self, now: Instant) {
        if matches!(self.group.phase, Phase::Preparing { .. }) {
            return;
        }
        for member in self.group.members.values_mut() {
            if let Some(id) = member.awaits_sync.take() {
                member.session_end = now + member.session_timeout;
                self.answers.push(Answer::Sync(id, sync_error(REBALANCE_IN_PROGRESS)));
            }
        }
        let longest = self.group.members.values().map(|member| member.rebalance_timeout).max();
        self.group.phase = Phase::Preparing { until: now + longest.unwrap_or_default() };
    }

    /// Does what is due: expires sessions, completes a rebalance.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.is_loading(now) {
            return;
        }
        let is_expired =
            |member: &Known| member.session_end <= now && member.awaits_join.is_none() && member.awaits_sync.is_none();
        let before = self.group.members.len();
        self.group.members.retain(|_, member| !is_expired(member));
        if self.group.members.len() < before {
            self.prepare_rebalance(now);
        }
        if let Phase::Completing { until } = self.group.phase
            && until <= now
        {
            self.group.members.retain(|_, member| member.awaits_sync.is_some());
            self.prepare_rebalance(now);
        }
        if let Phase::Preparing { until } = self.group.phase {
            if until <= now {
                self.group.members.retain(|_, member| member.awaits_join.is_some());
            }
            if self.group.members.values().all(|member| member.awaits_join.is_some()) {
                self.complete_rebalance(now);
            }
        }
    }

    fn complete_rebalance(&mut self, now: Instant) {
        self.group.generation += 1;
        let Some(first) = self.group.members.keys().next().cloned() else {
            self.group.phase = Phase::Empty;
            self.stored = self.group.clone();
            return;
        };
        if !self.group.members.contains_key(&self.group.leader) {
            self.group.leader = first.clone();
        }
        let is_common = |name: &str| {
            let mut members = self.group.members.values();
            members.all(|member| member.protocols.iter().any(|(other, _)| *other == name))
        };
        let preferred = self.group.members[&first].protocols.iter().map(|(name, _)| *name);
        self.group.protocol = preferred.clone().find(|name| is_common(name)).unwrap_or_default().to_owned();
        let longest = self.group.members.values().map(|member| member.rebalance_timeout).max();
        self.group.phase = Phase::Completing { until: now + longest.unwrap_or_default() };
        let ids: Vec<_> = self.group.members.keys().cloned().collect();
        for id in ids {
            let response = self.joined(&id);
            let Some(member) = self.group.members.get_mut(&id) else { continue };
            member.session_end = now + member.session_timeout;
            if let Some(request) = member.awaits_join.take() {
                self.answers.push(Answer::Join(request, response));
            }
        }
    }

    /// The error of a request of a member, if it is not one of this generation.
    fn refusal(&self, member_id: &str, instance_id: Option<&str>, generation: i32) -> Option<i16> {
        let by_instance = instance_id.and_then(|instance| {
            let mut members = self.group.members.iter();
            members.find(|(_, member)| member.instance_id.as_deref() == Some(instance))
        });
        match self.group.members.get(member_id) {
            None if by_instance.is_some() => Some(FENCED_INSTANCE_ID),
            None => Some(UNKNOWN_MEMBER_ID),
            Some(_) if generation != self.group.generation => Some(ILLEGAL_GENERATION),
            Some(_) => None,
        }
    }

    pub(super) fn sync(&mut self, now: Instant, id: RequestId, request: &SyncGroupRequest) {
        self.tick(now);
        let refusal = self.refusal(&request.member_id, request.instance_id.as_deref(), request.generation);
        let refusal = if self.is_loading(now) { Some(REBALANCE_IN_PROGRESS) } else { refusal };
        let refusal = refusal.or(match self.group.phase {
            Phase::Preparing { .. } => Some(REBALANCE_IN_PROGRESS),
            _ => None,
        });
        if let Some(code) = refusal {
            return self.answers.push(Answer::Sync(id, sync_error(code)));
        }
        let is_leader = self.group.leader == *request.member_id;
        if let Phase::Completing { .. } = self.group.phase
            && is_leader
        {
            for (member_id, member) in &mut self.group.members {
                let assigned = request.assignments.iter().find(|(id, _)| id == member_id);
                member.assignment = assigned.map(|(_, assignment)| assignment.clone()).unwrap_or_default();
            }
            self.group.phase = Phase::Stable;
            for member in self.group.members.values_mut() {
                member.session_end = now + member.session_timeout;
            }
        }
        let Some(member) = self.group.members.get_mut(&*request.member_id) else { return };
        member.awaits_sync = Some(id);
        if self.group.phase == Phase::Stable {
            for member in self.group.members.values_mut() {
                // As in Kafka 4: a repeated response does not restart the session.
                if let Some(id) = member.awaits_sync.take() {
                    let response = SyncGroupResponse { assignment: member.assignment.clone(), ..sync_error(0) };
                    self.answers.push(Answer::Sync(id, response));
                }
            }
            self.stored = self.group.clone();
        }
    }

    pub(super) fn heartbeat(&mut self, now: Instant, request: &HeartbeatRequest) -> i16 {
        self.tick(now);
        if self.is_loading(now) {
            // A broker answers blindly while it loads.
            return 0;
        }
        if let Some(code) = self.refusal(&request.member_id, request.instance_id.as_deref(), request.generation) {
            return code;
        }
        if let Some(member) = self.group.members.get_mut(&*request.member_id) {
            member.session_end = now + member.session_timeout;
        }
        if matches!(self.group.phase, Phase::Preparing { .. }) { REBALANCE_IN_PROGRESS } else { 0 }
    }

    pub(super) fn leave(&mut self, now: Instant, request: &LeaveGroupRequest) {
        self.tick(now);
        if !self.is_loading(now) && self.group.members.remove(&*request.member_id).is_some() {
            self.prepare_rebalance(now);
            self.tick(now);
        }
    }
}
