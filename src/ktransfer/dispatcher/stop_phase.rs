//! The phases of the stop of a module.

use std::time::Instant;

/// The phases, in the order in which they occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopPhase {
    Working,
    /// Pushes in flight may end until the deadline `until`; then their connections are closed.
    Ending {
        until: Instant,
    },
    /// Connections were closed. The acknowledgements of the pushes on them are awaited until the deadline `until`.
    Aborted {
        until: Instant,
    },
}

impl StopPhase {
    /// The deadline at which the phase ends; `None` for [`StopPhase::Working`].
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            StopPhase::Working => None,
            StopPhase::Ending { until } | StopPhase::Aborted { until } => Some(until),
        }
    }
}
