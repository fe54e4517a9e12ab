//! The parameters of the page.

use crate::html::query::{Choice, Parameters};
use crate::kmonitor::facts::Verdict;

/// The selection of a request.
pub(super) type Query = crate::html::query::Query<DelayPage>;

/// The page of kmonitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kmonitor) struct DelayPage;

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

impl Parameters for DelayPage {
    type Verdict = Verdict;
    type Sort = Sort;
    const HAS_CLUSTERS: bool = true;
}

impl Choice for Verdict {
    const ALL: &'static [Self] = &Verdict::ALL;

    fn word(self) -> &'static str {
        Verdict::word(self)
    }
}

impl Choice for Sort {
    const ALL: &'static [Self] = &[Sort::Worst, Sort::Name, Sort::Delay, Sort::Behind];

    fn word(self) -> &'static str {
        match self {
            Sort::Worst => "worst",
            Sort::Name => "name",
            Sort::Delay => "delay",
            Sort::Behind => "behind",
        }
    }
}
