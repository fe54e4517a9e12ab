//! Reads modules from ZooKeeper: `/consumers/MODULE/offsets/TOPIC/PARTITION`, and who owns the partitions.
//!
//! Several modules are read together, in steps of many nodes: which topics they have, which partitions, and then the
//! nodes. What cannot have changed is not read again: [`listings`]. A node that is deleted in the meantime is left out;
//! a node that may not be read is known as refused, and hides no other node.

mod listings;
mod reading;

use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;

use crate::broker::{PartitionId, TOPIC_NAME_RULE, TopicId, is_topic_name};
use crate::keeper::{Keeper, KeeperError, Node, paths};

use super::facts::{Owner, Stored};
use super::names::{LoggedOnce, NameInterner};
use super::pauses::Pauses;
use super::readings::{PlaceReading, TopicReading};

pub(super) use listings::Listings;
use reading::{Children, Folder, Item, ItemKind, Leaf, ModuleProgress, ReadOwners};
pub(super) use reading::{Reading, WantedModule};

/// Longest text of a node that is kept: the name of an owner, or a stored text that is not an offset.
const MAX_TEXT_BYTES: usize = 200;

/// Reads modules from the ZooKeeper of one cluster.
pub(super) struct ZookeeperSource<'a> {
    /// The client.
    pub keeper: &'a dyn Keeper,
    /// The names of topics and owners.
    pub names: &'a mut NameInterner,
    /// The lines about nodes that are skipped.
    pub logged: &'a mut LoggedOnce,
    /// The children that nodes had.
    pub listings: &'a mut Listings,
    /// What was requested so far, in reads of one node.
    pub request_count: u64,
}

impl ZookeeperSource<'_> {
    /// Returns the names of all groups; none if `/consumers` does not exist.
    pub(super) fn group_names(&mut self) -> Result<Vec<String>, KeeperError> {
        self.request_count += 1;
        match self.keeper.children(paths::CONSUMERS) {
            Err(KeeperError::NoNode(_)) => Ok(Vec::new()),
            names => names,
        }
    }

    /// Reads the next nodes, at most `max`, or lists of children that cost as much. A node without a response costs its
    /// module.
    pub(super) fn step(&mut self, reading: &mut Reading, max: u64) {
        let now = Instant::now();
        // A list of children is a request of its own.
        let items = reading.take(max, self.keeper.nodes_per_read());
        let (listings, nodes): (Vec<Item>, Vec<Item>) =
            items.into_iter().partition(|item| matches!(item.kind, ItemKind::Listing(..)));
        let paths = |items: &[Item]| items.iter().map(|item| item.path.clone()).collect::<Vec<_>>();
        let found = self.keeper.read_many(&paths(&nodes));
        self.request_count += found.cost + listings.len() as u64;
        let children = self.keeper.children_all(&paths(&listings));
        for (item, node) in nodes.into_iter().zip(found.nodes) {
            let outcome = match &item.kind {
                ItemKind::Folder(folder) => self.folder(reading, &item, &folder.clone(), node, now),
                ItemKind::Leaf(leaf, topic, partition) => {
                    self.leaf(&mut reading.modules[item.module], &item, (*leaf, topic, *partition), node, now)
                }
                ItemKind::Listing(..) => Ok(()),
            };
            fail(reading, &item, outcome);
        }
        for (item, names) in listings.into_iter().zip(children) {
            let ItemKind::Listing(folder, changed) = &item.kind else { continue };
            let outcome = self.listing(reading, &item, folder, *changed, names, now);
            fail(reading, &item, outcome);
        }
    }

    /// Enters a node with children, and has the children read if they may have changed.
    fn folder(
        &mut self,
        reading: &mut Reading,
        item: &Item,
        folder: &Folder,
        node: Result<Option<Node>, KeeperError>,
        now: Instant,
    ) -> Result<(), KeeperError> {
        let node = match node {
            Err(denied @ KeeperError::NoAuth(_)) => return self.refused_folder(reading, item, folder, &denied),
            Ok(None) => return self.absent_folder(reading, item, folder),
            node => node?.unwrap_or_default(),
        };
        let changed = node.children_changed;
        match folder {
            Folder::Ids => {
                reading.modules[item.module].ids = Some(Children::Known(node.child_count));
                reading.open_topics(item.module);
            }
            Folder::Offsets | Folder::Owners => match self.listings.topics.get(&item.path, changed, now) {
                Some(topics) => has_topics(reading, item.module, folder, Children::Known(topics)),
                None => list(reading, item, folder, changed),
            },
            Folder::TopicOffsets(topic) => match self.listings.partitions.get(&item.path, changed, now) {
                Some(partitions) => want_offsets(reading, item, topic, &partitions),
                None => list(reading, item, folder, changed),
            },
            Folder::TopicOwners(topic) => match self.listings.owners.get(&item.path, changed, now) {
                Some(owners) => {
                    for (partition, owner) in &*owners {
                        if let Some(place) = place(&mut reading.modules[item.module], topic, *partition) {
                            place.owner = Owner::Named(Arc::clone(owner));
                        }
                    }
                }
                None => list(reading, item, folder, changed),
            },
        }
        Ok(())
    }

    fn absent_folder(&mut self, reading: &mut Reading, item: &Item, folder: &Folder) -> Result<(), KeeperError> {
        match folder {
            Folder::Ids => {
                reading.modules[item.module].ids = Some(Children::Absent);
                reading.open_topics(item.module);
            }
            Folder::Offsets | Folder::Owners => has_topics(reading, item.module, folder, Children::Absent),
            // Deleted meanwhile.
            Folder::TopicOffsets(_) | Folder::TopicOwners(_) => {}
        }
        Ok(())
    }

    fn refused_folder(
        &mut self,
        reading: &mut Reading,
        item: &Item,
        folder: &Folder,
        denied: &KeeperError,
    ) -> Result<(), KeeperError> {
        match folder {
            Folder::Ids => {
                reading.modules[item.module].ids = Some(Children::Refused);
                reading.open_topics(item.module);
            }
            Folder::Owners => has_topics(reading, item.module, folder, Children::Refused),
            Folder::Offsets => {
                let refused = self.refused(denied);
                has_topics(reading, item.module, folder, Children::Refused);
                reading.modules[item.module].refused = Some(refused);
            }
            Folder::TopicOffsets(topic) => {
                let refused = self.refused(denied);
                if let Some(topic) = topic_of(&mut reading.modules[item.module], topic) {
                    topic.refused = Some(refused);
                }
            }
            Folder::TopicOwners(topic) => {
                if let Some(topic) = topic_of(&mut reading.modules[item.module], topic) {
                    topic.other_owner = Some(Owner::Unknown);
                }
            }
        }
        Ok(())
    }

    /// Enters the names of the children of a node, whose children changed last with `changed` before.
    fn listing(
        &mut self,
        reading: &mut Reading,
        item: &Item,
        folder: &Folder,
        changed: i64,
        names: Result<Vec<String>, KeeperError>,
        now: Instant,
    ) -> Result<(), KeeperError> {
        let names = match names {
            Err(KeeperError::NoNode(_)) => return self.absent_folder(reading, item, folder),
            Err(denied @ KeeperError::NoAuth(_)) => return self.refused_folder(reading, item, folder, &denied),
            names => names?,
        };
        match folder {
            Folder::Ids => {}
            Folder::Offsets | Folder::Owners => {
                let topics = Arc::new(names.iter().filter_map(|name| self.topic(name)).collect());
                self.listings.topics.put(&item.path, changed, Arc::clone(&topics), now);
                has_topics(reading, item.module, folder, Children::Known(topics));
            }
            Folder::TopicOffsets(topic) => {
                let partitions = Arc::new(self.partitions(&item.path, &names));
                self.listings.partitions.put(&item.path, changed, Arc::clone(&partitions), now);
                want_offsets(reading, item, topic, &partitions);
            }
            Folder::TopicOwners(topic) => {
                let partitions = self.partitions(&item.path, &names);
                if partitions.is_empty() {
                    self.listings.owners.put(&item.path, changed, Arc::default(), now);
                    return Ok(());
                }
                let read = ReadOwners {
                    path: item.path.clone(),
                    changed,
                    count: partitions.len(),
                    owners: Vec::with_capacity(partitions.len()),
                };
                reading.modules[item.module].read_owners.insert(Arc::clone(topic), read);
                partitions.iter().for_each(|partition| want(reading, item, Leaf::Owner, topic, *partition));
            }
        }
        Ok(())
    }

    fn topic(&mut self, name: &str) -> Option<Arc<str>> {
        if is_topic_name(name.as_bytes()) {
            return Some(self.names.intern(name));
        }
        self.logged.warn(format!("topic {name:?} of a group is skipped: a topic has {TOPIC_NAME_RULE}"));
        None
    }

    /// A name such as 007 is not that of the node which ktransfer reads and writes.
    fn partitions(&mut self, path: &str, names: &[String]) -> Vec<PartitionId> {
        let mut partitions = Vec::with_capacity(names.len());
        for name in names {
            match paths::parse_partition(name).filter(|number| number.to_string() == *name) {
                Some(partition) => partitions.push(partition),
                None => self.logged.warn(format!("{path}/{name} is skipped: its name is not a partition number")),
            }
        }
        partitions
    }

    /// Enters the node of a partition into the reading of its module.
    fn leaf(
        &mut self,
        module: &mut ModuleProgress,
        item: &Item,
        (leaf, topic, partition): (Leaf, &Arc<str>, PartitionId),
        node: Result<Option<Node>, KeeperError>,
        now: Instant,
    ) -> Result<(), KeeperError> {
        let stored = match (leaf, &node) {
            (Leaf::Offset, Ok(Some(node))) => Some(self.stored(&item.path, node)),
            (Leaf::Offset, Err(denied @ KeeperError::NoAuth(_))) => Some(Stored::Refused(self.refused(denied))),
            _ => None,
        };
        let owner = match (leaf, &node) {
            (Leaf::Owner, Ok(Some(node))) => Some(self.names.intern(&text_of(&node.data))),
            _ => None,
        };
        if leaf == Leaf::Owner {
            self.keep_owner(module, topic, partition, owner.as_ref(), now);
        }
        let has_entry = stored.is_some() || owner.is_some() || matches!(node, Err(KeeperError::NoAuth(_)));
        let is_of_partition = matches!(leaf, Leaf::Offset | Leaf::Owner);
        let place = if has_entry && is_of_partition { place(module, topic, partition) } else { None };
        match (leaf, node) {
            (Leaf::Offset, Ok(node)) => {
                if let Some((place, stored)) = place.zip(stored) {
                    place.stored = stored;
                    place.written_ms = node.as_ref().map(|node| node.modified_ms).filter(|time| 0 < *time);
                    place.created_ms = node.map(|node| node.created_ms).filter(|time| 0 < *time);
                }
            }
            (Leaf::Offset, Err(KeeperError::NoAuth(_))) => {
                if let Some((place, stored)) = place.zip(stored) {
                    place.stored = stored;
                }
            }
            (Leaf::Owner, Ok(_)) => {
                if let Some((place, owner)) = place.zip(owner) {
                    place.owner = Owner::Named(owner);
                }
            }
            (Leaf::Owner, Err(KeeperError::NoAuth(_))) => {
                if let Some(place) = place {
                    place.owner = Owner::Unknown;
                }
            }
            (Leaf::Ahead, Ok(Some(node))) => {
                let place = topic_of(module, topic).and_then(|topic| topic.places.get_mut(&partition));
                if let Some(place) = place {
                    place.topic_id = topic_id(&node.data, &place.stored);
                }
            }
            (Leaf::Paused, Ok(node)) => {
                if let Some(topic) = topic_of(module, topic) {
                    topic.pauses = Some(node.map(|node| Pauses::of_node(&node.data)).unwrap_or_default());
                }
            }
            // Deleted meanwhile, or not needed.
            (Leaf::Ahead, Ok(None) | Err(KeeperError::NoAuth(_))) | (Leaf::Paused, Err(KeeperError::NoAuth(_))) => {}
            (_, Err(failure)) => return Err(failure),
        }
        Ok(())
    }

    /// Keeps the owners of a topic when the last one was read; none if one of them could not be read.
    fn keep_owner(
        &mut self,
        module: &mut ModuleProgress,
        topic: &Arc<str>,
        partition: PartitionId,
        owner: Option<&Arc<str>>,
        now: Instant,
    ) {
        let Some(owner) = owner else {
            module.read_owners.remove(topic);
            return;
        };
        let Some(read) = module.read_owners.get_mut(topic) else { return };
        read.owners.push((partition, Arc::clone(owner)));
        if read.owners.len() == read.count
            && let Some(read) = module.read_owners.remove(topic)
        {
            self.listings.owners.put(&read.path, read.changed, Arc::new(read.owners), now);
        }
    }

    fn stored(&mut self, path: &str, node: &Node) -> Stored {
        match paths::parse_offset(&node.data) {
            Ok(Some(offset)) => Stored::Offset(offset),
            Ok(None) => Stored::Nothing,
            Err(bad) => {
                self.logged.warn(format!("{path}: {bad}; its delay is unknown"));
                Stored::Unreadable(text_of(&node.data).into())
            }
        }
    }

    fn refused(&mut self, denied: &KeeperError) -> Arc<str> {
        self.logged.warn(format!("{denied}; the delays that need it are unknown"));
        denied.to_string().into()
    }
}

fn fail(reading: &mut Reading, item: &Item, outcome: Result<(), KeeperError>) {
    if let Err(failure) = outcome {
        reading.modules[item.module].failure = Some(failure);
    }
}

/// Has the children of a node listed.
fn list(reading: &mut Reading, item: &Item, folder: &Folder, changed: i64) {
    let kind = ItemKind::Listing(folder.clone(), changed);
    reading.queue.push_back(Item { module: item.module, kind, path: item.path.clone() });
}

/// Has the node of a partition below that of `item` read.
fn want(reading: &mut Reading, item: &Item, leaf: Leaf, topic: &Arc<str>, partition: PartitionId) {
    let path = match leaf {
        Leaf::Offset | Leaf::Owner => format!("{}/{partition}", item.path),
        Leaf::Ahead => paths::ahead(&reading.wanted[item.module].name, topic, partition),
        Leaf::Paused => paths::paused(&reading.wanted[item.module].name, topic),
    };
    let kind = ItemKind::Leaf(leaf, Arc::clone(topic), partition);
    reading.queue.push_back(Item { module: item.module, kind, path });
}

fn want_offsets(reading: &mut Reading, item: &Item, topic: &Arc<str>, partitions: &[PartitionId]) {
    let with_topic_ids = reading.wanted[item.module].with_topic_ids;
    for partition in partitions {
        want(reading, item, Leaf::Offset, topic, *partition);
        if with_topic_ids {
            want(reading, item, Leaf::Ahead, topic, *partition);
        }
    }
}

/// Enters the topics of which a module has offsets or owners.
fn has_topics(reading: &mut Reading, module: usize, folder: &Folder, topics: Children<Arc<Vec<Arc<str>>>>) {
    let progress = &mut reading.modules[module];
    match folder {
        Folder::Owners => progress.owners = Some(topics),
        _ => progress.offsets = Some(topics),
    }
    reading.open_topics(module);
}

fn topic_of<'a>(module: &'a mut ModuleProgress, topic: &Arc<str>) -> Option<&'a mut TopicReading> {
    module.reading.as_mut()?.topics.get_mut(topic)
}

/// Returns the entry of a partition; a new one has no stored offset and the owner of the other partitions.
fn place<'a>(module: &'a mut ModuleProgress, topic: &Arc<str>, partition: PartitionId) -> Option<&'a mut PlaceReading> {
    let topic = topic_of(module, topic)?;
    let owner = topic.other_owner.clone().unwrap_or(Owner::Unknown);
    Some(topic.places.entry(partition).or_insert_with(|| PlaceReading::nothing(owner)))
}

fn text_of(data: &[u8]) -> String {
    String::from_utf8_lossy(&data[..data.len().min(MAX_TEXT_BYTES)]).trim().to_owned()
}

/// The part of ktransfer's `ahead` node that says which log the stored offset belongs to.
#[derive(Deserialize)]
struct AheadNode {
    offset: i64,
    topic_id: Option<String>,
}

/// Returns the id of the topic that `stored` belongs to, if the node was written together with it.
fn topic_id(data: &[u8], stored: &Stored) -> Option<TopicId> {
    let node: AheadNode = serde_json::from_slice(data).ok()?;
    let text = node.topic_id.filter(|text| *stored == Stored::Offset(node.offset) && text.len() == 32)?;
    let mut id = TopicId::default();
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
pub(crate) mod tests;
