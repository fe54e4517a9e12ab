//! The read-only state that the dispatcher and the workers of a module share.

use super::attempt_board::AttemptBoard;
use super::backend_client::HttpClient;
use super::backends::Backends;
use super::config::ModuleConfig;
use super::dead_letters::ModuleLetters;
use super::metrics::ModuleMetrics;
use super::push_rate::PushRate;
use super::window_slots::WindowSlots;

/// What a worker needs besides its channels. Each start of a module creates a new context.
pub(super) struct WorkerContext {
    /// The module's configuration.
    pub(super) config: ModuleConfig,
    /// Has a pusher for each worker, and cuts pushes.
    pub(super) http_client: HttpClient,
    /// The module's metrics.
    pub(super) metrics: ModuleMetrics,
    /// The dead letters of the module; `None` without `dead_letter_topic`.
    pub(super) dead_letters: Option<ModuleLetters>,
    /// The slots of the messages that are pushed and not done.
    pub(super) slots: WindowSlots,
    /// The pushes on the wire, and the messages whose latest attempt failed.
    pub(super) attempts: AttemptBoard,
    /// Which backends are in use.
    pub(super) backends: Backends,
    /// The limit on pushes; `None` is no limit.
    pub(super) push_rate: Option<PushRate>,
}

impl WorkerContext {
    /// Shows the number of messages that are pushed and not done. Workers call it when they take a slot; after they
    /// have returned one, the dispatcher has a report and calls it.
    pub(super) fn show_window(&self) {
        self.metrics.window_in_use.set(i64::try_from(self.slots.in_use()).unwrap_or(i64::MAX));
    }
}
