//! The handle of a test cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::StoredRecord;
use super::batch_spec::BatchSpec;
use super::group::{Committed, GroupState};
use super::log::{AppendRules, PartitionLog};
use super::server::{self, Threads};
use super::state::{Broker, Partition, Shared, State, Topic, now_ms};
use super::topic_spec::TopicSpec;

/// A running cluster; its threads end when it is dropped.
#[derive(Debug)]
pub struct TestCluster {
    pub(super) shared: Arc<Shared>,
    threads: Arc<Threads>,
}

impl TestCluster {
    pub(super) fn of(state: State) -> TestCluster {
        TestCluster { shared: Arc::new(Shared::new(state)), threads: Arc::default() }
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.shared.lock();
        let result = change(&mut state);
        self.shared.notify(&mut state);
        result
    }

    /// Returns host and port of all brokers, also of those that do not run.
    pub fn bootstrap(&self) -> Vec<(String, u16)> {
        self.shared.lock().brokers.iter().map(|broker| ("127.0.0.1".to_owned(), broker.port)).collect()
    }

    /// Returns host and port of a broker.
    pub fn address(&self, broker: i32) -> (String, u16) {
        let state = self.shared.lock();
        ("127.0.0.1".to_owned(), state.broker(broker).expect("the broker exists").port)
    }

    // Topics

    /// Creates a topic with replicas on all brokers.
    pub fn create_topic(&self, name: &str, partitions: usize) {
        self.create(TopicSpec::new(name).partitions(partitions));
    }

    /// Creates a topic; its id is new.
    pub fn create(&self, spec: TopicSpec) {
        self.update(|state| {
            assert!(!state.topics.contains_key(&spec.name), "the topic exists already");
            state.topic_count += 1;
            let mut id = [0x7e; 16];
            id[8..].copy_from_slice(&state.topic_count.to_be_bytes());
            let mut rules = spec.rules;
            rules.sequences = state.release.sequence_rules();
            let replication = spec.replication.clamp(1, state.brokers.len());
            let mut topic = Topic { id, rules, min_in_sync: spec.min_in_sync, replication, partitions: Vec::new() };
            add_partitions(state, &mut topic, spec.partitions);
            state.topics.insert(spec.name, topic);
        });
    }

    /// Deletes a topic and its records.
    pub fn delete_topic(&self, name: &str) {
        self.update(|state| state.topics.remove(name));
    }

    /// Adds partitions to a topic.
    pub fn add_partitions(&self, name: &str, count: usize) {
        self.update(|state| {
            let mut topic = state.topics.remove(name).expect("the topic exists");
            add_partitions(state, &mut topic, count);
            state.topics.insert(name.to_owned(), topic);
        });
    }

    /// Returns the id of a topic.
    pub fn topic_id(&self, name: &str) -> Option<[u8; 16]> {
        self.shared.lock().topics.get(name).map(|topic| topic.id)
    }

    /// Whether a partition exists.
    pub fn has_partition(&self, topic: &str, partition: i32) -> bool {
        self.shared.lock().partition(topic, partition).is_some()
    }

    /// Changes the settings of a topic that an append checks.
    pub fn set_rules(&self, topic: &str, change: impl FnOnce(&mut AppendRules)) {
        self.update(|state| change(&mut state.topics.get_mut(topic).expect("the topic exists").rules));
    }

    /// Denies or allows all requests for a topic: TOPIC_AUTHORIZATION_FAILED.
    pub fn deny_topic(&self, topic: &str, is_denied: bool) {
        self.update(|state| match is_denied {
            true => state.denied_topics.insert(topic.to_owned()),
            false => state.denied_topics.remove(topic),
        });
    }

    /// Denies or allows all requests for a group: GROUP_AUTHORIZATION_FAILED.
    pub fn deny_group(&self, group: &str, is_denied: bool) {
        self.update(|state| match is_denied {
            true => state.denied_groups.insert(group.to_owned()),
            false => state.denied_groups.remove(group),
        });
    }

    // Partitions

    fn with_partition<T>(&self, topic: &str, partition: i32, change: impl FnOnce(&mut Partition) -> T) -> T {
        self.update(|state| {
            let known = state.partition_mut(topic, partition).expect("the partition exists");
            known.advance(Instant::now());
            change(known)
        })
    }

    /// Like [`with_partition`](Self::with_partition) without a notification, which would wake the waiting test itself.
    fn look<T>(&self, topic: &str, partition: i32, look: impl FnOnce(&Partition) -> T) -> T {
        let mut state = self.shared.lock();
        let known = state.partition_mut(topic, partition).expect("the partition exists");
        known.advance(Instant::now());
        look(known)
    }

    /// Returns all records of a partition, transaction markers among them.
    pub fn log(&self, topic: &str, partition: i32) -> Vec<StoredRecord> {
        self.shared.lock().partition(topic, partition).expect("the partition exists").log.records()
    }

    /// Returns a value computed from the log of a partition.
    pub fn read_log<T>(&self, topic: &str, partition: i32, read: impl FnOnce(&PartitionLog) -> T) -> T {
        self.look(topic, partition, |known| read(&known.log))
    }

    /// Changes the log of a partition: truncation, compaction, retention, transaction markers. Afterwards the high
    /// watermark is the end of the log.
    pub fn change_log<T>(&self, topic: &str, partition: i32, change: impl FnOnce(&mut PartitionLog) -> T) -> T {
        self.with_partition(topic, partition, |known| {
            let result = change(&mut known.log);
            known.replicating.clear();
            known.log.advance_high_watermark(i64::MAX);
            result
        })
    }

    /// Stores records without a client; returns the offset of the first one.
    pub fn append(&self, topic: &str, partition: i32, batch: &BatchSpec) -> i64 {
        self.change_log(topic, partition, |log| log.append_unchecked(&batch.encode()))
    }

    /// Stores one record; returns its offset.
    pub fn append_record(&self, topic: &str, partition: i32, key: &str, value: &str) -> i64 {
        self.append(topic, partition, &BatchSpec::new().record(Some(key), Some(value), now_ms()))
    }

    /// Loses the records from `offset` on, as after the election of a leader that did not have them; the leader epoch
    /// rises.
    pub fn truncate(&self, topic: &str, partition: i32, offset: i64) {
        self.with_partition(topic, partition, |known| lose(known, offset, known.leader));
    }

    /// Returns leader and leader epoch of a partition.
    pub fn leader(&self, topic: &str, partition: i32) -> (Option<i32>, i32) {
        self.look(topic, partition, |known| (known.leader, known.leader_epoch))
    }

    /// Moves the leadership of a partition to another broker, which has all its records. `None`: no leader.
    pub fn move_leader(&self, topic: &str, partition: i32, leader: Option<i32>) {
        self.with_partition(topic, partition, |known| known.set_leader(leader));
    }

    /// Moves the leadership of a partition to a broker that does not have the records above the high watermark; they
    /// are lost.
    pub fn move_leader_losing_unreplicated(&self, topic: &str, partition: i32, leader: i32) {
        self.with_partition(topic, partition, |known| {
            lose(known, known.log.high_watermark(), Some(leader));
        });
    }

    /// Sets the in-sync replicas of a partition.
    pub fn set_in_sync(&self, topic: &str, partition: i32, in_sync: &[i32]) {
        self.with_partition(topic, partition, |known| known.isr = in_sync.to_vec());
    }

    /// Sets the time from an append to the advance of the high watermark, for appends from now on.
    pub fn set_replication_delay(&self, delay: Duration) {
        self.update(|state| state.replication_delay = delay);
    }

    /// Stops or resumes the replication of a partition: while it is held, the high watermark stays and requests with
    /// acks=-1 time out.
    pub fn hold_replication(&self, topic: &str, partition: i32, is_held: bool) {
        self.with_partition(topic, partition, |known| {
            known.is_replication_held = is_held;
            known.advance(Instant::now());
        });
    }

    /// Sets whether responses name the new leader of a partition (KIP-951); they do unless it is switched off.
    pub fn set_leader_hints(&self, has_leader_hints: bool) {
        self.update(|state| state.has_leader_hints = has_leader_hints);
    }

    // Groups

    /// Commits an offset for a group, which exists from then on.
    pub fn commit_offset(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        let committed = Committed { offset, leader_epoch: -1, metadata: String::new() };
        self.update(|state| {
            let group = state.groups.entry(group.to_owned()).or_default();
            group.offsets.insert((topic.to_owned(), partition), committed);
        });
    }

    /// Returns the offset that a group has committed.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        let state = self.shared.lock();
        state.groups.get(group)?.offsets.get(&(topic.to_owned(), partition)).cloned()
    }

    /// Returns state, generation and number of members of a group.
    pub fn group(&self, group: &str) -> Option<(GroupState, i32, usize)> {
        let mut state = self.shared.lock();
        let group = state.groups.get_mut(group)?;
        group.tick(Instant::now());
        Some((group.state, group.generation, group.members.len()))
    }

    /// Deletes a group with its members and offsets.
    pub fn delete_group(&self, group: &str) {
        self.update(|state| state.groups.remove(group));
    }

    /// Sets the coordinator of a group; `None`: it has none.
    pub fn set_coordinator(&self, group: &str, broker: Option<i32>) {
        self.update(|state| state.coordinators.insert(group.to_owned(), broker));
    }

    /// Returns the coordinator of a group.
    pub fn coordinator(&self, group: &str) -> Option<i32> {
        self.shared.lock().coordinator(group)
    }

    // Brokers

    /// Starts a broker, on the port that it had before; it is in sync again with its partitions.
    pub fn start_broker(&self, broker: i32) {
        let port = self.address(broker).1;
        let listener = server::bind(port);
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let run = self.update(|state| {
            let known = state.broker_mut(broker);
            assert!(!known.is_running, "the broker runs already");
            known.run += 1;
            (known.is_running, known.is_listening, known.is_paused, known.port) = (true, true, false, port);
            let run = known.run;
            for partition in state.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
                if partition.replicas.contains(&broker) && !partition.isr.contains(&broker) {
                    partition.isr.push(broker);
                }
            }
            state.elect_leaders();
            run
        });
        server::start(&self.threads, &self.shared, broker, run, listener);
    }

    /// Stops a broker: its connections and its port close, and other in-sync replicas lead its partitions.
    pub fn stop_broker(&self, broker: i32) {
        self.crash_broker(broker);
        self.elect_leaders();
    }

    /// Stops a broker without electing leaders: metadata stays as it was until [`elect_leaders`](Self::elect_leaders).
    pub fn crash_broker(&self, broker: i32) {
        let port = self.update(|state| {
            let known = state.broker_mut(broker);
            known.is_running = false;
            known.sessions.clear();
            known.close_connections();
            known.port
        });
        server::wake(port);
        let mut state = self.shared.lock();
        while state.broker(broker).is_some_and(|known| known.is_listening) {
            state = self.shared.wait(state, Instant::now() + Duration::from_secs(60));
        }
    }

    /// Elects leaders for the partitions of brokers that do not run.
    pub fn elect_leaders(&self) {
        self.update(State::elect_leaders);
    }

    /// Pauses or resumes a broker: while it is paused, it accepts connections and requests but serves none.
    pub fn pause_broker(&self, broker: i32, is_paused: bool) {
        self.update(|state| state.broker_mut(broker).is_paused = is_paused);
    }

    /// Closes all connections to a broker.
    pub fn close_connections(&self, broker: i32) {
        self.update(|state| state.broker_mut(broker).close_connections());
    }

    /// Sets the controller that metadata names.
    pub fn set_controller(&self, broker: i32) {
        self.update(|state| state.controller = broker);
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        let ports = self.update(|state| {
            state.is_closing = true;
            state.brokers.iter_mut().for_each(Broker::close_connections);
            let running = state.brokers.iter().filter(|broker| broker.is_running);
            running.map(|broker| broker.port).collect::<Vec<_>>()
        });
        ports.into_iter().for_each(server::wake);
        let has_panicked = self.threads.join();
        // A second panic would abort the test binary.
        assert!(!has_panicked || std::thread::panicking(), "a thread of the test cluster panicked");
    }
}

fn add_partitions(state: &State, topic: &mut Topic, count: usize) {
    let brokers: Vec<i32> = state.brokers.iter().map(|broker| broker.id).collect();
    for _ in 0..count {
        let first = topic.partitions.len();
        let replicas = (0..topic.replication).map(|step| brokers[(first + step) % brokers.len()]);
        topic.partitions.push(Partition::new(replicas.collect()));
    }
}

/// Truncates a partition under a new leader.
fn lose(partition: &mut Partition, offset: i64, leader: Option<i32>) {
    partition.replicating.clear();
    partition.log.truncate(offset);
    partition.set_leader(leader);
    partition.log.advance_high_watermark(i64::MAX);
}
