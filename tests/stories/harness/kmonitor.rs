//! Starts a kmonitor and reads its delays.

use std::time::Duration;

use serde_json::Value;

use super::http::{self, Response};
use super::json_schema;
use super::{ConfigFile, Daemon, Program, START_DEADLINE, wait_until};

/// A running kmonitor; dropping the value kills it.
pub(crate) struct Kmonitor {
    pub(crate) daemon: Daemon,
    /// `host:port` of `http_server.port`.
    pub(crate) address: String,
}

impl Kmonitor {
    /// Starts a kmonitor; returns when it answers `/healthz`.
    #[track_caller]
    pub(crate) fn start(config: &ConfigFile) -> Kmonitor {
        let address = config.address("http_server.port").expect("the reference sets the port");
        let mut daemon = Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &config.text())]);
        daemon.wait_until_ok(&address, "/healthz", START_DEADLINE);
        Kmonitor { daemon, address }
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        self.daemon.wait_until_ok(&self.address, "/readyz", START_DEADLINE);
    }

    #[track_caller]
    pub(crate) fn get(&self, target: &str) -> Response {
        http::get(&format!("http://{}{target}", self.address)).expect("kmonitor answers")
    }

    /// Returns the answer to `/v1/delay?QUERY`, which is held against the schema.
    #[track_caller]
    pub(crate) fn v1(&self, query: &str) -> Value {
        let answer = self.get(&format!("/v1/delay?{query}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let value = answer.json();
        json_schema::assert_valid(include_str!("../../../conf/schema/delay-v1.json"), &value);
        value
    }

    /// Returns the delays of one module by partition, `{"0":12}`; null if kmonitor does not know the module.
    #[track_caller]
    pub(crate) fn delay(&self, cluster: &str, module: &str) -> Value {
        self.get("/delay").json()[cluster][module].clone()
    }

    #[track_caller]
    pub(crate) fn wait_for_delay(&self, cluster: &str, module: &str, expected: &Value, deadline: Duration) {
        wait_until(deadline, &format!("module {module} of cluster {cluster} has the delays {expected}"), || {
            self.delay(cluster, module) == *expected
        });
    }
}
