//! The table of the modules: one row for each cluster with a trouble, then one for each module.

use crate::html::frame::{self, sorting_heading};
use crate::html::{Count, Rate, Text, since};
use crate::kmonitor::facts::{Moment, Source};
use crate::kmonitor::view::{ClusterView, ModuleView};

use super::partitions;
use super::query::{Query, Sort};
use super::selection::{Row, Selection};
use super::sparkline::Sparkline;
use super::summary::{THINGS, is_late};
use super::words::{at_least, behind};

/// Number of columns of the table.
const COLUMNS: u32 = 9;

/// Says how many modules are shown and how many are not.
pub(super) fn shown(query: &Query, selection: &Selection<'_>) -> String {
    frame::shown(query, THINGS, (selection.paging.matching, selection.hidden()), !selection.shows[0])
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
    table += &sorting_heading(query, Sort::Worst, "Verdict", "descending", "");
    table += &sorting_heading(query, Sort::Name, "Module, topic", "ascending", "");
    table += &sorting_heading(query, Sort::Delay, "Delay", "descending", "delay");
    table += &sorting_heading(query, Sort::Behind, "Behind", "descending", "behind");
    table += "<th scope=\"col\" class=\"hour\">Last hour</th><th scope=\"col\" class=\"rate\">In, out /s</th>\
              <th scope=\"col\" class=\"owner\">Owner</th><th scope=\"col\">Since</th><th scope=\"col\">Why</th>\
              </tr></thead>\n";
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
         <td class=\"wait\" colspan=\"5\"></td><td class=\"since\">{time}</td>\
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
    let (history, rates) = (Sparkline(&module.history), rates(module));
    let (owner, time, reason) = (owner(module), since(module.since, now), Text(&module.reason));
    let more = partitions::more(row, query, now);
    // HTML needs no end tags of cells, and no quotes around words; without them a page of 200 rows is 15 kB shorter.
    format!(
        "<tbody data-id=\"{:016x}\" data-verdict=\"{verdict}\"{old}><tr><td class=verdict>{verdict}\
         <th scope=row><bdi>{name}</bdi> <small><bdi>{topic}</bdi>{source}{place}</small>\
         <td class=delay>{delay}<td class=behind>{behind}<td>{history}<td class=rate>{rates}<td class=owner>{owner}\
         <td class=since>{time}<td class=why>{reason}</tr>\n\
         <tr class=more><td colspan={COLUMNS}>{more}</tr></tbody>\n",
        module.id,
    )
}

/// Returns the messages that come in and go out in a second; nothing while that is unknown.
fn rates(module: &ModuleView) -> String {
    match (module.in_per_second, module.out_per_second) {
        (Some(into), Some(out)) => format!("{}, {}", Rate(into), Rate(out)),
        _ => String::new(),
    }
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
