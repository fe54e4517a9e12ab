//! The commands from the dispatcher to the group: a table with the latest command for each partition, not a queue.
//!
//! The dispatcher commits thousands of times a second, while the group may wait for ZooKeeper. So a commit overwrites
//! the earlier commit of its partition. The number of partitions bounds the table, and sending never blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Generation, GroupCommand};
use crate::broker::{LogIdentity, Offset, PartitionId};
use crate::locks::lock;

/// The dispatcher's end of a mailbox. If the last clone is dropped, the group leaves as after the command `Leave`.
#[derive(Clone)]
pub struct CommandSender {
    table: Arc<Mutex<PendingCommands>>,
    wake: Sender<()>,
}

/// The group's end of a mailbox.
pub struct Mailbox {
    table: Arc<Mutex<PendingCommands>>,
    woken: Receiver<()>,
}

/// The commands since the last [`Mailbox::take`]; at most one of each kind for each partition.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PendingCommands {
    /// Commit points by partition, to be stored at the next store interval.
    pub(crate) commits: BTreeMap<PartitionId, (Generation, Offset)>,
    /// Positions to store at once; a commit of the same partition is later than its position here.
    pub(crate) starts: BTreeMap<PartitionId, (Generation, Offset, LogIdentity)>,
    /// Partitions to release, each with the offset to store before the release; `None` stores the latest commit.
    pub(crate) releases: BTreeMap<PartitionId, (Generation, Option<Offset>)>,
    /// Whether `Leave` was sent.
    pub(crate) leave: bool,
}

/// Creates a mailbox and returns both its ends.
pub fn mailbox() -> (CommandSender, Mailbox) {
    // One pending wake-up is enough for any number of commands, so a second wake-up may be dropped.
    let (wake, woken) = bounded(1);
    let table = Arc::new(Mutex::default());
    (CommandSender { table: Arc::clone(&table), wake }, Mailbox { table, woken })
}

impl CommandSender {
    /// Puts the command into the table; never blocks. A commit does not wake the group, which stores commits at
    /// intervals.
    pub fn send(&self, command: GroupCommand) {
        let mut table = lock(&self.table);
        match command {
            GroupCommand::Commit { partition, generation, next } => {
                table.commits.insert(partition, (generation, next));
                return;
            }
            GroupCommand::StoreNow { partition, generation, next, log } => {
                table.commits.remove(&partition);
                table.starts.insert(partition, (generation, next, log));
            }
            GroupCommand::Release { partition, generation, next } => {
                table.releases.insert(partition, (generation, next));
            }
            GroupCommand::Leave => table.leave = true,
        }
        drop(table);
        // A full channel means that a wake-up is pending: the group will take all commands.
        let _ = self.wake.try_send(());
    }
}

impl Mailbox {
    /// Returns the channel that gets a message after a `StoreNow`, `Release` or `Leave`. It is disconnected when the last
    /// [`CommandSender`] is dropped.
    pub(crate) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Removes and returns all pending commands.
    pub(crate) fn take(&self) -> PendingCommands {
        std::mem::take(&mut lock(&self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_overwrites_the_earlier_one_and_all_other_commands_wake_the_group() {
        let (commands, mailbox) = mailbox();
        for next in 0..10_000 {
            commands.send(GroupCommand::Commit { partition: 3, generation: Generation(1), next });
        }
        assert!(mailbox.woken().try_recv().is_err());
        let (generation, log) = (Generation(1), LogIdentity { topic_id: Some([7; 16]), leader_epoch: Some(2) });
        commands.send(GroupCommand::StoreNow { partition: 3, generation, next: 0, log });
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        let pending = mailbox.take();
        assert_eq!(pending.starts, BTreeMap::from([(3, (generation, 0, log))]));
        assert!(pending.commits.is_empty(), "the commits before it are of another log");
        commands.send(GroupCommand::Commit { partition: 3, generation, next: 9_999 });
        commands.send(GroupCommand::Release { partition: 3, generation, next: None });
        commands.send(GroupCommand::Leave);
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        assert!(mailbox.woken().try_recv().is_err());
        let pending = mailbox.take();
        assert_eq!(pending.commits, BTreeMap::from([(3, (Generation(1), 9_999))]));
        assert_eq!(pending.releases, BTreeMap::from([(3, (Generation(1), None))]));
        assert!(pending.leave);
        assert_eq!(mailbox.take(), PendingCommands::default());
    }
}
