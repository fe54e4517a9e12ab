//! The table of the modules: one row for each cluster with a trouble, then one for each module.

use crate::html::{Count, Text};
use crate::kmonitor::facts::{Moment, Source};
use crate::kmonitor::view::{ClusterView, ModuleView};

use super::partitions;
use super::query::{PAGE_ROWS, Query, Sort};
use super::selection::{Row, Selection};
use super::sparkline::Sparkline;
use super::summary::is_late;
use super::words::{at_least, behind, since};

/// Number of columns of the table.
const COLUMNS: u32 = 8;

/// Says how many modules are shown and how many are not.
pub(super) fn shown(query: &Query, selection: &Selection<'_>) -> String {
    let text = match (selection.matching, selection.hidden()) {
        (matching, 0) => format!("{} shown", modules(matching)),
        (matching, hidden) => {
            let all = query.with_all_verdicts().link();
            let are = if selection.shows[0] { "more have other verdicts" } else { "more are OK" };
            format!("{} shown, {} {are}: <a href=\"{all}\">show all</a>", modules(matching), Count(hidden as u64))
        }
    };
    format!("<p class=\"shown\" id=\"shown\">{text}</p>")
}

fn modules(count: usize) -> String {
    format!("{} module{}", Count(count as u64), if count == 1 { "" } else { "s" })
}

/// Renders links to the other pages.
pub(super) fn pages(query: &Query, selection: &Selection<'_>) -> String {
    let (page, pages) = (selection.page, selection.pages());
    let mut links = String::new();
    if pages > 1 {
        let link = |to: usize, text: &str| format!("<a href=\"{}\">{text}</a>", query.at_page(to).link());
        if page > 1 {
            links += &link(page - 1, "Previous");
        }
        let first = (page - 1) * PAGE_ROWS;
        let range = format!("{} to {}", Count(first as u64 + 1), Count((first + selection.rows.len()) as u64));
        links += &format!("<span>{range} of {}</span>", Count(selection.matching as u64));
        if page < pages {
            links += &link(page + 1, "Next");
        }
    }
    format!("<nav class=\"pages\" id=\"pages\" aria-label=\"Pages\">{links}</nav>")
}

/// Renders the table.
pub(super) fn table(query: &Query, selection: &Selection<'_>, now: Moment) -> String {
    let mut table = String::with_capacity(1024 * (selection.rows.len() + 2));
    table += "<table class=\"modules\" id=\"modules\"><caption class=\"unseen\">Modules, ";
    table += match query.sort {
        Sort::Worst => "the worst first",
        Sort::Name => "by name",
        Sort::Delay => "the largest delay first",
        Sort::Behind => "the most time behind first",
    };
    table += "</caption>\n<thead><tr>";
    table += &heading(query, Sort::Worst, "Verdict", "descending", "");
    table += &heading(query, Sort::Name, "Module, topic", "ascending", "");
    table += &heading(query, Sort::Delay, "Delay", "descending", " class=\"delay\"");
    table += &heading(query, Sort::Behind, "Behind", "descending", " class=\"behind\"");
    table += "<th scope=\"col\" class=\"hour\">Last hour</th><th scope=\"col\" class=\"owner\">Owner</th><th scope=\"col\">Since</th>\
              <th scope=\"col\">Why</th></tr></thead>\n";
    for (cluster, folded) in &selection.troubled {
        table += &trouble(cluster, *folded, now);
    }
    for row in &selection.rows {
        table += &module(*row, query, selection, now);
    }
    if selection.troubled.is_empty() && selection.rows.is_empty() {
        let text = if selection.hidden() > 0 { "No module with these verdicts." } else { "No module." };
        table += &format!("<tbody><tr><td colspan=\"{COLUMNS}\" class=\"empty\">{text}</td></tr></tbody>\n");
    }
    table + "</table>"
}

/// A heading that sorts by its column.
fn heading(query: &Query, sort: Sort, text: &str, direction: &str, attributes: &str) -> String {
    let sorted = if query.sort == sort { format!(" aria-sort=\"{direction}\"") } else { String::new() };
    let link = query.sorted(sort).link();
    format!("<th scope=\"col\"{attributes}{sorted}><a href=\"{link}\">{text}</a></th>")
}

/// The row of a cluster that cannot be read, or of which a part cannot.
fn trouble(cluster: &ClusterView, folded: usize, now: Moment) -> String {
    let name = Text(&cluster.name);
    let (text, time) = match &cluster.trouble {
        Some(trouble) => (Text(&trouble.text).to_string(), since(trouble.since, now)),
        None => ("it has not been read yet".to_owned(), String::new()),
    };
    let hidden = match folded {
        0 => String::new(),
        1 => "; its module is not listed".to_owned(),
        count => format!("; its {} modules are not listed", Count(count as u64)),
    };
    format!(
        "<tbody data-id=\"cluster {name}\" data-verdict=\"UNKNOWN\"><tr>\
         <td class=\"verdict\">UNKNOWN</td><th scope=\"row\"><bdi>cluster {name}</bdi></th>\
         <td class=\"wait\" colspan=\"4\"></td><td class=\"since\">{time}</td>\
         <td class=\"why\">{text}{hidden}</td></tr></tbody>\n"
    )
}

/// The row of a module, and its partitions.
fn module(row: Row<'_>, query: &Query, selection: &Selection<'_>, now: Moment) -> String {
    let Row { cluster, module } = row;
    let old = if is_late(cluster, now) { " class=\"old\"" } else { "" };
    let verdict = module.verdict;
    let (name, topic) = (Text(&module.name), Text(&module.topic));
    let source = if module.source == Source::Kafka && cluster.sources.len() > 1 { " (group of Kafka)" } else { "" };
    let place = if selection.clusters > 1 { format!(" in {}", Text(&cluster.name)) } else { String::new() };
    let delay = at_least(module.delay.map(|delay| Count(delay).to_string()), module.delay_is_partial);
    let behind = behind(module.seconds_behind, module.seconds_at_least);
    let history = Sparkline(&module.history);
    let (owner, time, reason) = (owner(module), since(module.since, now), Text(&module.reason));
    let more = partitions::more(row, query, now);
    // HTML needs no end tags of cells; without them a page of 200 rows is 10 kB shorter.
    format!(
        "<tbody data-id=\"{:016x}\" data-verdict=\"{verdict}\"{old}><tr><td class=\"verdict\">{verdict}\
         <th scope=\"row\"><bdi>{name}</bdi> <small><bdi>{topic}</bdi>{source}{place}</small>\
         <td class=\"delay\">{delay}<td class=\"behind\">{behind}<td>{history}<td class=\"owner\">{owner}\
         <td class=\"since\">{time}<td class=\"why\">{reason}</tr>\n\
         <tr class=\"more\"><td colspan=\"{COLUMNS}\">{more}</tr></tbody>\n",
        module.id,
    )
}

/// Names the owner if it is the same for all partitions, else says how many there are.
fn owner(module: &ModuleView) -> String {
    match module.owners {
        None => "unknown".to_owned(),
        Some(0) => "nobody".to_owned(),
        Some(1) => {
            let name = module.partitions.iter().find_map(|partition| partition.owner.as_deref());
            name.map_or_else(|| "1 owner".to_owned(), |name| Text(name).to_string())
        }
        Some(count) => format!("{} owners", Count(count.into())),
    }
}
