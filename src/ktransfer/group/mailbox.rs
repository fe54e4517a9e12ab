//! The commands from the dispatcher to the group: a table with the latest command for each partition, not a queue.
//!
//! The dispatcher commits thousands of times a second, while the group may wait for ZooKeeper. So a command overwrites
//! the earlier command of its kind and partition. The number of partitions bounds the table, and sending never blocks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Generation, GroupCommand};
use crate::broker::{LogIdentity, Offset, PartitionId, TopicId};
use crate::locks::lock;

/// Shortest interval between two wake-ups for [`GroupCommand::DoneAhead`]. A snapshot in between waits for the next.
const DONE_AHEAD_WAKE_INTERVAL: Duration = Duration::from_millis(200);

/// The dispatcher's end of a mailbox. If the last clone is dropped, the group leaves as after the command `Leave`.
#[derive(Clone)]
pub struct CommandSender {
    table: Arc<Mutex<CommandTable>>,
    wake: Sender<()>,
}

/// The group's end of a mailbox.
pub struct Mailbox {
    table: Arc<Mutex<CommandTable>>,
    woken: Receiver<()>,
}

#[derive(Debug, Default)]
struct CommandTable {
    pending: PendingCommands,
    /// The claim of the latest commit of each partition; the first commit of a claim wakes the group.
    committed: BTreeMap<PartitionId, Generation>,
    /// The latest claim of each partition.
    latest: BTreeMap<PartitionId, Generation>,
    /// Time of the latest wake-up for `DoneAhead`.
    done_ahead_woken: Option<Instant>,
}

/// The commands since the last [`Mailbox::take`]; at most one of each kind for each partition.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PendingCommands {
    /// Commit points by partition, to be stored with the next store.
    pub(crate) commits: BTreeMap<PartitionId, (Generation, Offset)>,
    /// Positions to store at once. A commit or a snapshot of the same partition is later than its position here.
    pub(crate) starts: BTreeMap<PartitionId, (Generation, Offset, LogIdentity)>,
    /// Messages done above the commit point, by partition, without a leader epoch.
    pub(crate) done_ahead: BTreeMap<PartitionId, (Generation, DoneAhead)>,
    /// Partitions to release, each with the offset to store before the release; `None` stores the latest commit.
    pub(crate) releases: BTreeMap<PartitionId, (Generation, Option<Offset>)>,
    /// Whether `Leave` was sent.
    pub(crate) leave: bool,
}

/// The messages of a partition that are done above its commit point, and the log whose offsets are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DoneAhead {
    /// Id of the topic; `None` if it is unknown.
    pub(crate) topic_id: Option<TopicId>,
    /// Leader epoch of the message before the commit point; `None` if it is unknown.
    pub(crate) leader_epoch: Option<i32>,
    /// Ascending ranges of offsets.
    pub(crate) ranges: Arc<[Range<Offset>]>,
    /// The highest leader epoch that had been read when the ranges were taken; `None` if it is unknown.
    pub(crate) read_epoch: Option<i32>,
}

/// Creates a mailbox and returns both its ends.
pub fn mailbox() -> (CommandSender, Mailbox) {
    // One pending wake-up is enough for any number of commands, so a second wake-up may be dropped.
    let (wake, woken) = bounded(1);
    let table = Arc::new(Mutex::default());
    (CommandSender { table: Arc::clone(&table), wake }, Mailbox { table, woken })
}

impl CommandSender {
    /// Puts the command into the table; never blocks. A later commit of a claim does not wake the group, which stores
    /// commits at intervals.
    pub fn send(&self, command: GroupCommand) {
        let wakes = lock(&self.table).add(command, Instant::now());
        if wakes {
            // A full channel means that a wake-up is pending: the group will take all commands.
            let _ = self.wake.try_send(());
        }
    }
}

impl CommandTable {
    /// Whether the command is of an earlier claim than one before it. It would overwrite commands of the later claim.
    fn is_stale(&mut self, command: &GroupCommand) -> bool {
        let (GroupCommand::Commit { partition, generation, .. }
        | GroupCommand::StoreNow { partition, generation, .. }
        | GroupCommand::DoneAhead { partition, generation, .. }
        | GroupCommand::Release { partition, generation, .. }) = command
        else {
            return false;
        };
        let latest = self.latest.entry(*partition).or_insert(*generation);
        *latest = (*latest).max(*generation);
        *generation < *latest
    }

    /// Puts the command into the table. Returns whether the group must be woken.
    fn add(&mut self, command: GroupCommand, now: Instant) -> bool {
        if self.is_stale(&command) {
            return false;
        }
        match command {
            GroupCommand::Commit { partition, generation, next } => {
                self.pending.commits.insert(partition, (generation, next));
                self.committed.insert(partition, generation) != Some(generation)
            }
            GroupCommand::StoreNow { partition, generation, next, log } => {
                self.pending.commits.remove(&partition);
                self.pending.done_ahead.remove(&partition);
                self.pending.starts.insert(partition, (generation, next, log));
                true
            }
            GroupCommand::DoneAhead { partition, generation, topic_id, ranges, read_epoch } => {
                let ahead = DoneAhead { topic_id, leader_epoch: None, ranges, read_epoch };
                self.pending.done_ahead.insert(partition, (generation, ahead));
                let is_early = |woken| now.saturating_duration_since(woken) < DONE_AHEAD_WAKE_INTERVAL;
                if self.done_ahead_woken.is_some_and(is_early) {
                    return false;
                }
                self.done_ahead_woken = Some(now);
                true
            }
            GroupCommand::Release { partition, generation, next } => {
                self.pending.releases.insert(partition, (generation, next));
                true
            }
            GroupCommand::Leave => {
                self.pending.leave = true;
                true
            }
        }
    }
}

impl Mailbox {
    /// Returns the channel that gets a message after a command that wakes the group. It is disconnected when the last
    /// [`CommandSender`] is dropped.
    pub(crate) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Removes and returns all pending commands.
    pub(crate) fn take(&self) -> PendingCommands {
        std::mem::take(&mut lock(&self.table).pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(generation: u64, next: Offset) -> GroupCommand {
        GroupCommand::Commit { partition: 3, generation: Generation(generation), next }
    }

    fn done_ahead(end: Offset) -> GroupCommand {
        let ranges = std::iter::once(1..end).collect();
        GroupCommand::DoneAhead { partition: 3, generation: Generation(1), topic_id: None, ranges, read_epoch: None }
    }

    #[test]
    fn a_command_overwrites_the_earlier_one_and_only_the_first_commit_of_a_claim_wakes_the_group() {
        let (commands, mailbox) = mailbox();
        commands.send(commit(1, 0));
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        for next in 1..10_000 {
            commands.send(commit(1, next));
        }
        assert!(mailbox.woken().try_recv().is_err());
        commands.send(GroupCommand::Release { partition: 3, generation: Generation(1), next: None });
        commands.send(GroupCommand::Leave);
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        assert!(mailbox.woken().try_recv().is_err());
        let pending = mailbox.take();
        assert_eq!(pending.commits, BTreeMap::from([(3, (Generation(1), 9_999))]));
        assert_eq!(pending.releases, BTreeMap::from([(3, (Generation(1), None))]));
        assert!(pending.leave);
        assert_eq!(mailbox.take(), PendingCommands::default());
        commands.send(commit(2, 0));
        assert_eq!(mailbox.woken().try_recv(), Ok(()), "the first commit of the next claim");
    }

    #[test]
    fn a_position_to_store_now_replaces_the_commits_before_it() {
        let (commands, mailbox) = mailbox();
        commands.send(commit(1, 120));
        commands.send(done_ahead(130));
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        let (generation, log) = (Generation(1), LogIdentity { topic_id: Some([7; 16]), leader_epoch: Some(2) });
        commands.send(GroupCommand::StoreNow { partition: 3, generation, next: 0, log });
        assert_eq!(mailbox.woken().try_recv(), Ok(()));
        commands.send(commit(1, 1));
        let pending = mailbox.take();
        assert_eq!(pending.starts, BTreeMap::from([(3, (generation, 0, log))]));
        assert_eq!(pending.commits, BTreeMap::from([(3, (generation, 1))]));
        assert!(pending.done_ahead.is_empty());
    }

    #[test]
    fn a_late_command_of_an_earlier_claim_is_ignored() {
        let (commands, mailbox) = mailbox();
        let log = LogIdentity::default();
        commands.send(GroupCommand::Commit { partition: 3, generation: Generation(2), next: 7 });
        commands.send(GroupCommand::StoreNow { partition: 3, generation: Generation(1), next: 50, log });
        commands.send(GroupCommand::Release { partition: 3, generation: Generation(1), next: Some(50) });
        let pending = mailbox.take();
        assert_eq!(pending.commits, BTreeMap::from([(3, (Generation(2), 7))]));
        assert!(pending.starts.is_empty() && pending.releases.is_empty());
    }

    #[test]
    fn snapshots_of_done_messages_wake_the_group_at_most_once_an_interval() {
        let mut table = CommandTable::default();
        let start = Instant::now();
        assert!(table.add(done_ahead(5), start));
        assert!(!table.add(done_ahead(7), start + DONE_AHEAD_WAKE_INTERVAL / 2));
        assert!(table.add(done_ahead(9), start + DONE_AHEAD_WAKE_INTERVAL));
        let (_, latest) = &table.pending.done_ahead[&3];
        assert_eq!(latest.ranges.first(), Some(&(1..9)));
    }
}
