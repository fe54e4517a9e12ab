//! One topic with one partition, one module that pushes it, one backend: for stories about single pushes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fleet::{Arrival, Fleet, Reply};
use super::{Cluster, ConfigFile, Member, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct OneTopic {
    pub(crate) topic: String,
    pub(crate) module: String,
    pub(crate) fleet: Fleet,
    pub(crate) member: Member,
}

impl OneTopic {
    /// Creates a topic with `n_of_each` messages of each key, and starts a module that pushes them to a backend with
    /// `script`. `change` changes the file of the module.
    #[track_caller]
    pub(crate) fn start(
        keys: &[&str],
        n_of_each: usize,
        script: impl Fn(&Arrival) -> Reply + Send + Sync + 'static,
        change: impl FnOnce(ConfigFile) -> ConfigFile,
    ) -> OneTopic {
        let cluster = cluster();
        let topic = cluster.new_topic("one_topic", 1);
        produce(cluster, &topic, keys, n_of_each);
        let (module, fleet) = (unique("one_topic"), Fleet::start(1, script));
        let file = change(configs::module(&topic, &fleet.addresses()));
        let member = Member::start(cluster, &module, "a", file);
        OneTopic { topic, module, fleet, member }
    }

    /// Waits until `offset` is stored: all messages before it are done.
    #[track_caller]
    pub(crate) fn wait_until_stored(&self, offset: usize) {
        wait_until_stored(&self.module, &self.topic, offset);
    }

    /// Returns the number of requests of each key.
    pub(crate) fn requests(&self) -> BTreeMap<String, usize> {
        requests(&self.fleet)
    }
}

/// Waits until `offset` is stored for partition 0 of a topic of the shared cluster.
#[track_caller]
pub(crate) fn wait_until_stored(module: &str, topic: &str, offset: usize) {
    wait_until(DEADLINE, &format!("offset {offset} is stored"), || {
        cluster().stored_offset(module, topic, 0) == Some(offset as i64)
    });
}

/// Appends `n_of_each` messages of each key to partition 0, one round of the keys after the other.
pub(crate) fn produce(cluster: &Cluster, topic: &str, keys: &[&str], n_of_each: usize) {
    let keys: Vec<&str> = (0..n_of_each).flat_map(|_| keys.iter().copied()).collect();
    let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), b"text".as_slice())).collect();
    cluster.produce(topic, 0, &messages);
}

/// Returns the number of requests of each key.
pub(crate) fn requests(fleet: &Fleet) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for arrival in fleet.arrivals() {
        *counts.entry(arrival.key()).or_default() += 1;
    }
    counts
}
