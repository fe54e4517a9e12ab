//! The state that the threads of a fetcher share. The lock of [`State`] is held only for computations.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::FetchConfig;
use super::core::FetchCore;
use crate::kafka::connection::{Connector, Disconnect};
use crate::kafka::metadata::BrokerId;
use crate::locks::{lock, wait_timeout};
use crate::supervise::Supervisor;

/// Longest wait of a thread, after which it checks the stop.
const MAX_SLEEP: Duration = Duration::from_millis(500);

/// The state that the threads of a fetcher share.
pub(super) struct Shared {
    pub(super) connector: Connector,
    pub(super) config: FetchConfig,
    pub(super) supervisor: Supervisor,
    pub(super) state: Mutex<State>,
    /// Notified when there are events.
    pub(super) events: Condvar,
    /// Notified when there may be work for the threads.
    pub(super) work: Condvar,
    /// Runs the worker of a broker until it ends.
    pub(super) run_worker: fn(&Arc<Shared>, BrokerId),
}

/// The state under the lock.
pub(super) struct State {
    pub(super) core: FetchCore,
    /// Ends the waits of the workers.
    pub(super) disconnects: HashMap<BrokerId, Disconnect>,
    /// Ends a metadata request.
    pub(super) metadata_disconnect: Disconnect,
    pub(super) is_closed: bool,
}

impl State {
    pub(super) fn disconnect_all(&mut self) {
        for disconnect in self.disconnects.values() {
            disconnect.disconnect();
        }
        self.metadata_disconnect.disconnect();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether the threads must end.
    pub(super) fn is_ended(&self, state: &State) -> bool {
        state.is_closed || self.supervisor.stop().is_triggered()
    }

    /// Waits for a change of what there is to do, at most until `until`.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        let left = until.map_or(MAX_SLEEP, |until| until.saturating_duration_since(Instant::now()));
        wait_timeout(&self.work, state, left.min(MAX_SLEEP))
    }

    /// Wakes a poll if there are events, wakes threads that may have work, and starts the workers of brokers that have
    /// become leaders.
    pub(super) fn changed(self: &Arc<Self>, state: &mut State) {
        if state.core.has_events() {
            self.events.notify_all();
        }
        if state.core.take_leader_news() {
            self.work.notify_all();
        }
        for id in state.core.missing_workers(Instant::now()) {
            let shared = Arc::clone(self);
            self.supervisor.spawn_task(format!("kafka-fetch-{id}"), move || (shared.run_worker)(&shared, id));
        }
    }
}
