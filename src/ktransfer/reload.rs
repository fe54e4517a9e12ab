//! The reload of the configuration on SIGHUP: adds, removes and changes modules.
//!
//! The main file and the files of all modules are read and checked as at the start. If anything is wrong, or a setting
//! differs that needs a restart of ktransfer, nothing changes. The file of credentials has a reload of its own.

use std::sync::Arc;

use log::error;
use prometheus::{IntCounterVec, IntGauge};

use super::config::{self, Config};
use super::modules::Modules;
use super::plan::{Plan, fixed_keys};
use crate::metrics::Registry;

/// Reloads the configuration.
pub(super) struct Reloader {
    modules: Arc<Modules>,
    reloads: IntCounterVec,
    stale: IntGauge,
}

impl Reloader {
    /// Creates the reloader of these modules.
    pub(super) fn new(modules: Arc<Modules>, registry: &Registry) -> Reloader {
        let reloads = registry.counter(
            "ktransfer_reloads_total",
            "Reloads of the configuration, by result: applied, or refused because of a problem.",
            &["result"],
        );
        // So that the series exist with the value 0.
        for result in ["applied", "refused"] {
            reloads.with_label_values(&[result]);
        }
        let stale = registry.gauge(
            "ktransfer_configuration_stale",
            "1 while the configuration on disk was refused by the latest reload and the one loaded before stays in \
             force.",
            &[],
        );
        Reloader { modules, reloads, stale: stale.with_label_values::<&str>(&[]) }
    }

    /// Reloads the configuration. Returns what has changed, or why nothing has. Modules that are removed, or stopped
    /// and started, may still be stopping then.
    pub(super) fn reload(&self) -> Result<String, String> {
        let outcome = self.load().and_then(|config| {
            let plan = Plan::new(&self.modules.configs(), config.modules);
            let summary = plan.to_string();
            self.modules.apply(plan).map(|()| summary)
        });
        let result = if outcome.is_ok() { "applied" } else { "refused" };
        self.reloads.with_label_values(&[result]).inc();
        self.stale.set(i64::from(outcome.is_err()));
        outcome
    }

    fn load(&self) -> Result<Config, String> {
        let running = &self.modules.config;
        let config = config::load(&running.file).map_err(|problems| {
            if let [problem] = &problems.0[..] {
                return problem.to_string();
            }
            // One line each: the logger cuts a long line.
            for problem in &problems.0 {
                error!("configuration: {problem}");
            }
            format!("{} problems, one in each line above", problems.0.len())
        })?;
        let keys = fixed_keys(running, &config);
        if keys.is_empty() {
            return Ok(config);
        }
        let keys = keys.join(", ");
        Err(format!("{}: {keys} changed, which needs a restart of ktransfer", running.file.display()))
    }
}
