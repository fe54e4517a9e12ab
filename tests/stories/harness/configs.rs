//! The daemons' configuration files as their users know them, with the addresses of this run.
//!
//! A story that wants another value replaces it in the text (`.replace("worker_num: 100", "worker_num: 8")`) or adds lines.

use super::Cluster;

/// The name under which [`kmonitor`] knows the cluster.
pub(crate) const CLUSTER_NAME: &str = "test_cluster";

/// `kproxy.yaml`.
pub(crate) fn kproxy(cluster: &Cluster, port: u16, admin_port: u16) -> String {
    format!(
        "log_dir: ./log
log_level: 4
port: {port}
admin_port: {admin_port}
read_timeout_ms: 100
write_timeout_ms: 100
req_pool_size: 10240
producer_num: 1
max_request_size_bytes: 10485760
broker_hosts:
{}",
        list(cluster.brokers.split(','))
    )
}

/// `conf/ktransfer.yaml`; the modules' files belong into `conf/modules`.
pub(crate) fn ktransfer(cluster: &Cluster, admin_port: u16, modules: &[&str]) -> String {
    format!(
        "log_dir: ./log
log_level: 4
admin_port: {admin_port}
zk_chroot: {}
zk_timeout_ms: 3000
zk_hosts:
{}module_conf_dir: ./conf/modules
module_enabled:
{}",
        cluster.chroot,
        list([cluster.zookeeper.as_str()]),
        list(modules.iter().copied())
    )
}

/// `conf/modules/MODULE.yaml`, with the methods of [`super::message::METHODS`].
pub(crate) fn module(topic: &str, servers: &[String]) -> String {
    format!(
        "topic: {topic}
methods:
{}protocol:
 name: http
 uri: /push/{{#TOPIC}}?key={{#KEY}}&transid={{#TRANSID}}&partition={{#PARTITION}}&method={{#METHOD}}
 headers:
  - Host: backend.example
 read_timeout_ms: 0
 write_timeout_ms: 100
 conn_timeout_ms: 100
worker_num: 100
window_size: 200
max_retry_times: -1
fail_retry_interval_ms: 200
zk_offset_update_interval_sec: 1
backend_servers:
{}",
        list(super::message::METHODS),
        list(servers.iter().map(String::as_str))
    )
}

/// `kmonitor.yaml`.
pub(crate) fn kmonitor(cluster: &Cluster, port: u16) -> String {
    format!(
        "base:
 log_dir: ./log
 log_level: 4
 clusters:
  - {CLUSTER_NAME}
http_server:
 port: {port}
 read_timeout_ms: 100
 write_timeout_ms: 100
{CLUSTER_NAME}:
 chroot: {}
 zk_connect_timeout_ms: 1000
 zk_session_timeout_ms: 6000
 zk_hosts:
{}",
        cluster.chroot,
        list([cluster.zookeeper.as_str()])
    )
}

/// A YAML list, indented enough for every key above.
fn list<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    values.into_iter().map(|value| format!("  - {value}\n")).collect()
}
