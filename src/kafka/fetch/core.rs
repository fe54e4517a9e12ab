//! All decisions of a fetcher: what to request of which broker, what a response means, which events a poll returns.
//! Pure: no socket, no thread, and the time is an argument.
//!
//! Each broker that leads assigned partitions has a worker ([`BrokerState`]), which calls
//! [`next_work`](FetchCore::next_work), does that work without a lock, and returns the result to the `on_` method of
//! that kind of work. A result names its request by number; for a partition that was assigned, revoked or moved since,
//! it is ignored.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FetchConfig;
use super::event::{FetchEvent, TopicPartition};
use super::partition::PartitionReader;
use crate::kafka::backoff::Backoff;
use crate::kafka::config::BrokerAddress;
use crate::kafka::metadata::{BrokerId, TopicId};

mod leaders;
mod plan;
mod results;

#[cfg(test)]
mod tests;

pub(super) use leaders::MetadataWork;
pub(super) use plan::{BrokerVersions, FetchPlan, QueryPlan, Work};
#[cfg(test)]
pub(super) use plan::{PartitionQuery, QueryResults};

/// Largest number of errors kept for the next polls. Further errors are dropped; an error that lasts is reported again.
const MAX_PENDING_ERRORS: usize = 64;
/// Back-off of connections and of metadata requests: a new leader is found within this time.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_millis(400);

/// The state of a fetcher.
pub(super) struct FetchCore {
    config: FetchConfig,
    /// The pauses between attempts to reach a broker.
    reconnect_backoff: Backoff,
    partitions: HashMap<TopicPartition, PartitionReader>,
    /// The partitions with output, in the order of their turns.
    turns: VecDeque<TopicPartition>,
    /// The workers.
    brokers: HashMap<BrokerId, BrokerState>,
    /// Addresses of the brokers in the metadata and in leader hints.
    addresses: HashMap<BrokerId, BrokerAddress>,
    metadata: leaders::MetadataSchedule,
    errors: VecDeque<FetchEvent>,
    /// Number of the last request.
    number: u64,
    /// Number of the last response with data.
    data_count: u64,
    /// A worker waits until a poll makes room.
    waits_for_room: bool,
    /// A leader changed or is in doubt: other threads may have work.
    has_leader_news: bool,
}

/// The state of the worker of one broker.
struct BrokerState {
    /// `None` without a connection.
    versions: Option<BrokerVersions>,
    /// No request before this time, because of a failure or a quota.
    not_before: Instant,
    backoff: Backoff,
    /// Failures since the last response.
    failures: u32,
    reported_at: Option<Instant>,
    /// When the response to the request in flight is overdue.
    overdue_at: Option<Instant>,
    /// The time since which the broker leads no assigned partition.
    idle_since: Option<Instant>,
    /// Decoded bytes for 100 bytes of record data, averaged.
    expansion_percent: usize,
    /// Wait of the next request while a partition cannot be requested for lack of room.
    short_wait: Duration,
}

impl BrokerState {
    fn new(now: Instant) -> Self {
        BrokerState {
            versions: None,
            not_before: now,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            failures: 0,
            reported_at: None,
            overdue_at: None,
            idle_since: None,
            expansion_percent: 100,
            short_wait: plan::MIN_SHORT_WAIT,
        }
    }
}

impl FetchCore {
    pub(super) fn new(config: FetchConfig, now: Instant) -> Self {
        FetchCore {
            config,
            reconnect_backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            partitions: HashMap::new(),
            turns: VecDeque::new(),
            brokers: HashMap::new(),
            addresses: HashMap::new(),
            metadata: leaders::MetadataSchedule::new(now),
            errors: VecDeque::new(),
            number: 0,
            data_count: 0,
            waits_for_room: false,
            has_leader_news: false,
        }
    }

    /// Sets the pauses between attempts to reach a broker.
    pub(super) fn with_reconnect_backoff(mut self, backoff: Backoff) -> Self {
        self.reconnect_backoff = backoff;
        self
    }

    /// Starts to read at `offset`, see `Fetcher::assign_known`.
    pub(super) fn assign(
        &mut self,
        name: TopicPartition,
        offset: i64,
        leader_epoch: Option<i32>,
        topic_id: Option<TopicId>,
        now: Instant,
    ) {
        self.revoke(&name);
        let mut reader = PartitionReader::new(name.clone(), offset, leader_epoch, now);
        // What other partitions of the topic have found out saves a metadata request. It may be outdated: an id that
        // nothing was read with is replaced without a word.
        (reader.topic_id, reader.is_id_confirmed) = (topic_id, topic_id.is_some());
        self.partitions.insert(name, reader);
    }

    /// Stops reading a partition; none of its events is returned afterwards.
    pub(super) fn revoke(&mut self, name: &TopicPartition) {
        self.partitions.remove(name);
        self.turns.retain(|queued| queued != name);
        self.errors.retain(|event| event.partition() != Some(name));
    }

    /// Pauses or resumes a partition; its position is kept.
    pub(super) fn set_paused(&mut self, name: &TopicPartition, paused: bool) {
        if let Some(reader) = self.partitions.get_mut(name) {
            reader.is_paused = paused;
            queue(&mut self.turns, reader);
        }
    }

    /// Returns the id of the topic that an assigned partition is read from, if it is known.
    pub(super) fn topic_id(&self, name: &TopicPartition) -> Option<TopicId> {
        self.partitions.get(name).and_then(|reader| reader.topic_id)
    }

    /// Whether [`take`](Self::take) returns something.
    pub(super) fn has_events(&self) -> bool {
        !self.turns.is_empty() || !self.errors.is_empty()
    }

    /// Returns events with at most `max` messages: an equal share of each partition that has some, by turns. So a
    /// partition that always has messages does not starve the others.
    pub(super) fn take(&mut self, max: usize) -> Vec<FetchEvent> {
        let mut events = Vec::new();
        // Partitions that have not had their turn in this round.
        let (mut left, mut round) = (max, 0);
        while left > 0 {
            if round == 0 {
                round = self.turns.len();
            }
            let Some(name) = self.turns.pop_front() else { break };
            let share = left.div_ceil(round);
            round -= 1;
            let Some(reader) = self.partitions.get_mut(&name) else { continue };
            reader.is_queued = false;
            let mut share = share;
            while share > 0
                && let Some(event) = reader.take(share)
            {
                if let FetchEvent::Messages(messages) = &event {
                    share -= messages.len();
                    left -= messages.len();
                }
                events.push(event);
            }
            queue(&mut self.turns, reader);
        }
        events.extend(self.errors.drain(..));
        events
    }

    /// Whether a worker waits until a poll makes room. Resets that.
    pub(super) fn take_waits_for_room(&mut self) -> bool {
        std::mem::take(&mut self.waits_for_room)
    }

    /// Whether other threads may have work since a leader changed or is in doubt. Resets that.
    pub(super) fn take_leader_news(&mut self) -> bool {
        std::mem::take(&mut self.has_leader_news)
    }

    /// Returns the brokers that need a worker and have none; the caller starts one for each.
    pub(super) fn missing_workers(&mut self, now: Instant) -> Vec<BrokerId> {
        let mut missing = Vec::new();
        for reader in self.partitions.values().filter(|reader| !reader.is_stopped) {
            if let Some(id) = reader.target(now)
                && self.addresses.contains_key(&id)
                && !self.brokers.contains_key(&id)
            {
                let backoff = self.reconnect_backoff.clone();
                self.brokers.insert(id, BrokerState { backoff, ..BrokerState::new(now) });
                missing.push(id);
            }
        }
        missing
    }

    /// Returns the address of a broker.
    pub(super) fn address(&self, id: BrokerId) -> Option<&BrokerAddress> {
        self.addresses.get(&id)
    }

    fn report(&mut self, event: Option<FetchEvent>) {
        if let Some(event) = event
            && self.errors.len() < MAX_PENDING_ERRORS
        {
            self.errors.push_back(event);
        }
    }

    /// Runs `change` on the reader of a partition whose request `number` is in flight, and ends that request.
    fn with_reader(
        &mut self,
        name: &TopicPartition,
        number: u64,
        change: impl FnOnce(&mut PartitionReader) -> Option<FetchEvent>,
    ) {
        let Some(reader) = self.partitions.get_mut(name).filter(|reader| reader.in_flight == Some(number)) else {
            return;
        };
        reader.in_flight = None;
        let event = change(reader);
        queue(&mut self.turns, reader);
        self.report(event);
    }
}

/// Queues a partition if it has output and is not queued.
fn queue(turns: &mut VecDeque<TopicPartition>, reader: &mut PartitionReader) {
    if reader.has_output() {
        if !reader.is_queued {
            reader.is_queued = true;
            turns.push_back(reader.name.clone());
        }
    } else if reader.is_queued {
        reader.is_queued = false;
        turns.retain(|queued| *queued != reader.name);
    }
}

/// Groups by topic, for requests that are not in a session.
pub(super) fn by_topic<T>(items: impl Iterator<Item = (Arc<str>, T)>) -> Vec<(Arc<str>, Vec<T>)> {
    let mut topics: HashMap<Arc<str>, Vec<T>> = HashMap::new();
    for (topic, item) in items {
        topics.entry(topic).or_default().push(item);
    }
    topics.into_iter().collect()
}
