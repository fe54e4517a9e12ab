//! The modules that run in this process: starts each of them with its connections, its metrics, and what operators see.

use std::sync::Arc;
use std::time::Duration;

use super::config::{Config, ModuleConfig};
use super::group::Leases;
use super::group::zookeeper::{GroupObservers, ZookeeperGroup, ZookeeperGroupConfig};
use super::metrics::Metrics;
use super::module::{Connectors, Module};
use super::operations::{ModuleHandle, Operations};
use super::pauses::{PauseNode, PauseTable};
use super::stop_report::StopReport;
use crate::admin::Health;
use crate::broker::{self, BrokerConfig, FetcherConfig};
use crate::keeper::{SharedKeeper, discovery};
use crate::supervise::Supervisor;

/// Timeout of one request to a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on the bytes that a Kafka client prefetches for each module.
const PREFETCH_BYTES: usize = 8 << 20;
/// Size of the largest message that can be read, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What all modules share.
pub(super) struct Modules {
    pub(super) config: Arc<Config>,
    pub(super) keeper: SharedKeeper,
    pub(super) leases: Arc<Leases>,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) report: StopReport,
    pub(super) operations: Operations,
    /// The threads of the modules.
    pub(super) supervisor: Supervisor,
}

/// What the groups of a module need besides their configuration.
struct Membership {
    keeper: SharedKeeper,
    leases: Arc<Leases>,
    observers: GroupObservers,
}

impl Modules {
    /// Starts a module.
    pub(super) fn start(&self, module_config: &ModuleConfig) {
        let name = &module_config.name;
        let metrics = self.metrics.of_module(name, &module_config.topic);
        let pauses = PauseTable::stored_in(PauseNode::new(Arc::clone(&self.keeper), name, &module_config.topic));
        let (config, keeper, threads) = (Arc::clone(&self.config), Arc::clone(&self.keeper), self.supervisor.clone());
        let connect_log_ends = move || broker::log_ends(&broker_config(&config, &keeper)?, &threads);
        let handle = ModuleHandle::new(
            Arc::clone(name),
            Arc::clone(&module_config.topic),
            pauses.clone(),
            Arc::new(connect_log_ends),
        );
        let module = Module {
            config: module_config.clone(),
            health: self.health.component(format!("module {name}")),
            broker_health: self.health.component(format!("broker of {name}")),
            // The remaining fifth of the grace is for closing the session with ZooKeeper.
            grace: self.config.shutdown_grace * 4 / 5,
            max_pause: self.config.retry_interval,
            report: self.report.clone(),
            operator: handle.link(),
            metrics,
        };
        let membership = Membership {
            keeper: Arc::clone(&self.keeper),
            leases: Arc::clone(&self.leases),
            observers: GroupObservers {
                health: Some(self.health.component(format!("group of {name}"))),
                unreadable: Some(module.metrics.unreadable_offsets.clone()),
                unowned: Some(module.metrics.unowned.clone()),
                report: self.report.clone(),
                pauses,
                receipts: handle.receipts.clone(),
            },
        };
        self.operations.add(handle);
        let (shared, stop) = (Arc::clone(&self.config), self.supervisor.stop().clone());
        self.supervisor.spawn(format!("module@{name}"), move || {
            module.run(&stop, |threads| connect(&shared, &module.config, &membership, threads));
        });
    }
}

/// Returns the settings of the Kafka clients: the brokers in `broker_hosts`, or else those that are registered in
/// ZooKeeper. Fails if no broker is known.
fn broker_config(config: &Config, keeper: &SharedKeeper) -> Result<BrokerConfig, String> {
    let hosts = match &config.broker_hosts {
        Some(hosts) => hosts.clone(),
        None => discovery::brokers(keeper.as_ref(), &config.kafka.protocol()).map_err(|cause| cause.to_string())?,
    };
    if hosts.is_empty() {
        let chroot = &config.keeper.chroot;
        let protocol = config.kafka.protocol();
        return Err(format!(
            "no broker with {protocol} is registered in ZooKeeper under zk_chroot {chroot:?}: check zk_chroot and \
             security.protocol"
        ));
    }
    Ok(BrokerConfig {
        hosts,
        engine: config.engine,
        client_id: "ktransfer".to_owned(),
        request_timeout: BROKER_TIMEOUT,
        settings: config.kafka.clone(),
    })
}

/// Makes the connections of a module: its group in ZooKeeper, and its Kafka clients. Fails if no broker is known or a
/// client cannot be created.
fn connect(
    config: &Config,
    module: &ModuleConfig,
    membership: &Membership,
    threads: &Supervisor,
) -> Result<Connectors, String> {
    let broker = broker_config(config, &membership.keeper)?;
    let fetcher_config = FetcherConfig { prefetch_bytes: PREFETCH_BYTES, max_message_bytes: MAX_MESSAGE_BYTES };
    let group = ZookeeperGroupConfig {
        group: module.name.to_string(),
        topic: module.topic.to_string(),
        offset_update_interval: module.offset_update_interval,
        // A module has four fifths of the grace; half of these are for the pushes in flight.
        leave_timeout: config.shutdown_grace * 3 / 10,
    };
    let (keeper, leases) = (Arc::clone(&membership.keeper), Arc::clone(&membership.leases));
    let group = ZookeeperGroup::new(group, keeper, leases).observed_by(membership.observers.clone());
    Ok(Connectors {
        fetcher: broker::fetcher(&broker, fetcher_config, threads)?,
        log_ends: broker::log_ends(&broker, threads)?,
        group: Box::new(group),
    })
}
