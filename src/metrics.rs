//! The registry of a daemon's metrics, which are exposed in the Prometheus text format.
//!
//! A daemon creates one [`Registry`] and keeps the returned counters in its own structs. Code that runs for each
//! request or message uses counters whose labels were looked up in advance. Label values must come from a bounded set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use prometheus::core::{Collector, Desc, MetricVec, MetricVecBuilder};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, TextEncoder};

use crate::locks::lock;

/// Upper bounds in seconds for the duration of a request that crosses a network: 0.5 ms to 60 s.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The metrics of one daemon. Clones share the metrics.
#[derive(Clone, Default)]
pub struct Registry {
    registry: prometheus::Registry,
    /// The metrics with labels, except tables.
    labelled: Arc<Mutex<Vec<Box<dyn Labelled>>>>,
}

impl Registry {
    /// Creates an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a counter for each combination of `labels`. The name must end in `_total`.
    pub fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let counter = IntCounterVec::new(Opts::new(name, help), labels).expect("metric names are constants");
        self.register_labelled(&counter);
        counter
    }

    /// Registers a counter that the whole process shares, and that other registries may have as well.
    pub(crate) fn shared_counter(&self, counter: &IntCounter) {
        self.register(counter.clone());
    }

    /// Registers a gauge for each combination of `labels`.
    pub fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels).expect("metric names are constants");
        self.register_labelled(&gauge);
        gauge
    }

    /// Registers a histogram for each combination of `labels`. `buckets` are the upper bounds, in the unit with which
    /// the name ends.
    pub fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = HistogramVec::new(options, labels).expect("metric names are constants");
        self.register_labelled(&histogram);
        histogram
    }

    /// Registers a gauge whose series are computed at each scrape: `rows` returns all current series, each combination
    /// of `labels` once. It is for series that appear and disappear, for instance with the partitions of a topic.
    pub fn table(&self, name: &str, help: &str, labels: &[&str], rows: impl Fn() -> Vec<Row> + Send + Sync + 'static) {
        let names: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let description = Desc::new(name.to_owned(), help.to_owned(), names.clone(), HashMap::new())
            .expect("metric names are constants");
        self.register(Table { description, labels: names, rows });
    }

    /// Removes every series that has all of these labels with these values, of all metrics but tables. A counter that
    /// code still holds is no longer shown.
    pub(crate) fn remove_series(&self, labels: &[(&str, &str)]) {
        for metric in lock(&self.labelled).iter() {
            metric.remove_series(labels);
        }
    }

    fn register_labelled<T: MetricVecBuilder + 'static>(&self, metric: &MetricVec<T>) {
        self.register(metric.clone());
        lock(&self.labelled).push(Box::new(metric.clone()));
    }

    fn register(&self, metric: impl prometheus::core::Collector + 'static) {
        self.registry.register(Box::new(metric)).expect("each metric is registered once");
    }

    /// Returns the counters of these names: the name, the values of the labels in the order of their names, the count.
    pub(crate) fn counts(&self, names: &[&str]) -> Vec<(String, Vec<String>, u64)> {
        let families = self.registry.gather();
        let wanted = families.iter().filter(|family| names.contains(&family.name()));
        let counts = |family: &MetricFamily| {
            let of_series = family.get_metric().iter().map(count);
            of_series.map(|(labels, count)| (family.name().to_owned(), labels, count)).collect::<Vec<_>>()
        };
        wanted.flat_map(counts).collect()
    }

    /// Returns all metrics in the Prometheus text exposition format, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory does not fail");
        text
    }
}

/// Returns the value of a counter, with the values of its labels in the order of their names.
pub(crate) fn count(metric: &Metric) -> (Vec<String>, u64) {
    let labels = metric.get_label().iter().map(|pair| pair.value().to_owned()).collect();
    // A counter of this program is a whole number, exact up to 2^53.
    (labels, metric.get_counter().get_value() as u64)
}

/// A metric with a series for each combination of its labels.
trait Labelled: Send {
    fn remove_series(&self, labels: &[(&str, &str)]);
}

impl<T: MetricVecBuilder> Labelled for MetricVec<T> {
    fn remove_series(&self, labels: &[(&str, &str)]) {
        for family in self.collect() {
            for series in family.get_metric() {
                let own: HashMap<&str, &str> =
                    series.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
                if labels.iter().all(|(label, value)| own.get(label) == Some(value)) {
                    // An error means that another thread has removed it.
                    let _ = self.remove(&own);
                }
            }
        }
    }
}

/// One series of a [`Registry::table`].
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Values of the labels, in the order of the `labels` of [`Registry::table`].
    pub labels: Vec<String>,
    /// Current value of the series.
    pub value: f64,
}

struct Table<F> {
    description: Desc,
    labels: Vec<String>,
    rows: F,
}

impl<F: Fn() -> Vec<Row> + Send + Sync> Collector for Table<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metric = |row: Row| {
            let pair = |(name, value): (&String, String)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.clone());
                pair.set_value(value);
                pair
            };
            let mut pairs: Vec<LabelPair> = self.labels.iter().zip(row.labels).map(pair).collect();
            pairs.sort_by(|one, other| one.name().cmp(other.name()));
            let mut gauge = Gauge::default();
            gauge.set_value(row.value);
            let mut metric = Metric::default();
            metric.set_label(pairs);
            metric.set_gauge(gauge);
            metric
        };
        let mut family = MetricFamily::default();
        family.set_name(self.description.fq_name.clone());
        family.set_help(self.description.help.clone());
        family.set_field_type(MetricType::GAUGE);
        family.set_metric((self.rows)().into_iter().map(metric).collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_are_rendered() {
        let registry = Registry::new();
        registry.counter("things_total", "Things.", &["kind"]).with_label_values(&["a"]).inc_by(3);
        registry.gauge("level", "Level.", &[]).with_label_values::<&str>(&[]).set(-2);
        let counts = registry.counts(&["things_total", "others_total"]);
        assert_eq!(counts, [("things_total".to_owned(), vec!["a".to_owned()], 3)]);
        let seconds = registry.histogram("seconds", "Seconds.", &["kind"], SECONDS_BUCKETS);
        for kind in ["a", "b"] {
            seconds.with_label_values(&[kind]).observe(0.1);
        }
        let text = String::from_utf8(registry.render()).unwrap();
        assert!(text.contains("things_total{kind=\"a\"} 3"), "{text}");
        assert!(text.contains("level -2"), "{text}");
        registry.clone().remove_series(&[("kind", "a")]);
        registry.remove_series(&[("kind", "b"), ("other", "b")]);
        let text = String::from_utf8(registry.render()).unwrap();
        assert!(!text.contains("kind=\"a\""), "{text}");
        assert!(text.contains("level -2") && text.contains("seconds_count{kind=\"b\"} 1"), "{text}");
    }
}
