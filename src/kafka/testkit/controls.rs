//! The handle of a test cluster: faults, counters, waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka_protocol::messages::ApiKey;

use super::cluster::TestCluster;
use super::fault::{Fault, Scope};
use super::random::{Generator, Rates};
use super::state::FIRST_PRODUCER_ID;

/// How long `wait_until` overlooks a timer.
const TIMER_INTERVAL: Duration = Duration::from_millis(5);

impl TestCluster {
    /// Replaces the cluster by another one with the same addresses: another cluster id, no topics and groups, and of
    /// the producer ids only the first is assigned. No broker runs meanwhile.
    pub fn become_another(&self) {
        self.update(|state| {
            assert!(state.brokers.iter().all(|broker| !broker.is_running), "a broker runs");
            state.cluster_id.push_str("-next");
            state.topics.clear();
            state.groups.clear();
            state.next_producer_id = FIRST_PRODUCER_ID + 1;
        });
    }

    /// Exchanges the addresses of two brokers in metadata. Their ports stay open, and each serves the same broker as
    /// before.
    pub fn swap_addresses(&self, left: i32, right: i32) {
        self.update(|state| {
            let (left_port, right_port) = (state.broker_mut(left).port, state.broker_mut(right).port);
            state.broker_mut(left).port = right_port;
            state.broker_mut(right).port = left_port;
        });
    }

    /// Queues a fault for the next request in `scope`.
    pub fn fault(&self, scope: Scope, fault: Fault) {
        self.fault_times(scope, fault, 1);
    }

    /// Queues a fault for the next `times` requests in `scope`.
    pub fn fault_times(&self, scope: Scope, fault: Fault, times: usize) {
        self.update(|state| state.script.add(scope, fault, Some(times)));
    }

    /// Queues a fault for all requests in `scope`, until [`clear_faults`](Self::clear_faults).
    pub fn fault_always(&self, scope: Scope, fault: Fault) {
        self.update(|state| state.script.add(scope, fault, None));
    }

    /// Makes faults happen at random, from a seed.
    pub fn random_faults(&self, seed: u64, rates: Rates) {
        self.update(|state| state.script.set_random(Some((Generator::new(seed), rates))));
    }

    /// Removes all faults, queued and random.
    pub fn clear_faults(&self) {
        self.update(|state| state.script.clear());
    }

    /// Returns the number of queued faults that no request has used.
    pub fn pending_faults(&self) -> usize {
        self.shared.lock().script.pending()
    }

    /// Sends consumers to the replica in their rack, or not (KIP-392).
    pub fn set_fetch_from_followers(&self, is_enabled: bool) {
        self.update(|state| state.fetches_from_followers = is_enabled);
    }

    /// Sets the number of fetch sessions of each broker; sessions above it are not created.
    pub fn set_max_fetch_sessions(&self, count: usize) {
        self.update(|state| state.max_fetch_sessions = count);
    }

    /// Forgets all fetch sessions: the next request of each is FETCH_SESSION_ID_NOT_FOUND.
    pub fn drop_fetch_sessions(&self) {
        self.update(|state| state.brokers.iter_mut().for_each(|broker| broker.sessions.clear()));
    }

    /// Releases the requests and responses that faults hold.
    pub fn release_held(&self) {
        self.update(|state| state.releases += 1);
    }

    /// Returns the number of requests and responses that faults hold.
    pub fn held_requests(&self) -> usize {
        self.shared.lock().held
    }

    /// Swallows all requests for a time, at all brokers: they are neither carried out nor answered. A duration of zero
    /// ends it.
    pub fn drop_everything(&self, duration: Duration) {
        self.update(|state| state.blackout_until = Some(Instant::now() + duration));
    }

    /// Returns the number of requests of a type.
    pub fn requests(&self, api: ApiKey) -> u64 {
        self.shared.lock().counters.requests.get(&api).copied().unwrap_or(0)
    }

    /// Returns the number of requests of a type by the number of partitions that they named.
    pub fn partitions_per_request(&self, api: ApiKey) -> BTreeMap<usize, u64> {
        self.shared.lock().counters.partitions.get(&api).cloned().unwrap_or_default()
    }

    /// Returns the versions in which requests of a type came.
    pub fn versions_of(&self, api: ApiKey) -> Vec<i16> {
        self.shared.lock().counters.versions.get(&api).into_iter().flatten().copied().collect()
    }

    /// Returns the number of connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.lock().counters.connections
    }

    /// Returns the number of connections that are open.
    pub fn open_connections(&self) -> usize {
        self.shared.lock().brokers.iter().map(|broker| broker.connections.len()).sum()
    }

    /// Returns the number of requests that came within the throttle time of an earlier response.
    pub fn throttle_violations(&self) -> u64 {
        self.shared.lock().counters.throttle_violations
    }

    /// Returns the number of requests that [`drop_everything`](Self::drop_everything) swallowed.
    pub fn swallowed_requests(&self) -> u64 {
        self.shared.lock().counters.swallowed
    }

    /// Returns the number of requests that could not be decoded.
    pub fn malformed_requests(&self) -> u64 {
        self.shared.lock().counters.malformed
    }

    /// Waits until `condition` holds, which is evaluated after each change and now and then, because of the timers of
    /// groups and of the replication; returns whether it does.
    pub fn wait_until(&self, timeout: Duration, condition: impl Fn(&TestCluster) -> bool) -> bool {
        let until = Instant::now() + timeout;
        loop {
            let seen = self.shared.lock().changes;
            if condition(self) {
                return true;
            }
            let now = Instant::now();
            if now >= until {
                return false;
            }
            let state = self.shared.lock();
            if state.changes == seen {
                drop(self.shared.wait(state, until.min(now + TIMER_INTERVAL)));
            }
        }
    }
}
