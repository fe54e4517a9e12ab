//! The whole path: posted to kproxy, stored in Kafka, pushed by ktransfer, seen by kmonitor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::harness::backend::Journal;
use crate::harness::configs::{self, CLUSTER_NAME};
use crate::harness::http::{self, Client};
use crate::harness::message::{METHODS, Message};
use crate::harness::oracle::{Id, judge};
use crate::harness::{Answer, Backend, Cluster, Daemon, Program, cluster, free_port, unique, wait_until};

const N_PARTITIONS: i32 = 8;
const N_KEYS: u64 = 100;
const N_OF_EACH_KEY: u64 = 40;
const N_MESSAGES: usize = (N_KEYS * N_OF_EACH_KEY) as usize;
const N_POSTERS: u64 = 8;

const START_DEADLINE: Duration = Duration::from_secs(30);
const PUSH_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(12);
/// The session of the configuration (`zk_timeout_ms: 3000`), and what finding out and dividing anew may take.
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(3 + 3);

/// A topic, a module, two backends, and the daemons between them.
struct Path {
    cluster: &'static Cluster,
    topic: String,
    module: String,
    journal: Journal,
    backends: [Backend; 2],
    kproxy: Daemon,
    kproxy_address: String,
    ktransfers: Vec<Daemon>,
    kmonitor: Daemon,
    kmonitor_address: String,
}

impl Path {
    fn start(n_ktransfers: usize, push_takes: Duration) -> Path {
        let cluster = cluster();
        let topic = cluster.new_topic("path", N_PARTITIONS);
        let module = unique("module");
        let journal = Journal::default();
        let backends =
            std::array::from_fn(|_| Backend::start_sharing(&journal, move |_| Answer::ok().after(push_takes)));
        let servers: Vec<String> = backends.iter().map(Backend::address).collect();

        let (kproxy_port, kproxy_admin) = (free_port(), free_port());
        let kproxy_file = configs::kproxy(cluster, kproxy_port, kproxy_admin);
        let mut kproxy = Daemon::start(Program::Kproxy, &[("kproxy.yaml", &kproxy_file)]);
        let kmonitor_port = free_port();
        let kmonitor_file = configs::kmonitor(cluster, kmonitor_port);
        let mut kmonitor = Daemon::start(Program::Kmonitor, &[("kmonitor.yaml", &kmonitor_file)]);
        let module_file = configs::module(&topic, &servers);
        let module_path = format!("conf/modules/{module}.yaml");
        let mut ktransfers = Vec::new();
        for _ in 0..n_ktransfers {
            let admin = free_port();
            let main_file = configs::ktransfer(cluster, admin, &[&module]);
            let files = [("conf/ktransfer.yaml", main_file.as_str()), (&module_path, &module_file)];
            ktransfers.push((Daemon::start(Program::Ktransfer, &files), admin));
        }
        kproxy.wait_until_ready(&format!("127.0.0.1:{kproxy_admin}"), START_DEADLINE);
        kmonitor.wait_until_ready(&format!("127.0.0.1:{kmonitor_port}"), START_DEADLINE);
        for (daemon, admin) in &mut ktransfers {
            daemon.wait_until_ready(&format!("127.0.0.1:{admin}"), START_DEADLINE);
        }
        Path {
            cluster,
            ktransfers: ktransfers.into_iter().map(|(daemon, _)| daemon).collect(),
            topic,
            module,
            journal,
            backends,
            kproxy,
            kproxy_address: format!("127.0.0.1:{kproxy_port}"),
            kmonitor,
            kmonitor_address: format!("127.0.0.1:{kmonitor_port}"),
        }
    }

    /// Posts all messages, each key by one poster and in order; returns them.
    fn post_all(&self) -> Vec<Id> {
        let posted = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for poster in 0..N_POSTERS {
                let posted = &posted;
                scope.spawn(move || {
                    let mut client = Client::connect(&self.kproxy_address).expect("kproxy listens");
                    for number in 0..N_OF_EACH_KEY {
                        for key in (0..N_KEYS).filter(|key| key % N_POSTERS == poster) {
                            let method = METHODS[(number % 2) as usize].to_owned();
                            let message = Message { method, id: (format!("key {key}/ü"), number) };
                            self.post(&mut client, &message);
                            posted.lock().expect("no poster panics here").push(message.id);
                        }
                    }
                });
            }
        });
        posted.into_inner().expect("the posters ended well")
    }

    fn post(&self, client: &mut Client, message: &Message) {
        let key = message.id.0.replace(' ', "%20").replace('/', "%2F").replace('ü', "%C3%BC");
        let path = format!("/commit?topic={}&key={key}&acks=1", self.topic);
        let answer = client.post(&path, &message.encode()).expect("kproxy answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let document = answer.json();
        assert_eq!(document["topic"], self.topic.as_str());
        assert!(document["offset"].is_u64() && document["partition"].is_u64(), "{document}");
    }

    fn pushed(&self) -> Vec<Id> {
        let records = self.journal.records();
        let done = records.iter().filter(|record| record.status == Some(200));
        done.map(|record| Message::decode(&record.request.body).expect("the body as posted").id).collect()
    }

    /// Waits until all has arrived, and returns how often something arrived again.
    fn wait_until_all_is_pushed(&self, posted: &[Id]) -> usize {
        wait_until(PUSH_DEADLINE, "all messages are pushed", || {
            // Cheap before exact: the records of thousands of requests are not copied for every look.
            self.journal.n_requests() >= posted.len() && judge(posted, &[], &self.pushed()).lost.is_empty()
        });
        let verdict = judge(posted, &[], &self.pushed());
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!(self.journal.most_of_one_key(), 1, "pushes of one key at the same time");
        verdict.n_repeats
    }

    fn stored(&self) -> i64 {
        (0..N_PARTITIONS).filter_map(|p| self.cluster.stored_offset(&self.module, &self.topic, p)).sum()
    }

    /// The partitions that have an owner, and who it is.
    fn owners(&self) -> BTreeMap<String, String> {
        let zk = self.cluster.zk();
        let parent = format!("{}/consumers/{}/owners/{}", self.cluster.chroot, self.module, self.topic);
        let owner = |partition: String| Some((zk.read(&format!("{parent}/{partition}"))?, partition));
        zk.children(&parent).into_iter().filter_map(owner).map(|(owner, partition)| (partition, owner)).collect()
    }

    /// What kmonitor says of the module, by partition.
    fn delay(&self) -> BTreeMap<String, i64> {
        let answer = http::get(&format!("http://{}/delay", self.kmonitor_address)).expect("kmonitor answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let document = answer.json();
        let Some(partitions) = document[CLUSTER_NAME][&self.module].as_object() else { return BTreeMap::new() };
        partitions.iter().map(|(partition, delay)| (partition.clone(), delay.as_i64().expect("a number"))).collect()
    }

    fn wait_until_the_delay_is_zero(&self) {
        let zeros: BTreeMap<String, i64> = (0..N_PARTITIONS).map(|partition| (partition.to_string(), 0)).collect();
        let mut last = BTreeMap::new();
        wait_until(START_DEADLINE, "kmonitor shows a delay of 0 for every partition", || {
            last = self.delay();
            last == zeros
        });
    }

    /// SIGTERM to all: each ends with 0, the offsets are stored and no claim is left.
    fn stop_all(mut self) {
        self.kproxy.end_well(STOP_DEADLINE);
        self.ktransfers.iter_mut().for_each(|daemon| daemon.end_well(STOP_DEADLINE));
        self.kmonitor.end_well(STOP_DEADLINE);
        assert_eq!(self.stored(), N_MESSAGES as i64, "the stored offsets");
        assert_eq!(self.owners(), BTreeMap::new(), "claims left behind");
        let ids = self.cluster.children(&format!("/consumers/{}/ids", self.module));
        assert!(ids.is_empty(), "members left behind: {ids:?}");
    }
}

#[test]
fn four_thousand_messages_are_posted_stored_pushed_and_seen() {
    let path = Path::start(1, Duration::ZERO);
    let posted = path.post_all();
    assert_eq!(path.cluster.log_ends(&path.topic).values().sum::<i64>(), N_MESSAGES as i64);
    let n_repeats = path.wait_until_all_is_pushed(&posted);
    assert_eq!(n_repeats, 0, "nothing failed, so nothing comes twice");

    let records = path.journal.records();
    for record in records.iter().take(100) {
        let request = &record.request;
        let message = Message::decode(&request.body).expect("the body as posted");
        assert_eq!(request.method, "POST");
        assert_eq!(request.path(), format!("/push/{}", path.topic));
        assert_eq!(request.query("key"), Some(message.id.0));
        assert_eq!(request.query("method"), Some(message.method));
        assert_eq!(request.header("Host"), Some("backend.example"));
    }
    let places: BTreeSet<_> =
        records.iter().map(|record| (record.request.query("partition"), record.request.query("transid"))).collect();
    assert_eq!(places.len(), N_MESSAGES, "partition and offset name each message");
    for backend in &path.backends {
        let n = records.iter().filter(|record| record.backend == backend.address()).count();
        assert!(n > N_MESSAGES / 4, "{n} pushes at one of two backends");
    }

    path.wait_until_the_delay_is_zero();
    wait_until(START_DEADLINE, "all offsets are stored", || path.stored() == N_MESSAGES as i64);
    path.stop_all();
}

#[test]
fn nothing_is_lost_when_one_of_two_ktransfers_is_killed() {
    let mut path = Path::start(2, Duration::from_millis(20));
    wait_until(START_DEADLINE, "two instances own four partitions each", || {
        let owners: Vec<String> = path.owners().into_values().collect();
        let first = owners.iter().filter(|owner| **owner == owners[0]).count();
        owners.len() == N_PARTITIONS as usize && first == N_PARTITIONS as usize / 2
    });
    let owners_before: BTreeSet<String> = path.owners().into_values().collect();
    let mut victim = path.ktransfers.remove(0);
    let (posted, took) = std::thread::scope(|scope| {
        let posting = scope.spawn(|| path.post_all());
        wait_until(PUSH_DEADLINE, "a quarter is pushed", || path.journal.n_requests() > N_MESSAGES / 4);
        let killed = Instant::now();
        victim.kill9();
        wait_until(TAKEOVER_DEADLINE, "the other instance owns every partition", || {
            let owners = path.owners();
            let who: BTreeSet<&String> = owners.values().collect();
            owners.len() == N_PARTITIONS as usize && who.len() == 1
        });
        let took = killed.elapsed();
        (posting.join().expect("all is posted"), took)
    });
    let owners: BTreeSet<String> = path.owners().into_values().collect();
    assert!(owners.is_subset(&owners_before), "the survivor owns all: {owners:?} of {owners_before:?}");
    let n_repeats = path.wait_until_all_is_pushed(&posted);
    eprintln!("taken over after {:.1} s, {n_repeats} repeats", took.as_secs_f64());
    path.wait_until_the_delay_is_zero();
    path.stop_all();
}
