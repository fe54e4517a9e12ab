//! Leaders of partitions and ids of topics: decides when metadata is requested, and applies the responses.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::event::{FetchEvent, TopicPartition};
use super::super::partition::{MENDABLE_GRACE, PartitionReader, REPORT_INTERVAL};
use super::state::{BrokerState, FetchCore, MIN_PAUSE, queue};
use super::work::MetadataWork;
use crate::kafka::config::BrokerAddress;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, MetadataResponse, PartitionMetadata, TopicId, TopicMetadata};
use crate::kafka::produce::NodeAddress;

/// Metadata is requested this long after the last request even if no leader is stale: Fetch below version 13 does not
/// show that a topic was created again.
const MAX_AGE: Duration = Duration::from_secs(30);
/// Pause while the leaders of missing topics and partitions alone are stale.
const MISSING_PAUSE: Duration = Duration::from_secs(1);
/// A leader with a lower epoch than the known one is accepted if the metadata has it for this long. A broker that lags
/// behind the controller returns old leaders for a short time; a topic that was created again has low epochs for ever.
const OLDER_LEADER_AFTER: Duration = Duration::from_secs(3);

impl FetchCore {
    /// Returns the next action of the metadata thread.
    pub(in super::super) fn metadata_work(&mut self, now: Instant) -> MetadataWork {
        self.mark_overdue(now);
        let needs_leader = |reader: &PartitionReader| {
            let target = reader.target(now);
            reader.is_leader_stale || target.is_none_or(|id| !self.addresses.contains_key(&id))
        };
        let is_needed = self.partitions.values().any(|reader| !reader.is_stopped && needs_leader(reader));
        let due = match (self.partitions.is_empty(), is_needed) {
            (true, _) => return MetadataWork::Wait(None),
            (false, true) => self.metadata.not_before,
            (false, false) => self.metadata.last_end + MAX_AGE,
        };
        if due <= now {
            let topics: BTreeSet<Arc<str>> = self.partitions.keys().map(|name| Arc::clone(&name.topic)).collect();
            return MetadataWork::Request(topics.into_iter().collect());
        }
        let overdue = self.brokers.values().filter_map(|broker| broker.overdue_at).filter(|at| now < *at).min();
        MetadataWork::Wait(Some(overdue.map_or(due, |at| at.min(due))))
    }

    /// Marks the leaders of partitions as stale whose broker does not respond: it may have failed without a sign.
    fn mark_overdue(&mut self, now: Instant) {
        let is_overdue = |broker: &BrokerState| broker.overdue_at.is_some_and(|at| at <= now);
        let overdue = self.brokers.iter().filter(|(_, broker)| is_overdue(broker)).map(|(id, _)| *id);
        for id in overdue.collect::<Vec<_>>() {
            let reason = format!("{} does not respond", self.broker_name(id));
            for reader in self.partitions.values_mut().filter(|reader| reader.target(now) == Some(id)) {
                reader.is_leader_stale = true;
            }
            self.report_unread(id, &reason, now);
        }
    }

    /// Reports the partitions of a broker that has failed for long, or does not respond.
    pub(super) fn report_unread(&mut self, id: BrokerId, reason: &str, now: Instant) {
        let is_read = |reader: &PartitionReader| !reader.is_stopped && !reader.is_paused;
        let readers = self.partitions.values_mut().filter(|reader| is_read(reader) && reader.target(now) == Some(id));
        let errors: Vec<_> =
            readers.filter_map(|reader| reader.report(reason.to_owned(), MENDABLE_GRACE, now)).collect();
        errors.into_iter().for_each(|error| self.report(Some(error)));
    }

    /// Takes the response to a request for `requested`.
    pub(in super::super) fn on_metadata(&mut self, requested: &[Arc<str>], response: &MetadataResponse, now: Instant) {
        self.metadata.last_end = now;
        self.metadata.reported_at = None;
        self.addresses = response.brokers.iter().map(|broker| (broker.id, broker.address.clone())).collect();
        let topics: HashMap<&str, &TopicMetadata> = response.topics.iter().map(|topic| (&*topic.name, topic)).collect();
        let mut events = Vec::new();
        for reader in self.partitions.values_mut() {
            if reader.is_stopped || !requested.contains(&reader.name.topic) {
                continue;
            }
            events.push(apply(reader, topics.get(&*reader.name.topic).copied(), now));
            queue(&mut self.turns, reader);
        }
        events.into_iter().for_each(|event| self.report(event));
        let mut stale = self.partitions.values().filter(|reader| !reader.is_stopped && reader.is_leader_stale);
        let pause = match stale.next() {
            None => {
                self.metadata.backoff.reset();
                MIN_PAUSE
            }
            Some(first) if first.is_missing && stale.all(|reader| reader.is_missing) => MISSING_PAUSE,
            Some(_) => self.metadata.backoff.next(),
        };
        self.metadata.not_before = now + pause;
    }

    /// A metadata request failed.
    pub(in super::super) fn on_metadata_failed(&mut self, reason: String, now: Instant) {
        self.metadata.last_end = now;
        self.metadata.not_before = now + self.metadata.backoff.next();
        if self.metadata.reported_at.is_none_or(|at| at + REPORT_INTERVAL <= now) {
            self.metadata.reported_at = Some(now);
            let is_total = !self.has_working_broker(None, now);
            self.report(Some(FetchEvent::Unreachable { reason, is_total }));
        }
    }

    /// Takes a leader that a response named (KIP-951), if it is newer than the known one.
    pub(super) fn take_leader_hint(&mut self, name: &TopicPartition, leader: BrokerId, epoch: i32, now: Instant) {
        let is_reachable = self.addresses.contains_key(&leader);
        let Some(reader) = self.partitions.get_mut(name) else { return };
        if is_reachable && reader.leader_epoch < epoch {
            reader.set_leader(leader, epoch, now);
        }
    }

    /// Takes the addresses of new leaders.
    pub(super) fn take_nodes(&mut self, nodes: &[NodeAddress]) {
        for node in nodes {
            if let Ok(port) = u16::try_from(node.port) {
                self.addresses.insert(node.id, BrokerAddress { host: node.host.as_str().into(), port });
            }
        }
    }
}

/// Applies the metadata of its topic to a partition. Returns an error to report.
fn apply(reader: &mut PartitionReader, topic: Option<&TopicMetadata>, now: Instant) -> Option<FetchEvent> {
    let known = topic.filter(|topic| topic.error_code == error_code::NONE);
    let partition = known.and_then(|topic| topic.partitions.iter().find(|one| one.partition == reader.name.partition));
    let Some((topic, partition)) = known.zip(partition) else {
        let code = topic.map_or(error_code::UNKNOWN_TOPIC_OR_PARTITION, |topic| topic.error_code);
        return missing(reader, code, now);
    };
    if let Some(new_id) = topic.id
        && reader.topic_id != Some(new_id)
    {
        if let Some(old_id) = reader.topic_id.filter(|_| reader.is_id_confirmed) {
            let partition = reader.name.clone();
            reader.stop(FetchEvent::Recreated { partition, old_id, new_id });
            return None;
        }
        new_topic(reader, new_id);
    }
    let Some(leader) = partition.leader else {
        reader.leader = None;
        reader.is_leader_stale = true;
        let code = match partition.error_code {
            error_code::NONE => error_code::LEADER_NOT_AVAILABLE,
            code => code,
        };
        return reader.report(format!("it has no leader: {}", error_code::name(code)), MENDABLE_GRACE / 2, now);
    };
    if is_current(reader, partition, now) {
        let was_stale = reader.is_leader_stale && reader.leader.is_some();
        let before = (reader.leader, reader.leader_epoch);
        reader.set_leader(leader, partition.leader_epoch, now);
        // The same leader once more does not make it known: the metadata may be older than the failure.
        reader.is_leader_stale = was_stale && before == (reader.leader, reader.leader_epoch);
    }
    None
}

fn missing(reader: &mut PartitionReader, code: i16, now: Instant) -> Option<FetchEvent> {
    reader.is_missing = true;
    reader.is_leader_stale = true;
    let reason = match code {
        error_code::NONE => "the topic has no such partition".to_owned(),
        error_code::UNKNOWN_TOPIC_OR_PARTITION => "the topic does not exist".to_owned(),
        code => format!("no metadata of the topic: {}", error_code::name(code)),
    };
    // A topic that was read and is missing now may be in an election, or be created again.
    let grace = if reader.is_id_confirmed { MENDABLE_GRACE } else { Duration::ZERO };
    reader.report(reason, grace, now)
}

/// The topic has another id, and nothing was read with the old one.
fn new_topic(reader: &mut PartitionReader, id: TopicId) {
    if reader.topic_id.is_some() {
        (reader.leader, reader.leader_epoch, reader.replica, reader.in_flight) = (None, -1, None, None);
    }
    reader.topic_id = Some(id);
}

/// Whether the metadata is not older than what is known.
fn is_current(reader: &mut PartitionReader, partition: &PartitionMetadata, now: Instant) -> bool {
    if partition.leader_epoch < 0 || reader.leader_epoch <= partition.leader_epoch {
        return true;
    }
    let since = *reader.older_leader_since.get_or_insert(now);
    since + OLDER_LEADER_AFTER <= now
}
