//! The group membership in ZooKeeper, in the node layout of the original: registers the member, computes its
//! assignment, claims and releases partitions, and stores offsets.
//!
//! One loop owns all state and polls ZooKeeper; it uses no watches. The code has three parts: this file (the loop, the
//! commands and the leave), `membership` (sessions, members and the assignment) and `held_partitions` (claims, stores
//! and releases).
//!
//! When a session is lost, all claims made in it end: they are reported as lost, and the member registers under another
//! id in the next session. A partition is claimed only while it has no owner node. So an earlier owner, even this
//! process in its former session, has released the partition or its session has expired.
//!
//! The assignment is computed again when the members or the partitions change, as in the original. It is also computed
//! again after a lasting conflict: another member keeps a partition that is assigned to this member, or a partition
//! that is assigned to another member has no owner. Such a conflict arises when members read different partition
//! leaders, and ends when they read the leaders again.

mod held_partitions;
mod membership;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, select};
use log::{info, warn};

use super::claim::Claimant;
use super::mailbox::PendingCommands;
use super::member::MemberIds;
use super::{Generation, Group, GroupEvent, Mailbox, TimedFence};
use crate::admin::Component;
use crate::broker::{Offset, PartitionId};
use crate::clock::BootTime;
use crate::keeper::{Epoch, KeeperError, SharedKeeper};

/// Pause before the same warning is logged again.
const REPEATED_WARNING_PAUSE: Duration = Duration::from_secs(60);
/// Pause before a different warning is logged.
const OTHER_WARNING_PAUSE: Duration = Duration::from_secs(5);

/// The configuration of a group membership.
#[derive(Clone, Debug)]
pub struct ZookeeperGroupConfig {
    /// Name of the group, which is the name of the module.
    pub group: String,
    /// The topic whose partitions the members share.
    pub topic: String,
    /// Interval between two stores of all offsets (`zk_offset_update_interval_sec`).
    pub offset_update_interval: Duration,
}

/// A member of a group in ZooKeeper, and the loop that runs it.
pub struct ZookeeperGroup {
    config: ZookeeperGroupConfig,
    keeper: SharedKeeper,
    member_ids: MemberIds,
    member: Option<Member>,
    /// Ids of this member in ended sessions, and when each session ended. Nodes with these ids that ZooKeeper created
    /// late are deleted.
    former_ids: VecDeque<(String, Instant)>,
    /// The sorted member ids from which `assigned` was computed.
    members: Vec<String>,
    /// The sorted partitions from which `assigned` was computed.
    partitions: Vec<PartitionId>,
    /// The partitions assigned to this member.
    assigned: BTreeSet<PartitionId>,
    held: BTreeMap<PartitionId, HeldPartition>,
    /// Partitions that are not held, but may have an owner node of this member: those of incomplete and ended claims.
    stray_claims: BTreeSet<PartitionId>,
    /// Time since which the claims of other members contradict `assigned`; `None` without a conflict.
    conflict_since: Option<Instant>,
    last_generation: u64,
    /// The group has a stored offset of some partition of the topic, so partitions without an offset node are new.
    group_has_offsets: bool,
    /// The topic did not exist when this member looked first, so all its partitions are new to the group.
    topic_was_missing: bool,
    /// A round was completed: the member is registered, and has claimed what it can claim.
    has_joined: bool,
    /// Reports to `/readyz` whether this member has joined and its partitions have a stored offset.
    health: Option<Component>,
    /// Events that the dispatcher has not received. At most two for a partition, because no partition is claimed while
    /// events are pending.
    pending_events: VecDeque<GroupEvent>,
    /// The latest warning and when it was logged.
    last_warning: Option<(String, Instant)>,
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
    /// The offset that the offset node contains; `None` if none is stored.
    stored: Option<Offset>,
    /// The latest commit, to be stored if it differs from `stored`.
    committed: Option<Offset>,
    /// `committed` is to be stored at once.
    is_urgent: bool,
    stage: ClaimStage,
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
    /// Creates a member that has not joined the group yet; [`Group::run`] joins it.
    pub fn new(config: ZookeeperGroupConfig, keeper: SharedKeeper) -> ZookeeperGroup {
        ZookeeperGroup {
            config,
            keeper,
            member_ids: MemberIds::new(),
            member: None,
            former_ids: VecDeque::new(),
            members: Vec::new(),
            partitions: Vec::new(),
            assigned: BTreeSet::new(),
            held: BTreeMap::new(),
            stray_claims: BTreeSet::new(),
            conflict_since: None,
            last_generation: 0,
            group_has_offsets: false,
            topic_was_missing: false,
            has_joined: false,
            health: None,
            pending_events: VecDeque::new(),
            last_warning: None,
        }
    }

    /// Makes the member report its state to `/readyz`. It is ready once it has joined and claimed its partitions, and
    /// where they begin is stored: from then on no message is missed, whatever `start_from` says.
    pub fn with_health(mut self, health: Component) -> ZookeeperGroup {
        self.health = Some(health);
        self
    }

    fn report_health(&self) {
        let Some(health) = &self.health else { return };
        let missing = self.assigned.iter().filter(|partition| !self.held.contains_key(partition));
        let without_offset = self.held.iter().filter(|(_, held)| held.stored.is_none()).map(|(partition, _)| partition);
        let (missing, without_offset): (Vec<_>, Vec<_>) = (missing.collect(), without_offset.collect());
        health.set(if self.member.is_none() || !self.has_joined {
            Err("the group is not joined yet".to_owned())
        } else if !missing.is_empty() && self.conflict_since.is_none() {
            Err(format!("partitions {missing:?} are not claimed yet"))
        } else if !without_offset.is_empty() {
            Err(format!("where partitions {without_offset:?} begin is not stored yet"))
        } else {
            Ok(())
        });
    }

    fn claimant<'a>(&'a self, member: &'a Member) -> Claimant<'a> {
        Claimant { keeper: &*self.keeper, group: &self.config.group, topic: &self.config.topic, id: &member.id }
    }

    /// Applies the pending commits and releases. Commands of ended claims are ignored.
    fn apply(&mut self, pending: &PendingCommands) {
        let commits =
            pending.commits.iter().map(|(partition, (generation, next))| (partition, generation, Some(*next), false));
        for (partition, (generation, next, _)) in &pending.starts {
            if let Some(held) = self.held.get_mut(partition).filter(|held| held.generation == *generation) {
                (held.committed, held.is_urgent) = (Some(*next), true);
            }
        }
        let releases =
            pending.releases.iter().map(|(partition, (generation, next))| (partition, generation, *next, true));
        // Releases are applied after commits, because the offset of a release is the later one.
        for (partition, generation, next, is_release) in commits.chain(releases) {
            let Some(held) = self.held.get_mut(partition).filter(|held| held.generation == *generation) else {
                continue;
            };
            held.committed = next.or(held.committed);
            if is_release {
                held.stage = ClaimStage::Released;
                held.fence.end();
            }
        }
    }

    /// Returns the end of the lease of all claims that were made in session `epoch`; `None` if this is no longer the
    /// current session. A lease is valid for five sixths of the session timeout after the latest request that confirmed
    /// the session. The last sixth is a margin, since clocks and threads are never exactly on time.
    fn lease_end(&self, epoch: Epoch) -> Option<BootTime> {
        // The server restarts the session timeout when it receives a request, so never before the request was sent. The
        // confirmation is read before the epoch, so it cannot belong to a later session than the epoch compared below.
        let confirmed = self.keeper.last_confirmed()?;
        if self.keeper.epoch() != epoch {
            return None;
        }
        let session_timeout = self.keeper.session_timeout();
        Some(BootTime::now() - confirmed.elapsed() + (session_timeout - session_timeout / 6))
    }

    /// Extends the leases of all claims of the current session.
    fn extend_leases(&self) {
        let Some(until) = self.member.as_ref().and_then(|member| self.lease_end(member.epoch)) else { return };
        for held in self.held.values() {
            held.fence.extend(until);
        }
    }

    fn round(&mut self) -> RoundResult {
        self.follow_session()?;
        self.update_assignment()?;
        self.reconcile()?;
        self.has_joined = true;
        Ok(())
    }

    /// Stores the offsets that cannot wait for the store interval, then deletes the owner nodes of released partitions.
    fn finish_released(&mut self) -> RoundResult {
        self.store(true)?;
        self.delete_released()
    }

    /// Releases all claims and leaves the group, with retries for one session timeout. If that fails, the nodes vanish
    /// when the session ends.
    fn leave(&mut self, commands: &Mailbox) {
        let deadline = Instant::now() + self.keeper.session_timeout();
        let pause = self.keeper.session_timeout() / 12;
        self.apply(&commands.take());
        self.assigned.clear();
        for held in self.held.values_mut() {
            held.stage = ClaimStage::Released;
            held.fence.end();
        }
        loop {
            if self.member.as_ref().is_none_or(|member| member.epoch != self.keeper.epoch()) {
                // The claims and the registration ended with their session.
                return;
            }
            let result = self.finish_released().and_then(|()| self.delete_stray_claims()).and_then(|()| {
                let member = self.member.as_ref().expect("a member, checked above");
                self.claimant(member).unregister(&member.id).map_err(to_reason)
            });
            match result {
                Ok(()) => return info!("group {}: left", self.config.group),
                Err(reason) if Instant::now() + pause > deadline => {
                    return warn!(
                        "group {}: could not leave, its nodes vanish with the ZooKeeper session: {reason}",
                        self.config.group
                    );
                }
                // No further command arrives, so the thread only waits for the next attempt.
                Err(_) => std::thread::sleep(pause),
            }
        }
    }

    fn warn_rate_limited(&mut self, text: String) {
        if let Some((last, at)) = &self.last_warning {
            let pause = if *last == text { REPEATED_WARNING_PAUSE } else { OTHER_WARNING_PAUSE };
            if at.elapsed() < pause {
                return;
            }
        }
        // Logged as a warning, not an error, because the next round retries.
        warn!("group {}: {text}", self.config.group);
        self.last_warning = Some((text, Instant::now()));
    }
}

fn to_reason(error: KeeperError) -> String {
    error.to_string()
}

impl Group for ZookeeperGroup {
    fn run(mut self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>) {
        let poll = (self.keeper.session_timeout() / 6).clamp(Duration::from_millis(200), Duration::from_secs(1));
        let mut next_poll = Instant::now();
        let mut next_store = Instant::now() + self.config.offset_update_interval;
        loop {
            self.extend_leases();
            let pending = commands.take();
            self.apply(&pending);
            if pending.leave {
                return self.leave(&commands);
            }
            let mut outcome = self.finish_released();
            if Instant::now() >= next_store {
                outcome = outcome.and_then(|()| self.store(false));
                next_store = Instant::now() + self.config.offset_update_interval;
            }
            if Instant::now() >= next_poll {
                // The round is made even after a failed store, because only a round detects that the session was lost.
                outcome = outcome.and(self.round());
                next_poll = Instant::now() + poll;
            }
            self.report_health();
            if let Err(reason) = outcome {
                self.warn_rate_limited(reason);
            }
            let pause = next_poll.min(next_store).saturating_duration_since(Instant::now());
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
mod tests;
