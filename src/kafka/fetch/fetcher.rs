//! The interface of a fetcher, and its metadata thread.
//!
//! Threads: `kafka-fetch-ID` for each broker that leads assigned partitions ([`super::worker`]), and
//! `kafka-fetch-meta`. They end after the supervisor's stop, or when the fetcher is dropped: both close the
//! connections, which ends their waits.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::core::{FetchCore, MetadataWork};
use super::event::{FetchEvent, TopicPartition};
use super::shared::{Shared, State};
use super::{FetchConfig, worker};
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::{Connector, Disconnect};
use crate::kafka::metadata::{MetadataTopics, TopicId};
use crate::kafka::metadata_client::MetadataClient;
use crate::locks::wait_timeout;
use crate::supervise::Supervisor;

/// Longest time of a metadata request, over all brokers that are tried.
const MAX_METADATA_TIME: Duration = Duration::from_secs(5);

/// Reads messages from offsets that its owner chooses. Used by one thread.
pub struct Fetcher {
    shared: Arc<Shared>,
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
            state: Mutex::new(State {
                core,
                disconnects: HashMap::new(),
                metadata_disconnect: Disconnect::new(),
                is_closed: false,
            }),
            events: Condvar::new(),
            work: Condvar::new(),
            run_worker: worker::run,
            connector: connector.clone(),
        });
        let metadata = Arc::clone(&shared);
        let connector = connector.ended_by(shared.lock().metadata_disconnect.clone());
        supervisor.spawn_task("kafka-fetch-meta", move || {
            request_metadata(&metadata, MetadataClient::new(connector, bootstrap));
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

    /// Returns the events about errors and their ends that have come, and leaves all others to [`poll`](Self::poll).
    pub fn poll_errors(&mut self) -> Vec<FetchEvent> {
        self.shared.lock().core.take_errors()
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

/// The metadata thread.
fn request_metadata(shared: &Arc<Shared>, mut client: MetadataClient) {
    let time = shared.connector.config().request_timeout.min(MAX_METADATA_TIME);
    let mut state = shared.lock();
    while !shared.is_ended(&state) {
        match state.core.metadata_work(Instant::now()) {
            MetadataWork::Wait(until) => state = shared.wait(state, until),
            MetadataWork::Request(topics) => {
                drop(state);
                let outcome = client.request(MetadataTopics::Names(topics.clone()), Instant::now() + time);
                state = shared.lock();
                let now = Instant::now();
                match outcome {
                    Ok(response) => state.core.on_metadata(&topics, &response, now),
                    Err(cause) => state.core.on_metadata_failed(cause.to_string(), now),
                }
                shared.changed(&mut state);
                // The workers of brokers that have become leaders may wait.
                shared.work.notify_all();
            }
        }
    }
}
