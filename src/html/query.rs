//! The selection of a request for a page: parses parameters into a [`Query`], and renders a [`Query`] as links.

use std::fmt::{Debug, Display, Write};

use crate::http::percent_decode;

use super::Encoded;

/// Rows of one page.
pub(crate) const PAGE_ROWS: usize = 200;

/// Rows whose details are shown at the same time.
const MAX_OPEN: usize = 16;

/// Bytes of the filter that are used. A longer name exists nowhere.
const MAX_FILTER_BYTES: usize = 300;

/// A closed list of words that a parameter can have.
pub(crate) trait Choice: Copy + Debug + Eq + 'static {
    /// All of them: verdicts from the best to the worst, the default order before the others. At most 16.
    const ALL: &'static [Self];

    /// Returns the word in queries and on the page.
    fn word(self) -> &'static str;

    /// Returns the position in [`Self::ALL`].
    fn index(self) -> usize {
        Self::ALL.iter().position(|choice| *choice == self).unwrap_or_default()
    }

    /// Returns the choice with this word, in any case of letters.
    fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|choice| choice.word().eq_ignore_ascii_case(word))
    }
}

/// The parameter types of one daemon's page.
pub(crate) trait Parameters: Clone + Debug + Eq + 'static {
    /// The verdict of a row.
    type Verdict: Choice;
    /// The order of the rows.
    type Sort: Choice;
    /// Whether the rows belong to clusters.
    const HAS_CLUSTERS: bool;
}

/// The selection of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query<P: Parameters> {
    /// Text that a row must contain, in lower case; see [`Query::words`].
    pub(crate) filter: String,
    /// Verdicts to show, one bit each; `None` leaves it to the page.
    verdicts: Option<u16>,
    /// Name of the only cluster to show.
    pub(crate) cluster: Option<String>,
    /// The order of the rows.
    pub(crate) sort: P::Sort,
    /// Number of the page, from 1.
    pub(crate) page: usize,
    /// Ids of the rows whose details are shown.
    pub(crate) open: Vec<u64>,
}

impl<P: Parameters> Default for Query<P> {
    fn default() -> Self {
        let sort = P::Sort::ALL[0];
        Query { filter: String::new(), verdicts: None, cluster: None, sort, page: 1, open: Vec::new() }
    }
}

impl<P: Parameters> Query<P> {
    /// Parses the query string of a request, which may be empty. Fails with the reason for parameters that are unknown
    /// or have no meaning, so that a misspelt one does not silently select everything.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
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
                let verdict = P::Verdict::parse(&value).ok_or_else(|| format!("verdict {value:?} does not exist"))?;
                *self.verdicts.get_or_insert(0) |= 1 << verdict.index();
            }
            "cluster" if P::HAS_CLUSTERS => self.cluster = Some(value),
            "sort" => {
                let words: Vec<_> = P::Sort::ALL.iter().map(|sort| sort.word()).collect();
                self.sort = P::Sort::parse(&value)
                    .ok_or_else(|| format!("sort is {value:?}, but must be one of {}", words.join(", ")))?;
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
                let cluster = if P::HAS_CLUSTERS { " cluster," } else { "" };
                return Err(format!(
                    "unknown parameter {name:?}: the page has filter, verdict,{cluster} sort, page and open"
                ));
            }
        }
        Ok(())
    }

    /// Returns the words of the filter; a row matches if it contains each of them.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.filter.split_whitespace()
    }

    /// Returns whether each word of the filter is in one of these texts, in any case of letters.
    pub(crate) fn matches(&self, texts: &[&str]) -> bool {
        self.words().all(|word| texts.iter().any(|text| contains(text, word)))
    }

    /// Returns whether rows with this verdict are shown; `None` if the request leaves it to the page.
    pub(crate) fn wants(&self, verdict: P::Verdict) -> Option<bool> {
        self.verdicts.map(|verdicts| verdicts & (1 << verdict.index()) != 0)
    }

    /// Returns a link to this selection, for a quoted attribute.
    pub(crate) fn link(&self) -> String {
        let mut link = String::from("/");
        let mut separator = '?';
        let mut put = |name: &str, value: &dyn Display| {
            write!(link, "{separator}{name}={value}").expect("writing into memory does not fail");
            separator = '&';
        };
        if !self.filter.is_empty() {
            put("filter", &Encoded(&self.filter));
        }
        for verdict in P::Verdict::ALL.iter().rev().filter(|verdict| self.wants(**verdict) == Some(true)) {
            put("verdict", &Encoded(verdict.word()));
        }
        if let Some(cluster) = &self.cluster {
            put("cluster", &Encoded(cluster));
        }
        if self.sort != P::Sort::ALL[0] {
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
    pub(crate) fn with_all_verdicts(&self) -> Self {
        let all = P::Verdict::ALL.iter().fold(0_u16, |all, verdict| all | (1 << verdict.index()));
        Query { verdicts: Some(all), page: 1, ..self.clone() }
    }

    /// Returns this selection in another order.
    pub(crate) fn sorted(&self, sort: P::Sort) -> Self {
        Query { sort, page: 1, ..self.clone() }
    }

    /// Returns another page of this selection.
    pub(crate) fn at_page(&self, page: usize) -> Self {
        Query { page, ..self.clone() }
    }

    /// Returns this selection with the details of one more row.
    pub(crate) fn with_open(&self, id: u64) -> Self {
        let mut query = self.clone();
        query.open.truncate(MAX_OPEN - 1);
        query.open.push(id);
        query
    }
}

/// Returns whether `text` contains `word`, which is in lower case.
fn contains(text: &str, word: &str) -> bool {
    if text.is_ascii() && word.is_ascii() {
        let (text, word) = (text.as_bytes(), word.as_bytes());
        text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
    } else {
        text.to_lowercase().contains(word)
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_decode(text).ok_or_else(|| format!("invalid percent-encoding in {text:?}"))?;
    String::from_utf8(bytes.into_owned()).map_err(|_| format!("{text:?} does not decode to UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::super::test_page::{TestPage, WithoutClusters};
    use super::*;

    type Query = super::Query<TestPage>;

    #[test]
    fn a_query_and_its_link_are_the_same_selection() {
        for (text, link) in [
            ("", "/"),
            ("filter=&cluster=&page=1&sort=worst", "/"),
            ("filter=A%20b+C", "/?filter=a%20b%20c"),
            ("verdict=ok&verdict=NO%20PARTS", "/?verdict=NO%20PARTS&amp;verdict=OK"),
            ("cluster=c%26d&sort=name&page=3", "/?cluster=c%26d&amp;sort=name&amp;page=3"),
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
        assert!(super::Query::<WithoutClusters>::parse("cluster=c").is_err());
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

    #[test]
    fn a_row_matches_if_it_has_each_word() {
        let query = Query::parse("filter=INVOICES%20größe").unwrap();
        for (texts, expected) in [
            (&["invoices", "GRÖSSE Größe"][..], true),
            (&["my_invoices_2 größe"], true),
            (&["invoices"], false),
            (&[], false),
        ] {
            assert_eq!(query.matches(texts), expected, "{texts:?}");
        }
        assert!(Query::default().matches(&[]));
    }
}
