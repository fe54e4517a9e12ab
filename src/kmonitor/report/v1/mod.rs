//! `/v1/delay`: clusters, modules and partitions with their verdicts, for programs. The format is documented in
//! `docs/kmonitor.md` and by the schema `conf/schema/delay-v1.json`; within version 1, fields are only added.
//!
//! Absent knowledge is `null`, never 0. Ages are those at the time of the view (`now`), so that equal views have equal
//! bytes; the header `Age` says how old the oldest number is when the answer is sent.

mod order;
mod paging;
mod query;

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Instant, SystemTime};

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::html::Utc;
use crate::http::{Body, Head, Response, Version};
use crate::kmonitor::facts::{Source, Verdict};
use crate::kmonitor::sparkline;
use crate::kmonitor::view::{ClusterView, History, ModuleView, PartitionView, View};

use order::{Entry, Partitions, listed};
use paging::Page;
use query::Query;

/// Version of the format.
const VERSION: u8 = 1;

/// Answers a GET or HEAD request for `/v1/delay`, or returns why the query is refused. `page` returns what it is given
/// the function to render, or what that returned before for the same request and view.
pub(crate) fn answer(
    view: &View,
    head: &Head,
    now: Instant,
    page: impl FnOnce(&dyn Fn() -> Vec<u8>) -> Body,
) -> Result<Response, String> {
    let text = head.query.as_deref().unwrap_or_default();
    let query = Query::parse(text)?;
    let version = Version::new(tag(view, text));
    let selected = view.clusters.iter().filter(|cluster| query.has_cluster(cluster));
    let version = match selected.filter_map(|cluster| cluster.oldest_read).min() {
        Some(read) => version.aged(now.saturating_duration_since(read)),
        None => version,
    };
    Ok(version.answer(head, "application/json", || page(&|| render(view, &query))))
}

/// Returns the name of an answer: equal names mean equal bytes. A restart begins to count the views again, so the time
/// is part of it; and a cluster becomes unknown without a new view if its poller hangs.
fn tag(view: &View, query: &str) -> String {
    let mut hasher = DefaultHasher::new();
    query.hash(&mut hasher);
    view.made_at.hash(&mut hasher);
    for cluster in &view.clusters {
        (cluster.number, cluster.known).hash(&mut hasher);
    }
    format!("{}-{:016x}", view.number, hasher.finish())
}

fn render(view: &View, query: &Query) -> Vec<u8> {
    let Page { entries, next } = paging::page(view, query);
    let at = At {
        base: view.clusters.iter().map(|cluster| cluster.published).max(),
        last: RefCell::new((view.made_at, String::new())),
    };
    let mut by_cluster: Vec<Vec<&ModuleView>> = vec![Vec::new(); view.clusters.len()];
    for Entry { cluster, module, .. } in &entries {
        by_cluster[*cluster].push(module);
    }
    let clusters = view.clusters.iter().zip(&by_cluster).filter(|(cluster, _)| query.has_cluster(cluster));
    let clusters: Vec<Cluster<'_>> = clusters.map(|(cluster, modules)| at.cluster(cluster, modules, query)).collect();
    let answer = Answer {
        version: VERSION,
        now: utc(view.made_at),
        view: view.number,
        age_seconds: clusters.iter().filter_map(|cluster| cluster.age_seconds).max_by(f64::total_cmp),
        clusters,
        next: next.map(|next| next.text()),
    };
    serde_json::to_vec(&answer).expect("writing numbers and strings into memory does not fail")
}

#[derive(Serialize)]
struct Answer<'a> {
    version: u8,
    now: String,
    view: u64,
    age_seconds: Option<f64>,
    clusters: Vec<Cluster<'a>>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Cluster<'a> {
    cluster: &'a str,
    source: Vec<&'static str>,
    known: bool,
    age_seconds: Option<f64>,
    cycle_seconds: Option<f64>,
    trouble: Option<Trouble<'a>>,
    counts: Counts,
    modules: Vec<Module<'a>>,
}

#[derive(Serialize)]
struct Trouble<'a> {
    text: &'a str,
    since: String,
}

/// Numbers of partitions.
#[derive(Serialize)]
#[serde(rename_all = "UPPERCASE")]
struct Counts {
    ok: u64,
    lagging: u64,
    stalled: u64,
    stopped: u64,
    rewound: u64,
    unknown: u64,
    #[serde(rename = "gone")]
    gone: u64,
    #[serde(rename = "left_behind")]
    left_behind: u64,
}

#[derive(Serialize)]
struct Module<'a> {
    id: String,
    module: &'a str,
    source: &'static str,
    topic: &'a str,
    verdict: &'static str,
    since: String,
    reason: &'a str,
    reason_code: &'static str,
    delay: Option<u64>,
    delay_is_partial: bool,
    seconds_behind: Option<f64>,
    seconds_at_least: bool,
    lost: u64,
    in_per_second: Option<f64>,
    out_per_second: Option<f64>,
    counted: bool,
    partitions: usize,
    bad_partitions: usize,
    owners: Option<u32>,
    members: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Hour<'a>>,
    partition: Vec<Partition<'a>>,
}

#[derive(Serialize)]
struct Partition<'a> {
    partition: i32,
    verdict: &'static str,
    since: String,
    reason: &'a str,
    reason_code: &'static str,
    delay: Option<u64>,
    stored: Option<i64>,
    oldest: Option<i64>,
    newest: Option<i64>,
    lost: u64,
    seconds_behind: Option<f64>,
    seconds_from: Option<&'static str>,
    seconds_at_least: bool,
    stored_moved_seconds_ago: Option<f64>,
    owner: Option<&'a str>,
    age_seconds: Option<f64>,
    unknown: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Hour<'a>>,
}

/// The largest delay of each of the last 60 minutes.
#[derive(Serialize)]
struct Hour<'a> {
    end: String,
    step_seconds: u8,
    #[serde(serialize_with = "decoded")]
    delay: &'a History,
}

fn decoded<S: Serializer>(hour: &&History, serializer: S) -> Result<S::Ok, S::Error> {
    let mut minutes = serializer.serialize_seq(Some(hour.len()))?;
    for code in *hour {
        minutes.serialize_element(&sparkline::decode(*code))?;
    }
    minutes.end()
}

/// The time to which ages refer: when the last cluster was published.
struct At {
    base: Option<Instant>,
    /// The last time that was written, and its text: most partitions have their verdict since the same time.
    last: RefCell<(SystemTime, String)>,
}

impl At {
    fn utc(&self, time: SystemTime) -> String {
        let mut last = self.last.borrow_mut();
        if last.0 != time || last.1.is_empty() {
            *last = (time, utc(time));
        }
        last.1.clone()
    }

    fn age(&self, then: Option<Instant>) -> Option<f64> {
        Some(tenths(self.base?.saturating_duration_since(then?).as_secs_f64()))
    }

    fn cluster<'a>(&self, cluster: &'a ClusterView, modules: &[&'a ModuleView], query: &Query) -> Cluster<'a> {
        let count = |verdict: Verdict| cluster.counts[usize::from(verdict.severity())];
        Cluster {
            cluster: &cluster.name,
            source: cluster.sources.iter().copied().map(Source::word).collect(),
            known: cluster.known,
            age_seconds: self.age(cluster.oldest_read),
            cycle_seconds: cluster.cycle.map(|cycle| tenths(cycle.as_secs_f64())),
            trouble: cluster.trouble.as_ref().map(|trouble| Trouble { text: &trouble.text, since: utc(trouble.since) }),
            counts: Counts {
                ok: count(Verdict::Ok),
                lagging: count(Verdict::Lagging),
                stalled: count(Verdict::Stalled),
                stopped: count(Verdict::Stopped),
                rewound: count(Verdict::Rewound),
                unknown: count(Verdict::Unknown),
                gone: cluster.gone,
                left_behind: cluster.left_behind,
            },
            modules: modules.iter().map(|module| self.module(cluster, module, query)).collect(),
        }
    }

    fn module<'a>(&self, cluster: &ClusterView, module: &'a ModuleView, query: &Query) -> Module<'a> {
        let shown = listed(module, query.partitions);
        Module {
            id: format!("{:016x}", module.id),
            module: &module.name,
            source: module.source.word(),
            topic: &module.topic,
            verdict: module.verdict.word(),
            since: self.utc(module.since),
            reason: &module.reason,
            reason_code: module.reason_code.word(),
            delay: module.delay,
            delay_is_partial: module.delay_is_partial,
            seconds_behind: module.seconds_behind.map(tenths),
            seconds_at_least: module.seconds_at_least,
            lost: module.lost,
            in_per_second: module.in_per_second.map(thousandths),
            out_per_second: module.out_per_second.map(thousandths),
            counted: module.in_legacy,
            partitions: module.partitions.len(),
            bad_partitions: listed(module, Partitions::Bad).count(),
            owners: module.owners,
            members: module.members,
            history: hour(cluster, &module.history, query),
            partition: shown.map(|partition| self.partition(cluster, partition, query)).collect(),
        }
    }

    fn partition<'a>(&self, cluster: &ClusterView, view: &'a PartitionView, query: &Query) -> Partition<'a> {
        Partition {
            partition: view.partition,
            verdict: view.verdict.word(),
            since: self.utc(view.since),
            reason: &view.reason,
            reason_code: view.reason_code.word(),
            delay: view.delay,
            stored: view.stored,
            oldest: view.oldest,
            newest: view.newest,
            lost: view.lost,
            seconds_behind: view.seconds_behind.map(tenths),
            seconds_from: view.seconds_from,
            seconds_at_least: view.seconds_at_least,
            stored_moved_seconds_ago: self.age(view.stored_moved),
            owner: view.owner.as_deref(),
            age_seconds: self.age(view.read_at),
            unknown: view.unknown,
            history: hour(cluster, &view.history, query),
        }
    }
}

fn hour<'a>(cluster: &ClusterView, history: &'a History, query: &Query) -> Option<Hour<'a>> {
    query.with_history.then(|| Hour { end: utc(cluster.history_end), step_seconds: 60, delay: history })
}

fn utc(time: SystemTime) -> String {
    Utc(time).to_string()
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

fn thousandths(rate: f64) -> f64 {
    (rate * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests;
