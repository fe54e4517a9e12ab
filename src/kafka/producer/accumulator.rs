//! The producer's record queue for one acks level, without IO and without a clock: forms the batches to send and
//! derives the outcome of each message from the results of its batches.
//!
//! A request to a broker carries at most one batch of each partition that the broker leads. **A partition has at most
//! one batch in flight**, at every acks level. Retries and leader changes therefore keep the order, and a batch that
//! the broker rejected leaves no gap in the sequence numbers: the next batch uses the same number.
//!
//! A batch that may be stored is retried unchanged, with its sequence number, so that the broker recognises a
//! duplicate. If the broker can no longer recognise it, or its messages reach their deadline, the messages end as
//! `Stored::Unknown` and are not retried. The partition then continues with the next epoch of its producer id, which
//! needs no request (KIP-360; Kafka: TransactionManager.bumpIdempotentProducerEpoch). Brokers check epochs and sequence
//! numbers by partition, so each partition has its own epoch, and other partitions are not affected. A new producer id
//! is needed only after the last epoch, in another cluster, or if the broker has a higher epoch; see
//! [`RecordAccumulator::needs_producer`].
//!
//! Without idempotence a batch that may be stored is retried, too, and may then be stored twice.
//!
//! Invariants:
//!
//! - Each message ends exactly once.
//! - `Stored::No` is reported only for a message that was never sent, or whose batches were all reported as not
//!   stored.
//! - With idempotence no message is stored twice, and none is stored after a later message that was confirmed, as long
//!   as the partition keeps its producer id.
//! - A partition with a leader and a batch to send is in the queue of that leader, or waits for a producer id. The call
//!   that puts it there returns the leader, so that the caller can wake the sender of that broker.
//!
//! Cost: [`RecordAccumulator::append`] takes constant time; the other calls take time for the messages that they send
//! or end, and logarithmic time for each of their partitions. Memory grows with the messages that have not ended, with
//! the partitions that were not removed, and with the brokers ever named.
//!
//! The caller guarantees:
//!
//! - [`RecordAccumulator::complete`] is called for each sending, at the latest when its request times out. A response
//!   that arrives later is harmless: its [`Sending`] is no longer in flight, and the call is ignored.
//! - The messages of a partition are appended in the order of their deadlines. A message that is behind one with a
//!   later deadline may end as late as that one.
//! - A producer id is given to [`RecordAccumulator::set_producer`] once.
//! - [`RecordAccumulator::take`] is not called while the broker is unreachable or has throttled the client.

mod producer_ids;
mod removal;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::outcome::{BatchResult, BrokerId, EndedMessage, Limits, QueuedMessage};
use super::partition::Partition;
pub use super::partition_index::PartitionIndex;
use super::schedule::Schedule;
use crate::kafka::record_batch::{HEADER_BYTES, ProducerState};

/// Upper bound of [`Limits::max_retry_backoff`].
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(3600);
/// Upper bound of the vectors that are kept for the next batches, and of their capacity.
const MAX_SPARE_VECTORS: usize = 256;
const MAX_SPARE_CAPACITY: usize = 1024;

/// Identifies one sending of a batch, so that a late response to an earlier sending is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sending {
    /// Partition of the batch.
    pub partition: PartitionIndex,
    number: u64,
}

/// A batch to send now.
#[derive(Debug)]
pub struct BatchToSend<'a, M> {
    /// This sending of the batch, for [`RecordAccumulator::complete`].
    pub sending: Sending,
    /// Producer id, epoch and first sequence number.
    pub producer: ProducerState,
    /// Messages of the batch. `None` in a retried batch is a message that has ended since the first sending; the
    /// retried bytes still contain its record.
    pub messages: &'a [Option<M>],
    /// Whether the batch is a retry that must be unchanged: the caller sends the bytes that it encoded the first time.
    pub is_unchanged_retry: bool,
}

/// The messages of one acks level that have not ended, by partition.
#[derive(Debug)]
pub struct RecordAccumulator<K, M> {
    limits: Limits,
    partitions: Vec<Partition<M>>,
    by_name: HashMap<K, PartitionIndex>,
    /// Indexes of removed partitions, for new ones.
    free: Vec<PartitionIndex>,
    schedule: Schedule,
    /// Earliest deadlines, at least one entry for each partition with messages; see [`Partition::indexed_deadline`]. An
    /// entry with another time than the partition states is stale.
    deadlines: BinaryHeap<Reverse<(Instant, PartitionIndex)>>,
    /// Producer id and epoch of partitions that have no id or need a new one: `None` until
    /// [`RecordAccumulator::set_producer`] is called.
    producer: Option<(i64, i16)>,
    /// Whether a partition needs another id than that of `producer`, or will soon need it.
    needs_new_id: bool,
    /// Messages that have not ended.
    message_count: usize,
    in_flight_count: usize,
    /// Sendings so far.
    sending_count: u64,
    /// Empty vectors of ended batches, for the next batches.
    spare: Vec<Vec<Option<M>>>,
}

impl<K: Eq + Hash, M: QueuedMessage> RecordAccumulator<K, M> {
    /// Returns a queue without partitions and messages.
    pub fn new(limits: Limits) -> Self {
        RecordAccumulator {
            limits: Limits {
                retry_backoff: limits.retry_backoff.min(MAX_RETRY_BACKOFF),
                max_retry_backoff: limits
                    .max_retry_backoff
                    .clamp(limits.retry_backoff.min(MAX_RETRY_BACKOFF), MAX_RETRY_BACKOFF),
                ..limits
            },
            partitions: Vec::new(),
            by_name: HashMap::new(),
            free: Vec::new(),
            schedule: Schedule::default(),
            deadlines: BinaryHeap::new(),
            producer: None,
            needs_new_id: false,
            message_count: 0,
            in_flight_count: 0,
            sending_count: 0,
            spare: Vec::new(),
        }
    }

    /// Returns the index of the partition with this name; adds the partition if the name is new.
    pub fn partition(&mut self, name: K) -> PartitionIndex {
        let next = self.free.last().copied().unwrap_or(PartitionIndex(self.partitions.len()));
        let index = *self.by_name.entry(name).or_insert(next);
        if index == next && self.free.pop().is_none() {
            self.partitions.push(Partition::new());
            self.schedule.add_partition();
        }
        index
    }

    /// Sets the leader of a partition; returns the leader if it now has a batch to send. While a batch is in flight to
    /// the former leader, the new leader is sent no batch of this partition. A back-off is shortened to that of a first
    /// failure.
    pub fn set_leader(&mut self, index: PartitionIndex, leader: Option<BrokerId>) -> Option<BrokerId> {
        let partition = &mut self.partitions[index.0];
        if partition.leader == leader {
            return None;
        }
        partition.leader = leader;
        partition.shorten_backoff(&self.limits);
        self.schedule.remove(index);
        self.schedule(index)
    }

    /// Sets the largest batch that the topic of a partition accepts, header included; a single message may be larger.
    pub fn set_max_batch_bytes(&mut self, index: PartitionIndex, max_bytes: usize) {
        self.partitions[index.0].max_records_bytes = max_bytes.saturating_sub(HEADER_BYTES);
    }

    /// Queues a message; returns the leader if this call put the partition into the queue of its leader.
    pub fn append(&mut self, index: PartitionIndex, message: M) -> Option<BrokerId> {
        let partition = &mut self.partitions[index.0];
        let deadline = message.deadline();
        if partition.indexed_deadline.is_none_or(|indexed| deadline < indexed) {
            partition.indexed_deadline = Some(deadline);
            self.deadlines.push(Reverse((deadline, index)));
        }
        partition.waiting.push_back(message);
        self.message_count += 1;
        // Behind other waiting messages nothing changes: the partition is scheduled, has a batch in flight, or has no
        // leader.
        if partition.waiting.len() > 1 { None } else { self.schedule(index) }
    }

    /// Puts a partition that has a batch to send into the queue of its leader, unless it is there; returns the leader.
    /// A partition that waits for a producer id stays where it is; its leader is returned, so that its sender requests
    /// the id.
    fn schedule(&mut self, index: PartitionIndex) -> Option<BrokerId> {
        let partition = &self.partitions[index.0];
        let leader = partition.leader?;
        if !partition.has_batch_to_send() {
            return None;
        }
        if self.schedule.is_scheduled(index) {
            return self.schedule.is_awaiting_producer(index).then_some(leader);
        }
        self.schedule.add(index, leader, partition.not_before);
        Some(leader)
    }

    /// Passes the batches of one request to `broker` to `send` and marks them as in flight. Returns the time at which
    /// to call `take` again: `now` if the request is full and more batches wait, else the earliest end of a back-off.
    ///
    /// `max_bytes`: upper bound of this request beside [`Limits::max_request_bytes`].
    pub fn take(
        &mut self,
        broker: BrokerId,
        now: Instant,
        max_bytes: usize,
        mut send: impl FnMut(BatchToSend<M>),
    ) -> Option<Instant> {
        let max_bytes = max_bytes.min(self.limits.max_request_bytes);
        let queue = self.schedule.queue(broker)?;
        self.schedule.end_backoffs(queue, now);
        let mut request_bytes = 0_usize;
        while let Some(index) = self.schedule.pop_ready(queue) {
            let partition = &mut self.partitions[index.0];
            if !partition.has_batch_to_send() {
                // The messages have ended while the partition was in the queue.
                continue;
            }
            let is_unchanged_retry = partition.batch.is_some();
            if !is_unchanged_retry && self.limits.is_idempotent && !partition.choose_producer(self.producer) {
                self.schedule.await_producer(index);
                continue;
            }
            let (count, bytes) = match &partition.batch {
                Some(batch) => (0, batch.bytes),
                None => partition.next_batch(&self.limits, max_bytes),
            };
            if request_bytes > 0 && request_bytes.saturating_add(bytes) > max_bytes {
                // The partition is the first of the next request, so that large batches of others cannot starve it.
                self.schedule.push_first(index, queue);
                return Some(now);
            }
            request_bytes = request_bytes.saturating_add(bytes);
            if !is_unchanged_retry {
                partition.form_batch(count, bytes, self.spare.pop().unwrap_or_default());
            }
            partition.not_before = None;
            let Some(batch) = &mut partition.batch else { continue };
            self.sending_count += 1;
            self.in_flight_count += 1;
            batch.in_flight = Some(self.sending_count);
            send(BatchToSend {
                sending: Sending { partition: index, number: self.sending_count },
                producer: batch.producer,
                messages: &batch.messages,
                is_unchanged_retry,
            });
        }
        self.schedule.next_due(queue)
    }

    /// Handles the result of one sending and passes each message that has ended to `end`. A sending that is no longer
    /// in flight is ignored. Returns the leader if this call put the partition into the queue of its leader; a retry
    /// may have to wait for the back-off.
    pub fn complete(
        &mut self,
        sending: Sending,
        result: BatchResult,
        now: Instant,
        end: &mut impl FnMut(EndedMessage<M>),
    ) -> Option<BrokerId> {
        let Sending { partition: index, number } = sending;
        let (partition, limits) = (&mut self.partitions[index.0], &self.limits);
        let mut batch = partition.batch.take_if(|batch| batch.in_flight == Some(number))?;
        batch.in_flight = None;
        self.in_flight_count -= 1;
        let message_count = &mut self.message_count;
        let end = &mut |ended: EndedMessage<M>| {
            *message_count -= 1;
            end(ended);
        };
        let emptied = match result {
            BatchResult::Stored(base) => partition.confirm(batch, base, end),
            BatchResult::Duplicate if batch.may_be_stored || !limits.is_idempotent => {
                partition.confirm(batch, None, end)
            }
            BatchResult::MaybeStored => {
                batch.may_be_stored = true;
                partition.retry(batch, limits, now, end)
            }
            BatchResult::Rejected(positions, code) => partition.reject(batch, &positions, code, end),
            BatchResult::Failed(code) => {
                batch.may_be_stored = true;
                partition.reject(batch, &[], code, end)
            }
            BatchResult::TooLarge(code) => partition.shrink(batch, code, end),
            BatchResult::UnknownProducer | BatchResult::Duplicate if limits.is_idempotent => {
                partition.restart_sequence(batch, false, limits, now, end)
            }
            BatchResult::InvalidProducerEpoch if limits.is_idempotent => {
                partition.restart_sequence(batch, true, limits, now, end)
            }
            // Without idempotence a broker has no reason to return errors about the producer id.
            BatchResult::NotStored
            | BatchResult::UnknownProducer
            | BatchResult::Duplicate
            | BatchResult::InvalidProducerEpoch => partition.retry(batch, limits, now, end),
        };
        self.recycle(emptied);
        self.note_need_of_id(index);
        self.schedule(index)
    }

    fn recycle(&mut self, emptied: Vec<Option<M>>) {
        if (1..=MAX_SPARE_CAPACITY).contains(&emptied.capacity()) && self.spare.len() < MAX_SPARE_VECTORS {
            self.spare.push(emptied);
        }
    }

    /// Ends each message whose deadline is not after `now`. A batch in flight stays until
    /// [`RecordAccumulator::complete`] is called.
    pub fn expire(&mut self, now: Instant, end: &mut impl FnMut(EndedMessage<M>)) {
        while let Some(&Reverse((time, index))) = self.deadlines.peek().filter(|Reverse((time, _))| *time <= now) {
            self.deadlines.pop();
            let partition = &mut self.partitions[index.0];
            if partition.indexed_deadline != Some(time) {
                continue;
            }
            let message_count = &mut self.message_count;
            let emptied = partition.expire(now, &mut |ended| {
                *message_count -= 1;
                end(ended);
            });
            partition.indexed_deadline = partition.earliest_deadline();
            debug_assert!(
                partition.indexed_deadline.is_none_or(|deadline| deadline > now),
                "an expired message remains"
            );
            self.deadlines.extend(partition.indexed_deadline.map(|deadline| Reverse((deadline, index))));
            self.recycle(emptied);
            self.note_need_of_id(index);
        }
    }

    /// Ends each message that waits for `broker`, is in no batch, and has a deadline before `limit`.
    pub fn expire_waiting(&mut self, broker: BrokerId, limit: Instant, end: &mut impl FnMut(EndedMessage<M>)) {
        for partition in self.partitions.iter_mut().filter(|partition| partition.leader == Some(broker)) {
            let message_count = &mut self.message_count;
            partition.expire_waiting(limit, &mut |ended| {
                *message_count -= 1;
                end(ended);
            });
        }
    }

    /// Returns the bytes of the messages that wait for `broker`.
    pub fn waiting_bytes(&self, broker: BrokerId) -> usize {
        let partitions = self.partitions.iter().filter(|partition| partition.leader == Some(broker));
        partitions.flat_map(|partition| &partition.waiting).map(QueuedMessage::cost_bytes).sum()
    }

    /// Returns the time at which to call [`RecordAccumulator::expire`]: not after the earliest deadline of all
    /// messages, and earlier if a message that was confirmed had an earlier deadline. `None` without messages.
    pub fn next_deadline(&self) -> Option<Instant> {
        let earliest = self.deadlines.peek().filter(|_| self.message_count > 0);
        earliest.map(|Reverse((deadline, _))| *deadline)
    }

    /// Ends all messages of one partition. A batch in flight stays until [`RecordAccumulator::complete`] is called.
    pub fn drain(&mut self, index: PartitionIndex, end: &mut impl FnMut(EndedMessage<M>)) {
        let message_count = &mut self.message_count;
        let emptied = self.partitions[index.0].drain_all(&mut |ended| {
            *message_count -= 1;
            end(ended);
        });
        self.recycle(emptied);
        self.note_need_of_id(index);
    }

    /// Ends all messages, when the producer closes. A batch in flight stays until [`RecordAccumulator::complete`] is
    /// called.
    pub fn drain_all(&mut self, end: &mut impl FnMut(EndedMessage<M>)) {
        for index in 0..self.partitions.len() {
            let emptied = self.partitions[index].drain_all(end);
            self.partitions[index].indexed_deadline = None;
            self.recycle(emptied);
            self.note_need_of_id(PartitionIndex(index));
        }
        self.message_count = 0;
        self.deadlines.clear();
    }

    /// Returns the earliest time at which `broker` may be sent a batch: `now` if one is ready, the end of a back-off,
    /// or `None` if there is nothing to send.
    pub fn next_due(&self, broker: BrokerId, now: Instant) -> Option<Instant> {
        let queue = self.schedule.queue(broker)?;
        if self.schedule.has_ready(queue) { Some(now) } else { self.schedule.next_due(queue) }
    }

    /// Returns the leader of a partition.
    pub fn leader(&self, index: PartitionIndex) -> Option<BrokerId> {
        self.partitions[index.0].leader
    }

    /// Whether a batch of the partition is in flight.
    pub fn is_in_flight(&self, index: PartitionIndex) -> bool {
        self.partitions[index.0].batch.as_ref().is_some_and(|batch| batch.in_flight.is_some())
    }

    /// Whether the partition has a batch that must be retried unchanged.
    pub fn has_unchanged_retry(&self, index: PartitionIndex) -> bool {
        self.partitions[index.0].batch.as_ref().is_some_and(|batch| batch.in_flight.is_none())
    }

    /// Whether the partition has a message that has not ended.
    pub fn has_messages(&self, index: PartitionIndex) -> bool {
        self.partitions[index.0].earliest_deadline().is_some()
    }

    /// Returns the number of messages that have not ended.
    pub fn message_count(&self) -> usize {
        self.message_count
    }

    /// Whether all messages have ended and no batch is in flight.
    pub fn is_empty(&self) -> bool {
        self.message_count == 0 && self.in_flight_count == 0
    }
}

#[cfg(test)]
mod tests;
