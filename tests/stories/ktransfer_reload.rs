//! ktransfer: modules that a SIGHUP adds, removes and changes, while the others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::fleet::Arrival;
use crate::harness::reloading::ReloadedFiles;
use crate::harness::{
    Cluster, ConfigFile, Fleet, Ktransfer, Reply, STOP_DEADLINE, SetOnDrop, cluster, configs, http, kraft_cluster,
    wait_until,
};

const DEADLINE: Duration = Duration::from_secs(90);
const N_PARTITIONS: i32 = 2;
/// The pause between two rounds of messages.
const PACE: Duration = Duration::from_millis(20);

/// A module with a topic and backends of its own.
struct Subject {
    /// Short, so that the kernel keeps it in the names of the module's threads.
    name: &'static str,
    topic: String,
    fleet: Fleet,
}

impl Subject {
    fn new(cluster: &Cluster, name: &'static str, n_backends: usize) -> Subject {
        let topic = cluster.new_topic(name, N_PARTITIONS);
        Subject { name, topic, fleet: Fleet::start(n_backends, |_| Reply::ok().after(Duration::from_millis(2))) }
    }

    /// The file of the module, with the backend of this number.
    fn file(&self, backend: usize) -> ConfigFile {
        configs::module(&self.topic, &self.fleet.addresses()[backend..=backend]).set("worker_num", 4)
    }

    /// The threads of the module whose names the kernel does not cut.
    fn threads(&self, ktransfer: &Ktransfer) -> BTreeMap<u32, String> {
        let end = format!("@{}", self.name);
        ktransfer.daemon.threads_by_id().into_iter().filter(|(_, name)| name.ends_with(&end)).collect()
    }

    /// Returns the fencing tokens that its pushes had: one for each claim.
    fn claims(&self) -> BTreeSet<(i32, Option<u64>)> {
        self.fleet.arrivals().iter().map(|arrival| (arrival.position().0, arrival.claim())).collect()
    }

    /// Checks that every message was pushed once, and those of a key in order.
    #[track_caller]
    fn assert_each_once_in_order(&self, n_produced: usize) {
        let arrivals = self.fleet.arrivals();
        assert_eq!((arrivals.len(), self.fleet.n_delivered()), (n_produced, n_produced), "{}", self.name);
        self.assert_order(&arrivals);
    }

    #[track_caller]
    fn assert_order(&self, arrivals: &[Arrival]) {
        let mut last = BTreeMap::new();
        for arrival in arrivals {
            let (partition, offset) = arrival.position();
            let before = last.insert((partition, arrival.key()), (offset, arrival.ended));
            if let Some((before, ended)) = before {
                assert!(before < offset, "{}: {before} before {offset} of {}", self.name, arrival.key());
                assert!(ended.is_some_and(|ended| ended <= arrival.began), "{}: two at a time", self.name);
            }
        }
    }

    /// Whether the instance has nothing left of the module: neither rows nor claims.
    fn is_gone(&self, cluster: &Cluster, ktransfer: &Ktransfer) -> bool {
        let shown = http::get(&format!("http://{}/v1/modules/{}", ktransfer.admin, self.name)).unwrap();
        let label = format!("module=\"{}\"", self.name);
        shown.status == 404
            && !ktransfer.metrics().text().contains(&label)
            && cluster.owners(self.name, &self.topic).is_empty()
            && cluster.children(&format!("/consumers/{}/ids", self.name)).is_empty()
            && self.threads(ktransfer).is_empty()
    }
}

/// Appends messages to all topics until it is stopped; each message of a partition has one of five keys. Returns the
/// number of messages of each topic.
fn produce_until(cluster: &Cluster, topics: &[&str], is_over: &AtomicBool) -> usize {
    let mut n_of_each = 0;
    while !is_over.load(Ordering::SeqCst) {
        for topic in topics {
            for partition in 0..N_PARTITIONS {
                let keys: Vec<String> = (0..5).map(|key| format!("{partition}-{key}")).collect();
                let messages: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (key.as_bytes(), &b"text"[..])).collect();
                cluster.produce(topic, partition, &messages);
            }
        }
        n_of_each += 5 * N_PARTITIONS as usize;
        // The pace of the load: the backends keep up with it.
        std::thread::sleep(PACE);
    }
    n_of_each
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story with six modules")]
fn a_reload_under_load_changes_what_the_files_say_and_touches_no_other_module() {
    let cluster = cluster();
    let subjects = [("rlkee", 1), ("rlkep", 1), ("rlgon", 1), ("rlmov", 2), ("rlsta", 1), ("rladd", 1)]
        .map(|(name, n)| Subject::new(cluster, name, n));
    let [kept, also_kept, gone, moved, restarted, added] = &subjects;
    let running = [kept, also_kept, gone, moved, restarted].map(|subject| (subject.name, subject.file(0)));
    let mut files = ReloadedFiles::new(configs::ktransfer(cluster), &running);
    let mut ktransfer = files.start();
    let topics = subjects.each_ref().map(|subject| subject.topic.as_str());
    let is_over = AtomicBool::new(false);
    let n_produced = std::thread::scope(|scope| {
        let load = scope.spawn(|| produce_until(cluster, &topics, &is_over));
        let end_of_load = SetOnDrop(&is_over);
        let more = |subjects: &[&Subject], n: usize| {
            for subject in subjects {
                subject.fleet.wait_until_delivered(subject.fleet.n_delivered() + n, DEADLINE);
            }
        };
        more(&[kept, also_kept, gone, moved, restarted], 100);
        let untouched = [kept, also_kept, moved];
        let before = untouched.map(|subject| (subject.threads(&ktransfer), subject.claims()));
        assert!(before.iter().all(|(threads, claims)| threads.len() >= 5 && claims.len() == 2), "{before:?}");
        files.remove(gone.name);
        files.set(added.name, added.file(0));
        files.set(moved.name, moved.file(1));
        files.change(restarted.name, |file| file.set("window_size", 100));
        files.apply(&mut ktransfer);
        let reloaded = Instant::now();
        more(&[kept, also_kept, moved, restarted, added], 200);
        wait_until(DEADLINE, "nothing is left of the removed module", || gone.is_gone(cluster, &ktransfer));
        let n_of_gone = gone.fleet.n_arrivals();
        more(&[kept, added], 100);
        assert_eq!(gone.fleet.n_arrivals(), n_of_gone, "a removed module pushes nothing");
        let after = untouched.map(|subject| (subject.threads(&ktransfer), subject.claims()));
        assert_eq!(before, after, "threads and claims of modules that are not stopped stay");
        let late = |arrival: &Arrival| arrival.server == 0 && reloaded < arrival.began;
        assert_eq!(moved.fleet.count(late), 0, "the former backend gets nothing after the reload");
        drop(end_of_load);
        load.join().unwrap()
    });
    for subject in [kept, also_kept, moved, restarted, added] {
        subject.fleet.wait_until_delivered(n_produced, DEADLINE);
        subject.assert_each_once_in_order(n_produced);
    }
    assert!(moved.fleet.count(|arrival| arrival.server == 1) >= 200);
    // The removed module has stored what it has pushed.
    let stored = cluster.stored_offsets_sum(gone.name, &gone.topic, N_PARTITIONS);
    assert_eq!(stored, gone.fleet.n_arrivals() as i64);
    gone.assert_each_once_in_order(gone.fleet.n_arrivals());
    ktransfer.wait_until_ready();
    let metrics = ktransfer.metrics();
    assert_eq!(metrics.value("ktransfer_configuration_stale"), Some(0));
    let former = format!("backend=\"{}\"", moved.fleet.addresses()[0]);
    assert!(!metrics.text().contains(&former), "{}", metrics.text());
    let log = ktransfer.daemon.log();
    let summary = "1 added (rladd), 1 removed (rlgon), 1 changed (rlmov), 1 stopped and started (rlsta), 2 unchanged";
    assert!(log.contains(summary), "{log}");
    // Signals interrupt no thread that a reload has started.
    let masks: BTreeSet<String> = added
        .threads(&ktransfer)
        .keys()
        .chain(kept.threads(&ktransfer).keys())
        .map(|thread| ktransfer.daemon.blocked_signals(*thread))
        .collect();
    assert_eq!(masks.len(), 1, "{masks:?}");
    // The removed module comes back where it stopped.
    files.set(gone.name, gone.file(0));
    files.apply(&mut ktransfer);
    gone.fleet.wait_until_delivered(n_produced, DEADLINE);
    gone.assert_each_once_in_order(n_produced);
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_module_that_one_instance_drops_is_taken_over_by_the_other() {
    let cluster = cluster();
    let subject = Subject::new(cluster, "rltak", 1);
    let other = Subject::new(cluster, "rlsty", 1);
    let modules = [(subject.name, subject.file(0)), (other.name, other.file(0))];
    let mut files = ReloadedFiles::new(configs::ktransfer(cluster), &modules);
    let (mut one, mut two) = (files.start(), Ktransfer::start_ready(cluster, &modules[..1]));
    let is_over = AtomicBool::new(false);
    let n_produced = std::thread::scope(|scope| {
        let load = scope.spawn(|| produce_until(cluster, &[&subject.topic], &is_over));
        let end_of_load = SetOnDrop(&is_over);
        subject.fleet.wait_until_delivered(50, DEADLINE);
        files.remove(subject.name);
        files.apply(&mut one);
        wait_until(DEADLINE, "the other instance owns all partitions", || {
            let owners = cluster.owners(subject.name, &subject.topic);
            let members = cluster.children(&format!("/consumers/{}/ids", subject.name));
            members.len() == 1 && owners.len() == 2 && owners.values().all(|owner| owner.contains(&members[0]))
        });
        subject.fleet.wait_until_delivered(subject.fleet.n_delivered() + 50, DEADLINE);
        drop(end_of_load);
        load.join().unwrap()
    });
    subject.fleet.wait_until_delivered(n_produced, DEADLINE);
    subject.assert_each_once_in_order(n_produced);
    one.wait_until_ready();
    one.daemon.stop(STOP_DEADLINE);
    two.daemon.stop(STOP_DEADLINE);
}

#[test]
fn groups_in_kafka_are_left_and_joined_by_reloads() {
    let cluster = kraft_cluster();
    let brokers: Vec<String> = cluster.broker_list().into_iter().map(str::to_owned).collect();
    let fleets = [(); 4].map(|()| Fleet::start(2, |_| Reply::ok()));
    let topics =
        ["kept", "gone", "moved", "added"].map(|name| cluster.new_topic(&format!("reload_{name}"), N_PARTITIONS));
    let [kept, gone, moved, added] = &topics;
    let file =
        |index: usize, backend: usize| configs::module(&topics[index], &fleets[index].addresses()[backend..=backend]);
    let main = configs::ktransfer_without_zookeeper(&brokers).set("session_timeout_ms", 6000);
    let mut files = ReloadedFiles::new(main, &[(kept, file(0, 0)), (gone, file(1, 0)), (moved, file(2, 0))]);
    let mut ktransfer = files.start();
    let produce_100 = || topics.iter().for_each(|topic| cluster.produce(topic, &[(0, "k"), (1, "l")], 50));
    produce_100();
    for fleet in &fleets[..3] {
        fleet.wait_until_delivered(100, DEADLINE);
    }
    let claims = |index: usize| -> BTreeSet<(i32, Option<u64>)> {
        fleets[index].arrivals().iter().map(|arrival| (arrival.position().0, arrival.claim())).collect()
    };
    let before = [claims(0), claims(2)];
    files.remove(gone);
    files.set(moved, file(2, 1));
    files.set(added, file(3, 0));
    files.apply(&mut ktransfer);
    wait_until(DEADLINE, "the group has no member", || {
        cluster.members(gone, gone).is_some_and(|members| members.is_empty())
    });
    produce_100();
    for index in [0, 2, 3] {
        fleets[index].wait_until_delivered(200, DEADLINE);
        assert_eq!(fleets[index].n_arrivals(), 200, "{} repeats nothing", topics[index]);
    }
    assert_eq!(before, [claims(0), claims(2)], "the members stay");
    assert_eq!([0, 1].map(|server| fleets[2].count(|arrival| arrival.server == server)), [100, 100]);
    assert_eq!(fleets[1].n_arrivals(), 100, "a removed module pushes nothing");
    let committed = cluster.committed(gone, gone);
    assert_eq!(committed.values().map(|(offset, _)| offset).sum::<i64>(), 100, "{committed:?}");
    files.set(gone, file(1, 0));
    files.apply(&mut ktransfer);
    fleets[1].wait_until_delivered(200, DEADLINE);
    assert_eq!(fleets[1].n_arrivals(), 200);
    ktransfer.daemon.stop(STOP_DEADLINE);
}
