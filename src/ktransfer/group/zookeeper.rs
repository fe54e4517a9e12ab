//! The consumer group by ZooKeeper: joins, divides, claims, stores, gives back; the classic layout, as the original.
//!
//! One loop owns all state and polls (no watches). What ends a session ends everything that was claimed in it: the claims are
//! reported lost, and the member joins anew under another id once a new session is there. Partitions are claimed only where no owner
//! node is, so an earlier owner, even this very process in its former session, has released them or has expired.
//!
//! The division is worked out anew when the members or the partitions change, as the original does, and besides when it
//! plainly does not fit that of the others: a partition of ours is kept by another, or nobody takes one that is not ours. (Members that
//! read the leaders at different moments may disagree; a new reading settles it.)

mod holdings;
mod membership;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, select};
use log::{info, warn};

use super::claim::Claimant;
use super::lease::KeeperFence;
use super::member::Names;
use super::{Generation, Group, GroupEvent, Lease, Mailbox, Said};
use crate::broker::{Offset, PartitionId};
use crate::keeper::{Epoch, KeeperError, SharedKeeper};

/// Trouble is logged only so often: the same, and another that follows it.
const SAME_TROUBLE: Duration = Duration::from_secs(60);
const OTHER_TROUBLE: Duration = Duration::from_secs(5);

/// What a group needs to know.
#[derive(Clone, Debug)]
pub struct ZookeeperGroupConfig {
    /// Name of the group: the module's.
    pub group: String,
    /// The topic it reads.
    pub topic: String,
    /// Pause between two rounds of stores (`zk_offset_update_interval_sec`).
    pub offset_update_interval: Duration,
}

/// A member of a group; see the module's head.
pub struct ZookeeperGroup {
    config: ZookeeperGroupConfig,
    keeper: SharedKeeper,
    fence: Arc<KeeperFence>,
    names: Names,
    member: Option<Member>,
    /// Ids of sessions that ended, and when: their registrations are removed, and late leftovers of their claims.
    former: VecDeque<(String, Instant)>,
    /// Sorted; what the division was worked out from.
    members: Vec<String>,
    partitions: Vec<PartitionId>,
    /// Our share.
    wanted: BTreeSet<PartitionId>,
    held: BTreeMap<PartitionId, Held>,
    /// Partitions that an owner node of ours may be at although they are not held: half-done and lost claims of this session.
    strays: BTreeSet<PartitionId>,
    disagreeing_since: Option<Instant>,
    last_generation: u64,
    /// Events the dispatcher has not taken yet. Nothing is claimed while there is one, so there are at most two a partition.
    outbox: VecDeque<GroupEvent>,
    said_trouble: Option<(String, Instant)>,
}

/// The membership in one session.
struct Member {
    id: String,
    epoch: Epoch,
}

/// A partition that is claimed.
struct Held {
    generation: Generation,
    /// Of the offset node, at our last write.
    version: i32,
    stored: Option<Offset>,
    /// What is to be stored.
    committed: Option<Offset>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ours,
    /// The dispatcher was asked to finish it.
    Releasing,
    /// It has finished: what is left is between us and ZooKeeper.
    GivingBack,
}

/// Why a round was not completed; the next one begins anew.
type Round = Result<(), String>;

impl ZookeeperGroup {
    /// A member that has not joined yet; see [`Group::run`].
    pub fn new(config: ZookeeperGroupConfig, keeper: SharedKeeper) -> ZookeeperGroup {
        let fence = Arc::new(KeeperFence::new(Arc::clone(&keeper)));
        ZookeeperGroup {
            config,
            keeper,
            fence,
            names: Names::new(),
            member: None,
            former: VecDeque::new(),
            members: Vec::new(),
            partitions: Vec::new(),
            wanted: BTreeSet::new(),
            held: BTreeMap::new(),
            strays: BTreeSet::new(),
            disagreeing_since: None,
            last_generation: 0,
            outbox: VecDeque::new(),
            said_trouble: None,
        }
    }

    fn claimant<'a>(&'a self, member: &'a Member) -> Claimant<'a> {
        Claimant { keeper: &*self.keeper, group: &self.config.group, topic: &self.config.topic, id: &member.id }
    }

    /// Notes what the dispatcher said. Words about claims that ended are passed over.
    fn hear(&mut self, said: &Said) {
        let commits =
            said.commits.iter().map(|(partition, (generation, next))| (partition, generation, Some(*next), false));
        let releases = said.releases.iter().map(|(partition, (generation, next))| (partition, generation, *next, true));
        for (partition, generation, next, releases) in commits.chain(releases) {
            let Some(held) = self.held.get_mut(partition).filter(|held| held.generation == *generation) else {
                continue;
            };
            held.committed = next.or(held.committed);
            if releases {
                held.stage = Stage::GivingBack;
                self.fence.shut(*partition);
            }
        }
    }

    fn round(&mut self) -> Round {
        self.join()?;
        self.divide()?;
        self.settle()
    }

    /// Stores what cannot wait, and gives back what the dispatcher released.
    fn finish_released(&mut self) -> Round {
        self.store(true)?;
        self.give_back()
    }

    /// Gives everything back and leaves, within one session timeout; after that the end of the session does it.
    fn farewell(&mut self, commands: &Mailbox) {
        let deadline = Instant::now() + self.keeper.session_timeout();
        let pause = self.keeper.session_timeout() / 12;
        self.hear(&commands.take());
        self.wanted.clear();
        for (partition, held) in &mut self.held {
            held.stage = Stage::GivingBack;
            self.fence.shut(*partition);
        }
        loop {
            if self.member.as_ref().is_none_or(|member| member.epoch != self.keeper.epoch()) {
                return;
            }
            let left = self.finish_released().and_then(|()| self.clear_strays()).and_then(|()| {
                let member = self.member.as_ref().expect("looked at above");
                self.claimant(member).unregister(&member.id).map_err(words)
            });
            match left {
                Ok(()) => return info!("group {}: left", self.config.group),
                Err(trouble) if Instant::now() + pause > deadline => {
                    return warn!("group {}: could not leave properly: {trouble}", self.config.group);
                }
                // The dispatcher has nothing to say any more: only time can help.
                Err(_) => std::thread::sleep(pause),
            }
        }
    }

    fn say(&mut self, trouble: String) {
        if let Some((said, at)) = &self.said_trouble {
            let quiet = if *said == trouble { SAME_TROUBLE } else { OTHER_TROUBLE };
            if at.elapsed() < quiet {
                return;
            }
        }
        // It is tried again and again, so it is no more than a warning.
        warn!("group {}: {trouble}", self.config.group);
        self.said_trouble = Some((trouble, Instant::now()));
    }
}

fn words(error: KeeperError) -> String {
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
            let said = commands.take();
            self.hear(&said);
            if said.leave {
                return self.farewell(&commands);
            }
            let mut outcome = self.finish_released();
            if Instant::now() >= next_store {
                outcome = outcome.and_then(|()| self.store(false));
                next_store = Instant::now() + self.config.offset_update_interval;
            }
            if Instant::now() >= next_poll {
                outcome = outcome.and(self.round());
                next_poll = Instant::now() + poll;
            }
            if let Err(trouble) = outcome {
                self.say(trouble);
            }
            let pause = next_poll.min(next_store).saturating_duration_since(Instant::now());
            let goes_on = match self.outbox.front().cloned() {
                Some(event) => select! {
                    send(events, event) -> sent => { self.outbox.pop_front(); sent.is_ok() }
                    recv(commands.woken()) -> woken => woken.is_ok(),
                    default(pause) => true,
                },
                None => select! {
                    recv(commands.woken()) -> woken => woken.is_ok(),
                    default(pause) => true,
                },
            };
            if !goes_on {
                return self.farewell(&commands);
            }
        }
    }
}

#[cfg(test)]
mod tests;
