//! The metrics of kproxy, and which topics have a label of their own.
//!
//! A topic gets a label when the first message is stored in it; only the first [`MAX_TOPICS`] topics get one. So topic
//! names that a client invents take neither memory nor labels.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::broker::Acks;
use crate::locks::{read, write};
use crate::metrics::{Registry, SECONDS_BUCKETS, count};

/// Largest number of topics with a label of their own.
const MAX_TOPICS: usize = 1000;
/// The label that all other topics share. No topic can have this name.
pub(super) const OTHER_TOPICS: &str = "(other)";
const ACKS_LEVELS: [Acks; 3] = [Acks::None, Acks::Leader, Acks::All];

/// The metrics of kproxy.
pub(super) struct KproxyMetrics {
    commits: IntCounterVec,
    batches: IntCounterVec,
    seconds: [Histogram; 3],
    pub(super) pool_full: IntCounter,
    pub(super) in_flight: IntGauge,
    pub(super) in_flight_bytes: IntGauge,
    pub(super) topic_lookups: IntCounter,
    topics: RwLock<HashMap<Arc<str>, TopicCounters>>,
    /// The counters of [`OTHER_TOPICS`], once all labels are used.
    others: OnceLock<Arc<[IntCounter; 3]>>,
}

/// Commits that were answered alike.
pub(super) struct Answered {
    /// The label of the topic; empty for requests that were refused before anything was sent to Kafka.
    pub(super) topic: String,
    /// The label of the acks level.
    pub(super) acks: String,
    /// The status.
    pub(super) code: u16,
    pub(super) count: u64,
}

/// A topic's name, and its counters if it has a label of its own.
#[derive(Clone)]
pub(super) struct TopicCounters {
    pub(super) name: Arc<str>,
    /// Counters of stored messages by acks level; `None` if the topic has no label of its own.
    stored: Option<Arc<[IntCounter; 3]>>,
}

impl KproxyMetrics {
    /// Registers all metrics.
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds: HistogramVec = registry.histogram(
            "kproxy_commit_seconds",
            "Time from a complete request to its answer, for messages handed to Kafka.",
            &["acks"],
            SECONDS_BUCKETS,
        );
        let gauge = |name, help| registry.gauge(name, help, &[]).with_label_values::<&str>(&[]);
        KproxyMetrics {
            commits: registry.counter(
                "kproxy_commits_total",
                "Commits answered, by status; topic is (other) until a message is stored in it, or beyond 1000 topics.",
                &["topic", "acks", "code"],
            ),
            pool_full: registry
                .counter(
                    "kproxy_pool_full_total",
                    "Requests refused because too few of the req_pool_size slots were free.",
                    &[],
                )
                .with_label_values::<&str>(&[]),
            batches: registry.counter(
                "kproxy_batches_total",
                "Requests to /commit_batch answered, by status.",
                &["code"],
            ),
            seconds: ACKS_LEVELS.map(|acks| seconds.with_label_values(&[acks_label(acks)])),
            in_flight: gauge("kproxy_commits_in_flight", "Commits in flight to Kafka, sampled once a second."),
            in_flight_bytes: gauge("kproxy_in_flight_bytes", "Bytes of requests in memory, sampled once a second."),
            topic_lookups: registry
                .counter(
                    "kproxy_topic_lookups_total",
                    "Metadata requests to the brokers about a topic, sampled once a second.",
                    &[],
                )
                .with_label_values::<&str>(&[]),
            topics: RwLock::default(),
            others: OnceLock::new(),
        }
    }

    /// Returns the topic of this name, with its counters if it has a label.
    pub(super) fn topic(&self, name: &str) -> TopicCounters {
        let topics = read(&self.topics);
        topics.get(name).cloned().unwrap_or_else(|| TopicCounters { name: name.into(), stored: None })
    }

    /// Counts a message that Kafka confirmed.
    pub(super) fn stored(&self, topic: &TopicCounters, acks: Acks, took: Duration) {
        self.seconds[index(acks)].observe(took.as_secs_f64());
        match &topic.stored {
            Some(counters) => counters[index(acks)].inc(),
            None => match self.others.get().filter(|_| !self.has_label(topic)) {
                Some(others) => others[index(acks)].inc(),
                None => self.add_topic(topic)[index(acks)].inc(),
            },
        }
    }

    fn has_label(&self, topic: &TopicCounters) -> bool {
        read(&self.topics).contains_key(&topic.name)
    }

    /// Gives a topic its label and returns its counters; once all labels are used, returns the counters of `other`.
    fn add_topic(&self, topic: &TopicCounters) -> Arc<[IntCounter; 3]> {
        let counters = |label: &str| {
            Arc::new(ACKS_LEVELS.map(|acks| self.commits.with_label_values(&[label, acks_label(acks), "200"])))
        };
        let mut topics = write(&self.topics);
        if topics.len() >= MAX_TOPICS && !topics.contains_key(&topic.name) {
            return Arc::clone(self.others.get_or_init(|| counters(OTHER_TOPICS)));
        }
        // Another thread may have added the topic before this one got the lock.
        let entry = topics
            .entry(Arc::clone(&topic.name))
            .or_insert_with(|| TopicCounters { name: Arc::clone(&topic.name), stored: Some(counters(&topic.name)) });
        entry.stored.clone().unwrap_or_else(|| counters(OTHER_TOPICS))
    }

    /// Counts a message that Kafka did not confirm.
    pub(super) fn not_stored(&self, topic: &TopicCounters, acks: Acks, status: u16, took: Duration) {
        self.seconds[index(acks)].observe(took.as_secs_f64());
        // A topic without a stored message may not exist at all.
        let label = if topic.stored.is_some() { &*topic.name } else { OTHER_TOPICS };
        self.commits.with_label_values(&[label, acks_label(acks), &status.to_string()]).inc();
    }

    /// Returns the commits answered so far.
    pub(super) fn answered(&self) -> Vec<Answered> {
        let families = self.commits.collect();
        let answered = |metric| {
            let (labels, count) = count(metric);
            // In the order of their names.
            let [acks, code, topic] = <[String; 3]>::try_from(labels).ok()?;
            Some(Answered { topic, acks, code: code.parse().ok()?, count })
        };
        families.iter().flat_map(|family| family.get_metric()).filter_map(answered).collect()
    }

    /// Returns for each acks level its name, the number of messages handed to Kafka and answered, and how many of them
    /// took longer than a second.
    pub(super) fn waits(&self) -> [(&'static str, u64, u64); 3] {
        std::array::from_fn(|index| {
            let histogram = &self.seconds[index];
            let total = histogram.get_sample_count();
            let family = histogram.collect();
            let buckets = family.iter().flat_map(|family| family.get_metric()).flat_map(|metric| {
                metric
                    .get_histogram()
                    .get_bucket()
                    .iter()
                    .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
            });
            let quick = buckets.filter(|(bound, _)| *bound <= 1.0).map(|(_, count)| count).max().unwrap_or(0);
            (acks_label(ACKS_LEVELS[index]), total, total.saturating_sub(quick))
        })
    }

    /// Counts an answered batch. `stored` and `not_stored` also count each of its messages that was handed to Kafka.
    pub(super) fn batch(&self, status: u16) {
        self.batches.with_label_values(&[&status.to_string()]).inc();
    }

    /// Counts a request that was refused before anything was sent to Kafka.
    pub(super) fn refused(&self, status: u16) {
        self.commits.with_label_values(&["", "", &status.to_string()]).inc();
    }
}

fn index(acks: Acks) -> usize {
    match acks {
        Acks::None => 0,
        Acks::Leader => 1,
        Acks::All => 2,
    }
}

pub(super) fn acks_label(acks: Acks) -> &'static str {
    match acks {
        Acks::None => "0",
        Acks::Leader => "1",
        Acks::All => "-1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_topics_with_a_stored_message_get_a_label_up_to_the_maximum() {
        let registry = Registry::new();
        let metrics = KproxyMetrics::new(&registry);
        metrics.not_stored(&metrics.topic("made-up"), Acks::Leader, 404, Duration::ZERO);
        // A topic of this name is one like the others.
        metrics.stored(&metrics.topic("other"), Acks::All, Duration::ZERO);
        for number in 0..MAX_TOPICS {
            for _ in 0..2 {
                metrics.stored(&metrics.topic(&format!("t{number}")), Acks::All, Duration::ZERO);
            }
        }
        metrics.not_stored(&metrics.topic("t0"), Acks::None, 504, Duration::ZERO);
        metrics.refused(400);
        let text = String::from_utf8(registry.render()).unwrap();
        for line in [
            "kproxy_commits_total{acks=\"1\",code=\"404\",topic=\"(other)\"} 1",
            "kproxy_commits_total{acks=\"-1\",code=\"200\",topic=\"t998\"} 2",
            "kproxy_commits_total{acks=\"-1\",code=\"200\",topic=\"(other)\"} 2",
            "kproxy_commits_total{acks=\"-1\",code=\"200\",topic=\"other\"} 1",
            "kproxy_commits_total{acks=\"0\",code=\"504\",topic=\"t0\"} 1",
            "kproxy_commits_total{acks=\"\",code=\"400\",topic=\"\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing");
        }
        assert!(!text.contains("made-up") && !text.contains("t999"));
    }
}
