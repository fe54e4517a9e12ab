//! Distinguishes partitions that are new to the group from those that exist when the group begins.

use std::collections::BTreeSet;

use super::{RoundResult, ZookeeperGroup, to_reason};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{KeeperError, Lifetime};

impl ZookeeperGroup {
    /// While the group has no stored offset, each partition gets an offset node without an offset, so `start_from`
    /// decides about it. A partition that has no node once the group has offsets was added to the topic later: nothing
    /// in it is older than the group, so it is read from its beginning. So is a topic that is younger than the group.
    pub(super) fn prepare_offset_nodes(&mut self) -> RoundResult {
        if self.to_claim.is_empty() {
            return Ok(());
        }
        let (group, topic) = (&self.config.group, &self.config.topic);
        let names = match self.keeper.children(&paths::offsets(group, topic)) {
            Err(KeeperError::NoNode(_)) => Vec::new(),
            names => names.map_err(to_reason)?,
        };
        let known: BTreeSet<_> = names.iter().filter_map(|name| paths::parse_partition(name)).collect();
        if self.to_claim.iter().all(|partition| known.contains(partition)) {
            // Each claim finds the node of its partition.
            return Ok(());
        }
        let nodes: Vec<String> = known.iter().map(|partition| paths::offset(group, topic, *partition)).collect();
        for node in self.keeper.read_all(&nodes) {
            // An unreadable offset is an offset, too.
            if node.map_err(to_reason)?.is_some_and(|node| paths::parse_offset(&node.data) != Ok(None)) {
                self.group_has_offsets = true;
                return Ok(());
            }
        }
        let is_new_topic = self.topic_was_missing && known.is_empty();
        let data = if is_new_topic { paths::offset_text(0) } else { paths::NOTHING_STORED.to_vec() };
        for partition in self.partitions.iter().filter(|partition| !known.contains(partition)) {
            let node = paths::offset(group, topic, *partition);
            match create_with_parents(&*self.keeper, &node, &data, Lifetime::Persistent) {
                Ok(()) | Err(KeeperError::NodeExists(_)) => {}
                Err(error) => return Err(to_reason(error)),
            }
        }
        self.group_has_offsets = is_new_topic;
        Ok(())
    }
}
