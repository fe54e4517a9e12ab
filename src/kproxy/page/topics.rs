//! The table of the topics: one row each, and its statuses on request.

use std::cmp::Reverse;

use super::content::{ProxyPage, Sort, TopicRow, meaning, verdict_of};
use crate::html::frame::sorting_heading;
use crate::html::query::{Choice, Query};
use crate::html::selection::Selection;
use crate::html::{Count, Rate, Text};

/// Number of columns of the table.
const COLUMNS: u32 = 7;

/// Sorts the rows.
pub(super) fn sort(rows: &mut [&TopicRow], order: Sort) {
    // A rate as thousandths: an f64 has no total order by itself.
    let thousandths = |rate: f64| (rate * 1000.0) as u64;
    let all = |row: &TopicRow| row.rates.map(|rates| thousandths(rates.iter().sum()));
    let stored = |row: &TopicRow| row.rates.map(|[stored, ..]| thousandths(stored));
    match order {
        Sort::Worst => rows.sort_by_cached_key(|row| (Reverse((row.verdict, all(row))), row.name.clone())),
        Sort::Name => rows.sort_by_cached_key(|row| row.name.clone()),
        Sort::Rate => rows.sort_by_cached_key(|row| (Reverse(stored(row)), row.name.clone())),
    }
}

/// Renders the table.
pub(super) fn table(query: &Query<ProxyPage>, selection: &Selection<'_, TopicRow>) -> String {
    let mut table = String::with_capacity(768 * (selection.rows.len() + 2));
    table += "<table class=\"modules\" id=\"modules\"><caption class=\"unseen\">Commits of the last minute by topic, ";
    table += match query.sort {
        Sort::Worst => "the worst first",
        Sort::Name => "by name",
        Sort::Rate => "the most stored first",
    };
    table += "</caption>\n<thead><tr>";
    table += &sorting_heading(query, Sort::Worst, "Verdict", "descending", "");
    table += &sorting_heading(query, Sort::Name, "Topic", "ascending", "");
    table += &sorting_heading(query, Sort::Rate, "Stored /s", "descending", "count");
    table += "<th scope=\"col\" class=\"count\">Refused /s</th><th scope=\"col\" class=\"count\">Failed /s</th>\
              <th scope=\"col\" class=\"limit\">Limit</th><th scope=\"col\">Why</th></tr></thead>\n";
    for row in &selection.rows {
        table += &topic(row, query);
    }
    if selection.rows.is_empty() {
        table += &format!(
            "<tbody><tr><td colspan=\"{COLUMNS}\" class=\"empty\">No topic has had a commit.</td></tr></tbody>\n"
        );
    }
    table + "</table>"
}

fn topic(row: &TopicRow, query: &Query<ProxyPage>) -> String {
    let (verdict, name, why) = (row.verdict.word(), Text(&row.name), Text(&row.why));
    let [stored, refused, failed] = match row.rates {
        Some(rates) => rates.map(|rate| Rate(rate).to_string()),
        None => [const { String::new() }; 3],
    };
    let limits = Text(row.limits.as_deref().unwrap_or_default());
    let more = more(row, query);
    // HTML needs no end tags of cells; without them a page of 200 rows is 10 kB shorter.
    format!(
        "<tbody data-id=\"{:016x}\" data-verdict=\"{verdict}\"><tr><td class=\"verdict\">{verdict}\
         <th scope=\"row\"><bdi>{name}</bdi><td class=\"count\" data-label=\"stored /s\">{stored}\
         <td class=\"count\" data-label=\"refused /s\">{refused}<td class=\"count\" data-label=\"failed /s\">{failed}\
         <td class=\"limit\">{limits}<td class=\"why\">{why}</tr>\n\
         <tr class=\"more\"><td colspan=\"{COLUMNS}\">{more}</tr></tbody>\n",
        row.id,
    )
}

/// Renders the statuses of the topic if the query selects them, else a link to them. The script follows no link: it
/// requests them when the element is opened.
fn more(row: &TopicRow, query: &Query<ProxyPage>) -> String {
    let is_open = query.open.contains(&row.id);
    let open = if is_open { " open" } else { "" };
    let content = if is_open {
        statuses(row)
    } else {
        format!("<a href=\"{}\">Show statuses</a>", query.with_open(row.id).link())
    };
    let total: u64 = row.codes.iter().flat_map(|status| &status.totals).map(|(_, count)| count).sum();
    format!("<details{open}><summary>{} answered since the start</summary>{content}</details>", Count(total))
}

fn statuses(row: &TopicRow) -> String {
    let mut text = format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"Statuses of {}\" tabindex=\"0\">\
         <table class=\"partitions\"><thead><tr><th scope=\"col\">Status</th><th scope=\"col\">Verdict</th>\
         <th scope=\"col\" class=\"count\">/s</th><th scope=\"col\" class=\"count\">acks 0</th>\
         <th scope=\"col\" class=\"count\">acks 1</th><th scope=\"col\" class=\"count\">acks -1</th>\
         <th scope=\"col\" class=\"count\">All</th><th scope=\"col\">Meaning</th></tr></thead><tbody>",
        Text(&row.name)
    );
    for status in &row.codes {
        let of = |acks: &str| {
            let count = status.totals.iter().find(|(label, _)| label == acks);
            count.map_or_else(String::new, |(_, count)| Count(*count).to_string())
        };
        let (code, word) = (status.code, verdict_of(status.code).word());
        let rate = status.per_second.map_or_else(String::new, |rate| Rate(rate).to_string());
        let total = status.totals.iter().map(|(_, count)| count).sum();
        text += &format!(
            "<tr data-id=\"{code}\" data-verdict=\"{word}\"><th scope=\"row\">{code}</th>\
             <td class=\"verdict\">{word}</td><td class=\"count\">{rate}</td><td class=\"count\">{}</td>\
             <td class=\"count\">{}</td><td class=\"count\">{}</td><td class=\"count\">{}</td>\
             <td class=\"why\">{}</td></tr>",
            of("0"),
            of("1"),
            of("-1"),
            Count(total),
            meaning(code),
        );
    }
    text + "</tbody></table></div>"
}
