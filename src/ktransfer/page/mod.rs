//! The page at `/` of `admin_port`, as pure functions of the state that `/v1/modules` shows: which modules of this
//! process push, what blocks them, and which backends are ejected; the worst first. It is read-only: operations are
//! separate requests.
//!
//! Reading order: `verdict` (the words), `content` (the content of the page, and the verdict of a module), `rows`,
//! `details` (the backends and partitions of a module), here how they are put together.

mod content;
mod details;
mod rows;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
mod verdict;

use crate::clock::Moment;
use crate::html::answer::{Page, PageAnswers};
use crate::html::assets::fnv;
use crate::html::frame::{self, Fragment, Frame};
use crate::html::query::{Choice, Query};
use crate::html::selection::Selection;
use crate::html::{Bytes, Count};

pub(super) use content::ModulesContent;
use verdict::{ModuleVerdict, ModulesPage};

/// Noun for the rows of the page, in the plural.
const THINGS: &str = "modules";

/// The answers of the page.
pub(super) type ModulesPageAnswers = PageAnswers<ModulesPage>;

impl Page for ModulesPage {
    type Content = ModulesContent;

    fn version(content: &ModulesContent, query: &Query<Self>, _: Moment) -> String {
        format!("{:016x}-{:x}", fnv(query.link().as_bytes()), content.number)
    }

    fn whole(content: &ModulesContent, query: &Query<Self>, now: Moment) -> String {
        let frame = Frame {
            daemon: "ktransfer",
            things: THINGS,
            title: &title(content),
            query,
            clusters: &[],
            placeholder: "module, topic, reason",
            data: "/v1/modules",
        };
        frame.render(&fragment(content, query, now))
    }

    fn rows(content: &ModulesContent, query: &Query<Self>, now: Moment) -> String {
        fragment(content, query, now).render()
    }
}

fn fragment(content: &ModulesContent, query: &Query<ModulesPage>, now: Moment) -> Fragment {
    let selection = Selection::new(&content.modules, query, rows::sort);
    let (shown, table) = (selection.shown(query, THINGS), rows::table(query, &selection, now));
    let pages = frame::pages(query, selection.paging);
    Fragment {
        summary: frame::summary(&title(content), THINGS, now, &summary_items(content)),
        verdicts: selection.verdict_boxes(query),
        below: format!("{shown}\n{table}\n{pages}"),
    }
}

/// The worst verdict, if something is wrong.
fn title(content: &ModulesContent) -> String {
    match content.modules.iter().map(|module| module.verdict).max().filter(|worst| ModuleVerdict::Paused < *worst) {
        Some(worst) => format!("{} {} · ktransfer", Count(content.count(worst)), worst.word()),
        None => "ktransfer".to_owned(),
    }
}

/// The partitions and the memory of this process. The filter has the modules by verdict.
fn summary_items(content: &ModulesContent) -> String {
    let (partitions, bytes) = content.totals();
    let (partitions, bytes) = (Count(partitions), Bytes(bytes));
    format!(
        "<li><span class=\"age\">{partitions} partitions in this process, {bytes} of messages in memory</span></li>"
    )
}
