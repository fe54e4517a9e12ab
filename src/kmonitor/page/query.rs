//! What a request of the page selects: parameters to a [`Query`], and a [`Query`] to links.

use std::fmt::Write;

use crate::html::Encoded;
use crate::http::percent_decode;
use crate::kmonitor::facts::Verdict;

/// Rows of one page.
pub(super) const PAGE_ROWS: usize = 200;

/// Modules whose partitions are shown at the same time; each adds up to [`super::partitions::MAX_PARTITIONS`] rows.
const MAX_OPEN: usize = 16;

/// Bytes of the filter that are used. A longer name exists in no cluster.
const MAX_FILTER_BYTES: usize = 300;

/// The order of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    /// The worst verdict first.
    #[default]
    Worst,
    /// By the name of the module.
    Name,
    /// The largest delay first.
    Delay,
    /// The most seconds behind first.
    Behind,
}

/// The selection of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// Text that a module must contain, in lower case; see [`Query::words`].
    pub(super) filter: String,
    /// Verdicts to show, one bit each; `None` leaves it to the page: all but OK, or all if all are OK.
    verdicts: Option<u8>,
    /// Name of the only cluster to show.
    pub(super) cluster: Option<String>,
    /// The order of the rows.
    pub(super) sort: Sort,
    /// Number of the page, from 1.
    pub(super) page: usize,
    /// Ids of the modules whose partitions are shown.
    pub(super) open: Vec<u64>,
}

impl Default for Query {
    fn default() -> Self {
        Query { filter: String::new(), verdicts: None, cluster: None, sort: Sort::Worst, page: 1, open: Vec::new() }
    }
}

impl Query {
    /// Parses the query string of a request, which may be empty. Fails with the reason for parameters that are unknown
    /// or have no meaning, so that a misspelt one does not silently select everything.
    pub(crate) fn parse(text: &str) -> Result<Query, String> {
        let mut query = Query::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !value.is_empty() {
                query.set(&name, value)?;
            }
        }
        Ok(query)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "filter" => {
                let value = value.trim().to_lowercase();
                self.filter = value[..value.floor_char_boundary(MAX_FILTER_BYTES)].to_owned();
            }
            "verdict" => {
                let verdict = Verdict::parse(&value).ok_or_else(|| format!("verdict {value:?} does not exist"))?;
                *self.verdicts.get_or_insert(0) |= 1 << verdict.severity();
            }
            "cluster" => self.cluster = Some(value),
            "sort" => {
                let known = Sort::ALL.into_iter().find(|sort| sort.word() == value);
                self.sort =
                    known.ok_or_else(|| format!("sort is {value:?}, but must be worst, name, delay or behind"))?;
            }
            "page" => {
                let number = value.parse().ok().filter(|number| *number >= 1);
                self.page = number.ok_or_else(|| format!("page is {value:?}, but must be a number from 1"))?;
            }
            "open" => {
                let id =
                    u64::from_str_radix(&value, 16).map_err(|_| format!("open is {value:?}, but must be an id"))?;
                if self.open.len() < MAX_OPEN && !self.open.contains(&id) {
                    self.open.push(id);
                }
            }
            _ => {
                return Err(format!(
                    "unknown parameter {name:?}: the page has filter, verdict, cluster, sort, page and open"
                ));
            }
        }
        Ok(())
    }

    /// Returns the words of the filter; a module matches if it contains each of them.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.filter.split_whitespace()
    }

    /// Returns whether modules with this verdict are shown; `None` if the request leaves it to the page.
    pub(super) fn wants(&self, verdict: Verdict) -> Option<bool> {
        self.verdicts.map(|verdicts| verdicts & (1 << verdict.severity()) != 0)
    }

    /// Returns a link to this selection, for a quoted attribute.
    pub(super) fn link(&self) -> String {
        let mut link = String::from("/");
        let mut separator = '?';
        let mut put = |name: &str, value: &dyn std::fmt::Display| {
            write!(link, "{separator}{name}={value}").expect("writing into memory does not fail");
            separator = '&';
        };
        if !self.filter.is_empty() {
            put("filter", &Encoded(&self.filter));
        }
        for verdict in Verdict::ALL.into_iter().rev().filter(|verdict| self.wants(*verdict) == Some(true)) {
            put("verdict", &verdict);
        }
        if let Some(cluster) = &self.cluster {
            put("cluster", &Encoded(cluster));
        }
        if self.sort != Sort::default() {
            put("sort", &self.sort.word());
        }
        if self.page > 1 {
            put("page", &self.page);
        }
        for id in &self.open {
            put("open", &format_args!("{id:016x}"));
        }
        link.replace('&', "&amp;")
    }

    /// Returns this selection with all verdicts.
    pub(super) fn with_all_verdicts(&self) -> Query {
        Query { verdicts: Some(0b11_1111), page: 1, ..self.clone() }
    }

    /// Returns this selection in another order.
    pub(super) fn sorted(&self, sort: Sort) -> Query {
        Query { sort, page: 1, ..self.clone() }
    }

    /// Returns another page of this selection.
    pub(super) fn at_page(&self, page: usize) -> Query {
        Query { page, ..self.clone() }
    }

    /// Returns this selection with the partitions of one more module.
    pub(super) fn with_open(&self, id: u64) -> Query {
        let mut query = self.clone();
        query.open.truncate(MAX_OPEN - 1);
        query.open.push(id);
        query
    }
}

impl Sort {
    /// All orders.
    pub(super) const ALL: [Sort; 4] = [Sort::Worst, Sort::Name, Sort::Delay, Sort::Behind];

    /// Returns the word in queries.
    pub(super) fn word(self) -> &'static str {
        match self {
            Sort::Worst => "worst",
            Sort::Name => "name",
            Sort::Delay => "delay",
            Sort::Behind => "behind",
        }
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_decode(text).ok_or_else(|| format!("invalid percent-encoding in {text:?}"))?;
    String::from_utf8(bytes.into_owned()).map_err(|_| format!("{text:?} does not decode to UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_and_its_link_are_the_same_selection() {
        for (text, link) in [
            ("", "/"),
            ("filter=&cluster=&page=1&sort=worst", "/"),
            ("filter=A%20b+C", "/?filter=a%20b%20c"),
            ("verdict=ok&verdict=STOPPED", "/?verdict=STOPPED&amp;verdict=OK"),
            ("cluster=c%26d&sort=delay&page=3", "/?cluster=c%26d&amp;sort=delay&amp;page=3"),
            ("open=ff&open=00000000000000ff&open=1", "/?open=00000000000000ff&amp;open=0000000000000001"),
            ("filter=%22%3E%3Cscript%3E", "/?filter=%22%3E%3Cscript%3E"),
        ] {
            let query = Query::parse(text).unwrap();
            assert_eq!(query.link(), link, "{text}");
            let again = Query::parse(link.replace("&amp;", "&").trim_start_matches(['/', '?'])).unwrap();
            assert_eq!(again, query, "{text}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for text in [
            "modul=x",
            "verdict=FINE",
            "sort=age",
            "page=0",
            "page=-1",
            "page=x",
            "open=xyz",
            "filter=%f",
            "filter=%ff",
        ] {
            assert!(Query::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_query_is_bounded() {
        let ids: String = (0..1000).map(|id| format!("open={id:x}&")).collect();
        let query = Query::parse(&ids).unwrap();
        assert_eq!(query.open.len(), MAX_OPEN);
        let query = query.with_open(0xabc);
        assert_eq!((query.open.len(), query.open.contains(&0xabc)), (MAX_OPEN, true));
        let query = Query::parse(&format!("filter={}", "ä".repeat(1000))).unwrap();
        assert_eq!(query.filter.len(), MAX_FILTER_BYTES);
    }
}
