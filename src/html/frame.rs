//! The frame of a page, and the elements that all pages have: the filter, the number of rows, the headings, the links
//! to other pages.
//!
//! The script replaces the elements of [`Fragment`], which it finds by their ids: `summary`, `verdicts`, `shown`,
//! `modules` (the table), `pages`, and `extra` where a page has it.

use std::fmt::Write;

use super::assets::assets;
use super::query::{Choice, PAGE_ROWS, Parameters, Query};
use super::{Count, Text, Utc};
use crate::clock::Moment;

/// Seconds after which a browser without scripts loads the page again.
const RELOAD_SECONDS: u32 = 30;

/// The parts of a page that change.
pub(crate) struct Fragment {
    /// The list above the rows: [`summary`] with its items.
    pub(crate) summary: String,
    /// The boxes of the filter: [`verdict_boxes`].
    pub(crate) verdicts: String,
    /// Everything below the filter: [`shown`], the table with the id `modules`, [`pages`].
    pub(crate) below: String,
}

impl Fragment {
    /// Renders what the script requests.
    pub(crate) fn render(&self) -> String {
        format!("{}\n{}\n{}\n", self.summary, self.verdicts, self.below)
    }
}

/// The parts of a page that do not change.
pub(crate) struct Frame<'a, P: Parameters> {
    /// Name of the daemon.
    pub(crate) daemon: &'static str,
    /// Noun for the rows in the plural, such as `modules`.
    pub(crate) things: &'static str,
    /// The title, which browsers show in tabs and bookmarks.
    pub(crate) title: &'a str,
    pub(crate) query: &'a Query<P>,
    /// Names of the clusters, if the page has any.
    pub(crate) clusters: &'a [&'a str],
    /// The names of the texts that the filter searches, as a placeholder of its field.
    pub(crate) placeholder: &'static str,
    /// Path of the same content for programs.
    pub(crate) data: &'static str,
}

impl<P: Parameters> Frame<'_, P> {
    /// Renders the whole page.
    pub(crate) fn render(&self, fragment: &Fragment) -> String {
        let Frame { daemon, things, data, .. } = self;
        let title = Text(self.title);
        let (style, script, icon) = (&assets().style.path, &assets().script.path, &assets().icon.path);
        let Fragment { summary, below, .. } = fragment;
        let filter = self.filter(&fragment.verdicts);
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
<a class="skip" href="#modules">Skip to the {things}</a>
<header class="top">
<h1>{daemon}</h1>
{summary}
<button type="button" id="theme" hidden>Theme</button>
</header>
<p class="banner" id="banner" hidden></p>
<p class="unseen" id="live" role="status" aria-live="polite"></p>
<main>
{filter}
{below}
</main>
<footer><kbd>/</kbd> filter, <kbd>Esc</kbd> clear. For programs: <a href="{data}">{data}</a></footer>
</body>
</html>
"##
        )
    }

    /// The form of the filter, with `verdicts` as its boxes.
    fn filter(&self, verdicts: &str) -> String {
        let (text, placeholder) = (Text(&self.query.filter), self.placeholder);
        let mut form = format!(
            "<form class=\"filter\" id=\"filter\" role=\"search\" method=\"get\" action=\"/\">\n\
             <label>Filter <input type=\"search\" name=\"filter\" value=\"{text}\" \
             placeholder=\"{placeholder}\" maxlength=\"200\" autocomplete=\"off\" \
             spellcheck=\"false\" aria-keyshortcuts=\"/\"></label>\n"
        );
        if self.clusters.len() > 1 {
            form += "<label>Cluster <select name=\"cluster\"><option value=\"\">all</option>";
            for cluster in self.clusters.iter().copied() {
                let selected = if self.query.cluster.as_deref() == Some(cluster) { " selected" } else { "" };
                let name = Text(cluster);
                put(&mut form, format_args!("<option value=\"{name}\"{selected}>{name}</option>"));
            }
            form += "</select></label>\n";
        } else if let Some(cluster) = &self.query.cluster {
            let name = Text(cluster);
            put(&mut form, format_args!("<input type=\"hidden\" name=\"cluster\" value=\"{name}\">\n"));
        }
        if self.query.sort != P::Sort::ALL[0] {
            let word = self.query.sort.word();
            put(&mut form, format_args!("<input type=\"hidden\" name=\"sort\" value=\"{word}\">\n"));
        }
        form + verdicts + "\n<button id=\"send\">Show</button>\n</form>"
    }
}

fn put(text: &mut String, part: std::fmt::Arguments<'_>) {
    text.write_fmt(part).expect("writing into memory does not fail");
}

/// A verdict as a word, to which the style sheet gives a shape and a colour.
pub(crate) fn verdict_word(verdict: impl Choice) -> String {
    format!("<span class=\"verdict\" data-verdict=\"{0}\">{0}</span>", verdict.word())
}

/// Renders the list above the rows. Its attributes are the data that the script needs; `things` is the noun for the
/// rows in the plural.
pub(crate) fn summary(title: &str, things: &str, now: Moment, items: &str) -> String {
    // The style sheet and the script belong to the page, so a page of another version has other paths.
    let version = format!("{} {}", assets().script.path, assets().style.path);
    format!(
        "<ul class=\"clusters\" id=\"summary\" data-now=\"{}\" data-title=\"{}\" data-things=\"{things}\" \
         data-version=\"{version}\">{items}</ul>",
        Utc(now.wall),
        Text(title),
    )
}

/// Renders the boxes of the filter, the worst verdict first: whether rows with this verdict are shown, and how many
/// match the rest of the query.
pub(crate) fn verdict_boxes<V: Choice>(state: impl Fn(V) -> (bool, usize)) -> String {
    let mut boxes = String::from("<fieldset id=\"verdicts\"><legend class=\"unseen\">Verdicts to show</legend>");
    for verdict in V::ALL.iter().rev() {
        let (is_shown, count) = state(*verdict);
        let checked = if is_shown { " checked" } else { "" };
        let (word, label) = (verdict.word(), verdict_word(*verdict));
        boxes += &format!(
            "<label><input type=\"checkbox\" name=\"verdict\" value=\"{word}\"{checked}>{label}\
             <span class=\"number\">{count}</span></label>"
        );
    }
    boxes + "</fieldset>"
}

/// Says how many rows match and how many have a verdict that is not shown. `things`: the noun for the rows in the
/// plural; `only_ok_is_hidden`: whether all of those are OK.
pub(crate) fn shown<P: Parameters>(
    query: &Query<P>,
    things: &str,
    (matching, hidden): (usize, usize),
    only_ok_is_hidden: bool,
) -> String {
    let thing = if matching == 1 { things.trim_end_matches('s') } else { things };
    let mut text = format!("{} {thing} shown", Count(matching as u64));
    if hidden > 0 {
        let all = query.with_all_verdicts().link();
        let are = if only_ok_is_hidden { "more are OK" } else { "more have other verdicts" };
        text += &format!(", {} {are}: <a href=\"{all}\">show all</a>", Count(hidden as u64));
    }
    format!("<p class=\"shown\" id=\"shown\">{text}</p>")
}

/// Renders a heading that sorts by its column.
pub(crate) fn sorting_heading<P: Parameters>(
    query: &Query<P>,
    sort: P::Sort,
    text: &str,
    direction: &str,
    class: &str,
) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let sorted = if query.sort == sort { format!(" aria-sort=\"{direction}\"") } else { String::new() };
    let link = query.sorted(sort).link();
    format!("<th scope=\"col\"{class}{sorted}><a href=\"{link}\">{text}</a></th>")
}

/// Where the rows of one page are among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    /// Number of the page, from 1.
    pub(crate) page: usize,
    /// Number of the rows of all pages.
    pub(crate) matching: usize,
}

impl Paging {
    /// Returns the last page if the request has a larger number.
    pub(crate) fn new(requested: usize, matching: usize) -> Paging {
        Paging { page: requested.clamp(1, matching.div_ceil(PAGE_ROWS).max(1)), matching }
    }

    /// Returns the number of pages.
    pub(crate) fn pages(self) -> usize {
        self.matching.div_ceil(PAGE_ROWS).max(1)
    }

    /// Returns the rows of this page.
    pub(crate) fn select<T>(self, rows: Vec<T>) -> Vec<T> {
        rows.into_iter().skip((self.page - 1) * PAGE_ROWS).take(PAGE_ROWS).collect()
    }
}

/// Renders links to the other pages.
pub(crate) fn pages<P: Parameters>(query: &Query<P>, paging: Paging) -> String {
    let (page, pages) = (paging.page, paging.pages());
    let mut links = String::new();
    if pages > 1 {
        let link = |to: usize, text: &str| format!("<a href=\"{}\">{text}</a>", query.at_page(to).link());
        if page > 1 {
            links += &link(page - 1, "Previous");
        }
        let (first, last) = ((page - 1) * PAGE_ROWS + 1, (page * PAGE_ROWS).min(paging.matching));
        let range = format!("{} to {}", Count(first as u64), Count(last as u64));
        links += &format!("<span>{range} of {}</span>", Count(paging.matching as u64));
        if page < pages {
            links += &link(page + 1, "Next");
        }
    }
    format!("<nav class=\"pages\" id=\"pages\" aria-label=\"Pages\">{links}</nav>")
}
