//! The read-only state that the dispatcher and the workers of a module share.

use super::config::ModuleConfig;
use super::metrics::ModuleMetrics;
use super::push::Pusher;

/// What a worker needs besides its queues. Each start of a module creates a new context.
pub(super) struct WorkerContext {
    /// The module's configuration.
    pub(super) config: ModuleConfig,
    /// Sends the requests to the backends.
    pub(super) pusher: Pusher,
    /// The module's metrics.
    pub(super) metrics: ModuleMetrics,
}
