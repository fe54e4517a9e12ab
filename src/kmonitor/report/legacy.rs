//! The pages of `/delay`, which has the delays as the original does: by cluster, module and partition number.
//!
//! A page is rendered once for each view. `?cluster=` and `?module=` are parts of its bytes: the ranges are kept.

use std::ops::Range;
use std::sync::Arc;

use crate::http::{Body, SharedBytes};

/// A page of all delays, and where in it each cluster and module is.
pub(crate) struct DelayPage {
    pub(super) bytes: SharedBytes,
    /// In the order of the page.
    pub(super) clusters: Vec<ClusterText>,
}

/// Where one cluster is in a page.
pub(super) struct ClusterText {
    pub(super) name: Arc<str>,
    /// Whether the modules of the cluster are known now.
    pub(super) known: bool,
    pub(super) range: Range<usize>,
    /// The modules, sorted by name.
    pub(super) modules: Vec<(Arc<str>, Range<usize>)>,
}

/// What `?cluster=` and `?module=` select.
#[derive(Clone, Copy, Default)]
pub(crate) struct Selection<'a> {
    /// Only this cluster.
    pub(crate) cluster: Option<&'a str>,
    /// Only this module.
    pub(crate) module: Option<&'a str>,
}

/// Why a selection has no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No cluster has this name.
    Cluster,
    /// All selected clusters are known, and none has the module.
    Module,
}

impl DelayPage {
    /// Returns whether the selection has a page. A module may exist in a cluster that is not known.
    pub(crate) fn check(&self, selection: Selection<'_>) -> Result<(), Missing> {
        if self.selected(selection).next().is_none() {
            // Without any cluster in the configuration, every module is unknown.
            return selection.cluster.map_or(Ok(()), |_| Err(Missing::Cluster));
        }
        let is_missing =
            |module| self.selected(selection).all(|cluster| cluster.known && cluster.module(module).is_none());
        match selection.module {
            Some(module) if is_missing(module) => Err(Missing::Module),
            _ => Ok(()),
        }
    }

    pub(super) fn selected<'a>(&'a self, selection: Selection<'a>) -> impl Iterator<Item = &'a ClusterText> {
        self.clusters.iter().filter(move |cluster| selection.cluster.is_none_or(|only| *cluster.name == *only))
    }

    /// Returns the whole page, or, if only a cluster is selected, its part of the page between `start` and `end`.
    pub(super) fn shared(&self, cluster: Option<&str>, start: &str, end: &'static [u8]) -> Body {
        let Some(cluster) = cluster else { return self.bytes.clone().into() };
        let range = self.clusters.iter().find(|known| *known.name == *cluster).map(|known| known.range.clone());
        let bytes = self.bytes.slice(range.unwrap_or_default());
        Body::Shared { start: start.as_bytes().to_vec(), bytes, end }
    }
}

impl ClusterText {
    pub(super) fn module(&self, name: &str) -> Option<Range<usize>> {
        let found = self.modules.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(self.modules[found].1.clone())
    }
}
