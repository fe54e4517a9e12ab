//! The way from the dispatcher to the group: a table of the latest word on each partition, not a queue.
//!
//! The dispatcher commits thousands of times a second while the group may be waiting for ZooKeeper. So commits overwrite
//! one another, nothing grows, and sending never blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Generation, GroupCommand};
use crate::broker::{Offset, PartitionId};
use crate::locks::lock;

/// The dispatcher's end. Dropping the last clone is taken as `Leave`.
#[derive(Clone)]
pub struct Commands {
    table: Arc<Mutex<Said>>,
    wake: Sender<()>,
}

/// The group's end.
pub struct Mailbox {
    table: Arc<Mutex<Said>>,
    woken: Receiver<()>,
}

/// What was said since the group last looked. One entry a partition at most.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Commit points: stored in the next round.
    pub commits: BTreeMap<PartitionId, (Generation, Offset)>,
    /// Partitions to give back.
    pub releases: BTreeMap<PartitionId, (Generation, Option<Offset>)>,
    /// Whether to leave.
    pub leave: bool,
}

/// Both ends of a new mailbox.
pub fn mailbox() -> (Commands, Mailbox) {
    // One wake-up is enough for any number of changes; a second one that does not fit is not missed.
    let (wake, woken) = bounded(1);
    let table = Arc::new(Mutex::default());
    (Commands { table: Arc::clone(&table), wake }, Mailbox { table, woken })
}

impl Commands {
    /// Leaves the command for the group; never blocks. A commit alone does not wake it.
    pub fn send(&self, command: GroupCommand) {
        let mut table = lock(&self.table);
        match command {
            GroupCommand::Commit { partition, generation, next } => {
                table.commits.insert(partition, (generation, next));
                return;
            }
            GroupCommand::Release { partition, generation, next } => {
                table.releases.insert(partition, (generation, next));
            }
            GroupCommand::Leave => table.leave = true,
        }
        drop(table);
        // Full means that the group is about to look anyway.
        let _ = self.wake.try_send(());
    }
}

impl Mailbox {
    /// Becomes ready when there is something to do; disconnected when nobody can send any more.
    pub fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Takes everything, leaving the table empty.
    pub fn take(&self) -> Said {
        std::mem::take(&mut lock(&self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_overwrite_one_another_and_only_the_rest_wakes() {
        let (commands, mailbox) = mailbox();
        for next in 0..10_000 {
            commands.send(GroupCommand::Commit { partition: 3, generation: Generation(1), next });
        }
        assert!(mailbox.woken().try_recv().is_err());
        commands.send(GroupCommand::Release { partition: 3, generation: Generation(1), next: None });
        commands.send(GroupCommand::Leave);
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        assert!(mailbox.woken().try_recv().is_err());
        let said = mailbox.take();
        assert_eq!(said.commits, BTreeMap::from([(3, (Generation(1), 9_999))]));
        assert_eq!(said.releases, BTreeMap::from([(3, (Generation(1), None))]));
        assert!(said.leave);
        assert_eq!(mailbox.take(), Said::default());
    }
}
