//! The metrics of ktransfer, and those of one module with their labels filled in.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::broker::PartitionId;
use crate::metrics::{Registry, SECONDS_BUCKETS};

/// The metrics of the daemon. Made once; clones share them.
#[derive(Clone)]
pub(super) struct Metrics {
    pushes: IntCounterVec,
    push_seconds: HistogramVec,
    messages: IntCounterVec,
    window_in_use: IntGaugeVec,
    stored_offset: IntGaugeVec,
    assigned: IntGaugeVec,
    offset_gap: IntCounterVec,
    fetch_errors: IntCounterVec,
    restarts: IntCounterVec,
}

/// The metrics of one module, looked up once.
#[derive(Clone)]
pub(super) struct ModuleMetrics {
    module: String,
    topic: String,
    /// Attempts that were answered 2xx.
    pub(super) pushes_ok: IntCounter,
    /// Attempts answered otherwise.
    pub(super) pushes_refused: IntCounter,
    /// Attempts without an answer.
    pub(super) pushes_failed: IntCounter,
    /// Duration of the attempts.
    pub(super) push_seconds: Histogram,
    /// Messages delivered.
    pub(super) delivered: IntCounter,
    /// Messages whose method is not configured.
    pub(super) filtered: IntCounter,
    /// Messages without a method where methods are configured.
    pub(super) undecodable: IntCounter,
    /// Messages given up after the last retry, or because no request can carry them.
    pub(super) given_up: IntCounter,
    /// Messages handed out and not done.
    pub(super) window_in_use: IntGauge,
    /// Partitions this process pushes.
    pub(super) assigned: IntGauge,
    /// Messages that were deleted before they were read.
    pub(super) offset_gap: IntCounter,
    /// Errors while reading from the broker.
    pub(super) fetch_errors: IntCounter,
    /// Restarts after one of the module's threads failed.
    pub(super) restarts: IntCounter,
    stored_offset: IntGaugeVec,
}

impl Metrics {
    /// Registers all of them.
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| registry.counter(name, help, labels);
        Metrics {
            pushes: counter("ktransfer_pushes_total", "Attempts to push, by how they ended.", &["module", "outcome"]),
            push_seconds: registry.histogram(
                "ktransfer_push_seconds",
                "Duration of an attempt to push.",
                &["module"],
                SECONDS_BUCKETS,
            ),
            messages: counter(
                "ktransfer_messages_total",
                "Messages done: delivered, filtered out by their method, undecodable, or given up after the last \
                 retry.",
                &["module", "outcome"],
            ),
            window_in_use: registry.gauge(
                "ktransfer_window_in_use",
                "Messages handed to the workers and not done.",
                &["module"],
            ),
            stored_offset: registry.gauge(
                "ktransfer_stored_offset",
                "Commit point: the next message to read after a restart.",
                &["module", "topic", "partition"],
            ),
            assigned: registry.gauge("ktransfer_partitions", "Partitions this process pushes.", &["module"]),
            offset_gap: counter(
                "ktransfer_offset_gap_messages_total",
                "Messages that the broker had deleted before they were read.",
                &["module"],
            ),
            fetch_errors: counter("ktransfer_fetch_errors_total", "Errors while reading from the broker.", &["module"]),
            restarts: counter("ktransfer_module_restarts_total", "Restarts after a failure inside.", &["module"]),
        }
    }

    /// The metrics of one module.
    pub(super) fn of_module(&self, module: &str, topic: &str) -> ModuleMetrics {
        let pushes = |outcome: &str| self.pushes.with_label_values(&[module, outcome]);
        let messages = |outcome: &str| self.messages.with_label_values(&[module, outcome]);
        ModuleMetrics {
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
            window_in_use: self.window_in_use.with_label_values(&[module]),
            assigned: self.assigned.with_label_values(&[module]),
            offset_gap: self.offset_gap.with_label_values(&[module]),
            fetch_errors: self.fetch_errors.with_label_values(&[module]),
            restarts: self.restarts.with_label_values(&[module]),
            stored_offset: self.stored_offset.clone(),
        }
    }
}

impl ModuleMetrics {
    /// The gauge with the commit point of a partition.
    pub(super) fn commit_point(&self, partition: PartitionId) -> IntGauge {
        self.stored_offset.with_label_values(&[self.module.as_str(), &self.topic, &partition.to_string()])
    }

    /// Removes the gauge: the partition is not ours any more.
    pub(super) fn forget_commit_point(&self, partition: PartitionId) {
        let labels = [self.module.as_str(), &self.topic, &partition.to_string()];
        // An error means that it is removed already: a dispatcher that outlived the grace may end after its successor.
        let _ = self.stored_offset.remove_label_values(&labels);
    }
}
