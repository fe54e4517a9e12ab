//! The summary above the rows: the title, and for each cluster its verdicts and the age of its numbers.

use std::fmt::Write;
use std::time::Duration;

use crate::html::frame::{self, verdict_word};
use crate::html::{Count, Encoded, Text, ago};
use crate::kmonitor::facts::{Moment, Verdict};
use crate::kmonitor::view::{ClusterView, View};

/// What a row of the page is.
pub(super) const THINGS: &str = "modules";

/// The shortest time after which a cluster is late.
const LATE_AFTER: Duration = Duration::from_secs(15);

/// An oldest number is mentioned if it is older than the reading by this time: places in which nothing happens are read
/// less often.
const MENTIONED_AFTER: Duration = Duration::from_secs(20);

/// Returns the title of the page, which a browser shows where the page itself is not seen: the worst verdict.
pub(super) fn title(view: &View) -> String {
    let modules = || view.clusters.iter().flat_map(|cluster| &cluster.modules);
    let worst = modules().map(|module| module.verdict).max().filter(|worst| *worst != Verdict::Ok);
    match worst {
        Some(worst) => {
            let count = modules().filter(|module| module.verdict == worst).count();
            format!("{} {worst} · kmonitor", Count(count as u64))
        }
        None if view.clusters.iter().any(|cluster| !cluster.known) => "UNKNOWN · kmonitor".to_owned(),
        None => "OK · kmonitor".to_owned(),
    }
}

/// Returns whether the numbers of the cluster are older than they should be, for instance because its poller hangs.
pub(super) fn is_late(cluster: &ClusterView, now: Moment) -> bool {
    let limit = cluster.late_after.max(LATE_AFTER);
    !cluster.known || limit < now.at.saturating_duration_since(cluster.published)
}

/// Renders the list of clusters.
pub(super) fn clusters(view: &View, now: Moment) -> String {
    // The filter has the numbers of all clusters, so of an only one, too.
    let with_counts = 1 < view.clusters.len();
    let items: String = view.clusters.iter().map(|cluster| item(cluster, with_counts, now)).collect();
    frame::summary(&title(view), THINGS, now, &items)
}

fn item(cluster: &ClusterView, with_counts: bool, now: Moment) -> String {
    let mut counts = [0_u64; 6];
    for module in cluster.modules.iter().filter(|_| with_counts) {
        counts[usize::from(module.verdict.severity())] += 1;
    }
    let name = Text(&cluster.name);
    let mut item = format!("<li><a class=\"name\" href=\"/?cluster={}\">{name}</a>", Encoded(&cluster.name));
    let bad = Verdict::ALL.into_iter().skip(1).rev();
    for verdict in bad.chain([Verdict::Ok]).filter(|verdict| counts[usize::from(verdict.severity())] > 0) {
        let count = Count(counts[usize::from(verdict.severity())]);
        write!(item, "<span>{} <span class=\"number\">{count}</span></span>", verdict_word(verdict))
            .expect("writing into memory does not fail");
    }
    item + &age(cluster, now) + "</li>"
}

/// Says when the cluster was read, and how old its oldest number is.
fn age(cluster: &ClusterView, now: Moment) -> String {
    if !cluster.known {
        let last = cluster.oldest_read.map(|at| format!("last read {} ago", ago(at, now)));
        let last = last.unwrap_or_else(|| "not read yet".to_owned());
        return format!("<span class=\"age late\">{last}</span>");
    }
    let class = if is_late(cluster, now) { "age late" } else { "age" };
    let mut text = format!("<span class=\"{class}\">read {} ago", ago(cluster.published, now));
    if let Some(oldest) = cluster.oldest_read
        && MENTIONED_AFTER < cluster.published.saturating_duration_since(oldest)
    {
        write!(text, ", oldest number {}", ago(oldest, now)).expect("writing into memory does not fail");
    }
    text + "</span>"
}
