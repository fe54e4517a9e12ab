//! The result of reading the stored offsets of a module, from either source.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{PartitionId, TopicId};

use super::facts::{Owner, Source, Stored};
use super::pauses::Pauses;

/// A module: a consumer group, as one source of stored offsets knows it. The same name in two sources is two modules
/// here; `places` decides which of them counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ModuleKey {
    /// Name of the group.
    pub name: Arc<str>,
    /// Where its offsets are stored.
    pub source: Source,
}

/// A module as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModuleReading {
    /// The topics for which the module has stored offsets or owners.
    pub topics: BTreeMap<Arc<str>, TopicReading>,
    /// Number of live members; `None` if unknown.
    pub members: Option<u32>,
    /// What is denied, if the topics of the module cannot be listed.
    pub refused: Option<Arc<str>>,
}

/// A topic of a module as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TopicReading {
    /// The partitions with a node, or a committed offset, or an owner.
    pub places: BTreeMap<PartitionId, PlaceReading>,
    /// The owner of the partitions without an entry in `places`.
    pub other_owner: Option<Owner>,
    /// What is denied, if the partitions of the topic cannot be listed.
    pub refused: Option<Arc<str>>,
    /// What operators have paused; `None` if that was not read.
    pub pauses: Option<Pauses>,
}

/// A partition of a module as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlaceReading {
    /// The stored offset.
    pub stored: Stored,
    /// Milliseconds since 1970 of the last write; `None` if unknown.
    pub written_ms: Option<i64>,
    /// Milliseconds since 1970 when the node was created; `None` if unknown.
    pub created_ms: Option<i64>,
    /// Who owns the partition; for `Nobody` without a duration.
    pub owner: Owner,
    /// Id of the topic that the stored offset belongs to; `None` if unknown or not read.
    pub topic_id: Option<TopicId>,
}

impl PlaceReading {
    /// The reading of a partition without a stored offset.
    pub(super) fn nothing(owner: Owner) -> Self {
        PlaceReading { stored: Stored::Nothing, written_ms: None, created_ms: None, owner, topic_id: None }
    }
}
