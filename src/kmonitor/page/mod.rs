//! The page at `/`, as pure functions of a view: which modules are late, how late, and why; the worst first.
//!
//! It is HTML that needs no script: the filter is a form, and each row says its verdict as a word, a shape and a
//! colour, with the reason as a sentence. The script (`src/html/page.js`) requests the same rows from `/rows` every
//! five seconds and changes what differs. Every number has an age, and what is old or unknown looks so.
//!
//! Reading order: `query` (what a request selects), `selection` (which rows that is), `rows`, `partitions` and
//! `sparkline` (one row each), `summary` (what stands above the rows), `words`, here the frame around them, `answer`.

mod answer;
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

use std::fmt::{self, Display, Formatter};
use std::time::UNIX_EPOCH;

use crate::html::assets::{self, assets};

use super::facts::{Moment, Verdict};
use super::view::View;

pub(super) use answer::PageAnswers;
use query::Query;
use selection::Selection;
use summary::is_late;
use words::VerdictWord;

/// Seconds after which a browser without scripts loads the page again.
const RELOAD_SECONDS: u32 = 30;

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
fn rows(view: &View, query: &Query, now: Moment) -> String {
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
             <label>Filter <input type=\"search\" name=\"filter\" value=\"{text}\" \
             placeholder=\"module, topic, reason\" maxlength=\"200\" autocomplete=\"off\" \
             spellcheck=\"false\" aria-keyshortcuts=\"/\"></label>"
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
        write!(formatter, "{}\n<button id=\"send\">Show</button>\n</form>", self.verdicts)
    }
}
