//! The state of a test cluster, behind one lock: brokers, topics, partitions, groups, script, counters.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka_protocol::messages::ApiKey;

use super::fetch_session::FetchSession;
use super::group::Group;
use super::log::{AppendRules, PartitionLog};
use super::release::Release;
use super::script::Script;

/// The lock around the state, and the condition that signals each change.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Shared { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Locks the state, also after a panic of another holder: a failing test must still be able to end the threads.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all threads that wait for a change.
    pub(super) fn notify(&self, state: &mut State) {
        state.changes += 1;
        self.changed.notify_all();
    }

    /// Waits for a change, until `until` at the latest.
    pub(super) fn wait<'a>(&'a self, state: MutexGuard<'a, State>, until: Instant) -> MutexGuard<'a, State> {
        let left = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The first producer id that a cluster assigns.
pub(super) const FIRST_PRODUCER_ID: i64 = 1000;

/// The state of a cluster.
#[derive(Debug)]
pub(super) struct State {
    /// Counts the notifications, so that a waiting test can detect that something changed.
    pub(super) changes: u64,
    /// Set once: all threads end.
    pub(super) is_closing: bool,
    pub(super) release: Release,
    pub(super) brokers: Vec<Broker>,
    pub(super) controller: i32,
    pub(super) cluster_id: String,
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) topic_count: u64,
    pub(super) next_producer_id: i64,
    /// Producer id and epoch of each transactional id.
    pub(super) transactional_ids: BTreeMap<String, (i64, i16)>,
    pub(super) script: Script,
    pub(super) counters: Counters,
    /// Time from an append to the advance of the high watermark.
    pub(super) replication_delay: Duration,
    /// Whether responses name the leader of a partition when the broker is not (KIP-951).
    pub(super) has_leader_hints: bool,
    /// Number of requests that are held, and of releases.
    pub(super) held: usize,
    pub(super) releases: u64,
    /// Until then requests are swallowed.
    pub(super) blackout_until: Option<Instant>,
    pub(super) denied_topics: BTreeSet<String>,
    pub(super) denied_groups: BTreeSet<String>,
    /// Passwords by user name; `None` without SASL.
    pub(super) users: Option<BTreeMap<String, String>>,
    /// Time after which a connection must authenticate again (KIP-368).
    pub(super) session_lifetime: Option<Duration>,
    pub(super) groups: BTreeMap<String, Group>,
    /// Coordinators that a test has chosen; `None`: no coordinator.
    pub(super) coordinators: BTreeMap<String, Option<i32>>,
    /// Fetch sessions of each broker, at most (`max.incremental.fetch.session.cache.slots`).
    pub(super) max_fetch_sessions: usize,
    pub(super) next_session_id: i32,
    /// Whether consumers are sent to the replica in their rack (KIP-392).
    pub(super) fetches_from_followers: bool,
}

impl State {
    pub(super) fn broker(&self, id: i32) -> Option<&Broker> {
        self.brokers.iter().find(|broker| broker.id == id)
    }

    pub(super) fn broker_mut(&mut self, id: i32) -> &mut Broker {
        self.brokers.iter_mut().find(|broker| broker.id == id).expect("the broker exists")
    }

    pub(super) fn partition(&self, topic: &str, partition: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)
    }

    pub(super) fn partition_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Partition> {
        self.topics.get_mut(topic)?.partitions.get_mut(usize::try_from(partition).ok()?)
    }

    /// Returns the name of the topic with an id.
    pub(super) fn topic_name(&self, id: &[u8; 16]) -> Option<&str> {
        self.topics.iter().find(|(_, topic)| topic.id == *id).map(|(name, _)| name.as_str())
    }

    /// Returns the coordinator of a group: the one that a test has chosen, or a running broker that the name selects.
    pub(super) fn coordinator(&self, group: &str) -> Option<i32> {
        if let Some(chosen) = self.coordinators.get(group) {
            return *chosen;
        }
        let running: Vec<i32> =
            self.brokers.iter().filter(|broker| broker.is_running).map(|broker| broker.id).collect();
        let hash = group.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        running.get(hash % running.len().max(1)).copied()
    }

    /// Elects a leader for each partition whose leader is not running: the first running in-sync replica.
    pub(super) fn elect_leaders(&mut self) {
        let running: BTreeSet<i32> =
            self.brokers.iter().filter(|broker| broker.is_running).map(|broker| broker.id).collect();
        for broker in &mut self.brokers {
            broker.is_registered = broker.is_running;
        }
        for partition in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            if partition.leader.is_some_and(|leader| running.contains(&leader)) {
                partition.isr.retain(|id| running.contains(id));
                continue;
            }
            let elected = partition.isr.iter().copied().find(|id| running.contains(id));
            if elected.is_some() {
                partition.isr.retain(|id| running.contains(id));
            }
            if elected != partition.leader {
                partition.set_leader(elected);
            }
        }
    }
}

/// A broker.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) id: i32,
    pub(super) port: u16,
    pub(super) rack: Option<String>,
    pub(super) is_running: bool,
    /// Whether the port is open; it closes soon after the broker stops.
    pub(super) is_listening: bool,
    pub(super) is_paused: bool,
    /// Whether metadata lists the broker; a broker that crashed stays listed until the next election.
    pub(super) is_registered: bool,
    /// Counts the starts: threads of an earlier run end.
    pub(super) run: u64,
    pub(super) connections: HashMap<u64, Arc<TcpStream>>,
    pub(super) sessions: HashMap<i32, FetchSession>,
}

impl Broker {
    /// Closes all connections.
    pub(super) fn close_connections(&mut self) {
        for (_, stream) in self.connections.drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) id: [u8; 16],
    pub(super) rules: AppendRules,
    pub(super) min_in_sync: usize,
    pub(super) replication: usize,
    pub(super) partitions: Vec<Partition>,
}

/// A partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) leader: Option<i32>,
    pub(super) leader_epoch: i32,
    pub(super) replicas: Vec<i32>,
    pub(super) isr: Vec<i32>,
    pub(super) log: PartitionLog,
    /// When the high watermark reaches an offset.
    pub(super) replicating: VecDeque<(Instant, i64)>,
    /// Whether followers fetch nothing: the high watermark stays.
    pub(super) is_replication_held: bool,
}

impl Partition {
    pub(super) fn new(replicas: Vec<i32>) -> Self {
        let mut partition = Partition {
            leader: replicas.first().copied(),
            leader_epoch: 0,
            isr: replicas.clone(),
            replicas,
            log: PartitionLog::default(),
            replicating: VecDeque::new(),
            is_replication_held: false,
        };
        partition.log.begin_epoch(0);
        partition
    }

    /// Moves the leadership; the leader epoch rises.
    pub(super) fn set_leader(&mut self, leader: Option<i32>) {
        self.leader = leader;
        self.leader_epoch += 1;
        if leader.is_some() {
            self.log.begin_epoch(self.leader_epoch);
        }
    }

    /// Schedules the replication of the records appended last.
    pub(super) fn replicate(&mut self, delay: Duration, now: Instant) {
        self.replicating.push_back((now + delay, self.log.end_offset()));
        self.advance(now);
    }

    /// Advances the high watermark to what followers have at `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        while !self.is_replication_held && self.replicating.front().is_some_and(|(time, _)| *time <= now) {
            let (_, offset) = self.replicating.pop_front().expect("the queue has a front");
            self.log.advance_high_watermark(offset);
        }
    }

    /// Returns when the high watermark advances next.
    pub(super) fn next_advance(&self) -> Option<Instant> {
        if self.is_replication_held { None } else { self.replicating.front().map(|(time, _)| *time) }
    }
}

/// What the brokers received.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: HashMap<ApiKey, u64>,
    /// Number of requests by type and number of partitions.
    pub(super) partitions: HashMap<ApiKey, BTreeMap<usize, u64>>,
    pub(super) versions: HashMap<ApiKey, BTreeSet<i16>>,
    pub(super) connections: u64,
    /// Requests that came while the client had to wait because of a throttle time.
    pub(super) throttle_violations: u64,
    /// Requests that a blackout swallowed.
    pub(super) swallowed: u64,
    /// Requests that could not be decoded.
    pub(super) malformed: u64,
}

/// Returns the time in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}
