//! The plan of a reload: compares the running modules with those of the configuration on disk.

use std::fmt;
use std::sync::Arc;

use crate::ktransfer::config::{Config, GroupService, ModuleConfig};

/// The changes that a reload makes. A module that is in none of them is not touched.
#[derive(Default)]
pub(super) struct Plan {
    /// The modules to start.
    pub(super) added: Vec<ModuleConfig>,
    /// The names of the modules to stop.
    pub(super) removed: Vec<Arc<str>>,
    /// The modules to change.
    pub(super) changed: Vec<ModuleChange>,
    n_unchanged: usize,
}

/// The change of a module.
pub(super) struct ModuleChange {
    /// The new configuration.
    pub(super) config: ModuleConfig,
    /// How it is put in force.
    pub(super) kind: ChangeKind,
    /// The keys that differ.
    pub(super) keys: Vec<&'static str>,
}

/// How the new configuration of a module is put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ChangeKind {
    /// The running module follows it with its next push.
    InPlace,
    /// The module is stopped and started.
    Restart,
}

impl Plan {
    /// Returns what turns the modules `running` into `wanted`.
    pub(super) fn new(running: &[ModuleConfig], wanted: Vec<ModuleConfig>) -> Plan {
        let mut plan = Plan::default();
        let is_wanted = |module: &&ModuleConfig| !wanted.iter().any(|other| other.name == module.name);
        plan.removed = running.iter().filter(is_wanted).map(|module| Arc::clone(&module.name)).collect();
        for config in wanted {
            let Some(former) = running.iter().find(|module| module.name == config.name) else {
                plan.added.push(config);
                continue;
            };
            let differences = differences(former, &config);
            match differences.iter().map(|(_, kind)| *kind).max() {
                None => plan.n_unchanged += 1,
                Some(kind) => {
                    let keys = differences.into_iter().map(|(key, _)| key).collect();
                    plan.changed.push(ModuleChange { config, kind, keys });
                }
            }
        }
        plan
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let added: Vec<&str> = self.added.iter().map(|module| &*module.name).collect();
        let removed: Vec<&str> = self.removed.iter().map(|name| &**name).collect();
        let changed = |kind: ChangeKind| -> Vec<&str> {
            self.changed.iter().filter(|change| change.kind == kind).map(|change| &*change.config.name).collect()
        };
        let (in_place, restarted) = (changed(ChangeKind::InPlace), changed(ChangeKind::Restart));
        for (names, what) in
            [(added, "added"), (removed, "removed"), (in_place, "changed"), (restarted, "stopped and started")]
        {
            if !names.is_empty() {
                write!(formatter, "{} {what} ({}), ", names.len(), names.join(", "))?;
            }
        }
        write!(formatter, "{} unchanged", self.n_unchanged)
    }
}

/// Returns the keys of a module's file that differ, each with how its change is put in force.
fn differences(former: &ModuleConfig, new: &ModuleConfig) -> Vec<(&'static str, ChangeKind)> {
    use ChangeKind::{InPlace, Restart};
    // Without `..`, so that no key is forgotten.
    let ModuleConfig {
        name: _,
        topic,
        methods,
        protocol,
        worker_num,
        window_size,
        max_commit_gap,
        outcomes,
        dead_letter_topic,
        tombstones,
        filtered,
        retry,
        backend_servers,
        serialize_by_key,
        offset_update_interval,
        max_in_flight_bytes,
        waiting_queue_size,
        start_from,
        idempotency_key,
        ejection,
        max_pushes_per_second,
        signing_secrets,
    } = former;
    let table = [
        ("topic", *topic == new.topic, Restart),
        ("methods", *methods == new.methods, InPlace),
        ("protocol", *protocol == new.protocol, InPlace),
        ("worker_num", *worker_num == new.worker_num, Restart),
        ("window_size", *window_size == new.window_size, Restart),
        ("max_commit_gap", *max_commit_gap == new.max_commit_gap, Restart),
        ("max_retry_times", retry.max_retry_times == new.retry.max_retry_times, InPlace),
        ("fail_retry_interval_ms", retry.first_pause == new.retry.first_pause, InPlace),
        ("max_retry_interval_ms", retry.max_pause == new.retry.max_pause, InPlace),
        ("outcomes", *outcomes == new.outcomes, InPlace),
        ("dead_letter_topic", *dead_letter_topic == new.dead_letter_topic, Restart),
        ("tombstones", *tombstones == new.tombstones, InPlace),
        ("filtered", *filtered == new.filtered, InPlace),
        ("backend_servers", *backend_servers == new.backend_servers, InPlace),
        ("serialize_by_key", *serialize_by_key == new.serialize_by_key, Restart),
        ("zk_offset_update_interval_sec", *offset_update_interval == new.offset_update_interval, Restart),
        ("max_in_flight_bytes", *max_in_flight_bytes == new.max_in_flight_bytes, Restart),
        ("waiting_queue_size", *waiting_queue_size == new.waiting_queue_size, Restart),
        ("start_from", *start_from == new.start_from, Restart),
        ("idempotency_key", *idempotency_key == new.idempotency_key, InPlace),
        ("ejection", *ejection == new.ejection, InPlace),
        ("max_pushes_per_second", *max_pushes_per_second == new.max_pushes_per_second, InPlace),
        ("signature", *signing_secrets == new.signing_secrets, InPlace),
    ];
    table.into_iter().filter(|(_, is_same, _)| !is_same).map(|(key, _, kind)| (key, kind)).collect()
}

/// Returns the keys of the main file that differ and cannot change while ktransfer runs.
pub(super) fn fixed_keys(former: &Config, new: &Config) -> Vec<&'static str> {
    // Without `..`, so that no key is forgotten.
    let Config {
        file: _,
        log,
        groups,
        retry_interval,
        broker_hosts,
        engine,
        kafka,
        admin_port,
        credentials,
        shutdown_grace,
        modules: _,
    } = former;
    let path = |config: &Config| config.credentials.as_ref().map(|file| file.path.clone());
    let credentials_path = credentials.as_ref().map(|file| file.path.clone());
    let mut table = vec![
        ("log_dir", log.dir == new.log.dir),
        ("log_level", log.level == new.log.level),
        ("zk_fail_retry_interval_ms", *retry_interval == new.retry_interval),
        ("broker_hosts", *broker_hosts == new.broker_hosts),
        ("kafka_client", *engine == new.engine),
        ("kafka", *kafka == new.kafka),
        ("admin_port", *admin_port == new.admin_port),
        ("credentials_file", credentials_path == path(new)),
        ("shutdown_grace_ms", *shutdown_grace == new.shutdown_grace),
    ];
    match (groups, &new.groups) {
        (GroupService::ZooKeeper(former), GroupService::ZooKeeper(new)) => table.extend([
            ("zk_hosts", former.hosts == new.hosts),
            ("zk_chroot", former.chroot == new.chroot),
            ("zk_timeout_ms", former.session_timeout == new.session_timeout),
        ]),
        (GroupService::Kafka(former), GroupService::Kafka(new)) => table.extend([
            ("session_timeout_ms", former.session_timeout == new.session_timeout),
            ("instance_id", former.instance_id == new.instance_id),
        ]),
        _ => table.push(("zk_hosts", false)),
    }
    table.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests;
