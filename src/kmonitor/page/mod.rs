//! The page at `/`, as pure functions of a view: which modules are late, how late, and why; the worst first.
//!
//! It is HTML that needs no script: the filter is a form, and each row says its verdict as a word, a shape and a
//! colour, with the reason as a sentence. The script (`src/html/page.js`) requests the same rows from `/rows` every
//! five seconds and changes what differs. Every number has an age, and old or unknown numbers are marked.
//!
//! Reading order: `query` (the selection of a request), `selection` (the selected rows), `rows`, `partitions` and
//! `sparkline` (one row each), `summary` (above the rows), `words`; this file combines them.

mod partitions;
mod query;
mod rows;
#[cfg(test)]
pub(super) mod samples;
mod selection;
mod sparkline;
mod summary;
#[cfg(test)]
mod tests;
mod words;

use std::time::UNIX_EPOCH;

use crate::html::answer::{Page, PageAnswers};
use crate::html::assets;
use crate::html::frame::{self, Fragment, Frame};

use super::facts::{Moment, Verdict};
use super::view::View;

use query::{DelayPage, Query};
use selection::Selection;
use summary::{THINGS, is_late};

/// The answers of the page.
pub(super) type DelayPageAnswers = PageAnswers<DelayPage>;

/// Returns a name of the content of a page: it changes when the rows change, not with the ages of what they show, which
/// the script keeps current. `now` decides only whether a cluster has become late.
fn version(view: &View, query: &Query, now: Moment) -> String {
    let mut version = format!("{:016x}", assets::fnv(query.link().as_bytes()));
    for cluster in &view.clusters {
        // The numbers begin again after a restart, but not at the same time.
        let end = cluster.history_end.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let late = if is_late(cluster, now) { "-late" } else { "" };
        version += &format!("-{:x}-{end:x}{late}", cluster.number);
    }
    version
}

/// Renders the whole page.
fn whole(view: &View, query: &Query, now: Moment) -> String {
    let clusters: Vec<&str> = view.clusters.iter().map(|cluster| &*cluster.name).collect();
    let frame = Frame {
        daemon: "kmonitor",
        things: THINGS,
        title: &summary::title(view),
        query,
        clusters: &clusters,
        placeholder: "module, topic, reason",
        data: "/v1/delay",
    };
    frame.render(&fragment(view, query, now))
}

/// Renders the parts that the script replaces.
fn fragment(view: &View, query: &Query, now: Moment) -> Fragment {
    let selection = Selection::new(view, query);
    let shown = rows::shown(query, &selection);
    let table = rows::table(query, &selection, now);
    let pages = frame::pages(query, selection.paging);
    let box_state = |verdict: Verdict| {
        let severity = usize::from(verdict.severity());
        (selection.shows[severity], selection.counts[severity])
    };
    Fragment {
        summary: summary::clusters(view, now),
        verdicts: frame::verdict_boxes(box_state),
        below: format!("{shown}\n{table}\n{pages}"),
    }
}

impl Page for DelayPage {
    type Content = View;

    fn version(view: &View, query: &Query, now: Moment) -> String {
        version(view, query, now)
    }

    fn whole(view: &View, query: &Query, now: Moment) -> String {
        whole(view, query, now)
    }

    fn rows(view: &View, query: &Query, now: Moment) -> String {
        fragment(view, query, now).render()
    }
}
