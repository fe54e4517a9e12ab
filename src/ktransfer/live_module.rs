//! The configuration of a running module, and the threads that a reload changes in place.

use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;

use super::backend_client::BackendResolver;
use super::config::ModuleConfig;
use super::job::WorkerMessage;
use super::worker_context::WorkerContext;
use crate::locks::lock;
use crate::supervise::Supervisor;

/// The configuration that a module runs with, also when it is started again after a failure. Clones share it.
#[derive(Clone)]
pub(super) struct LiveModule(Arc<Mutex<State>>);

struct State {
    config: ModuleConfig,
    /// `None` while the module does not run.
    threads: Option<ChangeableThreads>,
}

/// The threads of a running module that follow a change.
pub(super) struct ChangeableThreads {
    pub(super) context: Arc<WorkerContext>,
    /// The inboxes of all workers.
    pub(super) workers: Arc<[Sender<WorkerMessage>]>,
    pub(super) resolving: Resolving,
}

/// The thread that looks up the names of backends; it is started with the first name.
pub(super) struct Resolving {
    module: Arc<str>,
    threads: Supervisor,
    is_started: bool,
}

impl Resolving {
    /// Starts nothing yet; the thread will belong to `threads`.
    pub(super) fn new(module: Arc<str>, threads: Supervisor) -> Resolving {
        Resolving { module, threads, is_started: false }
    }

    /// Starts the thread if a name is to be looked up and it does not run.
    pub(super) fn start_if_needed(&mut self, resolver: &Arc<BackendResolver>) {
        if self.is_started || !resolver.has_names() {
            return;
        }
        self.is_started = true;
        let (resolver, stop) = (Arc::clone(resolver), self.threads.stop().clone());
        self.threads.spawn(format!("names@{}", self.module), move || resolver.run(&stop));
    }
}

impl LiveModule {
    /// Creates the state of a module that does not run.
    pub(super) fn new(config: ModuleConfig) -> LiveModule {
        LiveModule(Arc::new(Mutex::new(State { config, threads: None })))
    }

    /// Returns the configuration in force.
    pub(super) fn config(&self) -> ModuleConfig {
        lock(&self.0).config.clone()
    }

    /// Starts the module's threads with the configuration in force; no change comes between.
    pub(super) fn start(&self, start: impl FnOnce(&ModuleConfig) -> ChangeableThreads) {
        let mut state = lock(&self.0);
        state.threads = Some(start(&state.config));
    }

    /// Notes that the module's threads have ended.
    pub(super) fn end(&self) {
        lock(&self.0).threads = None;
    }

    /// Changes the configuration in place. Pushes in flight finish with the former configuration, the next ones use
    /// `config`.
    pub(super) fn change(&self, config: ModuleConfig) {
        let mut state = lock(&self.0);
        if let Some(threads) = &mut state.threads {
            let change = threads.context.change(&config);
            threads.resolving.start_if_needed(threads.context.settings().profile.resolver());
            for worker in threads.workers.iter() {
                // Fails only if that worker has ended, and then the module ends.
                let _ = worker.send(WorkerMessage::SettingsChanged(change));
            }
        }
        state.config = config;
    }
}
