//! The metrics of all daemons in a real Prometheus: the alerts and the dashboard that are shipped fit them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::prometheus::{Prometheus, promtool};
use crate::harness::{Backend, Kmonitor, Kproxy, Ktransfer, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Metrics that a daemon has only after a failure, or with a feature that is not configured here.
const RARE: [&str; 15] = [
    "http_accept_failures_total",
    "http_limits_total",
    "http_refused_total",
    "http_timeouts_total",
    "http_tls_handshakes_total",
    "kmonitor_delay_messages",
    "kmonitor_module_bad_partitions",
    "kmonitor_unknown_partitions",
    "kproxy_credentials_stale",
    "kproxy_rate_limited_total",
    "kproxy_unauthorized_total",
    "ktransfer_fetch_errors_total",
    "ktransfer_module_restarts_total",
    "ktransfer_offset_resets_total",
    "ktransfer_truncated_messages_total",
];

/// An expression of the dashboard.
struct Expression {
    panel: String,
    text: String,
}

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/grafana/kafka-http-wrapper.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Returns the expressions of all panels and variables, with the variables of Grafana replaced by what selects all.
fn expressions(dashboard: &Value) -> Vec<Expression> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().unwrap().to_owned();
            found.push(Expression { panel: title.to_owned(), text });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(definition) = variable["definition"].as_str() else { continue };
        let (metric, _) = definition.strip_prefix("label_values(").unwrap().rsplit_once(',').unwrap();
        found.push(Expression { panel: format!("variable {}", variable["name"]), text: metric.to_owned() });
    }
    for expression in &mut found {
        for (variable, value) in [("$cluster", ".*"), ("$module", ".*"), ("$__rate_interval", "1m")] {
            expression.text = expression.text.replace(variable, value);
        }
        assert!(!expression.text.contains('$'), "an unknown variable: {}", expression.text);
    }
    found
}

/// Returns the names of metrics of this program in an expression.
fn metrics_in(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let prefixes = ["kproxy_", "ktransfer_", "kmonitor_", "http_", "log_lines_"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn the_alerts_fire_when_they_should() {
    promtool(&["check", "rules", "rules.yml"]);
    promtool(&["test", "rules", "rules_test.yml"]);
}

#[test]
fn the_alerts_and_the_dashboard_fit_the_metrics_of_the_daemons() {
    let cluster = cluster();
    let (topic, module) = (cluster.new_topic("monitored", 2), unique("module"));
    let backend = Backend::start();
    let file = configs::module(&topic, &[backend.address()]);
    let ktransfer = Ktransfer::start_ready(cluster, &[(&module, file)]);
    let mut kmonitor = Kmonitor::start(&configs::kmonitor(cluster).set("base.poll_interval_ms", 500));
    kmonitor.wait_until_ready();
    let kproxy = Kproxy::start_usual(cluster);
    let mut client = kproxy.connect();
    for number in 0..20 {
        let path = format!("/commit?topic={topic}&key={number}&acks={}", number % 2);
        assert_eq!(client.post(&path, b"m").unwrap().status, 200);
    }
    let (path, headers) = (format!("/commit_batch?topic={topic}"), [("Content-Type", "application/x-ndjson")]);
    let answer = client.request("POST", &path, &headers, b"{\"value\":\"m\"}\n").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    backend.wait_for_requests(21, DEADLINE);
    let targets = [("kproxy", &*kproxy.admin), ("ktransfer", &*ktransfer.admin), ("kmonitor", &*kmonitor.address)];
    let prometheus = Prometheus::start(&targets);
    prometheus.wait_for(&format!("kmonitor_module_verdict{{module=\"{module}\"}} == 0"), DEADLINE);
    // A rate needs two scrapes.
    prometheus.wait_for(&format!("rate(ktransfer_stored_offset{{module=\"{module}\"}}[1m])"), DEADLINE);
    prometheus.wait_for(&format!("kmonitor_module_messages_in_per_second{{module=\"{module}\"}}"), DEADLINE);
    wait_until(DEADLINE, "the rules are evaluated", || {
        prometheus.rules().iter().all(|rule| rule["health"] != "unknown")
    });

    let names = prometheus.metrics();
    let is_known = |name: &str| names.iter().any(|known| known == name);
    for Expression { panel, text } in expressions(&dashboard()) {
        let result = prometheus.query(&text);
        let missing: Vec<_> = metrics_in(&text).into_iter().filter(|name| !is_known(name)).collect();
        let unexpected: Vec<_> = missing.iter().filter(|name| !RARE.contains(name)).collect();
        assert_eq!(unexpected, [&""; 0], "{panel}: no daemon has this metric: {text}");
        // Comparisons select what is bad, and here all is well.
        let may_be_empty = !missing.is_empty() || text.contains(" > 0") || text.contains("outcome=\"given_up\"");
        // A rate needs two scrapes of its series.
        if !may_be_empty && result.is_empty() {
            prometheus.wait_for(&text, DEADLINE);
        }
    }
    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    // Other stories may have modules that are not pushed in this cluster.
    let alerts = prometheus.query(&format!("ALERTS{{alertstate=\"firing\",module=~\"|{module}\"}}"));
    assert_eq!(alerts, [Value::Null; 0], "all is well");
}
