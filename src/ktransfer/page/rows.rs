//! The table of the modules: one row each, and its details on request.

use std::cmp::Reverse;
use std::time::Instant;

use super::content::{ModuleRow, is_usable};
use super::details;
use super::verdict::{ModulesPage, Sort};
use crate::clock::Moment;
use crate::html::frame::sorting_heading;
use crate::html::query::{Choice, Query};
use crate::html::selection::Selection;
use crate::html::{Count, Rate, Text, ago, before};
use crate::ktransfer::operations::ModuleStatus;

/// Number of columns of the table.
const COLUMNS: u32 = 8;

/// Sorts the rows.
pub(super) fn sort(rows: &mut [&ModuleRow], order: Sort) {
    let held = |row: &ModuleRow| row.longest_held().map(|(_, head)| head.held_ms);
    let name = |row: &ModuleRow| (row.name.clone(), row.topic.clone());
    // A rate as thousandths: an f64 has no total order by itself.
    let rate = |row: &ModuleRow| {
        let rates = row.latest.as_ref().and_then(|(_, status)| status.per_second);
        rates.map(|rates| (rates.delivered * 1000.0) as u64)
    };
    match order {
        Sort::Worst => rows.sort_by_cached_key(|row| (Reverse((row.verdict, held(row))), name(row))),
        Sort::Name => rows.sort_by_cached_key(|row| name(row)),
        Sort::Rate => rows.sort_by_cached_key(|row| (Reverse(rate(row)), name(row))),
        Sort::Held => rows.sort_by_cached_key(|row| (Reverse(held(row)), name(row))),
    }
}

/// Renders the table.
pub(super) fn table(query: &Query<ModulesPage>, selection: &Selection<'_, ModuleRow>, now: Moment) -> String {
    let mut table = String::with_capacity(1024 * (selection.rows.len() + 2));
    table += "<table class=\"modules\" id=\"modules\"><caption class=\"unseen\">Modules, ";
    table += match query.sort {
        Sort::Worst => "the worst first",
        Sort::Name => "by name",
        Sort::Rate => "the fastest first",
        Sort::Held => "the longest held commit point first",
    };
    table += "</caption>\n<thead><tr>";
    table += &sorting_heading(query, Sort::Worst, "State", "descending", "");
    table += &sorting_heading(query, Sort::Name, "Module, topic", "ascending", "");
    table += "<th scope=\"col\" class=\"count minor\">Partitions</th>";
    table += &sorting_heading(query, Sort::Rate, "Delivered /s", "descending", "count");
    table += "<th scope=\"col\" class=\"count minor\">In flight</th>\
              <th scope=\"col\" class=\"count minor\">Backends</th>";
    table += &sorting_heading(query, Sort::Held, "Held", "descending", "count");
    table += "<th scope=\"col\">Why</th></tr></thead>\n";
    for row in &selection.rows {
        table += &module(row, query, now);
    }
    if selection.rows.is_empty() {
        table += &format!("<tbody><tr><td colspan=\"{COLUMNS}\" class=\"empty\">No module.</td></tr></tbody>\n");
    }
    table + "</table>"
}

fn module(row: &ModuleRow, query: &Query<ModulesPage>, now: Moment) -> String {
    let verdict = row.verdict.word();
    let (name, topic, why) = (Text(&row.name), Text(&row.topic), Text(&row.why));
    let cells = match &row.latest {
        Some((at, status)) => cells(row, *at, status, now),
        None => "<td class=\"wait\" colspan=\"5\">".to_owned(),
    };
    let more = details::more(row, query, now);
    // HTML needs no end tags of cells; without them a page of 200 rows is 10 kB shorter.
    format!(
        "<tbody data-id=\"{:016x}\" data-verdict=\"{verdict}\"><tr><td class=\"verdict\">{verdict}\
         <th scope=\"row\"><bdi>{name}</bdi> <small><bdi>{topic}</bdi></small>{cells}<td class=\"why\">{why}</tr>\n\
         <tr class=\"more\"><td colspan=\"{COLUMNS}\">{more}</tr></tbody>\n",
        row.id,
    )
}

/// The cells between the name and the reason.
fn cells(row: &ModuleRow, at: Instant, status: &ModuleStatus, now: Moment) -> String {
    let rate = status.per_second.map_or_else(String::new, |rates| Rate(rates.delivered).to_string());
    let (all, usable) = (status.backends.len(), status.backends.iter().filter(|backend| is_usable(backend)).count());
    let backends = if all == usable { Count(all as u64).to_string() } else { format!("{usable} of {all}") };
    let held = row.longest_held().map_or_else(String::new, |(_, head)| ago(before(at, head.held_ms), now));
    format!(
        "<td class=\"count minor\" data-label=\"partitions\">{}<td class=\"count\" data-label=\"delivered /s\">{rate}\
         <td class=\"count minor\" data-label=\"in flight\">{} of {}\
         <td class=\"count minor\" data-label=\"backends\">{backends}\
         <td class=\"count\" data-label=\"held\">{held}",
        Count(status.partitions.len() as u64),
        Count(status.window.in_use as u64),
        Count(status.window.size as u64),
    )
}
