//! The HTTP server of `admin_port`, and the thread that carries out the operations of operators.

use std::sync::Arc;

use crossbeam_channel::bounded;
use log::info;

use super::config::Config;
use super::operations::{Executor, Operations, OperationsHandler, QUEUED_TASKS};
use crate::access::CredentialsInForce;
use crate::admin::{Admin, Health};
use crate::http::{Listen, Server, ServerConfig, ServerLimits, ServerMetrics};
use crate::metrics::Registry;
use crate::supervise::Supervisor;

/// Starts the server; returns `None` if `admin_port` is not configured. Fails if the port cannot be opened.
pub(super) fn serve(
    config: &Config,
    operations: &Operations,
    registry: &Registry,
    health: &Health,
    supervisor: &Supervisor,
) -> Result<Option<Server>, String> {
    let Some(port) = config.admin_port else { return Ok(None) };
    let counter = registry.counter(
        "ktransfer_operations_total",
        "Operations of operators on modules, by how they ended.",
        &["operation", "result"],
    );
    let stale = registry.gauge(
        "ktransfer_credentials_stale",
        "1 while credentials_file cannot be reloaded and the credentials loaded before stay in force.",
        &[],
    );
    let credentials = config.credentials.clone().map(|file| {
        CredentialsInForce::new(file, "ktransfer", stale.with_label_values::<&str>(&[]), supervisor.reloads())
    });
    let (tasks, queued) = bounded(QUEUED_TASKS);
    let executor = Executor::new(operations.clone(), queued, counter.clone());
    let stop = supervisor.stop().clone();
    supervisor.spawn("operations", move || executor.run(&stop));
    let admin = Admin::new(registry.clone(), health.clone());
    let handler = Arc::new(OperationsHandler::new(admin, operations.clone(), credentials, tasks, counter));
    let server_config = ServerConfig {
        listen: Listen::Everywhere(port),
        name: "admin",
        readers: 1,
        limits: ServerLimits::default(),
        tls: None,
    };
    let server = Server::start(server_config, handler, supervisor, &ServerMetrics::new(registry))
        .map_err(|cause| format!("admin_port: cannot listen on port {port}: {cause}"))?;
    info!("admin_port: listening on {}", server.local_addr());
    Ok(Some(server))
}
