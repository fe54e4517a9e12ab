//! Which partitions of a module operators have paused.
//!
//! The pauses belong to the consumer group: they are stored with it, so that every instance follows them, also after a
//! hand-over or a restart. [`PauseTable`] has the pauses that this process knows. If the stored pauses were never read,
//! or cannot be read, a newly claimed partition counts as paused, since an operator may have paused it.
//!
//! Two threads use the store: the group reads it at intervals, and `operations` changes it. Invariant: the table never
//! takes an older state. A result is taken only if no other one was taken since its call began. Otherwise the two calls
//! overlapped and it is not known which result is newer, so the pauses are read again. For a group in Kafka one thread
//! does both, the loop of the group (`by_group`).

mod by_group;
mod node;
mod pause;

use std::sync::{Arc, Mutex};

use crossbeam_channel::Receiver;

use crate::broker::PartitionId;
use crate::locks::lock;
use by_group::GroupRequests;
pub(crate) use by_group::PauseRequest;
pub(super) use node::{PauseNode, read_node, write_node};
pub(super) use pause::{ModulePaused, PauseChange, PauseMark, PauseStoreError, Pauses};

/// Where the pauses of a module are stored.
pub(super) trait PauseStore: Send + Sync {
    /// Reads the pauses. The error is a reason for the log.
    fn read(&self) -> Result<Pauses, String>;

    /// Makes a change, and returns the pauses after it.
    fn change(&self, change: &PauseChange) -> Result<Pauses, PauseStoreError>;
}

/// Limit on the reads of one refresh, where each overlaps with a change.
const MAX_READS: usize = 5;

/// The pauses of one module as this process knows them. Clones share them.
#[derive(Clone)]
pub(crate) struct PauseTable {
    store: Option<Arc<dyn PauseStore>>,
    /// Where the loop of the group stores changes, instead of `store`.
    by_group: Option<GroupRequests>,
    known: Arc<Mutex<KnownPauses>>,
}

struct KnownPauses {
    pauses: Pauses,
    /// Whether `pauses` are those of the latest read, which succeeded.
    is_current: bool,
    /// Number of changes so far.
    changes: u64,
    /// Number of results of the store that were taken so far.
    n_taken: u64,
}

impl KnownPauses {
    fn set(&mut self, pauses: Pauses) {
        if self.pauses != pauses || !self.is_current {
            self.changes += 1;
        }
        (self.pauses, self.is_current) = (pauses, true);
        self.n_taken += 1;
    }
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

    /// The pauses that the loop of a group reads and stores; they were not read yet.
    pub(super) fn stored_by_group() -> PauseTable {
        let table = PauseTable { by_group: Some(GroupRequests::new()), ..Self::default() };
        lock(&table.known).is_current = false;
        table
    }

    fn with_store(store: Option<Arc<dyn PauseStore>>) -> PauseTable {
        let is_current = store.is_none();
        let known = KnownPauses { pauses: Pauses::default(), is_current, changes: 0, n_taken: 0 };
        PauseTable { store, by_group: None, known: Arc::new(Mutex::new(known)) }
    }

    /// Returns the changes that the loop of the group is to store; `None` if it does not store them.
    pub(super) fn requests(&self) -> Option<&Receiver<PauseRequest>> {
        self.by_group.as_ref().map(|requests| &requests.receiver)
    }

    /// Takes the pauses that are stored. For the loop of the group, if it stores them.
    pub(super) fn set_stored(&self, pauses: Pauses) {
        lock(&self.known).set(pauses);
    }

    /// Reads the stored pauses. The group calls it at intervals, and after each claim: from then on a partition is
    /// pushed only if it was not paused at that time.
    pub(super) fn refresh(&self) -> Result<(), String> {
        let Some(store) = &self.store else { return Ok(()) };
        for _ in 0..MAX_READS {
            let n_taken = self.n_taken();
            let pauses = store.read().map_err(|reason| self.not_current(reason))?;
            if self.take(pauses, n_taken) {
                return Ok(());
            }
        }
        Err(self.not_current("the pauses were changed during each of several reads".to_owned()))
    }

    fn not_current(&self, reason: String) -> String {
        lock(&self.known).is_current = false;
        reason
    }

    /// Stores a change. From then on the table has it, until another change is stored.
    pub(super) fn change(&self, change: &PauseChange) -> Result<(), PauseStoreError> {
        if let Some(requests) = &self.by_group {
            return requests.change(change);
        }
        let Some(store) = &self.store else {
            let mut known = lock(&self.known);
            let mut pauses = known.pauses.clone();
            pauses.apply(change)?;
            known.set(pauses);
            return Ok(());
        };
        let n_taken = self.n_taken();
        let pauses = store.change(change)?;
        if !self.take(pauses, n_taken) && self.refresh().is_err() {
            // The change is stored. A module that is paused now was paused by another instance, and stays so.
            let mut known = lock(&self.known);
            let mut pauses = known.pauses.clone();
            let _ = pauses.apply(change);
            known.set(pauses);
            known.is_current = false;
        }
        Ok(())
    }

    /// As [`change`](Self::change), by the loop of a group, which may try it for `max_store`.
    #[cfg(test)]
    pub(super) fn change_within(
        &self,
        change: &PauseChange,
        max_store: std::time::Duration,
    ) -> Result<(), PauseStoreError> {
        self.by_group.as_ref().expect("stored by a group").change_within(change, max_store)
    }

    /// Returns what [`change`](Self::change) would return, and changes nothing.
    pub(super) fn check(&self, change: &PauseChange) -> Result<(), PauseStoreError> {
        if let Some(requests) = &self.by_group {
            return requests.check(change);
        }
        let mut pauses = match &self.store {
            Some(store) => store.read().map_err(PauseStoreError::NotStored)?,
            None => self.present(),
        };
        Ok(pauses.apply(change)?)
    }

    fn n_taken(&self) -> u64 {
        lock(&self.known).n_taken
    }

    /// Takes the result of a call of the store that began when `n_taken` results were taken. Returns false, and takes
    /// nothing, if another one was taken since.
    fn take(&self, pauses: Pauses, n_taken: u64) -> bool {
        let mut known = lock(&self.known);
        let is_newest = known.n_taken == n_taken;
        if is_newest {
            known.set(pauses);
        }
        is_newest
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

    /// What happens at the store in the middle of a call: after a read, and before its result is returned.
    type Between = Box<dyn FnOnce(&ScriptedStore) + Send>;

    /// A store with a script for what overlaps with its next calls.
    #[derive(Clone, Default)]
    struct ScriptedStore {
        stored: Arc<Mutex<Pauses>>,
        after_read: Arc<Mutex<Vec<Between>>>,
        after_change: Arc<Mutex<Vec<Between>>>,
        n_reads: Arc<Mutex<usize>>,
        is_unreadable: Arc<Mutex<bool>>,
    }

    impl ScriptedStore {
        fn store(&self, change: &PauseChange) -> Result<Pauses, PauseStoreError> {
            let mut stored = lock(&self.stored);
            stored.apply(change)?;
            Ok(stored.clone())
        }

        fn then(&self, script: &Mutex<Vec<Between>>) {
            let between = lock(script).pop();
            if let Some(between) = between {
                between(self);
            }
        }
    }

    impl PauseStore for ScriptedStore {
        fn read(&self) -> Result<Pauses, String> {
            *lock(&self.n_reads) += 1;
            if *lock(&self.is_unreadable) {
                return Err("no answer".to_owned());
            }
            let pauses = lock(&self.stored).clone();
            self.then(&self.after_read);
            Ok(pauses)
        }

        fn change(&self, change: &PauseChange) -> Result<Pauses, PauseStoreError> {
            let pauses = self.store(change)?;
            self.then(&self.after_change);
            Ok(pauses)
        }
    }

    fn pause(partition: PartitionId) -> PauseChange {
        PauseChange::Pause(Some(partition), mark("ann"))
    }

    #[test]
    fn a_read_that_began_before_a_change_does_not_undo_it() {
        let store = ScriptedStore::default();
        let table = PauseTable::stored_in(store.clone());
        let changing = table.clone();
        lock(&store.after_read).push(Box::new(move |_| changing.change(&pause(3)).unwrap()));
        table.refresh().unwrap();
        assert!(table.is_paused(3), "the pause was answered with done");
        assert_eq!(*lock(&store.n_reads), 2);
    }

    #[test]
    fn a_change_does_not_undo_what_was_read_after_it() {
        let store = ScriptedStore::default();
        let table = PauseTable::stored_in(store.clone());
        let reading = table.clone();
        lock(&store.after_change).push(Box::new(move |store| {
            store.store(&pause(4)).unwrap();
            reading.refresh().unwrap();
        }));
        table.change(&pause(3)).unwrap();
        assert!(table.is_paused(3) && table.is_paused(4), "another instance paused 4 after the change");

        // The same, while the store cannot be read again.
        let reading = table.clone();
        lock(&store.after_change).push(Box::new(move |store| {
            store.store(&pause(6)).unwrap();
            reading.refresh().unwrap();
            *lock(&store.is_unreadable) = true;
        }));
        table.change(&PauseChange::Resume(Some(3))).unwrap();
        let paused = [3, 4, 6].map(|partition| table.is_paused(partition));
        assert_eq!(paused, [false, true, true]);
    }

    #[test]
    fn a_partition_that_another_instance_paused_with_the_module_is_not_resumed() {
        let store = ScriptedStore::default();
        let table = PauseTable::stored_in(store.clone());
        table.change(&pause(3)).unwrap();
        store.store(&PauseChange::Pause(None, mark("bob"))).unwrap();
        assert_eq!(table.check(&PauseChange::Resume(Some(3))), Err(PauseStoreError::ModulePaused));
        assert_eq!(table.change(&PauseChange::Resume(Some(3))), Err(PauseStoreError::ModulePaused));
        assert!(table.is_paused(3));
        *lock(&store.is_unreadable) = true;
        assert_eq!(table.check(&PauseChange::Resume(None)), Err(PauseStoreError::NotStored("no answer".to_owned())));
        assert_eq!(PauseTable::default().change(&PauseChange::Resume(Some(3))), Ok(()));
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
