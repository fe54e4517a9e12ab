//! Selects and sorts the rows that a page shows. Pure.

use super::frame::{self, Paging};
use super::query::{Choice, Parameters, Query};

/// A row of a page.
pub(crate) trait Row<P: Parameters> {
    /// Returns its verdict.
    fn verdict(&self) -> P::Verdict;

    /// Returns the texts that the filter searches in.
    fn texts(&self) -> Vec<&str>;
}

/// The rows of one page, and the number of the others.
pub(crate) struct Selection<'a, R> {
    /// The rows of this page.
    pub(crate) rows: Vec<&'a R>,
    /// Where they are among all.
    pub(crate) paging: Paging,
    /// Number of rows that match the filter, by verdict.
    counts: Vec<usize>,
}

impl<'a, R> Selection<'a, R> {
    /// Selects the rows of `query`; all verdicts are shown unless it chooses some. `sort` puts them into its order.
    pub(crate) fn new<P: Parameters>(
        all: &'a [R],
        query: &Query<P>,
        sort: impl FnOnce(&mut [&'a R], P::Sort),
    ) -> Selection<'a, R>
    where
        R: Row<P>,
    {
        let mut rows: Vec<&R> = all.iter().filter(|row| query.matches(&row.texts())).collect();
        let mut counts = vec![0; P::Verdict::ALL.len()];
        for row in &rows {
            counts[row.verdict().index()] += 1;
        }
        rows.retain(|row| query.wants(row.verdict()).unwrap_or(true));
        sort(&mut rows, query.sort);
        let paging = Paging::new(query.page, rows.len());
        Selection { rows: paging.select(rows), paging, counts }
    }

    /// Returns the number of rows that match the filter, but have a verdict that is not shown.
    fn hidden(&self) -> usize {
        self.counts.iter().sum::<usize>() - self.paging.matching
    }

    /// Renders the boxes of the filter.
    pub(crate) fn verdict_boxes<P: Parameters>(&self, query: &Query<P>) -> String {
        frame::verdict_boxes(|verdict: P::Verdict| (query.wants(verdict).unwrap_or(true), self.counts[verdict.index()]))
    }

    /// Says how many rows are shown.
    pub(crate) fn shown<P: Parameters>(&self, query: &Query<P>, things: &str) -> String {
        frame::shown(query, things, (self.paging.matching, self.hidden()), false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::query::PAGE_ROWS;
    use super::super::test_page::{TestPage, TestSort, TestVerdict};
    use super::*;

    struct Item(String, TestVerdict);

    impl Row<TestPage> for Item {
        fn verdict(&self) -> TestVerdict {
            self.1
        }

        fn texts(&self) -> Vec<&str> {
            vec![&self.0]
        }
    }

    fn items(count: usize) -> Vec<Item> {
        let verdict = |number: usize| if number.is_multiple_of(3) { TestVerdict::NoParts } else { TestVerdict::Ok };
        (0..count).rev().map(|number| Item(format!("item {number:03}"), verdict(number))).collect()
    }

    fn select<'a>(items: &'a [Item], query: &str) -> Selection<'a, Item> {
        let query = Query::<TestPage>::parse(query).unwrap();
        Selection::new(items, &query, |rows, sort| match sort {
            TestSort::Name => rows.sort_by(|one, other| one.0.cmp(&other.0)),
            TestSort::Worst => {}
        })
    }

    #[test]
    fn rows_are_filtered_sorted_and_paged() {
        let items = items(450);
        let first = |query: &str| {
            let selection = select(&items, query);
            (selection.rows[0].0.clone(), selection.rows.len(), selection.paging.matching, selection.hidden())
        };
        assert_eq!(first(""), ("item 449".to_owned(), PAGE_ROWS, 450, 0));
        assert_eq!(first("sort=name"), ("item 000".to_owned(), PAGE_ROWS, 450, 0));
        assert_eq!(first("sort=name&page=3"), ("item 400".to_owned(), 50, 450, 0));
        assert_eq!(first("page=99&sort=name").0, "item 400", "the last page");
        assert_eq!(first("filter=ITEM%20100"), ("item 100".to_owned(), 1, 1, 0));
        assert_eq!(first("verdict=NO%20PARTS&sort=name"), ("item 000".to_owned(), 150, 150, 300));
        assert_eq!(select(&items, "filter=nothing").rows.len(), 0);
    }

    #[test]
    fn the_boxes_have_the_numbers_of_the_filter() {
        let items = items(4);
        let query = Query::<TestPage>::parse("verdict=OK").unwrap();
        let selection = select(&items, "verdict=OK");
        let boxes = selection.verdict_boxes(&query);
        assert!(boxes.contains("value=\"NO PARTS\"><span") && boxes.contains("value=\"OK\" checked>"), "{boxes}");
        assert!(selection.shown(&query, "items").contains("2 items shown, 2 more have other verdicts"));
        assert!(select(&items, "filter=003").shown(&Query::<TestPage>::default(), "items").contains("1 item shown"));
    }
}
