//! First offsets, ends and offsets of times: ListOffsets to the leader of each partition.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::error::{OffsetError, OffsetErrorKind};
use super::leaders::{LeaderRouter, Partition};
use super::reader::OffsetReader;
use super::rounds::{Attempt, run, run_into, unique};
use crate::kafka::broker_pool::PooledBroker;
use crate::kafka::error_code;
use crate::kafka::protocol::list_offsets::{EARLIEST, LATEST, ListOffsetsPartition, ListOffsetsRequest, ListedOffset};

/// Upper bound of the partitions of a request, which bounds its size and that of the response.
const MAX_PARTITIONS: usize = 2_000;

/// The offset to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first offset of the partition.
    Earliest,
    /// The end of the partition (high watermark): the offset after the last message that all in-sync replicas have.
    Latest,
    /// The last stable offset: the end of what a consumer with `isolation.level=read_committed` reads.
    LatestCommitted,
    /// The first message with this timestamp or a later one, in milliseconds since 1970.
    Timestamp(i64),
}

/// The offsets that a partition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// See [`OffsetSpec::Earliest`].
    pub earliest: i64,
    /// See [`OffsetSpec::Latest`].
    pub latest: i64,
    /// See [`OffsetSpec::LatestCommitted`].
    pub latest_committed: i64,
}

impl OffsetReader {
    /// Looks up the ranges of partitions. `found` receives each result once, with the index of the partition, as soon
    /// as there is one: a broker that does not respond delays its own partitions only. Retries as
    /// [`log_ends`](Self::log_ends) does; returns at `deadline` at the latest.
    pub fn ranges(
        &mut self,
        partitions: &[Partition],
        deadline: Instant,
        found: &mut (dyn FnMut(usize, Result<OffsetRange, OffsetError>) + Send),
    ) {
        let (partitions, order) = unique(partitions);
        let mut places = vec![Vec::new(); partitions.len()];
        order.into_iter().enumerate().for_each(|(place, item)| places[item].push(place));
        let mut router = LeaderRouter::new(&mut self.metadata, &mut self.leaders, &partitions);
        let call = |broker: &mut PooledBroker, items: Vec<(usize, i32)>, until| {
            items.chunks(MAX_PARTITIONS).flat_map(|items| list_ranges(broker, &partitions, items, until)).collect()
        };
        let mut sink = |item: usize, result: &Result<OffsetRange, OffsetError>| {
            places[item].iter().for_each(|place| found(*place, result.clone()));
        };
        run_into(&mut self.pool, partitions.len(), deadline, &mut router, call, &mut sink);
    }

    /// Returns the requested offset of each partition, in the order of `partitions`. Partitions without a leader, or
    /// whose leader does not answer, are retried until `deadline`; the call returns when each partition has a result.
    pub fn log_ends(
        &mut self,
        partitions: &[Partition],
        at: OffsetSpec,
        deadline: Instant,
    ) -> Vec<Result<i64, OffsetError>> {
        let (partitions, order) = unique(partitions);
        let mut router = LeaderRouter::new(&mut self.metadata, &mut self.leaders, &partitions);
        let results = run(&mut self.pool, partitions.len(), deadline, &mut router, |broker, items, until| {
            items.chunks(MAX_PARTITIONS).flat_map(|items| list_offsets(broker, &partitions, items, at, until)).collect()
        });
        order.into_iter().map(|index| results[index].clone()).collect()
    }
}

/// Sends the requests for both ends; returns a result for each item as [`list_offsets`] does.
fn list_ranges(
    broker: &mut PooledBroker,
    partitions: &[Partition],
    items: &[(usize, i32)],
    until: Instant,
) -> Vec<(usize, Attempt<OffsetRange>)> {
    let mut ends = |at| list_offsets(broker, partitions, items, at, until);
    let (earliest, latest, committed) =
        (ends(OffsetSpec::Earliest), ends(OffsetSpec::Latest), ends(OffsetSpec::LatestCommitted));
    let range = |(((item, earliest), (_, latest)), (_, committed))| {
        let attempt = match (earliest, latest, committed) {
            (Attempt::Final(Ok(earliest)), Attempt::Final(Ok(latest)), Attempt::Final(Ok(latest_committed))) => {
                Attempt::Final(Ok(OffsetRange { earliest, latest, latest_committed }))
            }
            (Attempt::Final(Err(failure)) | Attempt::Retry(Err(failure)), _, _)
            | (_, Attempt::Final(Err(failure)) | Attempt::Retry(Err(failure)), _)
            | (_, _, Attempt::Final(Err(failure)) | Attempt::Retry(Err(failure))) => Attempt::failed(failure),
            // No result of `list_offsets` is incomplete.
            (Attempt::Retry(Ok(_)), _, _) | (_, Attempt::Retry(Ok(_)), _) | (_, _, Attempt::Retry(Ok(_))) => {
                Attempt::failed(OffsetError::new(OffsetErrorKind::Unreachable, "incomplete"))
            }
        };
        (item, attempt)
    };
    earliest.into_iter().zip(latest).zip(committed).map(range).collect()
}

/// Sends one request; returns a result for each item: index in `partitions` and leader epoch.
fn list_offsets(
    broker: &mut PooledBroker,
    partitions: &[Partition],
    items: &[(usize, i32)],
    at: OffsetSpec,
    until: Instant,
) -> Vec<(usize, Attempt<i64>)> {
    let timestamp = match at {
        OffsetSpec::Earliest => EARLIEST,
        OffsetSpec::Latest | OffsetSpec::LatestCommitted => LATEST,
        // Negative timestamps have other meanings.
        OffsetSpec::Timestamp(timestamp) => timestamp.max(0),
    };
    let mut topics: BTreeMap<&Arc<str>, Vec<ListOffsetsPartition>> = BTreeMap::new();
    for &(index, leader_epoch) in items {
        let (topic, partition) = &partitions[index];
        let partition = ListOffsetsPartition { partition: *partition, leader_epoch, timestamp };
        topics.entry(topic).or_default().push(partition);
    }
    let topics: Vec<_> = topics.into_iter().map(|(topic, partitions)| (Arc::clone(topic), partitions)).collect();
    let request = ListOffsetsRequest { topics: &topics, read_committed: at == OffsetSpec::LatestCommitted };
    let response = match broker.call(&request, until) {
        Ok(response) => response,
        Err(failure) => {
            let failure = OffsetError::from(failure);
            return items.iter().map(|(index, _)| (*index, Attempt::failed(failure.clone()))).collect();
        }
    };
    broker.throttle(response.throttle_time_ms);
    let offsets = response.topics.iter().flat_map(|(topic, offsets)| offsets.iter().map(move |offset| (topic, offset)));
    let offsets: HashMap<(&str, i32), &ListedOffset> =
        offsets.map(|(topic, offset)| ((&**topic, offset.partition), offset)).collect();
    let result = |&(index, _): &(usize, i32)| {
        let (topic, partition) = &partitions[index];
        let attempt = match offsets.get(&(&**topic, *partition)) {
            Some(offset) => listed_offset(topic, offset, at),
            None => {
                let reason = format!("broker {}: the response lacks {topic}-{partition}", broker.address());
                Attempt::Retry(Err(OffsetError::new(OffsetErrorKind::Unreachable, reason)))
            }
        };
        (index, attempt)
    };
    items.iter().map(result).collect()
}

fn listed_offset(topic: &str, listed: &ListedOffset, at: OffsetSpec) -> Attempt<i64> {
    let partition = listed.partition;
    match (listed.error_code, at) {
        (error_code::NONE, _) if listed.offset >= 0 => Attempt::Final(Ok(listed.offset)),
        (error_code::NONE, OffsetSpec::Timestamp(timestamp)) => {
            let reason = format!("{topic}-{partition} has no message at or after timestamp {timestamp}");
            Attempt::failed(OffsetError::new(OffsetErrorKind::NoMessage, reason))
        }
        (error_code::NONE, _) => {
            let reason = format!("the leader of {topic}-{partition} returned offset {}", listed.offset);
            Attempt::Retry(Err(OffsetError::new(OffsetErrorKind::NoLeader, reason)))
        }
        (code, _) => Attempt::failed(OffsetError::refused(&format!("{topic}-{partition}"), code)),
    }
}
