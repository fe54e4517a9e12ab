//! Polls one cluster: reads the stored offsets, then the newest offsets, and writes the snapshot.
//!
//! The order matters, because both offsets only grow. With the stored offset read first, the computed delay may be
//! larger than the delay was at any moment of the poll, but never smaller.
//!
//! Each cluster has a thread, a ZooKeeper client and a Kafka client of its own, so an unreachable cluster does not
//! delay the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use prometheus::{Histogram, IntCounter};

use crate::admin::Component;
use crate::keeper::{KeeperError, SharedKeeper};
use crate::shutdown::Stop;

use super::delay::{LogEnd, ModuleDelay, StoredByModule, join};
use super::log_ends::{BrokerLogEnds, NewestOffsets};
use super::snapshot::{ClusterSnapshot, SnapshotWriter};
use super::stored_offsets::{GroupReader, ReadError};

/// Shortest pause between two polls, even if a poll took longer than the interval: ZooKeeper must not be under constant
/// load.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Interval after a failed poll, unless the configured interval is shorter.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Interval at which a lasting failure is logged again.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// Longest time for reading the stored offsets of one batch of groups, before the newest offsets are requested. With a
/// short poll interval, half the interval is the limit.
const MAX_BATCH_TIME: Duration = Duration::from_secs(1);

/// Returns brokers of the cluster, as `host:port`.
pub(super) type FindBrokers = Box<dyn FnMut() -> Result<Vec<String>, KeeperError> + Send>;

type Modules = BTreeMap<Arc<str>, ModuleDelay>;

/// Polls one cluster in a loop and writes its snapshots.
pub(super) struct Poller {
    /// Name of the cluster, for log lines.
    pub name: String,
    /// The ZooKeeper of the cluster.
    pub keeper: SharedKeeper,
    /// Finds the brokers; called at each poll, because their addresses may change.
    pub find_brokers: FindBrokers,
    /// Requests the newest offsets from the brokers found.
    pub log_ends: BrokerLogEnds,
    /// Time from the start of one poll to the start of the next.
    pub interval: Duration,
    /// Writes the snapshots of the cluster.
    pub writer: SnapshotWriter,
    /// The state of the cluster in `/readyz`.
    pub component: Component,
    /// Counts and times the polls.
    pub metrics: PollMetrics,
}

/// The metrics of one cluster's polls.
pub(super) struct PollMetrics {
    /// Polls without a failure.
    pub complete: IntCounter,
    /// Polls in which stored or newest offsets could not be read.
    pub incomplete: IntCounter,
    /// Duration of each poll.
    pub seconds: Histogram,
}

impl Poller {
    /// Polls until the stop is triggered.
    pub(super) fn run(mut self, stop: &Stop) {
        let mut failures = FailureLog::default();
        loop {
            let began = Instant::now();
            let outcome = self.poll(stop);
            // A poll that the stop interrupted is neither counted nor logged.
            if stop.is_triggered() {
                return;
            }
            self.metrics.seconds.observe(began.elapsed().as_secs_f64());
            let counter = if outcome.is_ok() { &self.metrics.complete } else { &self.metrics.incomplete };
            counter.inc();
            failures.record(&self.name, &outcome);
            let interval = if outcome.is_ok() { self.interval } else { self.interval.min(RETRY_PAUSE) };
            self.component.set(outcome);
            if !stop.sleep(interval.saturating_sub(began.elapsed()).max(MIN_PAUSE)) {
                return;
            }
        }
    }

    /// Polls once. If newest offsets cannot be read, the snapshot has the delays that are known; if stored offsets
    /// cannot be read, the cluster has no snapshot. Both are errors.
    fn poll(&mut self, stop: &Stop) -> Result<(), String> {
        let began = Instant::now();
        match self.read(stop) {
            Ok((modules, failure)) => {
                self.writer.put(Some(ClusterSnapshot::new(modules, began, self.interval)));
                failure.map_or(Ok(()), |cause| Err(format!("newest offsets cannot be read: {cause}")))
            }
            Err(ReadError::Stopped) => Ok(()),
            Err(ReadError::Keeper(cause)) => {
                self.writer.put(None);
                Err(format!("stored offsets cannot be read: {cause}"))
            }
        }
    }

    /// Returns all modules, and the reason if some newest offsets are unknown. Fails if stored offsets cannot be read.
    ///
    /// Groups are read in batches, and the newest offsets of each batch right after its stored offsets. So the stored
    /// and the newest offset of a partition are read at nearly the same time, even if the cluster has many groups.
    fn read(&mut self, stop: &Stop) -> Result<(Modules, Option<String>), ReadError> {
        let keeper = self.keeper.clone();
        let mut reader = GroupReader::new(&*keeper, stop);
        let mut groups = reader.group_names()?.into_iter().peekable();
        let (mut hosts, mut failure) = match (self.find_brokers)() {
            Ok(hosts) => (Some(hosts), None),
            Err(cause) => (None, Some(cause.to_string())),
        };
        let mut modules = Modules::new();
        while groups.peek().is_some() {
            let batch_ends = Instant::now() + MAX_BATCH_TIME.min(self.interval / 2);
            let mut by_module = StoredByModule::new();
            for group in groups.by_ref() {
                by_module.extend(reader.stored_offsets(&group)?.map(|stored| (group.into(), stored)));
                if batch_ends <= Instant::now() {
                    break;
                }
            }
            let newest =
                hosts.as_ref().map_or_else(NewestOffsets::default, |hosts| self.log_ends.newest(hosts, &by_module));
            if newest.is_unreachable {
                // Further requests to the brokers in this poll would time out too.
                hosts = None;
            }
            let end_of = |partition: &_| newest.ends.get(partition).copied().unwrap_or(LogEnd::Unknown);
            modules.extend(join(by_module, end_of));
            failure = failure.or(newest.failure);
        }
        Ok((modules, failure))
    }
}

/// Logs the failures of a cluster: when they begin, every [`REMIND_AFTER`], and when they end, instead of at each poll.
#[derive(Default)]
struct FailureLog {
    failing_since: Option<Instant>,
    last_logged: Option<Instant>,
}

impl FailureLog {
    fn record(&mut self, cluster: &str, outcome: &Result<(), String>) {
        let now = Instant::now();
        match outcome {
            Ok(()) => {
                if let Some(since) = self.failing_since.take()
                    && self.last_logged.is_some()
                {
                    info!("cluster {cluster}: all offsets can be read again, after {} s", (now - since).as_secs());
                }
                self.last_logged = None;
            }
            Err(cause) => {
                // The first failure may only mean that the ZooKeeper session is not established yet, so the warning
                // comes with the second failure.
                let Some(_) = self.failing_since else {
                    self.failing_since = Some(now);
                    return debug!("cluster {cluster}: {cause}");
                };
                if self.last_logged.is_none_or(|last| REMIND_AFTER <= now - last) {
                    self.last_logged = Some(now);
                    warn!("cluster {cluster}: {cause}; unknown delays are left out, retrying");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
