//! ktransfer: groups in Kafka, without ZooKeeper: hand-overs, static members, added partitions, settings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::harness::fleet::{Fleet, INSTANCE_HEADER, Reply};
use crate::harness::{Cluster, ConfigFile, Ktransfer, STOP_DEADLINE, cluster, configs, group_wire, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// A topic and a module, whose group is in Kafka.
struct Rig {
    cluster: &'static Cluster,
    topic: String,
    module: String,
    fleet: Fleet,
}

impl Rig {
    fn new(name: &str, n_partitions: i32) -> Rig {
        let cluster = cluster();
        let topic = cluster.new_topic(name, n_partitions);
        Rig { cluster, topic, module: unique(name), fleet: Fleet::start(1, |_| Reply::ok()) }
    }

    fn start(&self, name: &str, change: impl FnOnce(ConfigFile) -> ConfigFile) -> Ktransfer {
        let mut ktransfer = self.launch(name, change);
        ktransfer.wait_until_ready();
        ktransfer
    }

    fn launch(&self, name: &str, change: impl FnOnce(ConfigFile) -> ConfigFile) -> Ktransfer {
        let brokers: Vec<String> = self.cluster.broker_list().into_iter().map(str::to_owned).collect();
        let config = change(configs::ktransfer_without_zookeeper(&brokers).set("session_timeout_ms", 6000));
        let file = configs::module(&self.topic, &self.fleet.addresses())
            .set("start_from", "latest")
            .set("protocol.headers", [BTreeMap::from([(INSTANCE_HEADER, name)])]);
        Ktransfer::start(config, &[(&self.module, file)])
    }

    fn produce(&self, n_partitions: i32, n_of_each: usize) {
        for partition in 0..n_partitions {
            let key = format!("k{partition}");
            self.cluster.produce(&self.topic, partition, &vec![(key.as_bytes(), b"text".as_slice()); n_of_each]);
        }
    }

    /// Waits until `n_members` share the partitions evenly; returns the partitions of each.
    fn wait_until_shared(&self, n_members: usize, n_of_each: usize) -> BTreeSet<Vec<i32>> {
        wait_until(DEADLINE, "the members share the partitions", || {
            let members = group_wire::members(&self.cluster.brokers, &self.module, &self.topic).ok()?;
            let is_even = members.len() == n_members && members.values().all(|held| held.len() == n_of_each);
            is_even.then(|| members.into_values().collect())
        })
    }

    /// Returns the instances that pushed each partition since the first `n_before` requests.
    fn pushers_since(&self, n_before: usize) -> BTreeMap<i32, BTreeSet<String>> {
        let mut pushers = BTreeMap::new();
        for arrival in self.fleet.arrivals().iter().skip(n_before) {
            let instances: &mut BTreeSet<String> = pushers.entry(arrival.position().0).or_default();
            instances.insert(arrival.instance().to_owned());
        }
        pushers
    }
}

#[test]
fn partitions_are_handed_over_without_a_lost_or_repeated_message() {
    const N_PARTITIONS: i32 = 4;
    let rig = Rig::new("kafka_hand_over", N_PARTITIONS);
    let mut one = rig.start("one", |config| config);
    rig.produce(N_PARTITIONS, 20);
    rig.fleet.wait_until_delivered(80, DEADLINE);
    let mut two = rig.start("two", |config| config);
    rig.wait_until_shared(2, 2);
    let n_before = rig.fleet.n_arrivals();
    rig.produce(N_PARTITIONS, 20);
    rig.fleet.wait_until_delivered(160, DEADLINE);
    let pushers = rig.pushers_since(n_before);
    assert!(pushers.values().all(|instances| instances.len() == 1), "{pushers:?}");
    assert_eq!(pushers.values().flatten().collect::<BTreeSet<_>>().len(), 2, "{pushers:?}");
    one.daemon.stop(STOP_DEADLINE);
    rig.produce(N_PARTITIONS, 20);
    rig.fleet.wait_until_delivered(240, DEADLINE);
    two.daemon.stop(STOP_DEADLINE);
    assert_eq!(rig.fleet.n_arrivals(), 240, "a polite stop repeats nothing");
    let committed = group_wire::committed(&rig.cluster.brokers, &rig.module, &rig.topic, N_PARTITIONS).unwrap();
    assert!(committed.values().all(|(offset, _)| *offset == 60), "{committed:?}");
    let members = group_wire::members(&rig.cluster.brokers, &rig.module, &rig.topic).unwrap();
    assert_eq!(members, BTreeMap::new(), "members are left");
}

#[test]
fn a_static_member_that_is_killed_and_restarted_moves_no_partition() {
    const N_PARTITIONS: i32 = 4;
    let rig = Rig::new("kafka_static", N_PARTITIONS);
    let with_id = |id: &'static str| move |config: ConfigFile| config.set("instance_id", id);
    let mut one = rig.start("one", with_id("instance-1"));
    let _two = rig.start("two", with_id("instance-2"));
    let shares = rig.wait_until_shared(2, 2);
    rig.produce(N_PARTITIONS, 20);
    rig.fleet.wait_until_delivered(80, DEADLINE);
    let before = rig.pushers_since(0);
    one.daemon.kill9();
    let n_before = rig.fleet.n_arrivals();
    let _again = rig.start("one", with_id("instance-1"));
    rig.produce(N_PARTITIONS, 20);
    rig.fleet.wait_until_delivered(160, DEADLINE);
    assert_eq!(rig.wait_until_shared(2, 2), shares);
    // After the kill each partition has the pusher that it had last before.
    let after = rig.pushers_since(n_before);
    let last = |pushers: &BTreeMap<i32, BTreeSet<String>>, of: i32| pushers.get(&of).cloned().unwrap_or_default();
    for partition in 0..N_PARTITIONS {
        assert!(last(&after, partition).is_subset(&last(&before, partition)), "{before:?}, then {after:?}");
    }
}

#[test]
fn added_partitions_begin_at_their_first_message_with_start_from_latest() {
    let rig = Rig::new("kafka_grown", 1);
    rig.produce(1, 5);
    let mut ktransfer = rig.start("one", |config| config);
    rig.produce(1, 10);
    rig.fleet.wait_until_delivered(10, DEADLINE);
    rig.cluster.grow_topic(&rig.topic, 3);
    rig.produce(3, 10);
    rig.fleet.wait_until_delivered(40, DEADLINE);
    ktransfer.daemon.stop(STOP_DEADLINE);
    assert_eq!(rig.fleet.n_arrivals(), 40);
}

#[test]
fn a_session_timeout_that_the_brokers_refuse_is_named() {
    let rig = Rig::new("kafka_session", 1);
    let ktransfer = rig.launch("one", |config| config.set("session_timeout_ms", 2000));
    wait_until(DEADLINE, "the key is named in /readyz", || {
        let (status, text) = ktransfer.readiness();
        status == 503 && text.contains("session_timeout_ms is 2000") && text.contains("INVALID_SESSION_TIMEOUT")
    });
}
