//! The pauses of a module in ZooKeeper: the node `/consumers/MODULE/paused/TOPIC`, which the original ignores.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{PauseChange, PauseStore, PauseStoreError, Pauses};
use crate::keeper::paths::{self, create_with_parents};
use crate::keeper::{Keeper, KeeperError, Lifetime, SharedKeeper};

/// Number of attempts to change the node while other instances change it, too.
const MAX_ATTEMPTS: usize = 5;

/// The node of one module.
pub(crate) struct PauseNode {
    keeper: SharedKeeper,
    path: String,
    /// Whether a write may still be carried out: it got no response, and none has succeeded since.
    is_uncertain: AtomicBool,
}

impl PauseNode {
    /// The node of the group `group`, which reads `topic`.
    pub(crate) fn new(keeper: SharedKeeper, group: &str, topic: &str) -> PauseNode {
        PauseNode { keeper, path: paths::paused(group, topic), is_uncertain: AtomicBool::new(false) }
    }
}

/// Returns the pauses in the node at `path` and its version; `None` for the version if there is no node.
pub(crate) fn read_node(keeper: &dyn Keeper, path: &str) -> Result<(Pauses, Option<i32>), KeeperError> {
    let Some(node) = keeper.read(path)? else { return Ok((Pauses::default(), None)) };
    Ok((decode(path, &node.data), Some(node.version)))
}

/// Data that cannot be decoded counts as a pause of the module: an operator has to check it.
fn decode(path: &str, data: &[u8]) -> Pauses {
    serde_json::from_slice(data).unwrap_or_else(|cause| {
        let by = format!("node {path}, which is not readable ({cause}); a resume of the module replaces it");
        Pauses { module: Some(super::PauseMark { by, at_ms: 0 }), ..Pauses::default() }
    })
}

/// Writes the node at `path`, if it still has this version; `None` creates it.
pub(crate) fn write_node(
    keeper: &dyn Keeper,
    path: &str,
    pauses: &Pauses,
    version: Option<i32>,
) -> Result<(), KeeperError> {
    let data = serde_json::to_vec(pauses).unwrap_or_default();
    match version {
        Some(version) => keeper.write(path, &data, version).map(|_| ()),
        None => create_with_parents(keeper, path, &data, Lifetime::Persistent),
    }
}

impl PauseStore for PauseNode {
    fn read(&self) -> Result<Pauses, String> {
        read_node(&*self.keeper, &self.path)
            .map(|(pauses, _)| pauses)
            .map_err(|error| format!("cannot read the pauses: {error}"))
    }

    fn change(&self, change: &PauseChange) -> Result<Pauses, PauseStoreError> {
        for _ in 0..MAX_ATTEMPTS {
            let not_stored = |error: KeeperError| PauseStoreError::NotStored(error.to_string());
            let (mut pauses, version) = read_node(&*self.keeper, &self.path).map_err(not_stored)?;
            let before = pauses.clone();
            pauses.apply(change)?;
            // A write moves the version on, so that an earlier one without a response is carried out before or never.
            if pauses == before && !self.is_uncertain.load(Ordering::SeqCst) {
                return Ok(pauses);
            }
            let written = write_node(&*self.keeper, &self.path, &pauses, version);
            match &written {
                Ok(()) => self.is_uncertain.store(false, Ordering::SeqCst),
                Err(KeeperError::Unreachable(_)) => self.is_uncertain.store(true, Ordering::SeqCst),
                Err(_) => {}
            }
            match written {
                Ok(()) => return Ok(pauses),
                // Another instance changed the node after the read, or an ancestor was deleted.
                Err(KeeperError::BadVersion(_) | KeeperError::NodeExists(_) | KeeperError::NoNode(_)) => {}
                Err(error @ KeeperError::Unreachable(_)) => return Err(PauseStoreError::Unknown(error.to_string())),
                Err(error) => return Err(not_stored(error)),
            }
        }
        Err(PauseStoreError::NotStored(format!("node {} is changed all the time", self.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use crate::ktransfer::pauses::PauseMark;
    use std::sync::Arc;
    use std::time::Duration;

    fn mark(by: &str) -> PauseMark {
        PauseMark { by: by.to_owned(), at_ms: 7 }
    }

    #[test]
    fn pauses_are_kept_in_a_node_and_unreadable_data_pauses_the_module() {
        let (ensemble, timeout) = (InMemoryEnsemble::new(), Duration::from_secs(30));
        let keeper: SharedKeeper = ensemble.connect(timeout);
        let node = PauseNode::new(Arc::clone(&keeper), "g", "t");
        assert_eq!(node.read(), Ok(Pauses::default()));
        let other = PauseNode::new(ensemble.connect(timeout), "g", "t");
        node.change(&PauseChange::Pause(Some(3), mark("ann"))).unwrap();
        other.change(&PauseChange::Pause(Some(4), mark("bob"))).unwrap();
        let pauses = node.read().unwrap();
        assert_eq!((pauses.of(3), pauses.of(4)), (Some(&mark("ann")), Some(&mark("bob"))));
        let stored = keeper.read("/consumers/g/paused/t").unwrap().expect("the node");
        let text = r#"{"partitions":{"3":{"by":"ann","at_ms":7},"4":{"by":"bob","at_ms":7}}}"#;
        assert_eq!(String::from_utf8(stored.data).unwrap(), text);
        keeper.write("/consumers/g/paused/t", b"yes", stored.version).unwrap();
        let mark = node.read().unwrap().of(0).expect("paused").clone();
        assert!(mark.by.contains("/consumers/g/paused/t"), "{mark:?}");
        assert_eq!(node.change(&PauseChange::Resume(None)), Ok(Pauses::default()));
        assert_eq!(other.read(), Ok(Pauses::default()));
    }

    /// The write without a response may be carried out after the next read, by a server that was not read.
    #[test]
    fn a_change_after_one_of_unknown_result_is_written_even_if_it_changes_nothing() {
        let ensemble = InMemoryEnsemble::new();
        let keeper = ensemble.connect(Duration::from_secs(30));
        let node = PauseNode::new(keeper.clone(), "g", "t");
        node.change(&PauseChange::Pause(Some(3), mark("ann"))).unwrap();
        let version = || keeper.read("/consumers/g/paused/t").unwrap().expect("the node").version;
        for change in [PauseChange::Resume(Some(3)), PauseChange::Pause(Some(3), mark("ann"))] {
            keeper.lose_responses(1);
            let unknown = node.change(&change);
            assert!(matches!(&unknown, Err(PauseStoreError::Unknown(_))), "{unknown:?}");
            let before = version();
            node.change(&change).unwrap();
            assert_eq!(version(), before + 1, "it is written again");
            node.change(&change).unwrap();
            assert_eq!(version(), before + 1, "now it is certain");
        }
    }
}
