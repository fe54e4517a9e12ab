//! Kafka to HTTP: each message of a topic posted to the module's backends, in order per key, never lost.
//!
//! Reading order: [`config`], [`module`] (the threads of a module), [`dispatcher`] (its loop), [`window`], [`group`],
//! [`fetcher`], [`worker`], [`push`], [`policy`].

#[cfg(test)]
mod backend_for_tests;
pub mod backends;
mod client;
pub mod config;
pub mod dispatcher;
pub mod fetcher;
pub mod group;
pub mod job;
pub mod method;
pub mod metrics;
pub mod module;
pub mod policy;
pub mod push;
mod socket;
pub mod template;
pub mod window;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use log::info;

use crate::admin::{Admin, Health};
use crate::broker::{self, BrokerConfig, FetcherConfig};
use crate::http::{Listen, Server, ServerConfig, ServerLimits, ServerMetrics};
use crate::keeper::{self, SharedKeeper, discovery};
use crate::metrics::Registry;
use crate::shutdown::Stop;
use crate::supervise::{Ended, Supervisor};

use config::ModuleConfig;
pub use config::{Config, load};
use group::zookeeper::{ZookeeperGroup, ZookeeperGroupConfig};
use metrics::Metrics;
use module::{Module, Parts};

/// Bound of one question to a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often `/readyz` learns whether ZooKeeper answers.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// What an engine may prefetch, in bytes, for each module.
const PREFETCH_BYTES: usize = 8 << 20;
/// Largest message that can be read.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Pushes until the supervisor's stop. Modules first, each in its own order; then the session with ZooKeeper, which they
/// needed to store their offsets; `/readyz` and the rest last.
pub fn run(config: Config, supervisor: &Supervisor) -> Result<(), String> {
    let (registry, health) = (Registry::new(), Health::new());
    let server = serve_operations(&config, &registry, &health, supervisor)?;

    // Groups of their own: the modules end before the session does, which they need to give everything back.
    let session = Supervisor::new("ktransfer", Stop::new());
    let keeper = keeper::connect(config.keeper.clone(), &session);
    let modules = Supervisor::new("modules", supervisor.stop().child());

    let metrics = Metrics::new(&registry);
    let shared = Arc::new(config);
    for module_config in &shared.modules {
        let module = Module {
            config: module_config.clone(),
            metrics: metrics.of_module(&module_config.name, &module_config.topic),
            health: health.component(format!("module {}", module_config.name)),
            broker_health: health.component(format!("broker of {}", module_config.name)),
            // Some of the grace is left for the session to end.
            grace: shared.shutdown_grace * 4 / 5,
            longest_pause: shared.retry_interval,
        };
        let (shared, keeper, stop) = (Arc::clone(&shared), Arc::clone(&keeper), modules.stop().clone());
        modules.spawn(format!("module@{}", module_config.name), move || {
            module.run(&stop, |threads| parts(&shared, &module.config, &keeper, threads));
        });
    }

    // What fails in one of the two groups ends the daemon: these threads then return unasked.
    for group in [session.clone(), modules.clone()] {
        supervisor.spawn(group.name().to_owned(), move || group.stop().wait());
    }
    let (watched, component, stop) = (Arc::clone(&keeper), health.component("zookeeper"), supervisor.stop().clone());
    supervisor.spawn("health", move || {
        component.set(watched.reachable());
        while stop.sleep(HEALTH_INTERVAL) {
            component.set(watched.reachable());
        }
    });

    supervisor.stop().wait();
    let ended = modules.join(shared.shutdown_grace);
    keeper.close(shared.shutdown_grace / 10);
    session.stop().trigger();
    if let Some(server) = server {
        server.close();
    }
    match ended {
        Ended::Asked => Ok(()),
        Ended::Failed(failure) => Err(failure.to_string()),
        Ended::StillRunning(left) => Err(format!("still running at the end of the grace: {}", left.join(", "))),
    }
}

/// Opens `admin_port`, where it is given.
fn serve_operations(
    config: &Config,
    registry: &Registry,
    health: &Health,
    supervisor: &Supervisor,
) -> Result<Option<Server>, String> {
    let Some(port) = config.admin_port else { return Ok(None) };
    let server_config = ServerConfig {
        listen: Listen::Everywhere(port),
        name: "admin",
        readers: 1,
        limits: ServerLimits::default(),
        tls: None,
    };
    let handler = Arc::new(Admin::new(registry.clone(), health.clone()));
    let server = Server::start(server_config, handler, supervisor, &ServerMetrics::new(registry))
        .map_err(|cause| format!("admin_port: cannot listen on port {port}: {cause}"))?;
    info!("operations are served on {}", server.local_addr());
    Ok(Some(server))
}

/// The real parts of a module: a group in ZooKeeper, an engine for the brokers it knows or the file names.
fn parts(config: &Config, module: &ModuleConfig, keeper: &SharedKeeper, threads: &Supervisor) -> Result<Parts, String> {
    let hosts = match &config.broker_hosts {
        Some(hosts) => hosts.clone(),
        None => discovery::brokers(keeper.as_ref(), &config.kafka.protocol()).map_err(|cause| cause.to_string())?,
    };
    if hosts.is_empty() {
        let chroot = &config.keeper.chroot;
        let protocol = config.kafka.protocol();
        return Err(format!(
            "no broker with {protocol} is registered in ZooKeeper under zk_chroot {chroot:?}; is it the cluster's?"
        ));
    }
    let broker = BrokerConfig {
        hosts,
        engine: config.engine,
        client_id: "ktransfer".to_owned(),
        request_timeout: BROKER_TIMEOUT,
        settings: config.kafka.clone(),
    };
    let fetcher_config = FetcherConfig { prefetch_bytes: PREFETCH_BYTES, max_message_bytes: MAX_MESSAGE_BYTES };
    let group = ZookeeperGroupConfig {
        group: module.name.to_string(),
        topic: module.topic.to_string(),
        offset_update_interval: module.offset_update_interval,
    };
    Ok(Parts {
        fetcher: broker::fetcher(&broker, fetcher_config, threads)?,
        log_ends: broker::log_ends(&broker, threads)?,
        group: Box::new(ZookeeperGroup::new(group, Arc::clone(keeper))),
    })
}
