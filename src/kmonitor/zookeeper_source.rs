//! Reads modules from ZooKeeper: `/consumers/MODULE/offsets/TOPIC/PARTITION`, and who owns the partitions.
//!
//! Several modules are read together, in a few rounds of requests that are in flight at the same time: which topics they
//! have, which partitions, and then the nodes. A node that is deleted in the meantime is left out; a node that may not be
//! read is known as refused, and hides no other node.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::broker::{PartitionId, TOPIC_NAME_RULE, TopicId, is_topic_name};
use crate::keeper::{Keeper, KeeperError, Node, paths};

use super::facts::{Owner, Stored};
use super::names::{LoggedOnce, NameInterner};
use super::readings::{ModuleReading, PlaceReading};

/// Longest text of a node that is kept: the name of an owner, or a stored text that is not an offset.
const MAX_TEXT_BYTES: usize = 200;

/// Reads modules from the ZooKeeper of one cluster.
pub(super) struct ZookeeperSource<'a> {
    /// The client.
    pub keeper: &'a dyn Keeper,
    /// The names of topics.
    pub names: &'a mut NameInterner,
    /// The lines about nodes that are skipped.
    pub logged: &'a mut LoggedOnce,
    /// Number of requests sent so far.
    pub request_count: u64,
}

/// The module that is wanted.
#[derive(Clone, Debug)]
pub(super) struct WantedModule {
    /// Name of the group.
    pub name: Arc<str>,
    /// Whether to read also which log the offsets belong to. It is needed once: what changes later is seen.
    pub with_topic_ids: bool,
}

/// One topic of a module, with the partitions that have nodes.
struct Folder {
    module: usize,
    topic: Arc<str>,
    has_offsets: bool,
    has_owners: bool,
}

/// A node of a partition to read.
struct Leaf {
    module: usize,
    topic: Arc<str>,
    partition: PartitionId,
    kind: LeafKind,
    path: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LeafKind {
    Offset,
    Owner,
    Ahead,
}

/// The module so far; an error ends the reading of this module alone.
type Progress = Result<Option<ModuleReading>, KeeperError>;

impl ZookeeperSource<'_> {
    /// Returns the names of all groups; none if `/consumers` does not exist.
    pub(super) fn group_names(&mut self) -> Result<Vec<String>, KeeperError> {
        self.request_count += 1;
        Ok(existing(self.keeper.children(paths::CONSUMERS))?.unwrap_or_default())
    }

    /// Reads modules, in the order of `wanted`. `None` for a group without stored offsets and without owners. A read
    /// without a response costs the modules that had not been read completely.
    pub(super) fn modules(&mut self, wanted: &[WantedModule]) -> Vec<Result<Option<ModuleReading>, KeeperError>> {
        let mut modules: Vec<Progress> = wanted.iter().map(|_| Ok(None)).collect();
        let (folders, registers) = self.folders(wanted, &mut modules);
        let leaves = self.leaves(wanted, &folders, &registers, &mut modules);
        let nodes = self.read(&leaves);
        for (leaf, node) in leaves.iter().zip(nodes) {
            let module = &mut modules[leaf.module];
            let Ok(Some(reading)) = module else { continue };
            if let Err(failure) = self.record(reading, leaf, node, registers[leaf.module]) {
                *module = Err(failure);
            }
        }
        modules
    }

    /// Lists the topics of the modules. Returns also which modules register their owners.
    fn folders(&mut self, wanted: &[WantedModule], modules: &mut [Progress]) -> (Vec<Folder>, Vec<bool>) {
        let of = |path: fn(&str) -> String| wanted.iter().map(|module| path(&module.name)).collect::<Vec<_>>();
        let offsets = self.children_all(&of(paths::offset_topics));
        let owners = self.children_all(&of(paths::owner_topics));
        let ids = self.children_all(&of(paths::group_ids));
        let (mut folders, mut registers) = (Vec::new(), Vec::new());
        for (index, ((offsets, owners), ids)) in offsets.into_iter().zip(owners).zip(ids).enumerate() {
            match self.one_module(index, offsets, owners, ids, &mut folders) {
                Ok((reading, registers_owners)) => {
                    modules[index] = Ok(reading);
                    registers.push(registers_owners);
                }
                Err(failure) => {
                    modules[index] = Err(failure);
                    registers.push(false);
                }
            }
        }
        (folders, registers)
    }

    fn one_module(
        &mut self,
        index: usize,
        offsets: Result<Vec<String>, KeeperError>,
        owners: Result<Vec<String>, KeeperError>,
        ids: Result<Vec<String>, KeeperError>,
        folders: &mut Vec<Folder>,
    ) -> Result<(Option<ModuleReading>, bool), KeeperError> {
        let mut reading = ModuleReading::default();
        let offsets = match existing(offsets) {
            Err(denied @ KeeperError::NoAuth(_)) => {
                reading.refused = Some(self.refused(&denied));
                Some(Vec::new())
            }
            listed => listed?,
        };
        let owners = allowed(existing(owners))?;
        let ids = allowed(existing(ids))?;
        // A member registers before it owns a partition.
        let registers = ids.is_some() || owners.is_some();
        reading.members = registers.then(|| ids.map_or(0, |ids| u32::try_from(ids.len()).unwrap_or(u32::MAX)));
        let owners = owners.unwrap_or_default();
        if offsets.is_none() && owners.is_empty() {
            return Ok((None, registers));
        }
        let mut topics: BTreeMap<String, (bool, bool)> = BTreeMap::new();
        offsets.into_iter().flatten().for_each(|topic| topics.entry(topic).or_default().0 = true);
        owners.into_iter().for_each(|topic| topics.entry(topic).or_default().1 = true);
        for (topic, (has_offsets, has_owners)) in topics {
            if !is_topic_name(topic.as_bytes()) {
                let shown: String = topic.chars().take(MAX_TEXT_BYTES).collect();
                self.logged.warn(format!("topic {shown:?} of a group is skipped: a topic has {TOPIC_NAME_RULE}"));
                continue;
            }
            let topic = self.names.intern(&topic);
            folders.push(Folder { module: index, topic, has_offsets, has_owners });
        }
        Ok((Some(reading), registers))
    }

    /// Lists the partitions of the topics, and returns their nodes.
    fn leaves(
        &mut self,
        wanted: &[WantedModule],
        folders: &[Folder],
        registers: &[bool],
        modules: &mut [Progress],
    ) -> Vec<Leaf> {
        let mut listings = Vec::new();
        for folder in folders {
            let module = &wanted[folder.module];
            if folder.has_offsets {
                listings.push((folder, LeafKind::Offset, paths::offsets(&module.name, &folder.topic)));
            }
            if folder.has_owners {
                listings.push((folder, LeafKind::Owner, paths::owners(&module.name, &folder.topic)));
            }
        }
        let folder_paths: Vec<String> = listings.iter().map(|(_, _, path)| path.clone()).collect();
        let mut leaves = Vec::new();
        for ((folder, kind, path), names) in listings.iter().zip(self.children_all(&folder_paths)) {
            let Ok(Some(reading)) = &mut modules[folder.module] else { continue };
            let topic = reading.topics.entry(Arc::clone(&folder.topic)).or_default();
            topic.other_owner = Some(if registers[folder.module] { nobody() } else { Owner::Unsupported });
            let names = match existing(names) {
                Err(denied @ KeeperError::NoAuth(_)) if *kind == LeafKind::Offset => {
                    topic.refused = Some(self.refused(&denied));
                    continue;
                }
                Err(KeeperError::NoAuth(_)) => {
                    topic.other_owner = Some(Owner::Unknown);
                    continue;
                }
                Err(failure) => {
                    modules[folder.module] = Err(failure);
                    continue;
                }
                Ok(names) => names.unwrap_or_default(),
            };
            for name in names {
                // A name such as 007 is not that of the node which ktransfer reads and writes.
                let partition = paths::parse_partition(&name).filter(|number| number.to_string() == name);
                let Some(partition) = partition else {
                    self.logged.warn(format!("{path}/{name} is skipped: its name is not a partition number"));
                    continue;
                };
                let leaf = |kind, path| {
                    let topic = Arc::clone(&folder.topic);
                    Leaf { module: folder.module, topic, partition, kind, path }
                };
                leaves.push(leaf(*kind, format!("{path}/{name}")));
                let module = &wanted[folder.module];
                if *kind == LeafKind::Offset && module.with_topic_ids {
                    leaves.push(leaf(LeafKind::Ahead, paths::ahead(&module.name, &folder.topic, partition)));
                }
            }
        }
        leaves
    }

    fn read(&mut self, leaves: &[Leaf]) -> Vec<Result<Option<Node>, KeeperError>> {
        let nodes: Vec<String> = leaves.iter().map(|leaf| leaf.path.clone()).collect();
        self.request_count += nodes.len() as u64;
        self.keeper.read_all(&nodes)
    }

    /// Enters a node into the reading of its module.
    fn record(
        &mut self,
        module: &mut ModuleReading,
        leaf: &Leaf,
        node: Result<Option<Node>, KeeperError>,
        registers: bool,
    ) -> Result<(), KeeperError> {
        let topic = module.topics.entry(Arc::clone(&leaf.topic)).or_default();
        let no_owner = if registers { nobody() } else { Owner::Unsupported };
        let place = || PlaceReading::nothing(no_owner);
        match (leaf.kind, node) {
            (LeafKind::Offset, Ok(Some(node))) => {
                let place = topic.places.entry(leaf.partition).or_insert_with(place);
                place.stored = self.stored(&leaf.path, &node);
                place.written_ms = Some(node.modified_ms).filter(|time| 0 < *time);
                place.created_ms = Some(node.created_ms).filter(|time| 0 < *time);
            }
            (LeafKind::Offset, Err(denied @ KeeperError::NoAuth(_))) => {
                topic.places.entry(leaf.partition).or_insert_with(place).stored =
                    Stored::Refused(self.refused(&denied));
            }
            (LeafKind::Owner, Ok(Some(node))) => {
                topic.places.entry(leaf.partition).or_insert_with(place).owner = Owner::Named(text_of(&node.data));
            }
            (LeafKind::Owner, Err(KeeperError::NoAuth(_))) => {
                topic.places.entry(leaf.partition).or_insert_with(place).owner = Owner::Unknown;
            }
            (LeafKind::Ahead, Ok(Some(node))) => {
                if let Some(place) = topic.places.get_mut(&leaf.partition) {
                    place.topic_id = topic_id(&node.data, &place.stored);
                }
            }
            // Deleted meanwhile, or not needed.
            (_, Ok(None)) | (LeafKind::Ahead, Err(KeeperError::NoAuth(_))) => {}
            (_, Err(failure)) => return Err(failure),
        }
        Ok(())
    }

    fn stored(&mut self, path: &str, node: &Node) -> Stored {
        match paths::parse_offset(&node.data) {
            Ok(Some(offset)) => Stored::Offset(offset),
            Ok(None) => Stored::Nothing,
            Err(bad) => {
                self.logged.warn(format!("{path}: {bad}; its delay is unknown"));
                Stored::Unreadable(text_of(&node.data))
            }
        }
    }

    fn refused(&mut self, denied: &KeeperError) -> Arc<str> {
        self.logged.warn(format!("{denied}; the delays that need it are unknown"));
        denied.to_string().into()
    }

    fn children_all(&mut self, nodes: &[String]) -> Vec<Result<Vec<String>, KeeperError>> {
        self.request_count += nodes.len() as u64;
        self.keeper.children_all(nodes)
    }
}

fn nobody() -> Owner {
    Owner::Nobody { since: None }
}

/// Turns the error for a node that does not exist into `None`.
fn existing<T>(outcome: Result<T, KeeperError>) -> Result<Option<T>, KeeperError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(KeeperError::NoNode(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Takes a node that may not be read for one that does not exist.
fn allowed<T>(outcome: Result<Option<T>, KeeperError>) -> Result<Option<T>, KeeperError> {
    match outcome {
        Err(KeeperError::NoAuth(_)) => Ok(None),
        other => other,
    }
}

fn text_of(data: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(&data[..data.len().min(MAX_TEXT_BYTES)]).trim().into()
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
