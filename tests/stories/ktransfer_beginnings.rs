//! Where ktransfer begins to read: recreated topics, new partitions, `start_from: latest`, truncated logs.
//!
//! No message is passed over, also if the process is killed at the wrong moment.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::fleet::{Arrival, Fleet, Reply};
use crate::harness::{Cluster, ConfigFile, Member, STOP_DEADLINE, cluster, configs, poll, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// A topic, a module and a backend; the values of the messages tell them apart.
struct Story {
    cluster: &'static Cluster,
    topic: String,
    module: String,
    fleet: Fleet,
    change: fn(ConfigFile) -> ConfigFile,
}

impl Story {
    fn new(
        name: &str,
        n_partitions: i32,
        script: impl Fn(&Arrival) -> Reply + Send + Sync + 'static,
        change: fn(ConfigFile) -> ConfigFile,
    ) -> Story {
        let cluster = cluster();
        let topic = cluster.new_topic(name, n_partitions);
        Story { cluster, topic, module: unique(name), fleet: Fleet::start(1, script), change }
    }

    fn start_member(&self) -> Member {
        let file = configs::module(&self.topic, &self.fleet.addresses()).set("max_retry_interval_ms", 500);
        Member::start(self.cluster, &self.module, "a", (self.change)(file))
    }

    /// Appends messages whose values are `prefix` with a number, and whose keys are the same.
    fn produce(&self, partition: i32, prefix: &str, n: usize) {
        let values: Vec<String> = (0..n).map(|number| format!("{prefix}{number}")).collect();
        let messages: Vec<_> = values.iter().map(|value| (value.as_bytes(), value.as_bytes())).collect();
        self.cluster.produce(&self.topic, partition, &messages);
    }

    /// Deletes the topic and creates it again.
    fn recreate(&self, n_partitions: i32) {
        self.cluster.delete_topic(&self.topic);
        self.cluster.create_topic(&self.topic, n_partitions);
    }

    fn delivered(&self, prefix: &str) -> BTreeSet<String> {
        let arrivals = self.fleet.arrivals();
        let values = arrivals.iter().filter(|arrival| arrival.is_delivered()).map(|arrival| arrival.request.text());
        values.filter(|value| value.starts_with(prefix)).collect()
    }

    #[track_caller]
    fn wait_until_delivered(&self, prefix: &str, n: usize) {
        let missing = poll(2 * DEADLINE, || (self.delivered(prefix).len() >= n).then_some(()));
        let found = self.delivered(prefix);
        let missing = missing
            .is_none()
            .then(|| (0..n).map(|number| format!("{prefix}{number}")).filter(|value| !found.contains(value)));
        if let Some(missing) = missing {
            panic!("{} of {n} {prefix} delivered, missing: {:?}", found.len(), missing.collect::<Vec<_>>());
        }
    }

    #[track_caller]
    fn wait_until_stored(&self, partition: i32, offset: i64) {
        wait_until(DEADLINE, &format!("offset {offset} of partition {partition} is stored"), || {
            self.cluster.stored_offset(&self.module, &self.topic, partition) == Some(offset)
        });
    }
}

#[test]
fn a_crash_after_a_topic_was_recreated_loses_no_message_of_its_second_life() {
    let story = Story::new("recreated", 1, |_| Reply::ok(), |file| file);
    let mut member = story.start_member();
    story.produce(0, "old-", 100);
    story.wait_until_stored(0, 100);
    // The head of the second life is refused until the crash.
    story.fleet.script(0, |arrival| match arrival.request.query("key").as_deref() {
        Some("new-0") => Reply::status(500),
        _ => Reply::ok(),
    });
    story.recreate(1);
    story.produce(0, "new-", 50);
    story.fleet.wait_for("the second life is pushed", 2 * DEADLINE, |arrival| arrival.key() == "new-0");
    // Now the log is longer than the old stored offset.
    story.produce(0, "later-", 100);
    member.daemon.kill9();
    story.fleet.script(0, |_| Reply::ok());
    let mut member = story.start_member();
    story.wait_until_delivered("new-", 50);
    story.wait_until_delivered("later-", 100);
    story.wait_until_stored(0, 150);
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_recreated_topic_that_is_soon_longer_than_the_stored_offset_is_read_from_its_beginning() {
    let story = Story::new("longer", 1, |_| Reply::ok(), |file| file);
    let mut member = story.start_member();
    story.produce(0, "old-", 5);
    story.wait_until_stored(0, 5);
    story.recreate(1);
    story.produce(0, "second-", 8);
    story.wait_until_delivered("second-", 8);
    story.wait_until_stored(0, 8);
    member.daemon.stop(STOP_DEADLINE);
    // The same while ktransfer is stopped.
    story.recreate(1);
    story.produce(0, "third-", 11);
    let mut member = story.start_member();
    story.wait_until_delivered("third-", 11);
    story.wait_until_stored(0, 11);
    member.daemon.stop(STOP_DEADLINE);
}

fn from_latest(file: ConfigFile) -> ConfigFile {
    file.set("start_from", "latest")
}

#[test]
fn a_partition_that_is_added_is_read_from_its_beginning_also_with_start_from_latest() {
    let story = Story::new("added", 1, |_| Reply::ok(), from_latest);
    let mut member = story.start_member();
    story.wait_until_stored(0, 0);
    story.produce(0, "first-", 3);
    story.wait_until_stored(0, 3);
    // While ktransfer runs: messages come before it can notice the partition.
    story.cluster.grow_topic(&story.topic, 2);
    story.produce(1, "running-", 10);
    story.wait_until_delivered("running-", 10);
    story.wait_until_stored(1, 10);
    member.daemon.stop(STOP_DEADLINE);
    story.cluster.grow_topic(&story.topic, 3);
    story.produce(2, "stopped-", 10);
    let mut member = story.start_member();
    story.wait_until_delivered("stopped-", 10);
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn where_latest_begins_is_stored_before_the_first_message_is_done() {
    // No message is done before the crash, so no commit point moves.
    let story = Story::new("latest", 2, |_| Reply::status(500), from_latest);
    story.produce(0, "history-", 7);
    let mut member = story.start_member();
    story.wait_until_stored(0, 7);
    story.wait_until_stored(1, 0);
    story.produce(0, "fresh-a-", 5);
    story.produce(1, "fresh-b-", 5);
    story.fleet.wait_for("a push", DEADLINE, |arrival| arrival.request.text().starts_with("fresh-"));
    member.daemon.kill9();
    story.fleet.script(0, |_| Reply::ok());
    let mut member = story.start_member();
    story.wait_until_delivered("fresh-a-", 5);
    story.wait_until_delivered("fresh-b-", 5);
    assert_eq!(story.delivered("history-").len(), 0, "the history is not pushed");
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn what_a_new_leader_appends_after_an_unclean_election_is_read() {
    let cluster = Cluster::start_with(2, &["unclean.leader.election.enable=true", "replica.lag.time.max.ms=2000"]);
    let topic = cluster.new_topic_with("unclean", 1, 2, &[]);
    cluster.wait_for_in_sync(&topic, 2);
    let (module, fleet) = (unique("unclean"), Fleet::start(1, |_| Reply::ok()));
    let produce = |prefix: &str, n: usize| {
        let values: Vec<String> = (0..n).map(|number| format!("{prefix}{number}")).collect();
        let messages: Vec<_> = values.iter().map(|value| (value.as_bytes(), value.as_bytes())).collect();
        cluster.produce(&topic, 0, &messages);
    };
    let count = |prefix: &str| {
        let arrivals = fleet.arrivals();
        let values = arrivals.iter().map(|arrival| arrival.request.text()).filter(|value| value.starts_with(prefix));
        values.collect::<BTreeSet<_>>().len()
    };
    produce("both-", 20);
    let mut member = Member::start(&cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    wait_until(DEADLINE, "what both brokers have is delivered", || count("both-") == 20);
    let leader = cluster.leaders(&topic).expect("the brokers answer")[&0];
    let follower = 1 - leader;
    cluster.kafka_servers[follower as usize].kill9();
    cluster.wait_for_in_sync(&topic, 1);
    produce("gone-", 50);
    wait_until(DEADLINE, "what only the old leader has is delivered", || count("gone-") == 50);
    cluster.kafka_servers[leader as usize].kill9();
    cluster.kafka_servers[follower as usize].restart();
    wait_until(2 * DEADLINE, "the follower leads", || {
        cluster.leaders(&topic).is_some_and(|leaders| leaders.get(&0) == Some(&follower))
    });
    // The new leader appends at offsets that the old one had given to other messages.
    produce("new-", 80);
    wait_until(2 * DEADLINE, "everything that the new leader appended is delivered", || count("new-") == 80);
    assert!(fleet.arrivals().iter().filter(|arrival| arrival.request.text().starts_with("both-")).count() <= 20 + 5);
    member.daemon.stop(STOP_DEADLINE);
}
