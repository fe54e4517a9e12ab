//! The modules that run in this process: starts each of them with its connections, its metrics, and what operators see.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::config::{Config, ModuleConfig};
use super::connections::{Connections, ZookeeperSession};
use super::dead_letters::{Letter, ModuleLetters};
use super::group::GroupObservers;
use super::metrics::Metrics;
use super::module::Module;
use super::operations::{ModuleHandle, Operations};
use super::pauses::{PauseNode, PauseTable};
use super::stop_report::StopReport;
use crate::admin::Health;
use crate::supervise::Supervisor;

/// What all modules share.
pub(super) struct Modules {
    pub(super) config: Arc<Config>,
    /// To the thread that stores dead letters.
    pub(super) letters: Sender<Letter>,
    /// The session with ZooKeeper; `None` if the groups are in Kafka.
    pub(super) zookeeper: Option<ZookeeperSession>,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) report: StopReport,
    pub(super) operations: Operations,
    /// The threads of the modules.
    pub(super) supervisor: Supervisor,
}

impl Modules {
    /// Starts a module.
    pub(super) fn start(&self, module_config: &ModuleConfig) {
        let name = &module_config.name;
        let metrics = self.metrics.of_module(name, &module_config.topic);
        let pauses = match &self.zookeeper {
            Some(session) => {
                PauseTable::stored_in(PauseNode::new(Arc::clone(&session.keeper), name, &module_config.topic))
            }
            None => PauseTable::stored_by_group(),
        };
        let (reads, threads) = (self.connections(GroupObservers::default()), self.supervisor.clone());
        let connect_log_ends = move || reads.log_ends(&threads);
        let handle = ModuleHandle::new(
            Arc::clone(name),
            Arc::clone(&module_config.topic),
            pauses.clone(),
            Arc::new(connect_log_ends),
        );
        let module = Module {
            config: module_config.clone(),
            dead_letters: module_config.dead_letter_topic.as_ref().map(|topic| {
                let health = self.health.component(format!("dead letters of {name}"));
                ModuleLetters::new(self.letters.clone(), Arc::clone(name), Arc::clone(topic), metrics.clone(), health)
            }),
            health: self.health.component(format!("module {name}")),
            broker_health: self.health.component(format!("broker of {name}")),
            // The remaining fifth of the grace is for closing the session with ZooKeeper.
            grace: self.config.shutdown_grace * 4 / 5,
            max_pause: self.config.retry_interval,
            report: self.report.clone(),
            operator: handle.link(),
            metrics,
        };
        let connections = self.connections(GroupObservers {
            health: Some(self.health.component(format!("group of {name}"))),
            unreadable: Some(module.metrics.unreadable_offsets.clone()),
            unowned: Some(module.metrics.unowned.clone()),
            report: self.report.clone(),
            pauses,
            receipts: handle.receipts.clone(),
        });
        self.operations.add(handle);
        let stop = self.supervisor.stop().clone();
        self.supervisor.spawn(format!("module@{name}"), move || {
            module.run(&stop, |threads| connections.connect(&module.config, threads));
        });
    }

    fn connections(&self, observers: GroupObservers) -> Connections {
        Connections { config: Arc::clone(&self.config), zookeeper: self.zookeeper.clone(), observers }
    }
}
