//! The `range` assignor: each topic is split into contiguous ranges over its subscribers, in the order of the Java
//! client (`RangeAssignor` without racks): static members by instance id, then dynamic members by member id.

use std::sync::Arc;

use super::assignment::{Assignments, GroupMember, PartitionCounts};
use crate::kafka::group::TopicPartition;

pub(super) fn assign(members: &[GroupMember], counts: &PartitionCounts) -> Assignments {
    let mut assignments: Assignments = members.iter().map(|member| (member.member_id.clone(), Vec::new())).collect();
    for (topic, count) in counts {
        let is_subscriber = |member: &&GroupMember| member.subscription.topics.contains(topic);
        let mut subscribers: Vec<_> = members.iter().filter(is_subscriber).collect();
        subscribers.sort_by_key(|member| (member.instance_id.is_none(), &member.instance_id, &member.member_id));
        let Ok(subscriber_count) = i32::try_from(subscribers.len()) else { continue };
        if subscriber_count == 0 {
            continue;
        }
        let (share, longer) = (count / subscriber_count, count % subscriber_count);
        let mut next = 0;
        for (index, member) in (0..).zip(subscribers) {
            let end = next + share + i32::from(index < longer);
            if let Some(assigned) = assignments.get_mut(&member.member_id) {
                assigned.extend((next..end).map(|partition| TopicPartition { topic: Arc::clone(topic), partition }));
            }
            next = end;
        }
    }
    assignments
}
