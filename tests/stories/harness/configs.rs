//! The configuration files of the stories: the reference files of `conf/`, with the addresses of this run.

use std::collections::BTreeMap;

use super::{Cluster, ConfigFile, free_port};

/// The name of the cluster in the configuration of [`kmonitor`].
pub(crate) const CLUSTER_NAME: &str = "test_cluster";

/// Returns `kproxy.yaml` for the brokers of a cluster, with two free ports (`port` and `admin_port`).
pub(crate) fn kproxy(cluster: &Cluster) -> ConfigFile {
    kproxy_for(&cluster.broker_list())
}

/// Returns `kproxy.yaml` for these brokers (`host:port`), with two free ports (`port` and `admin_port`).
pub(crate) fn kproxy_for(brokers: &[&str]) -> ConfigFile {
    ConfigFile::of("kproxy").set("port", free_port()).set("admin_port", free_port()).set("broker_hosts", brokers)
}

/// Returns `ktransfer.yaml` with a free `admin_port`; [`super::Ktransfer::start`] adds the names of the modules.
pub(crate) fn ktransfer(cluster: &Cluster) -> ConfigFile {
    ConfigFile::of("ktransfer")
        .set("admin_port", free_port())
        .set("zk_chroot", cluster.chroot)
        .set("zk_hosts", [&cluster.zookeeper])
}

/// Returns `ktransfer.yaml` for groups in Kafka at these brokers (`host:port`), with a free `admin_port`.
pub(crate) fn ktransfer_without_zookeeper(brokers: &[String]) -> ConfigFile {
    ConfigFile::of("ktransfer")
        .set("admin_port", free_port())
        .remove("zk_chroot")
        .remove("zk_timeout_ms")
        .remove("zk_hosts")
        .set("broker_hosts", brokers)
}

/// Returns a module's file whose message filter passes [`super::message::METHODS`].
pub(crate) fn filtered_module(topic: &str, servers: &[String]) -> ConfigFile {
    module(topic, servers).set("methods", super::message::METHODS)
}

/// Returns a module's file without a message filter: every message is pushed.
pub(crate) fn module(topic: &str, servers: &[String]) -> ConfigFile {
    let uri = "/push/{#TOPIC}?key={#KEY}&transid={#TRANSID}&partition={#PARTITION}&method={#METHOD}";
    ConfigFile::of("module")
        .set("topic", topic)
        .remove("methods")
        .set("protocol.uri", uri)
        .set("protocol.headers", [BTreeMap::from([("Host", "backend.example")])])
        .set("zk_offset_update_interval_sec", 1)
        .set("backend_servers", servers)
}

/// Returns `kmonitor.yaml` for one cluster, named [`CLUSTER_NAME`], with a free port.
pub(crate) fn kmonitor(cluster: &Cluster) -> ConfigFile {
    kmonitor_for(cluster.chroot, &[(CLUSTER_NAME, &cluster.zookeeper)])
}

/// Returns `kmonitor.yaml` for these clusters (name and `host:port` of ZooKeeper), with a free port.
pub(crate) fn kmonitor_for(chroot: &str, clusters: &[(&str, &str)]) -> ConfigFile {
    let names: Vec<&str> = clusters.iter().map(|(name, _)| *name).collect();
    let file = ConfigFile::of("kmonitor")
        .set("http_server.port", free_port())
        .set("base.clusters", &names)
        .replace_sections(&["test_cluster", "common_cluster"], &names);
    clusters.iter().fold(file, |file, (name, zookeeper)| {
        file.set(&format!("{name}.chroot"), chroot).set(&format!("{name}.zk_hosts"), [zookeeper])
    })
}
