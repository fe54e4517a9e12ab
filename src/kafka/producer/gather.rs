//! The producer's record queue for one acks level, without IO and without a clock: forms the batches to send and
//! derives the outcome of each message from the results of its batches.
//!
//! A request to a broker carries at most one batch of each partition that the broker leads. **A partition has at most
//! one batch in flight**, at every acks level. Retries and leader changes therefore keep the order, and a batch that
//! the broker rejected leaves no gap in the sequence numbers: the next batch uses the same number.
//!
//! A batch that may be stored is retried unchanged, with its sequence number, so that the broker recognises a
//! duplicate. If the broker cannot recognise it any more, or its messages reach their deadline, the messages end as
//! [`Stored::Unknown`] and are not retried; the partition continues with a new producer id or epoch.
//!
//! Invariants: each message ends exactly once; [`Stored::No`] is reported only for a message that was never sent, or
//! whose batches were all reported as not stored; with idempotence no message is stored twice.
//!
//! The caller guarantees:
//!
//! - [`Gather::complete`] is called for each sending, at the latest when its request times out. A response that arrives
//!   later is harmless: its [`Sending`] is no longer in flight, and the call is ignored.
//! - A pair of producer id and epoch is used once. A new epoch of the same id is better than a new id: the broker then
//!   rejects a delayed copy of an earlier batch, which it would otherwise append behind later messages.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

use super::outcome::{BatchResult, BrokerId, EndedMessage, Gathered, Limits, Outcome, Stored};
use super::partition::Partition;
use crate::kafka::record_batch::ProducerState;

/// Identifies a partition within one [`Gather`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionIndex(usize);

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
    /// This sending of the batch, for [`Gather::complete`].
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
pub struct Gather<K, M> {
    limits: Limits,
    partitions: Vec<Partition<M>>,
    by_name: HashMap<K, PartitionIndex>,
    /// Partitions that may have a batch to send, by leader. An entry is stale if the partition has another leader or
    /// is not marked as listed.
    listed: HashMap<BrokerId, VecDeque<PartitionIndex>>,
    /// Producer id and epoch of new batches: `None` until [`Gather::set_producer`] is called, (-1, -1) without
    /// idempotence.
    producer: Option<(i64, i16)>,
    /// Sendings so far.
    sending_count: u64,
}

impl<K: Eq + Hash, M: Gathered> Gather<K, M> {
    /// Returns a queue without partitions and messages.
    pub fn new(limits: Limits) -> Self {
        Gather {
            limits,
            partitions: Vec::new(),
            by_name: HashMap::new(),
            listed: HashMap::new(),
            producer: (!limits.is_idempotent).then_some((-1, -1)),
            sending_count: 0,
        }
    }

    /// Returns the index of the partition with this name; adds the partition if the name is new.
    pub fn partition(&mut self, name: K) -> PartitionIndex {
        let next = PartitionIndex(self.partitions.len());
        let index = *self.by_name.entry(name).or_insert(next);
        if index == next {
            self.partitions.push(Partition {
                leader: None,
                waiting: VecDeque::new(),
                batch: None,
                not_before: None,
                is_listed: false,
                producer: ProducerState::NONE,
                needs_new_producer: false,
            });
        }
        index
    }

    /// Sets the leader of a partition; returns the leader if it now has a batch to send. While a batch is in flight to
    /// the former leader, the new leader is sent no batch of this partition.
    pub fn set_leader(&mut self, index: PartitionIndex, leader: Option<BrokerId>) -> Option<BrokerId> {
        let partition = &mut self.partitions[index.0];
        if partition.leader == leader {
            return None;
        }
        // The queue of the former leader may still contain the partition; `take` skips that entry.
        partition.leader = leader;
        partition.is_listed = false;
        self.list(index)
    }

    /// Queues a message; returns the leader if this call put the partition into the queue of its leader.
    pub fn append(&mut self, index: PartitionIndex, message: M) -> Option<BrokerId> {
        self.partitions[index.0].waiting.push_back(message);
        self.list(index)
    }

    /// Sets the producer id and epoch of new batches; returns the brokers that may have a batch to send. A batch that
    /// exists already, in flight or to be retried, keeps its id and epoch.
    pub fn set_producer(&mut self, producer_id: i64, epoch: i16) -> Vec<BrokerId> {
        self.producer = Some((producer_id, epoch));
        for index in 0..self.partitions.len() {
            self.list(PartitionIndex(index));
        }
        self.listed.keys().copied().collect()
    }

    /// Whether [`Gather::set_producer`] must be called before some partition can send its next batch.
    pub fn needs_producer(&self) -> bool {
        self.producer.is_none()
            || self.partitions.iter().any(|partition| {
                partition.needs_new_producer
                    && Some((partition.producer.producer_id, partition.producer.epoch)) == self.producer
            })
    }

    fn list(&mut self, index: PartitionIndex) -> Option<BrokerId> {
        let partition = &mut self.partitions[index.0];
        let leader = partition.leader?;
        let in_flight = partition.batch.as_ref().is_some_and(|batch| batch.in_flight.is_some());
        if partition.is_listed || in_flight || (partition.batch.is_none() && partition.waiting.is_empty()) {
            return None;
        }
        partition.is_listed = true;
        self.listed.entry(leader).or_default().push_back(index);
        Some(leader)
    }

    /// Passes the batches of one request to `broker` to `send` and marks them as in flight. Returns the time at which
    /// to call `take` again: `now` if the request is full and more batches wait, else the earliest end of a back-off.
    pub fn take(&mut self, broker: BrokerId, now: Instant, mut send: impl FnMut(BatchToSend<M>)) -> Option<Instant> {
        let mut listed = self.listed.remove(&broker).unwrap_or_default();
        let (mut kept, mut next_due, mut request_bytes) = (VecDeque::new(), None::<Instant>, 0);
        while let Some(index) = listed.pop_front() {
            let partition = &mut self.partitions[index.0];
            // A stale entry: the partition changed its leader, or an earlier entry was handled already.
            if partition.leader != Some(broker) || !partition.is_listed {
                continue;
            }
            if let Some(due) = partition.not_before.filter(|due| *due > now) {
                next_due = Some(next_due.map_or(due, |next| next.min(due)));
                kept.push_back(index);
                continue;
            }
            if partition.batch.is_none() && !partition.form_batch(self.limits, self.producer) {
                // A partition with messages waits for a producer id; a partition without messages leaves the queue.
                if partition.waiting.is_empty() {
                    partition.is_listed = false;
                } else {
                    kept.push_back(index);
                }
                continue;
            }
            let Some(batch) = &mut partition.batch else { continue };
            let bytes: usize = batch.messages.iter().flatten().map(Gathered::cost_bytes).sum();
            if request_bytes > 0 && request_bytes + bytes > self.limits.max_request_bytes {
                // The partition is the first of the next request, so that large batches of others cannot starve it.
                kept.push_front(index);
                kept.extend(listed);
                next_due = Some(now);
                break;
            }
            request_bytes += bytes;
            partition.is_listed = false;
            partition.not_before = None;
            let is_unchanged_retry = std::mem::replace(&mut batch.was_sent, true);
            self.sending_count += 1;
            batch.in_flight = Some(self.sending_count);
            send(BatchToSend {
                sending: Sending { partition: index, number: self.sending_count },
                producer: batch.producer,
                messages: &batch.messages,
                is_unchanged_retry,
            });
        }
        if !kept.is_empty() {
            self.listed.insert(broker, kept);
        }
        next_due
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
        let backoff_end = now + self.limits.retry_backoff;
        let Sending { partition: index, number } = sending;
        let partition = &mut self.partitions[index.0];
        let mut batch = partition.batch.take_if(|batch| batch.in_flight == Some(number))?;
        batch.in_flight = None;
        match result {
            BatchResult::Stored(base) => {
                partition.advance_sequence(&batch);
                for (position, message) in batch.messages.into_iter().enumerate() {
                    if let Some(message) = message {
                        end((message, Outcome::Appended(base.map(|base| base + position as i64))));
                    }
                }
            }
            BatchResult::NotStored => partition.retry(batch, Some(backoff_end)),
            BatchResult::MaybeStored => {
                batch.may_be_stored = true;
                partition.retry(batch, Some(backoff_end));
            }
            BatchResult::Rejected(records, code) => partition.reject(batch, &records, code, end),
            BatchResult::Failed(code) => {
                batch.may_be_stored = true;
                partition.reject(batch, &[], code, end);
            }
            BatchResult::TooLarge(code) if batch.messages.len() == 1 => partition.reject(batch, &[], code, end),
            BatchResult::TooLarge(code) => partition.split(batch, code, end),
            BatchResult::UnknownProducer => {
                partition.needs_new_producer = true;
                partition.end_if_maybe_stored(batch, end);
            }
        }
        partition.drop_ended_batch();
        self.list(index)
    }

    /// Ends each message whose deadline is not after `now`. A batch in flight stays until [`Gather::complete`] is
    /// called.
    pub fn expire(&mut self, now: Instant, end: &mut impl FnMut(EndedMessage<M>)) {
        for partition in &mut self.partitions {
            // All messages of an acks level have the same time-out, so the first message has the earliest deadline.
            while let Some(message) = partition.waiting.pop_front_if(|message| message.deadline() <= now) {
                end((message, Outcome::TimedOut(Stored::No)));
            }
            if let Some(batch) = &mut partition.batch {
                let stored =
                    if batch.in_flight.is_some() || batch.may_be_stored { Stored::Unknown } else { Stored::No };
                for slot in &mut batch.messages {
                    if let Some(message) = slot.take_if(|message| message.deadline() <= now) {
                        end((message, Outcome::TimedOut(stored)));
                    }
                }
                if stored == Stored::No {
                    // This batch is half of one that was too large, and not sent yet. It stays a batch, so that its
                    // messages are not joined with those of the other half again.
                    batch.messages.retain(Option::is_some);
                }
            }
            partition.drop_ended_batch();
        }
    }

    /// Returns the earliest deadline of all messages, `None` without messages.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of = |partition: &Partition<M>| {
            let batch = partition.batch.as_ref().map(|batch| batch.messages.iter().flatten());
            let batch = batch.into_iter().flatten().map(Gathered::deadline).min();
            partition.waiting.front().map(Gathered::deadline).into_iter().chain(batch).min()
        };
        self.partitions.iter().filter_map(of).min()
    }

    /// Returns the leader of a partition.
    pub fn leader(&self, index: PartitionIndex) -> Option<BrokerId> {
        self.partitions[index.0].leader
    }

    /// Returns the earliest time at which `broker` may be sent a batch: `now` if one is ready, the end of a back-off, or
    /// `None` if there is nothing to send.
    pub fn next_due(&self, broker: BrokerId, now: Instant) -> Option<Instant> {
        let listed = self.listed.get(&broker)?.iter().map(|index| &self.partitions[index.0]);
        let valid = listed.filter(|partition| partition.leader == Some(broker) && partition.is_listed);
        valid.map(|partition| partition.not_before.unwrap_or(now).max(now)).min()
    }

    /// Whether the partition has a batch that must be retried unchanged.
    pub fn has_unchanged_retry(&self, index: PartitionIndex) -> bool {
        self.partitions[index.0].batch.as_ref().is_some_and(|batch| batch.was_sent && batch.in_flight.is_none())
    }

    /// Ends all messages, with whether each may be stored.
    pub fn drain(&mut self, end: &mut impl FnMut((M, Stored))) {
        for partition in &mut self.partitions {
            for message in partition.waiting.drain(..) {
                end((message, Stored::No));
            }
            if let Some(batch) = &mut partition.batch {
                let may_be_stored = batch.in_flight.is_some() || batch.may_be_stored;
                let stored = if may_be_stored { Stored::Unknown } else { Stored::No };
                for message in batch.messages.iter_mut().filter_map(Option::take) {
                    end((message, stored));
                }
            }
            partition.drop_ended_batch();
        }
    }

    /// Returns the number of messages that have not ended.
    pub fn message_count(&self) -> usize {
        0
    }

    /// Whether all messages have ended and no batch is in flight.
    pub fn is_empty(&self) -> bool {
        self.partitions.iter().all(|partition| partition.waiting.is_empty() && partition.batch.is_none())
    }
}

#[cfg(test)]
mod tests;
