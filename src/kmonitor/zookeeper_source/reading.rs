//! A reading in progress: the modules so far, and the nodes that are still to be read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::broker::PartitionId;
use crate::keeper::{KeeperError, paths};
use crate::kmonitor::facts::Owner;
use crate::kmonitor::readings::ModuleReading;

use super::listings::Owners;

/// The module that is wanted.
#[derive(Clone, Debug)]
pub(in crate::kmonitor) struct WantedModule {
    /// Name of the group.
    pub name: Arc<str>,
    /// Whether to read also which log the offsets belong to. It is needed once: what changes later is seen.
    pub with_topic_ids: bool,
    /// Whether to read also what operators have paused. It is needed where nothing moves.
    pub with_pauses: bool,
}

/// Modules that are being read, in steps.
pub(in crate::kmonitor) struct Reading {
    pub(super) wanted: Vec<WantedModule>,
    pub(super) modules: Vec<ModuleProgress>,
    pub(super) queue: VecDeque<Item>,
}

/// A node to read.
pub(super) struct Item {
    /// Index of the module.
    pub(super) module: usize,
    pub(super) kind: ItemKind,
    pub(super) path: String,
}

pub(super) enum ItemKind {
    /// The node itself: it says when its children changed last.
    Folder(Folder),
    /// The names of its children, which changed last with this id.
    Listing(Folder, i64),
    /// The node of a partition.
    Leaf(Leaf, Arc<str>, PartitionId),
}

/// A node with children.
#[derive(Clone)]
pub(super) enum Folder {
    /// The topics with offsets.
    Offsets,
    /// The topics with owners.
    Owners,
    /// The members.
    Ids,
    /// The partitions of a topic that have offsets.
    TopicOffsets(Arc<str>),
    /// The partitions of a topic that have owners.
    TopicOwners(Arc<str>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    Offset,
    Owner,
    Ahead,
    /// What is paused of the topic; the number of the partition means nothing.
    Paused,
}

/// The children of a node of a module.
#[derive(Clone)]
pub(super) enum Children<T> {
    Absent,
    Refused,
    Known(T),
}

/// The module so far.
#[derive(Default)]
pub(super) struct ModuleProgress {
    /// Why it cannot be read. Nothing more is read then.
    pub(super) failure: Option<KeeperError>,
    pub(super) offsets: Option<Children<Arc<Vec<Arc<str>>>>>,
    pub(super) owners: Option<Children<Arc<Vec<Arc<str>>>>>,
    pub(super) ids: Option<Children<u32>>,
    /// `None` while it is not known whether there is a module.
    pub(super) reading: Option<ModuleReading>,
    /// What is denied, if the topics cannot be listed.
    pub(super) refused: Option<Arc<str>>,
    /// Owners of topics as far as they were read.
    pub(super) read_owners: BTreeMap<Arc<str>, ReadOwners>,
}

/// The owners of a topic as far as they were read.
pub(super) struct ReadOwners {
    pub(super) path: String,
    pub(super) changed: i64,
    /// Number of nodes to read.
    pub(super) count: usize,
    pub(super) owners: Owners,
}

impl Reading {
    /// Prepares the reading of `wanted`.
    pub(in crate::kmonitor) fn new(wanted: Vec<WantedModule>) -> Self {
        let mut queue = VecDeque::new();
        for (module, WantedModule { name, .. }) in wanted.iter().enumerate() {
            let item = |folder, path| Item { module, kind: ItemKind::Folder(folder), path };
            queue.push_back(item(Folder::Offsets, paths::offset_topics(name)));
            queue.push_back(item(Folder::Owners, paths::owner_topics(name)));
            queue.push_back(item(Folder::Ids, paths::group_ids(name)));
        }
        let modules = wanted.iter().map(|_| ModuleProgress::default()).collect();
        Reading { wanted, modules, queue }
    }

    /// Whether all is read.
    pub(in crate::kmonitor) fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns the modules, in the order in which they were wanted. `None` for a group without stored offsets, owners
    /// and members.
    pub(in crate::kmonitor) fn finish(self) -> Vec<Result<Option<ModuleReading>, KeeperError>> {
        let finish = |ModuleProgress { failure, reading, refused, .. }| {
            failure.map_or(Ok(reading.map(|reading| ModuleReading { refused, ..reading })), Err)
        };
        self.modules.into_iter().map(finish).collect()
    }

    /// Takes items of modules that have not failed, until they cost `max` reads of a node. `listing_cost`: what the
    /// names of children cost.
    pub(super) fn take(&mut self, max: u64, listing_cost: u64) -> Vec<Item> {
        let mut items = Vec::new();
        let mut cost = 0;
        while cost < max
            && let Some(item) = self.queue.pop_front()
        {
            if self.modules[item.module].failure.is_none() {
                cost += if matches!(item.kind, ItemKind::Listing(..)) { listing_cost } else { 1 };
                items.push(item);
            }
        }
        items
    }

    /// Begins with the topics of a module of which it is known now which it has.
    pub(super) fn open_topics(&mut self, index: usize) {
        let module = &mut self.modules[index];
        let (Some(offsets), Some(owners), Some(ids), None) =
            (&module.offsets, &module.owners, &module.ids, &module.reading)
        else {
            return;
        };
        // A member registers before it owns a partition.
        let registers = !matches!((owners, ids), (Children::Absent, Children::Absent));
        let members = match ids {
            Children::Known(count) => Some(*count),
            Children::Absent if registers => Some(0),
            Children::Absent | Children::Refused => None,
        };
        let mut topics: BTreeMap<Arc<str>, (bool, bool)> = BTreeMap::new();
        if let Children::Known(names) = offsets {
            names.iter().for_each(|name| topics.entry(Arc::clone(name)).or_default().0 = true);
        }
        if let Children::Known(names) = owners {
            names.iter().for_each(|name| topics.entry(Arc::clone(name)).or_default().1 = true);
        }
        // With members it is a module that is about to own something, or cannot.
        if matches!(offsets, Children::Absent) && topics.is_empty() && members.is_none_or(|count| count == 0) {
            return;
        }
        let other_owner = match owners {
            Children::Refused => Owner::Unknown,
            _ if registers => nobody(),
            _ => Owner::Unsupported,
        };
        let reading = module.reading.insert(ModuleReading { members, ..ModuleReading::default() });
        let WantedModule { name, with_pauses, .. } = &self.wanted[index];
        for (topic, (has_offsets, has_owners)) in topics {
            reading.topics.entry(Arc::clone(&topic)).or_default().other_owner = Some(other_owner.clone());
            let item = |folder, path| Item { module: index, kind: ItemKind::Folder(folder), path };
            if *with_pauses {
                let kind = ItemKind::Leaf(Leaf::Paused, Arc::clone(&topic), 0);
                self.queue.push_back(Item { module: index, kind, path: paths::paused(name, &topic) });
            }
            // The owners come first: an offset without an owner gets that of the others.
            if has_owners {
                let path = paths::owners(name, &topic);
                self.queue.push_back(item(Folder::TopicOwners(Arc::clone(&topic)), path));
            }
            if has_offsets {
                let path = paths::offsets(name, &topic);
                self.queue.push_back(item(Folder::TopicOffsets(topic), path));
            }
        }
    }
}

pub(super) fn nobody() -> Owner {
    Owner::Nobody { since: None }
}
