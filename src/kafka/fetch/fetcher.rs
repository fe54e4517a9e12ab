//! The interface of a fetcher, and what its threads share.
//!
//! Threads: `kafka-fetch-ID` for each broker that leads assigned partitions ([`super::worker`]), and
//! `kafka-fetch-meta`. They end after the supervisor's stop, or when the fetcher is dropped: both close the
//! connections, which ends their waits. The lock of [`State`] is held for computations only.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::core::{FetchCore, MetadataWork};
use super::event::{FetchEvent, TopicPartition};
use super::{FetchConfig, worker};
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::{Connector, Disconnect};
use crate::kafka::metadata::{BrokerId, MetadataTopics, TopicId};
use crate::kafka::metadata_client::MetadataClient;
use crate::locks::{lock, wait_timeout};
use crate::supervise::Supervisor;

/// Longest wait of a thread: it then looks for the stop.
const MAX_SLEEP: Duration = Duration::from_millis(500);
/// Longest time of a metadata request, over all brokers that are tried.
const MAX_METADATA_TIME: Duration = Duration::from_secs(5);

/// Reads messages from offsets that its owner chooses. Used by one thread.
pub struct Fetcher {
    shared: Arc<Shared>,
}

/// What the threads of a fetcher share.
pub(super) struct Shared {
    pub(super) connector: Connector,
    pub(super) config: FetchConfig,
    supervisor: Supervisor,
    state: Mutex<State>,
    /// Notified when there are events.
    events: Condvar,
    /// Notified when there may be work for the threads.
    work: Condvar,
}

/// The state under the lock.
pub(super) struct State {
    pub(super) core: FetchCore,
    /// Ends the waits of the workers.
    pub(super) disconnects: HashMap<BrokerId, Disconnect>,
    is_closed: bool,
}

impl Fetcher {
    /// Makes the fetcher and starts its metadata thread; no broker need be reachable. `bootstrap`: the brokers to
    /// request metadata of at first.
    pub fn new(
        connector: Connector,
        bootstrap: Vec<BrokerAddress>,
        config: FetchConfig,
        supervisor: &Supervisor,
    ) -> Self {
        let core = FetchCore::new(config.clone(), Instant::now())
            .with_reconnect_backoff(connector.config().reconnect_backoff.clone());
        let shared = Arc::new(Shared {
            config,
            supervisor: supervisor.clone(),
            state: Mutex::new(State { core, disconnects: HashMap::new(), is_closed: false }),
            events: Condvar::new(),
            work: Condvar::new(),
            connector: connector.clone(),
        });
        let metadata = Arc::clone(&shared);
        supervisor.spawn_task("kafka-fetch-meta", move || {
            metadata.request_metadata(MetadataClient::new(connector, bootstrap));
        });
        Fetcher { shared }
    }

    /// Starts to read a partition at `offset`. A partition that is assigned already restarts there. `leader_epoch`:
    /// epoch of the message before `offset`, from an event; with it the fetcher finds out whether the log was truncated
    /// meanwhile.
    pub fn assign(&mut self, topic: &Arc<str>, partition: i32, offset: i64, leader_epoch: Option<i32>) {
        self.start(topic, partition, offset, leader_epoch, None);
    }

    /// Like [`assign`](Self::assign), for an offset of the topic with this id: if the topic has another id,
    /// [`FetchEvent::Recreated`] is returned and nothing is read.
    pub fn assign_known(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
        offset: i64,
        leader_epoch: Option<i32>,
        topic_id: TopicId,
    ) {
        self.start(topic, partition, offset, leader_epoch, Some(topic_id));
    }

    fn start(
        &self,
        topic: &Arc<str>,
        partition: i32,
        offset: i64,
        leader_epoch: Option<i32>,
        topic_id: Option<TopicId>,
    ) {
        let name = TopicPartition { topic: Arc::clone(topic), partition };
        self.shared.lock().core.assign(name, offset, leader_epoch, topic_id, Instant::now());
        self.shared.work.notify_all();
    }

    /// Stops reading a partition; none of its events is returned afterwards.
    pub fn revoke(&mut self, topic: &Arc<str>, partition: i32) {
        self.shared.lock().core.revoke(&TopicPartition { topic: Arc::clone(topic), partition });
    }

    /// Pauses or resumes a partition; its position is kept.
    pub fn set_paused(&mut self, topic: &Arc<str>, partition: i32, paused: bool) {
        self.shared.lock().core.set_paused(&TopicPartition { topic: Arc::clone(topic), partition }, paused);
        self.shared.work.notify_all();
    }

    /// Returns the id of the topic that an assigned partition is read from: the id that belongs to the offsets of its
    /// events. `None` until it is known, and with brokers before Kafka 2.8.
    pub fn topic_id(&self, topic: &Arc<str>, partition: i32) -> Option<TopicId> {
        self.shared.lock().core.topic_id(&TopicPartition { topic: Arc::clone(topic), partition })
    }

    /// Waits at most `wait` for the first event. Returns the events with at most `max` messages; none if none came.
    pub fn poll(&mut self, wait: Duration, max: usize) -> Vec<FetchEvent> {
        let deadline = Instant::now() + wait;
        let mut state = self.shared.lock();
        if self.shared.supervisor.stop().is_triggered() {
            state.disconnect_all();
        }
        loop {
            let events = state.core.take(max);
            if state.core.take_waits_for_room() {
                self.shared.work.notify_all();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !events.is_empty() || left.is_zero() {
                return events;
            }
            state = wait_timeout(&self.shared.events, state, left);
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.disconnect_all();
        self.shared.work.notify_all();
    }
}

impl State {
    fn disconnect_all(&mut self) {
        for disconnect in self.disconnects.values() {
            disconnect.disconnect();
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether the threads must end.
    pub(super) fn is_ended(&self, state: &State) -> bool {
        state.is_closed || self.supervisor.stop().is_triggered()
    }

    /// Waits for a change of what there is to do, at most until `until`.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        let left = until.map_or(MAX_SLEEP, |until| until.saturating_duration_since(Instant::now()));
        wait_timeout(&self.work, state, left.min(MAX_SLEEP))
    }

    /// Wakes a poll if there are events, wakes threads that may have work, and starts the workers of brokers that have
    /// become leaders.
    pub(super) fn changed(self: &Arc<Self>, state: &mut State) {
        if state.core.has_events() {
            self.events.notify_all();
        }
        if state.core.take_leader_news() {
            self.work.notify_all();
        }
        for id in state.core.missing_workers(Instant::now()) {
            let shared = Arc::clone(self);
            self.supervisor.spawn_task(format!("kafka-fetch-{id}"), move || worker::run(&shared, id));
        }
    }

    /// The metadata thread.
    fn request_metadata(self: &Arc<Self>, mut client: MetadataClient) {
        let time = self.connector.config().request_timeout.min(MAX_METADATA_TIME);
        let mut state = self.lock();
        while !self.is_ended(&state) {
            match state.core.metadata_work(Instant::now()) {
                MetadataWork::Wait(until) => state = self.wait(state, until),
                MetadataWork::Request(topics) => {
                    drop(state);
                    let outcome = client.request(MetadataTopics::Names(topics.clone()), Instant::now() + time);
                    state = self.lock();
                    let now = Instant::now();
                    match outcome {
                        Ok(response) => state.core.on_metadata(&topics, &response, now),
                        Err(cause) => state.core.on_metadata_failed(cause.to_string(), now),
                    }
                    self.changed(&mut state);
                    // The workers of brokers that have become leaders may wait.
                    self.work.notify_all();
                }
            }
        }
    }
}
