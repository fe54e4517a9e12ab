//! The page at `/`, as pure functions of a view: which modules are late, how late, and why; the worst first.
//!
//! It is HTML that needs no script: the filter is a form, and each row says its verdict as a word, a shape and a colour,
//! with the reason as a sentence. The script (`src/html/page.js`) requests the same rows from `/rows` every five seconds
//! and changes what differs. Every number has an age, and what is old or unknown looks so.
//!
//! Reading order: `query` (what a request selects), `selection` (which rows that is), `rows`, `partitions` and
//! `sparkline` (one row each), `summary` (what stands above the rows), and here the frame around them.

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

use std::fmt::{self, Display, Formatter};

use crate::html::assets::{self, assets};

use super::facts::{Moment, Verdict};
use super::view::View;

pub(super) use query::Query;
use selection::Selection;
use summary::is_late;

/// Seconds after which a browser without scripts loads the page again.
const RELOAD_SECONDS: u32 = 30;

/// Returns a name of the content of a page: it changes when the rows change, not with the ages of what they show, which
/// the script keeps current. `now` decides only whether a cluster has become late.
pub(super) fn version(view: &View, query: &Query, now: Moment) -> String {
    let late: String = view.clusters.iter().map(|cluster| if is_late(cluster, now) { '1' } else { '0' }).collect();
    let selection = assets::fnv(query.link().as_bytes());
    // A restart begins to count the views again.
    let made_at = view.made_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{}-{made_at:x}-{selection:016x}-{late}", view.number)
}

/// Renders the whole page.
pub(super) fn whole(view: &View, query: &Query, now: Moment) -> String {
    let selection = Selection::new(view, query);
    let (style, script, icon) = (&assets().style.path, &assets().script.path, &assets().icon.path);
    let fragment = Fragment { view, query, selection: &selection, now };
    let (summary, verdicts, below) = (fragment.summary(), fragment.verdicts(), fragment.below());
    let title = summary::title(view);
    let filter = Filter { view, query, verdicts };
    format!(
        r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" type="image/svg+xml" href="{icon}">
<link rel="stylesheet" href="{style}">
<script src="{script}"></script>
<noscript><meta http-equiv="refresh" content="{RELOAD_SECONDS}"></noscript>
</head>
<body>
<a class="skip" href="#modules">Skip to the modules</a>
{SHAPES}
<header class="top">
<h1>kmonitor</h1>
{summary}
<button type="button" id="theme" hidden>Theme</button>
</header>
<p class="banner" id="banner" hidden></p>
<p class="unseen" id="live" role="status" aria-live="polite"></p>
<main>
{filter}
{below}
</main>
<footer><kbd>/</kbd> filter, <kbd>Esc</kbd> clear. The same as JSON: <a href="/v1/delay">/v1/delay</a></footer>
</body>
</html>
"##
    )
}

/// Renders what the script replaces: the summary, the verdicts of the filter, and everything below the filter.
pub(super) fn rows(view: &View, query: &Query, now: Moment) -> String {
    let selection = Selection::new(view, query);
    let fragment = Fragment { view, query, selection: &selection, now };
    format!("{}\n{}\n{}\n", fragment.summary(), fragment.verdicts(), fragment.below())
}

/// The parts of a page that change from view to view. Each has an id by which the script finds it.
struct Fragment<'a> {
    view: &'a View,
    query: &'a Query,
    selection: &'a Selection<'a>,
    now: Moment,
}

impl Fragment<'_> {
    fn summary(&self) -> String {
        summary::clusters(self.view, self.now)
    }

    fn verdicts(&self) -> String {
        let mut boxes = String::from("<fieldset id=\"verdicts\"><legend class=\"unseen\">Verdicts to show</legend>");
        for verdict in Verdict::ALL.into_iter().rev() {
            let severity = usize::from(verdict.severity());
            let checked = if self.selection.shows[severity] { " checked" } else { "" };
            let count = self.selection.counts[severity];
            boxes += &format!(
                "<label><input type=\"checkbox\" name=\"verdict\" value=\"{verdict}\"{checked}>{}\
                 <span class=\"number\">{count}</span></label>",
                VerdictWord(verdict),
            );
        }
        boxes + "</fieldset>"
    }

    fn below(&self) -> String {
        let shown = rows::shown(self.query, self.selection);
        let table = rows::table(self.query, self.selection, self.now);
        let pages = rows::pages(self.query, self.selection);
        format!("{shown}\n{table}\n{pages}")
    }
}

/// The form of the filter, with `verdicts` as its boxes.
struct Filter<'a> {
    view: &'a View,
    query: &'a Query,
    verdicts: String,
}

impl Display for Filter<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        use crate::html::Text;
        let text = Text(&self.query.filter);
        writeln!(
            formatter,
            "<form class=\"filter\" id=\"filter\" role=\"search\" method=\"get\" action=\"/\">\n\
             <label>Filter <input type=\"search\" name=\"filter\" value=\"{text}\" placeholder=\"module, topic, reason\" \
             maxlength=\"200\" autocomplete=\"off\" spellcheck=\"false\" aria-keyshortcuts=\"/\"></label>\n{}",
            self.verdicts,
        )?;
        if self.view.clusters.len() > 1 {
            formatter.write_str("<label>Cluster <select name=\"cluster\"><option value=\"\">all</option>")?;
            for cluster in &self.view.clusters {
                let name = Text(&cluster.name);
                let selected = if self.query.cluster.as_deref() == Some(&*cluster.name) { " selected" } else { "" };
                write!(formatter, "<option value=\"{name}\"{selected}>{name}</option>")?;
            }
            formatter.write_str("</select></label>\n")?;
        } else if let Some(cluster) = &self.query.cluster {
            writeln!(formatter, "<input type=\"hidden\" name=\"cluster\" value=\"{}\">", Text(cluster))?;
        }
        if self.query.sort != query::Sort::default() {
            writeln!(formatter, "<input type=\"hidden\" name=\"sort\" value=\"{}\">", self.query.sort.word())?;
        }
        formatter.write_str("<button id=\"send\">Show</button>\n</form>")
    }
}

/// A verdict as a word, a shape and a colour.
struct VerdictWord(Verdict);

impl Display for VerdictWord {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let (word, name) = (self.0.word(), class(self.0));
        write!(
            formatter,
            "<span class=\"verdict {name}\"><svg aria-hidden=\"true\"><use href=\"#{name}\"/></svg>{word}</span>"
        )
    }
}

/// The class of a verdict in the style sheet, which is also the id of its shape.
fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Lagging => "lagging",
        Verdict::Unknown => "unknown",
        Verdict::Rewound => "rewound",
        Verdict::Stalled => "stalled",
        Verdict::Stopped => "stopped",
    }
}

/// The shapes of the verdicts, like the keys of a player: a tick, slow, a question mark, rewind, pause, stop.
const SHAPES: &str = r#"<svg class="shapes" aria-hidden="true">
<symbol id="ok" viewBox="0 0 12 12"><path d="M1 6.5 2.6 4.9 4.7 7 9.6 2.1 11 3.6 4.7 10z"/></symbol>
<symbol id="lagging" viewBox="0 0 12 12"><path d="M2 1v10l9-5zM3.8 4 7.4 6 3.8 8z" fill-rule="evenodd"/></symbol>
<symbol id="unknown" viewBox="0 0 12 12"><path d="M2.4 4.3C2.4 2 4 .8 6.1.8 8.3.8 9.8 2 9.8 3.9c0 2.5-2.7 2.5-2.7 4H5.2c0-2.4 2.6-2.5 2.6-3.9 0-.9-.7-1.4-1.7-1.4-1.1 0-1.7.6-1.8 1.7zM5.1 9.2h2.1v2.1H5.1z"/></symbol>
<symbol id="rewound" viewBox="0 0 12 12"><path d="M6 1v10L0 6zM12 1v10L6 6z"/></symbol>
<symbol id="stalled" viewBox="0 0 12 12"><path d="M1.5 1h3.2v10H1.5zM7.3 1h3.2v10H7.3z"/></symbol>
<symbol id="stopped" viewBox="0 0 12 12"><path d="M1 1h10v10H1z"/></symbol>
</svg>"#;
