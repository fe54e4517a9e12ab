//! The read-only state that the dispatcher and the workers of a module share.

use super::config::ModuleConfig;
use super::group::Lease;
use super::metrics::ModuleMetrics;
use super::push::Pusher;

/// What a worker needs besides its queues. Each start of a module creates a new context.
pub(super) struct WorkerContext {
    /// The module's configuration.
    pub(super) config: ModuleConfig,
    /// Sends the requests to the backends.
    pub(super) pusher: Pusher,
    /// The lease that is checked before each push.
    pub(super) lease: Lease,
    /// The module's metrics.
    pub(super) metrics: ModuleMetrics,
}
