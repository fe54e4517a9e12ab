//! The state machine of one member of a consumer group; pure: time and responses come in, requests and events go out.
//!
//! At most one request is in flight: [`Member::next`] returns it, then one of the `..._answered` functions or
//! [`Member::request_failed`] must be called. Each JoinGroup response that needs an assignment, a leader's, is
//! followed by [`Member::set_partition_counts`].
//!
//! Invariants:
//! - A join reports every held partition as a claim, so that the leader assigns it to nobody else. A partition stops
//!   being held only by [`Member::released`], or when the lease has ended.
//! - The lease counts from the *sending* of the last heartbeat that was answered without an error: the coordinator's
//!   session timeout starts later than that. Joins and syncs do not count: a coordinator that has answered one before
//!   repeats the response without a new session timeout. So a heartbeat follows each sync at once.
//! - The coordinator does not expire a member while it holds its join back, and keeps its claims. The owner must pause
//!   when its lease ends meanwhile, but nothing is lost: the lease continues with the first heartbeat after the sync.
//! - A heartbeat answered with REBALANCE_IN_PROGRESS does not count: from the start of a rebalance the coordinator waits
//!   only for the rebalance timeout, which is why that must be at least the session timeout.
//! - After the lease has ended, only a join makes partitions held again: a coordinator that is loading its state
//!   answers every heartbeat without an error.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assignor::{Assignor, GroupMember, PartitionCounts};
use super::config::GroupConfig;
use super::errors::{self, Handling};
use super::holdings::Holdings;
use super::subscription::{NO_GENERATION, Subscription, decode_assignment, encode_assignment};
use super::{GroupEvent, LostReason, ReleaseToken, TopicPartition};
use crate::kafka::backoff::Backoff;
use crate::kafka::error_code::{self, FENCED_INSTANCE_ID, MEMBER_ID_REQUIRED};
use crate::kafka::protocol::heartbeat::{HeartbeatRequest, HeartbeatResponse};
use crate::kafka::protocol::join_group::{JoinGroupRequest, JoinGroupResponse};
use crate::kafka::protocol::leave_group::LeaveGroupRequest;
use crate::kafka::protocol::sync_group::{SyncGroupRequest, SyncGroupResponse};

/// Back-off after an error that is retried, at first and at most.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// What the user of a [`Member`] does next.
#[derive(Clone, Debug)]
pub enum Next {
    /// Send to the coordinator, then call [`Member::join_answered`] or [`Member::request_failed`].
    Join(JoinGroupRequest),
    /// Send to the coordinator, then call [`Member::sync_answered`] or [`Member::request_failed`].
    Sync(SyncGroupRequest),
    /// Send to the coordinator, then call [`Member::heartbeat_answered`] or [`Member::request_failed`].
    Heartbeat(HeartbeatRequest),
    /// Call [`Member::set_partition_counts`] with the partition counts of these topics, or
    /// [`Member::request_failed`].
    PartitionCounts(BTreeSet<Arc<str>>),
    /// Call [`Member::next`] again at this time, or after [`Member::released`].
    Wait(Instant),
    /// The member has failed with an error that a retry cannot remove; an event names it.
    Ended,
}

#[derive(Debug)]
enum State {
    /// Must join, not before this time.
    Unjoined {
        not_before: Option<Instant>,
    },
    Joining,
    /// Joined as leader: the partition counts of the topics are needed.
    /// `assigns`: whether an assignment is needed, too (not for a static leader that has come back, KIP-814).
    Leading {
        members: Vec<GroupMember>,
        topics: BTreeSet<Arc<str>>,
        assigns: bool,
    },
    /// Joined: the sync must be sent.
    Joined {
        assignments: Vec<(String, Vec<u8>)>,
    },
    Syncing {
        sent: Instant,
    },
    /// The next heartbeat is due at this time.
    Stable {
        next_heartbeat: Instant,
    },
    Heartbeating {
        sent: Instant,
    },
    Ended,
}

/// A member of a group.
#[derive(Debug)]
pub struct Member {
    config: Arc<GroupConfig>,
    state: State,
    events: VecDeque<GroupEvent>,
    member_id: Arc<str>,
    /// Generation of the last join, or [`NO_GENERATION`].
    generation: i32,
    /// The assignor that the coordinator chose in the last join.
    protocol: Arc<str>,
    holdings: Holdings,
    /// Generation of the last sync.
    held_generation: i32,
    /// The claims of the last join.
    claimed: BTreeSet<TopicPartition>,
    /// Whether the member must join after the owner has released what it must.
    must_rejoin: bool,
    /// Whether the coordinator has announced a rebalance, so that only a release may delay the join.
    is_rebalancing: bool,
    /// Whether partitions were lost: the member joins again only after the owner has released them.
    is_lost: bool,
    /// When the last heartbeat that was answered was sent and answered.
    last_answered: Option<(Instant, Instant)>,
    /// When that heartbeat was sent, or the first sync if none was answered since.
    session_start: Option<Instant>,
    backoff: Backoff,
    coordinator_is_unknown: bool,
    /// The topics and their partition counts of the last assignment, if this member is the leader.
    led: Option<(BTreeSet<Arc<str>>, PartitionCounts)>,
    reason: &'static str,
}

impl Member {
    /// Returns a member that has not joined.
    pub fn new(config: Arc<GroupConfig>) -> Self {
        Member {
            config,
            state: State::Unjoined { not_before: None },
            events: VecDeque::new(),
            member_id: "".into(),
            generation: NO_GENERATION,
            protocol: "".into(),
            holdings: Holdings::default(),
            held_generation: NO_GENERATION,
            claimed: BTreeSet::new(),
            must_rejoin: false,
            is_rebalancing: false,
            is_lost: false,
            last_answered: None,
            session_start: None,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
            coordinator_is_unknown: true,
            led: None,
            reason: "started",
        }
    }

    /// Returns the oldest event that has not been taken.
    pub fn take_event(&mut self) -> Option<GroupEvent> {
        self.events.pop_front()
    }

    /// Returns the oldest event that has not been taken and leaves it there.
    pub fn peek_event(&self) -> Option<&GroupEvent> {
        self.events.front()
    }

    /// Returns the number of events that have not been taken.
    pub fn pending_events(&self) -> usize {
        self.events.len()
    }

    /// When the last heartbeat that was answered without an error was sent and answered; `None` after a loss. A partition may be worked on only while the time is before `sent + session_timeout - margin`.
    pub fn last_heartbeat_sent_and_answered(&self) -> Option<(Instant, Instant)> {
        self.last_answered
    }

    /// Returns when the lease ends.
    pub fn lease_end(&self) -> Option<Instant> {
        self.last_answered.map(|(sent, _)| sent + self.config.session_timeout)
    }

    /// Returns member id and generation for an offset commit; `None` if the member is in no generation.
    pub fn identity(&self) -> Option<(Arc<str>, i32)> {
        let is_member = self.generation != NO_GENERATION && !self.is_lost;
        is_member.then(|| (Arc::clone(&self.member_id), self.generation))
    }

    /// Whether the coordinator must be looked up before the next request; resets the flag.
    pub fn take_coordinator_is_unknown(&mut self) -> bool {
        std::mem::take(&mut self.coordinator_is_unknown)
    }

    /// Returns the topics of the last assignment that this member made as leader, if it still is.
    pub fn led_topics(&self) -> Option<BTreeSet<Arc<str>>> {
        self.led.as_ref().map(|(topics, _)| topics.clone())
    }

    /// Starts a rebalance if `counts` differs from the partition counts of the last assignment (leader only).
    pub fn refresh_partition_counts(&mut self, counts: &PartitionCounts) {
        if self.led.as_ref().is_some_and(|(_, known)| known != counts) {
            self.reason = "partition counts have changed";
            self.must_rejoin = true;
        }
    }

    /// Returns what to do next.
    pub fn next(&mut self, now: Instant) -> Next {
        self.end_lease(now);
        match &mut self.state {
            State::Ended => Next::Ended,
            State::Leading { topics, .. } => Next::PartitionCounts(topics.clone()),
            State::Joined { assignments } => {
                let assignments = std::mem::take(assignments);
                self.state = State::Syncing { sent: now };
                Next::Sync(self.sync_request(assignments))
            }
            State::Unjoined { not_before } => {
                if let Some(time) = not_before.filter(|time| now < *time) {
                    return Next::Wait(time);
                }
                match self.may_join(true) {
                    true => self.join(),
                    false => Next::Wait(self.session_end().unwrap_or(now + self.config.heartbeat_interval)),
                }
            }
            State::Stable { next_heartbeat } => {
                let next_heartbeat = *next_heartbeat;
                self.next_of_stable(now, next_heartbeat)
            }
            // The last request has neither been answered nor failed: a mistake of the caller.
            State::Joining | State::Syncing { .. } | State::Heartbeating { .. } => {
                Next::Wait(now + self.config.heartbeat_interval)
            }
        }
    }

    fn next_of_stable(&mut self, now: Instant, next_heartbeat: Instant) -> Next {
        if (self.must_rejoin || self.is_rebalancing) && self.may_join(self.is_rebalancing) {
            return self.join();
        }
        if now < next_heartbeat {
            return Next::Wait(self.session_end().map_or(next_heartbeat, |end| end.min(next_heartbeat)));
        }
        self.state = State::Heartbeating { sent: now };
        Next::Heartbeat(HeartbeatRequest {
            group_id: Arc::clone(&self.config.group_id),
            generation: self.generation,
            member_id: Arc::clone(&self.member_id),
            instance_id: self.config.instance_id.clone(),
        })
    }

    /// The owner no longer works on the partitions of the event with this token. A token is valid once; others are
    /// ignored.
    pub fn released(&mut self, token: ReleaseToken) {
        if self.holdings.released(token) && !self.holdings.is_releasing() {
            if std::mem::take(&mut self.is_lost) {
                (self.last_answered, self.session_start) = (None, None);
            }
            self.report_added();
        }
    }

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
            self.state = State::Joined { assignments: Vec::new() };
            return;
        }
        let Some(assignor) = self.config.assignors.iter().find(|assignor| *assignor.name() == *self.protocol) else {
            return self.fail(format!("the coordinator chose the unknown assignor {:?}", self.protocol));
        };
        let assigned = assignor.assign(members, &counts);
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
        self.session_start.get_or_insert(sent);
        self.backoff.reset();
        // At once: only a heartbeat extends the lease.
        self.state = State::Stable { next_heartbeat: now };
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

    /// Returns the request to leave the group, if there is a member to remove. Static members stay, so that they get
    /// the same partitions back after a restart within the session timeout (KIP-345).
    pub fn leave(&mut self) -> Option<LeaveGroupRequest> {
        let leaves = !matches!(self.state, State::Ended) && !self.member_id.is_empty();
        self.state = State::Ended;
        (leaves && self.config.instance_id.is_none()).then(|| LeaveGroupRequest {
            group_id: Arc::clone(&self.config.group_id),
            member_id: Arc::clone(&self.member_id),
            instance_id: None,
            reason: Some("the consumer was closed".into()),
        })
    }

    fn join(&mut self) -> Next {
        self.state = State::Joining;
        self.claimed = if self.config.is_cooperative() { self.holdings.held().clone() } else { BTreeSet::new() };
        let generation = if self.claimed.is_empty() { NO_GENERATION } else { self.held_generation };
        let subscription = |assignor: &Assignor| Subscription {
            topics: self.config.topics.clone(),
            // Java clients before 3.5 read the generation of the claims from here.
            user_data: assignor.is_cooperative().then(|| generation.to_be_bytes().to_vec()),
            owned: self.claimed.iter().cloned().collect(),
            generation,
            rack: self.config.rack.clone(),
        };
        let protocols = self.config.assignors.iter().map(|assignor| (assignor.name(), subscription(assignor).encode()));
        Next::Join(JoinGroupRequest {
            group_id: Arc::clone(&self.config.group_id),
            session_timeout_ms: milliseconds(self.config.session_timeout),
            rebalance_timeout_ms: milliseconds(self.config.rebalance_timeout),
            member_id: Arc::clone(&self.member_id),
            instance_id: self.config.instance_id.clone(),
            protocols: protocols.collect(),
            reason: Some(self.reason.into()),
        })
    }

    fn sync_request(&self, assignments: Vec<(String, Vec<u8>)>) -> SyncGroupRequest {
        SyncGroupRequest {
            group_id: Arc::clone(&self.config.group_id),
            generation: self.generation,
            member_id: Arc::clone(&self.member_id),
            instance_id: self.config.instance_id.clone(),
            protocol: Arc::clone(&self.protocol),
            assignments,
        }
    }

    /// Whether the member may join now. After a loss it waits until the owner has released everything; so does an eager
    /// member, which makes the owner release first. A cooperative member whose join `is_urgent`, because it sends no
    /// heartbeats or the others wait for it, joins with all it holds as claims; else it waits for revoked partitions.
    fn may_join(&mut self, is_urgent: bool) -> bool {
        if self.config.is_cooperative() {
            return !self.is_lost && (is_urgent || !self.holdings.is_releasing());
        }
        if !self.holdings.is_releasing()
            && let Some((token, partitions)) = self.holdings.release_all()
        {
            self.events.push_back(GroupEvent::Revoke { partitions, token });
        }
        !self.holdings.is_releasing()
    }

    fn answered(&mut self, sent: Instant, now: Instant) {
        self.last_answered = Some((sent, now));
        self.session_start = Some(sent);
        let event = GroupEvent::HeartbeatAnswered { sent, answered: now };
        // Only the newest counts, but an event never overtakes another: a lease must not continue before a loss.
        match self.events.back_mut() {
            Some(last @ GroupEvent::HeartbeatAnswered { .. }) => *last = event,
            _ => self.events.push_back(event),
        }
    }

    fn session_end(&self) -> Option<Instant> {
        self.session_start.map(|start| start + self.config.session_timeout)
    }

    fn report_added(&mut self) {
        let partitions = self.holdings.take_added();
        if !partitions.is_empty() {
            self.events.push_back(GroupEvent::Assigned { partitions, generation: self.held_generation });
        }
    }

    /// Ends the lease if its time has passed: nothing is held any longer, and nothing has to be released. Between a join
    /// and its sync the lease goes on: the coordinator has just kept the claims, and the sync extends the lease.
    fn end_lease(&mut self, now: Instant) {
        let is_between = matches!(self.state, State::Leading { .. } | State::Joined { .. } | State::Ended);
        if is_between || self.session_end().is_none_or(|end| now < end) {
            return;
        }
        if !self.is_lost {
            self.lose(LostReason::SessionExpired);
        }
        self.is_lost = false;
        self.holdings.clear();
        (self.last_answered, self.session_start) = (None, None);
        if !matches!(self.state, State::Unjoined { .. }) {
            self.state = State::Unjoined { not_before: None };
            self.reason = "no heartbeat was answered within the session timeout";
            self.coordinator_is_unknown = true;
        }
    }

    fn lose(&mut self, reason: LostReason) {
        self.led = None;
        if let Some((token, partitions)) = self.holdings.release_all() {
            // The lease stays known: it bounds how long the member waits for the owner.
            self.is_lost = true;
            self.events.push_back(GroupEvent::Lost { partitions, token, reason });
        } else {
            (self.last_answered, self.session_start) = (None, None);
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

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
