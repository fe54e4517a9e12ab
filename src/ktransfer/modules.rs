//! The modules that run in this process. Each has a thread `module@M`, which starts the module with its connections,
//! its metrics, and what operators see.
//!
//! A reload sets the wanted configuration of a module, and triggers the stop of its present run. The thread of the
//! module does the rest: when that run has ended and released its partitions, it starts the next one, or removes the
//! module from status and metrics and ends. So no reload waits for a module, and no run of a module begins before the
//! former one has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use log::{error, info};

use super::config::{Config, ModuleConfig};
use super::connections::{Connections, ZookeeperSession};
use super::dead_letters::ModuleLetters;
use super::group::GroupObservers;
use super::letter_thread::LetterThread;
use super::live_module::LiveModule;
use super::metrics::{Metrics, ModuleMetrics};
use super::module::Module;
use super::operations::{ModuleHandle, Operations};
use super::pauses::{PauseNode, PauseTable};
use super::plan::{ChangeKind, Plan};
use super::stop_report::StopReport;
use crate::admin::{Component, Health};
use crate::locks::lock;
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::Supervisor;

/// All modules, and what they share.
pub(super) struct Modules {
    /// The configuration of the daemon; its modules are those at the start.
    pub(super) config: Arc<Config>,
    pub(super) letters: LetterThread,
    /// The session with ZooKeeper; `None` if the groups are in Kafka.
    pub(super) zookeeper: Option<ZookeeperSession>,
    pub(super) registry: Registry,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) report: StopReport,
    pub(super) operations: Operations,
    /// The threads of the modules.
    pub(super) supervisor: Supervisor,
    pub(super) table: Mutex<ModuleTable>,
}

/// The modules by name, also those that are being stopped.
#[derive(Default)]
pub(super) struct ModuleTable {
    modules: BTreeMap<Arc<str>, ModuleEntry>,
    /// The daemon stops: no module is started or changed.
    is_closed: bool,
}

struct ModuleEntry {
    /// The configuration that the module is to have; `None` if it is to end.
    wanted: Option<ModuleConfig>,
    /// The present run, or the first one, which is about to begin.
    run: Run,
}

/// One run of a module, which a reload may stop.
#[derive(Clone)]
struct Run {
    stop: Stop,
    live: LiveModule,
    report: StopReport,
}

impl ModuleEntry {
    /// Stops the present run; the next one, if any, has the configuration `wanted`.
    fn replace(&mut self, wanted: Option<ModuleConfig>) {
        self.run.report.begin_stop_by_reload(wanted.is_none());
        self.run.stop.trigger();
        self.wanted = wanted;
    }

    fn change_in_place(&mut self, config: ModuleConfig) {
        // A run that is being stopped keeps its settings, the next one has these.
        if !self.run.stop.is_triggered() {
            self.run.live.change(config.clone());
        }
        self.wanted = Some(config);
    }
}

impl Modules {
    /// Starts a module that is not in the table.
    fn add(self: &Arc<Self>, table: &mut ModuleTable, config: ModuleConfig) {
        let name = Arc::clone(&config.name);
        let run = self.new_run(&config);
        table.modules.insert(Arc::clone(&name), ModuleEntry { wanted: Some(config), run });
        let modules = Arc::clone(self);
        self.supervisor.spawn_fallible(format!("module@{name}"), move || modules.run_module(&name));
    }

    /// Starts all modules of the configuration.
    pub(super) fn start_all(self: &Arc<Self>) {
        let mut table = lock(&self.table);
        for config in &self.config.modules {
            self.add(&mut table, config.clone());
        }
    }

    /// Returns the configurations of all modules, without those that are being removed.
    pub(super) fn configs(&self) -> Vec<ModuleConfig> {
        lock(&self.table).modules.values().filter_map(|entry| entry.wanted.clone()).collect()
    }

    /// Makes the changes of a plan, which was made from [`Self::configs`]; the reload is its only caller. Returns once
    /// they have begun. Fails if the daemon stops.
    pub(super) fn apply(self: &Arc<Self>, plan: Plan) -> Result<(), String> {
        let mut table = lock(&self.table);
        if table.is_closed || self.supervisor.stop().is_triggered() {
            return Err("ktransfer is stopping".to_owned());
        }
        for name in &plan.removed {
            info!("module [{name}] is removed by a reload");
            if let Some(entry) = table.modules.get_mut(name) {
                entry.replace(None);
            }
        }
        for change in plan.changed {
            let (name, keys) = (Arc::clone(&change.config.name), change.keys.join(", "));
            let Some(entry) = table.modules.get_mut(&name) else { continue };
            match change.kind {
                ChangeKind::InPlace => {
                    entry.change_in_place(change.config);
                    info!("module [{name}] is changed by a reload: {keys}");
                }
                ChangeKind::Restart => {
                    info!("module [{name}] is stopped and started by a reload: {keys}");
                    entry.replace(Some(change.config));
                }
            }
        }
        for config in plan.added {
            info!("module [{}] is added by a reload", config.name);
            match table.modules.get_mut(&config.name) {
                // It was removed before, and starts when its former run has ended.
                Some(entry) => entry.replace(Some(config)),
                None => self.add(&mut table, config),
            }
        }
        Ok(())
    }

    /// Ends the changes: from now on no module is started or changed by a reload.
    pub(super) fn close(&self) {
        lock(&self.table).is_closed = true;
    }

    /// Removes and returns what the stop of the daemon could not do for the modules.
    pub(super) fn take_failures(&self) -> Vec<String> {
        lock(&self.table).modules.values().flat_map(|entry| entry.run.report.take()).collect()
    }

    /// Runs a module until it is removed or the daemon stops. Fails if the module cannot be restarted.
    fn run_module(&self, name: &str) -> Result<(), String> {
        while let Some((config, run)) = self.next_run(name) {
            let ShownModule { module, observers, components } = self.module(&config, &run);
            let connections = self.connections(observers);
            module.run(&run.stop, |config, threads| connections.connect(config, threads))?;
            if self.supervisor.stop().is_triggered() {
                return Ok(());
            }
            for failure in run.report.take() {
                error!("module [{name}] was stopped by a reload, but: {failure}");
            }
            components.iter().for_each(Component::remove);
        }
        Ok(())
    }

    /// Returns the next run of a module and its configuration; `None` if the module was removed, and then it is no
    /// longer in the table.
    fn next_run(&self, name: &str) -> Option<(ModuleConfig, Run)> {
        let mut table = lock(&self.table);
        let entry = table.modules.get_mut(name)?;
        let Some(config) = entry.wanted.clone() else {
            table.modules.remove(name);
            self.operations.remove(name);
            self.registry.remove_series(&[("module", name)]);
            info!("module [{name}] is removed");
            return None;
        };
        let former = entry.run.live.config();
        let metrics = self.metrics.of_module(name, &config.topic);
        for gone in former.backend_servers.iter().filter(|server| !config.backend_servers.contains(server)) {
            metrics.forget_backend(gone);
        }
        entry.run = self.new_run(&config);
        Some((config, entry.run.clone()))
    }

    fn new_run(&self, config: &ModuleConfig) -> Run {
        let stops = self.supervisor.stop();
        Run { stop: stops.child(), live: LiveModule::new(config.clone()), report: self.report.of_module(stops.clone()) }
    }

    fn module(&self, config: &ModuleConfig, run: &Run) -> ShownModule {
        let name = &config.name;
        let metrics = self.metrics.of_module(name, &config.topic);
        let pauses = match &self.zookeeper {
            Some(session) => PauseTable::stored_in(PauseNode::new(Arc::clone(&session.keeper), name, &config.topic)),
            None => PauseTable::stored_by_group(),
        };
        let (reads, threads) = (self.connections(GroupObservers::default()), self.supervisor.clone());
        let connect_log_ends = move || reads.log_ends(&threads);
        let handle =
            ModuleHandle::new(Arc::clone(name), Arc::clone(&config.topic), pauses.clone(), Arc::new(connect_log_ends));
        let (health, broker_health, group_health) = (
            self.health.component(format!("module {name}")),
            self.health.component(format!("broker of {name}")),
            self.health.component(format!("group of {name}")),
        );
        let mut components = vec![health.clone(), broker_health.clone(), group_health.clone()];
        let dead_letters = config.dead_letter_topic.as_ref().map(|topic| {
            let health = self.health.component(format!("dead letters of {name}"));
            components.push(health.clone());
            self.module_letters(name, topic, &metrics, health)
        });
        let observers = GroupObservers {
            health: Some(group_health),
            unreadable: Some(metrics.unreadable_offsets.clone()),
            unowned: Some(metrics.unowned.clone()),
            report: run.report.clone(),
            pauses,
            receipts: handle.receipts.clone(),
        };
        let module = Module {
            name: Arc::clone(name),
            live: run.live.clone(),
            dead_letters,
            health,
            broker_health,
            // The remaining fifth of the grace is for closing the session with ZooKeeper.
            grace: self.config.shutdown_grace * 4 / 5,
            max_pause: self.config.retry_interval,
            report: run.report.clone(),
            operator: handle.link(),
            metrics,
        };
        self.operations.add(handle);
        ShownModule { module, observers, components }
    }

    fn module_letters(
        &self,
        name: &Arc<str>,
        topic: &Arc<str>,
        metrics: &ModuleMetrics,
        health: Component,
    ) -> ModuleLetters {
        ModuleLetters::new(self.letters.sender(), Arc::clone(name), Arc::clone(topic), metrics.clone(), health)
    }

    fn connections(&self, observers: GroupObservers) -> Connections {
        Connections { config: Arc::clone(&self.config), zookeeper: self.zookeeper.clone(), observers }
    }
}

/// A module that is about to run.
struct ShownModule {
    module: Module,
    observers: GroupObservers,
    /// Its components of `/readyz`.
    components: Vec<Component>,
}

#[cfg(test)]
mod tests;
