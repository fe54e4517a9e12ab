//! JoinGroup, SyncGroup, Heartbeat and LeaveGroup: membership of a group in the classic protocol.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::group::{Group, GroupState, Joining};
use super::super::script::Plan;
use super::super::state::State;
use super::coordinator::check_group;
use super::text;

/// Waits for a change of a group until its next timer, at most until then.
fn wait<'a>(context: &'a Context, state: MutexGuard<'a, State>, group: &str) -> MutexGuard<'a, State> {
    let next = state.groups.get(group).and_then(Group::next_tick);
    context.shared.wait(state, next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)))
}

/// Returns a group after its timers; creates it if it does not exist.
fn group_of<'a>(state: &'a mut State, name: &str) -> &'a mut Group {
    let group = state.groups.entry(name.to_owned()).or_default();
    group.tick(Instant::now());
    group
}

impl Serve for JoinGroupRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        vec![(self.group_id.to_string(), -1)]
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<JoinGroupResponse>, Ended> {
        let name = self.group_id.to_string();
        let mut state = context.lock();
        let mut id = self.member_id.to_string();
        let joined = join(&self, context, &mut state, plan, &mut id);
        context.shared.notify(&mut state);
        let rejected = |code, id: &str| {
            let response = JoinGroupResponse::default().with_error_code(code).with_member_id(text(id));
            // In versions before 7 the name is not nullable.
            Ok(Some(response.with_generation_id(-1).with_protocol_name(Some(text("")))))
        };
        match joined {
            Err(code) => return rejected(code, &id),
            Ok(false) => {}
            Ok(true) => loop {
                if !context.is_alive(&state) {
                    return Err(Ended);
                }
                let group = group_of(&mut state, &name);
                match group.members.get(&id) {
                    None => return rejected(codes::UNKNOWN_MEMBER_ID, &id),
                    Some(member) if member.has_joined => state = wait(context, state, &name),
                    Some(_) => break,
                }
            },
        }
        context.shared.notify(&mut state);
        let group = group_of(&mut state, &name);
        let protocol = group.protocol.clone().unwrap_or_default();
        let leader = group.leader.clone().unwrap_or_default();
        let members = group.members.iter().filter(|_| leader == id).map(|(id, member)| {
            JoinGroupResponseMember::default()
                .with_member_id(text(id))
                .with_group_instance_id(member.joining.instance_id.as_deref().map(text))
                .with_metadata(member.metadata(&protocol))
        });
        let members = members.collect();
        let skips = context.version >= 9 && group.state == GroupState::Stable && leader == id;
        let protocol_type = (context.version >= 7).then(|| text(&group.protocol_type));
        Ok(Some(
            JoinGroupResponse::default()
                .with_throttle_time_ms(plan.throttle_ms)
                .with_generation_id(group.generation)
                .with_protocol_type(protocol_type)
                .with_protocol_name(Some(text(&protocol)))
                .with_leader(text(&leader))
                .with_skip_assignment(skips)
                .with_member_id(text(&id))
                .with_members(members),
        ))
    }
}

/// Lets a member join; sets its id, and returns whether it must wait.
fn join(
    request: &JoinGroupRequest,
    context: &Context,
    state: &mut State,
    plan: &Plan,
    id: &mut String,
) -> Result<bool, i16> {
    check_group(context, state, plan, &request.group_id)?;
    let now = Instant::now();
    let group = group_of(state, &request.group_id);
    let instance_id = request.group_instance_id.as_ref().map(|id| id.to_string());
    // Version 0 has no rebalance timeout: the session timeout takes its place.
    let rebalance_ms = if context.version == 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms };
    let joining = Joining {
        instance_id: instance_id.clone(),
        client_id: context.client_id.clone(),
        client_host: context.client_host.clone(),
        session_timeout: Duration::from_millis(request.session_timeout_ms.max(0) as u64),
        rebalance_timeout: Duration::from_millis(rebalance_ms.max(0) as u64),
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.iter().map(|known| (known.name.to_string(), known.metadata.clone())).collect(),
    };
    if !id.is_empty() {
        if instance_id.is_some() {
            group.check_member(id, instance_id.as_deref())?;
        }
        return group.join(id, joining, now);
    }
    *id = group.new_member_id(&context.client_id);
    if instance_id.is_some() {
        if group.replace_static(id, &joining, now) {
            return Ok(false);
        }
    } else if context.version >= 4 {
        return Err(codes::MEMBER_ID_REQUIRED);
    }
    group.join(id, joining, now)
}

impl Serve for SyncGroupRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        vec![(self.group_id.to_string(), -1)]
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<SyncGroupResponse>, Ended> {
        let name = self.group_id.to_string();
        let id = self.member_id.as_str();
        let rejected = |code| Ok(Some(SyncGroupResponse::default().with_error_code(code)));
        let mut state = context.lock();
        if let Err(code) = check_group(context, &state, plan, &name) {
            return rejected(code);
        }
        let mut assignments: Vec<_> = self
            .assignments
            .iter()
            .map(|assignment| (assignment.member_id.to_string(), assignment.assignment.clone()))
            .collect();
        loop {
            if !context.is_alive(&state) {
                return Err(Ended);
            }
            let group = group_of(&mut state, &name);
            let instance_id = self.group_instance_id.as_deref();
            if let Err(code) = group.heartbeat(id, instance_id, self.generation_id, Instant::now()) {
                return rejected(code);
            }
            group.assign(id, &std::mem::take(&mut assignments));
            if group.state == GroupState::Stable {
                let assignment = group.members.get(id).map(|member| member.assignment.clone()).unwrap_or_default();
                let response = SyncGroupResponse::default()
                    .with_throttle_time_ms(plan.throttle_ms)
                    .with_protocol_type(Some(text(&group.protocol_type)))
                    .with_protocol_name(group.protocol.as_deref().map(text))
                    .with_assignment(assignment);
                context.shared.notify(&mut state);
                return Ok(Some(response));
            }
            state = wait(context, state, &name);
        }
    }
}

impl Serve for HeartbeatRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        vec![(self.group_id.to_string(), -1)]
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<HeartbeatResponse>, Ended> {
        let mut state = context.lock();
        let outcome = check_group(context, &state, plan, &self.group_id).and_then(|()| {
            let group = group_of(&mut state, &self.group_id);
            let instance_id = self.group_instance_id.as_deref();
            group.heartbeat(&self.member_id, instance_id, self.generation_id, Instant::now())
        });
        context.shared.notify(&mut state);
        let response = HeartbeatResponse::default().with_throttle_time_ms(plan.throttle_ms);
        Ok(Some(response.with_error_code(outcome.err().unwrap_or(codes::NONE))))
    }
}

impl Serve for LeaveGroupRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        vec![(self.group_id.to_string(), -1)]
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<LeaveGroupResponse>, Ended> {
        let response = LeaveGroupResponse::default().with_throttle_time_ms(plan.throttle_ms);
        let mut state = context.lock();
        if let Err(code) = check_group(context, &state, plan, &self.group_id) {
            return Ok(Some(response.with_error_code(code)));
        }
        let group = group_of(&mut state, &self.group_id);
        let now = Instant::now();
        let mut leave = |id: &str, instance_id: Option<&str>| {
            // A static member may leave without its member id.
            let found = group.members.iter().find(|(_, member)| {
                id.is_empty() && instance_id.is_some() && member.joining.instance_id.as_deref() == instance_id
            });
            let id = found.map_or_else(|| id.to_owned(), |(id, _)| id.clone());
            group.check_member(&id, instance_id).map(|()| group.remove(&id, now)).err().unwrap_or(codes::NONE)
        };
        let response = if context.version < 3 {
            response.with_error_code(leave(&self.member_id, None))
        } else {
            let members = self.members.iter().map(|member| {
                MemberResponse::default()
                    .with_member_id(member.member_id.clone())
                    .with_group_instance_id(member.group_instance_id.clone())
                    .with_error_code(leave(&member.member_id, member.group_instance_id.as_deref()))
            });
            response.with_members(members.collect())
        };
        group.tick(now);
        context.shared.notify(&mut state);
        Ok(Some(response))
    }
}
