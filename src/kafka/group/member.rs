//! The state machine of one member of a consumer group; pure: time and responses come in, requests and events go out.
//!
//! At most one request is in flight: [`Member::next`] returns it, then one of the `..._answered` functions or
//! [`Member::request_failed`] must be called. Each JoinGroup response that needs an assignment, a leader's, is
//! followed by [`Member::set_partition_counts`].
//!
//! Invariants:
//! - A join reports every held partition as a claim, so that the leader assigns it to no other member. A partition
//!   stops being held only by [`Member::released`], or when the lease has ended.
//! - The lease counts from the *sending* of the last heartbeat that was answered without an error: the coordinator's
//!   session timeout starts later than that. Joins and syncs do not count: a coordinator that has answered one before
//!   repeats the response without a new session timeout. So a heartbeat follows each sync at once.
//! - The coordinator does not expire a member while it holds its join back, and keeps its claims. The owner must pause
//!   when its lease ends meanwhile, but nothing is lost: the sync proves the claims, and a new lease begins.
//! - A heartbeat answered with REBALANCE_IN_PROGRESS does not count: from the start of a rebalance the coordinator
//!   waits only for the rebalance timeout, which is why that must be at least the session timeout.
//! - A coordinator that is loading its state answers every heartbeat without an error, even that of a member that it
//!   has removed. A member whose lease is still valid was not removed. A new lease is confirmed by one more sync in the
//!   same generation: the coordinator always checks a sync, and repeats the assignment.

mod responses;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assignor::{Assignor, GroupMember, PartitionCounts};
use super::config::GroupConfig;
use super::holdings::Holdings;
use super::subscription::{NO_GENERATION, Subscription};
use super::{GroupEvent, LostReason, ReleaseToken, TopicPartition};
use crate::kafka::backoff::Backoff;
use crate::kafka::protocol::heartbeat::HeartbeatRequest;
use crate::kafka::protocol::join_group::JoinGroupRequest;
use crate::kafka::protocol::leave_group::LeaveGroupRequest;
use crate::kafka::protocol::sync_group::SyncGroupRequest;

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
    /// When this member, as leader, starts another rebalance because partitions were withheld. Their holder should join
    /// before, but a static member that was restarted does not.
    follow_up: Option<Instant>,
    is_withheld: bool,
    /// Whether partitions were lost: the member joins again only after the owner has released them.
    is_lost: bool,
    /// Number of the events `Lost` so far.
    losses: u64,
    /// When the last heartbeat that was answered was sent and answered.
    last_answered: Option<(Instant, Instant)>,
    /// A heartbeat that was sent and answered then begins a lease, if the sync that follows it is answered.
    unconfirmed: Option<(Instant, Instant)>,
    /// When the last answered heartbeat was sent, or the sync after which none was answered yet.
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
            follow_up: None,
            is_withheld: false,
            is_lost: false,
            losses: 0,
            last_answered: None,
            unconfirmed: None,
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

    /// When the last heartbeat that was answered without an error was sent and answered; `None` after a loss.
    /// A partition may be worked on only while the time is before `sent + session_timeout - margin`.
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

    /// Returns the number of the events [`GroupEvent::Lost`] so far.
    pub fn losses(&self) -> u64 {
        self.losses
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
        if self.follow_up.is_some_and(|time| time <= now) {
            self.reason = "withheld partitions were not released";
            self.must_rejoin = true;
        }
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
        if self.holdings.released(token) {
            // A loss has a single release.
            if std::mem::take(&mut self.is_lost) {
                (self.last_answered, self.session_start) = (None, None);
            }
            self.report_added();
        }
    }

    /// Returns the request to leave the group, if there is a member to remove. Static members stay, so that they get
    /// the same partitions back after a restart within the session timeout (KIP-345).
    pub fn leave(&mut self, for_good: bool) -> Option<LeaveGroupRequest> {
        let leaves = !matches!(self.state, State::Ended) && !self.member_id.is_empty();
        self.state = State::Ended;
        (leaves && (for_good || self.config.instance_id.is_none())).then(|| LeaveGroupRequest {
            group_id: Arc::clone(&self.config.group_id),
            member_id: Arc::clone(&self.member_id),
            instance_id: self.config.instance_id.clone(),
            reason: Some("the consumer was closed".into()),
        })
    }

    fn join(&mut self) -> Next {
        self.state = State::Joining;
        self.holdings.forget_unclaimed();
        self.unconfirmed = None;
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

    /// Ends the lease if its time has passed: nothing is held any longer, and nothing has to be released. Between a
    /// join and its sync nothing is lost: the coordinator has just kept the claims, and a heartbeat follows.
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
        (self.led, self.follow_up) = (None, None);
        if let Some((token, partitions)) = self.holdings.release_all() {
            // The lease stays known: it bounds how long the member waits for the owner.
            self.is_lost = true;
            self.losses += 1;
            self.events.push_back(GroupEvent::Lost { partitions, token, reason });
        } else {
            (self.last_answered, self.session_start) = (None, None);
        }
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
