//! Plans the next request to a broker.

use std::time::{Duration, Instant};

use super::super::event::TopicPartition;
use super::super::partition::{PartitionReader, Phase};
use super::super::session::WantedPartition;
use super::state::{FetchCore, MIN_SHORT_WAIT};
use super::work::{BrokerVersions, FetchPlan, PartitionQuery, QueryPlan, Work};
use crate::kafka::metadata::BrokerId;
use crate::kafka::protocol::fetch::{FIRST_WITH_TOPIC_IDS, FetchPartition, NO_TOPIC_ID};

/// Smallest limit of the record data of a request, so that progress does not need one request a batch.
const MIN_REQUEST_BYTES: usize = 16 << 10;
/// Smallest limit of the record data of a partition; the broker returns larger batches whole (KIP-74).
const MIN_PARTITION_BYTES: usize = 4 << 10;
/// A response is overdue this long after the time that the broker may wait; the leader is then looked up.
const OVERDUE_AFTER: Duration = Duration::from_secs(1);
/// Limit on the prefetched bytes of all paused partitions, see [`FetchCore::drop_paused_sets`]. A partition may be
/// paused for long, for instance behind a message that no backend accepts.
const MAX_PAUSED_BYTES: usize = 1 << 20;
/// The worker of a broker that leads no assigned partition ends after this time.
const MAX_IDLE: Duration = Duration::from_secs(10);

/// The partitions that can be requested from a broker now.
#[derive(Default)]
struct Candidates {
    /// Partitions whose next request goes to the broker.
    count: usize,
    fetch: Vec<TopicPartition>,
    ranges: Vec<TopicPartition>,
    epoch_ends: Vec<TopicPartition>,
    /// A partition is left out until a poll makes room.
    has_blocked: bool,
    /// The earliest time at which another partition may be requested.
    next_due: Option<Instant>,
}

impl FetchCore {
    /// Returns the next action of the worker of broker `id`.
    pub(in super::super) fn next_work(&mut self, id: BrokerId, now: Instant) -> Work {
        self.drop_paused_sets();
        let ready: usize = self.partitions.values().map(|reader| reader.ready_bytes).sum();
        let room = self.config.prefetch_bytes.saturating_sub(ready);
        let mut found = self.candidates(id, room, now);
        let Some(broker) = self.brokers.get_mut(&id) else { return Work::End };
        if found.count == 0 {
            let end = *broker.idle_since.get_or_insert(now) + MAX_IDLE;
            if end <= now {
                self.brokers.remove(&id);
                return Work::End;
            }
            return Work::Wait(Some(end));
        }
        broker.idle_since = None;
        if now < broker.not_before {
            return Work::Wait(Some(broker.not_before));
        }
        if found.fetch.is_empty() && found.ranges.is_empty() && found.epoch_ends.is_empty() {
            self.waits_for_room |= found.has_blocked;
            return Work::Wait(found.next_due);
        }
        let Some(versions) = broker.versions else {
            return match self.addresses.get(&id) {
                Some(address) => Work::Connect(address.clone()),
                None => Work::Wait(None),
            };
        };
        if !found.ranges.is_empty() {
            return Work::Ranges(self.query(id, &found.ranges, now));
        }
        if !found.epoch_ends.is_empty() {
            return Work::EpochEnds(self.query(id, &found.epoch_ends, now));
        }
        let is_alone = self.choose_alone(id, &mut found.fetch);
        Work::Fetch(self.fetch(id, versions, &found, is_alone, room, now))
    }

    /// Leaves one partition in the list, if some must be fetched alone and it is their turn, else the others. Returns
    /// whether it is the turn of one.
    fn choose_alone(&mut self, id: BrokerId, names: &mut Vec<TopicPartition>) -> bool {
        let is_alone = |name: &TopicPartition| self.partitions.get(name).is_some_and(|reader| reader.is_fetched_alone);
        let Some(first) = names.iter().find(|name| is_alone(name)).cloned() else { return false };
        let together: Vec<_> = names.iter().filter(|name| !is_alone(name)).cloned().collect();
        let Some(broker) = self.brokers.get_mut(&id) else { return false };
        broker.is_turn_of_alone = together.is_empty() || !broker.is_turn_of_alone;
        *names = if broker.is_turn_of_alone { vec![first] } else { together };
        broker.is_turn_of_alone
    }

    fn candidates(&self, id: BrokerId, room: usize, now: Instant) -> Candidates {
        let mut found = Candidates::default();
        let share = self.share();
        let versions = self.brokers.get(&id).and_then(|broker| broker.versions);
        for reader in self.partitions.values() {
            if reader.is_stopped || reader.target(now) != Some(id) {
                continue;
            }
            found.count += 1;
            if !reader.is_due(now) {
                if reader.in_flight.is_none() && now < reader.not_before {
                    found.next_due = Some(found.next_due.map_or(reader.not_before, |due| due.min(reader.not_before)));
                }
            } else if reader.phase == Phase::CheckingRange {
                found.ranges.push(reader.name.clone());
            } else if reader.needs_validation && versions.is_some_and(BrokerVersions::validates) {
                found.epoch_ends.push(reader.name.clone());
            } else if (room == 0 || reader.ready_bytes >= share) && !reader.is_error_open() {
                found.has_blocked = true;
            } else {
                found.fetch.push(reader.name.clone());
            }
        }
        found
    }

    /// Returns the prefetched bytes from which a partition is not requested: its share of the limit of all.
    fn share(&self) -> usize {
        (self.config.prefetch_bytes / self.partitions.len().max(1)).max(1)
    }

    /// Drops prefetched messages of paused partitions while these have more than 1 MiB, or more than half of the limit:
    /// they are not polled, and would leave no room for other partitions. They are fetched again.
    fn drop_paused_sets(&mut self) {
        loop {
            let paused = || self.partitions.values().filter(|reader| reader.is_paused && !reader.is_stopped);
            let bytes: usize = paused().map(|reader| reader.ready_bytes).sum();
            if bytes <= MAX_PAUSED_BYTES.min(self.config.prefetch_bytes / 2) {
                return;
            }
            let largest = paused().max_by_key(|reader| reader.ready_bytes).map(|reader| reader.name.clone());
            let Some(reader) = largest.and_then(|name| self.partitions.get_mut(&name)) else { return };
            reader.rewind();
        }
    }

    fn start_request(&mut self, id: BrokerId, wait: Duration, now: Instant) -> u64 {
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.overdue_at = Some(now + wait + OVERDUE_AFTER);
        }
        self.number += 1;
        self.number
    }

    fn query(&mut self, id: BrokerId, names: &[TopicPartition], now: Instant) -> QueryPlan {
        let number = self.start_request(id, Duration::ZERO, now);
        let mut partitions = Vec::new();
        for name in names {
            let Some(reader) = self.partitions.get_mut(name) else { continue };
            reader.in_flight = Some(number);
            let (leader_epoch, epoch) = (reader.leader_epoch, reader.epochs.last());
            partitions.push(PartitionQuery { name: name.clone(), leader_epoch, epoch });
        }
        QueryPlan { number, partitions }
    }

    fn fetch(
        &mut self,
        id: BrokerId,
        versions: BrokerVersions,
        found: &Candidates,
        is_alone: bool,
        room: usize,
        now: Instant,
    ) -> FetchPlan {
        let workers = self.brokers.values().filter(|broker| broker.idle_since.is_none()).count().max(1);
        let max_decoded_bytes = (room / workers).max(MIN_REQUEST_BYTES);
        let partition_decoded_bytes = self.share().max(MIN_PARTITION_BYTES);
        let (expansion, max_wait) = self.expansion_and_wait(id, found.has_blocked);
        // The other partitions wait meanwhile.
        let max_wait = if is_alone { Duration::ZERO } else { max_wait };
        let number = self.start_request(id, max_wait, now);
        // A power of two: a size that changes all the time would have to be sent all the time.
        let partition_bytes = (partition_decoded_bytes / expansion * 100).max(MIN_PARTITION_BYTES);
        let partition_bytes = 1_usize << partition_bytes.ilog2();
        let mut max_bytes = (max_decoded_bytes / expansion * 100).max(MIN_REQUEST_BYTES);
        let mut readers = Vec::new();
        let mut has_ids = true;
        for name in &found.fetch {
            let Some(reader) = self.partitions.get_mut(name) else { continue };
            reader.in_flight = Some(number);
            has_ids &= reader.topic_id.is_some();
            let bytes = partition_bytes.max(reader.min_request_bytes);
            max_bytes = max_bytes.max(reader.min_request_bytes);
            readers.push((reader.last_data, wanted(reader, bytes)));
        }
        readers.sort_by(|(one, left), (other, right)| one.cmp(other).then_with(|| left.topic.cmp(&right.topic)));
        FetchPlan {
            number,
            version: if has_ids { versions.fetch } else { versions.fetch.min(FIRST_WITH_TOPIC_IDS - 1) },
            wanted: readers.into_iter().map(|(_, wanted)| wanted).collect(),
            max_bytes,
            max_wait,
            max_decoded_bytes,
            partition_decoded_bytes,
        }
    }

    /// Returns the expansion of the broker's data in percent, and the wait of the next request.
    fn expansion_and_wait(&mut self, id: BrokerId, has_blocked: bool) -> (usize, Duration) {
        let max_wait = self.config.max_wait;
        let Some(broker) = self.brokers.get_mut(&id) else { return (100, max_wait) };
        if !has_blocked {
            broker.short_wait = MIN_SHORT_WAIT;
            return (broker.expansion_percent, max_wait);
        }
        // Doubles with each request, as long as no poll makes room.
        let wait = broker.short_wait.min(max_wait);
        broker.short_wait = (wait * 2).min(max_wait).max(MIN_SHORT_WAIT);
        (broker.expansion_percent, wait)
    }
}

fn wanted(reader: &PartitionReader, max_bytes: usize) -> WantedPartition {
    WantedPartition {
        topic: reader.name.topic.clone(),
        topic_id: reader.topic_id.unwrap_or(NO_TOPIC_ID),
        fetch: FetchPartition {
            partition: reader.name.partition,
            leader_epoch: reader.leader_epoch,
            offset: reader.next,
            last_fetched_epoch: reader.epochs.last(),
            max_bytes: i32::try_from(max_bytes).unwrap_or(i32::MAX),
        },
    }
}
