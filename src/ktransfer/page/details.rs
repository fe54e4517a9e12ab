//! The details of a module, below its row: its backends, pauses and partitions. Shown on request.

use std::cmp::Reverse;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::content::ModuleRow;
use super::verdict::{ModulesPage, backend_word, partition_word};
use crate::clock::Moment;
use crate::html::query::Query;
use crate::html::{Bytes, Count, Span, Text, ago, before, since};
use crate::ktransfer::operations::{
    BackendStatus, HeadState, HeadStatus, ModuleStatus, PartitionState, PartitionStatus,
};
use crate::ktransfer::pauses::Pauses;

/// Partitions of one module that are shown, and backends.
pub(super) const MAX_ROWS: usize = 200;

/// Renders the details if the query selects them, else a link to them. The script follows no link: it requests the
/// details when the element is opened.
pub(super) fn more(row: &ModuleRow, query: &Query<ModulesPage>, now: Moment) -> String {
    let Some((at, status)) = &row.latest else { return String::new() };
    let is_open = query.open.contains(&row.id);
    let open = if is_open { " open" } else { "" };
    let content = if is_open {
        content(row, *at, status, now)
    } else {
        format!("<a href=\"{}\">Show details</a>", query.with_open(row.id).link())
    };
    let (backends, partitions) = (status.backends.len(), status.partitions.len());
    let heading = format!("{}, {}", counted(backends, "backend"), counted(partitions, "partition"));
    format!("<details{open}><summary>{heading}</summary>{content}</details>")
}

fn counted(count: usize, thing: &str) -> String {
    format!("{} {thing}{}", Count(count as u64), if count == 1 { "" } else { "s" })
}

fn content(row: &ModuleRow, at: Instant, status: &ModuleStatus, now: Moment) -> String {
    let name = Text(&row.name);
    let mut text = notes(status, &row.pauses, now);
    text += &format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"Backends of {name}\" tabindex=\"0\">\
         <table class=\"partitions\"><thead><tr><th scope=\"col\">Backend</th><th scope=\"col\">State</th>\
         <th scope=\"col\" class=\"count\">Since</th><th scope=\"col\" class=\"count\">Next probe in</th>\
         <th scope=\"col\" class=\"count\">On the wire</th><th scope=\"col\" class=\"count\">Failures in a row</th>\
         <th scope=\"col\">Last ejection</th></tr></thead><tbody>"
    );
    for (index, status) in status.backends.iter().enumerate().take(MAX_ROWS) {
        text += &backend(index, at, status, now);
    }
    text += "</tbody></table></div>";
    if !status.partitions.is_empty() {
        text += &partitions(row, at, status, now);
    }
    text
}

/// The notes that apply to all partitions: the messages done, the memory, and the pauses with their operators.
fn notes(status: &ModuleStatus, pauses: &Pauses, now: Moment) -> String {
    let messages = &status.messages;
    let counts = [
        (messages.delivered, "delivered"),
        (messages.failed_attempts, "attempts failed"),
        (messages.given_up, "given up"),
        (messages.dead_lettered, "dead letters"),
        (messages.dead_letters_waiting, "wait for their dead letter"),
        (messages.filtered, "filtered"),
        (messages.skipped, "skipped by operators"),
    ];
    let shown = counts.iter().enumerate().filter(|(index, (count, _))| *index < 2 || *count > 0);
    let counts: Vec<String> = shown.map(|(_, (count, word))| format!("{} {word}", Count(*count))).collect();
    let window = &status.window;
    let mut text = format!(
        "<p class=\"note\">Since the start of the process: {}. Memory of the messages read and not done: {} of {}.</p>",
        counts.join(", "),
        Bytes(window.in_flight_bytes as u64),
        Bytes(window.max_in_flight_bytes as u64)
    );
    let module = pauses.module.iter().map(|mark| ("The module".to_owned(), mark));
    let single = pauses.partitions.iter().map(|(partition, mark)| (format!("Partition {partition}"), mark));
    for (what, mark) in module.chain(single).take(MAX_ROWS) {
        let ago = since(UNIX_EPOCH + Duration::from_millis(mark.at_ms), now);
        text += &format!("<p class=\"note\">{what} was paused by {} {ago} ago.</p>", Text(&mark.by));
    }
    text
}

fn backend(index: usize, at: Instant, status: &BackendStatus, now: Moment) -> String {
    let word = backend_word(status.state);
    let since = status.since_ms.map_or_else(String::new, |ms| ago(before(at, ms), now));
    let probe = status.next_probe_ms.map_or_else(String::new, |ms| Span(Duration::from_millis(ms)).to_string());
    format!(
        "<tr data-id=\"b{index}\" data-verdict=\"{word}\"><th scope=\"row\">{}</th><td class=\"verdict\">{word}</td>\
         <td class=\"count\">{since}</td><td class=\"count\">{probe}</td><td class=\"count\">{}</td>\
         <td class=\"count\">{}</td><td class=\"why\">{}</td></tr>",
        Text(&status.server),
        Count(status.on_wire as u64),
        Count(status.failures.into()),
        Text(status.reason.as_deref().unwrap_or_default()),
    )
}

fn partitions(row: &ModuleRow, at: Instant, status: &ModuleStatus, now: Moment) -> String {
    let mut order: Vec<&PartitionStatus> = status.partitions.iter().collect();
    let held = |partition: &PartitionStatus| partition.head.as_ref().map(|head| head.held_ms);
    order.sort_by_key(|partition| {
        let is_odd = partition.state != PartitionState::Pushing || partition.read_error.is_some();
        (Reverse((is_odd, held(partition))), partition.partition)
    });
    let mut text = format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"Partitions of {}\" tabindex=\"0\">\
         <table class=\"partitions\"><thead><tr><th scope=\"col\">Partition</th><th scope=\"col\">State</th>\
         <th scope=\"col\" class=\"count\">Commit point</th><th scope=\"col\" class=\"count\">Read to</th>\
         <th scope=\"col\" class=\"count\">Not done</th><th scope=\"col\" class=\"count\">Done ahead</th>\
         <th scope=\"col\" class=\"count\">Lease</th><th scope=\"col\" class=\"count\">Held</th>\
         <th scope=\"col\" class=\"count\">Attempts</th><th scope=\"col\">Key of the first message</th>\
         <th scope=\"col\">Last answer</th></tr></thead><tbody>",
        Text(&row.name)
    );
    for partition in order.iter().take(MAX_ROWS) {
        text += &line(partition, at, now);
    }
    text += "</tbody></table></div>";
    let rest = order.len().saturating_sub(MAX_ROWS);
    if rest > 0 {
        let link = "<a href=\"/v1/modules\">/v1/modules</a>";
        text += &format!("<p class=\"note\">{} more partitions are in {link}.</p>", Count(rest as u64));
    }
    text
}

fn line(partition: &PartitionStatus, at: Instant, now: Moment) -> String {
    let (number, word) = (partition.partition, partition_word(partition.state));
    let offset = |offset: Option<i64>| offset.map_or_else(|| "unknown".to_owned(), |offset| offset.to_string());
    let mut text = format!(
        "<tr data-id=\"{number}\" data-verdict=\"{word}\"><th scope=\"row\">{number}</th>\
         <td class=\"verdict\">{word}</td><td class=\"count\">{}</td><td class=\"count\">{}</td>\
         <td class=\"count\">{}</td><td class=\"count\">{}</td><td class=\"count\">{}</td>",
        offset(partition.commit_point),
        offset(partition.read_to),
        Count(partition.not_done as u64),
        Count(partition.done_ahead as u64),
        Span(Duration::from_millis(partition.lease_ms)),
    );
    let read_error = partition.read_error.as_ref().map_or_else(String::new, |error| {
        format!("cannot be read for {}: {}", ago(before(at, error.for_ms), now), Text(&error.reason))
    });
    text += &match &partition.head {
        Some(head) => head_cells(head, &read_error, at, now),
        None => {
            format!("<td class=\"count\"></td><td class=\"count\"></td><td></td><td class=\"why\">{read_error}</td>")
        }
    };
    text + "</tr>"
}

/// The cells about the message that holds the commit point; the last one also says why the partition cannot be read.
fn head_cells(head: &HeadStatus, read_error: &str, at: Instant, now: Moment) -> String {
    let doing = match (head.state, head.on_wire_ms) {
        (HeadState::Queued, _) => "queued".to_owned(),
        (HeadState::OnWire, Some(ms)) => format!("on the wire for {}", ago(before(at, ms), now)),
        (HeadState::OnWire, None) => "on the wire".to_owned(),
        (HeadState::Waiting, _) => "waits for its next attempt".to_owned(),
        (HeadState::DeadLetter, _) => "waits for its dead letter".to_owned(),
    };
    let last = head.last.as_deref().map_or_else(String::new, |last| format!("{}; ", Text(last)));
    let separator = if read_error.is_empty() { "" } else { "; " };
    let backend = head.backend.as_deref().map_or_else(String::new, |backend| format!(" ({})", Text(backend)));
    format!(
        "<td class=\"count\">{}</td><td class=\"count\">{}</td><td class=\"why\"><bdi>{}</bdi></td>\
         <td class=\"why\">{last}{doing}{backend}{separator}{read_error}</td>",
        ago(before(at, head.held_ms), now),
        Count(head.attempts.into()),
        Text(head.key.as_deref().unwrap_or_default()),
    )
}
