//! The section below the topics: the connections to the brokers, the limits, the time to the answers, and the refusals
//! without a topic.

use std::cmp::Reverse;
use std::time::Duration;

use super::content::ProxyContent;
use crate::broker::{ConnectionState, ConnectionStatus};
use crate::clock::Moment;
use crate::html::{Count, Rate, Span, Text, ago};
use crate::kproxy::metrics::acks_label;

/// Connections that are shown, the worst ones.
const MAX_CONNECTIONS: usize = 200;

/// Renders the section.
pub(super) fn section(content: &ProxyContent, now: Moment) -> String {
    let connections = match &content.connections {
        Some(connections) => connections_table(connections, now),
        None => "<p class=\"note\">This Kafka client does not report its connections.</p>".to_owned(),
    };
    format!(
        "<section id=\"extra\"><h2>Connections to brokers</h2>{connections}<h2>Limits</h2>{}\
         <h2>Time to the answer</h2>{}{}</section>",
        limits(content),
        waits(content),
        refusals(content)
    )
}

/// Begins a table that scrolls in the width of the page.
fn begin(name: &str, headings: &[(&str, &str)]) -> String {
    let mut table = format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{name}\" tabindex=\"0\">\
         <table class=\"partitions\"><thead><tr>"
    );
    for (text, class) in headings {
        table += &format!("<th scope=\"col\" class=\"{class}\">{text}</th>");
    }
    table + "</tr></thead><tbody>"
}

const END: &str = "</tbody></table></div>";

/// Returns the word of a state, in the style of a verdict.
fn word(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connected => "CONNECTED",
        ConnectionState::Idle => "IDLE",
        ConnectionState::Connecting => "CONNECTING",
        ConnectionState::Throttled => "THROTTLED",
        ConnectionState::Silent => "SILENT",
        ConnectionState::BackOff => "BACK-OFF",
    }
}

fn connections_table(connections: &[(usize, ConnectionStatus)], now: Moment) -> String {
    if connections.is_empty() {
        return "<p class=\"note\">None yet: the first message of an acks level makes its connections.</p>".to_owned();
    }
    let mut order: Vec<&(usize, ConnectionStatus)> = connections.iter().collect();
    let key = |(producer, connection): &(usize, ConnectionStatus)| {
        (Reverse(connection.state), connection.broker, Reverse(acks_label(connection.acks)), *producer)
    };
    order.sort_by_key(|entry| key(entry));
    let headings =
        [("Broker", ""), ("State", ""), ("acks", "count"), ("Producer", "count"), ("For", "count"), ("Why", "")];
    let mut table = begin("Connections to brokers", &headings);
    for (producer, connection) in order.iter().take(MAX_CONNECTIONS) {
        table += &connection_line(*producer, connection, now);
    }
    table += END;
    let rest = order.len().saturating_sub(MAX_CONNECTIONS);
    if rest > 0 {
        table += &format!("<p class=\"note\">{} more connections are counted in /metrics.</p>", Count(rest as u64));
    }
    table
}

fn connection_line(producer: usize, connection: &ConnectionStatus, now: Moment) -> String {
    let ConnectionStatus { broker, state, .. } = connection;
    let (word, acks) = (word(*state), acks_label(connection.acks));
    let (time, why) = match (state, connection.time) {
        (ConnectionState::Throttled, Some(until)) => {
            let left = until.saturating_duration_since(now.at).max(Duration::from_secs(1));
            (String::new(), format!("a quota of the broker delays the next request for {}", Span(left)))
        }
        (ConnectionState::Silent, Some(at)) => (ago(at, now), "the broker has not answered a request".to_owned()),
        (_, Some(at)) => (ago(at, now), connection.reason.clone()),
        (_, None) => (String::new(), connection.reason.clone()),
    };
    format!(
        "<tr data-id=\"{broker} {acks} {producer}\" data-verdict=\"{word}\"><th scope=\"row\">{broker}</th>\
         <td class=\"verdict\">{word}</td><td class=\"count\">{acks}</td><td class=\"count\">{producer}</td>\
         <td class=\"count\">{time}</td><td class=\"why\">{}</td></tr>",
        Text(&why)
    )
}

fn limits(content: &ProxyContent) -> String {
    let mut table = begin("Limits", &[("Limit", ""), ("Used", "count"), ("Of", "count"), ("Key", "")]);
    for limit in &content.limits {
        table += &format!(
            "<tr data-id=\"{0}\"><th scope=\"row\">{1}</th><td class=\"count\">{2}</td><td class=\"count\">{3}</td>\
             <td>{0}</td></tr>",
            limit.key, limit.what, limit.used, limit.max
        );
    }
    table + END
}

fn waits(content: &ProxyContent) -> String {
    let headings = [("acks", ""), ("Messages /s", "count"), ("Longer than 1 s, /s", "count")];
    let mut table = begin("Time to the answer", &headings);
    for (acks, rates) in ["0", "1", "-1"].iter().zip(content.waits) {
        let [total, late] =
            rates.map_or([const { String::new() }; 2], |rates| rates.map(|rate| Rate(rate).to_string()));
        table += &format!(
            "<tr data-id=\"{acks}\"><th scope=\"row\">{acks}</th><td class=\"count\">{total}</td>\
             <td class=\"count\">{late}</td></tr>"
        );
    }
    table + END
}

fn refusals(content: &ProxyContent) -> String {
    if content.refusals.is_empty() {
        return String::new();
    }
    let mut table = String::from("<h2>Refused since the start</h2>");
    table += &begin("Refused since the start", &[("Reason", ""), ("Count", "count")]);
    for (words, count) in &content.refusals {
        let (words, count) = (Text(words), Count(*count));
        table +=
            &format!("<tr data-id=\"{words}\"><th scope=\"row\">{words}</th><td class=\"count\">{count}</td></tr>");
    }
    table + END
}
