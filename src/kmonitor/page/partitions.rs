//! The partitions of a module, below its row: shown on request.

use std::cmp::Reverse;

use crate::html::{Count, Text, ago};
use crate::kmonitor::facts::{Moment, Verdict};
use crate::kmonitor::view::{ModuleView, PartitionView};

use super::query::Query;
use super::selection::Row;
use super::words::{at_least, behind};

/// Partitions of one module that are shown, the worst ones.
pub(super) const MAX_PARTITIONS: usize = 200;

/// Renders the partitions of a module if the query asks for them, else a link to them. The script follows no link: it
/// asks for the partitions when the element is opened.
pub(super) fn more(row: Row<'_>, query: &Query, now: Moment) -> String {
    let module = row.module;
    let is_open = query.open.contains(&module.id);
    let open = if is_open { " open" } else { "" };
    let content = if is_open {
        table(module, now)
    } else {
        let link = query.with_open(module.id).link();
        format!("<a href=\"{link}\">Show partitions</a>")
    };
    format!("<details{open}><summary>{}</summary>{content}</details>", heading(module))
}

fn heading(module: &ModuleView) -> String {
    let all = module.partitions.len();
    let bad = module.partitions.iter().filter(|partition| partition.verdict != Verdict::Ok).count();
    let of = if all == 1 { "partition" } else { "partitions" };
    match bad {
        0 => format!("{} {of}", Count(all as u64)),
        bad => format!("{} of {} {of} not OK", Count(bad as u64), Count(all as u64)),
    }
}

fn table(module: &ModuleView, now: Moment) -> String {
    let mut partitions: Vec<&PartitionView> = module.partitions.iter().collect();
    partitions.sort_by_key(|partition| (Reverse(partition.verdict), Reverse(partition.delay), partition.partition));
    let name = Text(&module.name);
    let mut table = format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"Partitions of {name}\" tabindex=\"0\">\
         <table class=\"partitions\"><thead><tr><th scope=\"col\">Partition</th><th scope=\"col\">Verdict</th>\
         <th scope=\"col\" class=\"count\">Delay</th>\
         <th scope=\"col\" class=\"count\">Behind</th><th scope=\"col\" class=\"count\">Stored</th>\
         <th scope=\"col\" class=\"count\">Oldest</th><th scope=\"col\" class=\"count\">Newest</th>\
         <th scope=\"col\" class=\"count\">Lost</th><th scope=\"col\">Owner</th><th scope=\"col\">Moved</th>\
         <th scope=\"col\">Why</th></tr></thead><tbody>"
    );
    for partition in partitions.iter().take(MAX_PARTITIONS) {
        table += &line(partition, now);
    }
    table += "</tbody></table></div>";
    if let (Some(into), Some(out)) = (module.in_per_second, module.out_per_second) {
        table += &format!("<p class=\"note\">{into:.1} messages a second come in, {out:.1} are pushed.</p>");
    }
    let rest = partitions.len().saturating_sub(MAX_PARTITIONS);
    if rest > 0 {
        let link = "<a href=\"/v1/delay?partitions=all\">/v1/delay</a>";
        table += &format!("<p class=\"note\">{} more partitions are in {link}.</p>", Count(rest as u64));
    }
    table
}

fn line(partition: &PartitionView, now: Moment) -> String {
    let (number, verdict) = (partition.partition, partition.verdict);
    let delay = at_least(partition.delay.map(|delay| Count(delay).to_string()), false);
    let behind = behind(partition.seconds_behind, partition.seconds_at_least);
    let offset = |offset: Option<i64>| at_least(offset.map(|offset| offset.to_string()), false);
    let (stored, oldest, newest) = (offset(partition.stored), offset(partition.oldest), offset(partition.newest));
    let owner = partition.owner.as_deref().map_or_else(String::new, |name| Text(name).to_string());
    let moved = partition.stored_moved.map_or_else(String::new, |at| format!("{} ago", ago(at, now)));
    format!(
        "<tr data-id=\"{number}\" data-verdict=\"{verdict}\"><th scope=\"row\">{number}</th>\
         <td class=\"verdict\">{verdict}</td><td class=\"count\">{delay}</td>\
         <td class=\"count\">{behind}</td><td class=\"count\">{stored}</td><td class=\"count\">{oldest}</td>\
         <td class=\"count\">{newest}</td><td class=\"count\">{}</td><td class=\"owner\">{owner}</td>\
         <td class=\"since\">{moved}</td><td class=\"why\">{}</td></tr>",
        Count(partition.lost),
        Text(&partition.reason),
    )
}
