//! The rate of answered commits for each topic and status over the last minute, from the counters that `/metrics`
//! shows.
//!
//! Bound: a topic has a label, and with it an entry here, only if a message was stored in it; at most 1,000 have.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::metrics::KproxyMetrics;
use crate::locks::lock;
use crate::rates::Rates;

/// Interval of the samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// The traffic of the last minute.
pub(super) struct Traffic {
    started: Instant,
    state: Mutex<TrafficState>,
}

#[derive(Default)]
struct TrafficState {
    next: Option<Instant>,
    /// By the label of the topic, empty for requests that were refused before anything was sent to Kafka, and status.
    topics: BTreeMap<String, BTreeMap<u16, CodeTraffic>>,
    /// By acks level: messages answered, and those of them that took longer than a second.
    waits: [Rates<2>; 3],
}

#[derive(Clone, Default)]
struct CodeTraffic {
    /// Commits by the label of the acks level.
    totals: BTreeMap<String, u64>,
    rates: Rates<1>,
}

/// The traffic of one topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TopicTraffic {
    /// The label of the topic.
    pub(super) topic: String,
    pub(super) codes: Vec<StatusTraffic>,
}

/// The commits that were answered with one status.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StatusTraffic {
    pub(super) code: u16,
    /// Commits since the start, by the label of the acks level.
    pub(super) totals: Vec<(String, u64)>,
    /// Commits in a second; `None` for the first seconds.
    pub(super) per_second: Option<f64>,
}

impl Traffic {
    pub(super) fn new() -> Traffic {
        Traffic { started: Instant::now(), state: Mutex::default() }
    }

    /// Takes the counters if a sample is due.
    pub(super) fn sample(&self, metrics: &KproxyMetrics, now: Instant) {
        if lock(&self.state).next.is_some_and(|next| now < next) {
            return;
        }
        let (answered, waits) = (metrics.answered(), metrics.waits());
        let elapsed = now.saturating_duration_since(self.started);
        let mut state = lock(&self.state);
        state.next = Some(now + SAMPLE_INTERVAL);
        for series in answered {
            let code =
                state.topics.entry(series.topic).or_default().entry(series.code).or_insert_with(|| CodeTraffic {
                    // A new series has counted from 0 since the previous sample.
                    rates: started_at_zero(elapsed),
                    totals: BTreeMap::new(),
                });
            code.totals.insert(series.acks, series.count);
        }
        for code in state.topics.values_mut().flat_map(BTreeMap::values_mut) {
            code.rates.record_totals(elapsed, [code.totals.values().sum()]);
        }
        for (rates, (_, total, slow)) in state.waits.iter_mut().zip(waits) {
            rates.record_totals(elapsed, [total, slow]);
        }
    }

    /// Returns the traffic of all topics, by name.
    pub(super) fn topics(&self) -> Vec<TopicTraffic> {
        let status = |(code, traffic): (&u16, &CodeTraffic)| StatusTraffic {
            code: *code,
            totals: traffic.totals.iter().map(|(acks, count)| (acks.clone(), *count)).collect(),
            per_second: traffic.rates.per_second().map(|[rate]| rate),
        };
        let topic = |(topic, codes): (&String, &BTreeMap<u16, CodeTraffic>)| TopicTraffic {
            topic: topic.clone(),
            codes: codes.iter().map(status).collect(),
        };
        lock(&self.state).topics.iter().map(topic).collect()
    }

    /// Returns for each acks level the messages answered in a second, and those of them that took longer than a second.
    pub(super) fn waits(&self) -> [Option<[f64; 2]>; 3] {
        let state = lock(&self.state);
        std::array::from_fn(|index| state.waits[index].per_second())
    }
}

/// Returns rates with the count 0 at the sample before `elapsed`.
fn started_at_zero(elapsed: Duration) -> Rates<1> {
    let mut rates = Rates::default();
    if let Some(before) = elapsed.checked_sub(SAMPLE_INTERVAL) {
        rates.record_totals(before, [0]);
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Acks;
    use crate::metrics::Registry;

    #[test]
    fn the_traffic_of_a_topic_is_that_of_its_counters() {
        let metrics = KproxyMetrics::new(&Registry::new());
        let traffic = Traffic::new();
        let mut now = traffic.started;
        let slow = Duration::from_millis(1_500);
        for second in 0..120_u32 {
            now += Duration::from_secs(1);
            for _ in 0..4 {
                metrics.stored(&metrics.topic("t"), Acks::All, Duration::from_millis(3));
            }
            metrics.not_stored(&metrics.topic("t"), Acks::Leader, 504, slow);
            if second < 30 {
                metrics.refused(400);
            }
            traffic.sample(&metrics, now);
        }
        let topics = traffic.topics();
        let names: Vec<&str> = topics.iter().map(|topic| &*topic.topic).collect();
        assert_eq!(names, ["", "t"]);
        let rate = |topic: usize, code: u16| {
            let status = topics[topic].codes.iter().find(|status| status.code == code).unwrap();
            (status.per_second.unwrap(), status.totals.clone())
        };
        assert_eq!(rate(0, 400), (0.0, vec![(String::new(), 30)]), "not in the last minute");
        let (stored, totals) = rate(1, 200);
        assert!((stored - 4.0).abs() < 0.01 && totals.contains(&("-1".to_owned(), 4 * 116)), "{stored} {totals:?}");
        let (unknown, _) = rate(1, 504);
        assert!((unknown - 1.0).abs() < 0.01, "{unknown}");
        let [none, leader, all] = traffic.waits();
        assert_eq!(none, Some([0.0, 0.0]));
        assert!(leader.is_some_and(|[total, late]| (total - 1.0).abs() < 0.01 && (late - 1.0).abs() < 0.01));
        assert!(all.is_some_and(|[total, late]| (total - 4.0).abs() < 0.01 && late == 0.0));
    }

    #[test]
    fn samples_are_taken_at_intervals_and_a_new_topic_began_at_zero() {
        let metrics = KproxyMetrics::new(&Registry::new());
        let traffic = Traffic::new();
        let at = |seconds| traffic.started + Duration::from_secs(seconds);
        traffic.sample(&metrics, at(0));
        metrics.stored(&metrics.topic("t"), Acks::None, Duration::ZERO);
        traffic.sample(&metrics, at(4));
        assert!(traffic.topics().is_empty());
        traffic.sample(&metrics, at(20));
        assert_eq!(traffic.topics()[0].codes[0].per_second, None);
        traffic.sample(&metrics, at(25));
        assert_eq!(traffic.topics()[0].codes[0].per_second, Some(0.1));
    }
}
