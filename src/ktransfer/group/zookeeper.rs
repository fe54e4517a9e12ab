//! The consumer group by ZooKeeper: joins, divides, claims, stores, gives back; the classic layout, as the original.
//!
//! One loop owns all state and polls (no watches). What ends a session ends everything that was claimed in it: the claims are
//! reported lost, and the member joins anew under another id once a new session is there. Partitions are claimed only where no owner
//! node is, so an earlier owner, even this very process in its former session, has released them or has expired.
//!
//! The division is worked out anew when the members or the partitions change, as the original does, and besides when it
//! plainly does not fit that of the others: a partition of ours is kept by another, or nobody takes one that is not ours. (Members that
//! read the leaders at different moments may disagree; a new reading settles it.)

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Sender, select};
use log::{error, info, warn};

use super::claim::{Claimant, Storing, Taking};
use super::division::share_of;
use super::lease::KeeperFence;
use super::member::{Names, registration};
use super::{Generation, Group, GroupEvent, Lease, Mailbox, Said};
use crate::broker::{Offset, PartitionId};
use crate::keeper::discovery::{self, DiscoveryError};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Epoch, KeeperError, Lifetime, SharedKeeper};

/// How long the division may disagree with what others do before the leaders are read again.
const DISAGREEMENT: Duration = Duration::from_secs(3);

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

    /// Drops what was claimed in a session that is not the present one, then joins if there is a session.
    fn join(&mut self) -> Round {
        let epoch = self.keeper.epoch();
        if self.member.as_ref().is_some_and(|member| member.epoch != epoch) {
            warn!(
                "group {}: the ZooKeeper session was lost, and with it {} claims",
                self.config.group,
                self.held.len()
            );
            for partition in self.held.keys().copied().collect::<Vec<_>>() {
                self.lose(partition);
            }
            let member = self.member.take().expect("just looked at");
            self.former.push_back((member.id, Instant::now()));
            self.forget_members();
        }
        if self.member.is_none() {
            // A call first: there may be no session yet, and the id belongs to one.
            self.keeper.read("/").map_err(words)?;
            self.member = Some(Member { id: self.names.next(), epoch: self.keeper.epoch() });
        }
        Ok(())
    }

    /// Looks who is there and works the division out anew if something has changed.
    fn divide(&mut self) -> Round {
        let Some(member) = &self.member else { return Ok(()) };
        let mut members = match self.keeper.children(&paths::group_ids(&self.config.group)) {
            Err(KeeperError::NoNode(_)) => Vec::new(),
            members => members.map_err(words)?,
        };
        if !members.contains(&member.id) {
            let path = paths::group_id(&self.config.group, &member.id);
            let registration = registration(&self.config.topic, SystemTime::now());
            match create_with_parents(&*self.keeper, &path, &registration, Lifetime::Ephemeral) {
                Ok(()) | Err(KeeperError::NodeExists(_)) => {
                    info!("group {}: joined as {}", self.config.group, member.id)
                }
                Err(error) => return Err(words(error)),
            }
            members.push(member.id.clone());
        }
        for (id, _) in self.former.iter().filter(|(id, _)| members.contains(id)) {
            self.claimant(member).unregister(id).map_err(words)?;
        }
        members.retain(|id| self.former.iter().all(|(former, _)| former != id));
        members.sort_unstable();
        let topic = self.config.topic.clone();
        let partitions = match discovery::partition_ids(&*self.keeper, &topic) {
            // May come later; what is held of it cannot be read anyway.
            Err(DiscoveryError::UnknownTopic(_)) => {
                self.say(format!("topic {topic} does not exist; waiting for it"));
                Vec::new()
            }
            partitions => partitions.map_err(|error| error.to_string())?,
        };
        let patience_is_over = self.disagreeing_since.is_some_and(|since| since.elapsed() >= DISAGREEMENT);
        if members == self.members && partitions == self.partitions && !patience_is_over {
            return Ok(());
        }
        let member = self.member.as_ref().expect("looked at above");
        let leaders = match partitions.as_slice() {
            [] => Vec::new(),
            _ => discovery::partitions(&*self.keeper, &topic).map_err(|error| error.to_string())?,
        };
        let wanted: BTreeSet<_> = share_of(&member.id, &members, &leaders).into_iter().collect();
        if wanted != self.wanted || members != self.members {
            info!(
                "group {}: {} members, {} of {} partitions are ours",
                self.config.group,
                members.len(),
                wanted.len(),
                leaders.len()
            );
        }
        (self.members, self.partitions, self.wanted, self.disagreeing_since) = (members, partitions, wanted, None);
        Ok(())
    }

    /// Brings what is held to what is wanted.
    fn settle(&mut self) -> Round {
        if self.member.is_none() {
            return Ok(());
        }
        let owners = match self.keeper.children(&paths::owners(&self.config.group, &self.config.topic)) {
            Err(KeeperError::NoNode(_)) => BTreeSet::new(),
            owners => owners.map_err(words)?.iter().filter_map(|name| paths::parse_partition(name)).collect(),
        };
        for (partition, held) in &mut self.held {
            if held.stage == Stage::Ours && !self.wanted.contains(partition) {
                held.stage = Stage::Releasing;
                self.outbox.push_back(GroupEvent::Releasing { partition: *partition, generation: held.generation });
            }
        }
        // Somebody deleted the node by hand; the next round may claim it again.
        for gone in self.held.keys().copied().filter(|held| !owners.contains(held)).collect::<Vec<_>>() {
            warn!("group {}: the owner node of partition {gone} is gone", self.config.group);
            self.lose(gone);
        }
        let unowned = self.partitions.iter().any(|known| !owners.contains(known) && !self.wanted.contains(known));
        let mut disagrees = unowned;
        if self.outbox.is_empty() {
            let missing: Vec<_> =
                self.wanted.iter().copied().filter(|wanted| !self.held.contains_key(wanted)).collect();
            for partition in missing {
                disagrees |= !self.claim(partition)?;
            }
        }
        if disagrees {
            self.disagreeing_since.get_or_insert_with(Instant::now);
        } else {
            self.disagreeing_since = None;
        }
        Ok(())
    }

    /// Claims one partition; false while another member has it.
    fn claim(&mut self, partition: PartitionId) -> Result<bool, String> {
        let member = self.member.as_ref().expect("only members claim");
        let epoch = member.epoch;
        let taking = self.claimant(member).take(partition).map_err(words)?;
        if self.keeper.epoch() != epoch {
            // Some of it was done in another session.
            return Err("the session changed during a claim".into());
        }
        match taking {
            Taking::Taken { version, position } => {
                self.last_generation += 1;
                let generation = Generation(self.last_generation);
                let held = Held { generation, version, stored: position, committed: None, stage: Stage::Ours };
                self.held.insert(partition, held);
                self.fence.open(partition, generation, epoch);
                self.outbox.push_back(GroupEvent::Gained { partition, generation, position });
                Ok(true)
            }
            Taking::OwnedBy(owner) => self.sweep(partition, &owner).map(|()| false),
            Taking::Unreadable(bad) => {
                let path = paths::offset(&self.config.group, &self.config.topic, partition);
                self.say(format!("{path}: {bad}; not read until that is put right"));
                Ok(true)
            }
        }
    }

    /// An owner node of a former session of ours expires by itself, unless it was made so late that it belongs to a session
    /// that lives: then it is removed when the former session certainly is no more.
    fn sweep(&self, partition: PartitionId, owner: &str) -> Round {
        let Some(member) = &self.member else { return Ok(()) };
        let long_ago = |ended: &Instant| ended.elapsed() > 2 * self.keeper.session_timeout();
        match self.former.iter().find(|(id, ended)| id == owner && long_ago(ended)) {
            Some((id, _)) => self.claimant(member).clear_owner(partition, id).map_err(words),
            None => Ok(()),
        }
    }

    /// Stores what was committed; of `released` ones only, or of all.
    fn store(&mut self, released_only: bool) -> Round {
        for partition in self.held.keys().copied().collect::<Vec<_>>() {
            let (Some(member), Some(held)) = (&self.member, self.held.get(&partition)) else { continue };
            let Some(next) = held.committed.filter(|next| held.stored != Some(*next)) else { continue };
            if released_only && held.stage != Stage::GivingBack {
                continue;
            }
            match self.claimant(member).store(partition, next, held.version).map_err(words)? {
                Storing::Stored(version) => {
                    let held = self.held.get_mut(&partition).expect("looked at above");
                    (held.version, held.stored) = (version, Some(next));
                }
                Storing::Fenced => {
                    warn!(
                        "group {}: the offset of partition {partition} was written by somebody else",
                        self.config.group
                    );
                    self.lose(partition);
                }
            }
        }
        Ok(())
    }

    /// Deletes the owner nodes of what was released and stored.
    fn give_back(&mut self) -> Round {
        let released =
            self.held.iter().filter(|(_, held)| held.stage == Stage::GivingBack).map(|(partition, _)| *partition);
        for partition in released.collect::<Vec<_>>() {
            let Some(member) = &self.member else { break };
            self.claimant(member).give_back(partition).map_err(words)?;
            self.held.remove(&partition);
        }
        Ok(())
    }

    fn lose(&mut self, partition: PartitionId) {
        self.fence.shut(partition);
        if let Some(held) = self.held.remove(&partition)
            && held.stage != Stage::GivingBack
        {
            self.outbox.push_back(GroupEvent::Lost { partition, generation: held.generation });
        }
    }

    fn forget_members(&mut self) {
        self.members.clear();
        self.wanted.clear();
        self.disagreeing_since = None;
        // Late leftovers have certainly shown themselves by then.
        let old = 20 * self.keeper.session_timeout();
        self.former.retain(|(_, ended)| ended.elapsed() < old);
    }

    fn round(&mut self) -> Round {
        self.join()?;
        self.divide()?;
        self.settle()
    }

    /// Stores and gives back what the dispatcher released.
    fn finish_released(&mut self) -> Round {
        self.store(true)?;
        self.give_back()
    }

    /// Gives everything back and leaves, within one session timeout; after that the end of the session does it.
    fn farewell(&mut self, commands: &Mailbox) {
        let deadline = Instant::now() + self.keeper.session_timeout();
        let pause = self.keeper.session_timeout() / 12;
        self.hear(&commands.take());
        for (partition, held) in &mut self.held {
            held.stage = Stage::GivingBack;
            self.fence.shut(*partition);
        }
        loop {
            if self.member.as_ref().is_none_or(|member| member.epoch != self.keeper.epoch()) {
                return;
            }
            let left = self.finish_released().and_then(|()| {
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
        error!("group {}: {trouble}", self.config.group);
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
