//! What kproxy counts, and the topics it counts by name.
//!
//! A topic gets a label of its own once a message was stored in it, and only the first [`MAX_TOPICS`] do: names that
//! strangers make up take neither memory nor labels.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::broker::Acks;
use crate::locks::{read, write};
use crate::metrics::{Registry, SECONDS_BUCKETS};

/// Topics with a label of their own.
const MAX_TOPICS: usize = 1000;
/// The label of all others.
const OTHER_TOPICS: &str = "other";
const LEVELS: [Acks; 3] = [Acks::None, Acks::Leader, Acks::All];

/// The metrics of kproxy.
pub(super) struct Metrics {
    commits: IntCounterVec,
    batches: IntCounterVec,
    seconds: [Histogram; 3],
    pub(super) pool_full: IntCounter,
    pub(super) in_flight: IntGauge,
    pub(super) in_flight_bytes: IntGauge,
    pub(super) topic_lookups: IntCounter,
    known: RwLock<HashMap<Arc<str>, Topic>>,
}

/// A topic as commits carry it.
#[derive(Clone)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    /// Counters of successes by level; `None` until the topic is known.
    stored: Option<Arc<[IntCounter; 3]>>,
}

impl Metrics {
    /// Registers them.
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds: HistogramVec = registry.histogram(
            "kproxy_commit_seconds",
            "From a complete request to its answer, for messages given to Kafka.",
            &["acks"],
            SECONDS_BUCKETS,
        );
        let gauge = |name, help| registry.gauge(name, help, &[]).with_label_values::<&str>(&[]);
        Metrics {
            commits: registry.counter(
                "kproxy_commits_total",
                "CommitHandler answered, by status; topics nothing was stored in are other.",
                &["topic", "acks", "code"],
            ),
            pool_full: registry
                .counter(
                    "kproxy_pool_full_total",
                    "CommitHandler refused because req_pool_size of them waited for Kafka.",
                    &[],
                )
                .with_label_values::<&str>(&[]),
            batches: registry.counter(
                "kproxy_batches_total",
                "Requests to /commit_batch answered, by status.",
                &["code"],
            ),
            seconds: LEVELS.map(|acks| seconds.with_label_values(&[level(acks)])),
            in_flight: gauge("kproxy_commits_in_flight", "CommitHandler that wait for Kafka, at most a second ago."),
            in_flight_bytes: gauge("kproxy_in_flight_bytes", "Bytes of bodies in memory, at most a second ago."),
            topic_lookups: registry
                .counter(
                    "kproxy_topic_lookups_total",
                    "Questions to the brokers about a topic, at most a second ago.",
                    &[],
                )
                .with_label_values::<&str>(&[]),
            known: RwLock::default(),
        }
    }

    /// The topic of this name.
    pub(super) fn topic(&self, name: &str) -> Topic {
        let known = read(&self.known);
        known.get(name).cloned().unwrap_or_else(|| Topic { name: name.into(), stored: None })
    }

    /// A message was stored.
    pub(super) fn stored(&self, topic: &Topic, acks: Acks, took: Duration) {
        self.seconds[index(acks)].observe(took.as_secs_f64());
        match &topic.stored {
            Some(counters) => counters[index(acks)].inc(),
            None => self.learn(topic)[index(acks)].inc(),
        }
    }

    fn learn(&self, topic: &Topic) -> Arc<[IntCounter; 3]> {
        let counters =
            |label: &str| Arc::new(LEVELS.map(|acks| self.commits.with_label_values(&[label, level(acks), "200"])));
        let mut known = write(&self.known);
        if known.len() >= MAX_TOPICS && !known.contains_key(&topic.name) {
            return counters(OTHER_TOPICS);
        }
        let entry = known
            .entry(Arc::clone(&topic.name))
            .or_insert_with(|| Topic { name: Arc::clone(&topic.name), stored: Some(counters(&topic.name)) });
        entry.stored.clone().unwrap_or_else(|| counters(OTHER_TOPICS))
    }

    /// Kafka did not confirm a message.
    pub(super) fn not_stored(&self, topic: &Topic, acks: Acks, status: u16, took: Duration) {
        self.seconds[index(acks)].observe(took.as_secs_f64());
        let label = if topic.stored.is_some() { &*topic.name } else { OTHER_TOPICS };
        self.commits.with_label_values(&[label, level(acks), &status.to_string()]).inc();
    }

    /// A batch was answered; its messages, where it had any for Kafka, are counted on their own.
    pub(super) fn batch(&self, status: u16) {
        self.batches.with_label_values(&[&status.to_string()]).inc();
    }

    /// A request was refused before Kafka had to do with it.
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

fn level(acks: Acks) -> &'static str {
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
    fn only_topics_that_stored_something_get_a_label_and_not_too_many() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        metrics.not_stored(&metrics.topic("made-up"), Acks::Leader, 404, Duration::ZERO);
        for number in 0..=MAX_TOPICS {
            for _ in 0..2 {
                metrics.stored(&metrics.topic(&format!("t{number}")), Acks::All, Duration::ZERO);
            }
        }
        metrics.not_stored(&metrics.topic("t0"), Acks::None, 504, Duration::ZERO);
        metrics.refused(400);
        let text = String::from_utf8(registry.render()).unwrap();
        for line in [
            "kproxy_commits_total{acks=\"1\",code=\"404\",topic=\"other\"} 1",
            "kproxy_commits_total{acks=\"-1\",code=\"200\",topic=\"t999\"} 2",
            "kproxy_commits_total{acks=\"-1\",code=\"200\",topic=\"other\"} 2",
            "kproxy_commits_total{acks=\"0\",code=\"504\",topic=\"t0\"} 1",
            "kproxy_commits_total{acks=\"\",code=\"400\",topic=\"\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing");
        }
        assert!(!text.contains("made-up") && !text.contains("t1000"));
    }
}
