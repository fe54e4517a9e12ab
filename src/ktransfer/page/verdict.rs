//! The words of the page: the verdicts of modules, and the orders of the rows.

use crate::html::query::{Choice, Parameters};
use crate::ktransfer::operations::{BackendState, PartitionState};

/// The page of ktransfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModulesPage;

impl Parameters for ModulesPage {
    type Verdict = ModuleVerdict;
    type Sort = Sort;
    const HAS_CLUSTERS: bool = false;
}

/// The state of a module, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ModuleVerdict {
    /// It pushes, or has nothing to push.
    Pushing,
    /// This process has claimed no partition of it.
    NoPartitions,
    /// An operator has paused it, or some of its partitions.
    Paused,
    /// A message has been retried for long, or a backend is out of use.
    Degraded,
    /// Every backend is out of use.
    Stalled,
    /// A part of it is not ready, as `/readyz` says.
    NotReady,
    /// It does not run.
    Stopped,
}

impl Choice for ModuleVerdict {
    const ALL: &'static [Self] = &[
        ModuleVerdict::Pushing,
        ModuleVerdict::NoPartitions,
        ModuleVerdict::Paused,
        ModuleVerdict::Degraded,
        ModuleVerdict::Stalled,
        ModuleVerdict::NotReady,
        ModuleVerdict::Stopped,
    ];

    fn word(self) -> &'static str {
        match self {
            ModuleVerdict::Pushing => "PUSHING",
            ModuleVerdict::NoPartitions => "NO PARTITIONS",
            ModuleVerdict::Paused => "PAUSED",
            ModuleVerdict::Degraded => "DEGRADED",
            ModuleVerdict::Stalled => "STALLED",
            ModuleVerdict::NotReady => "NOT READY",
            ModuleVerdict::Stopped => "STOPPED",
        }
    }
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// The worst verdict first.
    Worst,
    /// By the name of the module.
    Name,
    /// The most messages delivered in a second first.
    Rate,
    /// The commit point that has been held longest first.
    Held,
}

impl Choice for Sort {
    const ALL: &'static [Self] = &[Sort::Worst, Sort::Name, Sort::Rate, Sort::Held];

    fn word(self) -> &'static str {
        match self {
            Sort::Worst => "worst",
            Sort::Name => "name",
            Sort::Rate => "rate",
            Sort::Held => "held",
        }
    }
}

/// Returns the word for the state of a partition.
pub(super) fn partition_word(state: PartitionState) -> &'static str {
    match state {
        PartitionState::Pushing => "PUSHING",
        PartitionState::Paused => "PAUSED",
        PartitionState::Draining => "DRAINING",
        PartitionState::Seeking => "SEEKING",
        PartitionState::Releasing => "RELEASING",
    }
}

/// Returns the word for the state of a backend.
pub(super) fn backend_word(state: BackendState) -> &'static str {
    match state {
        BackendState::InUse => "IN USE",
        BackendState::SlowStart => "SLOW START",
        BackendState::Probed => "PROBED",
        BackendState::Ejected => "EJECTED",
    }
}
