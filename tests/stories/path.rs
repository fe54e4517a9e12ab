//! The whole path of a message: posted to kproxy, stored in Kafka, pushed by ktransfer, counted by kmonitor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::backend::Journal;
use crate::harness::configs::{self, CLUSTER_NAME};
use crate::harness::delivery::wait_until_delivered;
use crate::harness::http::Client;
use crate::harness::message::{METHODS, Message};
use crate::harness::oracle::MessageId;
use crate::harness::{
    Backend, BackendAnswer, Cluster, Kmonitor, Kproxy, Ktransfer, STOP_DEADLINE, cluster, unique, wait_until,
};

const N_PARTITIONS: i32 = 8;
const N_KEYS: u64 = 100;
const N_OF_EACH_KEY: u64 = 40;
const N_MESSAGES: usize = (N_KEYS * N_OF_EACH_KEY) as usize;
const N_POSTERS: u64 = 8;

const DEADLINE: Duration = Duration::from_secs(30);
const PUSH_DEADLINE: Duration = Duration::from_secs(90);
/// The session timeout of ktransfer (`zk_timeout_ms: 3000`), plus 3 s to notice the expiry and to claim the partitions.
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(3 + 3);

/// A topic, a module, two backends, and the daemons between them.
struct Pipeline {
    cluster: &'static Cluster,
    topic: String,
    module: String,
    journal: Journal,
    backends: [Backend; 2],
    kproxy: Kproxy,
    ktransfers: Vec<Ktransfer>,
    kmonitor: Kmonitor,
}

impl Pipeline {
    fn start(n_ktransfers: usize, push_takes: Duration) -> Pipeline {
        let cluster = cluster();
        let topic = cluster.new_topic("path", N_PARTITIONS);
        let module = unique("module");
        let journal = Journal::default();
        let backends =
            std::array::from_fn(|_| Backend::start_sharing(&journal, move |_| BackendAnswer::ok().after(push_takes)));
        let servers: Vec<String> = backends.iter().map(Backend::address).collect();
        let module_file = configs::filtered_module(&topic, &servers);
        let start_ktransfer = |_| Ktransfer::start(configs::ktransfer(cluster), &[(&module, module_file.clone())]);
        let mut ktransfers: Vec<Ktransfer> = (0..n_ktransfers).map(start_ktransfer).collect();
        let mut kmonitor = Kmonitor::start(&configs::kmonitor(cluster));
        let kproxy = Kproxy::start_usual(cluster);
        kmonitor.wait_until_ready();
        ktransfers.iter_mut().for_each(Ktransfer::wait_until_ready);
        Pipeline { cluster, topic, module, journal, backends, kproxy, ktransfers, kmonitor }
    }

    /// Posts all messages over [`N_POSTERS`] connections; returns the ids of the messages. One connection posts all
    /// messages of a key, in order.
    fn post_all(&self) -> Vec<MessageId> {
        let posted = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for poster in 0..N_POSTERS {
                let posted = &posted;
                scope.spawn(move || {
                    let mut client = self.kproxy.connect();
                    for number in 0..N_OF_EACH_KEY {
                        for key in (0..N_KEYS).filter(|key| key % N_POSTERS == poster) {
                            let method = METHODS[(number % 2) as usize].to_owned();
                            let message = Message { method, id: (format!("key {key}/ü"), number) };
                            self.post(&mut client, &message);
                            posted.lock().expect("no poster panics").push(message.id);
                        }
                    }
                });
            }
        });
        posted.into_inner().expect("no poster panics")
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

    /// Waits until every message is delivered; returns the number of repeats.
    fn wait_until_delivered(&self, posted: &[MessageId]) -> usize {
        let n_repeats = wait_until_delivered(&self.journal, posted, PUSH_DEADLINE);
        assert_eq!(self.journal.max_per_key(), 1, "concurrent pushes of one key");
        n_repeats
    }

    fn stored(&self) -> i64 {
        self.cluster.stored_offsets_sum(&self.module, &self.topic, N_PARTITIONS)
    }

    /// Returns the owner of each claimed partition.
    fn owners(&self) -> BTreeMap<String, String> {
        self.cluster.owners(&self.module, &self.topic)
    }

    fn wait_until_the_delay_is_zero(&self) {
        let zeros: Value = (0..N_PARTITIONS).map(|partition| (partition.to_string(), json!(0))).collect();
        self.kmonitor.wait_for_delay(CLUSTER_NAME, &self.module, &zeros, DEADLINE);
    }

    /// Stops all daemons with SIGTERM. Checks that each exits with 0, that all offsets are stored and no claim is left.
    fn stop_all(mut self) {
        self.kproxy.daemon.stop(STOP_DEADLINE);
        self.ktransfers.iter_mut().for_each(|ktransfer| ktransfer.daemon.stop(STOP_DEADLINE));
        self.kmonitor.daemon.stop(STOP_DEADLINE);
        assert_eq!(self.stored(), N_MESSAGES as i64, "the stored offsets");
        assert_eq!(self.owners(), BTreeMap::new(), "claims are left");
        let ids = self.cluster.children(&format!("/consumers/{}/ids", self.module));
        assert!(ids.is_empty(), "members are left: {ids:?}");
    }
}

#[test]
fn four_thousand_messages_are_posted_stored_pushed_and_shown() {
    let pipeline = Pipeline::start(1, Duration::ZERO);
    let posted = pipeline.post_all();
    assert_eq!(pipeline.cluster.message_count(&pipeline.topic), N_MESSAGES as i64);
    let n_repeats = pipeline.wait_until_delivered(&posted);
    assert_eq!(n_repeats, 0, "no push failed, so there are no repeats");

    let records = pipeline.journal.records();
    for record in records.iter().take(100) {
        let request = &record.request;
        let message = Message::decode(&request.body).expect("the body as posted");
        assert_eq!(request.method, "POST");
        assert_eq!(request.path(), format!("/push/{}", pipeline.topic));
        assert_eq!(request.query("key"), Some(message.id.0));
        assert_eq!(request.query("method"), Some(message.method));
        assert_eq!(request.header("Host"), Some("backend.example"));
    }
    let positions: BTreeSet<_> =
        records.iter().map(|record| (record.request.query("partition"), record.request.query("transid"))).collect();
    assert_eq!(positions.len(), N_MESSAGES, "partition and offset identify each message");
    for backend in &pipeline.backends {
        let n = records.iter().filter(|record| record.backend == backend.address()).count();
        assert!(n > N_MESSAGES / 4, "{n} pushes at one of two backends");
    }

    pipeline.wait_until_the_delay_is_zero();
    wait_until(DEADLINE, "all offsets are stored", || pipeline.stored() == N_MESSAGES as i64);
    pipeline.stop_all();
}

#[test]
fn no_message_is_lost_when_one_of_two_ktransfers_is_killed() {
    let mut pipeline = Pipeline::start(2, Duration::from_millis(20));
    wait_until(DEADLINE, "two instances own four partitions each", || {
        let owners: Vec<String> = pipeline.owners().into_values().collect();
        let first = owners.iter().filter(|owner| **owner == owners[0]).count();
        owners.len() == N_PARTITIONS as usize && first == N_PARTITIONS as usize / 2
    });
    let owners_before: BTreeSet<String> = pipeline.owners().into_values().collect();
    let mut killed = pipeline.ktransfers.remove(0);
    let (posted, took) = std::thread::scope(|scope| {
        let posting = scope.spawn(|| pipeline.post_all());
        wait_until(PUSH_DEADLINE, "a quarter of the messages is pushed", || {
            pipeline.journal.n_requests() > N_MESSAGES / 4
        });
        let killed_at = Instant::now();
        killed.daemon.kill9();
        wait_until(TAKEOVER_DEADLINE, "the other instance owns every partition", || {
            let owners = pipeline.owners();
            let members: BTreeSet<&String> = owners.values().collect();
            owners.len() == N_PARTITIONS as usize && members.len() == 1
        });
        let took = killed_at.elapsed();
        (posting.join().expect("the posters do not panic"), took)
    });
    let owners: BTreeSet<String> = pipeline.owners().into_values().collect();
    assert!(owners.is_subset(&owners_before), "the remaining member owns all: {owners:?} of {owners_before:?}");
    let n_repeats = pipeline.wait_until_delivered(&posted);
    eprintln!("taken over after {:.1} s, {n_repeats} repeats", took.as_secs_f64());
    pipeline.wait_until_the_delay_is_zero();
    pipeline.stop_all();
}
