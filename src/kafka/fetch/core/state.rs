//! The state of a fetcher: the partitions with their prefetched messages, the state of each broker, and the events for
//! the next polls.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::super::FetchConfig;
use super::super::event::{FetchEvent, TopicPartition};
use super::super::partition::PartitionReader;
use super::work::BrokerVersions;
use crate::kafka::backoff::Backoff;
use crate::kafka::config::BrokerAddress;
use crate::kafka::metadata::{BrokerId, TopicId};

/// Largest number of errors kept for the next polls. Further errors are dropped; an error that lasts is reported again.
const MAX_PENDING_ERRORS: usize = 64;
/// Back-off of connections and of metadata requests: a new leader is found within this time.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(100);
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(400);
/// First wait of a request that leaves partitions out for lack of room. While it lasts, these partitions cannot be
/// requested: the broker serves one request of a connection at a time.
pub(super) const MIN_SHORT_WAIT: Duration = Duration::from_millis(5);

/// The state of a fetcher.
pub(in super::super) struct FetchCore {
    pub(super) config: FetchConfig,
    /// The pauses between attempts to reach a broker.
    reconnect_backoff: Backoff,
    pub(super) partitions: HashMap<TopicPartition, PartitionReader>,
    /// The partitions with output, in the order of their turns.
    pub(super) turns: VecDeque<TopicPartition>,
    /// The workers.
    pub(super) brokers: HashMap<BrokerId, BrokerState>,
    /// Addresses of the brokers in the metadata and in leader hints.
    pub(super) addresses: HashMap<BrokerId, BrokerAddress>,
    pub(super) metadata: MetadataSchedule,
    pub(super) errors: VecDeque<FetchEvent>,
    /// Number of the last request.
    pub(super) number: u64,
    /// Number of the last response with data.
    pub(super) data_count: u64,
    /// A worker waits until a poll makes room.
    pub(super) waits_for_room: bool,
    /// A leader changed or may have changed: other threads may have work.
    pub(super) has_leader_news: bool,
}

/// When metadata is requested.
pub(super) struct MetadataSchedule {
    /// No request before this time.
    pub(super) not_before: Instant,
    pub(super) backoff: Backoff,
    /// End of the last request.
    pub(super) last_end: Instant,
    pub(super) reported_at: Option<Instant>,
}

impl MetadataSchedule {
    pub(super) fn new(now: Instant) -> Self {
        let backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        MetadataSchedule { not_before: now, backoff, last_end: now, reported_at: None }
    }
}

/// The state of the worker of one broker.
pub(super) struct BrokerState {
    /// `None` without a connection.
    pub(super) versions: Option<BrokerVersions>,
    /// No request before this time, because of a failure or a quota.
    pub(super) not_before: Instant,
    pub(super) backoff: Backoff,
    /// Failures since the last response.
    pub(super) failures: u32,
    pub(super) reported_at: Option<Instant>,
    /// When the response to the request in flight is overdue.
    pub(super) overdue_at: Option<Instant>,
    /// The time since which the broker leads no assigned partition.
    pub(super) idle_since: Option<Instant>,
    /// Decoded bytes for 100 bytes of record data, averaged.
    pub(super) expansion_percent: usize,
    /// The last request was for a partition that must be fetched alone.
    pub(super) is_turn_of_alone: bool,
    /// Wait of the next request while a partition cannot be requested for lack of room.
    pub(super) short_wait: Duration,
}

impl BrokerState {
    pub(super) fn new(now: Instant) -> Self {
        BrokerState {
            versions: None,
            not_before: now,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            failures: 0,
            reported_at: None,
            overdue_at: None,
            idle_since: None,
            expansion_percent: 100,
            is_turn_of_alone: false,
            short_wait: MIN_SHORT_WAIT,
        }
    }
}

impl FetchCore {
    pub(in super::super) fn new(config: FetchConfig, now: Instant) -> Self {
        FetchCore {
            config,
            reconnect_backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            partitions: HashMap::new(),
            turns: VecDeque::new(),
            brokers: HashMap::new(),
            addresses: HashMap::new(),
            metadata: MetadataSchedule::new(now),
            errors: VecDeque::new(),
            number: 0,
            data_count: 0,
            waits_for_room: false,
            has_leader_news: false,
        }
    }

    /// Sets the pauses between attempts to reach a broker.
    pub(in super::super) fn with_reconnect_backoff(mut self, backoff: Backoff) -> Self {
        self.reconnect_backoff = backoff;
        self
    }

    /// Starts to read at `offset`, see `Fetcher::assign_known`.
    pub(in super::super) fn assign(
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
        reader.is_id_reported = topic_id.is_some();
        self.partitions.insert(name, reader);
    }

    /// Stops reading a partition; none of its events is returned afterwards.
    pub(in super::super) fn revoke(&mut self, name: &TopicPartition) {
        self.partitions.remove(name);
        self.turns.retain(|queued| queued != name);
        self.errors.retain(|event| event.partition() != Some(name));
    }

    /// Pauses or resumes a partition; its position is kept.
    pub(in super::super) fn set_paused(&mut self, name: &TopicPartition, paused: bool) {
        if let Some(reader) = self.partitions.get_mut(name) {
            reader.is_paused = paused;
            queue(&mut self.turns, reader);
        }
    }

    /// Returns the id of the topic that an assigned partition is read from, if it is known.
    pub(in super::super) fn topic_id(&self, name: &TopicPartition) -> Option<TopicId> {
        self.partitions.get(name).and_then(|reader| reader.topic_id)
    }

    /// Whether [`take`](Self::take) returns something.
    pub(in super::super) fn has_events(&self) -> bool {
        !self.turns.is_empty() || !self.errors.is_empty()
    }

    /// Returns events with at most `max` messages: an equal share of each partition that has some, by turns. So a
    /// partition that always has messages does not starve the others.
    pub(in super::super) fn take(&mut self, max: usize) -> Vec<FetchEvent> {
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

    /// Returns the events about errors and their ends, and leaves all others.
    pub(in super::super) fn take_errors(&mut self) -> Vec<FetchEvent> {
        let recovered = self.partitions.values_mut().filter_map(PartitionReader::take_recovery);
        recovered.chain(self.errors.drain(..)).collect()
    }

    /// Whether a worker waits until a poll makes room. Resets that.
    pub(in super::super) fn take_waits_for_room(&mut self) -> bool {
        std::mem::take(&mut self.waits_for_room)
    }

    /// Whether other threads may have work since a leader changed or may have changed. Resets that.
    pub(in super::super) fn take_leader_news(&mut self) -> bool {
        std::mem::take(&mut self.has_leader_news)
    }

    /// Returns the brokers that need a worker and have none; the caller starts one for each.
    pub(in super::super) fn missing_workers(&mut self, now: Instant) -> Vec<BrokerId> {
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
    pub(in super::super) fn address(&self, id: BrokerId) -> Option<&BrokerAddress> {
        self.addresses.get(&id)
    }

    /// Whether a broker other than `failed` can be read from: it leads an assigned partition, and is connected without
    /// a failure or an overdue response.
    pub(super) fn has_working_broker(&self, failed: Option<BrokerId>, now: Instant) -> bool {
        self.brokers.iter().any(|(id, broker)| {
            let is_working = broker.versions.is_some() && broker.failures == 0 && broker.idle_since.is_none();
            is_working && Some(*id) != failed && broker.overdue_at.is_none_or(|overdue_at| now < overdue_at)
        })
    }

    /// Queues an error for the next poll.
    pub(super) fn report(&mut self, event: Option<FetchEvent>) {
        if let Some(event) = event
            && self.errors.len() < MAX_PENDING_ERRORS
        {
            self.errors.push_back(event);
        }
    }

    /// Runs `change` on the reader of a partition whose request `number` is in flight, and ends that request.
    pub(super) fn with_reader(
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
        if reader.has_recovered {
            // Errors are returned after the events of the partitions.
            self.errors.retain(|error| error.partition() != Some(name));
        }
        self.report(event);
    }
}

/// Queues a partition if it has output and is not queued.
pub(super) fn queue(turns: &mut VecDeque<TopicPartition>, reader: &mut PartitionReader) {
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
