//! Group membership in ZooKeeper, in the layout of the original: registers, assigns, claims, stores, releases.
//!
//! One loop owns all state and polls; there are no watches. It has three parts: this file (the loop, the commands and
//! the leave), `membership` (sessions, members and the assignment) and `held_partitions` (claims, stores and releases).
//!
//! A session loss ends everything that was claimed in it: the claims are reported as lost, and the member registers
//! under another id in the next session. A partition is claimed only while it has no owner node. So an earlier owner,
//! even this process in its former session, has released it or its session has expired.
//!
//! The assignment is computed again when the members or the partitions change, as in the original. It is also computed
//! again after a conflict that lasts: another member keeps a partition that is assigned to this one, or no member
//! claims a partition of the others. Members that read the leaders at different moments may disagree until they read
//! them again.

mod held_partitions;
mod membership;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, select};
use log::{info, warn};

use super::claim::Claimant;
use super::lease::KeeperFence;
use super::mailbox::PendingCommands;
use super::member::MemberIds;
use super::{Generation, Group, GroupEvent, Lease, Mailbox};
use crate::broker::{Offset, PartitionId};
use crate::keeper::{Epoch, KeeperError, SharedKeeper};

/// Pause before a warning is logged again, and before a different one.
const REPEATED_WARNING_PAUSE: Duration = Duration::from_secs(60);
const OTHER_WARNING_PAUSE: Duration = Duration::from_secs(5);

/// The group, its topic and how often offsets are stored.
#[derive(Clone, Debug)]
pub struct ZookeeperGroupConfig {
    /// Name of the group: that of the module.
    pub group: String,
    /// The topic of the group.
    pub topic: String,
    /// Interval between two stores of all offsets (`zk_offset_update_interval_sec`).
    pub offset_update_interval: Duration,
}

/// A member of a group; see the head of the file.
pub struct ZookeeperGroup {
    config: ZookeeperGroupConfig,
    keeper: SharedKeeper,
    fence: Arc<KeeperFence>,
    member_ids: MemberIds,
    member: Option<Member>,
    /// Ids of ended sessions, and when they ended. Nodes with these ids that were created late are deleted.
    former_ids: VecDeque<(String, Instant)>,
    /// The sorted ids and partitions from which `assigned` was computed.
    members: Vec<String>,
    partitions: Vec<PartitionId>,
    /// The partitions assigned to this member.
    assigned: BTreeSet<PartitionId>,
    held: BTreeMap<PartitionId, HeldPartition>,
    /// Partitions that are not held, but may have an owner node of this session: incomplete and ended claims.
    stray_claims: BTreeSet<PartitionId>,
    /// Since when the claims of other members contradict `assigned`.
    conflict_since: Option<Instant>,
    last_generation: u64,
    /// Events that the dispatcher has not received: at most two for a partition, since nothing is claimed meanwhile.
    pending_events: VecDeque<GroupEvent>,
    /// The latest warning and when it was logged.
    last_warning: Option<(String, Instant)>,
}

/// The membership in one session.
struct Member {
    id: String,
    epoch: Epoch,
}

/// A partition that is claimed.
struct HeldPartition {
    generation: Generation,
    /// Version of the offset node after our latest write.
    version: i32,
    stored: Option<Offset>,
    /// The latest commit, to be stored if it differs from `stored`.
    committed: Option<Offset>,
    stage: ClaimStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimStage {
    Active,
    /// `Releasing` was sent: the dispatcher finishes what is in flight.
    Releasing,
    /// The dispatcher has finished: store the offset, then delete the owner node.
    Released,
}

/// The error is the reason why a round was not completed; the next round starts from the beginning.
type RoundResult = Result<(), String>;

impl ZookeeperGroup {
    /// A member that has not joined yet; see [`Group::run`].
    pub fn new(config: ZookeeperGroupConfig, keeper: SharedKeeper) -> ZookeeperGroup {
        let fence = Arc::new(KeeperFence::new(Arc::clone(&keeper)));
        ZookeeperGroup {
            config,
            keeper,
            fence,
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
            pending_events: VecDeque::new(),
            last_warning: None,
        }
    }

    fn claimant<'a>(&'a self, member: &'a Member) -> Claimant<'a> {
        Claimant { keeper: &*self.keeper, group: &self.config.group, topic: &self.config.topic, id: &member.id }
    }

    /// Applies commits and releases. Those of ended claims are ignored.
    fn apply(&mut self, pending: &PendingCommands) {
        let commits =
            pending.commits.iter().map(|(partition, (generation, next))| (partition, generation, Some(*next), false));
        let releases =
            pending.releases.iter().map(|(partition, (generation, next))| (partition, generation, *next, true));
        // Releases second: their offset is the later one.
        for (partition, generation, next, is_release) in commits.chain(releases) {
            let Some(held) = self.held.get_mut(partition).filter(|held| held.generation == *generation) else {
                continue;
            };
            held.committed = next.or(held.committed);
            if is_release {
                held.stage = ClaimStage::Released;
                self.fence.revoke(*partition);
            }
        }
    }

    fn round(&mut self) -> RoundResult {
        self.follow_session()?;
        self.update_assignment()?;
        self.reconcile()
    }

    /// Stores the urgent offsets, then deletes the owner nodes of released partitions.
    fn finish_released(&mut self) -> RoundResult {
        self.store(true)?;
        self.delete_released()
    }

    /// Releases all claims and leaves, within one session timeout; otherwise the end of the session deletes the nodes.
    fn leave(&mut self, commands: &Mailbox) {
        let deadline = Instant::now() + self.keeper.session_timeout();
        let pause = self.keeper.session_timeout() / 12;
        self.apply(&commands.take());
        self.assigned.clear();
        for (partition, held) in &mut self.held {
            held.stage = ClaimStage::Released;
            self.fence.revoke(*partition);
        }
        loop {
            if self.member.as_ref().is_none_or(|member| member.epoch != self.keeper.epoch()) {
                // Claims and registration have ended with their session.
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
                // No more commands arrive, so there is nothing to wait for but the next attempt.
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
        // Every round retries, so this is not an error.
        warn!("group {}: {text}", self.config.group);
        self.last_warning = Some((text, Instant::now()));
    }
}

fn to_reason(error: KeeperError) -> String {
    error.to_string()
}

impl Group for ZookeeperGroup {
    fn lease(&self) -> Lease {
        Arc::clone(&self.fence) as Lease
    }

    fn run(mut self: Box<Self>, commands: Mailbox, events: Sender<GroupEvent>) {
        let poll = (self.keeper.session_timeout() / 6).clamp(Duration::from_millis(200), Duration::from_secs(1));
        let mut next_poll = Instant::now();
        let mut next_store = Instant::now() + self.config.offset_update_interval;
        loop {
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
                // Also after a failed store: only a round notices that the session was lost.
                outcome = outcome.and(self.round());
                next_poll = Instant::now() + poll;
            }
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
            // The dispatcher has dropped its end.
            if !is_connected {
                return self.leave(&commands);
            }
        }
    }
}

#[cfg(test)]
mod tests;
