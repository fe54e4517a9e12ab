//! The page at `/` of `admin_port`, as pure functions of the counters in `/metrics`: the commits of each topic by
//! outcome, the connections to the brokers, and the use of the limits. It is read-only.
//!
//! Reading order: `content` (the content of the page, and the verdict of a topic), `topics` (the table), `extra` (the
//! section below it); this file combines them.

mod content;
mod extra;
#[cfg(test)]
mod tests;
mod topics;

use crate::clock::Moment;
use crate::html::answer::{Page, PageAnswers};
use crate::html::assets::fnv;
use crate::html::frame::{self, Fragment, Frame};
use crate::html::query::{Choice, Query};
use crate::html::selection::Selection;
use crate::html::{Count, Text};

pub(super) use content::{LimitRow, ProxyContent, TopicRow};
use content::{ProxyPage, TopicVerdict};

/// Noun for the rows of the page, in the plural.
const THINGS: &str = "topics";

/// The answers of the page.
pub(super) type ProxyPageAnswers = PageAnswers<ProxyPage>;

impl Page for ProxyPage {
    type Content = ProxyContent;

    fn version(content: &ProxyContent, query: &Query<Self>, _: Moment) -> String {
        format!("{:016x}-{:x}", fnv(query.link().as_bytes()), content.number)
    }

    fn whole(content: &ProxyContent, query: &Query<Self>, now: Moment) -> String {
        let frame = Frame {
            daemon: "kproxy",
            things: THINGS,
            title: &title(content),
            query,
            clusters: &[],
            placeholder: "topic, reason",
            data: "/metrics",
        };
        frame.render(&fragment(content, query, now))
    }

    fn rows(content: &ProxyContent, query: &Query<Self>, now: Moment) -> String {
        fragment(content, query, now).render()
    }
}

fn fragment(content: &ProxyContent, query: &Query<ProxyPage>, now: Moment) -> Fragment {
    let selection = Selection::new(&content.topics, query, topics::sort);
    let (shown, table) = (selection.shown(query, THINGS), topics::table(query, &selection));
    let (pages, extra) = (frame::pages(query, selection.paging), extra::section(content, now));
    Fragment {
        summary: frame::summary(&title(content), THINGS, now, &summary_items(content)),
        verdicts: selection.verdict_boxes(query),
        below: format!("{shown}\n{table}\n{pages}\n{extra}"),
    }
}

/// The worst verdict, if something is wrong.
fn title(content: &ProxyContent) -> String {
    if content.broker.is_err() {
        return "NOT READY · kproxy".to_owned();
    }
    match content.topics.iter().map(|topic| topic.verdict).max().filter(|worst| *worst != TopicVerdict::Ok) {
        Some(worst) => format!("{} {} · kproxy", Count(content.count(worst)), worst.word()),
        None if !content.failed_reloads.is_empty() => "STALE · kproxy".to_owned(),
        None => "kproxy".to_owned(),
    }
}

/// Whether a broker can be reached, and what could not be reloaded. The filter has the topics by verdict.
fn summary_items(content: &ProxyContent) -> String {
    let mut items = match &content.broker {
        Ok(()) => "<li><span class=\"age\">a broker can be reached</span></li>".to_owned(),
        Err(reason) => summary_item("NOT READY", reason),
    };
    for (what, reason) in &content.failed_reloads {
        items += &summary_item("STALE", &format!("{what} could not be reloaded: {reason}"));
    }
    items
}

fn summary_item(verdict: &str, reason: &str) -> String {
    let word = format!("<span class=\"verdict\" data-verdict=\"{verdict}\">{verdict}</span>");
    format!("<li><span>{word} <span class=\"age late\">{}</span></span></li>", Text(reason))
}
