//! FindCoordinator, ListGroups and DescribeGroups.

use std::time::Instant;

use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    BrokerId, DescribeGroupsRequest, DescribeGroupsResponse, FindCoordinatorRequest, FindCoordinatorResponse, GroupId,
    ListGroupsRequest, ListGroupsResponse,
};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::group::{Group, GroupState};
use super::super::script::Plan;
use super::super::state::State;
use super::{HOST, text};

/// Checks a request for a group: injected error, rights, coordinator. Scopes of faults name a group as their topic.
pub(super) fn check_group(context: &Context, state: &State, plan: &Plan, group: &str) -> Result<(), i16> {
    if let Some(code) = plan.error_of_topic(group) {
        return Err(code);
    }
    if group.is_empty() {
        return Err(codes::INVALID_GROUP_ID);
    }
    if state.denied_groups.contains(group) {
        return Err(codes::GROUP_AUTHORIZATION_FAILED);
    }
    if state.coordinator(group) != Some(context.broker) {
        return Err(codes::NOT_COORDINATOR);
    }
    Ok(())
}

impl Serve for FindCoordinatorRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        let keys =
            if self.coordinator_keys.is_empty() { vec![self.key.clone()] } else { self.coordinator_keys.clone() };
        keys.iter().map(|key| (key.to_string(), -1)).collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<FindCoordinatorResponse>, Ended> {
        let state = context.lock();
        let response = FindCoordinatorResponse::default().with_throttle_time_ms(plan.throttle_ms);
        if context.version >= 4 {
            let found = self.coordinator_keys.iter().map(|key| find(&state, plan, key).with_key(key.clone()));
            return Ok(Some(response.with_coordinators(found.collect())));
        }
        let found = find(&state, plan, &self.key);
        let response = response.with_error_code(found.error_code).with_node_id(found.node_id);
        Ok(Some(response.with_host(found.host).with_port(found.port)))
    }
}

fn find(state: &State, plan: &Plan, group: &str) -> Coordinator {
    let failed = |code| Coordinator::default().with_node_id(BrokerId(-1)).with_port(-1).with_error_code(code);
    if let Some(code) = plan.error_of_topic(group) {
        return failed(code);
    }
    if state.denied_groups.contains(group) {
        return failed(codes::GROUP_AUTHORIZATION_FAILED);
    }
    match state.coordinator(group).and_then(|id| state.broker(id)) {
        Some(broker) => Coordinator::default()
            .with_node_id(BrokerId(broker.id))
            .with_host(text(HOST))
            .with_port(i32::from(broker.port)),
        None => failed(codes::COORDINATOR_NOT_AVAILABLE),
    }
}

impl Serve for ListGroupsRequest {
    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<ListGroupsResponse>, Ended> {
        let response = ListGroupsResponse::default().with_throttle_time_ms(plan.throttle_ms);
        if let Some(error) = plan.error() {
            return Ok(Some(response.with_error_code(error.code)));
        }
        let mut state = context.lock();
        tick_all(&mut state);
        let of_broker = state.groups.iter().filter(|(name, _)| state.coordinator(name) == Some(context.broker));
        let allowed = of_broker.filter(|(name, _)| !state.denied_groups.contains(*name));
        let groups = allowed.map(|(name, group)| {
            // Version 4 has the state, version 5 the type.
            let (state_name, kind) = (group.state.name(), "classic");
            let mut listed = ListedGroup::default()
                .with_group_id(GroupId(text(name)))
                .with_protocol_type(text(&group.protocol_type));
            if context.version >= 4 {
                listed.group_state = text(state_name);
            }
            if context.version >= 5 {
                listed.group_type = text(kind);
            }
            listed
        });
        let is_wanted = |listed: &ListedGroup| {
            let matches = |filter: &[kafka_protocol::protocol::StrBytes], value: &str| {
                filter.is_empty() || filter.iter().any(|name| name.eq_ignore_ascii_case(value))
            };
            matches(&self.states_filter, &listed.group_state) && matches(&self.types_filter, &listed.group_type)
        };
        Ok(Some(response.with_groups(groups.filter(is_wanted).collect())))
    }
}

impl Serve for DescribeGroupsRequest {
    fn targets(&self, _state: &State) -> Vec<(String, i32)> {
        self.groups.iter().map(|group| (group.to_string(), -1)).collect()
    }

    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<DescribeGroupsResponse>, Ended> {
        let mut state = context.lock();
        tick_all(&mut state);
        let groups = self.groups.iter().map(|name| {
            let described = DescribedGroup::default().with_group_id(name.clone());
            if let Err(code) = check_group(context, &state, plan, name) {
                return described.with_error_code(code);
            }
            match state.groups.get(name.as_str()) {
                Some(group) => describe(described, group, context.version),
                // Version 6 has an error for it, earlier ones a state (KIP-1043).
                None if context.version >= 6 => {
                    described.with_group_state(text("Dead")).with_error_code(codes::GROUP_ID_NOT_FOUND)
                }
                None => described.with_group_state(text("Dead")),
            }
        });
        let groups = groups.collect();
        Ok(Some(DescribeGroupsResponse::default().with_throttle_time_ms(plan.throttle_ms).with_groups(groups)))
    }
}

fn describe(described: DescribedGroup, group: &Group, version: i16) -> DescribedGroup {
    // Assignor and metadata are known between rebalances only.
    let protocol = group.protocol.as_deref().filter(|_| group.state == GroupState::Stable).unwrap_or_default();
    let members = group.members.iter().map(|(id, member)| {
        DescribedGroupMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(member.joining.instance_id.as_deref().filter(|_| version >= 4).map(text))
            .with_client_id(text(&member.joining.client_id))
            .with_client_host(text(&format!("/{}", member.joining.client_host)))
            .with_member_metadata(member.metadata(protocol))
            .with_member_assignment(member.assignment.clone())
    });
    described
        .with_group_state(text(group.state.name()))
        .with_protocol_type(text(&group.protocol_type))
        .with_protocol_data(text(protocol))
        .with_members(members.collect())
}

fn tick_all(state: &mut State) {
    let now = Instant::now();
    state.groups.values_mut().for_each(|group| group.tick(now));
}
