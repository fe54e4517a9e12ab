//! The content of the page: each topic with its verdict, the connections to the brokers, the limits.

use crate::broker::ConnectionStatus;
use crate::html::Bytes;
use crate::html::assets::fnv;
use crate::html::query::{Choice, Parameters};
use crate::html::selection::Row;
use crate::html::{Count, Rate};
use crate::kproxy::metrics::OTHER_TOPICS;
use crate::kproxy::traffic::{StatusTraffic, TopicTraffic};

/// The page of kproxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyPage;

impl Parameters for ProxyPage {
    type Verdict = TopicVerdict;
    type Sort = Sort;
    const HAS_CLUSTERS: bool = false;
}

/// How the commits of a topic were answered in the last minute, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TopicVerdict {
    /// All were stored.
    Ok,
    /// Some were refused because of the request.
    Refused,
    /// Some could not be stored, or may or may not be stored.
    Failed,
}

impl Choice for TopicVerdict {
    const ALL: &'static [Self] = &[TopicVerdict::Ok, TopicVerdict::Refused, TopicVerdict::Failed];

    fn word(self) -> &'static str {
        match self {
            TopicVerdict::Ok => "OK",
            TopicVerdict::Refused => "REFUSED",
            TopicVerdict::Failed => "FAILED",
        }
    }
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// The worst verdict first, then the most commits.
    Worst,
    /// By the name of the topic.
    Name,
    /// The most commits stored in a second first.
    Rate,
}

impl Choice for Sort {
    const ALL: &'static [Self] = &[Sort::Worst, Sort::Name, Sort::Rate];

    fn word(self) -> &'static str {
        match self {
            Sort::Worst => "worst",
            Sort::Name => "name",
            Sort::Rate => "rate",
        }
    }
}

/// The content of the page at one time.
pub(crate) struct ProxyContent {
    /// Changes whenever the content is taken.
    pub(in crate::kproxy) number: u128,
    /// Whether a broker can be reached, or why not.
    pub(in crate::kproxy) broker: Result<(), String>,
    /// The parts of the configuration whose latest reload failed, each with the reason.
    pub(in crate::kproxy) failed_reloads: Vec<(&'static str, String)>,
    /// The topics, by name.
    pub(in crate::kproxy) topics: Vec<TopicRow>,
    /// The connections to brokers with the number of their producer; `None` if the engine does not report them.
    pub(in crate::kproxy) connections: Option<Vec<(usize, ConnectionStatus)>>,
    /// For acks 0, 1 and -1: messages answered in a second, and those of them that took longer than a second.
    pub(in crate::kproxy) waits: [Option<[f64; 2]>; 3],
    /// How far the limits are used.
    pub(in crate::kproxy) limits: Vec<LimitRow>,
    /// The refusals without a topic since the start: a description and a count.
    pub(in crate::kproxy) refusals: Vec<(String, u64)>,
}

impl ProxyContent {
    /// Returns the number of topics with this verdict.
    pub(super) fn count(&self, verdict: TopicVerdict) -> u64 {
        self.topics.iter().filter(|topic| topic.verdict == verdict).count() as u64
    }
}

/// How far a limit is used.
pub(crate) struct LimitRow {
    pub(super) what: &'static str,
    /// Its key in the configuration.
    pub(super) key: &'static str,
    pub(super) used: String,
    pub(super) max: String,
}

impl LimitRow {
    /// A number of things.
    pub(in crate::kproxy) fn count(what: &'static str, key: &'static str, used: u64, max: u64) -> LimitRow {
        LimitRow { what, key, used: Count(used).to_string(), max: Count(max).to_string() }
    }

    /// A number of bytes.
    pub(in crate::kproxy) fn bytes(what: &'static str, key: &'static str, used: usize, max: usize) -> LimitRow {
        LimitRow { what, key, used: Bytes(used as u64).to_string(), max: Bytes(max as u64).to_string() }
    }
}

/// A topic as the page shows it.
pub(crate) struct TopicRow {
    /// FNV-1a 64 of the name.
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) verdict: TopicVerdict,
    /// The reason for the verdict, as a sentence.
    pub(super) why: String,
    /// Its limits in `rate_limits`.
    pub(super) limits: Option<String>,
    /// In a second: stored, refused, failed; `None` for the first seconds.
    pub(super) rates: Option<[f64; 3]>,
    pub(super) codes: Vec<StatusTraffic>,
}

impl TopicRow {
    /// Makes the row of a topic. `limits_of` returns the limits of a topic as a text.
    pub(in crate::kproxy) fn new(limits_of: impl Fn(&str) -> Option<String>, traffic: TopicTraffic) -> TopicRow {
        let (name, limits) = match &*traffic.topic {
            // No topics, so they have no limits, although a glob like `*` matches the labels.
            "" => ("no topic".to_owned(), None),
            OTHER_TOPICS => ("other topics".to_owned(), None),
            topic => (topic.to_owned(), limits_of(topic)),
        };
        let known = traffic.codes.iter().any(|status| status.per_second.is_some());
        let rate_of = |verdict: TopicVerdict| {
            let codes = traffic.codes.iter().filter(|status| verdict_of(status.code) == verdict);
            codes.filter_map(|status| status.per_second).sum::<f64>()
        };
        let rates = known.then(|| TopicVerdict::ALL.iter().map(|verdict| rate_of(*verdict)).collect::<Vec<_>>());
        let rates = rates.and_then(|rates| <[f64; 3]>::try_from(rates).ok());
        let verdict = match rates {
            Some([_, _, failed]) if failed > 0.0 => TopicVerdict::Failed,
            Some([_, refused, _]) if refused > 0.0 => TopicVerdict::Refused,
            _ => TopicVerdict::Ok,
        };
        let why = reason(&traffic, &name);
        TopicRow { id: fnv(traffic.topic.as_bytes()), name, verdict, why, limits, rates, codes: traffic.codes }
    }
}

impl Row<ProxyPage> for TopicRow {
    fn verdict(&self) -> TopicVerdict {
        self.verdict
    }

    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.why]
    }
}

/// Returns the verdict for commits that were answered with this status.
pub(super) fn verdict_of(code: u16) -> TopicVerdict {
    match code {
        200..=299 => TopicVerdict::Ok,
        500..=599 => TopicVerdict::Failed,
        _ => TopicVerdict::Refused,
    }
}

/// Returns the meaning of a status, as in docs/kproxy.md.
pub(super) fn meaning(code: u16) -> &'static str {
    match code {
        200 => "stored",
        400 => "bad request",
        401 => "no valid credentials",
        403 => "topic not allowed",
        404 => "no such topic, partition or path",
        405 => "not a POST",
        413 => "too large",
        415 => "unsupported type or coding",
        422 => "against a rule of the topic",
        429 => "over a rate limit or a quota",
        502 => "refused by Kafka",
        503 => "not stored: overload, or no broker",
        500 | 504 => "may be stored, or not",
        _ => "refused",
    }
}

fn reason(traffic: &TopicTraffic, name: &str) -> String {
    let bad = traffic.codes.iter().filter(|status| verdict_of(status.code) != TopicVerdict::Ok);
    let mut bad: Vec<(u16, f64)> =
        bad.filter_map(|status| Some((status.code, status.per_second.filter(|rate| *rate > 0.0)?))).collect();
    bad.sort_by(|(one, rate), (other, other_rate)| {
        (verdict_of(*other), other_rate).partial_cmp(&(verdict_of(*one), rate)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let each = bad.iter().map(|(code, rate)| {
        let rate = Rate(*rate).to_string().replace("&lt;", "<");
        format!("{code} {}: {rate} /s", meaning(*code))
    });
    let why = each.collect::<Vec<_>>().join("; ");
    match (name, &*traffic.topic) {
        _ if !why.is_empty() => why,
        (_, "") => "refused before anything was sent to Kafka".to_owned(),
        (_, OTHER_TOPICS) => "those in which no message was stored, and those beyond 1,000".to_owned(),
        _ => String::new(),
    }
}
