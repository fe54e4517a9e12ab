//! The owner of one partition of a simulation: keeps what it received and checks each event.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::super::core::FetchCore;
use super::super::event::{FetchEvent, TopicPartition};
use super::cluster::Cluster;
use super::log::Fate;
use crate::kafka::metadata::TopicId;

/// How often each kind of event was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    messages: u64,
    positions: u64,
    out_of_range: u64,
    truncations: u64,
    recreations: u64,
    errors: u64,
}

impl Seen {
    pub(super) fn plus(&self, other: &Seen) -> Seen {
        Seen {
            messages: self.messages + other.messages,
            positions: self.positions + other.positions,
            out_of_range: self.out_of_range + other.out_of_range,
            truncations: self.truncations + other.truncations,
            recreations: self.recreations + other.recreations,
            errors: self.errors + other.errors,
        }
    }

    /// Whether every kind of event was seen often.
    pub(super) fn is_everything(&self) -> bool {
        [self.messages, self.positions, self.out_of_range, self.truncations, self.recreations, self.errors]
            .iter()
            .all(|count| *count >= 100)
    }
}

pub(super) struct Owner {
    pub(super) name: TopicPartition,
    pub(super) position: i64,
    epoch: Option<i32>,
    id: Option<TopicId>,
    /// Offsets and payloads.
    received: BTreeMap<i64, u64>,
    /// Payloads that compaction or retention removed.
    pub(super) removed: HashSet<u64>,
    pub(super) seen: Seen,
}

pub(super) fn message_count(event: &FetchEvent) -> usize {
    if let FetchEvent::Messages(messages) = event { messages.len() } else { 0 }
}

impl Owner {
    pub(super) fn new(topic: Arc<str>, partition: i32) -> Self {
        Owner {
            name: TopicPartition { topic, partition },
            position: 0,
            epoch: None,
            id: None,
            received: BTreeMap::new(),
            removed: HashSet::new(),
            seen: Seen::default(),
        }
    }

    /// Assigns the partition at the position.
    pub(super) fn assign(&self, core: &mut FetchCore, now: Instant) {
        core.assign(self.name.clone(), self.position, self.epoch, self.id, now);
    }

    fn restart(&mut self, position: i64, core: &mut FetchCore, now: Instant) {
        (self.position, self.epoch) = (position, None);
        self.assign(core, now);
    }

    pub(super) fn take(
        &mut self,
        event: &FetchEvent,
        core: &mut FetchCore,
        cluster: &Cluster,
        committed: bool,
        now: Instant,
    ) {
        let id = core.topic_id(&self.name);
        match event {
            FetchEvent::Messages(messages) => {
                self.seen.messages += 1;
                self.id = id;
                for message in messages.iter() {
                    let payload = u64::from_be_bytes(message.value.unwrap().try_into().unwrap());
                    assert!(message.offset >= self.position, "offset {} after {}", message.offset, self.position);
                    let fate = cluster.fates[&payload];
                    assert!(fate == Fate::Committed || !committed, "offset {} is {fate:?}", message.offset);
                    self.received.insert(message.offset, payload);
                    self.position = message.offset + 1;
                }
                assert!(messages.next_offset() >= self.position);
                (self.position, self.epoch) = (messages.next_offset(), messages.leader_epoch());
            }
            FetchEvent::Position { next_offset, leader_epoch, .. } => {
                self.seen.positions += 1;
                self.id = id;
                assert!(*next_offset > self.position, "position {next_offset} after {}", self.position);
                (self.position, self.epoch) = (*next_offset, *leader_epoch);
            }
            FetchEvent::TopicId { topic_id, .. } => {
                assert_eq!(id, Some(*topic_id));
                self.id = id;
            }
            FetchEvent::OffsetOutOfRange { offset, oldest, newest, .. } => {
                self.seen.out_of_range += 1;
                self.id = id;
                assert_eq!(*offset, self.position);
                assert!(offset < oldest, "offset {offset}, range {oldest} to {newest}");
                self.restart(*oldest, core, now);
            }
            FetchEvent::Truncated { position, divergence, .. } => {
                self.seen.truncations += 1;
                assert_eq!(*position, self.position);
                assert!(divergence.end_offset < self.position);
                let log = &cluster.partition_of(&self.name).log;
                let payloads: HashSet<u64> =
                    log.batches.iter().flat_map(|batch| &batch.records).map(|(_, payload)| *payload).collect();
                let lost = self.received.split_off(&divergence.end_offset);
                // The topic may have been created again since.
                if self.id == Some(cluster.id) || self.id.is_none() {
                    let kept = lost.iter().find(|(_, payload)| payloads.contains(payload));
                    assert!(kept.is_none(), "{kept:?} is not lost, the point is {divergence:?}");
                }
                (self.position, self.epoch) =
                    (divergence.end_offset, Some(divergence.epoch).filter(|epoch| *epoch >= 0));
                self.assign(core, now);
            }
            FetchEvent::Recreated { old_id, new_id, .. } => {
                self.seen.recreations += 1;
                assert_ne!(old_id, new_id);
                (self.id, self.received) = (None, BTreeMap::new());
                self.restart(0, core, now);
            }
            FetchEvent::PartitionError { offset, .. } => {
                self.seen.errors += 1;
                assert!(*offset >= 0);
            }
            FetchEvent::Recovered { .. } | FetchEvent::Unreachable { .. } => {}
        }
    }

    fn expected(&self, cluster: &Cluster, committed: bool) -> BTreeMap<i64, u64> {
        let records = cluster.partition_of(&self.name).log.batches.iter().flat_map(|batch| &batch.records);
        records.filter(|(_, payload)| !committed || cluster.fates[payload] == Fate::Committed).copied().collect()
    }

    /// Whether everything that the log has was received.
    pub(super) fn is_complete(&self, cluster: &Cluster, committed: bool) -> bool {
        self.expected(cluster, committed).iter().all(|(offset, payload)| self.received.get(offset) == Some(payload))
    }

    /// Checks that the owner has what the log has, apart from what was removed after it was read.
    pub(super) fn check_end(&self, cluster: &Cluster, committed: bool) {
        let expected = self.expected(cluster, committed);
        let log = &cluster.partition_of(&self.name).log;
        let range = log.end_positions();
        assert!(range.contains(&self.position), "the position of {} is {}, not {range:?}", self.name, self.position);
        for (offset, payload) in &expected {
            assert_eq!(self.received.get(offset), Some(payload), "offset {offset} of {}", self.name);
        }
        // A truncation below the start of the log cannot be detected, and nothing is missed by it.
        let start = cluster.partition_of(&self.name).log.start;
        for (offset, payload) in self.received.range(start..) {
            let is_known = expected.get(offset) == Some(payload) || self.removed.contains(payload);
            assert!(is_known, "offset {offset} of {} is not in the log", self.name);
        }
    }
}
