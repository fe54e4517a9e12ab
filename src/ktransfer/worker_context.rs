//! The read-only state that the dispatcher and the workers of a module share.

use super::config::ModuleConfig;
use super::group::Lease;
use super::metrics::ModuleMetrics;
use super::push::Pusher;

/// The surroundings of a worker; one for each start of a module.
pub(super) struct WorkerContext {
    /// The module's configuration.
    pub(super) config: ModuleConfig,
    /// Sends the requests.
    pub(super) pusher: Pusher,
    /// Whether a push may begin.
    pub(super) lease: Lease,
    /// The module's metrics.
    pub(super) metrics: ModuleMetrics,
}
