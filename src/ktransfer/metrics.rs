//! The metrics of ktransfer, and the metrics of one module with their labels filled in.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::operations::MessageCounts;
use crate::broker::PartitionId;
use crate::metrics::{Registry, SECONDS_BUCKETS};

/// The metrics of the daemon. Created once; clones share them.
#[derive(Clone)]
pub(super) struct Metrics {
    registry: Registry,
    pushes: IntCounterVec,
    push_seconds: HistogramVec,
    messages: IntCounterVec,
    window_in_use: IntGaugeVec,
    in_flight_bytes: IntGaugeVec,
    stored_offset: IntGaugeVec,
    assigned: IntGaugeVec,
    offset_gap: IntCounterVec,
    offset_resets: IntCounterVec,
    truncated: IntCounterVec,
    fetch_errors: IntCounterVec,
    restarts: IntCounterVec,
    unreadable_offsets: IntGaugeVec,
    unowned: IntGaugeVec,
    paused_partitions: IntGaugeVec,
    head_of_line_seconds: IntGaugeVec,
    head_of_line_attempts: IntGaugeVec,
    backend_ejected: IntGaugeVec,
    backend_ejections: IntCounterVec,
    backend_probes: IntCounterVec,
    letters: IntCounterVec,
    letters_waiting: IntGaugeVec,
}

/// The metrics of one module. Their labels are looked up once, when the module is created, except the partition of
/// `stored_offset`.
#[derive(Clone)]
pub(super) struct ModuleMetrics {
    registry: Registry,
    module: String,
    topic: String,
    /// Attempts whose answer is a delivery: a status 2xx, unless `outcomes` says otherwise.
    pub(super) pushes_ok: IntCounter,
    /// Attempts whose answer is no delivery.
    pub(super) pushes_refused: IntCounter,
    /// Attempts without an answer, or whose request could not be sent.
    pub(super) pushes_failed: IntCounter,
    /// Duration of the attempts, in seconds.
    pub(super) push_seconds: Histogram,
    /// Messages that are delivered.
    pub(super) delivered: IntCounter,
    /// Messages whose method is not configured.
    pub(super) filtered: IntCounter,
    /// Messages without a readable method, in a module that configures `methods`.
    pub(super) undecodable: IntCounter,
    /// Messages given up after the last retry, or because no request can carry them, without a dead letter.
    pub(super) given_up: IntCounter,
    /// Messages that an operator has skipped.
    pub(super) skipped: IntCounter,
    /// Messages that `outcomes` drops.
    pub(super) dropped: IntCounter,
    /// Messages done because their dead letter is stored.
    pub(super) dead_lettered: IntCounter,
    /// Tombstones skipped because of `tombstones: skip`.
    pub(super) tombstones: IntCounter,
    /// Dead letters that were stored.
    pub(super) letters_stored: IntCounter,
    /// Attempts to store a dead letter that failed.
    pub(super) letters_failed: IntCounter,
    /// Messages that wait for their dead letter.
    pub(super) letters_waiting: IntGauge,
    /// Messages pushed and not done.
    pub(super) window_in_use: IntGauge,
    /// Memory of the messages read and not done.
    pub(super) in_flight_bytes: IntGauge,
    /// Partitions that this process pushes.
    pub(super) assigned: IntGauge,
    /// Messages that Kafka had deleted before they were read.
    pub(super) offset_gap: IntCounter,
    /// Messages that were read and that Kafka then lost in an unclean leader election.
    pub(super) truncated: IntCounter,
    /// Errors while reading from the broker.
    pub(super) fetch_errors: IntCounter,
    /// Restarts of the module after one of its threads failed.
    pub(super) restarts: IntCounter,
    /// Partitions assigned to this process whose stored offset is not readable.
    pub(super) unreadable_offsets: IntGauge,
    /// Partitions of the topic that no member of the group owns.
    pub(super) unowned: IntGauge,
    /// Partitions that this process has claimed and that an operator has paused.
    pub(super) paused_partitions: IntGauge,
    /// How long the message that holds a commit point longest has held it.
    pub(super) head_of_line_seconds: IntGauge,
    /// Attempts of that message.
    pub(super) head_of_line_attempts: IntGauge,
    offset_resets: IntCounterVec,
    stored_offset: IntGaugeVec,
    backend_ejected: IntGaugeVec,
    backend_ejections: IntCounterVec,
    backend_probes: IntCounterVec,
}

/// The metrics of one backend of a module.
pub(super) struct BackendMetrics {
    /// 1 while the backend is ejected, also while it is probed; otherwise 0.
    pub(super) ejected: IntGauge,
    /// Ejections of the backend after failures in a row.
    pub(super) ejections_in_a_row: IntCounter,
    /// Ejections of the backend because of its failure rate.
    pub(super) ejections_by_rate: IntCounter,
    /// Probes that the backend answered.
    pub(super) probes_ok: IntCounter,
    /// Probes that failed.
    pub(super) probes_failed: IntCounter,
}

/// Why reading continues at another offset than the stored or the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OffsetReset {
    /// Kafka deleted the messages before they were read.
    Deleted,
    /// The topic was deleted and created again.
    Recreated,
    /// Kafka lost messages that were read, in an unclean leader election.
    Truncated,
    /// The offset is larger than the log end offset, for an unknown reason.
    BeyondEnd,
}

impl OffsetReset {
    const ALL: [OffsetReset; 4] =
        [OffsetReset::Deleted, OffsetReset::Recreated, OffsetReset::Truncated, OffsetReset::BeyondEnd];

    fn label(self) -> &'static str {
        match self {
            OffsetReset::Deleted => "deleted",
            OffsetReset::Recreated => "recreated",
            OffsetReset::Truncated => "truncated",
            OffsetReset::BeyondEnd => "beyond_end",
        }
    }
}

impl Metrics {
    /// Creates all metrics in `registry`.
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| registry.counter(name, help, labels);
        Metrics {
            registry: registry.clone(),
            pushes: counter(
                "ktransfer_pushes_total",
                "Attempts to push a message, by outcome.",
                &["module", "outcome"],
            ),
            push_seconds: registry.histogram(
                "ktransfer_push_seconds",
                "Duration of an attempt to push.",
                &["module"],
                SECONDS_BUCKETS,
            ),
            messages: counter(
                "ktransfer_messages_total",
                "Messages done: delivered, filtered out by their method, undecodable, given up after the last retry, \
                 dropped by the table outcomes, stored as a dead letter, a tombstone, or skipped by an operator.",
                &["module", "outcome"],
            ),
            window_in_use: registry.gauge(
                "ktransfer_window_in_use",
                "Messages pushed and not done: on the wire, or waiting for the next attempt.",
                &["module"],
            ),
            in_flight_bytes: registry.gauge(
                "ktransfer_in_flight_bytes",
                "Memory of the messages read and not done, in bytes.",
                &["module"],
            ),
            stored_offset: registry.gauge(
                "ktransfer_stored_offset",
                "Commit point: the next message to read after a restart.",
                &["module", "topic", "partition"],
            ),
            assigned: registry.gauge("ktransfer_partitions", "Partitions that this process pushes.", &["module"]),
            offset_gap: counter(
                "ktransfer_offset_gap_messages_total",
                "Messages that the broker had deleted before they were read.",
                &["module"],
            ),
            offset_resets: counter(
                "ktransfer_offset_resets_total",
                "Partitions that continued at another offset: messages deleted before they were read, topic \
                 recreated, log truncated by an unclean leader election, or offset beyond the log end.",
                &["module", "reason"],
            ),
            truncated: counter(
                "ktransfer_truncated_messages_total",
                "Messages that were read and that the brokers then lost in an unclean leader election.",
                &["module"],
            ),
            fetch_errors: counter("ktransfer_fetch_errors_total", "Errors while reading from the broker.", &["module"]),
            restarts: counter(
                "ktransfer_module_restarts_total",
                "Restarts after a thread of the module failed.",
                &["module"],
            ),
            unreadable_offsets: registry.gauge(
                "ktransfer_unreadable_offsets",
                "Partitions that are not read because their stored offset is no number.",
                &["module"],
            ),
            unowned: registry.gauge(
                "ktransfer_unowned_partitions",
                "Partitions of the topic that no member of the group owns.",
                &["module"],
            ),
            paused_partitions: registry.gauge(
                "ktransfer_paused_partitions",
                "Partitions of this process that an operator has paused.",
                &["module"],
            ),
            head_of_line_seconds: registry.gauge(
                "ktransfer_head_of_line_seconds",
                "Time for which one message has held the commit point of its partition; the longest of all partitions.",
                &["module"],
            ),
            head_of_line_attempts: registry.gauge(
                "ktransfer_head_of_line_attempts",
                "Attempts to push the message that has held the commit point of its partition longest.",
                &["module"],
            ),
            backend_ejected: registry.gauge(
                "ktransfer_backend_ejected",
                "1 while the backend is out of use because it failed, 0 while it is in use.",
                &["module", "backend"],
            ),
            backend_ejections: counter(
                "ktransfer_backend_ejections_total",
                "How often the backend was taken out of use because it failed, by the rule: the key of ejection.",
                &["module", "backend", "rule"],
            ),
            backend_probes: counter(
                "ktransfer_backend_probes_total",
                "Pushes to a backend that is out of use, by outcome.",
                &["module", "backend", "outcome"],
            ),
            letters: counter(
                "ktransfer_dead_letters_total",
                "Attempts to store a dead letter, by result.",
                &["module", "result"],
            ),
            letters_waiting: registry.gauge(
                "ktransfer_dead_letters_waiting",
                "Messages that wait until their dead letter is stored.",
                &["module"],
            ),
        }
    }

    /// Returns the metrics of one module.
    pub(super) fn of_module(&self, module: &str, topic: &str) -> ModuleMetrics {
        let pushes = |outcome: &str| self.pushes.with_label_values(&[module, outcome]);
        let messages = |outcome: &str| self.messages.with_label_values(&[module, outcome]);
        // So that the series exist with the value 0.
        for reset in OffsetReset::ALL {
            self.offset_resets.with_label_values(&[module, reset.label()]);
        }
        ModuleMetrics {
            registry: self.registry.clone(),
            module: module.to_owned(),
            topic: topic.to_owned(),
            pushes_ok: pushes("ok"),
            pushes_refused: pushes("refused"),
            pushes_failed: pushes("failed"),
            push_seconds: self.push_seconds.with_label_values(&[module]),
            delivered: messages("delivered"),
            filtered: messages("filtered"),
            undecodable: messages("undecodable"),
            given_up: messages("given_up"),
            skipped: messages("skipped"),
            dropped: messages("dropped"),
            dead_lettered: messages("dead_letter"),
            tombstones: messages("tombstone"),
            letters_stored: self.letters.with_label_values(&[module, "stored"]),
            letters_failed: self.letters.with_label_values(&[module, "failed"]),
            letters_waiting: self.letters_waiting.with_label_values(&[module]),
            window_in_use: self.window_in_use.with_label_values(&[module]),
            in_flight_bytes: self.in_flight_bytes.with_label_values(&[module]),
            assigned: self.assigned.with_label_values(&[module]),
            offset_gap: self.offset_gap.with_label_values(&[module]),
            offset_resets: self.offset_resets.clone(),
            truncated: self.truncated.with_label_values(&[module]),
            fetch_errors: self.fetch_errors.with_label_values(&[module]),
            restarts: self.restarts.with_label_values(&[module]),
            unreadable_offsets: self.unreadable_offsets.with_label_values(&[module]),
            unowned: self.unowned.with_label_values(&[module]),
            paused_partitions: self.paused_partitions.with_label_values(&[module]),
            head_of_line_seconds: self.head_of_line_seconds.with_label_values(&[module]),
            head_of_line_attempts: self.head_of_line_attempts.with_label_values(&[module]),
            stored_offset: self.stored_offset.clone(),
            backend_ejected: self.backend_ejected.clone(),
            backend_ejections: self.backend_ejections.clone(),
            backend_probes: self.backend_probes.clone(),
        }
    }
}

impl ModuleMetrics {
    /// Returns what was counted since the start of the process.
    pub(super) fn counts(&self) -> MessageCounts {
        let sum = |counters: &[&IntCounter]| counters.iter().map(|counter| counter.get()).sum();
        MessageCounts {
            delivered: self.delivered.get(),
            filtered: sum(&[&self.filtered, &self.undecodable, &self.tombstones]),
            given_up: sum(&[&self.given_up, &self.dropped]),
            dead_lettered: self.dead_lettered.get(),
            skipped: self.skipped.get(),
            failed_attempts: sum(&[&self.pushes_refused, &self.pushes_failed]),
            dead_letters_waiting: u64::try_from(self.letters_waiting.get()).unwrap_or(0),
        }
    }

    /// Counts a partition that continues at another offset.
    pub(super) fn count_reset(&self, reset: OffsetReset) {
        self.offset_resets.with_label_values(&[self.module.as_str(), reset.label()]).inc();
    }

    /// Returns the metrics of a backend, an entry of `backend_servers`, which is in use.
    pub(super) fn of_backend(&self, server: &str) -> BackendMetrics {
        let labels = [self.module.as_str(), server];
        let probes = |outcome: &str| self.backend_probes.with_label_values(&[labels[0], labels[1], outcome]);
        let ejected = self.backend_ejected.with_label_values(&labels);
        // It may be 1 from before a restart of the module.
        ejected.set(0);
        let ejections = |rule: &str| self.backend_ejections.with_label_values(&[labels[0], labels[1], rule]);
        BackendMetrics {
            ejected,
            ejections_in_a_row: ejections("failures"),
            ejections_by_rate: ejections("failure_percent"),
            probes_ok: probes("ok"),
            probes_failed: probes("failed"),
        }
    }

    /// Removes the metrics of a backend that is no longer configured.
    pub(super) fn forget_backend(&self, server: &str) {
        self.registry.remove_series(&[("module", &self.module), ("backend", server)]);
    }

    /// Returns the gauge that shows the commit point of a partition.
    pub(super) fn commit_point(&self, partition: PartitionId) -> IntGauge {
        self.stored_offset.with_label_values(&[self.module.as_str(), &self.topic, &partition.to_string()])
    }

    /// Removes the commit point gauge of a partition that this process no longer owns.
    pub(super) fn forget_commit_point(&self, partition: PartitionId) {
        let labels = [self.module.as_str(), &self.topic, &partition.to_string()];
        // An error means that the gauge is already removed, by a dispatcher of this module that was started later than
        // this one.
        let _ = self.stored_offset.remove_label_values(&labels);
    }
}
