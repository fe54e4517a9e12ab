//! ktransfer is stopped, or a module is removed, while a push is on the wire.

use std::time::Duration;

use crate::harness::fleet::{Fleet, Reply};
use crate::harness::reloading::ReloadedFiles;
use crate::harness::{Cluster, ConfigFile, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
/// Longer than the fifth of `shutdown_grace_ms` (10 s) that a hand-over waits, and shorter than the two fifths that a
/// stop waits.
const ANSWER_AFTER: Duration = Duration::from_millis(3_000);

fn slow_backend() -> Fleet {
    Fleet::start(1, |_| Reply::ok().after(ANSWER_AFTER))
}

#[track_caller]
fn assert_pushed_once(cluster: &Cluster, module: &str, topic: &str, fleet: &Fleet) {
    let pushes: Vec<_> = fleet.arrivals().iter().map(|arrival| (arrival.position(), arrival.status)).collect();
    assert_eq!(pushes, [((0, 0), Some(200))]);
    assert_eq!(cluster.stored_offset(module, topic, 0), Some(1));
}

#[test]
fn a_stop_lets_a_push_end_that_takes_less_than_two_fifths_of_the_grace() {
    let cluster = cluster();
    let (topic, module, fleet) = (cluster.new_topic("slow_stop", 1), unique("slow_stop"), slow_backend());
    let file = configs::module(&topic, &fleet.addresses());
    let grace = |config: ConfigFile| config.set("shutdown_grace_ms", 10_000);
    let mut member = Member::start_with(cluster, &module, "a", file, grace);
    cluster.produce(&topic, 0, &[(b"k", b"1")]);
    fleet.wait_for("the push", DEADLINE, |_| true);
    member.daemon.stop(STOP_DEADLINE);
    assert_pushed_once(cluster, &module, &topic, &fleet);
}

#[test]
fn a_module_that_a_reload_removes_ends_its_pushes_in_the_same_time() {
    let cluster = cluster();
    let (topic, module, fleet) = (cluster.new_topic("slow_removal", 1), unique("slow_removal"), slow_backend());
    let (other_topic, other) = (cluster.new_topic("stays", 1), unique("stays"));
    let modules = [&topic, &other_topic].map(|topic| configs::module(topic, &fleet.addresses()));
    let [file, other_file] = modules;
    let main = configs::ktransfer(cluster).set("shutdown_grace_ms", 10_000);
    let mut files = ReloadedFiles::new(main, &[(&module, file), (&other, other_file)]);
    let mut ktransfer = files.start();
    cluster.produce(&topic, 0, &[(b"k", b"1")]);
    fleet.wait_for("the push", DEADLINE, |_| true);
    files.remove(&module);
    files.apply(&mut ktransfer);
    wait_until(DEADLINE, "the partition is released", || cluster.owners(&module, &topic).is_empty());
    assert_pushed_once(cluster, &module, &topic, &fleet);
    ktransfer.daemon.stop(STOP_DEADLINE);
}
