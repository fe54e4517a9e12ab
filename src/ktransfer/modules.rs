//! The modules that run in this process: starts each of them with its connections, its metrics, and what operators see.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::config::{Config, ModuleConfig};
use super::dead_letters::{self, Letter, LetterCompletion, ModuleLetters};
use super::group::Leases;
use super::group::zookeeper::{GroupObservers, ZookeeperGroup, ZookeeperGroupConfig};
use super::metrics::Metrics;
use super::module::{Connectors, Module};
use super::operations::{ModuleHandle, Operations};
use super::pauses::{PauseNode, PauseTable};
use super::stop_report::StopReport;
use crate::admin::Health;
use crate::broker::{self, BrokerConfig, FetcherConfig, HeaderLimits, PartitionerKind, Producer, ProducerConfig};
use crate::keeper::{Keeper, SharedKeeper, discovery};
use crate::supervise::Supervisor;

/// Timeout of one request to a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of one attempt to store a dead letter. It is longer than most outages of a broker: within one attempt the
/// producer stores a letter once, also if a response is lost.
const LETTER_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit on the bytes that a Kafka client prefetches for each module.
const PREFETCH_BYTES: usize = 8 << 20;
/// Size of the largest message that can be read, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What all modules share.
pub(super) struct Modules {
    pub(super) config: Arc<Config>,
    /// To the thread that stores dead letters.
    pub(super) letters: Sender<Letter>,
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
        let connect_log_ends = move || broker::log_ends(&broker_config(&config, keeper.as_ref())?, &threads);
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
pub(super) fn broker_config(config: &Config, keeper: &dyn Keeper) -> Result<BrokerConfig, String> {
    let hosts = match &config.broker_hosts {
        Some(hosts) => hosts.clone(),
        None => discovery::brokers(keeper, &config.kafka.protocol()).map_err(|cause| cause.to_string())?,
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
    let broker = broker_config(config, membership.keeper.as_ref())?;
    let fetcher_config = FetcherConfig {
        prefetch_bytes: PREFETCH_BYTES,
        max_message_bytes: MAX_MESSAGE_BYTES,
        headers: HeaderLimits::default(),
    };
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

/// Starts the thread that stores the dead letters of all modules, if a module has a dead-letter topic. Returns its
/// channel.
pub(super) fn start_letters(config: &Arc<Config>, keeper: &SharedKeeper, threads: &Supervisor) -> Sender<Letter> {
    let (letter_sender, letters) = dead_letters::channel(config.modules.len());
    if config.modules.iter().any(|module| module.dead_letter_topic.is_some()) {
        let (config, keeper, group) = (Arc::clone(config), Arc::clone(keeper), threads.clone());
        threads.spawn("dead-letters", move || {
            let make = || letter_producer(&config, keeper.as_ref(), &group);
            dead_letters::store_letters(&letters, group.stop(), make);
        });
    }
    letter_sender
}

/// Makes the producer of the dead letters of all modules.
fn letter_producer(
    config: &Config,
    keeper: &dyn Keeper,
    threads: &Supervisor,
) -> Result<Arc<dyn Producer<LetterCompletion>>, String> {
    let mut broker = broker_config(config, keeper)?;
    // A topic that brokers create on demand has their default replication, which may lose messages.
    broker.settings = broker.settings.without_topic_creation();
    let producer = ProducerConfig {
        partitioner: PartitionerKind::default(),
        max_message_bytes: MAX_MESSAGE_BYTES,
        max_in_flight: dead_letters::MAX_LETTERS * config.modules.len(),
        timeout: LETTER_TIMEOUT,
    };
    broker::producer(&broker, producer, threads)
}
