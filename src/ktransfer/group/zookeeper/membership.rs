//! The part of the group that says who is a member and whose the partitions shall be.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use super::{Member, Round, ZookeeperGroup, words};
use crate::keeper::discovery::{self, DiscoveryError};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{KeeperError, Lifetime};
use crate::ktransfer::group::division::share_of;
use crate::ktransfer::group::member::registration;

/// How long the division may disagree with what others do before the leaders are read again.
const DISAGREEMENT: Duration = Duration::from_secs(3);

impl ZookeeperGroup {
    /// Drops what was claimed in a session that is not the present one, then joins if there is a session.
    pub(super) fn join(&mut self) -> Round {
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
    pub(super) fn divide(&mut self) -> Round {
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

    fn forget_members(&mut self) {
        self.members.clear();
        self.wanted.clear();
        self.strays.clear();
        self.disagreeing_since = None;
        // Late leftovers have certainly shown themselves by then.
        let old = 20 * self.keeper.session_timeout();
        self.former.retain(|(_, ended)| ended.elapsed() < old);
    }
}
