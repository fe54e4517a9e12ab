//! Which positions of the command [`StoreNow`](super::GroupCommand::StoreNow) are stored: the group records them, and
//! the dispatcher waits for them if it must not continue before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::Generation;
use super::mailbox::DoneAhead;
use crate::broker::{Offset, PartitionId};
use crate::locks::lock;

/// The latest stored position of each partition. Clones share the table; the partitions of the topic bound it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreReceipts {
    stored: Arc<Mutex<BTreeMap<PartitionId, (Generation, Offset)>>>,
}

impl StoreReceipts {
    /// Notes that the position of a `StoreNow`, or a later commit of the same claim, is stored.
    pub(crate) fn note(&self, partition: PartitionId, generation: Generation, next: Offset) {
        lock(&self.stored).insert(partition, (generation, next));
    }

    /// Notes a store of an offset with the messages done ahead of it. If there are any, it is not a position of
    /// `StoreNow`, but a store before it with the same offset.
    pub(super) fn note_store(&self, partition: PartitionId, generation: Generation, next: Offset, ahead: &DoneAhead) {
        if ahead.ranges.is_empty() {
            self.note(partition, generation, next);
        }
    }

    /// Removes the receipt of a partition, before a `StoreNow` whose receipt is to be waited for.
    pub(crate) fn forget(&self, partition: PartitionId) {
        lock(&self.stored).remove(&partition);
    }

    /// Whether this position is stored.
    pub(crate) fn has(&self, partition: PartitionId, generation: Generation, next: Offset) -> bool {
        lock(&self.stored).get(&partition) == Some(&(generation, next))
    }
}
