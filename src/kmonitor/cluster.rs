//! Polls one cluster: reads the stored offsets, then the newest ones, and writes the snapshot.
//!
//! The order matters, since both offsets only grow. A stored offset that was read first can make the delay larger than
//! it was at any moment in between, never smaller; a delay is never hidden.
//!
//! Clusters share nothing but the snapshot store, so a cluster that cannot be reached delays no other.

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

/// The pause after a poll that took longer than the interval, so that ZooKeeper is not under constant load.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// The pause after a failed poll, where the interval is longer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A failure that lasts is logged again after this time.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// Stored offsets are read for at most this time, or half the interval, before their newest offsets are requested.
const MAX_BATCH_TIME: Duration = Duration::from_secs(1);

/// Finds brokers of the cluster, as `host:port`.
pub(super) type FindBrokers = Box<dyn FnMut() -> Result<Vec<String>, KeeperError> + Send>;

type Modules = BTreeMap<Arc<str>, ModuleDelay>;

/// Everything the poller of one cluster needs.
pub(super) struct Poller {
    /// Name of the cluster, for the log.
    pub name: String,
    /// The ZooKeeper of the cluster.
    pub keeper: SharedKeeper,
    /// Finds the brokers; called at each poll, since they may move.
    pub find_brokers: FindBrokers,
    /// The newest offsets, from these brokers.
    pub log_ends: BrokerLogEnds,
    /// From the beginning of one poll to that of the next.
    pub interval: Duration,
    /// Where the snapshots go.
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
    /// Polls until the stop.
    pub(super) fn run(mut self, stop: &Stop) {
        let mut failures = FailureLog::default();
        loop {
            let began = Instant::now();
            let outcome = self.poll(stop);
            // A poll that the stop cut short is neither counted nor logged.
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

    /// Polls once. After an error the snapshot has the delays that are known, or is withdrawn.
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

    /// All modules, and why some of their newest offsets are unknown, if so.
    ///
    /// Groups are read in batches, each followed by its newest offsets: however many groups a cluster has, the stored
    /// and the newest offset of a partition are read at nearly the same time.
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
                // Each further request of this poll would time out as well.
                hosts = None;
            }
            let end_of = |partition: &_| newest.ends.get(partition).copied().unwrap_or(LogEnd::Unknown);
            modules.extend(join(by_module, end_of));
            failure = failure.or(newest.failure);
        }
        Ok((modules, failure))
    }
}

/// Logs when the failures of a cluster begin, last and end, instead of a line for each poll.
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
                // The first failure may be a ZooKeeper session that is not established yet; only the next one is a
                // warning.
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
