//! The part of the group that brings what is held to what is wanted: claims, stores, gives back, loses.

use std::collections::BTreeSet;
use std::time::Instant;

use log::warn;

use super::{Held, Round, Stage, ZookeeperGroup, words};
use crate::broker::PartitionId;
use crate::keeper::{KeeperError, paths};
use crate::ktransfer::group::claim::{Storing, Taking};
use crate::ktransfer::group::{Generation, GroupEvent};

impl ZookeeperGroup {
    /// Brings what is held to what is wanted.
    pub(super) fn settle(&mut self) -> Round {
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
        self.clear_strays()
    }

    /// Claims one partition; false while another member has it.
    fn claim(&mut self, partition: PartitionId) -> Result<bool, String> {
        let member = self.member.as_ref().expect("only members claim");
        let epoch = member.epoch;
        self.strays.insert(partition);
        let taking = match self.claimant(member).take(partition) {
            Err(error @ KeeperError::Unreachable(_)) => return Err(words(error)),
            // Somebody wrote at the same moment: the next round tries again, the other partitions need not wait for it.
            Err(error) => {
                self.say(format!("partition {partition} is not claimed yet: {error}"));
                return Ok(true);
            }
            Ok(taking) => taking,
        };
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
                self.strays.remove(&partition);
                self.fence.open(partition, generation, epoch);
                self.outbox.push_back(GroupEvent::Gained { partition, generation, position });
                Ok(true)
            }
            Taking::OwnedBy(owner) => {
                self.strays.remove(&partition);
                self.sweep(partition, &owner).map(|()| false)
            }
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

    /// Stores what was committed: of all, or only what cannot wait, which is of partitions that are given back and of those that have
    /// nothing stored yet (lost before that, they would begin elsewhere).
    pub(super) fn store(&mut self, urgent_only: bool) -> Round {
        for partition in self.held.keys().copied().collect::<Vec<_>>() {
            let (Some(member), Some(held)) = (&self.member, self.held.get(&partition)) else { continue };
            let Some(next) = held.committed.filter(|next| held.stored != Some(*next)) else { continue };
            if urgent_only && held.stage != Stage::GivingBack && held.stored.is_some() {
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
    pub(super) fn give_back(&mut self) -> Round {
        let released =
            self.held.iter().filter(|(_, held)| held.stage == Stage::GivingBack).map(|(partition, _)| *partition);
        for partition in released.collect::<Vec<_>>() {
            let Some(member) = &self.member else { break };
            self.claimant(member).give_back(partition).map_err(words)?;
            self.held.remove(&partition);
        }
        Ok(())
    }

    /// Deletes owner nodes of ours that no claim stands for, unless the partition is wanted and so about to be claimed again.
    pub(super) fn clear_strays(&mut self) -> Round {
        for partition in self.strays.difference(&self.wanted).copied().collect::<Vec<_>>() {
            let Some(member) = &self.member else { break };
            self.claimant(member).give_back(partition).map_err(words)?;
            self.strays.remove(&partition);
        }
        Ok(())
    }

    /// Ends a claim that is not ours any more. Its owner node may still be there.
    pub(super) fn lose(&mut self, partition: PartitionId) {
        self.fence.shut(partition);
        self.strays.insert(partition);
        if let Some(held) = self.held.remove(&partition)
            && held.stage != Stage::GivingBack
        {
            self.outbox.push_back(GroupEvent::Lost { partition, generation: held.generation });
        }
    }
}
