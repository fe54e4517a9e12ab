//! Which partitions of a module operators have paused.
//!
//! The pauses belong to the consumer group: they are stored with it, so that every instance follows them, also after a
//! hand-over or a restart. [`PauseTable`] is what this process knows of them. While the stored pauses were never read,
//! or cannot be read, a partition that is claimed counts as paused: pushing it could be against an operator's will.

mod node;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::broker::PartitionId;
use crate::locks::lock;
pub(super) use node::PauseNode;

/// Who paused, and when.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct PauseMark {
    /// Name of the operator's credential.
    pub(super) by: String,
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
}

/// The pauses of one module.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Pauses {
    /// The pause of the whole module, also of partitions that are added later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) module: Option<PauseMark>,
    /// The pauses of single partitions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) partitions: BTreeMap<PartitionId, PauseMark>,
}

/// A change of the pauses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PauseChange {
    /// Pauses a partition, or the whole module.
    Pause(Option<PartitionId>, PauseMark),
    /// Resumes a partition, or the whole module with all its partitions.
    Resume(Option<PartitionId>),
}

impl Pauses {
    /// Returns the pause that holds `partition`.
    pub(super) fn of(&self, partition: PartitionId) -> Option<&PauseMark> {
        self.module.as_ref().or_else(|| self.partitions.get(&partition))
    }

    /// Makes a change. A pause that exists keeps its mark.
    pub(super) fn apply(&mut self, change: &PauseChange) {
        match change {
            PauseChange::Pause(None, mark) => drop(self.module.get_or_insert_with(|| mark.clone())),
            PauseChange::Pause(Some(partition), mark) => {
                self.partitions.entry(*partition).or_insert_with(|| mark.clone());
            }
            PauseChange::Resume(None) => *self = Pauses::default(),
            PauseChange::Resume(Some(partition)) => drop(self.partitions.remove(partition)),
        }
    }
}

/// Why the stored pauses could not be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PauseStoreError {
    /// Nothing was changed.
    NotStored(String),
    /// Whether the change was stored is unknown.
    Unknown(String),
}

/// Where the pauses of a module are stored.
pub(super) trait PauseStore: Send + Sync {
    /// Reads the pauses. The error is a reason for the log.
    fn read(&self) -> Result<Pauses, String>;

    /// Makes a change, and returns the pauses after it.
    fn change(&self, change: &PauseChange) -> Result<Pauses, PauseStoreError>;
}

/// The pauses of one module as this process knows them. Clones share them.
#[derive(Clone)]
pub(crate) struct PauseTable {
    store: Option<Arc<dyn PauseStore>>,
    known: Arc<Mutex<KnownPauses>>,
}

struct KnownPauses {
    pauses: Pauses,
    /// Whether `pauses` are those of the latest read, which succeeded.
    is_current: bool,
    /// Number of changes so far.
    changes: u64,
}

/// Without a store, the pauses are those of this process alone.
impl Default for PauseTable {
    fn default() -> Self {
        Self::with_store(None)
    }
}

impl PauseTable {
    /// The pauses in `store`, which were not read yet.
    pub(super) fn stored_in(store: impl PauseStore + 'static) -> PauseTable {
        Self::with_store(Some(Arc::new(store)))
    }

    fn with_store(store: Option<Arc<dyn PauseStore>>) -> PauseTable {
        let is_current = store.is_none();
        let known = KnownPauses { pauses: Pauses::default(), is_current, changes: 0 };
        PauseTable { store, known: Arc::new(Mutex::new(known)) }
    }

    /// Reads the stored pauses. The group calls it at intervals, and after each claim: from then on a partition is
    /// pushed only if it was not paused at that time.
    pub(super) fn refresh(&self) -> Result<(), String> {
        let Some(store) = &self.store else { return Ok(()) };
        match store.read() {
            Ok(pauses) => {
                self.set(pauses);
                Ok(())
            }
            Err(reason) => {
                lock(&self.known).is_current = false;
                Err(reason)
            }
        }
    }

    /// Stores a change.
    pub(super) fn change(&self, change: &PauseChange) -> Result<(), PauseStoreError> {
        let pauses = match &self.store {
            Some(store) => store.change(change)?,
            None => {
                let mut pauses = self.present();
                pauses.apply(change);
                pauses
            }
        };
        self.set(pauses);
        Ok(())
    }

    fn set(&self, pauses: Pauses) {
        let mut known = lock(&self.known);
        if known.pauses != pauses || !known.is_current {
            known.changes += 1;
        }
        (known.pauses, known.is_current) = (pauses, true);
    }

    /// Returns the pauses that are known.
    pub(super) fn present(&self) -> Pauses {
        lock(&self.known).pauses.clone()
    }

    /// Returns a number that grows with each change.
    pub(super) fn changes(&self) -> u64 {
        lock(&self.known).changes
    }

    /// Whether `partition` is paused, as far as is known.
    pub(super) fn is_paused(&self, partition: PartitionId) -> bool {
        lock(&self.known).pauses.of(partition).is_some()
    }

    /// Whether a partition that was claimed just now must not be pushed: it is paused, or the stored pauses are not
    /// known.
    pub(super) fn holds_new_claim(&self, partition: PartitionId) -> bool {
        let known = lock(&self.known);
        !known.is_current || known.pauses.of(partition).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(by: &str) -> PauseMark {
        PauseMark { by: by.to_owned(), at_ms: 7 }
    }

    #[test]
    fn a_pause_of_the_module_holds_every_partition_and_a_resume_of_it_ends_all_pauses() {
        let mut pauses = Pauses::default();
        pauses.apply(&PauseChange::Pause(Some(3), mark("ann")));
        pauses.apply(&PauseChange::Pause(Some(3), mark("bob")));
        assert_eq!((pauses.of(3), pauses.of(4)), (Some(&mark("ann")), None));
        pauses.apply(&PauseChange::Pause(None, mark("bob")));
        assert_eq!(pauses.of(4), Some(&mark("bob")));
        pauses.apply(&PauseChange::Resume(Some(3)));
        assert_eq!(pauses.of(3), Some(&mark("bob")), "the module is still paused");
        pauses.apply(&PauseChange::Resume(None));
        assert_eq!(pauses, Pauses::default());
    }

    struct Unreadable;

    impl PauseStore for Unreadable {
        fn read(&self) -> Result<Pauses, String> {
            Err("no answer".to_owned())
        }

        fn change(&self, _: &PauseChange) -> Result<Pauses, PauseStoreError> {
            Ok(Pauses::default())
        }
    }

    #[test]
    fn a_new_claim_is_held_while_the_stored_pauses_are_unknown() {
        let table = PauseTable::stored_in(Unreadable);
        assert!(table.holds_new_claim(0) && !table.is_paused(0));
        assert!(table.refresh().is_err() && table.holds_new_claim(0));
        let before = table.changes();
        table.change(&PauseChange::Resume(None)).unwrap();
        assert!(!table.holds_new_claim(0) && before < table.changes());
        assert!(!PauseTable::default().holds_new_claim(0));
    }
}
