//! The group membership in ZooKeeper, in the node layout of the original: registers the member, computes its
//! assignment, claims and releases partitions, and stores offsets.
//!
//! One loop owns all state and polls ZooKeeper; it uses no watches. The code has several parts: this file (the loop and
//! the commands), `membership` (sessions, members and the assignment), `held_partitions` (claims and releases),
//! `new_partitions` (where partitions without an offset begin), `stores` (offsets, and what is done ahead of them),
//! `health` and `leave`.
//!
//! A lost connection ends nothing: the keeper continues the session. When a session has ended, all claims made in it
//! end: they are reported as lost, and the member registers under another id in the next session. A partition is
//! claimed only while it has no owner node of another member.
//!
//! A round claims `CLAIMS_AT_ONCE` partitions in one turn of the loop. Between two turns, events go to the
//! dispatcher, and stores, releases and the end of the session are handled.
//!
//! The assignment is computed again when the members or the partitions change. It is also computed again after a
//! conflict: another member keeps a partition that is assigned to this member, or a partition that is assigned to
//! another member has no owner. A conflict arises when members read the owners or the leaders at different times, and
//! ends when they read them again.

mod health;
mod held_partitions;
mod leave;
mod membership;
mod new_partitions;
mod stores;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, select};

use super::claim::Claimant;
use super::held_claims::{self, HeldClaim};
use super::lease::Leases;
use super::member::{MemberIds, MemberKind};
use super::observers::{GroupObservers, RateLimitedWarnings};
use super::progress::{EARLY_INTERVAL, Progress, StoreScope};
use super::{Generation, Group, GroupEvent, Mailbox, TimedFence};
use crate::broker::{Offset, PartitionId};
use crate::keeper::{Epoch, KeeperError, SharedKeeper};

/// Number of partitions that are claimed at the same time.
const CLAIMS_AT_ONCE: usize = 8;

/// The configuration of a group membership.
#[derive(Clone, Debug)]
pub struct ZookeeperGroupConfig {
    /// Name of the group, which is the name of the module.
    pub group: String,
    /// The topic whose partitions the members share.
    pub topic: String,
    /// Longest interval between two stores of an offset that has moved (`zk_offset_update_interval_sec`).
    pub offset_update_interval: Duration,
    /// Time limit for storing offsets and releasing claims at the end.
    pub leave_timeout: Duration,
}

/// A member of a group in ZooKeeper, and the loop that runs it.
pub struct ZookeeperGroup {
    config: ZookeeperGroupConfig,
    keeper: SharedKeeper,
    leases: Arc<Leases>,
    observers: GroupObservers,
    member_ids: MemberIds,
    member: Option<Member>,
    /// How each registered member takes part. A registration never changes.
    kinds: BTreeMap<String, MemberKind>,
    /// The sorted members that read the topic, from which `assigned` was computed.
    members: Vec<String>,
    /// The sorted partitions from which `assigned` was computed.
    partitions: Vec<PartitionId>,
    /// When `assigned` was computed.
    assigned_at: Instant,
    /// The partitions assigned to this member.
    assigned: BTreeSet<PartitionId>,
    held: BTreeMap<PartitionId, HeldPartition>,
    /// The partitions to claim before the next round.
    to_claim: VecDeque<PartitionId>,
    /// Partitions that are not held, but may have an owner node of this member: those of incomplete and ended claims.
    stray_claims: BTreeSet<PartitionId>,
    /// Assigned partitions whose stored offset is not readable, with the reason.
    unreadable: BTreeMap<PartitionId, String>,
    /// Since when partitions of the topic have had no owner.
    unowned_since: BTreeMap<PartitionId, Instant>,
    /// Since when assigned partitions have had the owner node of another member.
    foreign_since: BTreeMap<PartitionId, Instant>,
    /// The group has a stored offset of some partition of the topic, so partitions without an offset node are new.
    group_has_offsets: bool,
    /// The topic did not exist in an earlier round, so all its partitions are new to the group.
    topic_was_missing: bool,
    /// Since when the topic has not existed.
    topic_missing_since: Option<Instant>,
    /// Since when no round was completed, and why the latest was not; `None` if it was.
    failing: Option<(Instant, String)>,
    /// A round was completed: the member is registered, and knows what it has to claim.
    has_joined: bool,
    /// Time since which the claims of other members contradict `assigned`; `None` without a conflict.
    conflict_since: Option<Instant>,
    /// The earliest time of the next store before the store interval of the configuration.
    next_early_store: Instant,
    last_generation: u64,
    /// Events that the dispatcher has not received. At most two for a partition, because no partition is claimed while
    /// events are pending.
    pending_events: VecDeque<GroupEvent>,
    warnings: RateLimitedWarnings,
}

/// The membership in one session.
struct Member {
    id: String,
    epoch: Epoch,
}

/// A partition that this member has claimed.
struct HeldPartition {
    generation: Generation,
    fence: Arc<TimedFence>,
    /// Version of the offset node after the latest write of this member.
    version: i32,
    /// The offset of a store that got no response: it may have been carried out.
    attempted: Option<Offset>,
    progress: Progress,
    stage: ClaimStage,
}

impl HeldClaim for HeldPartition {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn release(&mut self) {
        self.stage = ClaimStage::Released;
        self.fence.end();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimStage {
    Active,
    /// `Releasing` was sent: the dispatcher waits for the pushes in flight.
    Releasing,
    /// The dispatcher has sent `Release`: the loop stores the offset, then deletes the owner node.
    Released,
}

/// The result of a round or of a step of it. The error is the reason why the round was not completed; the next round
/// starts from the beginning.
type RoundResult = Result<(), String>;

impl ZookeeperGroup {
    /// Creates a member that has not joined the group yet; [`Group::run`] joins it. [`Leases::run`] must run on another
    /// thread as long as the group.
    pub fn new(config: ZookeeperGroupConfig, keeper: SharedKeeper, leases: Arc<Leases>) -> ZookeeperGroup {
        ZookeeperGroup {
            config,
            keeper,
            leases,
            observers: GroupObservers::default(),
            member_ids: MemberIds::new(),
            member: None,
            kinds: BTreeMap::new(),
            members: Vec::new(),
            partitions: Vec::new(),
            assigned_at: Instant::now(),
            assigned: BTreeSet::new(),
            held: BTreeMap::new(),
            to_claim: VecDeque::new(),
            stray_claims: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            unowned_since: BTreeMap::new(),
            foreign_since: BTreeMap::new(),
            group_has_offsets: false,
            topic_was_missing: false,
            topic_missing_since: None,
            failing: None,
            has_joined: false,
            conflict_since: None,
            next_early_store: Instant::now(),
            last_generation: 0,
            pending_events: VecDeque::new(),
            warnings: RateLimitedWarnings::default(),
        }
    }

    /// Sets where the group reports its state.
    pub(crate) fn observed_by(mut self, observers: GroupObservers) -> ZookeeperGroup {
        self.observers = observers;
        self
    }

    fn claimant<'a>(&'a self, member: &'a Member) -> Claimant<'a> {
        Claimant {
            keeper: &*self.keeper,
            group: &self.config.group,
            topic: &self.config.topic,
            id: &member.id,
            group_has_offsets: self.group_has_offsets,
        }
    }

    fn round(&mut self) -> RoundResult {
        self.to_claim.clear();
        self.follow_session()?;
        self.update_assignment()?;
        self.reconcile()?;
        self.read_pauses();
        self.has_joined = true;
        Ok(())
    }

    /// Stores the offsets that cannot wait for the store interval, then deletes the owner nodes of released partitions.
    fn finish_released(&mut self) -> RoundResult {
        self.store(StoreScope::Urgent)?;
        self.delete_released()
    }

    /// Reads which partitions are paused. A failure ends no round: what was paused stays paused.
    fn read_pauses(&mut self) {
        if let Err(reason) = self.observers.pauses.refresh() {
            self.warn_rate_limited(reason);
        }
    }

    fn warn_rate_limited(&mut self, text: String) {
        self.warnings.warn(&self.config.group, text);
    }

    /// Does what is due, and returns the first failure.
    fn turn(&mut self, timers: &mut Timers) -> RoundResult {
        let mut outcome = self.finish_released();
        let now = Instant::now();
        if now >= timers.next_store {
            outcome = outcome.and_then(|()| self.store(StoreScope::All));
            timers.next_store = Instant::now() + self.config.offset_update_interval;
        } else if now >= self.next_early_store {
            // Also if an earlier step has failed, or the loop would turn without a pause.
            self.next_early_store = now + EARLY_INTERVAL;
            outcome = outcome.and_then(|()| self.store(StoreScope::Early));
        }
        if now >= timers.next_poll {
            // The round is made even after a failed store, because only a round detects that the session has ended.
            let round = self.round();
            self.note_round(round.as_ref().err());
            outcome = outcome.and(round);
            timers.next_poll = Instant::now() + timers.poll_interval;
        }
        outcome.and_then(|()| self.claim_some())
    }

    /// Returns when the next turn is due without commands.
    fn next_turn(&self, timers: &Timers) -> Instant {
        let claims = (!self.to_claim.is_empty() && self.pending_events.is_empty()).then(Instant::now);
        let early = (!self.held.is_empty()).then_some(self.next_early_store);
        [timers.next_poll, timers.next_store].into_iter().chain(claims).chain(early).min().expect("two timers")
    }
}

/// When the loop polls and stores next.
struct Timers {
    poll_interval: Duration,
    next_poll: Instant,
    next_store: Instant,
}

fn to_reason(error: KeeperError) -> String {
    error.to_string()
}

impl Group for ZookeeperGroup {
    /// The owner nodes vanish with the session, which the modules of a process share.
    fn keeps_claims_of_failed_loop(&self) -> bool {
        true
    }

    fn run(mut self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>) {
        let now = Instant::now();
        let poll_interval =
            (self.keeper.session_timeout() / 6).clamp(Duration::from_millis(200), Duration::from_secs(1));
        let next_store = now + self.config.offset_update_interval;
        let mut timers = Timers { poll_interval, next_poll: now, next_store };
        loop {
            let pending = commands.take();
            let leaves = pending.leave;
            held_claims::apply(pending, &mut self.held);
            if leaves {
                return self.leave(&commands);
            }
            if let Err(reason) = self.turn(&mut timers) {
                self.to_claim.clear();
                self.warn_rate_limited(reason);
            }
            self.report_health();
            let pause = self.next_turn(&timers).saturating_duration_since(Instant::now());
            let is_connected = match self.pending_events.front().cloned() {
                Some(event) => select! {
                    send(events, event) -> sent => { self.pending_events.pop_front(); sent.is_ok() }
                    recv(commands.woken()) -> woken => woken.is_ok(),
                    default(pause) => true,
                },
                None => select! {
                    recv(commands.woken()) -> woken => woken.is_ok(),
                    default(pause) => true,
                },
            };
            // The dispatcher has dropped its end of a channel.
            if !is_connected {
                return self.leave(&commands);
            }
        }
    }
}

#[cfg(test)]
mod assignment_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;
