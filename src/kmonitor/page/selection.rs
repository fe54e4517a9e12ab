//! Selects and sorts the rows that the page shows. Pure.
//!
//! A cluster that cannot be read is one row, and its modules that are unknown for that reason are listed only if the
//! request selects them: a thousand rows without a number would hide the clusters that can be read.

use std::cmp::Reverse;

use crate::html::frame::Paging;
use crate::kmonitor::facts::Verdict;
use crate::kmonitor::view::{ClusterView, ModuleView, View};

use super::query::{Query, Sort};

/// One module and its cluster.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) cluster: &'a ClusterView,
    pub(super) module: &'a ModuleView,
}

/// The rows of one page, and what is known of the others.
pub(super) struct Selection<'a> {
    /// Number of the clusters that are selected.
    pub(super) clusters: usize,
    /// The clusters with a trouble, which have a row of their own, and how many of their modules that row stands for.
    pub(super) troubled: Vec<(&'a ClusterView, usize)>,
    /// The rows of this page.
    pub(super) rows: Vec<Row<'a>>,
    /// Where they are among all.
    pub(super) paging: Paging,
    /// Number of modules that match filter and cluster, by severity of their verdict.
    pub(super) counts: [usize; 6],
    /// Whether modules of a verdict are shown, by its severity.
    pub(super) shows: [bool; 6],
}

impl<'a> Selection<'a> {
    /// Selects the rows of `query`.
    pub(super) fn new(view: &'a View, query: &Query) -> Selection<'a> {
        let in_cluster = |cluster: &&'a ClusterView| query.cluster.as_ref().is_none_or(|name| **name == *cluster.name);
        let clusters: Vec<&ClusterView> = view.clusters.iter().map(|cluster| &**cluster).filter(in_cluster).collect();
        let cluster_count = clusters.len();
        let mut troubled = Vec::new();
        let mut candidates = Vec::new();
        for cluster in clusters {
            let rows = cluster.modules.iter().map(|module| Row { cluster, module });
            let mut folded = 0;
            for row in rows.filter(|row| row.matches(query)) {
                if is_folded(&row, query) {
                    folded += 1;
                } else {
                    candidates.push(row);
                }
            }
            if cluster.trouble.is_some() || !cluster.known {
                troubled.push((cluster, folded));
            }
        }
        let mut counts = [0; 6];
        for row in &candidates {
            counts[usize::from(row.module.verdict.severity())] += 1;
        }
        let shows = shown_verdicts(query, &counts, query.words().next().is_some(), !troubled.is_empty());
        candidates.retain(|row| shows[usize::from(row.module.verdict.severity())]);
        sort(&mut candidates, query.sort);
        let paging = Paging::new(query.page, candidates.len());
        Selection { clusters: cluster_count, troubled, rows: paging.select(candidates), paging, counts, shows }
    }

    /// Returns the number of modules that match filter and cluster, but have a verdict that is not shown.
    pub(super) fn hidden(&self) -> usize {
        self.counts.iter().sum::<usize>() - self.paging.matching
    }
}

impl Row<'_> {
    fn matches(&self, query: &Query) -> bool {
        query.matches(&[&self.module.name, &self.module.topic, &self.cluster.name, &self.module.reason])
    }
}

/// Returns whether the row of the cluster stands for this row: the cluster is not known, the module neither, and the
/// request selects neither by text nor by verdict.
fn is_folded(row: &Row<'_>, query: &Query) -> bool {
    let asks = !query.filter.is_empty() || query.wants(Verdict::Unknown).is_some();
    !row.cluster.known && row.module.verdict == Verdict::Unknown && !asks
}

/// OK is hidden while something is not, unless the user searches for a text or chose the verdicts.
fn shown_verdicts(query: &Query, counts: &[usize; 6], searches: bool, is_troubled: bool) -> [bool; 6] {
    let something_is_bad = is_troubled || counts[1..].iter().any(|count| *count > 0);
    Verdict::ALL.map(|verdict| {
        let by_itself = verdict != Verdict::Ok || searches || !something_is_bad;
        query.wants(verdict).unwrap_or(by_itself)
    })
}

fn sort(rows: &mut [Row<'_>], order: Sort) {
    // Names are compared last in every order, so that equal rows keep their places from view to view.
    let name = |row: &Row<'_>| {
        (row.module.name.clone(), row.module.topic.clone(), row.cluster.name.clone(), row.module.source)
    };
    // Seconds as milliseconds: an f64 has no total order by itself.
    let millis = |row: &Row<'_>| row.module.seconds_behind.map(|seconds| (seconds * 1000.0) as u64);
    match order {
        Sort::Worst => {
            rows.sort_by_cached_key(|row| (Reverse((row.module.verdict, millis(row), row.module.delay)), name(row)))
        }
        Sort::Name => rows.sort_by_cached_key(name),
        Sort::Delay => rows.sort_by_cached_key(|row| (Reverse(row.module.delay), name(row))),
        Sort::Behind => rows.sort_by_cached_key(|row| (Reverse(millis(row)), name(row))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::html::query::PAGE_ROWS;

    fn names(view: &View, query: &str) -> Vec<String> {
        let selection = Selection::new(view, &Query::parse(query).unwrap());
        selection.rows.iter().map(|row| row.module.name.to_string()).collect()
    }

    #[test]
    fn the_worst_comes_first_and_ok_is_hidden_while_something_is_bad() {
        let late = samples::late();
        let verdicts: Vec<_> =
            Selection::new(&late, &Query::default()).rows.iter().map(|row| row.module.verdict).collect();
        assert!(verdicts.is_sorted_by(|one, next| one >= next), "{verdicts:?}");
        assert!(!verdicts.contains(&Verdict::Ok) && verdicts.contains(&Verdict::Stopped));
        let healthy = samples::healthy();
        let selection = Selection::new(&healthy, &Query::default());
        assert_eq!((selection.hidden(), selection.paging.matching), (0, healthy.clusters[0].modules.len()));
    }

    #[test]
    fn filters_are_words_verdicts_and_a_cluster() {
        let late = samples::late();
        let all =
            names(&late, "verdict=OK&verdict=LAGGING&verdict=UNKNOWN&verdict=REWOUND&verdict=STALLED&verdict=STOPPED");
        assert_eq!(all.len(), late.clusters.iter().map(|cluster| cluster.modules.len()).sum::<usize>());
        assert_eq!(names(&late, "filter=INVOICES%20billing"), ["invoices"]);
        assert_eq!(names(&late, "filter=invoices%20nothing"), [""; 0]);
        // A text is searched for in modules that are OK, too.
        assert_eq!(names(&late, "filter=audit_log"), ["audit_log"]);
        assert_eq!(names(&late, "filter=audit_log&verdict=STOPPED"), [""; 0]);
        assert_eq!(names(&late, "cluster=nobody"), [""; 0]);
        let by_name = names(&late, "sort=name");
        assert!(by_name.is_sorted() && by_name.len() > 3, "{by_name:?}");
    }

    #[test]
    fn a_cluster_that_is_away_is_one_row() {
        let away = samples::away();
        let selection = Selection::new(&away, &Query::default());
        let [(cluster, folded)] = &selection.troubled[..] else { panic!("{}", selection.troubled.len()) };
        assert_eq!((&*cluster.name, *folded), ("common", cluster.modules.len()));
        assert!(selection.rows.iter().all(|row| row.cluster.known));
        let asked = Selection::new(&away, &Query::parse("verdict=UNKNOWN").unwrap());
        let in_common = asked.rows.iter().filter(|row| *row.cluster.name == *cluster.name).count();
        assert_eq!((asked.troubled[0].1, in_common), (0, cluster.modules.len()));
    }

    #[test]
    fn rows_are_paged() {
        let many = samples::many(450);
        let select = |query: &str| {
            let selection = Selection::new(&many, &Query::parse(query).unwrap());
            (selection.paging.page, selection.rows.len(), selection.paging.matching, selection.paging.pages())
        };
        let shown = select("").2;
        assert!(shown > 2 * PAGE_ROWS, "{shown}");
        assert_eq!(select(""), (1, PAGE_ROWS, shown, 3));
        assert_eq!(select("page=3"), (3, shown - 2 * PAGE_ROWS, shown, 3));
        assert_eq!(select("page=99"), (3, shown - 2 * PAGE_ROWS, shown, 3));
    }
}
