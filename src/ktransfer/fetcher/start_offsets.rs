//! The thread that looks up where reading starts in partitions without a stored offset, as `start_from` says.
//!
//! A found offset goes to the group first, which stores it at once: with `start_from: latest` a restart before the
//! first message must not begin at a later offset. It does not go through the dispatcher, which takes no reports while
//! its window is full. Then it goes to the fetch loop.
//!
//! The look-ups of all partitions are in flight together. One that fails is retried until the partition is revoked; it
//! delays the others by [`FIRST_LOOKUP_TIME`] at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::broker::{LogEnds, LogIdentity, LogRange, Offset, PartitionId, TopicPartition};
use crate::ktransfer::config::StartFrom;
use crate::ktransfer::group::{CommandSender, Generation, GroupCommand};
use crate::ktransfer::job::WindowId;
use crate::locks::lock;
use crate::shutdown::Stop;

/// Bound of the channel of found offsets. While it is full the thread waits for the fetch loop; the offsets in it were
/// already sent to the group.
pub(crate) const FOUND_STARTS: usize = 64;
/// Time limit of the first look-up. It doubles with each look-up that fails, up to [`MAX_LOOKUP_TIME`]. New requests
/// wait for the look-up in flight.
const FIRST_LOOKUP_TIME: Duration = Duration::from_millis(500);
/// Longest time limit of a look-up.
const MAX_LOOKUP_TIME: Duration = Duration::from_secs(2);
/// Pause after a look-up that failed for a partition.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The partitions whose start offset is wanted: a table, so that adding never blocks and its size is bounded by the
/// number of partitions.
#[derive(Clone)]
pub(crate) struct StartRequests {
    table: Arc<Mutex<BTreeMap<PartitionId, (WindowId, Generation)>>>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

impl StartRequests {
    /// Creates an empty table.
    pub(crate) fn new() -> StartRequests {
        // One pending wake-up is enough for any number of requests.
        let (wake, woken) = bounded(1);
        StartRequests { table: Arc::default(), wake, woken }
    }

    /// Requests the start offset of a partition; replaces an earlier request for it.
    pub(super) fn add(&self, partition: PartitionId, window: WindowId, generation: Generation) {
        lock(&self.table).insert(partition, (window, generation));
        // A full channel means that a wake-up is pending.
        let _ = self.wake.try_send(());
    }

    /// Drops the request for a partition.
    pub(super) fn cancel(&self, partition: PartitionId) {
        lock(&self.table).remove(&partition);
    }

    fn pending(&self) -> Vec<(PartitionId, WindowId, Generation)> {
        lock(&self.table).iter().map(|(partition, (window, generation))| (*partition, *window, *generation)).collect()
    }

    /// Removes a request that was fulfilled; returns false if it was cancelled or replaced.
    fn finish(&self, partition: PartitionId, window: WindowId) -> bool {
        let mut table = lock(&self.table);
        let is_wanted = table.get(&partition).is_some_and(|(wanted, _)| *wanted == window);
        is_wanted && table.remove(&partition).is_some()
    }
}

/// The result of a look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundStart {
    /// Number of the partition.
    pub(super) partition: PartitionId,
    /// The window of the assignment.
    pub(super) window: WindowId,
    /// The start offset, or why it is not known yet.
    pub(super) outcome: Result<Offset, String>,
}

/// Looks up start offsets.
pub(crate) struct StartOffsets {
    /// Reads the offsets.
    pub(crate) log_ends: Box<dyn LogEnds>,
    /// The topic of the module.
    pub(crate) topic: Arc<str>,
    /// Which end of a partition is its start.
    pub(crate) start_from: StartFrom,
    /// The partitions to look up.
    pub(crate) requests: StartRequests,
    /// To the fetch loop.
    pub(crate) found: Sender<FoundStart>,
    /// To the group, which stores the offsets.
    pub(crate) group_commands: CommandSender,
}

impl StartOffsets {
    /// Runs until the stop.
    pub(crate) fn run(mut self, stop: &Stop) {
        let mut time = FIRST_LOOKUP_TIME;
        while !stop.is_triggered() {
            let pending = self.requests.pending();
            if pending.is_empty() {
                time = FIRST_LOOKUP_TIME;
                select! {
                    recv(self.requests.woken) -> _ => {}
                    recv(stop.closed()) -> _ => return,
                }
                continue;
            }
            if self.look_up(&pending, Instant::now() + time, stop) {
                continue;
            }
            time = (time * 2).min(MAX_LOOKUP_TIME);
            select! {
                // A new partition is looked up at once, and with the short time limit.
                recv(self.requests.woken) -> _ => time = FIRST_LOOKUP_TIME,
                recv(stop.closed()) -> _ => return,
                default(RETRY_PAUSE) => {}
            }
        }
    }

    /// Looks up these partitions; returns whether all were found.
    fn look_up(&mut self, pending: &[(PartitionId, WindowId, Generation)], deadline: Instant, stop: &Stop) -> bool {
        let names: Vec<_> = pending
            .iter()
            .map(|(partition, ..)| TopicPartition { topic: Arc::clone(&self.topic), partition: *partition })
            .collect();
        let StartOffsets { log_ends, start_from, requests, found, group_commands, .. } = self;
        let mut found_all = true;
        log_ends.ranges(&names, deadline, &mut |index, range| {
            let (partition, window, generation) = pending[index];
            found_all &= range.is_ok();
            let outcome = range.map(|range| start_in(range, *start_from)).map_err(|cause| cause.to_string());
            if let Ok(next) = outcome {
                if !requests.finish(partition, window) {
                    return;
                }
                let log = LogIdentity::default();
                group_commands.send(GroupCommand::StoreNow { partition, generation, next, log });
            }
            select! {
                // Fails only after the fetch loop has ended.
                send(found, FoundStart { partition, window, outcome }) -> _ => {}
                recv(stop.closed()) -> _ => {}
            }
        });
        found_all
    }
}

/// Returns where reading starts. The latest offset is the one behind which every message is returned that becomes
/// visible from now on: those of an open transaction become visible when it is committed.
fn start_in(range: LogRange, start_from: StartFrom) -> Offset {
    match start_from {
        StartFrom::Earliest => range.oldest,
        StartFrom::Latest => range.stable,
    }
}
