//! Settings of a test cluster, and its start.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::TestCluster;
use super::release::Release;
use super::state::{Broker, Counters, FIRST_PRODUCER_ID, State};

/// Settings of a cluster that is not started yet.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    brokers: usize,
    release: Release,
    racks: Vec<String>,
    users: Option<BTreeMap<String, String>>,
    session_lifetime: Option<Duration>,
}

impl ClusterBuilder {
    fn new(brokers: usize) -> Self {
        ClusterBuilder { brokers, release: Release::V4_0, racks: Vec::new(), users: None, session_lifetime: None }
    }

    /// Sets the release that the brokers imitate; Kafka 4.0 without it.
    pub fn release(mut self, release: Release) -> Self {
        self.release = release;
        self
    }

    /// Sets the racks of the brokers, in the order of their ids.
    pub fn racks(mut self, racks: &[&str]) -> Self {
        self.racks = racks.iter().map(|rack| (*rack).to_owned()).collect();
        self
    }

    /// Adds a user for SASL; then each connection must authenticate.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.get_or_insert_default().insert(name.to_owned(), password.to_owned());
        self
    }

    /// Sets the time after which a connection must authenticate again (KIP-368).
    pub fn session_lifetime(mut self, lifetime: Duration) -> Self {
        self.session_lifetime = Some(lifetime);
        self
    }

    /// Starts the brokers.
    pub fn start(self) -> TestCluster {
        let ids = 1..=self.brokers as i32;
        let brokers = ids.clone().map(|id| Broker {
            id,
            port: 0,
            rack: self.racks.get(id as usize - 1).cloned(),
            is_running: false,
            is_listening: false,
            is_paused: false,
            is_registered: true,
            run: 0,
            connections: Default::default(),
            sessions: Default::default(),
        });
        let state = State {
            changes: 0,
            is_closing: false,
            release: self.release,
            brokers: brokers.collect(),
            controller: 1,
            cluster_id: "testkit".to_owned(),
            topics: BTreeMap::new(),
            topic_count: 0,
            next_producer_id: FIRST_PRODUCER_ID,
            transactional_ids: BTreeMap::new(),
            script: Default::default(),
            counters: Counters::default(),
            replication_delay: Duration::ZERO,
            has_leader_hints: true,
            held: 0,
            releases: 0,
            blackout_until: None,
            denied_topics: Default::default(),
            denied_groups: Default::default(),
            users: self.users,
            session_lifetime: self.session_lifetime,
            groups: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            max_fetch_sessions: 1000,
            next_session_id: 0,
            fetches_from_followers: false,
        };
        let cluster = TestCluster::of(state);
        ids.for_each(|id| cluster.start_broker(id));
        cluster
    }
}

impl TestCluster {
    /// Starts a cluster of Kafka 4.0; the broker ids are 1 to `brokers`.
    pub fn start(brokers: usize) -> TestCluster {
        Self::builder(brokers).start()
    }

    /// Returns the settings of a cluster.
    pub fn builder(brokers: usize) -> ClusterBuilder {
        ClusterBuilder::new(brokers)
    }
}
