//! Starts a kproxy, posts to it and checks its error answers.

use std::path::PathBuf;
use std::time::Duration;

use super::http::{self, Client, Response};
use super::metrics::Metrics;
use super::{Cluster, ConfigFile, Daemon, Program, START_DEADLINE, binary, configs, wait_until};

/// Status, `error`, `stored` and `retriable` of an error answer: the parts that client programs rely on.
pub(crate) type Refusal = (u16, &'static str, &'static str, bool);

pub(crate) const NO_BROKER: Refusal = (503, "no_broker", "no", true);
pub(crate) const NO_CONFIRMATION: Refusal = (504, "no_confirmation", "unknown", true);
pub(crate) const OVERLOADED: Refusal = (503, "overloaded", "no", true);
pub(crate) const RATE_LIMITED: Refusal = (429, "rate_limited", "no", true);
pub(crate) const INVALID_MESSAGE: Refusal = (422, "invalid_message", "no", false);
pub(crate) const NOT_AUTHORIZED: Refusal = (403, "not_authorized", "no", false);
pub(crate) const THROTTLED: Refusal = (429, "throttled", "no", true);
pub(crate) const TOO_LARGE: Refusal = (413, "too_large", "no", false);
pub(crate) const TOPIC_NOT_ALLOWED: Refusal = (403, "topic_not_allowed", "no", false);
pub(crate) const UNAUTHORIZED: Refusal = (401, "unauthorized", "no", false);
pub(crate) const UNKNOWN_TOPIC: Refusal = (404, "unknown_topic", "no", false);

/// Returns whether the answer is this refusal.
pub(crate) fn is_refused(answer: &Response, (status, error, stored, retriable): Refusal) -> bool {
    answer.status == status && {
        let body = answer.json();
        body["error"] == error && body["stored"] == stored && body["retriable"] == retriable
    }
}

#[track_caller]
pub(crate) fn assert_refused(answer: &Response, expected: Refusal, when: &str) {
    assert!(is_refused(answer, expected), "{when}: expected {expected:?}, got {} {}", answer.status, answer.text());
}

/// Returns the partition and the offset in the body of a 200; panics for any other answer.
#[track_caller]
pub(crate) fn position(answer: &Response, when: &str) -> (i32, i64) {
    assert_eq!(answer.status, 200, "{when}: {}", answer.text());
    let body = answer.json();
    let number = |name: &str| body[name].as_i64().unwrap_or_else(|| panic!("{when}: {body}"));
    (number("partition") as i32, number("offset"))
}

/// A running kproxy; dropping the value kills it.
pub(crate) struct Kproxy {
    pub(crate) daemon: Daemon,
    /// `host:port` of `port`.
    pub(crate) address: String,
    /// `host:port` of `admin_port`, or of `port` if the configuration has no `admin_port`.
    pub(crate) admin: String,
}

impl Kproxy {
    /// Starts a kproxy; returns when it answers `/healthz`.
    #[track_caller]
    pub(crate) fn start(config: ConfigFile) -> Kproxy {
        Self::start_binary(binary(Program::Kproxy), config)
    }

    /// Starts the kproxy at the path `binary`; returns when it answers `/healthz`.
    #[track_caller]
    pub(crate) fn start_binary(binary: PathBuf, config: ConfigFile) -> Kproxy {
        let address = config.address("port").expect("the reference sets port");
        let admin = config.address("admin_port").unwrap_or_else(|| address.clone());
        let mut daemon = Daemon::start_binary(Program::Kproxy, binary, &[("kproxy.yaml", &config.text())]);
        // With TLS, plain HTTP on `port` gets an error and would be counted as a failed handshake.
        let plain = if config.has("tls") { &admin } else { &address };
        daemon.wait_until_ok(plain, "/healthz", START_DEADLINE);
        Kproxy { daemon, address, admin }
    }

    /// Starts a kproxy; returns when it is ready: it has reached a broker.
    #[track_caller]
    pub(crate) fn start_ready(config: ConfigFile) -> Kproxy {
        let mut kproxy = Kproxy::start(config);
        kproxy.wait_until_ready();
        kproxy
    }

    /// Starts a kproxy with the usual configuration for this cluster; returns when it is ready.
    #[track_caller]
    pub(crate) fn start_usual(cluster: &Cluster) -> Kproxy {
        Kproxy::start_ready(configs::kproxy(cluster))
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        self.daemon.wait_until_ok(&self.admin, "/readyz", START_DEADLINE);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Opens a connection to `port`.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.address).expect("kproxy listens")
    }

    /// Sends one POST on a connection of its own; returns the answer.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Response {
        http::post(&self.url(path), body).expect("kproxy answers")
    }

    /// Sends a POST on a new connection and returns the connection, from which the story reads the answer later.
    #[track_caller]
    pub(crate) fn start_post(&self, path: &str, body: &[u8]) -> Client {
        let mut client = self.connect();
        client.send_raw(&http::post_request(path, &[], body)).expect("kproxy reads");
        client
    }

    /// Returns the status and body of the answer to `/readyz`.
    #[track_caller]
    pub(crate) fn readiness(&self) -> (u16, String) {
        let answer = http::get(&format!("http://{}/readyz", self.admin)).expect("kproxy answers");
        (answer.status, answer.text())
    }

    /// Requests the metrics at `admin_port`, so that the request is not counted among the requests of clients.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::scrape(&self.admin)
    }

    #[track_caller]
    pub(crate) fn has_metric(&self, line: &str) -> bool {
        self.metrics().has(line)
    }

    /// Returns the value of a metric; 0 while kproxy does not report the metric.
    #[track_caller]
    pub(crate) fn metric(&self, metric: &str) -> u64 {
        self.metrics().value(metric).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn wait_for_metric(&self, line: &str, deadline: Duration) {
        wait_until(deadline, &format!("metric {line}"), || self.has_metric(line));
    }

    #[track_caller]
    pub(crate) fn wait_for_commits_in_flight(&self, count: usize) {
        self.wait_for_metric(&format!("kproxy_commits_in_flight {count}"), START_DEADLINE);
    }
}
