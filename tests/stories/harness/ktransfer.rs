//! Starts a ktransfer with modules and reads its state.

use std::path::PathBuf;

use super::metrics::Metrics;
use super::{Cluster, ConfigFile, Daemon, Program, START_DEADLINE, binary, configs, http};

/// A running ktransfer; dropping the value kills it.
pub(crate) struct Ktransfer {
    pub(crate) daemon: Daemon,
    /// `host:port` of `admin_port`.
    pub(crate) admin: String,
}

impl Ktransfer {
    /// Starts a ktransfer with these modules (name and file); returns when it answers `/healthz`.
    #[track_caller]
    pub(crate) fn start(config: ConfigFile, modules: &[(&str, ConfigFile)]) -> Ktransfer {
        Self::start_binary(binary(Program::Ktransfer), config, modules)
    }

    /// As [`Ktransfer::start`], but runs the program at the path `binary`.
    #[track_caller]
    pub(crate) fn start_binary(binary: PathBuf, config: ConfigFile, modules: &[(&str, ConfigFile)]) -> Ktransfer {
        let admin = config.address("admin_port").expect("the configuration of a story sets admin_port");
        let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
        let mut files = vec![("conf/ktransfer.yaml".to_owned(), config.set("module_enabled", names).text())];
        files.extend(modules.iter().map(|(name, file)| (format!("conf/modules/{name}.yaml"), file.text())));
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let mut daemon = Daemon::start_binary(Program::Ktransfer, binary, &files);
        daemon.wait_until_ok(&admin, "/healthz", START_DEADLINE);
        Ktransfer { daemon, admin }
    }

    /// Starts a ktransfer with the usual configuration; returns when it is ready: every module runs.
    #[track_caller]
    pub(crate) fn start_ready(cluster: &Cluster, modules: &[(&str, ConfigFile)]) -> Ktransfer {
        let mut ktransfer = Ktransfer::start(configs::ktransfer(cluster), modules);
        ktransfer.wait_until_ready();
        ktransfer
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        self.daemon.wait_until_ok(&self.admin, "/readyz", START_DEADLINE);
    }

    /// Returns the status and body of the answer to `/readyz`.
    #[track_caller]
    pub(crate) fn readiness(&self) -> (u16, String) {
        let answer = http::get(&format!("http://{}/readyz", self.admin)).expect("ktransfer answers");
        (answer.status, answer.text())
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::scrape(&self.admin)
    }
}
