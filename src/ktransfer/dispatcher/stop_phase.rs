//! How far the stop of a module has come.

use std::time::Instant;

/// The phases, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopPhase {
    Working,
    /// Pushes in flight may end until then; after it their connections are closed.
    Ending {
        until: Instant,
    },
    /// Connections were closed; the acknowledgements of those pushes are awaited until then.
    Aborted {
        until: Instant,
    },
}

impl StopPhase {
    /// When the phase ends by itself.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            StopPhase::Working => None,
            StopPhase::Ending { until } | StopPhase::Aborted { until } => Some(until),
        }
    }
}
