//! The receivers of a group's state: `/readyz`, metrics, the log, and the report of work that its stop could not do.

use std::time::{Duration, Instant};

use log::warn;
use prometheus::IntGauge;

use super::StoreReceipts;
use crate::admin::Component;
use crate::ktransfer::pauses::PauseTable;
use crate::ktransfer::stop_report::StopReport;

/// Pause before the same warning is logged again.
const REPEATED_WARNING_PAUSE: Duration = Duration::from_secs(60);
/// Pause before a different warning is logged.
const OTHER_WARNING_PAUSE: Duration = Duration::from_secs(5);

/// Where a group reports its state. The default reports nowhere.
#[derive(Clone, Default)]
pub(crate) struct GroupObservers {
    /// Part of `/readyz`: ready once the member has joined and claimed its partitions, and their start offsets are
    /// stored. From then on no message is missed, whatever `start_from` says. Not ready while a partition has had no
    /// owner for long.
    pub(crate) health: Option<Component>,
    /// Number of partitions assigned to this member whose stored offset is not readable; a metric.
    pub(crate) unreadable: Option<IntGauge>,
    /// Number of partitions of the topic that no member owns; a metric.
    pub(crate) unowned: Option<IntGauge>,
    /// Receives the work that the leave could not do.
    pub(crate) report: StopReport,
    /// The pauses of the module, which a group reads at intervals and with each claim; a group in Kafka stores them,
    /// too.
    pub(crate) pauses: PauseTable,
    /// Which positions of `StoreNow` are stored.
    pub(crate) receipts: StoreReceipts,
}

/// The warnings of a loop that retries: each is logged at intervals.
#[derive(Default)]
pub(super) struct RateLimitedWarnings {
    /// The latest warning and when it was logged.
    last: Option<(String, Instant)>,
}

impl RateLimitedWarnings {
    /// Logs a warning of `group`, unless one was logged lately.
    pub(super) fn warn(&mut self, group: &str, text: String) {
        if let Some((last, at)) = &self.last {
            let pause = if *last == text { REPEATED_WARNING_PAUSE } else { OTHER_WARNING_PAUSE };
            if at.elapsed() < pause {
                return;
            }
        }
        // Logged as a warning, not an error, because the loop retries.
        warn!("group {group}: {text}");
        self.last = Some((text, Instant::now()));
    }
}
