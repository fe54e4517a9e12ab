//! The pauses of a module, and the changes that operators make.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::broker::PartitionId;

/// Who paused, and when.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::ktransfer) struct PauseMark {
    /// Name of the operator's credential.
    pub(in crate::ktransfer) by: String,
    /// Milliseconds since 1970.
    pub(in crate::ktransfer) at_ms: u64,
}

/// The pauses of one module.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::ktransfer) struct Pauses {
    /// The pause of the whole module, also of partitions that are added later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::ktransfer) module: Option<PauseMark>,
    /// The pauses of single partitions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::ktransfer) partitions: BTreeMap<PartitionId, PauseMark>,
}

/// A change of the pauses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ktransfer) enum PauseChange {
    /// Pauses a partition, or the whole module.
    Pause(Option<PartitionId>, PauseMark),
    /// Resumes a partition, or the whole module with all its partitions.
    Resume(Option<PartitionId>),
}

impl Pauses {
    /// Whether both have the same pauses; their marks may differ.
    pub(in crate::ktransfer) fn is_alike(&self, other: &Pauses) -> bool {
        self.module.is_some() == other.module.is_some() && self.partitions.keys().eq(other.partitions.keys())
    }

    /// Returns the pause that holds `partition`.
    pub(in crate::ktransfer) fn of(&self, partition: PartitionId) -> Option<&PauseMark> {
        self.module.as_ref().or_else(|| self.partitions.get(&partition))
    }

    /// Makes a change. A pause that exists keeps its mark. Fails, and changes nothing, if the change would have no
    /// effect because the whole module is paused.
    pub(in crate::ktransfer) fn apply(&mut self, change: &PauseChange) -> Result<(), ModulePaused> {
        match change {
            PauseChange::Pause(None, mark) => drop(self.module.get_or_insert_with(|| mark.clone())),
            PauseChange::Pause(Some(partition), mark) => {
                self.partitions.entry(*partition).or_insert_with(|| mark.clone());
            }
            PauseChange::Resume(None) => *self = Pauses::default(),
            PauseChange::Resume(Some(_)) if self.module.is_some() => return Err(ModulePaused),
            PauseChange::Resume(Some(partition)) => drop(self.partitions.remove(partition)),
        }
        Ok(())
    }
}

/// A single partition cannot be resumed while the whole module is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ktransfer) struct ModulePaused;

/// Why the stored pauses could not be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ktransfer) enum PauseStoreError {
    /// Nothing was changed.
    NotStored(String),
    /// Nothing was changed, because the whole module is paused: it was when the change was to be stored.
    ModulePaused,
    /// Whether the change was stored is unknown.
    Unknown(String),
}

impl From<ModulePaused> for PauseStoreError {
    fn from(ModulePaused: ModulePaused) -> Self {
        PauseStoreError::ModulePaused
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
        pauses.apply(&PauseChange::Pause(Some(3), mark("ann"))).unwrap();
        pauses.apply(&PauseChange::Pause(Some(3), mark("bob"))).unwrap();
        assert_eq!((pauses.of(3), pauses.of(4)), (Some(&mark("ann")), None));
        pauses.apply(&PauseChange::Pause(None, mark("bob"))).unwrap();
        assert_eq!(pauses.of(4), Some(&mark("bob")));
        assert_eq!(pauses.apply(&PauseChange::Resume(Some(3))), Err(ModulePaused));
        assert_eq!(pauses.partitions.len(), 1, "nothing was changed");
        pauses.apply(&PauseChange::Resume(None)).unwrap();
        assert_eq!(pauses, Pauses::default());
    }
}
