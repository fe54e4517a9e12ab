//! Pages for the unit tests of what all pages share.

use super::query::{Choice, Parameters};

/// Verdicts of two words, one of them with a blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestVerdict {
    Ok,
    NoParts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestSort {
    Worst,
    Name,
}

impl Choice for TestVerdict {
    const ALL: &'static [Self] = &[TestVerdict::Ok, TestVerdict::NoParts];

    fn word(self) -> &'static str {
        match self {
            TestVerdict::Ok => "OK",
            TestVerdict::NoParts => "NO PARTS",
        }
    }
}

impl Choice for TestSort {
    const ALL: &'static [Self] = &[TestSort::Worst, TestSort::Name];

    fn word(self) -> &'static str {
        match self {
            TestSort::Worst => "worst",
            TestSort::Name => "name",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TestPage;

impl Parameters for TestPage {
    type Verdict = TestVerdict;
    type Sort = TestSort;
    const HAS_CLUSTERS: bool = true;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WithoutClusters;

impl Parameters for WithoutClusters {
    type Verdict = TestVerdict;
    type Sort = TestSort;
    const HAS_CLUSTERS: bool = false;
}
