//! Makes the connections of a module: its group in ZooKeeper or in Kafka, and the clients that read its topic.

use std::sync::Arc;
use std::time::Duration;

use super::config::{Config, GroupService, KafkaGroupSettings, ModuleConfig};
use super::dead_letters::{LetterCompletion, MAX_LETTERS};
use super::group::kafka::{KafkaGroup, KafkaGroupConfig};
use super::group::zookeeper::{ZookeeperGroup, ZookeeperGroupConfig};
use super::group::{Group, GroupObservers, Leases};
use super::module::Connectors;
use crate::broker::membership::{GroupOffsets, MembershipConfig};
use crate::broker::{
    self, BrokerConfig, FetcherConfig, HeaderLimits, LogEnds, PartitionerKind, Producer, ProducerConfig, RequestCounter,
};
use crate::keeper::{self, KeeperConfig, SharedKeeper, discovery};
use crate::supervise::Supervisor;

/// Timeout of one request to a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on the bytes that a Kafka client prefetches for each module.
const PREFETCH_BYTES: usize = 8 << 20;
/// Size of the largest message that can be read, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Time limit of one attempt to store a dead letter. It is longer than most outages of a broker: within one attempt the
/// producer stores a letter once, also if a response is lost.
const LETTER_TIMEOUT: Duration = Duration::from_secs(30);

/// The producer has room for the letters of this number of modules at least, since a reload may add some. A letter that
/// does not fit is sent later.
const MIN_LETTER_MODULES: usize = 64;

/// The session with ZooKeeper, which all modules share.
#[derive(Clone)]
pub(super) struct ZookeeperSession {
    /// The connection.
    pub(super) keeper: SharedKeeper,
    leases: Arc<Leases>,
}

impl ZookeeperSession {
    /// Starts the session and its threads.
    pub(super) fn start(config: &KeeperConfig, threads: &Supervisor) -> ZookeeperSession {
        let keeper = keeper::connect(config.clone(), threads);
        let leases = Leases::new(Arc::clone(&keeper));
        let (extended, stop) = (Arc::clone(&leases), threads.stop().clone());
        threads.spawn("leases", move || extended.run(&stop));
        ZookeeperSession { keeper, leases }
    }
}

/// Makes the connections of one module.
pub(super) struct Connections {
    /// The configuration of the daemon.
    pub(super) config: Arc<Config>,
    /// The session with ZooKeeper; `None` if the groups are in Kafka.
    pub(super) zookeeper: Option<ZookeeperSession>,
    /// Where the group of the module reports its state.
    pub(super) observers: GroupObservers,
}

impl Connections {
    /// Connects a module. Fails if no broker is known or a client cannot be created.
    pub(super) fn connect(&self, module: &ModuleConfig, threads: &Supervisor) -> Result<Connectors, String> {
        let broker = self.broker()?;
        let fetcher_config = FetcherConfig {
            prefetch_bytes: PREFETCH_BYTES,
            max_message_bytes: MAX_MESSAGE_BYTES,
            headers: HeaderLimits::default(),
        };
        Ok(Connectors {
            fetcher: broker::fetcher(&broker, fetcher_config, threads)?,
            log_ends: broker::log_ends(&broker, threads)?,
            // The last: a member joins at once.
            group: self.group(module, &broker)?,
        })
    }

    /// Makes the client that looks up the offsets of partitions.
    pub(super) fn log_ends(&self, threads: &Supervisor) -> Result<Box<dyn LogEnds>, String> {
        broker::log_ends(&self.broker()?, threads)
    }

    /// Makes the client that reads and commits the offsets of a module in Kafka, from outside of its group.
    pub(super) fn group_offsets(&self, module: &ModuleConfig) -> Result<Box<dyn GroupOffsets>, String> {
        broker::group_offsets(&self.broker()?, Arc::clone(&module.name), Arc::clone(&module.topic))
    }

    /// Makes the client that reads and commits the positions of a replay of dead letters, if groups are in Kafka.
    pub(super) fn replayed_offsets(&self, module: &str, topic: &Arc<str>) -> Result<Box<dyn GroupOffsets>, String> {
        broker::group_offsets(&self.broker()?, format!("{module}.replayed").into(), Arc::clone(topic))
    }

    /// Makes the producer of the dead letters of all modules.
    pub(super) fn letter_producer(&self, threads: &Supervisor) -> Result<Arc<dyn Producer<LetterCompletion>>, String> {
        let config = ProducerConfig {
            partitioner: PartitionerKind::default(),
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_in_flight: MAX_LETTERS * self.config.modules.len().max(MIN_LETTER_MODULES),
            timeout: LETTER_TIMEOUT,
        };
        broker::producer(&self.appending_broker()?, config, threads)
    }

    /// Returns how to connect for appending. A topic that brokers create on demand has their default replication, which
    /// may lose messages, so none is created.
    pub(super) fn appending_broker(&self) -> Result<BrokerConfig, String> {
        let mut broker = self.broker()?;
        broker.settings = broker.settings.without_topic_creation();
        Ok(broker)
    }

    fn broker(&self) -> Result<BrokerConfig, String> {
        Ok(BrokerConfig {
            hosts: self.brokers()?,
            engine: self.config.engine,
            client_id: "ktransfer".to_owned(),
            request_timeout: BROKER_TIMEOUT,
            settings: self.config.kafka.clone(),
            requests: RequestCounter::default(),
        })
    }

    /// Returns the brokers in `broker_hosts`, or else those that are registered in ZooKeeper.
    fn brokers(&self) -> Result<Vec<String>, String> {
        let (protocol, groups) = (self.config.kafka.protocol(), &self.config.groups);
        match (&self.config.broker_hosts, &self.zookeeper, groups) {
            (Some(hosts), ..) => Ok(hosts.clone()),
            (None, Some(session), GroupService::ZooKeeper(keeper)) => {
                let hosts =
                    discovery::brokers(session.keeper.as_ref(), &protocol).map_err(|cause| cause.to_string())?;
                if hosts.is_empty() {
                    let chroot = &keeper.chroot;
                    return Err(format!(
                        "no broker with {protocol} is registered in ZooKeeper under zk_chroot {chroot:?}: check \
                         zk_chroot and security.protocol"
                    ));
                }
                Ok(hosts)
            }
            // Refused at load.
            _ => Err("broker_hosts is missing".to_owned()),
        }
    }

    fn group(&self, module: &ModuleConfig, broker: &BrokerConfig) -> Result<Box<dyn Group>, String> {
        match (&self.zookeeper, &self.config.groups) {
            (Some(session), _) => Ok(Box::new(self.zookeeper_group(module, session))),
            (None, GroupService::Kafka(settings)) => Ok(Box::new(self.kafka_group(module, settings, broker)?)),
            (None, GroupService::ZooKeeper(_)) => Err("there is no session with ZooKeeper".to_owned()),
        }
    }

    fn zookeeper_group(&self, module: &ModuleConfig, session: &ZookeeperSession) -> ZookeeperGroup {
        let config = ZookeeperGroupConfig {
            group: module.name.to_string(),
            topic: module.topic.to_string(),
            offset_update_interval: module.offset_update_interval,
            leave_timeout: self.leave_timeout(),
        };
        let (keeper, leases) = (Arc::clone(&session.keeper), Arc::clone(&session.leases));
        ZookeeperGroup::new(config, keeper, leases).observed_by(self.observers.clone())
    }

    fn kafka_group(
        &self,
        module: &ModuleConfig,
        settings: &KafkaGroupSettings,
        broker: &BrokerConfig,
    ) -> Result<KafkaGroup, String> {
        let KafkaGroupSettings { session_timeout, instance_id } = settings.clone();
        let member = MembershipConfig {
            group: Arc::clone(&module.name),
            topic: Arc::clone(&module.topic),
            instance_id: instance_id.clone(),
            session_timeout,
            // A member joins at once, with what it still has to release; this bounds how long a rebalance waits for one
            // that hangs without losing its session.
            rebalance_timeout: session_timeout.max(2 * self.config.shutdown_grace),
        };
        let config = KafkaGroupConfig {
            group: module.name.to_string(),
            topic: module.topic.to_string(),
            session_timeout,
            instance_id,
            offset_update_interval: module.offset_update_interval,
            leave_timeout: self.leave_timeout(),
        };
        Ok(KafkaGroup::new(config, broker::membership(broker, member)?).observed_by(self.observers.clone()))
    }

    /// A module has four fifths of the grace; half of these are for the pushes in flight.
    fn leave_timeout(&self) -> Duration {
        self.config.shutdown_grace * 3 / 10
    }
}
