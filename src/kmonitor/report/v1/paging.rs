//! Which modules one answer of `/v1/delay` has.

use std::cmp::Ordering;

use crate::kmonitor::view::View;

use super::order::{Cursor, Entry, listed};
use super::query::Query;

/// Largest number of partitions in one answer. A module is never divided, so the last one may exceed it.
const MAX_PARTITIONS: usize = 10_000;

/// The modules of one answer.
pub(super) struct Page<'a> {
    /// Sorted.
    pub(super) entries: Vec<Entry<'a>>,
    /// `None` if nothing follows.
    pub(super) next: Option<Cursor>,
}

/// Selects the modules of an answer, from all clusters together.
pub(super) fn page<'a>(view: &'a View, query: &Query) -> Page<'a> {
    let clusters = view.clusters.iter().enumerate().filter(|(_, cluster)| query.has_cluster(cluster));
    let modules = clusters.flat_map(|(index, cluster)| cluster.modules.iter().map(move |module| (index, module)));
    let selected = modules.filter(|(_, module)| query.has_module(module));
    let mut entries: Vec<Entry<'a>> = selected.map(|(cluster, module)| Entry::new(cluster, module)).collect();
    if let Some(after) = &query.after {
        entries.retain(|entry| after.compare(entry, view) == Ordering::Less);
    }
    entries.sort_unstable_by(|one, other| one.compare(other, query.order));
    let count = fitting(&entries, query);
    let next = (count < entries.len()).then(|| Cursor::of(&entries[count - 1], view, query.order));
    entries.truncate(count);
    Page { entries, next }
}

/// Returns how many modules fit; at least one, if there is one.
fn fitting(entries: &[Entry<'_>], query: &Query) -> usize {
    let mut partition_count = 0;
    let mut count = 0;
    for entry in entries.iter().take(query.limit) {
        if MAX_PARTITIONS <= partition_count {
            break;
        }
        partition_count += listed(entry.module, query.partitions).count();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::facts::Verdict;
    use crate::kmonitor::report::fixture::{cluster, module, partition, view};
    use crate::kmonitor::view::{ModuleView, PartitionView};

    fn bad(name: &str, verdict: Verdict, seconds: f64, partition_count: i32) -> ModuleView {
        let one = |number| PartitionView { verdict, ..partition(number, Some(3)) };
        let module = module(name, "t", (0..partition_count).map(one).collect());
        ModuleView { verdict, seconds_behind: Some(seconds), ..module }
    }

    fn names(page: &Page<'_>) -> Vec<String> {
        page.entries.iter().map(|entry| format!("{}{}", entry.cluster, entry.module.name)).collect()
    }

    /// Follows `next` to the end.
    fn walk(view: &View, query: &str) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut after = String::new();
        loop {
            let page = page(view, &Query::parse(&format!("{query}&after={after}")).unwrap());
            pages.push(names(&page));
            match page.next {
                Some(next) => after = next.text(),
                None => return pages,
            }
        }
    }

    fn sample() -> View {
        view(vec![
            cluster("b", vec![bad("m", Verdict::Ok, 0.0, 1), bad("n", Verdict::Lagging, 90.0, 1)]),
            cluster("a", vec![bad("m", Verdict::Stopped, 90.0, 1), bad("n\u{e4}", Verdict::Lagging, 400.0, 1)]),
        ])
    }

    #[test]
    fn pages_have_every_module_once_in_order() {
        let worst = ["1m", "1n\u{e4}", "0n", "0m"];
        let by_name = ["0m", "0n", "1m", "1n\u{e4}"];
        for (query, order) in [("order=worst", worst), ("", worst), ("order=name", by_name)] {
            assert_eq!(walk(&sample(), query), [order], "{query}");
            assert_eq!(walk(&sample(), &format!("{query}&limit=3")), [&order[..3], &order[3..]], "{query}");
            assert_eq!(walk(&sample(), &format!("{query}&limit=1")).concat(), order, "{query}");
        }
        assert_eq!(walk(&sample(), "module=x"), [Vec::<String>::new()]);
    }

    #[test]
    fn a_page_ends_when_it_has_10_000_partitions() {
        let module = |name| bad(name, Verdict::Stopped, 1.0, 6_000);
        let view = view(vec![cluster("c", ["a", "b", "c"].map(module).into())]);
        assert_eq!(walk(&view, "partitions=all"), [vec!["0a", "0b"], vec!["0c"]]);
        assert_eq!(walk(&view, "partitions=none").len(), 1);
    }

    #[test]
    fn the_next_page_goes_on_where_the_last_one_ended_in_a_newer_view() {
        let first = page(&sample(), &Query::parse("limit=2").unwrap()).next.unwrap().text();
        // The module behind which it goes on has recovered, and others are there.
        let newer = view(vec![
            cluster("b", vec![bad("k", Verdict::Lagging, 401.0, 1), bad("l", Verdict::Lagging, 399.0, 1)]),
            cluster("a", vec![bad("m", Verdict::Stopped, 90.0, 1), bad("n\u{e4}", Verdict::Ok, 0.0, 1)]),
        ]);
        let second = page(&newer, &Query::parse(&format!("after={first}")).unwrap());
        assert_eq!(names(&second), ["0l", "1n\u{e4}"]);
        let without = view(vec![cluster("b", vec![bad("l", Verdict::Lagging, 399.0, 1)])]);
        assert_eq!(names(&page(&without, &Query::parse(&format!("after={first}")).unwrap())), ["0l"]);
        let refused = Query::parse(&format!("order=name&after={first}")).unwrap_err();
        assert_eq!(refused, "after is of a request with another order");
    }
}
