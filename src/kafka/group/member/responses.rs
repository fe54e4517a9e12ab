//! The effects of responses and failures on a member.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Member, State};
use crate::kafka::error_code::{self, FENCED_INSTANCE_ID, MEMBER_ID_REQUIRED};
use crate::kafka::group::assignor::{GroupMember, PartitionCounts};
use crate::kafka::group::errors::{self, Handling};
use crate::kafka::group::subscription::{NO_GENERATION, Subscription, decode_assignment, encode_assignment};
use crate::kafka::group::{GroupEvent, LostReason};
use crate::kafka::protocol::heartbeat::HeartbeatResponse;
use crate::kafka::protocol::join_group::JoinGroupResponse;
use crate::kafka::protocol::sync_group::SyncGroupResponse;

impl Member {
    /// The request could not be sent, or its response did not arrive, or the partition counts are unknown.
    pub fn request_failed(&mut self, now: Instant) {
        self.coordinator_is_unknown = true;
        self.retry(now);
    }

    /// Takes the response to a join.
    pub fn join_answered(&mut self, now: Instant, response: JoinGroupResponse) {
        let State::Joining = self.state else { return };
        if response.error_code == MEMBER_ID_REQUIRED && self.member_id.is_empty() {
            self.member_id = response.member_id.into();
            self.state = State::Unjoined { not_before: None };
            return;
        }
        if response.error_code != 0 {
            return self.join_refused(now, response.error_code);
        }
        self.member_id = response.member_id.into();
        self.generation = response.generation;
        self.protocol = response.protocol.unwrap_or_default().into();
        (self.must_rejoin, self.is_rebalancing) = (false, false);
        self.led = None;
        (self.follow_up, self.is_withheld) = (None, false);
        let is_leader = *response.leader == *self.member_id;
        if !is_leader {
            self.state = State::Joined { assignments: Vec::new() };
            return;
        }
        let mut members = Vec::new();
        for joined in response.members {
            match Subscription::decode(&joined.metadata) {
                Ok(subscription) => members.push(GroupMember {
                    member_id: joined.member_id.into(),
                    instance_id: joined.instance_id.map(Into::into),
                    subscription,
                }),
                Err(cause) => {
                    let reason = format!("the subscription of member {} is malformed: {cause}", joined.member_id);
                    return self.fail(reason);
                }
            }
        }
        let topics = members.iter().flat_map(|member| member.subscription.topics.iter().cloned()).collect();
        self.state = State::Leading { members, topics, assigns: !response.skip_assignment };
    }

    /// Takes the partition counts of the topics of all members; topics that do not exist are absent.
    pub fn set_partition_counts(&mut self, counts: PartitionCounts) {
        let State::Leading { members, topics, assigns } = &self.state else { return };
        self.led = Some((topics.clone(), counts.clone()));
        if !assigns {
            // The process that assigned may have withheld partitions, or not have seen the newest ones.
            self.is_withheld = true;
            self.state = State::Joined { assignments: Vec::new() };
            return;
        }
        let Some(assignor) = self.config.assignors.iter().find(|assignor| *assignor.name() == *self.protocol) else {
            return self.fail(format!("the coordinator chose the unknown assignor {:?}", self.protocol));
        };
        let (assigned, is_withheld) = assignor.assign(members, &counts);
        self.is_withheld = is_withheld;
        let assignments = assigned.iter().map(|(id, partitions)| (id.to_string(), encode_assignment(partitions)));
        self.state = State::Joined { assignments: assignments.collect() };
    }

    /// Takes the response to a sync.
    pub fn sync_answered(&mut self, now: Instant, response: &SyncGroupResponse) {
        let State::Syncing { sent } = self.state else { return };
        if response.error_code != 0 {
            return self.handle(now, errors::of_sync(response.error_code), "SyncGroup", response.error_code);
        }
        let assigned = match decode_assignment(&response.assignment) {
            Ok(assigned) => assigned,
            Err(cause) => return self.fail(format!("the assignment of the leader is malformed: {cause}")),
        };
        self.backoff.reset();
        if let Some((sent, answered)) = self.unconfirmed.take() {
            self.answered(sent, answered);
            self.state = State::Stable { next_heartbeat: sent + self.config.heartbeat_interval };
        } else {
            if self.lease_end().is_none_or(|end| end <= now) {
                (self.last_answered, self.session_start) = (None, Some(sent));
            }
            // At once: only a heartbeat extends the lease.
            self.state = State::Stable { next_heartbeat: now };
        }
        self.follow_up = self.is_withheld.then(|| now + self.config.session_timeout);
        let assigned: BTreeSet<_> = assigned.into_iter().collect();
        self.held_generation = self.generation;
        // The leader withholds a claimed partition from its next holder until a join without the claim.
        if !self.claimed.is_subset(&assigned) {
            self.reason = "revoked partitions were released";
            self.must_rejoin = true;
        }
        if let Some((token, partitions)) = self.holdings.assign(assigned) {
            self.events.push_back(GroupEvent::Revoke { partitions, token });
        }
        self.report_added();
    }

    /// Takes the response to a heartbeat.
    pub fn heartbeat_answered(&mut self, now: Instant, response: HeartbeatResponse) {
        let State::Heartbeating { sent } = self.state else { return };
        let code = response.error_code;
        if code != 0 {
            return self.handle(now, errors::of_heartbeat(code), "Heartbeat", code);
        }
        self.backoff.reset();
        if self.last_answered.is_none() {
            self.unconfirmed = Some((sent, now));
            self.state = State::Joined { assignments: Vec::new() };
            return;
        }
        self.answered(sent, now);
        self.state = State::Stable { next_heartbeat: sent + self.config.heartbeat_interval };
    }

    /// Takes the error code of an offset commit that was sent with [`identity`](Self::identity). Codes that end the
    /// membership have the same effect as in the response to a heartbeat.
    pub fn commit_refused(&mut self, now: Instant, error_code: i16, generation: i32) {
        let ends = matches!(
            errors::of_heartbeat(error_code),
            Handling::ResetGeneration | Handling::ResetMember | Handling::Rejoin | Handling::FindCoordinator
        );
        let is_fenced = error_code == FENCED_INSTANCE_ID;
        if generation == self.generation && matches!(self.state, State::Stable { .. }) && (ends || is_fenced) {
            self.handle(now, errors::of_heartbeat(error_code), "OffsetCommit", error_code);
        }
    }

    fn join_refused(&mut self, now: Instant, code: i16) {
        self.handle(now, errors::of_join(code), "JoinGroup", code);
    }

    fn handle(&mut self, now: Instant, handling: Handling, request: &'static str, code: i16) {
        match handling {
            Handling::Retry => self.retry(now),
            Handling::FindCoordinator => {
                self.coordinator_is_unknown = true;
                self.retry(now);
            }
            Handling::Rejoin => {
                self.reason = "a rebalance is in progress";
                self.is_rebalancing = true;
                self.state = match self.state {
                    // An eager member sends heartbeats while the owner releases its partitions.
                    State::Heartbeating { sent } => {
                        State::Stable { next_heartbeat: sent + self.config.heartbeat_interval }
                    }
                    State::Stable { next_heartbeat } => State::Stable { next_heartbeat },
                    _ => State::Unjoined { not_before: None },
                };
            }
            Handling::ResetGeneration | Handling::ResetMember => {
                self.reason = "the generation or member id was not valid";
                let mut reason = LostReason::IllegalGeneration;
                if handling == Handling::ResetMember {
                    self.member_id = "".into();
                    reason = LostReason::UnknownMember;
                }
                self.generation = NO_GENERATION;
                (self.is_rebalancing, self.must_rejoin) = (false, false);
                self.lose(reason);
                self.state = State::Unjoined { not_before: None };
            }
            Handling::Fail => self.fail(format!("{request} was refused: {}", error_code::name(code))),
        }
    }

    fn retry(&mut self, now: Instant) {
        let not_before = now + self.backoff.next();
        self.state = match self.state {
            State::Ended => State::Ended,
            State::Heartbeating { .. } | State::Stable { .. } => State::Stable { next_heartbeat: not_before },
            // A join or sync without a response may have had its effect. The member joins again; the coordinator
            // returns the same generation, or starts a rebalance.
            _ => State::Unjoined { not_before: Some(not_before) },
        };
    }

    fn fail(&mut self, reason: String) {
        self.lose(LostReason::Failed);
        self.state = State::Ended;
        self.events.push_back(GroupEvent::Failed { reason });
    }
}
